"""Settings of ActorCritic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.agents.config import AdvantageConfig, LossConfig, StateWeighting
from steepest.errors import require
from steepest.fields import Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(AdvantageConfig, LossConfig):
    """On-policy actor-critic (A2C)."""

    rollout_steps: Count = 16
    """Steps that every environment plays between updates (T). Short, so that a policy is soon improved; as long as a
    recurrent policy's sequences."""
    learning_rate: Positive = 1e-3
    """Adam's step size at the start."""
    gain_rate: Share = 0.01
    """Weight of a new rollout in the running average reward, used only where that is the objective; 0 weighs all
    rollouts so far alike."""
    advantage: Literal["gae", "n_step"] = "gae"
    """Estimate advantages by an exponential mean over all numbers of steps, or by one number of steps."""
    gae_lambda: Share = 1.0
    """GAE's trade of bias (0) against variance (1); 1 counts the rewards to the rollout's end, as A2C does. Of no use
    where advantage is "n_step", and refused there."""
    n_steps: int | None = None
    """Rewards in an n-step advantage; 1 is the TD error. Not the length of a rollout, which is rollout_steps. Asked for
    where advantage is "n_step", and refused elsewhere."""
    critic: Literal["bootstrapped", "monte_carlo"] = "bootstrapped"
    """Fit the value function to the target of the advantage, or to the rewards to the end of the episode (or
    of the rollout, where V goes on)."""
    state_weighting: StateWeighting = "undiscounted"
    """Weigh step t alike with all others, or by gamma^t, for the gradient of the discounted objective itself."""
    normalize_advantage: bool = False
    """Standardise advantages over the rollout. A short rollout's deviation is a rough figure, hence not by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage == "n_step":
            known = self.n_steps is not None and self.n_steps >= 1
            require(known, "n_steps", self.n_steps, 'at least 1 where advantage is "n_step"')
            require(self.gae_lambda == 1.0, "gae_lambda", self.gae_lambda, 'left alone where advantage is "n_step"')
        else:
            wish = 'None where advantage is "gae"; rollout_steps is the length of a rollout'
            require(self.n_steps is None, "n_steps", self.n_steps, wish)
        if self.objective == "average":  # which has no discount
            known = self.state_weighting == "undiscounted"
            require(known, "state_weighting", self.state_weighting, '"undiscounted" where objective is "average"')
