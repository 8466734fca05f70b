"""Losses that keep the new policy near the old one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def surrogate_objective(
    log_prob: Float[Tensor, "*#shape"], old_log_prob: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Return the new policy's worth by the old one's advantages, at the old one's states.

    Equation:  L = rho A,  rho = exp(log_prob - old_log_prob);  grad E_{a~old}[L] = grad V at the old policy
    Source:    notes 1.10 (L_pi(pi')); Schulman et al. 2015, Eq. 14. Differences: none.
    Args:      log_prob (...) nats, carries gradient; old_log_prob (...) nats, advantage (...) reward units, both
               detached here
    Returns:   (...) same units as advantage
    Verified:  tests/exact/test_trust_region.py::test_surrogate_is_the_exact_one,
               tests/exact/test_trust_region.py::test_surrogate_gradient_at_the_old_policy
    """
    return _ratio(log_prob, old_log_prob) * advantage.detach()


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
    ratio = _ratio(log_prob, old_log_prob)
    epsilon = torch.as_tensor(clip_epsilon, dtype=ratio.dtype)  # a bare as_tensor would round a number to float32
    clipped = torch.minimum(torch.maximum(ratio, 1.0 - epsilon), 1.0 + epsilon)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def penalised_surrogate_loss(
    log_prob: Float[Tensor, "*#shape"],
    old_log_prob: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    kl: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """PPO's surrogate with a price on the distance from the old policy.

    Equation:  L = -rho A + beta KL,  rho = exp(log_prob - old_log_prob)
    Source:    notes 1.10; Schulman et al. 2017, Eq. 8. The paper's KL is KL(old || new), the notes print
               KL(new || old): the caller gives the one it means, of the whole distributions in every state.
    Args:      log_prob (...) nats, carries gradient; old_log_prob (...) nats, advantage (...) reward units, both
               detached here; kl (...) nats, carries gradient; kl_coef (beta) reward units per nat, zero or more
    Returns:   (...) same units as advantage
    Raises:    ValueError if kl_coef is a number below 0 (a tensor is not looked at)
    Verified:  tests/exact/test_ppo_kl.py::test_gradient_at_the_old_policy,
               tests/exact/test_ppo_kl.py::test_penalty_away_from_the_old_policy
    """
    if not isinstance(kl_coef, Tensor) and kl_coef < 0.0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be zero or more")
    ratio = _ratio(log_prob, old_log_prob)
    return -ratio * advantage.detach() + kl_coef * kl


def adapt_kl_coef(
    kl_coef: Float[Tensor, "*shape"], kl: Float[Tensor, "*shape"], target: float | Tensor
) -> Float[Tensor, "*shape"]:
    """The penalty's next coefficient, from how far the policy went with this one; once per policy update.

    Equation:  beta <- beta / 2 if KL < target / 1.5,  2 beta if KL > 1.5 target,  else beta
    Source:    Schulman et al. 2017, section 4. Differences: beta stays within [1e-8, 1e8], since a beta that has become
               zero could never double again, and an infinite one times a KL of zero is no number.
    Args:      kl_coef (...) reward units per nat; kl (...) nats, the mean over the states after the update's last
               gradient step; target nats. No gradient is meant to pass
    Returns:   (...) reward units per nat
    Verified:  tests/exact/test_ppo_kl.py::test_adaptation_by_cases
    """
    halved = torch.where(kl < target / 1.5, 0.5 * kl_coef, kl_coef)
    return torch.where(kl > 1.5 * target, 2.0 * kl_coef, halved).clamp(min=1e-8, max=1e8)


def kl_estimate(log_prob: Float[Tensor, "*#shape"], old_log_prob: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Per-sample estimate of KL(old || new) from actions of the old policy: unbiased, never negative.

    Equation:  k3 = exp(x) - 1 - x,  x = log_prob - old_log_prob
    Source:    Schulman 2020, "Approximating KL divergence". For metrics and early stopping; its gradient is
               not that of the KL(new || old).
    Args:      log_prob, old_log_prob (...) nats
    Returns:   (...) nats
    Verified:  tests/exact/test_trust_region.py::test_kl_estimate_is_unbiased
    """
    x = log_prob - old_log_prob
    return torch.expm1(x) - x


def _ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """rho, with gradient through the new policy alone."""
    return torch.exp(log_prob - old_log_prob.detach())
