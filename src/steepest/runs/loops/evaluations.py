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


class Evaluator:
    """Plays whole episodes with the agent as it is, in an environment apart from those of training.

    Args:      source: what evaluation environments are made from; train_source: what training plays in; note: takes
               what a user should know
    """

    def __init__(
        self,
        source: Any,
        train_source: Any,
        agent: Agent,
        settings: RunConfig,
        env_kwargs: dict[str, Any] | None,
        note: Callable[[str], None],
    ) -> None:
        self.source = source
        self.shared = source is train_source and isinstance(train_source, (gym.Env, gym.vector.VectorEnv))
        self.agent = agent
        self.settings = settings
        self.env_kwargs = env_kwargs
        self.note = note
        self.latest: list[Evaluation] = []
        self._env: Any = None
        self._off = settings.eval_episodes == 0

    @property
    def seed(self) -> int:
        return stream_seed(self.settings.seed, "evaluation") % 2**31

    def evaluate(self) -> list[Row] | None:
        """Play the episodes of every member; None where there is nowhere to play."""
        if self._off or (self._env is None and not self._make()):
            return None
        self.latest = evaluate_members(self.agent, cast(Any, self._env), self.settings.eval_episodes, seed=self.seed)
        return [
            {
                "eval/return_mean": found.mean,
                "eval/return_std": found.std,
                "eval/return_min": min(found.returns),
                "eval/return_max": max(found.returns),
                "eval/episode_length_mean": found.mean_length,
                "eval/episodes": len(found.returns),
            }
            for found in self.latest
        ]

    def show_episode(self) -> bool:
        """Play one episode of every member in a window; False, and a note, where that cannot be."""
        if self.shared:
            return True
        try:
            window = self._environments(1, render_mode="human")
            try:
                evaluate_members(self.agent, window, 1, seed=self.seed)
            finally:
                window.close()
        except SteepestError as error:
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
            **options,
        )
