"""Settings of CQL."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import ConservativeConfig, SoftConfig
from steepest.fields import Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class CQLConfig(SoftConfig, ConservativeConfig):
    """Conservative Q-learning for continuous actions. Defaults are the paper's for locomotion."""

    learning_rate: Positive = 1e-4
    """Adam's step size of the policy at the start."""
    conservative_weight: NonNegative = 5.0
    """Weight of the penalty, in units of the critics' halved squared error; where gap_threshold adapts it, at the
    start."""
    proposals: Count = 10
    """Actions of every kind that stand for all actions in the penalty."""
    calibrated: bool = False
    """Push no value of the policy's proposals below the data's return from the state on (Cal-QL)."""
    entropy_backup: bool = False
    """Count the next action's entropy in the critics' targets, as `sac` does."""
