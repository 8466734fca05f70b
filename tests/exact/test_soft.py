"""Maximum-entropy losses: gradients as the notes print them, and fixed points that are known."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.distributions import DiagonalGaussian
from steepest.exact import optimal
from steepest.losses import (
    expected_soft_value,
    soft_policy_loss,
    soft_q_target,
    soft_value_target,
    temperature_loss,
    value_loss,
)
from steepest.verification.random_problems import episodic

SEEDS = pytest.mark.parametrize("seed", range(5))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@SEEDS
def test_v_network_gradient_as_printed(seed: int) -> None:
    """V - Q + temperature log pi, for a table of values."""
    value, q, log_prob = drawn(seed, 3, 32)
    leaf = value.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value_loss(leaf, soft_value_target(q, log_prob, 0.3)).sum(), leaf)
    torch.testing.assert_close(slope, value - q + 0.3 * log_prob, rtol=1e-12, atol=1e-14)


@SEEDS
def test_q_network_gradient_as_printed(seed: int) -> None:
    """With the terminal case that the notes leave out."""
    q, reward, following = drawn(seed, 3, 32)
    over = torch.arange(32) % 4 == 0
    leaf = q.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value_loss(leaf, soft_q_target(reward, following, over, 0.9)).sum(), leaf)
    torch.testing.assert_close(slope, q - reward - 0.9 * torch.where(over, 0.0, following), rtol=1e-12, atol=1e-14)


@SEEDS
def test_policy_gradient_as_printed(seed: int) -> None:
    """With grad log pi where grad pi is printed; Q(a) = a^3, a = mean + std eps."""
    noise, parameters = drawn(seed, 32, 1), drawn(seed + 9, 2, 1)
    leaf = parameters.clone().requires_grad_()
    policy = DiagonalGaussian(leaf[0].expand(32, 1), leaf[1].expand(32, 1))
    action = policy.sample(noise)
    loss = soft_policy_loss(policy.log_prob(action), (action**3).sum(-1), 0.3)
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    mean, std = parameters[0], parameters[1].exp()
    through_action = -0.3 * noise / std - 3.0 * (mean + std * noise).square()
    by_mean, by_log_std = (
        0.3 * noise / std + through_action,
        0.3 * (noise.square() - 1.0) + through_action * std * noise,
    )
    torch.testing.assert_close(slope, torch.stack([by_mean.sum(0), by_log_std.sum(0)]), rtol=1e-10, atol=1e-12)


@SEEDS
def test_soft_optimum_of_a_finite_mdp_is_a_fixed_point(seed: int) -> None:
    mdp = episodic(seed).mdp
    best = optimal.soft_optimal(mdp, 0.4)
    value = expected_soft_value(best.action_value, best.policy.log(), 0.4)
    shape = mdp.transition.shape
    reward, over = mdp.reward.unsqueeze(-1).expand(shape), mdp.absorbing.expand(shape)
    backup = (mdp.transition * soft_q_target(reward, value.expand(shape), over, mdp.gamma)).sum(-1)
    torch.testing.assert_close(backup[~mdp.absorbing], best.action_value[~mdp.absorbing], rtol=1e-10, atol=1e-12)


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
