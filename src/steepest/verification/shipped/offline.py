"""Losses of the offline chapter: conservative Q-learning (notes 2.1), and beside the notes expectiles and weights."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest import losses
from steepest.algorithms.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from steepest.exact import offline
from steepest.types import ActionSpec, ObsField, ObsSpec
from steepest.verification.random_problems import CONSERVATIVE_WEIGHT, Dataset, dataset, normal, probabilities, stream
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()


# Conservative evaluation


def _at_rest(d: Dataset, q: Tensor, *, in_expectation: bool) -> Sides:
    """The slope of the shipped losses at a table Q: of the squared error, and of minus the penalty."""
    target = d.model.reward + d.model.gamma * d.model.transition @ (d.policy * q).sum(-1)

    def fit(x: Tensor) -> Tensor:
        return (d.behaviour * losses.value_loss(x, target)).sum()

    def penalty(x: Tensor) -> Tensor:
        pushed, data = losses.best_response_value(x, d.policy), (d.behaviour * x).sum(-1)
        gap = losses.conservative_gap(pushed, data) if in_expectation else pushed
        return CONSERVATIVE_WEIGHT * gap.sum()

    return Sides(gradient(fit, q), -gradient(penalty, q))


@rows.equality(
    "2.1.1", "shipped losses at rest, pointwise", dataset, tested="losses.best_response_value", in_expectation=False
)
@rows.control(
    "2.1.1", "the same, raising the data's values", dataset, tested="losses.best_response_value", in_expectation=True
)
def pointwise_at_rest(d: Dataset, in_expectation: bool) -> Sides:
    """No slope at the fixed point of Q <- B-hat Q - alpha pi / pi_beta.

    Negative control: the penalty of the second update.
    """
    q = offline.conservative_evaluation(d.model, d.policy, d.behaviour, d.policy, CONSERVATIVE_WEIGHT)
    return _at_rest(d, q, in_expectation=in_expectation)


@rows.equality(
    "2.1.1", "shipped losses at rest, in expectation", dataset, tested="losses.conservative_gap", in_expectation=True
)
@rows.control(
    "2.1.1", "the same, not raising the data's values", dataset, tested="losses.conservative_gap", in_expectation=False
)
def expectation_at_rest(d: Dataset, in_expectation: bool) -> Sides:
    """No slope at the fixed point of Q <- B-hat Q - alpha (pi / pi_beta - 1).

    Negative control: the penalty of the first update.
    """
    q = offline.conservative_evaluation_in_expectation(d.model, d.policy, d.behaviour, d.policy, CONSERVATIVE_WEIGHT)
    return _at_rest(d, q, in_expectation=in_expectation)


# Regularisers


class Values(NamedTuple):
    """Values of four actions in six states, a policy rho, data's actions beta, and returns of a reference policy."""

    q: Tensor
    rho: Tensor
    beta: Tensor
    reference: Tensor


@lru_cache(maxsize=256)
def values(seed: int) -> Values:
    """Standard normal values, doubled; policies of full support."""
    g = stream(seed, 61)
    return Values(2.0 * normal(g, 6, 4), probabilities(g, 6, 4), probabilities(g, 6, 4), normal(g, 6, 4))


@rows.equality("2.1.2", "shipped CQL(H) = max_mu E_mu Q + H(mu)", values, tested="losses.soft_maximum", kl=False)
@rows.equality("2.1.2", "shipped CQL(rho) = max_mu E_mu Q - KL", values, tested="losses.soft_maximum", kl=True)
@rows.control("2.1.2", "CQL(H) for CQL(rho)", values, tested="losses.soft_maximum", kl=True, forgets=True)
def soft_maxima(v: Values, kl: bool, forgets: bool = False) -> Sides:
    """The soft maximum beside the objective at its maximising mu, in proportion to exp Q or rho exp Q.

    Negative control: without rho.
    """
    prior = v.rho.log() if kl else torch.zeros_like(v.q)
    mu = torch.softmax(v.q + prior, -1)
    found = losses.soft_maximum(v.q, prior if kl and not forgets else None)
    return Sides(found, (mu * (v.q - mu.log() + prior)).sum(-1))


@rows.equality("2.1.2", "shipped soft maximum: slope = mu", values, tested="losses.best_response_value", held=True)
@rows.control("2.1.2", "the same, mu moving", values, tested="losses.best_response_value", held=False)
def slope_of_the_soft_maximum(v: Values, held: bool) -> Sides:
    """The gradient of the soft maximum is that of E_mu Q with mu held fixed.

    Negative control: mu carries gradient.
    """

    def average(q: Tensor) -> Tensor:
        mu = torch.softmax(q + v.rho.log(), -1)
        return (losses.best_response_value(q, mu) if held else (mu * q).sum(-1)).sum()

    return Sides(gradient(lambda q: losses.soft_maximum(q, v.rho.log()).sum(), v.q), gradient(average, v.q))


