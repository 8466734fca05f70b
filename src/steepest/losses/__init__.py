"""Losses and objectives: pure functions of tensors, per sample and unreduced.

A ``_loss`` is minimised, an ``_objective`` maximised.
"""

from steepest.losses.compatible import (
    compatible_action_gradient,
    compatible_feature,
    deterministic_policy_direction,
)
from steepest.losses.gradient_td import (
    auxiliary_direction,
    curvature_direction,
    eligibility_trace,
    emphatic_weight,
    followon_trace,
    gtd2_direction,
    tdc_direction,
)
from steepest.losses.policy_gradient import score_function_loss
from steepest.losses.trust_region import clipped_surrogate_loss, kl_estimate
from steepest.losses.value import clipped_value_loss, value_loss

__all__ = [
    "auxiliary_direction",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "compatible_action_gradient",
    "compatible_feature",
    "curvature_direction",
    "deterministic_policy_direction",
    "eligibility_trace",
    "emphatic_weight",
    "followon_trace",
    "gtd2_direction",
    "kl_estimate",
    "score_function_loss",
    "tdc_direction",
    "value_loss",
]
