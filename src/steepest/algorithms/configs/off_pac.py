"""Settings of OffPAC."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import StateWeighting, StepwiseConfig
from steepest.fields import NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class OffPACConfig(StepwiseConfig):
    """Off-policy actor-critic."""

    value_learning_rate: Positive = 0.1
    """Step size of the value function (alpha_v); the policy's should not be much larger."""
    auxiliary_learning_rate: NonNegative = 0.05
    """Step size of the critic's auxiliary weights (alpha_w); 0 is semi-gradient TD(lambda), which may diverge."""
    trace_decay: Share = 0.4
    """lambda of the critic's and the actor's traces."""
    emphasis_decay: Share = 0.0
    """lambda_a: 0 is Off-PAC; 1 follows the true off-policy gradient, with more variance."""
    state_weighting: StateWeighting = "undiscounted"
    """States count as often as the behaviour meets them, or by gamma^t within an episode."""
    behaviour_epsilon: Share = 0.5
    """The behaviour is the policy mixed with the uniform one in this share: 1 is uniform. Of a Gaussian policy it has
    1 + epsilon times the standard deviation."""
    behaviour_agent: str | None = None
    """The file of a saved agent that behaves instead."""
    max_ratio: Positive = 10.0
    """Importance ratios are cut off here, which trades bias for variance; the published algorithm has no bound."""
