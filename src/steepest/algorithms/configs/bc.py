"""Settings of BC."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import StochasticPolicyConfig
from steepest.fields import PositiveShare


@dataclass(frozen=True, kw_only=True)
class BCConfig(StochasticPolicyConfig):
    """Behaviour cloning."""

    best_fraction: PositiveShare = 1.0
    """Share of the episodes to learn from, those of the highest returns; 0.1 is the usual "10% BC"."""
