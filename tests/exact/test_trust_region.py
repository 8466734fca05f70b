"""PPO's surrogate and the KL estimate, by enumeration and case by case, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from helpers import F64, layered_mdp
from steepest.losses import clipped_surrogate_loss, kl_estimate, surrogate_objective


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradient_at_old_policy(seed: int) -> None:
    """At ratio 1, sum_s p(s) sum_a pi(a|s) L has minus the exact policy gradient, whatever epsilon is."""
    mdp = layered_mdp(seed, 0.8)
    logits = torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(seed), dtype=F64)
    policy = torch.softmax(logits, -1)
    advantage = mdp.q_values(policy) - mdp.values(policy).unsqueeze(-1)
    weight = mdp.discounted_visits(policy).unsqueeze(-1) * policy
    for epsilon in (1e-3, 0.2, torch.tensor(0.2, dtype=F64)):
        leaf = logits.clone().requires_grad_()
        log_prob = torch.log_softmax(leaf, -1)
        loss = (weight * clipped_surrogate_loss(log_prob, log_prob, advantage, epsilon)).sum()
        assert float(loss.detach()) == pytest.approx(-float((weight * advantage).sum()), abs=1e-12)
        (slope,) = torch.autograd.grad(loss, leaf)
        torch.testing.assert_close(-slope, mdp.gradient(logits), rtol=1e-10, atol=1e-12)


def weighted_surrogate(seed: int, logits: Tensor, old_logits: Tensor) -> Tensor:
    """sum_s p(s) sum_a pi_old(a|s) L, with the old policy's visits and advantages."""
    mdp = layered_mdp(seed, 0.8)
    old = torch.softmax(old_logits, -1)
    advantage = mdp.q_values(old) - mdp.values(old).unsqueeze(-1)
    weight = mdp.discounted_visits(old).unsqueeze(-1) * old
    return (weight * surrogate_objective(logits.log_softmax(-1), old_logits.log_softmax(-1), advantage)).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surrogate_is_the_exact_one(seed: int) -> None:
    """sum_s p_old(s) sum_a pi(a|s) A_old(s, a): the actions are the new policy's, the states still the old one's."""
    mdp = layered_mdp(seed, 0.8)
    old_logits, logits = (
        torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(seed + i), dtype=F64) for i in (0, 9)
    )
    old, new = old_logits.softmax(-1), logits.softmax(-1)
    advantage = mdp.q_values(old) - mdp.values(old).unsqueeze(-1)
    exact = (mdp.discounted_visits(old).unsqueeze(-1) * new * advantage).sum()
    torch.testing.assert_close(weighted_surrogate(seed, logits, old_logits), exact, rtol=1e-10, atol=1e-12)
    difference = mdp.objective(new) - mdp.objective(old)
    assert abs(float(exact - difference)) > 1e-3, "it is not the difference itself, whose states are the new policy's"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surrogate_gradient_at_the_old_policy(seed: int) -> None:
    """It is the policy gradient there, and is not elsewhere; nothing else carries gradient."""
    mdp = layered_mdp(seed, 0.8)
    logits = torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(seed), dtype=F64)
    for at, right in ((logits, True), (logits + torch.tensor([0.5, 0.0], dtype=F64), False)):
        leaf = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(weighted_surrogate(seed, leaf, logits), leaf)
        assert torch.allclose(slope, mdp.gradient(at), rtol=1e-10, atol=1e-12) == right
    tensors = [torch.zeros(3, dtype=F64, requires_grad=True) for _ in range(3)]
    slopes = torch.autograd.grad(surrogate_objective(*tensors).sum(), tensors, allow_unused=True)
    assert [s is None for s in slopes] == [False, True, True]


CASES = [
    # ratio, advantage, loss, derivative with respect to log_prob (-rho A where not clipped)
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),
    (0.9, -2.0, 1.8, 1.8),
    (1.5, 2.0, -2.4, 0.0),  # a good action already likelier: nothing more to gain
    (0.5, -2.0, 1.6, 0.0),  # a bad action already rarer
    (0.5, 2.0, -1.0, -1.0),  # a good action made rarer: pulled back, not clipped
    (1.5, -2.0, 3.0, 3.0),  # a bad action made likelier: pulled back, not clipped
    (1.5, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), CASES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_clipping_by_cases(ratio: float, advantage: float, loss: float, slope: float, as_tensor: bool) -> None:
    old = torch.tensor(-1.3, dtype=F64, requires_grad=True)
    log_prob = (old.detach() + math.log(ratio)).requires_grad_()
    a = torch.tensor(advantage, dtype=F64, requires_grad=True)
    found = clipped_surrogate_loss(log_prob, old, a, torch.tensor(0.2, dtype=F64) if as_tensor else 0.2)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    slopes = torch.autograd.grad(found, (log_prob, old, a), allow_unused=True)
    assert float(slopes[0]) == pytest.approx(slope, abs=1e-12)
    assert slopes[1] is None
    assert slopes[2] is None


@pytest.mark.parametrize("epsilon", [0.0, -0.2])
def test_clip_epsilon_must_be_positive(epsilon: float) -> None:
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="must be positive"):
        clipped_surrogate_loss(zero, zero, zero, epsilon)


def policies(seed: int, scale: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    old = torch.randn((6, 4), generator=g, dtype=F64)
    return old.log_softmax(-1), (old + scale * torch.randn((6, 4), generator=g, dtype=F64)).log_softmax(-1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_kl_estimate_is_unbiased(scale: float) -> None:
    """Summed over the old policy's actions it is KL(old || new); over the new one's, or swapped, it is not."""
    old, new = policies(0, scale)
    exact = (old.exp() * (old - new)).sum(-1)
    estimate = kl_estimate(new, old)
    torch.testing.assert_close((old.exp() * estimate).sum(-1), exact, rtol=1e-10, atol=1e-14)
    assert (estimate >= 0.0).all()
    if scale >= 1.0:
        assert not torch.allclose((new.exp() * estimate).sum(-1), exact, rtol=0.05)
        assert not torch.allclose((old.exp() * kl_estimate(old, new)).sum(-1), exact, rtol=0.05)


def test_kl_estimate_keeps_its_digits_near_zero() -> None:
    """x = 1e-4 gives x^2/2 = 5e-9, which exp(x) - 1 - x in float32 would lose entirely."""
    x = torch.tensor(1e-4, dtype=F64)
    exact = float(torch.expm1(x) - x)
    found = kl_estimate(x.float(), torch.zeros(()))
    # 1e-2: expm1(x) - x itself still cancels, to about eps / x = 1e-3 of the result.
    assert float(found) == pytest.approx(exact, rel=1e-2)
