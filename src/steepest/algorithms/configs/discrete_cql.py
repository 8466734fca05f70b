"""Settings of DiscreteCQL."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import ConservativeConfig, GreedyConfig
from steepest.fields import NonNegative


@dataclass(frozen=True, kw_only=True)
class DiscreteCQLConfig(GreedyConfig, ConservativeConfig):
    """Conservative Q-learning for discrete actions."""

    conservative_weight: NonNegative = 1.0
    """Weight of the penalty, in units of the network's halved squared error; where gap_threshold adapts it, at the
    start."""
