"""Off-policy evaluation where every trajectory can be listed: expectations, variances and biases without sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import F64, LayeredMDP, Paths, layered_mdp
from steepest.evaluation import importance as ope
from steepest.evaluation.importance import Contributions, estimate
from steepest.evaluation.intervals import (
    bootstrap_interval,
    bootstrap_t_interval,
    standard_error,
)


@dataclass(frozen=True)
class Case:
    """A process, a target policy, and all trajectories of a behaviour policy as episodes (K, T) padded with NaN."""

    mdp: LayeredMDP
    target: Tensor  # (S, A)
    behaviour: Tensor  # (S, A)
    model: Tensor  # (S, A) an arbitrary Q

    @cached_property
    def paths(self) -> Paths:
        return self.mdp.paths(self.behaviour)

    @property
    def probability(self) -> Tensor:
        """(K,)"""
        return self.paths.probability

    @property
    def valid(self) -> Tensor:
        """(K, T)"""
        return self.paths.valid.T

    @property
    def data(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """Reward, log-probabilities under target and behaviour, valid, gamma."""
        reward, target, behaviour = (self.padded(x) for x in self.columns)
        return reward, target, behaviour, self.valid, self.mdp.gamma

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        s, a = self.paths.state[:-1].T, self.paths.action.T
        return self.paths.reward.T, self.target.log()[s, a], self.behaviour.log()[s, a]

    def padded(self, x: Tensor) -> Tensor:
        return torch.where(self.valid, x, torch.nan)

    def modelled(self, q: Tensor, value: Tensor | None = None) -> tuple[Any, ...]:
        """The arguments of the doubly robust estimators with a table Q, and V or its mean under the target."""
        s, a = self.paths.state[:-1].T, self.paths.action.T
        value = (self.target * q).sum(-1) if value is None else value
        reward, *rest = self.data
        return (reward, self.padded(q[s, a]), self.padded(value[s]), *rest)

    def mean(self, contributions: Contributions) -> Tensor:
        """The expectation of an estimator that is a mean over episodes."""
        return (self.probability * per_episode(contributions)).sum()

    def variance(self, contributions: Contributions) -> Tensor:
        """The variance of such an estimator from one episode."""
        x = per_episode(contributions)
        return (self.probability * (x - self.mean(contributions)).square()).sum()


def per_episode(contributions: Contributions) -> Tensor:
    assert contributions.numerator.shape[-1] == 1
    assert bool((contributions.denominator == 1.0).all())
    return contributions.numerator.squeeze(-1)


def policies(mdp: LayeredMDP, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draws = (scale * torch.randn((mdp.states, mdp.actions), generator=g, dtype=F64) for _ in range(2))
    first, second = (torch.softmax(x, -1) for x in draws)
    return first, second


@cache
def case(seed: int, gamma: float = 0.9, horizon: int = 3) -> Case:
    mdp = layered_mdp(seed, gamma, horizon=horizon)
    target, behaviour = policies(mdp, seed)
    model = torch.randn((mdp.states, mdp.actions), generator=torch.Generator().manual_seed(seed + 50), dtype=F64)
    return Case(mdp, target, behaviour, model)


def close(found: Tensor, expected: Tensor | float | list[float], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance)


SEEDS = [0, 1, 2]
GAMMAS = [1.0, 0.8]


# Expectations


def test_weights_have_mean_one() -> None:
    """At every step, over all episodes with those that have ended; not over those that still run."""
    c = case(0)
    _, target, behaviour, valid, _ = c.data
    weight = ope.log_weights(target, behaviour, valid).exp()
    close(c.probability @ weight, torch.ones(weight.shape[-1], dtype=F64))
    running = (c.probability.unsqueeze(-1) * valid * weight).sum(0) / (c.probability.unsqueeze(-1) * valid).sum(0)
    assert float((running - 1.0).abs().max()) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_estimators_are_unbiased(seed: int, gamma: float) -> None:
    c = case(seed, gamma)
    value = c.mdp.objective(c.target)
    assert abs(float(value - c.mdp.objective(c.behaviour))) > 1e-2
    for estimator in (ope.trajectory_importance, ope.per_decision_importance):
        close(c.mean(estimator(*c.data)), value)
    exact = c.mdp.q_values(c.target)
    for q in (c.model, exact, torch.zeros_like(exact)):
        close(c.mean(ope.doubly_robust(*c.modelled(q))), value)
    first = c.mdp.values(c.target)[c.paths.state[0]]
    close(c.mean(ope.direct_method(first)), value)


def backwards_the_wrong_way(c: Case) -> Tensor:
    """The recursion from the first step on."""
    reward, q, value, target, behaviour, valid, gamma = c.modelled(c.model)
    ratio = (target - behaviour).exp()
    rest = torch.zeros_like(reward[:, 0])
    for t in range(reward.shape[-1]):
        step = value[:, t] + ratio[:, t] * (reward[:, t] + gamma * rest - q[:, t])
        rest = torch.where(valid[:, t], step, rest)
    return rest


def log_likelihoods_for_probabilities(c: Case) -> Tensor:
    reward, target, behaviour, valid, gamma = c.data
    return per_episode(ope.per_decision_importance(reward, (-target).log(), (-behaviour).log(), valid, gamma))


def mode_for_the_distribution(c: Case) -> Tensor:
    """V(s) = Q(s, the likeliest action), as an evaluation of the greedy policy has it."""
    value = c.model.gather(-1, c.target.argmax(-1, keepdim=True)).squeeze(-1)
    return per_episode(ope.doubly_robust(*c.modelled(c.model, value)))


def next_actions_at_the_present_observation(c: Case) -> Tensor:
    """V(s_{t+1}) = sum_a pi(a|s_t) Q(s_{t+1}, a)."""
    reward, q, value, *rest = c.modelled(c.model)
    state = c.paths.state.T
    wrong = (c.target[state[:, :-2]] * c.model[state[:, 1:-1]]).sum(-1)
    value = torch.cat([value[:, :1], torch.where(c.valid[:, 1:], wrong, torch.nan)], -1)
    return per_episode(ope.doubly_robust(reward, q, value, *rest))


def policies_exchanged(c: Case) -> Tensor:
    reward, target, behaviour, *rest = c.data
    return per_episode(ope.per_decision_importance(reward, behaviour, target, *rest))


def weights_a_step_late(c: Case) -> Tensor:
    reward, target, behaviour, valid, gamma = c.data
    late = ope.log_weights(target, behaviour, valid).roll(1, -1)
    late[:, 0] = 0.0
    return (late.exp() * ope.discounted(reward, valid, gamma)).sum(-1)


MISTAKES: list[Callable[[Case], Tensor]] = [
    backwards_the_wrong_way,
    log_likelihoods_for_probabilities,
    mode_for_the_distribution,
    next_actions_at_the_present_observation,
    policies_exchanged,
    weights_a_step_late,
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes_are_biased(mistake: Callable[[Case], Tensor]) -> None:
    for seed in SEEDS:
        c = case(seed)
        found = (c.probability * mistake(c)).sum()
        assert abs(float(found - c.mdp.objective(c.target))) > 5e-3, seed


def cut(c: Case, steps: int) -> tuple[Paths, Tensor, Tensor]:
    """The first steps of every episode; what is valid of it; and the states where a recording stops, or None."""
    p = c.paths
    ended = p.terminated[:steps].any(0)
    return p, p.valid[:steps].T, ended


@pytest.mark.parametrize("seed", SEEDS)
def test_truncated_episodes_with_their_final_value(seed: int) -> None:
    """Episodes cut after two steps of four: unbiased with the value of what was cut off, and biased without it."""
    c, steps = case(seed, 0.9, horizon=4), 2
    _, valid, ended = cut(c, steps)
    value = c.mdp.values(c.target)
    final = torch.where(ended, 0.0, value[c.paths.state[steps]])
    reward, target, behaviour, _, gamma = c.data
    reward, target, behaviour = (x[:, :steps] for x in (reward, target, behaviour))
    full = ope.with_final_value(reward, final, valid, gamma)
    _, q, modelled, *_ = c.modelled(c.model)
    exact = c.mdp.objective(c.target)

    def estimates(reward: Tensor) -> list[Tensor]:
        data = (target, behaviour, valid, gamma)
        found = [estimator(reward, *data) for estimator in (ope.trajectory_importance, ope.per_decision_importance)]
        found.append(ope.doubly_robust(reward, q[:, :steps], modelled[:, :steps], *data))
        return [c.mean(x) for x in found]

    for found in estimates(full):
        close(found, exact)
    for found in estimates(reward):  # truncation taken for termination
        assert abs(float(found - exact)) > 1e-2
    forwards = ope.weighted_doubly_robust(full, q[:, :steps], modelled[:, :steps], target, behaviour, valid, gamma)
    close(population(c, forwards), exact)


# Variances


def second_moments(c: Case, q: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) E[D | s] and E[D^2 | s] of the doubly robust estimator with tables Q and V, by recursion over states."""
    m = c.mdp
    first, second = torch.zeros(m.states + 1, dtype=F64), torch.zeros(m.states + 1, dtype=F64)
    width = m.states // m.horizon
    for layer in reversed(range(m.horizon)):
        for s in range(layer * width, (layer + 1) * width):
            one = two = torch.zeros((), dtype=F64)
            for a in range(m.actions):
                rho = c.target[s, a] / c.behaviour[s, a]
                for to, p in enumerate(m.with_end()[s, a]):
                    step, g = m.reward[s, a, to] - q[s, a], m.gamma
                    mean = step + g * first[to]
                    square = step**2 + 2.0 * step * g * first[to] + g**2 * second[to]
                    chance = c.behaviour[s, a] * p
                    one = one + chance * (value[s] + rho * mean)
                    two = two + chance * (value[s] ** 2 + 2.0 * value[s] * rho * mean + rho**2 * square)
            first[s], second[s] = one, two
    return first[:-1], second[:-1]


