"""Settings of IQL."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import WeightedConfig
from steepest.fields import InnerShare, Positive


@dataclass(frozen=True, kw_only=True)
class IQLConfig(WeightedConfig):
    """Implicit Q-learning. Defaults are the paper's for locomotion."""

    expectile: InnerShare = 0.7
    """Expectile of Q that the value function aims at: 1/2 is the mean of the data's actions, near 1 their best."""
    temperature: Positive = 1.0 / 3.0
    """Advantage in reward units that is worth a nat of the policy's likelihood; small values copy the best actions."""