class Box(NamedTuple):
    """A quadratic Q over [-1, 1]^2, and the nodes and weights of a product rule."""

    curvature: Tensor
    slope: Tensor
    nodes: Tensor  # (n, 2)
    weights: Tensor  # (n,), summing to 4

    def q(self) -> Tensor:
        """(n,) at the nodes."""
        return self.nodes @ self.slope - ((self.nodes @ self.curvature) * self.nodes).sum(-1)


@lru_cache(maxsize=256)
def values_of_a_box(seed: int) -> Box:
    """Forty nodes in either direction."""
    g = stream(seed, 62)
    x, w = np.polynomial.legendre.leggauss(40)
    nodes = torch.tensor(list(itertools.product(x.tolist(), repeat=2)), dtype=F64)
    weights = torch.tensor([a * b for a, b in itertools.product(w.tolist(), repeat=2)], dtype=F64)
    return Box(0.5 * normal(g, 2, 2), normal(g, 2), nodes, weights)


@rows.equality("2.1.2", "shipped log int exp Q da, by proposals", values_of_a_box, tested="losses.sampled_soft_maximum")
@rows.control(
    "2.1.2", "the same, density sqrt(D)", values_of_a_box, tested="losses.sampled_soft_maximum", density=math.sqrt(2.0)
)
def sampled(b: Box, density: float | None = None) -> Sides:
    """Uniform proposals that come as often as a product rule weighs its nodes give the integral over the box.

    Negative control: a constant that is no density.
    """
    log_density = losses.uniform_log_density(2) if density is None else density
    share = b.weights / b.weights.sum()  # how often a node is proposed
    found = losses.sampled_soft_maximum(b.q(), (share * len(share)).log() - log_density)
    return Sides(found, (b.weights * b.q().exp()).sum().log())


@rows.equality("2.1.2", "proposals of two kinds", values_of_a_box, tested="losses.mixture_log_density")
@rows.control(
    "2.1.2", "the same, the sum of densities", values_of_a_box, tested="losses.mixture_log_density", averaged=False
)
def mixture(b: Box, averaged: bool = True) -> Sides:
    """Nodes proposed as often as the mixture of two densities says give the integral too.

    Negative control: the densities are added without being averaged.
    """
    other = (-b.nodes.square().sum(-1)).exp()
    other = other / (other * b.weights).sum()  # a density, by the product rule
    kinds = torch.stack([torch.full_like(other, losses.uniform_log_density(2)), other.log()])
    mixed = 0.5 * (0.25 + other)
    log_density = losses.mixture_log_density(kinds) if averaged else kinds.exp().sum(0).log()
    found = losses.sampled_soft_maximum(b.q(), (mixed * b.weights * len(mixed)).log() - log_density)
    return Sides(found, (b.weights * b.q().exp()).sum().log())


@rows.equality("2.1.2", "discrete CQL(H) at rest", values, tested="algorithms.discrete_cql.DiscreteCQL.loss")
@rows.control(
    "2.1.2", "discrete CQL(H) for another mu", values, tested="algorithms.discrete_cql.DiscreteCQL.loss", other=True
)
def discrete_agent_at_rest(v: Values, other: bool = False) -> Sides:
    """The agent's own loss has no slope at Q = y - alpha (mu / pi_beta - 1), mu = softmax(Q).

    Negative control: mu uniform in the target.
    """
    mu = torch.full_like(v.q, 0.25) if other else torch.softmax(v.q, -1)
    target = v.q + CONSERVATIVE_WEIGHT * (mu / v.beta - 1.0)
    agent = _tabular()
    named = {"head.weight": v.q.T.contiguous(), "head.bias": torch.zeros(4, dtype=F64)}
    vector = agent.layout.flatten(named)
    state = {"params": vector, "buffers/epsilon": torch.zeros((), dtype=F64)}
    pairs = torch.tensor(list(itertools.product(range(6), range(4))))
    batch = {"obs/obs": torch.eye(6, dtype=F64)[pairs[:, 0]], "action": pairs[:, 1], "weight": v.beta.flatten()}

    def slope(weight: float) -> Tensor:
        hyper = {"huber_threshold": torch.tensor(torch.inf), "conservative_weight": torch.tensor(weight, dtype=F64)}
        found = gradient(lambda x: agent.loss(x, state, batch, target.flatten(), hyper)[0], vector)
        return agent.layout.unflatten(found)["head.weight"]

    fit = slope(0.0)
    return Sides(fit, fit - slope(CONSERVATIVE_WEIGHT))


