"""Losses and objectives: pure functions of tensors, per sample and unreduced.

A ``_loss`` is minimised, an ``_objective`` maximised.
"""

from steepest.losses.deterministic import deterministic_policy_loss, q_learning_target, smoothed_action
from steepest.losses.policy_gradient import score_function_loss
from steepest.losses.soft import (
    expected_soft_value,
    soft_policy_loss,
    soft_q_target,
    soft_value_target,
    temperature_loss,
)
from steepest.losses.trust_region import clipped_surrogate_loss, kl_estimate
from steepest.losses.value import clipped_value_loss, value_loss

__all__ = [
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "deterministic_policy_loss",
    "expected_soft_value",
    "kl_estimate",
    "q_learning_target",
    "score_function_loss",
    "smoothed_action",
    "soft_policy_loss",
    "soft_q_target",
    "soft_value_target",
    "temperature_loss",
    "value_loss",
]
