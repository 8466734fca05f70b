"""Losses that keep the new policy near the old one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def surrogate_objective(
    log_prob: Float[Tensor, "*#shape"], old_log_prob: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """What the new policy is worth by the old one's advantages, at the old one's states.

    Equation:  L = rho A,  rho = exp(log_prob - old_log_prob);  grad E_{a~old}[L] = grad V at the old policy
    Source:    notes 1.10 (L_pi(pi')); Schulman et al. 2015, Eq. 14. Differences: none.
    Args:      log_prob (...) nats, carries gradient; old_log_prob (...) nats, advantage (...) reward units, both
               detached here
    Returns:   (...) same units as advantage
    Verified:  tests/exact/test_trust_region.py::test_surrogate_is_the_exact_one,
               tests/exact/test_trust_region.py::test_surrogate_gradient_at_the_old_policy
    """
    return torch.exp(log_prob - old_log_prob.detach()) * advantage.detach()


def clipped_surrogate_loss(
    log_prob: Float[Tensor, "*#shape"],
    old_log_prob: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    clip_epsilon: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """PPO's pessimistic surrogate.

    Equation:  L = -min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = exp(log_prob - old_log_prob)
    Source:    notes 1.10; Schulman et al. 2017, Eq. 7. Differences: none.
    Args:      log_prob (...) nats, carries gradient; old_log_prob (...) nats, advantage (...) reward units, both
               detached here; clip_epsilon > 0
    Returns:   (...) same units as advantage
    Raises:    ValueError if clip_epsilon is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_trust_region.py::test_gradient_at_old_policy,
               tests/exact/test_trust_region.py::test_clipping_by_cases
    """
    if not isinstance(clip_epsilon, Tensor) and clip_epsilon <= 0.0:
        raise ValueError(f"clip_epsilon is {clip_epsilon}; it must be positive")
    advantage = advantage.detach()
    ratio = torch.exp(log_prob - old_log_prob.detach())
    epsilon = torch.as_tensor(clip_epsilon, dtype=ratio.dtype)  # a bare as_tensor would round a number to float32
    clipped = torch.minimum(torch.maximum(ratio, 1.0 - epsilon), 1.0 + epsilon)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def kl_estimate(log_prob: Float[Tensor, "*#shape"], old_log_prob: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Per-sample estimate of KL(old || new) from actions of the old policy: unbiased, never negative.

    Equation:  k3 = exp(x) - 1 - x,  x = log_prob - old_log_prob
    Source:    Schulman 2020, "Approximating KL divergence". For health figures and early stopping; its gradient is
               not that of the KL(new || old).
    Args:      log_prob, old_log_prob (...) nats
    Returns:   (...) nats
    Verified:  tests/exact/test_trust_region.py::test_kl_estimate_is_unbiased
    """
    x = log_prob - old_log_prob
    return torch.expm1(x) - x
