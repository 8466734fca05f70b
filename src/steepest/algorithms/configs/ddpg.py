"""Settings of DDPG."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import PolicyAndCriticConfig
from steepest.fields import PartialShare, Positive, PositiveShare


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(PolicyAndCriticConfig):
    """Deep deterministic policy gradient."""

    learning_rate: Positive = 1e-4
    """Adam's step size of the policy at the start."""
    critic_learning_rate: Positive = 1e-3
    """Adam's step size of the critic at the start."""
    target_update_rate: PositiveShare = 0.001
    """Weight of the new in the moving average that the target networks are."""
    exploration_std: Positive = 0.38
    """Standard deviation of the noise added while playing, in units of half the action's range; with noise_correlation
    0.85 this is the paper's process (theta 0.15, sigma 0.2)."""
    noise_correlation: PartialShare = 0.85
    """Share of that noise that stays in the next step: 0 is white, 0.85 the Ornstein-Uhlenbeck process of the paper."""
