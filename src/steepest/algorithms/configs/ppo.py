"""Settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import Schedule, SurrogateConfig
from steepest.fields import Positive


@dataclass(frozen=True, kw_only=True)
class PPOConfig(SurrogateConfig):
    """Proximal policy optimisation."""

    clip_epsilon: Positive = 0.2
    """Distance of the probability ratio from 1 beyond which its gradient is cut (epsilon)."""
    clip_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    value_clip: Positive | None = None
    """Clip range of the value loss, none by default: Andrychowicz et al. 2021 found it harmful."""
    target_kl: Positive | None = None
    """Stop a rollout's updates once the estimated KL from the old policy exceeds 1.5 times this."""
