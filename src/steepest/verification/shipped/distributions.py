"""Distributions against their definitions: sums over all actions, or quadrature that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest import distributions
from steepest.verification.random_problems import normal, stream
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

# 1: distributions


class Policies(NamedTuple):
    """Two distributions of one kind, actions, and the weights that make sums over them expectations under the first."""

    p: Any
    q: Any
    action: Tensor
    weight: Tensor
    log_density: Tensor  # of the first, by its definition


def normal_draws(seed: int, purpose: int) -> Callable[..., Tensor]:
    """Standard normals of any shape, from a stream of their own for every purpose."""
    return partial(normal, stream(seed, purpose))


def gauss_hermite(points: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Nodes (n, dimension) and weights (n,): expectations under N(0, I), exact up to degree 2 points - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    nodes = torch.cartesian_prod(*[torch.tensor(x, dtype=F64)] * dimension)
    weights = torch.cartesian_prod(*[torch.tensor(w / math.sqrt(2.0 * math.pi), dtype=F64)] * dimension)
    return nodes, weights.prod(-1)


def categorical(seed: int) -> Policies:
    """Two distributions over five choices."""
    p, q = torch.log_softmax(normal_draws(seed, 21)(2, 5), -1)
    return Policies(
        distributions.Categorical(p.expand(5, 5)),
        distributions.Categorical(q.expand(5, 5)),
        torch.arange(5),
        p.exp(),
        p,
    )


def factored(seed: int) -> Policies:
    """Two components, of two and of three choices; the first is padded."""
    draw = normal_draws(seed, 22)
    tables: list[tuple[Tensor, Tensor, Tensor]] = []
    action = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    for _ in range(2):
        two, three = torch.log_softmax(draw(2), -1), torch.log_softmax(draw(3), -1)
        padded = torch.cat([two, torch.full((1,), torch.finfo(F64).min, dtype=F64)])
        tables.append((torch.stack([padded, three]).expand(6, 2, 3), two, three))
    log_density = tables[0][1][action[:, 0]] + tables[0][2][action[:, 1]]
    p, q = (distributions.Factored(table[0]) for table in tables)
    return Policies(p, q, action, log_density.exp(), log_density)


def bernoulli(seed: int) -> Policies:
    """Three bits."""
    draw = normal_draws(seed, 23)
    p, q = (torch.log_softmax(draw(3, 2), -1) for _ in range(2))
    action = torch.cartesian_prod(*[torch.arange(2)] * 3)
    log_density = p[torch.arange(3), action].sum(-1)
    first, second = (distributions.Bernoulli(x.expand(8, 3, 2)) for x in (p, q))
    return Policies(first, second, action, log_density.exp(), log_density)


def _normal_log_density(action: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log N(a; mean, covariance), by dense linear algebra."""
    d = action - mean
    quadratic = (d * torch.linalg.solve(covariance, d.mT).mT).sum(-1)
    return -0.5 * (quadratic + torch.logdet(2.0 * math.pi * covariance))


def diagonal_gaussian(seed: int) -> Policies:
    """Two dimensions; expectations of quadratics by Gauss-Hermite quadrature, which is exact."""
    draw, (nodes, weight) = normal_draws(seed, 24), gauss_hermite(4, 2)
    (m, log_s), (m2, log_s2) = ((draw(2), 0.5 * draw(2)) for _ in range(2))
    action = m + log_s.exp() * nodes
    n = len(nodes)
    return Policies(
        distributions.DiagonalGaussian(m.expand(n, 2), log_s.expand(n, 2)),
        distributions.DiagonalGaussian(m2.expand(n, 2), log_s2.expand(n, 2)),
        action,
        weight,
        _normal_log_density(action, m, torch.diag((2.0 * log_s).exp())),
    )


def full_gaussian(seed: int) -> Policies:
    """Two dimensions, correlated."""
    draw, (nodes, weight) = normal_draws(seed, 25), gauss_hermite(4, 2)

    def lower() -> Tensor:
        return torch.tril(draw(2, 2), -1) + torch.diag((0.5 * draw(2)).exp())

    (m, tril), (m2, tril2) = ((draw(2), lower()) for _ in range(2))
    action = m + nodes @ tril.mT
    n = len(nodes)
    return Policies(
        distributions.FullGaussian(m.expand(n, 2), tril),
        distributions.FullGaussian(m2.expand(n, 2), tril2),
        action,
        weight,
        _normal_log_density(action, m, tril @ tril.mT),
    )


def log_prob_is_the_density(p: Policies) -> Sides:
    """log_prob against the definition."""
    return Sides(p.p.log_prob(p.action), p.log_density)


