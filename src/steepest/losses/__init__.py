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
from steepest.losses.trust_region import (
    adapt_kl_coef,
    clipped_surrogate_loss,
    kl_estimate,
    penalised_surrogate_loss,
    surrogate_objective,
)
from steepest.losses.value import clipped_value_loss, value_loss

__all__ = [
    "adapt_kl_coef",
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
    "penalised_surrogate_loss",
    "score_function_loss",
    "surrogate_objective",
    "tdc_direction",
    "value_loss",
]
