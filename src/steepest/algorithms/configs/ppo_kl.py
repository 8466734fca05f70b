"""Settings of PPOKL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.agents.config import SurrogateConfig
from steepest.fields import Positive


@dataclass(frozen=True, kw_only=True)
class PPOKLConfig(SurrogateConfig):
    """Proximal policy optimisation with the adaptive KL penalty."""

    target_kl: Positive = 0.01
    """KL in nats by which one update should move the policy (d_targ). The best of the three that the paper tried."""
    kl_coef: Positive = 1.0
    """Weight of the penalty at the start (beta). Of little consequence, since it adapts within a few updates."""
    kl_direction: Literal["old_new", "new_old"] = "old_new"
    """KL(pi_old || pi_new) as in the paper, or KL(pi_new || pi_old) as printed in the notes."""
    normalize_advantage: bool = True
    """Standardise advantages in every minibatch, so that one ``kl_coef`` serves rewards of any scale."""
