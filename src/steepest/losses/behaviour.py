"""Policies held close to the actions of the data: the terms that TD3+BC and ReBRAC add to deterministic gradients."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def behaviour_distance(
    action: Float[Tensor, "*#batch d"], data_action: Float[Tensor, "*#batch d"]
) -> Float[Tensor, "*batch"]:
    """Return the squared distance of a policy's action to that of the data.

    Equation:  ||mu(s) - a||^2
    Source:    Fujimoto & Gu 2021 (TD3+BC); Tarasov et al. 2023 (ReBRAC). Differences: summed over
               components as in the papers' equations (their code averages them).
    Args:      action (..., D) carries gradient; data_action (..., D) detached here; units of half the action's range
    Returns:   (...) those units squared
    Verified:  tests/exact/test_behaviour.py::test_gradient_of_the_policy_by_hand
    """
    return (action - data_action.detach()).square().sum(-1)


def behaviour_regularised_loss(
    q_value: Float[Tensor, "*#shape"],
    distance: Float[Tensor, "*#shape"],
    penalty: float | Tensor,
    q_scale: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Return a deterministic policy's loss: climb Q, and stay where the data is.

    Equation:  L = penalty ||mu(s) - a||^2 - Q(s, mu(s)) / q_scale,  q_scale the mean of |Q| over a minibatch
    Source:    Fujimoto & Gu 2021, divided by their alpha: penalty = 1 / alpha; Tarasov et al. 2023.
    Args:      q_value (...) reward units, carries gradient through the action alone; distance (...) as
               ``behaviour_distance``; penalty >= 0; q_scale > 0 reward units, detached here
    Returns:   (...)
    Verified:  tests/exact/test_behaviour.py::test_gradient_of_the_policy_by_hand,
               tests/exact/test_behaviour.py::test_penalty_zero_is_td3
    """
    scale = q_scale.detach() if isinstance(q_scale, Tensor) else q_scale
    return penalty * distance - q_value / scale


def penalised_next_value(
    next_q_value: Float[Tensor, "*#shape"], distance: Float[Tensor, "*#shape"], penalty: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Return the next value less a penalty for leaving the data.

    Equation:  Q'(s', a') - penalty ||a' - a'_data||^2
    Source:    Tarasov et al. 2023. Not in the notes.
    Args:      next_q_value (...) reward units; distance (...), 0 where the data has no next action; penalty >= 0 reward
               units; all detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_behaviour.py::test_penalty_zero_is_td3
    """
    return (next_q_value - penalty * distance).detach()
