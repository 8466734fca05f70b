"""Conservative Q-learning: soft maxima, their estimates from proposals, and the fixed points of the shipped losses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import F64
from steepest.distributions import TanhGaussian
from steepest.exact import offline
from steepest.losses import (
    best_response_value,
    calibrated_q_value,
    conservative_gap,
    conservative_weight_loss,
    mixture_log_density,
    q_learning_target,
    sampled_soft_maximum,
    soft_maximum,
    uniform_log_density,
    value_loss,
)
from steepest.verification.random_problems import continuing, episodic, normal, probabilities, stream

SEEDS = pytest.mark.parametrize("seed", range(5))


def tables(seed: int) -> tuple[Tensor, Tensor]:
    g = stream(seed, 71)
    return 2.0 * normal(g, 6, 4), probabilities(g, 6, 4)


@SEEDS
def test_the_soft_maximum_is_the_best_response(seed: int) -> None:
    """mu in proportion to rho exp Q attains it, and no other mu does; rho uniform up to log k is CQL(H)."""
    q, rho = tables(seed)
    value = soft_maximum(q, rho.log())

    def objective(mu: Tensor) -> Tensor:
        return (mu * (q - (mu / rho).log())).sum(-1)

    best = torch.softmax(q + rho.log(), -1)
    torch.testing.assert_close(objective(best), value, rtol=1e-12, atol=1e-12)
    for other in range(20):
        mu = probabilities(stream(seed, 100 + other), 6, 4)
        assert bool((objective(mu) < value - 1e-6).all())
    even = torch.full_like(rho, 0.25).log()
    torch.testing.assert_close(soft_maximum(q), soft_maximum(q, even) + math.log(4.0), rtol=1e-12, atol=1e-12)
    mask = torch.tensor([True, True, False, True])
    torch.testing.assert_close(soft_maximum(q, None, mask), soft_maximum(q[:, mask]), rtol=1e-12, atol=1e-12)


@SEEDS
def test_its_gradient_is_the_maximising_policy(seed: int) -> None:
    """So the mean of Q under that policy, held fixed, has the same gradient; under another one it has not."""
    q, rho = tables(seed)
    leaf = q.clone().requires_grad_()
    best = torch.softmax(q + rho.log(), -1)
    (slope,) = torch.autograd.grad(soft_maximum(leaf, rho.log()).sum(), leaf)
    torch.testing.assert_close(slope, best, rtol=1e-12, atol=1e-13)
    mu = torch.softmax(leaf + rho.log(), -1)  # carries gradient, which must not count
    (slope,) = torch.autograd.grad(best_response_value(leaf, mu).sum(), leaf)
    torch.testing.assert_close(slope, best, rtol=1e-12, atol=1e-13)
    (slope,) = torch.autograd.grad((mu * leaf).sum(), leaf)
    assert float((slope - best).norm()) > 1e-2


NODES, WEIGHTS = (torch.as_tensor(x, dtype=F64) for x in np.polynomial.legendre.leggauss(40))


def q_of(action: Tensor) -> Tensor:
    """A Q-function of actions (..., 2) in [-1, 1], with a peak away from the middle."""
    x, y = action.unbind(-1)
    return 1.5 - 3.0 * (x - 0.6).square() - (y + 0.3).square() + x * y


def the_integral() -> float:
    grid = torch.tensor(list(itertools.product(NODES.tolist(), repeat=2)), dtype=F64)
    weight = torch.tensor([a * b for a, b in itertools.product(WEIGHTS.tolist(), repeat=2)], dtype=F64)
    return float((weight * q_of(grid).exp()).sum().log())


def proposals() -> tuple[Tensor, Tensor]:
    """10 proposals of the policy and 10 uniform ones, 20,000 times: Q (n, 20), and both log-densities (2, n, 20)."""
    g = stream(3, 72)
    policy = TanhGaussian(torch.tensor([0.4, -0.2], dtype=F64), torch.tensor([-0.5, -0.7], dtype=F64))
    draw = TanhGaussian(*(x.expand(20_000, 10, 2) for x in policy)).sample(normal(g, 20_000, 10, 2))
    uniform = 2.0 * torch.rand((20_000, 10, 2), generator=g, dtype=F64) - 1.0
    draw = torch.cat([draw, torch.atanh(uniform)], 1)
    by_policy = TanhGaussian(*(x.expand(20_000, 20, 2) for x in policy)).log_prob(draw)
    return q_of(torch.tanh(draw)), torch.stack([by_policy, torch.full_like(by_policy, uniform_log_density(2))])


def deviations(q: Tensor, log_density: Tensor) -> tuple[float, float]:
    """How many standard errors the mean of exp(estimate) is off the integral, and that error over the integral."""
    found = sampled_soft_maximum(q, -log_density).exp()
    error = float(found.std()) / math.sqrt(len(found))
    exact = math.exp(the_integral())
    return abs(float(found.mean()) - exact) / error, error / exact


def test_sampled_soft_maximum_is_the_integral() -> None:
    """By a product rule as proposals it is exact; from the policy's and uniform draws its exponential is unbiased."""
    grid = torch.tensor(list(itertools.product(NODES.tolist(), repeat=2)), dtype=F64)
    weight = torch.tensor([a * b for a, b in itertools.product(WEIGHTS.tolist(), repeat=2)], dtype=F64)
    found = float(sampled_soft_maximum(q_of(grid), (len(grid) * weight).log()))
    assert found == pytest.approx(the_integral(), rel=1e-12)
    q, log_density = proposals()
    off, error = deviations(q, mixture_log_density(log_density))
    assert off < 4.0
    assert error < 2e-3
    assert float((-mixture_log_density(log_density)).max()) <= math.log(2.0) - uniform_log_density(2) + 1e-12


