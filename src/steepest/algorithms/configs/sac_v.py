"""Settings of SACV."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import SquashedConfig
from steepest.fields import Count, Positive


@dataclass(frozen=True, kw_only=True)
class SACVConfig(SquashedConfig):
    """Soft actor-critic with a value network."""

    temperature: Positive = 0.2
    """Reward that a nat of entropy is worth; the inverse of the paper's reward scale."""
    num_critics: Count = 2
    """Q-functions, of which the least counts; 1 is the notes' form."""
