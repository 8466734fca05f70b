"""Off-policy evaluation of saved agents on a dataset: every estimator, with intervals, beside true returns."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.api.agents import PathLike, load
from steepest.api.datasets import collect
from steepest.errors import UsageError, require
from steepest.evaluation import (
    Contributions,
    bootstrap_t_interval,
    direct_method,
    doubly_robust,
    effective_sample_size,
    estimate,
    log_weights,
    per_decision_importance,
    rank_correlation,
    regret_at_k,
    trajectory_importance,
    weighted_doubly_robust,
    weighted_per_decision_importance,
    weighted_trajectory_importance,
    with_final_value,
)
from steepest.evaluation.fitted_q import FittedQ, FittedQConfig, TargetPolicy, policy_on
from steepest.experience.datasets.dataset import Dataset
from steepest.experience.datasets.read import read_dataset
from steepest.experience.datasets.sampling import DatasetRows
from steepest.seeding import stream_seed

MODELS = ("fqe", "conservative")
WEIGHTED = ("is", "pdis", "wis", "wpdis", "dr", "wdr")
NAMES = {
    "fqe": "fitted Q evaluation",
    "conservative": "conservative evaluation",
    "is": "importance sampling",
    "pdis": "per-decision importance sampling",
    "wis": "weighted importance sampling",
    "wpdis": "weighted per-decision importance sampling",
    "dr": "doubly robust",
    "wdr": "weighted doubly robust",
}


class Estimate(NamedTuple):
    """A policy's value by one estimator, discounted reward units, and its interval over episodes."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PolicyEstimates:
    """All estimates of one policy."""

    policy: str
    estimates: dict[str, Estimate]
    """By the names in ``NAMES``."""
    effective_episodes: float | None
    """Episodes that the weighted data is worth; None without weights."""
    refused: str | None
    """Why there are no weights."""
    true: Estimate | None
    """Mean discounted return of episodes that were played, and its interval."""


@dataclasses.dataclass(frozen=True)
class OffPolicyEvaluation:
    """What ``steepest ope`` reports."""

    dataset: str
    episodes: int
    gamma: float
    behaviour: Estimate
    """The data's own mean discounted return, as far as it was recorded."""
    policies: list[PolicyEstimates]

    def selection(self) -> dict[str, dict[str, float]]:
        """Return rank correlation and regret@1 of every estimator of all policies, where true returns are known."""
        if len(self.policies) < 2 or any(p.true is None for p in self.policies):
            return {}
        true = torch.tensor([p.true.value for p in self.policies if p.true is not None])
        found: dict[str, dict[str, float]] = {}
        for name in NAMES:
            if all(name in p.estimates for p in self.policies):
                values = torch.tensor([p.estimates[name].value for p in self.policies])
                regret = regret_at_k(values, true, 1)
                found[name] = {"rank_correlation": float(rank_correlation(values, true)), "regret_at_1": float(regret)}
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {**dataclasses.asdict(self), "selection": self.selection()}


def ope(
    policies: PathLike | Agent | Sequence[PathLike | Agent],
    data: Any,
    *,
    deterministic: bool = False,
    true_episodes: int = 0,
    conservative_weight: float = 1.0,
    share: float = 0.95,
    resamples: int = 2000,
    note: Callable[[str], None] | None = None,
    **options: Any,
) -> OffPolicyEvaluation:
    """Estimate what policies are worth from a dataset of other policies' episodes.

    Args:      policies: run folders, saved agents, or agents, one or several; data: see ``read_dataset``;
               deterministic: evaluate the mode of each policy instead of the policy itself;
               true_episodes: play so many episodes of each for its true value, in the environment that the data names;
               conservative_weight: of the conservative estimate, 0 leaves it out; share of the bootstrap intervals;
               options: fields of ``evaluation.fitted_q.FittedQConfig``, such as updates and gamma
    Returns:   an ``OffPolicyEvaluation``. Where an episode was cut, the value of what followed is fitted Q evaluation's
    Raises:    UsageError where a policy does not fit the data
    Verified:  tests/integration/test_ope.py::test_estimates_meet_the_true_value
    """
    require(0.0 < share < 1.0, "share", share, "between 0 and 1")
    require(true_episodes == 0 or true_episodes >= 2, "true_episodes", true_episodes, "zero, or at least 2")
    if isinstance(policies, str | os.PathLike | Agent):
        policies = [policies]
    if not policies:
        raise UsageError("which policies? Give run folders, saved agents, or agents")
    config, dataset = FittedQConfig(**options), read_dataset(data)
    say = note or (lambda _: None)
    generator = torch.Generator().manual_seed(stream_seed(config.seed, "bootstrap"))
    padded = PaddedEpisodes(dataset)
    if len(padded.first) < 2:
        raise UsageError(f"{dataset.source} has one episode; intervals are over episodes, so give at least 2")
    found: list[PolicyEstimates] = []
    for policy in policies:
        agent = policy if isinstance(policy, Agent) else load(policy)
        name = agent.algorithm if isinstance(policy, Agent) else str(policy)
        rows = DatasetRows(dataset, agent.obs_spec, agent.action_spec)
        target = policy_on(agent, rows, deterministic=deterministic)
        contributions: dict[str, Contributions] = {}
        say(f"{name}: fitted Q evaluation, {config.updates:,} updates")
        fitted = FittedQ(agent, rows, target, config)
        fitted.fit()
        contributions["fqe"] = direct_method(fitted.values(padded.first).double())
        if conservative_weight > 0.0:
            say(f"{name}: conservative evaluation, {config.updates:,} updates")
            cautious = dataclasses.replace(config, conservative_weight=conservative_weight)
            low = FittedQ(agent, rows, target, cautious)
            low.fit()
            contributions["conservative"] = direct_method(low.values(padded.first).double())
        final = torch.where(padded.truncated, fitted.values(padded.last).double(), 0.0)
        reward = with_final_value(padded.reward, final, padded.valid, config.gamma)
        weights, refused = target_log_probs(dataset, agent, target, padded)
        effective = None
        if weights is not None:
            behaviour = padded.of(np.asarray(dataset.log_prob))
            q, value = (padded.of(x.numpy()) for x in (fitted.q_values(padded.rows), fitted.values(padded.rows)))
            contributions |= weighted(reward, q, value, weights, behaviour, padded.valid, config.gamma)
            effective = float(effective_sample_size(log_weights(weights, behaviour, padded.valid)[..., -1]))
        estimates = {name: _estimate(c, generator, resamples, share) for name, c in contributions.items()}
        true = None
        if true_episodes:
            say(f"{name}: playing {true_episodes} episodes")
            true = _played(agent, dataset, target, true_episodes, config, generator, resamples, share)
        found.append(PolicyEstimates(name, estimates, effective, refused, true))
    returns = torch.from_numpy(dataset.returns_to_go(config.gamma)[padded.first])
    own = _estimate(direct_method(returns), generator, resamples, share)
    return OffPolicyEvaluation(dataset.source, len(padded.first), config.gamma, own, found)