@lru_cache
def _tabular() -> DiscreteCQL:
    """In float64 and without hidden layers: six one-hot states in, a table of values inside."""
    obs = ObsSpec((ObsField("obs", "vector", (6,), "float32"),), is_dict=False)
    agent = DiscreteCQL(DiscreteCQLConfig(hidden_sizes=()), obs, ActionSpec("discrete", (), "int64", (4,), (0,)))
    agent.module.double()
    return agent


@rows.inequality("2.1.2", "Cal-QL: V of the reference <= max(Q, V)", values, tested="losses.calibrated_q_value")
def calibrated(v: Values) -> Sides:
    """No value that is pushed down lies below the reference policy's."""
    return Sides(v.reference, losses.calibrated_q_value(v.q, v.reference))


# Beside the notes


@rows.equality("2.1", "IQL: slope of the expectile's loss", values, tested="losses.expectile_loss", tau=0.8)
@rows.control("2.1", "the same, tau for 1 - tau", values, tested="losses.expectile_loss", tau=0.2)
def expectile_slope(v: Values, tau: float) -> Sides:
    """(1 - tau) E (V - x)+ - tau E (x - V)+ for tau = 0.8, x the values of data's actions.

    Negative control: the weights exchanged.
    """
    at = v.reference[:, :1]
    found = gradient(lambda x: (v.beta * losses.expectile_loss(x, v.q, tau)).sum(), at).squeeze(-1)
    above, below = ((v.q - at).clamp(min=0.0) * v.beta).sum(-1), ((at - v.q).clamp(min=0.0) * v.beta).sum(-1)
    return Sides(found, 0.2 * below - 0.8 * above)


@rows.equality(
    "2.1", "weights exp(A / T) project onto the optimum", values, tested="losses.advantage_weight", factor=1.0
)
@rows.control("2.1", "the same, another temperature", values, tested="losses.advantage_weight", factor=1.2)
def weighted_projection(v: Values, factor: float) -> Sides:
    """Data's actions, reweighted, are the policy that maximises E_pi A - T KL(pi || beta).

    Negative control: the weights are of another temperature.
    """
    weight = losses.advantage_weight(v.q, 0.7 * factor, 1e12)
    found = v.beta * weight
    return Sides(found / found.sum(-1, keepdim=True), torch.softmax(v.beta.log() + v.q / 0.7, -1))


@rows.equality("2.1", "TD3+BC, ReBRAC: slope of the policy's loss", values, tested="losses.behaviour_regularised_loss")
@rows.control(
    "2.1", "the same, the distance not squared", values, tested="losses.behaviour_regularised_loss", power=1.0
)
def behaviour_slope(v: Values, power: float = 2.0) -> Sides:
    """2 c (mu - a) - grad Q / scale, of Q(mu) = sum mu^3.

    Negative control: the root of the distance.
    """
    scale = v.q.abs().mean()

    def loss(mu: Tensor) -> Tensor:
        distance = losses.behaviour_distance(mu, v.reference) ** (power / 2.0)
        return losses.behaviour_regularised_loss((mu**3).sum(-1), distance, 0.4, scale).sum()

    return Sides(gradient(loss, v.q), 0.8 * (v.q - v.reference) - 3.0 * v.q.square() / scale)


@rows.equality("2.1", "ReBRAC: next value less the penalty", values, tested="losses.penalised_next_value")
@rows.control("2.1", "the same, the penalty added", values, tested="losses.penalised_next_value", sign=-1.0)
def penalised(v: Values, sign: float = 1.0) -> Sides:
    """Q' - c ||a' - a'_data||^2, whatever the order of subtraction inside.

    Negative control: the penalty's sign.
    """
    distance = (v.rho - v.beta).square().sum(-1)
    found = losses.penalised_next_value(v.q[:, 0], losses.behaviour_distance(v.beta, v.rho), 0.3 * sign)
    return Sides(found, v.q[:, 0] - 0.3 * distance)


@rows.equality("2.1", "conservative weight: at rest at the threshold", values, tested="losses.conservative_weight_loss")
@rows.control("2.1", "the same, the wrong way", values, tested="losses.conservative_weight_loss", sign=-1.0)
def weight_slope(v: Values, sign: float = 1.0) -> Sides:
    """d loss / d log weight = threshold - gap: the weight rises where the gap is larger.

    Negative control: it falls there.
    """
    gap = v.q.flatten()

    def loss(x: Tensor) -> Tensor:
        return losses.conservative_weight_loss(x.squeeze(), gap, 1.5).sum()

    return Sides(gradient(loss, torch.zeros(1, dtype=F64)), sign * (1.5 - gap).sum().unsqueeze(0))
