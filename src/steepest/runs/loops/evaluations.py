"""Evaluations beside training: where they are played, and whether they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym

from steepest.agents.agent import Agent
from steepest.errors import SteepestError, UsageError
from steepest.runs.evaluate import Evaluation, evaluate_members, make_evaluation_env
from steepest.runs.loops.training import Row
from steepest.runs.options.config import RunConfig
from steepest.seeding import stream_seed

FAILURES = (SteepestError, OSError, MemoryError)
"""Raised by environments, or by a machine that has no room or no processes left for them."""

SHOWN_STEPS = 3_000
"""Steps of an episode that a window shows at most: at 30 pictures a second, 100 seconds."""


class Evaluator:
    """Plays whole episodes with the agent as it is, in an environment apart from those of training.

    Training goes on whatever happens here: an evaluation that fails, or whose episodes do not end, is one of fewer
    episodes, and a warning.

    Args:      source: what evaluation environments are made from; train_source: what training plays in; note: takes
               what a user should know; warn: what a user must not miss
    Verified:  tests/integration/test_evaluations.py::test_an_evaluation_that_does_not_end_costs_nothing_else,
               tests/integration/test_evaluations.py::test_an_evaluation_that_fails_costs_nothing_else
    """

    def __init__(
        self,
        source: Any,
        train_source: Any,
        agent: Agent,
        settings: RunConfig,
        env_kwargs: dict[str, Any] | None,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.source = source
        self.shared = source is train_source and isinstance(train_source, (gym.Env, gym.vector.VectorEnv))
        self.agent = agent
        self.settings = settings
        self.env_kwargs = env_kwargs
        self.note = note
        self.warn = warn
        self.latest: list[Evaluation] = []
        self._env: Any = None
        self._off = settings.eval_episodes == 0

    @property
    def seed(self) -> int:
        return stream_seed(self.settings.seed, "evaluation") % 2**31

    @property
    def on(self) -> bool:
        """Return whether there are evaluations at all."""
        return not self._off

    @property
    def complete(self) -> bool:
        """Return whether all episodes of the latest evaluation have ended: others compare with no evaluation."""
        return not any(found.unfinished for found in self.latest)

    def evaluate(self, step: int) -> list[Row] | None:
        """Play the episodes of every member; None where there is nowhere to play."""
        limit, episodes = cast(int, self.settings.eval_episode_steps), self.settings.eval_episodes
        if self._off:
            return None
        try:
            if self._env is None and not self._make():
                return None
            self.latest = evaluate_members(self.agent, cast(Any, self._env), episodes, seed=self.seed, limit=limit)
        except FAILURES as error:
            self.close()
            self._env = None  # to be made anew
            self.latest = [Evaluation((), (), episodes) for _ in range(self.agent.members)]
            self.warn(f"the evaluation at step {step:,} failed, and training goes on: {error}")
            return [_row(found) for found in self.latest]
        if not self.complete:
            self.warn(
                f"the evaluation at step {step:,} is unfinished: {sum(x.unfinished for x in self.latest)} of "
                f"{episodes * self.agent.members} episodes had not ended after {limit:,} steps (eval_episode_steps). "
                "Does this environment always end? Give it a time limit (max_episode_steps)"
            )
        return [_row(found) for found in self.latest]

    def show_episode(self) -> bool:
        """Play one episode of every member in a window; False, and a note, where that cannot be."""
        if self.shared:
            return True
        try:
            window = self._environments(1, render_mode="human")
            try:
                evaluate_members(self.agent, window, 1, seed=self.seed, limit=SHOWN_STEPS)
            finally:
                window.close()
        except FAILURES as error:
            self.note(f"not rendering: {error}")
            return False
        return True

    def close(self) -> None:
        """Close the environments, but not those that the user made."""
        if self._env is not None and not isinstance(self.source, (gym.Env, gym.vector.VectorEnv)):
            self._env.close()

    def _make(self) -> bool:
        why = None
        try:
            self._env = self._environments(self.settings.eval_episodes, vectorization=self.settings.vectorization)
        except UsageError as error:
            why = f"{error} (or pass eval_env)"
        if self._env is not None and self.shared:
            self._env = None
            why = "training uses the one environment that was given (pass a factory, or eval_env)"
        if why is not None:
            self._off = True
            self.note(f"not evaluating: {why}")
        return why is None

    def _environments(self, episodes: int, **options: Any) -> Any:
        return make_evaluation_env(
            self.source,
            self.agent,
            episodes,
            env_kwargs=self.env_kwargs,
            max_episode_steps=self.settings.max_episode_steps,
            atari=self.settings.atari,
            step_timeout=self.settings.step_timeout if options.get("vectorization") == "async" else None,
            info_keys=self.settings.info_keys,
            **options,
        )


def _row(found: Evaluation) -> Row:
    """Return the metrics of an evaluation."""
    row: Row = {}
    if found.returns:
        row |= {
            "eval/return_mean": found.mean,
            "eval/return_std": found.std,
            "eval/return_min": min(found.returns),
            "eval/return_max": max(found.returns),
            "eval/episode_length_mean": found.mean_length,
        }
    row["eval/episodes"] = len(found.returns)
    if found.unfinished:
        row["eval/unfinished"] = found.unfinished
    return row | {f"eval/info/{name}": value for name, value in found.infos.items()}
