"""Deterministic policies that are held close to data, by hand."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.losses import (
    behaviour_distance,
    behaviour_regularised_loss,
    deterministic_policy_loss,
    penalised_next_value,
)

SEEDS = pytest.mark.parametrize("seed", range(5))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@SEEDS
def test_gradient_of_the_policy_by_hand(seed: int) -> None:
    """2 penalty (mu - a) - grad Q / scale, of Q = sum mu^3; none into the data's action or the scale."""
    mu, data = drawn(seed, 8, 3).requires_grad_(), drawn(seed + 9, 8, 3).requires_grad_()
    q = (mu**3).sum(-1)
    scale = q.abs().mean()
    distance = behaviour_distance(mu, data)
    loss = behaviour_regularised_loss(q, distance, 0.4, scale).sum()
    slopes = torch.autograd.grad(loss, (mu, data), allow_unused=True)
    expected = 0.8 * (mu - data) - 3.0 * mu.square() / scale
    assert slopes[0] is not None
    torch.testing.assert_close(slopes[0], expected.detach(), rtol=1e-12, atol=1e-12)
    assert slopes[1] is None
    by_hand = torch.tensor(
        [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(mu.tolist(), data.tolist(), strict=True)]
    )
    torch.testing.assert_close(distance.detach(), by_hand.to(F64), rtol=1e-6, atol=1e-6)


@SEEDS
def test_penalty_zero_is_td3(seed: int) -> None:
    """Up to the scale of Q, which Adam does not see; and the target's value is Q' itself, without gradient."""
    q, distance = drawn(seed, 8), drawn(seed + 9, 8).square()
    loss = behaviour_regularised_loss(q, distance, 0.0, 2.0)
    torch.testing.assert_close(loss, deterministic_policy_loss(q) / 2.0, rtol=1e-14, atol=0.0)
    leaf = q.clone().requires_grad_()
    torch.testing.assert_close(penalised_next_value(leaf, distance, 0.0), q, rtol=0.0, atol=0.0)
    found = penalised_next_value(leaf, distance, 0.25)
    torch.testing.assert_close(found, q - 0.25 * distance, rtol=1e-14, atol=0.0)
    assert not found.requires_grad
