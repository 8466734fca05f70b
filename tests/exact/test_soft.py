"""Maximum-entropy losses: gradients as the notes print them, and fixed points that are known."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.losses import expected_soft_value, soft_policy_loss, soft_q_target, soft_value_target, temperature_loss
from steepest.verification.shipped import off_policy
from steepest.verification.statement import Sides, relative_error

SEEDS = pytest.mark.parametrize("seed", range(5))


def assert_equal(sides: Sides) -> None:
    assert relative_error(sides) < 1e-10


def assert_different(sides: Sides) -> None:
    assert relative_error(sides) > 1e-2


@SEEDS
def test_v_network_gradient_as_printed(seed: int) -> None:
    assert_equal(off_policy.v_gradient(off_policy.regression(seed)))


@SEEDS
def test_q_network_gradient_as_printed(seed: int) -> None:
    """With the terminal case that the notes leave out; without it the gradient is another."""
    problem = off_policy.regression(seed)
    assert_equal(off_policy.q_gradient(problem))
    assert_different(off_policy.q_gradient_past_the_end(problem))


@SEEDS
def test_policy_gradient_as_printed(seed: int) -> None:
    """With grad log pi where grad pi is printed."""
    assert_equal(off_policy.policy_gradient(off_policy.soft_actor(seed)))


@SEEDS
def test_soft_optimum_of_a_finite_mdp_is_a_fixed_point(seed: int) -> None:
    assert_equal(off_policy.finite_fixed_point(off_policy.episodic(seed)))


@SEEDS
def test_soft_optimum_of_an_lqr_is_a_fixed_point(seed: int) -> None:
    assert_equal(off_policy.lqr_fixed_point(off_policy.soft_control(seed)))


@SEEDS
def test_policy_loss_is_least_at_the_soft_optimum_of_an_lqr(seed: int) -> None:
    problem = off_policy.soft_control(seed)
    assert_equal(off_policy.lqr_policy_is_least(problem))
    assert_different(off_policy.lqr_policy_is_least_without_entropy(problem))


def test_policy_loss_is_least_at_the_boltzmann_policy() -> None:
    """Discrete actions: no slope in the logits at softmax(Q / T), where V is T log sum exp(Q / T); some elsewhere."""
    q = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.1, 2.0]], dtype=F64)
    for logits, expected in ((q / 0.3, 0.0), (q / 0.4, None)):
        leaf = logits.clone().requires_grad_()
        value = expected_soft_value(q, torch.log_softmax(leaf, -1), 0.3)
        (slope,) = torch.autograd.grad(-value.sum(), leaf)
        if expected == 0.0:
            torch.testing.assert_close(value, 0.3 * torch.logsumexp(q / 0.3, -1), rtol=1e-12, atol=0.0)
            assert slope.abs().max() < 1e-15
        else:
            assert slope.abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [0.5, 1.5, 100.0])
def test_an_illegal_action_counts_for_nothing(temperature: float) -> None:
    log_probs = torch.tensor([0.0, torch.finfo(F64).min], dtype=F64).requires_grad_()
    value = expected_soft_value(torch.tensor([2.0, 1e9], dtype=F64), log_probs, temperature)
    assert float(value.detach()) == 2.0
    assert torch.isfinite(torch.autograd.grad(value, log_probs)[0]).all()


@pytest.mark.parametrize(("entropy", "sign"), [(-1.0, -1.0), (0.5, 1.0)])
def test_temperature_rises_where_entropy_is_too_low(entropy: float, sign: float) -> None:
    """A step against the gradient raises log(temperature) where entropy is below its target of 0, hot or cold."""
    for log_temperature in (-5.0, 2.0):
        leaf = torch.tensor(log_temperature, dtype=F64, requires_grad=True)
        slope = torch.autograd.grad(temperature_loss(leaf, torch.full((3,), entropy, dtype=F64), 0.0).mean(), leaf)[0]
        assert float(slope) == pytest.approx(entropy, rel=1e-12)
        assert float(slope) * sign > 0


def test_targets_carry_no_gradient() -> None:
    """Nor does the temperature in a policy's loss, nor the entropy in the temperature's."""
    x = torch.ones(3, dtype=F64, requires_grad=True)
    never = torch.zeros(3, dtype=torch.bool)
    assert not soft_value_target(x, x, x).requires_grad
    assert not soft_q_target(x, x, never, 0.9).requires_grad
    assert not soft_policy_loss(torch.ones(3, dtype=F64), torch.ones(3, dtype=F64), x).requires_grad
    assert not temperature_loss(torch.ones((), dtype=F64), x, 0.0).requires_grad
