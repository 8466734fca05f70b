"""Expectiles by their definition, and the policy that advantage weights project onto."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.losses import advantage_weight, expectile_loss, score_function_loss, value_loss

SEEDS = pytest.mark.parametrize("seed", range(5))


def targets(seed: int) -> torch.Tensor:
    return torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=F64)


def minimiser(x: torch.Tensor, tau: float) -> float:
    """The point where tau E(x - m)+ = (1 - tau) E(m - x)+, by bisection, without the loss."""
    low, high = float(x.min()), float(x.max())
    for _ in range(200):
        m = (low + high) / 2
        above, below = (x - m).clamp(min=0.0).sum(), (m - x).clamp(min=0.0).sum()
        low, high = (m, high) if tau * above > (1.0 - tau) * below else (low, m)
    return (low + high) / 2


@SEEDS
@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.9])
def test_the_minimiser_is_the_expectile(seed: int, tau: float) -> None:
    """No slope at the expectile, and some elsewhere; tau = 1/2 is half of the squared error's loss."""
    x = targets(seed)
    m = minimiser(x, tau)
    for at, zero in ((m, True), (m + 0.1, False)):
        value = torch.full((), at, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(expectile_loss(value, x, tau).mean(), value)
        assert (abs(float(slope)) < 1e-12) is zero
    half, whole = expectile_loss(torch.zeros(50, dtype=F64), x, 0.5), value_loss(torch.zeros(50, dtype=F64), x)
    torch.testing.assert_close(half, 0.5 * whole, rtol=1e-14, atol=0.0)


def test_the_loss_by_cases() -> None:
    """Falling short by 2 costs tau 2^2 / 2, exceeding by 2 the rest."""
    value = torch.tensor([1.0, 5.0], dtype=F64, requires_grad=True)
    target = torch.tensor([3.0, 3.0], dtype=F64, requires_grad=True)
    loss = expectile_loss(value, target, 0.7)
    torch.testing.assert_close(loss, torch.tensor([1.4, 0.6], dtype=F64), rtol=1e-14, atol=0.0)
    slopes = torch.autograd.grad(loss.sum(), (value, target), allow_unused=True)
    assert slopes[0] is not None
    torch.testing.assert_close(slopes[0], torch.tensor([-1.4, 0.6], dtype=F64), rtol=1e-14, atol=0.0)
    assert slopes[1] is None


@SEEDS
def test_the_expectile_tends_to_the_maximum(seed: int) -> None:
    """From below, the nearer the closer tau is to 1: the best action that the data shows, and none beyond."""
    x = targets(seed)
    found = [minimiser(x, tau) for tau in (0.5, 0.9, 0.99, 0.9999, 1.0 - 1e-9)]
    assert found == sorted(found)
    assert found[-1] < float(x.max())
    assert found[-1] == pytest.approx(float(x.max()), abs=1e-6)
    for m, tau in zip(found, (0.5, 0.9, 0.99, 0.9999), strict=False):
        value = torch.full((), m, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(expectile_loss(value, x, tau).mean(), value)
        assert abs(float(slope)) < 1e-12


@SEEDS
def test_weights_project_onto_the_regularised_optimum(seed: int) -> None:
    """The weighted likelihood has no slope at beta exp(A / T) / Z, which maximises E_pi A - T KL(pi || beta)."""
    g = torch.Generator().manual_seed(seed)
    beta = torch.softmax(torch.randn(5, generator=g, dtype=F64), 0)
    advantage = torch.randn(5, generator=g, dtype=F64)
    best = torch.softmax(beta.log() + advantage / 0.4, 0)

    def objective(pi: torch.Tensor) -> torch.Tensor:
        return (pi * advantage).sum() - 0.4 * (pi * (pi / beta).log()).sum()

    for logits, zero in ((best.log(), True), (beta.log() + advantage / 0.5, False)):
        leaf = logits.clone().requires_grad_()
        log_prob = torch.log_softmax(leaf, 0)
        weight = advantage_weight(advantage, 0.4, 1e9)
        (slope,) = torch.autograd.grad((beta * score_function_loss(log_prob, weight)).sum(), leaf)
        assert (float(slope.norm()) < 1e-12) is zero
        if not zero:
            assert float(objective(torch.softmax(logits, 0))) < float(objective(best)) - 1e-4


def test_weights_are_clipped_without_overflow() -> None:
    """An advantage of 1e6 counts as the limit, in float32 too, and carries no gradient."""
    advantage = torch.tensor([-1e6, 0.0, 0.5, 1e6], requires_grad=True)
    weight = advantage_weight(advantage, torch.tensor(0.5), torch.tensor(100.0))
    torch.testing.assert_close(weight, torch.tensor([0.0, 1.0, 2.718281828, 100.0]), rtol=1e-6, atol=0.0)
    assert not weight.requires_grad
