"""Choosing among trained policies by playing: what a user ends with after so many online episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from steepest.agents.agent import Agent
from steepest.api.agents import PathLike, evaluate, load
from steepest.errors import UsageError, require
from steepest.evaluation import online_selection
from steepest.experience.datasets.read import env_of, read_dataset
from steepest.seeding import stream_seed


@dataclasses.dataclass(frozen=True)
class OnlineSelection:
    """What ``steepest ope --bandit`` reports. All values are scores where the data has reference returns."""

    dataset: str
    unit: str
    """"score" or "return"."""
    policies: dict[str, float]
    """Mean over the episodes that were played of each."""
    episodes: int
    candidates: int
    """Policies that a user draws to choose from."""
    kept: list[float]
    """After try 1, 2, ...: the mean of the policy that is kept, in the mean over repeats."""
    low: list[float]
    high: list[float]
    """Quantiles of it over repeats, 5 and 95 percent."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return dataclasses.asdict(self)


def select_online(
    policies: Sequence[PathLike | Agent],
    data: Any,
    *,
    tries: int,
    episodes: int = 100,
    candidates: int | None = None,
    repeats: int = 1000,
    deterministic: bool = True,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> OnlineSelection:
    """Return the mean return of the policy that a user keeps after every online episode, by an upper-confidence bandit.

    Every policy plays ``episodes`` episodes once; the bandit draws from these. Its bonus assumes a range of about 1, so
    it sees scores divided by 100 where the data has reference returns, else returns between the least and the greatest.

    Args:      policies: run folders, saved agents, or agents; data names the environment and the reference returns;
               tries: online episodes; candidates: policies to choose from, drawn anew in every repeat (None: all);
               deterministic: play the mode of each policy
    Source:    Jackson et al. 2025 (Unifloral); see ``evaluation.online_selection``.
    Raises:    UsageError where the environment is not known or a policy does not fit it
    Verified:  tests/integration/test_ope.py::test_online_selection_ends_with_the_better_policy
    """
    require(tries >= 1, "tries", tries, "at least 1")
    require(episodes >= 1, "episodes", episodes, "at least 1")
    require(repeats >= 1, "repeats", repeats, "at least 1")
    if len(policies) < 2:
        raise UsageError(f"{len(policies)} policy leaves nothing to choose; give at least 2")
    wish = f"1 to {len(policies)}, the number of policies"
    require(candidates is None or 1 <= candidates <= len(policies), "candidates", candidates, wish)
    dataset = read_dataset(data)
    env, say = env_of(dataset), note or (lambda _: None)
    where: dict[str, Any] = {"env_kwargs": dataset.env_kwargs, "max_episode_steps": dataset.max_episode_steps}
    played: dict[str, tuple[float, ...]] = {}
    for policy in policies:
        agent = policy if isinstance(policy, Agent) else load(policy)
        name = agent.algorithm if isinstance(policy, Agent) else str(policy)
        name = name if name not in played else f"{name} ({sum(n.startswith(name) for n in played) + 1})"
        if agent.members != 1:
            raise UsageError(f"{name} holds {agent.members} members; save one of them with agent.member(i).save(FILE)")
        say(f"{name}: playing {episodes} episodes")
        (found,) = evaluate(agent, env, episodes=episodes, seed=seed, deterministic=deterministic, **where)
        played[name] = found.returns
    returns = torch.tensor(list(played.values()), dtype=torch.float64)
    if dataset.reference is not None:
        returns = dataset.reference.score(returns)
        zero, unit = 0.0, 100.0
    else:
        zero, unit = float(returns.min()), float(returns.max() - returns.min()) or 1.0
    generator = torch.Generator().manual_seed(stream_seed(seed, "bandit"))
    scaled = (returns - zero) / unit
    kept = zero + unit * online_selection(scaled, tries, generator, candidates=candidates, repeats=repeats)
    low, high = kept.quantile(torch.tensor([0.05, 0.95], dtype=kept.dtype), dim=0)
    means = dict(zip(played, returns.mean(-1).tolist(), strict=True))
    name = "return" if dataset.reference is None else "score"
    number = candidates or len(policies)
    kept_mean = kept.mean(0).tolist()
    return OnlineSelection(dataset.source, name, means, episodes, number, kept_mean, low.tolist(), high.tolist())
