"""Off-policy evaluation: estimators, intervals and the selection of policies; pure functions of tensors.

``estimate(doubly_robust(...))`` is a value, ``bootstrap_interval(doubly_robust(...), generator)`` its interval.
"""

from steepest.evaluation.bandit_data import LoggedRounds, read_rounds
from steepest.evaluation.importance import (
    Contributions,
    direct_method,
    doubly_robust,
    effective_sample_size,
    estimate,
    log_weights,
    per_decision_importance,
    trajectory_importance,
    weighted_doubly_robust,
    weighted_per_decision_importance,
    weighted_trajectory_importance,
    with_final_value,
)
from steepest.evaluation.intervals import Interval, bootstrap_interval, bootstrap_t_interval, standard_error
from steepest.evaluation.selection import (
    mean_absolute_error,
    mid_ranks,
    online_selection,
    rank_correlation,
    regret_at_k,
)

__all__ = [
    "Contributions",
    "Interval",
    "LoggedRounds",
    "bootstrap_interval",
    "bootstrap_t_interval",
    "direct_method",
    "doubly_robust",
    "effective_sample_size",
    "estimate",
    "log_weights",
    "mean_absolute_error",
    "mid_ranks",
    "online_selection",
    "per_decision_importance",
    "rank_correlation",
    "read_rounds",
    "regret_at_k",
    "standard_error",
    "trajectory_importance",
    "weighted_doubly_robust",
    "weighted_per_decision_importance",
    "weighted_trajectory_importance",
    "with_final_value",
]
