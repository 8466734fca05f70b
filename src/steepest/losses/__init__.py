"""Losses and objectives: pure functions of tensors, per sample and unreduced.

A ``_loss`` is minimised, an ``_objective`` maximised.
"""

from steepest.losses.behaviour import (
    behaviour_distance,
    behaviour_regularised_loss,
    penalised_next_value,
)
from steepest.losses.compatible import (
    compatible_action_gradient,
    compatible_feature,
    deterministic_policy_direction,
)
from steepest.losses.conservative import (
    best_response_value,
    calibrated_q_value,
    conservative_gap,
    conservative_weight_loss,
    mixture_log_density,
    sampled_soft_maximum,
    soft_maximum,
    uniform_log_density,
)
from steepest.losses.deterministic import deterministic_policy_loss, q_learning_target, smoothed_action
from steepest.losses.expectile import (
    advantage_weight,
    expectile_loss,
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
from steepest.losses.kl import k1_estimate, k2_estimate, k3_estimate, proportional_kl_coef
from steepest.losses.policy_gradient import score_function_loss
from steepest.losses.preference import (
    bradley_terry_loss,
    dpo_loss,
    hinge_dpo_loss,
    implicit_reward,
    ipo_loss,
    length_normalized_dpo_loss,
    preference_metrics,
    robust_dpo_loss,
    score_centring_loss,
    smoothed_dpo_loss,
)
from steepest.losses.q_learning import chosen_q_value, double_dqn_target, dqn_target
from steepest.losses.ranking import (
    davidson_preference_loss,
    davidson_tie_loss,
    kto_loss,
    kto_reference_point,
    plackett_luce_loss,
)
from steepest.losses.soft import (
    expected_soft_value,
    soft_policy_loss,
    soft_q_target,
    soft_value_target,
    temperature_loss,
)
from steepest.losses.trust_region import (
    adapt_kl_coef,
    clipped_surrogate_loss,
    kl_estimate,
    penalised_surrogate_loss,
    surrogate_objective,
)
from steepest.losses.value import clipped_value_loss, huber_loss, value_loss

__all__ = [
    "adapt_kl_coef",
    "advantage_weight",
    "auxiliary_direction",
    "behaviour_distance",
    "behaviour_regularised_loss",
    "best_response_value",
    "bradley_terry_loss",
    "calibrated_q_value",
    "chosen_q_value",
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "compatible_action_gradient",
    "compatible_feature",
    "conservative_gap",
    "conservative_weight_loss",
    "curvature_direction",
    "davidson_preference_loss",
    "davidson_tie_loss",
    "deterministic_policy_direction",
    "deterministic_policy_loss",
    "double_dqn_target",
    "dpo_loss",
    "dqn_target",
    "eligibility_trace",
    "emphatic_weight",
    "expected_soft_value",
    "expectile_loss",
    "followon_trace",
    "gtd2_direction",
    "hinge_dpo_loss",
    "huber_loss",
    "implicit_reward",
    "ipo_loss",
    "k1_estimate",
    "k2_estimate",
    "k3_estimate",
    "kl_estimate",
    "kto_loss",
    "kto_reference_point",
    "length_normalized_dpo_loss",
    "mixture_log_density",
    "penalised_next_value",
    "penalised_surrogate_loss",
    "plackett_luce_loss",
    "preference_metrics",
    "proportional_kl_coef",
    "q_learning_target",
    "robust_dpo_loss",
    "sampled_soft_maximum",
    "score_centring_loss",
    "score_function_loss",
    "smoothed_action",
    "smoothed_dpo_loss",
    "soft_maximum",
    "soft_policy_loss",
    "soft_q_target",
    "soft_value_target",
    "surrogate_objective",
    "tdc_direction",
    "temperature_loss",
    "uniform_log_density",
    "value_loss",
]
