"""The behaviour that explores more than a policy."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import F64, discrete
from steepest.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Factored,
    FullGaussian,
    TanhGaussian,
    action_noise,
    epsilon_greedy,
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


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_by_hand(epsilon: float) -> None:
    """Probabilities over legal actions; the mode is greedy even where everything is tried alike."""
    policy = epsilon_greedy(LOGITS, torch.tensor(epsilon), MASK)
    first = torch.tensor([1.0, 0.0, 0.0], dtype=F64), torch.full((3,), 1 / 3, dtype=F64)
    second = torch.tensor([0.0, 0.0, 1.0], dtype=F64), torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    # The greedy action never loses its last millionth; epsilon travels in float32.
    expected = torch.stack([(1.0 - epsilon) * greedy + epsilon * uniform for greedy, uniform in (first, second)])
    torch.testing.assert_close(policy.log_probs.exp(), expected, rtol=0, atol=1.1e-6)
    assert policy.mode().tolist() == [0, 2]
    assert float(policy.log_probs.exp()[1, 1]) == 0.0
    assert torch.isfinite(policy.log_probs).all()
    assert epsilon_greedy(LOGITS, epsilon).mode().tolist() == [0, 1]


def test_a_share_of_the_actions_is_explored() -> None:
    """Of 60,000 draws from Gumbel noise, within five standard errors; what is illegal is never drawn."""
    noise = action_noise(discrete(3), (60_000,), torch.Generator().manual_seed(0))
    policy = epsilon_greedy(LOGITS[1].expand(60_000, 3), 0.4, MASK[1].expand(60_000, 3))
    drawn = policy.sample(noise.double())
    shares = drawn.bincount(minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.0, 0.8]), rtol=0, atol=5 * 0.4 / 60_000**0.5)