def trajectory_moments(c: Case) -> Tensor:
    """(S,) E[(w R)^2 | s] by recursion: of w^2, w^2 R and w^2 R^2."""
    m = c.mdp
    ends = torch.tensor([1.0, 0.0, 0.0], dtype=F64)  # nothing is decided any more: w = 1, R = 0
    found = torch.zeros((m.states + 1, 3), dtype=F64)
    found[-1] = ends
    width = m.states // m.horizon
    for layer in reversed(range(m.horizon)):
        for s in range(layer * width, (layer + 1) * width):
            for a in range(m.actions):
                for to, p in enumerate(m.with_end()[s, a]):
                    r, g = m.reward[s, a, to], m.gamma
                    w2, w2r, w2r2 = found[to]
                    weight = c.target[s, a] ** 2 / c.behaviour[s, a] * p
                    found[s] += weight * torch.stack(
                        [w2, r * w2 + g * w2r, r**2 * w2 + 2.0 * r * g * w2r + g**2 * w2r2]
                    )
    return found[:-1, 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_variances_by_recursion(seed: int, gamma: float) -> None:
    """Enumerated and recursive variances agree, and the exact Q gives the least of all."""
    c = case(seed, gamma)
    mean = c.mdp.objective(c.target)
    whole = c.mdp.start @ trajectory_moments(c) - mean**2
    close(c.variance(ope.trajectory_importance(*c.data)), whole, 1e-11)
    nothing = torch.zeros_like(c.model)
    exact = c.mdp.q_values(c.target)
    found: dict[str, Tensor] = {}
    for name, q in (("none", nothing), ("some", c.model), ("exact", exact)):
        value = (c.target * q).sum(-1)
        first, second = second_moments(c, q, value)
        close(first, c.mdp.values(c.target))
        found[name] = c.mdp.start @ second - mean**2
        close(c.variance(ope.doubly_robust(*c.modelled(q))), found[name], 1e-11)
    close(c.variance(ope.per_decision_importance(*c.data)), found["none"], 1e-11)
    assert float(found["exact"]) < float(found["none"])
    assert float(found["exact"]) < float(found["some"])
    for shift in (0.1, -0.1):
        other = exact + shift * c.model
        assert float(c.variance(ope.doubly_robust(*c.modelled(other)))) > float(found["exact"])


@pytest.mark.parametrize("seed", SEEDS)
def test_variance_with_the_exact_q_is_the_lower_bound(seed: int) -> None:
    """Jiang & Li 2016, Theorem 2: what no unbiased estimator of a tree-shaped process undercuts."""
    c = case(seed)
    m, value, q = c.mdp, c.mdp.values(c.target), c.mdp.q_values(c.target)
    beyond = torch.cat([value, torch.zeros(1, dtype=F64)])
    step = (m.with_end() * (m.reward + m.gamma * beyond - q.unsqueeze(-1)).square()).sum(-1)  # (S, A) of r + gamma V
    weight = c.target.square() / c.behaviour
    visits = m.start.clone()
    bound = (m.start * value.square()).sum() - (m.start @ value).square()
    for t in range(m.horizon):
        bound = bound + m.gamma ** (2 * t) * (visits.unsqueeze(-1) * weight * step).sum()
        visits = torch.einsum("s,sa,sat->t", visits, weight, m.transition)
    close(c.variance(ope.doubly_robust(*c.modelled(q))), bound, 1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_doubly_robust_without_noise_has_no_variance(seed: int) -> None:
    """One first state, every action with one outcome, the exact Q: every episode gives the value itself."""
    mdp = layered_mdp(seed, 0.9, horizon=3)
    sure = torch.zeros_like(mdp.transition)
    for s in range(4):  # the first two layers lead on, the last one ends
        for a in range(2):
            sure[s, a, 2 * (s // 2) + 2 + (s + a + seed) % 2] = 1.0
    start = torch.zeros_like(mdp.start)
    start[seed % 2] = 1.0
    mdp = replace(mdp, transition=sure, start=start)
    target, behaviour = policies(mdp, seed)
    c = Case(mdp, target, behaviour, mdp.q_values(target))
    exact = mdp.objective(target)
    for estimator in (ope.doubly_robust, ope.weighted_doubly_robust):
        close(one_by_one(estimator(*c.modelled(c.model))), exact.expand(len(c.probability)))
    assert float(c.variance(ope.doubly_robust(*c.modelled(c.model)))) < 1e-24
    assert float(c.variance(ope.per_decision_importance(*c.data))) > 1e-2


# Self-normalised forms


def one_by_one(contributions: Contributions) -> Tensor:
    """(K,) the estimate from each episode alone."""
    return estimate(Contributions(*(x.unsqueeze(-2) for x in contributions)))


def population(c: Case, contributions: Contributions) -> Tensor:
    """What infinitely many episodes give: each counts as often as it is probable."""
    return estimate(contributions, c.probability.unsqueeze(0)).squeeze(-1)


def weighted(c: Case, q: Tensor | None = None) -> dict[str, Contributions]:
    return {
        "trajectory": ope.weighted_trajectory_importance(*c.data),
        "per decision": ope.weighted_per_decision_importance(*c.data),
        "doubly robust": ope.weighted_doubly_robust(*c.modelled(c.model if q is None else q)),
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_weighted_forms_are_consistent(seed: int, gamma: float) -> None:
    c = case(seed, gamma)
    exact = c.mdp.objective(c.target)
    for contributions in weighted(c).values():
        close(population(c, contributions), exact)


@pytest.mark.parametrize("seed", SEEDS)
def test_normalising_over_running_episodes_is_inconsistent(seed: int) -> None:
    """Negative control: an ended episode left out of the later denominators."""
    c = case(seed)
    right = ope.weighted_per_decision_importance(*c.data)
    wrong = right._replace(denominator=torch.where(c.valid, right.denominator, 0.0))
    assert abs(float(population(c, wrong) - c.mdp.objective(c.target))) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_bias_of_the_weighted_forms(seed: int) -> None:
    """Expectations over all data sets of one and of two episodes, against loops over the defining sums."""
    c = case(seed, 0.9, horizon=2)
    p = c.probability
    # One episode: the weights cancel, and what is left is the behaviour's.
    behaviour = c.mdp.objective(c.behaviour)
    found = {name: (p * one_by_one(x)).sum() for name, x in weighted(c).items()}
    close(found["trajectory"], behaviour)
    close(found["per decision"], behaviour)
    gap = ((c.target - c.behaviour) * c.model).sum(-1)  # E_beta[V - Q | s] of the model
    close(found["doubly robust"], behaviour + c.mdp.discounted_visits(c.behaviour) @ gap)
    assert abs(float(behaviour - c.mdp.objective(c.target))) > 1e-2
    # Two episodes: all pairs.
    k = len(p)
    i, j = torch.cartesian_prod(torch.arange(k), torch.arange(k)).T
    exact = c.mdp.objective(c.target)
    for name, contributions in weighted(c).items():
        pairs = Contributions(*(torch.stack([x[i], x[j]], -2) for x in contributions))
        mean = (p[i] * p[j] * estimate(pairs)).sum()
        close(mean, sum(float(p[a] * p[b]) * of_pair(c, name, a, b) for a in range(k) for b in range(k)), 1e-11)
        assert abs(float(mean - exact)) > 1e-3, name


def of_pair(c: Case, name: str, *pair: int) -> float:
    """The estimate from two episodes, by its definition."""
    reward, q, value, target, behaviour, valid, gamma = c.modelled(c.model)
    steps = reward.shape[-1]
    rows = []
    for k in pair:
        w, ws = 1.0, []
        for t in range(steps):
            w *= float((target[k, t] - behaviour[k, t]).exp()) if valid[k, t] else 1.0
            ws.append(w)
        rows.append(ws)
    if name == "trajectory":
        returns = [sum(gamma**t * float(reward[k, t]) for t in range(steps) if valid[k, t]) for k in pair]
        return sum(w[-1] * r for w, r in zip(rows, returns, strict=True)) / sum(w[-1] for w in rows)
    total = 0.0
    for t in range(steps):
        norm = sum(w[t] for w in rows)
        before = sum(w[t - 1] for w in rows) if t else 2.0
        for w, k in zip(rows, pair, strict=True):
            if valid[k, t]:
                total += gamma**t * w[t] / norm * float(reward[k, t])
                if name == "doubly robust":  # Thomas & Brunskill 2016: - w_t Q(s_t, a_t) + w_{t-1} V(s_t)
                    previous = (w[t - 1] if t else 1.0) / before
                    total -= gamma**t * (w[t] / norm * float(q[k, t]) - previous * float(value[k, t]))
    return total


def test_the_bias_falls_as_one_over_the_episodes() -> None:
    """A bandit of four outcomes: exact expectations over all multisets of E episodes, and the first-order bias."""
    pi, beta = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64)
    chance = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=F64)
    reward = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=F64)
    p = (beta.unsqueeze(-1) * chance).flatten()
    ratio = (pi / beta).unsqueeze(-1).expand(2, 2).flatten()
    r = reward.flatten()
    exact = (pi.unsqueeze(-1) * chance * reward).sum()
    rows = [x.unsqueeze(-1) for x in (r, ratio.log(), torch.zeros(4, dtype=F64))]
    contributions = ope.weighted_trajectory_importance(*rows, torch.ones((4, 1), dtype=torch.bool), 1.0)
    first_order = -(p * ratio.square() * (r - exact)).sum()
    biases = []
    for episodes in (1, 2, 4, 8, 16, 32):
        counts = torch.tensor(
            [(a, b, d, episodes - a - b - d) for a, b, d in itertools.product(range(episodes + 1), repeat=3)
             if a + b + d <= episodes],
            dtype=F64,
        )  # fmt: skip
        log_chance = math.lgamma(episodes + 1) - torch.lgamma(counts + 1.0).sum(-1) + counts @ p.log()
        weight = log_chance.exp()
        close(weight.sum(), 1.0, 1e-10)
        biases.append(float((weight * estimate(contributions, counts)).sum() - exact) * episodes)
    assert abs(biases[0] - float((p * r).sum() - exact)) < 1e-12
    away = [abs(x - float(first_order)) for x in biases]
    assert away[-1] < 0.06 * abs(float(first_order))
    assert all(0.4 < after / before < 0.6 for before, after in itertools.pairwise(away[2:]))  # the second order


# Identities


def random_data(seed: int, episodes: int, steps: int, lead: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    """Reward, Q, V, log-probabilities of target and behaviour, valid; NaN behind the end."""
    g = torch.Generator().manual_seed(seed)
    shape = (*lead, episodes, steps)
    length = torch.randint(1, steps + 1, (*lead, episodes, 1), generator=g)
    valid = torch.arange(steps) < length
    draws = [torch.randn(shape, generator=g, dtype=F64) for _ in range(5)]
    draws[3:] = [-x.abs() for x in draws[3:]]
    return (*(torch.where(valid, x, torch.nan) for x in draws), valid)


def every(data: tuple[Tensor, ...], gamma: float) -> dict[str, Contributions]:
    reward, q, value, *rest = data
    plain: dict[str, Any] = {
        "trajectory": ope.trajectory_importance,
        "weighted trajectory": ope.weighted_trajectory_importance,
        "per decision": ope.per_decision_importance,
        "weighted per decision": ope.weighted_per_decision_importance,
    }
    found = {name: estimator(reward, *rest, gamma) for name, estimator in plain.items()}
    found["doubly robust"] = ope.doubly_robust(reward, q, value, *rest, gamma)
    found["weighted doubly robust"] = ope.weighted_doubly_robust(reward, q, value, *rest, gamma)
    return found


SHAPES = {"seed": st.integers(0, 10_000), "episodes": st.integers(1, 6), "steps": st.integers(1, 7)}


@given(**SHAPES, gamma=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_target_is_behaviour(seed: int, episodes: int, steps: int, gamma: float) -> None:
    """All weights are 1: the mean return, and with Q = V its telescoped sum."""
    reward, q, _, target, _, valid = random_data(seed, episodes, steps)
    mean = sum(
        gamma**t * float(reward[i, t]) for i in range(episodes) for t in range(steps) if valid[i, t]
    ) / episodes  # fmt: skip
    for found in every((reward, q, q, target, target, valid), gamma).values():
        close(estimate(found), mean, 1e-10)
    close(ope.log_weights(target, target, valid), torch.zeros_like(target))


@given(**SHAPES)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_without_a_future_only_the_first_step_counts(seed: int, episodes: int, steps: int) -> None:
    data = random_data(seed, episodes, steps)
    several, single = every(data, 0.0), every(tuple(x[:, :1] for x in data), 0.7)
    for name in several.keys() - {"trajectory", "weighted trajectory"}:
        close(estimate(several[name]), estimate(single[name]), 1e-10)


@given(seed=st.integers(0, 10_000), episodes=st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_one_step_is_the_bandit(seed: int, episodes: int) -> None:
    """T = 1: inverse propensity scores, their self-normalised form, and the doubly robust estimator of bandits."""
    data = random_data(seed, episodes, 1)
    reward, q, value, target, behaviour = (x.squeeze(-1) for x in data[:5])
    ratio = target.exp() / behaviour.exp()
    inverse = (ratio * reward).mean()
    normalised = (ratio * reward).sum() / ratio.sum()
    robust = (value + ratio * (reward - q)).mean()
    weighted = value.mean() + (ratio * (reward - q)).sum() / ratio.sum()
    found = {name: estimate(x) for name, x in every(data, 0.9).items()}
    for name, expected in {
        "trajectory": inverse,
        "per decision": inverse,
        "weighted trajectory": normalised,
        "weighted per decision": normalised,
        "doubly robust": robust,
        "weighted doubly robust": weighted,
    }.items():
        close(found[name], expected, 1e-10)


@given(**SHAPES, gamma=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_doubly_robust_forwards(seed: int, episodes: int, steps: int, gamma: float) -> None:
    """V(s_0) + sum_t gamma^t w_t (r_t + gamma V(s_{t+1}) - Q(s_t, a_t)); with Q = V = 0 per-decision sampling."""
    data = random_data(seed, episodes, steps)
    reward, q, value, target, behaviour, valid = data
    expected = []
    for i in range(episodes):
        total, w = float(value[i, 0]), 1.0
        for t in range(steps):
            if valid[i, t]:
                w *= float((target[i, t] - behaviour[i, t]).exp())
                following = float(value[i, t + 1]) if t + 1 < steps and valid[i, t + 1] else 0.0
                total += gamma**t * w * (float(reward[i, t]) + gamma * following - float(q[i, t]))
        expected.append(total)
    close(per_episode(ope.doubly_robust(*data, gamma)), torch.tensor(expected, dtype=F64), 1e-9)
    none = torch.zeros_like(reward)
    without = every((reward, none, none, target, behaviour, valid), gamma)
    close(estimate(without["doubly robust"]), estimate(without["per decision"]), 1e-9)
    close(estimate(without["weighted doubly robust"]), estimate(without["weighted per decision"]), 1e-9)


def test_counts_are_copies_of_episodes() -> None:
    """Also of several data sets at once, along leading axes."""
    data = random_data(3, 4, 5, lead=(2, 3))
    counts = torch.tensor([[1, 0, 2, 1], [0, 4, 0, 0], [1, 1, 1, 1]], dtype=F64)
    for name, contributions in every(data, 0.9).items():
        found = estimate(contributions, counts)
        assert found.shape == (2, 3, 3)
        for b, row in enumerate(counts):
            index = torch.arange(4).repeat_interleave(row.long())
            copied = every(tuple(x[..., index, :] for x in data), 0.9)[name]
            close(found[..., b], estimate(copied), 1e-10)
        close(estimate(contributions), found[..., 2], 1e-12)


def test_weights_too_large_for_the_type_still_have_ratios() -> None:
    reward, _, _, _, behaviour, valid = random_data(0, 5, 4)
    target = behaviour + 400.0
    data = (reward, target, behaviour, valid, 0.9)
    assert torch.isinf(estimate(ope.trajectory_importance(*data)).abs())
    longest = int(valid.sum(-1).max())
    last = valid.sum(-1) == longest  # all others weigh less by a factor of e^400
    returns = ope.discounted(reward, valid, 0.9).sum(-1)
    close(estimate(ope.weighted_trajectory_importance(*data)), returns[last].mean())
    steps = [reward[valid[:, t], t].mean() * 0.9**t for t in range(longest)]
    close(estimate(ope.weighted_per_decision_importance(*data)), torch.stack(steps).sum())


def test_actions_that_the_target_never_takes() -> None:
    """Weight 0 from there on; NaN for a normalised form without a weight, 0 for the others."""
    reward, q, value, target, behaviour, valid = random_data(1, 3, 4)
    none = torch.full_like(target, -torch.inf)
    found = {name: estimate(x) for name, x in every((reward, q, value, none, behaviour, valid), 0.9).items()}
    for name in ("trajectory", "per decision"):
        close(found[name], 0.0)
    close(found["doubly robust"], value[:, 0].mean())
    for name in ("weighted trajectory", "weighted per decision", "weighted doubly robust"):
        assert torch.isnan(found[name]), name
    close(ope.effective_sample_size(none[:, 0]), 0.0)


def test_effective_sample_size() -> None:
    """Equal weights count all, one weight counts one; between them, by hand; whatever the scale."""
    close(ope.effective_sample_size(torch.full((7,), -3.0, dtype=F64)), 7.0)
    close(ope.effective_sample_size(torch.tensor([0.0, -torch.inf, -torch.inf], dtype=F64)), 1.0)
    weights = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 0.0]], dtype=F64)
    close(ope.effective_sample_size(weights.log() + 800.0), [36.0 / 14.0, 2.0], 1e-10)


def test_single_precision_stays_single() -> None:
    data = random_data(4, 5, 6)
    single = tuple(x.float() if x.is_floating_point() else x for x in data)
    for name, contributions in every(single, 0.9).items():
        g = torch.Generator().manual_seed(0)
        found = [estimate(contributions), standard_error(contributions)]
        found += [
            *bootstrap_interval(contributions, g, resamples=20),
            *bootstrap_t_interval(contributions, g, resamples=20),
        ]
        assert {x.dtype for x in found} == {torch.float32}, name
        close(found[0].double(), float(estimate(every(data, 0.9)[name])), 1e-4)


def test_misuse_is_explained() -> None:
    reward, _, _, target, behaviour, valid = random_data(0, 3, 4)
    gap, empty = torch.ones_like(valid), torch.ones_like(valid)
    gap[1, 2], empty[2] = False, False
    for broken in (gap, empty):
        with pytest.raises(ValueError, match="valid must be True from an episode's first step"):
            ope.per_decision_importance(reward, target, behaviour, broken, 0.9)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="log_prob_behaviour is not finite at a valid step"):
            ope.doubly_robust(*[reward] * 3, target, torch.full_like(behaviour, wrong), valid, 0.9)
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"log_prob_target is NaN or \+inf"):
            ope.trajectory_importance(reward, torch.full_like(target, wrong), behaviour, valid, 0.9)
    for gamma in (-0.1, 1.1, math.nan):
        for function in (ope.trajectory_importance, ope.weighted_per_decision_importance):
            with pytest.raises(ValueError, match=r"it must lie in \[0, 1\]"):
                function(reward, target, behaviour, valid, gamma)
        with pytest.raises(ValueError, match=r"it must lie in \[0, 1\]"):
            ope.doubly_robust(*[reward] * 3, target, behaviour, valid, gamma)


# Standard errors and intervals


def test_standard_error_of_a_ratio() -> None:
    """For means the textbook's; for ratios the derivative of the estimate in every episode's count."""
    data = random_data(5, 6, 4)
    counts = torch.tensor([[1, 2, 0, 3, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=F64)
    for contributions in every(data, 0.9).values():
        found = standard_error(contributions, counts)
        for b, row in enumerate(counts):
            leaf = row.clone().requires_grad_()
            (slope,) = torch.autograd.grad(estimate(contributions, leaf.unsqueeze(0)).sum(), leaf)
            if contributions.numerator.shape[-1] == 1 and bool((contributions.denominator == 1.0).all()):
                x = per_episode(contributions)[torch.arange(6).repeat_interleave(row.long())]
                close(found[b], x.std() / math.sqrt(6.0), 1e-10)
            expected = ((row * slope.square()).sum() * 6.0 / 5.0).sqrt()
            close(found[b], expected, 1e-10)
        close(standard_error(contributions), found[1], 1e-10)
    with pytest.raises(ValueError, match="give at least two"):
        standard_error(ope.direct_method(torch.zeros(1, dtype=F64)))


def test_percentile_interval_of_two_episodes() -> None:
    """Resamples are both, one twice, or the other twice, with chances 1/2, 1/4, 1/4."""
    contributions = ope.direct_method(torch.tensor([1.0, 3.0], dtype=F64))
    g = torch.Generator().manual_seed(0)
    for share, low, high in ((0.95, 1.0, 3.0), (0.4, 2.0, 2.0)):
        found = bootstrap_interval(contributions, g, resamples=4000, share=share)
        assert (float(found.low), float(found.high)) == (low, high)
    again = [bootstrap_interval(contributions, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert again[0] == again[1]


def resampled(contributions: Contributions, seed: int, resamples: int) -> list[tuple[float, float]]:
    """(estimate, standard error) of every resample, by copies of episodes."""
    number = contributions.numerator.shape[-2]
    index = torch.randint(number, (resamples, number), generator=torch.Generator().manual_seed(seed))
    copies = [Contributions(*(x[row] for x in contributions)) for row in index]
    return [(float(estimate(x)), float(standard_error(x))) for x in copies]


def test_t_interval_against_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_data(2, 12, 3)
    for contributions in every(data, 0.9).values():
        rows = resampled(contributions, 4, 201)
        ordered = sorted(x for x, _ in rows)
        found = bootstrap_interval(contributions, torch.Generator().manual_seed(4), resamples=201, share=0.9)
        close(torch.stack(found), [ordered[10], ordered[190]], 1e-10)
        centre, error = float(estimate(contributions)), float(standard_error(contributions))
        t = sorted((x - centre) / e for x, e in rows)
        wider = bootstrap_t_interval(contributions, torch.Generator().manual_seed(4), resamples=201, share=0.9)
        close(torch.stack(wider), [centre - t[190] * error, centre - t[10] * error], 1e-9)
    monkeypatch.setattr("steepest.evaluation.intervals.CELLS", 12 * 50)  # 50 at a time, the last one by itself
    in_parts = bootstrap_interval(contributions, torch.Generator().manual_seed(4), resamples=201, share=0.9)
    assert in_parts == found


def test_intervals_of_equal_episodes_and_of_several_data_sets() -> None:
    g = torch.Generator().manual_seed(0)
    same = ope.direct_method(torch.full((5,), 2.5, dtype=F64))
    for interval in (bootstrap_interval(same, g, resamples=50), bootstrap_t_interval(same, g, resamples=50)):
        assert (float(interval.low), float(interval.high)) == (2.5, 2.5)
    several = ope.direct_method(torch.randn((2, 3, 8), generator=g, dtype=F64))
    for function in (bootstrap_interval, bootstrap_t_interval):
        found = function(several, torch.Generator().manual_seed(1), resamples=100)
        assert found.low.shape == found.high.shape == (2, 3)
        for i, j in itertools.product(range(2), range(3)):
            alone = Contributions(*(x[i, j] for x in several))
            single = function(alone, torch.Generator().manual_seed(1), resamples=100)
            close(torch.stack([found.low[i, j], found.high[i, j]]), torch.stack(single))
    numerator = torch.tensor([[1.0], [0.0], [0.0]], dtype=F64)
    found = bootstrap_interval(Contributions(numerator, numerator), g, resamples=200)  # two in three have no weight
    assert torch.isnan(found.low)
    assert torch.isnan(found.high)
    for resamples, share in ((1, 0.9), (100, 0.0), (100, 1.0)):
        with pytest.raises(ValueError, match="expected resamples >= 2 and 0 < share < 1"):
            bootstrap_interval(same, g, resamples=resamples, share=share)


def test_intervals_cover_what_they_promise() -> None:
    """300 data sets of 200 episodes: 95 of 100 intervals of 95% hold the exact value, the percentile ones fewer.

    The standard deviation of a share of 300 is 1.3%. Both fall short where the weights have heavy tails: then the
    largest ones are missing from most data sets, and no resampling brings them back.
    """
    mild = replace(case(0), target=policies(case(0).mdp, 0, 0.3)[0], behaviour=policies(case(0).mdp, 0, 0.3)[1])
    for c, least, least_t in ((mild, 0.91, 0.91), (case(0), 0.87, 0.88)):
        index = torch.multinomial(
            c.probability, 300 * 200, replacement=True, generator=torch.Generator().manual_seed(0)
        ).view(300, 200)
        exact = c.mdp.objective(c.target)
        for contributions in (ope.doubly_robust(*c.modelled(c.model)), *weighted(c).values()):
            sets = Contributions(*(x[index] for x in contributions))
            for function, lowest in ((bootstrap_interval, least), (bootstrap_t_interval, least_t)):
                low, high = function(sets, torch.Generator().manual_seed(3), resamples=200)
                share = float(((low <= exact) & (exact <= high)).to(F64).mean())
                assert lowest < share < 0.985
