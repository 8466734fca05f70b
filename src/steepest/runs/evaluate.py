"""Evaluation: whole episodes with frozen statistics, without a trace left in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

MAX_EVAL_ENVS = 100
"""Evaluation plays at most this many environments at once, per member."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Returns and lengths of evaluation episodes, in the order in which environments were started.

    Verified:  tests/unit/test_evaluation.py::test_an_evaluation_is_readable
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Population standard deviation over episodes."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    def __repr__(self) -> str:
        return f"Evaluation(return {self.mean:.2f} ± {self.std:.2f} over {counted(len(self.returns), 'episode')})"

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"return {s['mean']:.2f} ± {s['std']:.2f} over {counted(len(self.returns), 'episode')}, "
            f"min {s['min']:.2f}, max {s['max']:.2f}, mean length {s['mean_length']:.1f}"
        )

    def summary(self) -> dict[str, float | int]:
        return {
            "episodes": len(self.returns),
            "mean": self.mean,
            "std": self.std,
            "min": min(self.returns),
            "max": max(self.returns),
            "mean_length": self.mean_length,
        }


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
) -> EnvBatch:
    """Environments in which to evaluate every member of an agent: as many at once as its episodes can use.

    The number does not depend on the machine, since the episodes played depend on it. With "async" it is at most that
    of training; where that is more processes than there are cores, they run one after another in this process, to the
    same results.

    Args:      atari: what the agent was trained with, as options or their fields; whole games are played, for their
               own score. The others: see ``make_env``
    Verified:  tests/unit/test_evaluation.py::test_evaluation_starts_no_more_processes_than_cores,
               tests/integration/test_atari_runs.py::test_evaluation_plays_whole_games_for_their_own_score
    """
    each = min(episodes, MAX_EVAL_ENVS)
    if vectorization == "async":
        each = min(each, agent.num_envs)
        if each * agent.members > available_cores():
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
    )


def evaluate_members(
    agent: Agent,
    env: Environments,
    episodes: int,
    *,
    seed: int,
    deterministic: bool = True,
    on_step: Callable[[], None] | None = None,
) -> list[Evaluation]:
    """Play whole episodes with every member of a population.

    Environments are split evenly over members, and episodes evenly over a member's environments: each contributes its
    first ones, since taking whichever episodes end first would favour short ones. Stochastic actions are drawn from a
    generator of the evaluation's own, so that training continues as if nothing had happened.

    Args:      env: members x n environments, n <= episodes; seed: of environments and noise; on_step: called after the
               reset and after every step (video)
    Returns:   one Evaluation per member
    Verified:  tests/unit/test_evaluation.py::test_each_environment_contributes_its_first_episodes
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
    act = agent.actor(deterministic=deterministic)

    def tensor(x: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(np.array(x)).view(members, n, *x.shape[1:]).to(agent.device)

    if on_step is not None:
        on_step()
    with torch.no_grad():
        for step in itertools.count():
            if all(len(done) >= q for done, q in zip(finished, quota, strict=True)):
                break
            if step >= MAX_EPISODE_STEPS * int(quota.max()):
                raise RunError(
                    f"evaluation: after {step:,} steps some environments have not finished their {quota.max()} "
                    "episodes. Does this environment ever end? Give it a time limit (max_episode_steps), or switch "
                    "evaluation off (eval_episodes=0)."
                )
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
            returns += result.reward
            lengths += result.valid
            returns[waiting] = 0.0
            lengths[waiting] = 0
            # A pause row repeats the observation: the memory has not moved, so it is still a start if it was one.
            start = waiting | (start & ~result.valid)
            waiting = result.terminated | result.truncated
            for i in np.flatnonzero(waiting):
                finished[i].append((float(returns[i]), int(lengths[i])))
            if on_step is not None:
                on_step()
    out: list[Evaluation] = []
    for m in range(members):
        rows = [finished[m * n + i][: quota[m * n + i]] for i in range(n)]
        flat = [episode for row in rows for episode in row]
        out.append(Evaluation(tuple(r for r, _ in flat), tuple(k for _, k in flat)))
    return out