def test_densities_of_their_own_have_no_variance_to_speak_of() -> None:
    """Each proposal over its own kind's density is dominated by single draws next to the bounds."""
    q, log_density = proposals()
    own = torch.cat([log_density[0, :, :10], log_density[1, :, 10:]], 1)
    _, error = deviations(q, mixture_log_density(log_density))
    _, heavy = deviations(q, own)
    assert heavy > 20.0 * error
    weight = (q - own).exp().flatten()
    assert float(weight.max() / weight.sum()) > 0.01


@pytest.mark.parametrize("density", [0.0, 0.5 * math.log(0.5), math.sqrt(2.0), math.log(0.5)])
def test_a_wrong_uniform_density_is_seen(density: float) -> None:
    """Negative control: without 2^-D, with sqrt(D), or of half the dimensions, the mean is elsewhere."""
    q, log_density = proposals()
    log_density = torch.stack([log_density[0], torch.full_like(log_density[1], density)])
    off, _ = deviations(q, mixture_log_density(log_density))
    assert off > 8.0


def iterate(seed: int, weight: float, *, in_expectation: bool, steps: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the shipped losses over a table again and again, with the backup of the table before as target.

    For targets held fixed the loss is quadratic with a diagonal Hessian, d(s) beta(a|s): one step finds its minimum.
    """
    p = (episodic if seed % 2 else continuing)(seed)
    mdp, policy = p.mdp, p.policy
    behaviour = 0.5 * probabilities(stream(seed, 73), mdp.num_states, mdp.num_actions) + 0.5 / mdp.num_actions
    mu = probabilities(stream(seed, 74), mdp.num_states, mdp.num_actions)
    states = probabilities(stream(seed, 75), mdp.num_states)
    going = ~mdp.absorbing
    q = torch.zeros_like(mdp.reward)
    for _ in range(steps):
        shape = mdp.transition.shape
        following = (policy * q).sum(-1).expand(shape)
        over = mdp.absorbing.expand(shape)
        target = q_learning_target(mdp.reward.unsqueeze(-1).expand(shape), following, over, mdp.gamma)
        target = (mdp.transition * target).sum(-1)
        leaf = q.clone().requires_grad_()
        pushed = best_response_value(leaf, mu)
        data = (behaviour * leaf).sum(-1)
        gap = conservative_gap(pushed, data) if in_expectation else pushed
        loss = (states * ((behaviour * value_loss(leaf, target)).sum(-1) + weight * gap))[going].sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        q = torch.where(going.unsqueeze(-1), q - slope / (states.unsqueeze(-1) * behaviour), 0.0)
    exact = offline.conservative_evaluation_in_expectation if in_expectation else offline.conservative_evaluation
    return q, exact(mdp, policy, behaviour, mu, weight), going


@SEEDS
@pytest.mark.parametrize("in_expectation", [False, True])
def test_fixed_points_of_both_bounds(seed: int, in_expectation: bool) -> None:
    """The shipped losses, minimised, reach the closed forms of both updates."""
    found, exact, going = iterate(seed, 0.3, in_expectation=in_expectation)
    torch.testing.assert_close(found[going], exact[going], rtol=1e-9, atol=1e-9)
    plain, _, _ = iterate(seed, 0.0, in_expectation=in_expectation)
    assert float((found - plain)[going].abs().max()) > 1e-2


@SEEDS
def test_weight_zero_is_the_base(seed: int) -> None:
    """Then both forms are the plain evaluation of the policy."""
    first, plain, going = iterate(seed, 0.0, in_expectation=False)
    second, _, _ = iterate(seed, 0.0, in_expectation=True)
    torch.testing.assert_close(first[going], plain[going], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(second, first, rtol=0.0, atol=0.0)


def test_calibrated_values_stay_above_the_reference() -> None:
    """The larger of both, with a gradient where Q is."""
    q = torch.tensor([1.0, -2.0, 0.5], dtype=F64, requires_grad=True)
    reference = torch.tensor([0.0, -1.0, 2.0], dtype=F64, requires_grad=True)
    found = calibrated_q_value(q, reference)
    assert found.tolist() == [1.0, -1.0, 2.0]
    slopes = torch.autograd.grad(found.sum(), (q, reference), allow_unused=True)
    assert slopes[0] is not None
    assert slopes[0].tolist() == [1.0, 0.0, 0.0]
    assert slopes[1] is None


def test_the_weight_rises_while_the_gap_exceeds_its_threshold() -> None:
    """d loss / d log weight = threshold - gap, which descent turns round; the gap itself gets no gradient."""
    log_weight = torch.tensor(0.3, dtype=F64, requires_grad=True)
    gap = torch.tensor([5.0, 1.0], dtype=F64, requires_grad=True)
    loss = conservative_weight_loss(log_weight, gap, 2.0)
    for i, expected in enumerate((-3.0, 1.0)):
        slopes = torch.autograd.grad(loss[i], (log_weight, gap), retain_graph=True, allow_unused=True)
        assert slopes[0] is not None
        assert float(slopes[0]) == expected
        assert slopes[1] is None
