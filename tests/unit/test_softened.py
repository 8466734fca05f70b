"""The behaviour that explores more than a policy."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import F64
from steepest.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Factored,
    FullGaussian,
    TanhGaussian,
    floored_log_probs,
    softened,
)

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=F64)
MASK = torch.tensor([[True, True, True], [True, False, True]])


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", [Categorical, Factored])
def test_discrete_policies_are_mixed_with_the_uniform_one(kind: type, epsilon: float) -> None:
    """Over the legal choices alone; what is illegal keeps probability 0, and padding is no choice."""
    log_probs = floored_log_probs(LOGITS, 0.0, MASK)
    found = softened(kind(log_probs), epsilon).log_probs.exp()
    uniform = MASK.to(F64) / MASK.sum(-1, keepdim=True)
    torch.testing.assert_close(found, (1.0 - epsilon) * log_probs.exp() + epsilon * uniform, rtol=1e-12, atol=1e-15)
    assert float(found[1, 1]) == 0.0


def test_bits_are_mixed_too() -> None:
    log_probs = floored_log_probs(LOGITS[:, :2], 0.0).unsqueeze(0)
    found = softened(Bernoulli(log_probs), 0.25).log_probs.exp()
    torch.testing.assert_close(found, 0.75 * log_probs.exp() + 0.125, rtol=1e-12, atol=0)


def test_impossible_choices_are_never_drawn() -> None:
    policy = softened(Categorical(floored_log_probs(LOGITS, 0.0, MASK)), 1.0)
    noise = torch.zeros(2, 3, dtype=F64)
    noise[1, 1] = 1e3
    assert int(policy.sample(noise)[1]) != 1


def test_gaussians_are_widened() -> None:
    mean, log_std, noise = torch.ones(2, 3, dtype=F64), torch.zeros(3, dtype=F64), torch.ones(2, 3, dtype=F64)
    for kind in (DiagonalGaussian, TanhGaussian):
        assert softened(kind(mean, log_std), 0.5).sample(noise).tolist() == [[2.5] * 3] * 2
    full = softened(FullGaussian(mean, torch.eye(3, dtype=F64).expand(2, 3, 3)), 0.5)
    assert full.sample(noise).tolist() == [[2.5] * 3] * 2


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_epsilon_is_a_share(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        softened(Categorical(floored_log_probs(LOGITS, 0.0)), epsilon)
