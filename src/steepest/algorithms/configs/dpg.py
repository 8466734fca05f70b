"""Settings of DPG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.agents.config import StepwiseConfig
from steepest.fields import Positive


@dataclass(frozen=True, kw_only=True)
class DPGConfig(StepwiseConfig):
    """Deterministic policy gradient with a compatible critic."""

    critic: Literal["sarsa", "q_learning", "gradient_q"] = "q_learning"
    """On-policy; off-policy (COPDAC-Q); off-policy with the correction of gradient TD (COPDAC-GQ)."""
    policy_learning_rate: Positive = 0.01
    """Step size of the policy (alpha)."""
    value_learning_rate: Positive = 0.05
    """Step size of the state value V (alpha_v)."""
    advantage_learning_rate: Positive = 0.05
    """Step size of the compatible weights (alpha_w)."""
    auxiliary_learning_rate: Positive = 0.05
    """Step size of the auxiliary weights of "gradient_q"."""
    initial_std: Positive = 0.3
    """Standard deviation of the exploring behaviour around mu; it is not learned."""
