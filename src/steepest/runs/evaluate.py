"""Evaluation: whole episodes with frozen statistics, without a trace left in training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.agents.agent import Agent
from steepest.distributions import action_noise
from steepest.environments import AtariOptions, EnvBatch, Vectorization, available_cores, is_atari, make_env
from steepest.errors import RunError
from steepest.experience.rollout import Environments
from steepest.runs.view.progress import counted

MAX_EPISODE_STEPS = 200_000
"""Longer than any episode in use (Atari's are cut at 27,000 decisions): whoever waits longer waits for ever."""

GIVEN_UP_AFTER = 30_000
"""Steps after which an evaluation beside training gives an episode up by default: a quarter of a minute."""

MAX_EVAL_ENVS = 100
"""Evaluation plays at most this many environments at once, per member."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Returns and lengths of evaluation episodes, in the order in which environments were started.

    Figures are of the episodes that ended, and NaN where none did.

    Verified:  tests/unit/test_evaluation.py::test_an_evaluation_is_readable
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    unfinished: int = 0
    """Episodes that were given up before they ended, or could not be played."""
    infos: dict[str, float] = field(default_factory=dict[str, float])
    """Of every name in ``info_keys``, NAME_mean over steps and NAME_last over episodes; see ``RunConfig.info_keys``."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns)) if self.returns else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation over episodes."""
        return float(np.std(self.returns)) if self.returns else math.nan

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths)) if self.lengths else math.nan

    def __repr__(self) -> str:
        return f"Evaluation({self._returns()})"

    def __str__(self) -> str:
        if not self.returns:
            return self._returns()
        rest = f"min {min(self.returns):.2f}, max {max(self.returns):.2f}, mean length {self.mean_length:.1f}"
        return f"{self._returns()}, {rest}"

    def _returns(self) -> str:
        lacking = f", {counted(self.unfinished, 'other')} unfinished" if self.unfinished else ""
        episodes = counted(len(self.returns), "episode")
        return f"return {self.mean:.2f} ± {self.std:.2f} over {episodes}{lacking}"

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON has them; None for those of no episode."""
        figures: dict[str, Any] = {"episodes": len(self.returns)}
        known = bool(self.returns)
        figures |= {
            "mean": self.mean if known else None,
            "std": self.std if known else None,
            "min": min(self.returns, default=None),
            "max": max(self.returns, default=None),
            "mean_length": self.mean_length if known else None,
        }
        figures |= {"unfinished": self.unfinished} if self.unfinished else {}
        return figures | ({"infos": self.infos} if self.infos else {})


def make_evaluation_env(
    env: Any,
    agent: Agent,
    episodes: int,
    *,
    vectorization: Vectorization = "auto",
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    atari: AtariOptions | Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    step_timeout: float | None = None,
    info_keys: Sequence[str] = (),
) -> EnvBatch:
    """Environments in which to evaluate every member of an agent: as many at once as its episodes can use.

    The number does not depend on the machine, since the episodes played depend on it. With "async" it is at most that
    of training; where that is more processes than there are cores, they run one after another in this process, to the
    same results, unless ``step_timeout`` asks for processes.

    Args:      atari: what the agent was trained with, as options or their fields; whole games are played, for their
               own score. The others: see ``make_env``
    Verified:  tests/unit/test_evaluation.py::test_evaluation_starts_no_more_processes_than_cores,
               tests/integration/test_atari_runs.py::test_evaluation_plays_whole_games_for_their_own_score
    """
    each = min(episodes, MAX_EVAL_ENVS)
    if vectorization == "async":
        each = min(each, agent.num_envs)
        if each * agent.members > available_cores() and step_timeout is None:
            vectorization = "sync"
    options = None
    if atari is not None and is_atari(env):
        options = (atari if isinstance(atari, AtariOptions) else AtariOptions(**atari)).for_evaluation()
    return make_env(
        env,
        each * agent.members,
        vectorization=vectorization,
        env_kwargs=env_kwargs,
        atari=options,
        render_mode=render_mode,
        max_episode_steps=max_episode_steps,
        step_timeout=step_timeout,
        info_keys=info_keys,
    )


def evaluate_members(
    agent: Agent,
    env: Environments,
    episodes: int,
    *,
    seed: int,
    deterministic: bool = True,
    on_step: Callable[[], None] | None = None,
    limit: int | None = None,
) -> list[Evaluation]:
    """Play whole episodes with every member of a population.

    Environments are split evenly over members, and episodes evenly over a member's environments: each contributes its
    first ones, since taking whichever episodes end first would favour short ones. Stochastic actions are drawn from a
    generator of the evaluation's own, so that training continues as if nothing had happened.

    Args:      env: members x n environments, n <= episodes; seed: of environments and noise; on_step: called after the
               reset and after every step (video); limit: an environment is given up in an episode of so many steps
    Returns:   one Evaluation per member
    Raises:    RunError where there is no limit, and an episode does not end
    Verified:  tests/unit/test_evaluation.py::test_each_environment_contributes_its_first_episodes,
               tests/unit/test_evaluation.py::test_an_episode_that_does_not_end_is_given_up
    """
    members = agent.members
    n = env.num_envs // members
    if n < 1 or env.num_envs % members or n > episodes:
        raise ValueError(f"{env.num_envs} environments for {members} members and {episodes} episodes each")
    quota = np.full((members, n), episodes // n)
    quota[:, : episodes % n] += 1
    quota = quota.reshape(-1)
    generator = torch.Generator().manual_seed(seed)
    obs, mask = env.reset(seed)
    memory = agent.initial_memory(n)
    start = np.ones(env.num_envs, dtype=np.bool_)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    finished: list[list[tuple[float, int]]] = [[] for _ in range(env.num_envs)]
    waiting = np.zeros(env.num_envs, dtype=np.bool_)
    left, given_up = quota.copy(), np.zeros(env.num_envs, dtype=np.bool_)
    longest = MAX_EPISODE_STEPS if limit is None else limit
    infos = _Infos(env)
    act = agent.actor(deterministic=deterministic)

    def tensor(x: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(np.array(x)).view(members, n, *x.shape[1:]).to(agent.device)

    if on_step is not None:
        on_step()
    with torch.no_grad():
        for step in itertools.count():
            # At most every other row restarts environments.
            endless = (lengths >= longest) & ~waiting | (step >= 2 * longest * int(quota.max()))
            given_up |= (left > 0) & endless
            if limit is None and given_up.any():
                raise RunError(
                    f"evaluation: an episode has not ended after {longest:,} steps. Does this environment ever end? "
                    "Give it a time limit (max_episode_steps), or switch evaluation off (eval_episodes=0)."
                )
            if not (plays := (left > 0) & ~given_up).any():
                break
            noise = None
            if not deterministic:
                noise = action_noise(agent.action_spec, (members, n), generator).to(agent.device)
            action, new_memory = act(
                {k: tensor(v) for k, v in obs.items()},
                noise,
                None if mask is None else tensor(mask),
                None if memory is None else tensor(start),
                memory,
            )
            result = env.step(agent.to_env(action.reshape(env.num_envs, *action.shape[2:]).cpu().numpy()))
            obs, mask = result.obs, result.action_mask
            if memory is not None and new_memory is not None:
                memory = torch.where(tensor(result.valid).unsqueeze(-1), new_memory, memory)
            infos.add(result, counted=plays)
            returns += result.reward
            lengths += result.valid
            returns[waiting] = 0.0
            lengths[waiting] = 0
            # A pause row repeats the observation: the memory has not moved, so it is still a start if it was one.
            start = waiting | (start & ~result.valid)
            waiting = result.terminated | result.truncated
            for i in np.flatnonzero(waiting):
                if plays[i]:
                    finished[i].append((float(returns[i]), int(lengths[i])))
                    left[i] -= 1
            if on_step is not None:
                on_step()
    out: list[Evaluation] = []
    for m in range(members):
        mine = slice(m * n, (m + 1) * n)
        flat = [episode for row in finished[mine] for episode in row]
        unfinished = int(left[mine].sum())
        out.append(Evaluation(tuple(r for r, _ in flat), tuple(k for _, k in flat), unfinished, infos.of(mine)))
    return out


class _Infos:
    """Means of the named numbers in the infos of every environment: over steps, and over the last steps of episodes."""

    def __init__(self, env: Environments) -> None:
        self.keys: tuple[str, ...] = getattr(env, "info_keys", ())
        self.sums, self.counts, self.last_sums, self.last_counts = np.zeros((4, len(self.keys), env.num_envs))

    def add(self, result: Any, counted: NDArray[np.bool_]) -> None:
        """Take in a step, of the environments that count."""
        ended = result.terminated | result.truncated
        for k, key in enumerate(self.keys):
            value = result.infos[key]
            there = np.isfinite(value) & counted
            self.sums[k] += np.where(there, value, 0.0)
            self.counts[k] += there
            self.last_sums[k] += np.where(there & ended, value, 0.0)
            self.last_counts[k] += there & ended

    def of(self, which: slice) -> dict[str, float]:
        """The means over some environments, of the numbers that were there."""
        found: dict[str, float] = {}
        for k, key in enumerate(self.keys):
            pairs = (("mean", self.sums, self.counts), ("last", self.last_sums, self.last_counts))
            for name, total, count in pairs:
                if count[k, which].sum():
                    found[f"{key}_{name}"] = float(total[k, which].sum() / count[k, which].sum())
        return found
