"""Settings of TRPO."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import AdvantageConfig
from steepest.errors import require
from steepest.fields import Count, InnerShare, NonNegative, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(AdvantageConfig):
    """Trust-region policy optimisation."""

    rollout_steps: Count = 256
    """Steps that every environment plays between updates (T). One step is taken on each, so longer than PPO's."""
    max_kl: Positive = 0.01
    """Mean KL(pi_old || pi) in nats that an update may reach (delta)."""
    cg_iterations: Count = 10
    """Conjugate-gradient iterations, one Fisher-vector product each. Fewer stay nearer to the plain gradient."""
    cg_damping: NonNegative = 0.1
    """Added to the Fisher matrix's diagonal: what the rollout says nothing of moves less."""
    fisher_subsample: Count = 1
    """The Fisher matrix is estimated from every so many-th step of the rollout; the gradient from all."""
    line_search_steps: Whole = 10
    """Step lengths tried before the policy stays as it is; 0: the full step, unchecked (natural policy gradient)."""
    line_search_backtrack: InnerShare = 0.8
    """Each trial's step is this much shorter than the one before."""
    epochs: Count = 10
    """Passes of the value function over a rollout."""
    minibatches: Count = 16
    """Gradient steps of the value function per epoch."""
    learning_rate: Positive = 1e-3
    """Adam's step size for the value function."""
    normalize_advantage: bool = True
    """Standardise advantages over the rollout. The step does not depend on their scale, only on the shift."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.shared_torso, "shared_torso", True, "false: TRPO moves the policy alone")
        require(self.recurrent == "none", "recurrent", self.recurrent, '"none": TRPO has no recurrent policies')
