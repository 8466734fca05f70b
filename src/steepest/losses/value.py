"""Regression losses for value functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def value_loss(value: Float[Tensor, "*#shape"], target: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Half the squared error to a fixed target (semi-gradient where the target bootstraps).

    Equation:  L = 1/2 (V(s) - target)^2
    Source:    notes 1.5 (both the Monte-Carlo and the bootstrapped critic; only the target differs).
    Args:      value (...) reward units, carries gradient; target (...) reward units, detached here
    Returns:   (...) reward units squared
    Verified:  tests/exact/test_value.py::test_value_loss_gradient
    """
    return 0.5 * (value - target.detach()).square()


def huber_loss(
    value: Float[Tensor, "*#shape"], target: Float[Tensor, "*#shape"], threshold: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Half the squared error to a fixed target as far as the threshold, a straight line beyond: no slope is steeper.

    Equation:  L = 1/2 d^2 where |d| <= c, else c (|d| - c/2),  d = V(s) - target;  grad L = clip(d, -c, c) grad V
    Source:    Huber 1964; Mnih et al. 2015, Methods ("clip the error term"), with c = 1. Not in the notes.
    Args:      value (...) carries gradient; target (...) detached here; threshold c > 0; all reward units
    Returns:   (...) reward units squared
    Verified:  tests/exact/test_value.py::test_huber_loss_gradient
    """
    error = (value - target.detach()).abs()
    squared = torch.minimum(error, torch.as_tensor(threshold, dtype=error.dtype, device=error.device))
    return squared * (error - 0.5 * squared)


def clipped_value_loss(
    value: Float[Tensor, "*#shape"],
    old_value: Float[Tensor, "*#shape"],
    target: Float[Tensor, "*#shape"],
    clip_range: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Value regression that ignores improvement beyond clip_range from the old value.

    Equation:  L = max(L(V), L(V_old + clip(V - V_old, -c, c))),  L(V) = 1/2 (V - target)^2
    Source:    the PPO2 code of OpenAI Baselines; not in the PPO paper. Andrychowicz et al. 2021 found it harmful;
               off by default.
    Args:      value (...) carries gradient; old_value, target (...) detached here; all reward units
    Returns:   (...) reward units squared
    Verified:  tests/exact/test_value.py::test_clipped_value_loss_by_cases
    """
    old_value = old_value.detach()
    c = torch.as_tensor(clip_range, dtype=value.dtype)  # a bare as_tensor would round a number to float32
    clipped = old_value + torch.minimum(torch.maximum(value - old_value, -c), c)
    return torch.maximum(value_loss(value, target), value_loss(clipped, target))
