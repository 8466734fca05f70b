"""Settings of REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.agents.config import LossConfig, StateWeighting
from steepest.fields import Positive


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(LossConfig):
    """REINFORCE; by default with reward-to-go and a learned baseline."""

    estimator: Literal["full_return", "reward_to_go"] = "reward_to_go"
    """Factor of an action's score: its episode's whole return, or the rewards from the action on."""
    baseline: Literal["none", "average_return", "value"] = "value"
    """Baseline that is subtracted: nothing, the average over the rollout's steps, or the value function."""
    at_cut: Literal["bootstrap", "drop"] = "bootstrap"
    """Treatment of an episode that the rollout or a time limit cuts: "bootstrap" lets the value function stand for
    what would have followed; "drop" takes nothing from it: an episode ends with its time limit, and steps whose
    episode's end is not in the rollout do not count. A rollout without an end then changes nothing."""
    state_weighting: StateWeighting = "undiscounted"
    """Weigh step t alike with all others, or by gamma^t, for the gradient of the discounted objective itself. The whole
    return holds gamma^t already; of it, "discounted" weighs by the step that the recording began at."""
    learning_rate: Positive = 1e-3
    """Adam's step size at the start."""
    normalize_advantage: bool = True
    """Scale psi over the rollout, so that one step size serves rewards of any scale: standardised where the baseline is
    the value function, elsewhere only divided, by its root mean square, so as to add no baseline."""
