"""Settings of TD3."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import DelayedPolicyConfig


@dataclass(frozen=True, kw_only=True)
class TD3Config(DelayedPolicyConfig):
    """Twin delayed deep deterministic policy gradient."""
