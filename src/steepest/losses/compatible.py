"""The compatible critic of a deterministic policy.

The critic's action value is Q^w(s, a) = (a - mu(s))' grad mu(s)' w + V(s): linear in the action, with as many weights
as the policy has parameters. J = d mu(s) / d theta is the policy's Jacobian (..., D, P), so grad mu(s)' w is J w.
Nothing carries gradient.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def compatible_feature(
    action: Float[Tensor, "*batch d"], mean: Float[Tensor, "*batch d"], jacobian: Float[Tensor, "*batch d p"]
) -> Float[Tensor, "*batch p"]:
    """The features of the compatible critic's advantage, which is phi(s, a) . w.

    Equation:  phi(s, a) = grad_theta mu(s) (a - mu(s)) = J' (a - mu(s))
    Source:    notes 1.11 (errata); Silver et al. 2014, Section 4.3.
    Args:      action, mean mu(s) (..., D) action units; jacobian (..., D, P)
    Returns:   (..., P)
    Verified:  tests/exact/test_compatible.py::test_action_gradient_of_the_critic
    """
    return ((action - mean).unsqueeze(-1) * jacobian).sum(-2)


def compatible_action_gradient(
    jacobian: Float[Tensor, "*batch d p"], weight: Float[Tensor, " p"]
) -> Float[Tensor, "*batch d"]:
    """grad_a Q^w(s, a), the same for every action.

    Equation:  grad_a Q^w = grad_theta mu(s)' w = J w
    Source:    notes 1.11 (errata); Silver et al. 2014, Theorem 3, condition 1.
    Args:      jacobian (..., D, P); weight (P,)
    Returns:   (..., D) reward units per action unit
    Verified:  tests/exact/test_compatible.py::test_action_gradient_of_the_critic
    """
    return jacobian @ weight


def deterministic_policy_direction(
    jacobian: Float[Tensor, "*batch d p"], action_gradient: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch p"]:
    """Return the direction in which a deterministic policy moves: up the critic's slope at its own action.

    Equation:  grad_theta mu(s) grad_a Q(s, a) = J' grad_a Q, at a = mu(s)
    Source:    notes 1.11, Eq. 1; Silver et al. 2014, Theorem 1.
    Args:      jacobian (..., D, P); action_gradient (..., D), such as ``compatible_action_gradient``
    Returns:   (..., P); with the compatible critic that minimises the error of grad_a Q over the states of the policy,
               its mean is the exact gradient
    Verified:  tests/exact/test_compatible.py::test_compatible_critic_gives_the_exact_gradient
    """
    return (action_gradient.unsqueeze(-1) * jacobian).sum(-2)
