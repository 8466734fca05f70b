"""Settings of AWAC."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import WeightedConfig
from steepest.fields import Positive


@dataclass(frozen=True, kw_only=True)
class AWACConfig(WeightedConfig):
    """Advantage-weighted actor-critic."""

    temperature: Positive = 1.0
    """Advantage in reward units that is worth a nat of the policy's likelihood; the paper's lambda."""