def entropy_and_kl_are_expectations(p: Policies) -> Sides:
    """H = -E_p[log p],  KL(p || q) = E_p[log p - log q]: closed forms against sums or quadrature over actions."""
    log_p, log_q = p.p.log_prob(p.action), p.q.log_prob(p.action)
    right = torch.stack([-(p.weight @ log_p), p.weight @ (log_p - log_q)])
    return Sides(torch.stack([p.p.entropy()[0], p.p.kl(p.q)[0]]), right)


def kl_the_wrong_way_round(p: Policies) -> Sides:
    """Negative control: KL(q || p) in the place of KL(p || q)."""
    log_p, log_q = p.p.log_prob(p.action), p.q.log_prob(p.action)
    return Sides(p.q.kl(p.p)[0], p.weight @ (log_p - log_q))


for _name, _problem in {
    "Categorical": categorical,
    "Factored": factored,
    "Bernoulli": bernoulli,
    "DiagonalGaussian": diagonal_gaussian,
    "FullGaussian": full_gaussian,
}.items():
    _tested = f"distributions.{_name}"
    rows.equality("1", f"{_name}: log_prob is the log-density", _problem, tested=_tested)(log_prob_is_the_density)
    _expectations = f"{_name}: H = -E[log p], KL = E[log p - log q]"
    rows.equality("1", _expectations, _problem, tested=_tested)(entropy_and_kl_are_expectations)
    rows.control("1", f"{_name}: KL(q||p) for KL(p||q)", _problem, tested=_tested)(kl_the_wrong_way_round)


@rows.equality("1", "TanhGaussian: density and KL", diagonal_gaussian, tested="distributions.TanhGaussian")
def tanh_density(p: Policies) -> Sides:
    """log pi(tanh u) = log N(u) - sum_i log(1 - tanh(u_i)^2), and the KL is that before the squash."""
    squashed, other = (distributions.TanhGaussian(x.mean, x.log_std) for x in (p.p, p.q))
    expected = p.log_density + 2.0 * torch.log(torch.cosh(p.action)).sum(-1)  # 1 - tanh^2 = 1 / cosh^2
    kl = p.weight @ (squashed.log_prob(p.action) - other.log_prob(p.action))
    left = torch.cat([squashed.log_prob(p.action), squashed.kl(other)[:1]])
    return Sides(left, torch.cat([expected, kl.view(1)]))


def any_gaussian(seed: int) -> Policies:
    """Two dimensions, standard deviations from far below 1, where the squash hardly bends, to 7, where it cuts."""
    draw = normal_draws(seed, 27)
    mean, log_std = 2.0 * draw(2), (1.5 * draw(2)).clamp(-5.0, 2.0)
    points = 2001
    noise = torch.linspace(-10.0, 10.0, points, dtype=F64)
    weight = torch.exp(-0.5 * noise.square()) * (20.0 / (points - 1)) / math.sqrt(2.0 * math.pi)
    policy = distributions.DiagonalGaussian(mean, log_std)
    action = mean + log_std.exp() * noise.unsqueeze(-1)
    per_component = -0.5 * noise.square().unsqueeze(-1) - log_std - 0.5 * math.log(2.0 * math.pi)
    return Policies(policy, policy, action, weight, per_component)


@rows.equality("1", "TanhGaussian: H = -E[log p]", any_gaussian, tested="distributions.TanhGaussian.entropy")
@rows.control(
    "1", "TanhGaussian: H before the squash", any_gaussian, tested="distributions.TanhGaussian.entropy", jacobian=0.0
)
def tanh_entropy(p: Policies, jacobian: float = 1.0) -> Sides:
    """H = -E[log pi(tanh u)], u ~ N(mean, std^2), against the trapezium rule, component by component.

    Negative control: the entropy before the squash, without the Jacobian.
    """
    log_density = p.log_density + 2.0 * jacobian * torch.log(torch.cosh(p.action))  # 1 - tanh^2 = 1 / cosh^2
    return Sides(distributions.TanhGaussian(p.p.mean, p.p.log_std).entropy(), -(p.weight @ log_density).sum())


@rows.equality("1.4", "E[grad log pi] = 0, Gaussian", diagonal_gaussian, tested="distributions.DiagonalGaussian")
def score_has_zero_mean(p: Policies) -> Sides:
    """E_{a~pi}[grad log pi(a)] = 0 for a Gaussian, so that no baseline biases; measured against E|grad log pi|."""

    def mean_log_prob(x: Tensor) -> Tensor:
        policy = distributions.DiagonalGaussian(x[0].expand_as(p.action), x[1].expand_as(p.action))
        return p.weight @ policy.log_prob(p.action)

    found = gradient(mean_log_prob, torch.stack([p.p.mean[0], p.p.log_std[0]]))
    return Sides(found, torch.zeros_like(found), scale=float(torch.exp(-p.p.log_std[0]).norm()))
