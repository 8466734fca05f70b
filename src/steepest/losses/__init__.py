"""Losses and objectives: pure functions of tensors, per sample and unreduced.

A ``_loss`` is minimised, an ``_objective`` maximised.
"""

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
    "clipped_surrogate_loss",
    "clipped_value_loss",
    "kl_estimate",
    "penalised_surrogate_loss",
    "score_function_loss",
    "surrogate_objective",
    "value_loss",
]