def weighted(
    reward: Tensor, q: Tensor, value: Tensor, target: Tensor, behaviour: Tensor, valid: Tensor, gamma: float
) -> dict[str, Contributions]:
    """Return the contributions of every estimator that weights episodes, by the names in ``WEIGHTED``.

    Args:      reward, q, value (E, T); target, behaviour (E, T) log-probabilities; valid (E, T)
    Verified:  tests/integration/test_ope.py::test_estimates_meet_the_true_value
    """
    known = (reward, target, behaviour, valid, gamma)
    return {
        "is": trajectory_importance(*known),
        "pdis": per_decision_importance(*known),
        "wis": weighted_trajectory_importance(*known),
        "wpdis": weighted_per_decision_importance(*known),
        "dr": doubly_robust(reward, q, value, *known[1:]),
        "wdr": weighted_doubly_robust(reward, q, value, *known[1:]),
    }


class PaddedEpisodes:
    """A dataset's episodes as arrays (E, T), padded behind their ends."""

    def __init__(self, dataset: Dataset) -> None:
        self.first, self.last = dataset.bounds
        self.lengths = self.last - self.first
        self.rows = np.arange(len(dataset.valid))
        steps = np.arange(int(self.lengths.max()))
        self.valid = torch.from_numpy(steps < self.lengths[:, None])
        self.at = torch.from_numpy(np.minimum(self.first[:, None] + steps, self.last[:, None]))
        self.reward = self.of(np.asarray(dataset.reward))
        self.truncated = torch.from_numpy(np.asarray(dataset.truncated)[self.last - 1])

    def of(self, array: Any) -> Tensor:
        """Return what a row each has, as (E, T) float64."""
        return torch.where(self.valid, torch.from_numpy(np.asarray(array, np.float64))[self.at], 0.0)


def target_log_probs(
    dataset: Dataset, agent: Agent, target: TargetPolicy, padded: PaddedEpisodes
) -> tuple[Tensor | None, str | None]:
    """Return the target policy's log-probabilities (E, T) of the actions that were drawn; or None, and why."""
    if dataset.log_prob is None or dataset.drawn is None:
        return None, "the data has no log_prob of its actions"
    policy = target.distribution
    drawn = np.asarray(dataset.drawn)
    if agent.action_spec.kind == "box":
        if target.deterministic:
            return None, "a deterministic policy of continuous actions has no probabilities"
        executed = agent.to_env(drawn[dataset.valid])
        if not np.allclose(executed, dataset.action[dataset.valid], rtol=1e-4, atol=1e-5):
            return None, f"the data's actions were not drawn as this policy draws, before {agent.action_map.squash}"
    given = torch.from_numpy(drawn)
    if target.deterministic:
        same = policy.mode() == given
        found = torch.where(same, 0.0, -torch.inf)
    else:
        found = policy.log_prob(given)
    return padded.of(found.numpy()), None


def _estimate(contributions: Contributions, generator: torch.Generator, resamples: int, share: float) -> Estimate:
    interval = bootstrap_t_interval(contributions, generator, resamples=resamples, share=share)
    return Estimate(float(estimate(contributions)), float(interval.low), float(interval.high))


def _played(
    agent: Agent,
    dataset: Dataset,
    target: TargetPolicy,
    episodes: int,
    config: FittedQConfig,
    generator: torch.Generator,
    resamples: int,
    share: float,
) -> Estimate:
    """Return the mean discounted return of episodes that are played now."""
    if dataset.env is None:
        raise UsageError(f"{dataset.source} names no environment to play in; leave true_episodes out")
    lengths = int(dataset.lengths.max())
    played = collect(
        agent,
        dataset.env,
        steps=episodes * lengths,
        deterministic=target.deterministic,
        seed=config.seed,
        env_kwargs=dataset.env_kwargs,
        max_episode_steps=dataset.max_episode_steps,
    )
    first, _ = played.bounds
    returns = torch.from_numpy(played.returns_to_go(config.gamma)[first][:episodes])
    return _estimate(direct_method(returns), generator, resamples, share)
