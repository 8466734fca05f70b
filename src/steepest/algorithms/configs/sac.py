"""Settings of SAC."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import SoftConfig
from steepest.errors import require
from steepest.fields import Count, PartialShare


@dataclass(frozen=True, kw_only=True)
class SACConfig(SoftConfig):
    """Soft actor-critic."""

    target_critics: Count = 2
    """Number of them, drawn anew for every update, of which the target takes the minimum."""
    dropout: PartialShare = 0.0
    """Share of the critics' hidden units left out in every forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        few = self.target_critics <= self.num_critics
        require(few, "target_critics", self.target_critics, f"at most num_critics ({self.num_critics})")
