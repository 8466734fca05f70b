"""Settings that several algorithms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.errors import require
from steepest.networks.config import NetworkConfig, Schedule


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(NetworkConfig):
    """What every algorithm that learns from a replay buffer has."""

    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics (after the convolutions, for images)."""
    activation: Literal["tanh", "relu"] = "relu"
    """Non-linearity of the hidden layers."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    max_gradient_norm: float | None = None
    """Each network's gradient is scaled down to this norm if it is longer; none leaves it."""
    gamma: float = 0.99
    """Discount factor."""
    batch_size: int = 256
    """Transitions per gradient step."""
    buffer_size: int = 1_000_000
    """Latest transitions to learn from, per seed, counting rows that only restart an environment."""
    learning_starts: int = 1_000
    """Environment steps of uniformly random actions before the first gradient step, per seed. Here and in
    ``update_ratio`` a row that only restarts an environment counts as one."""
    train_every: int = 1
    """Steps of every environment between updates."""
    update_ratio: float = 1.0
    """Gradient steps per environment step."""
    updates_per_call: int = 1
    """Gradient steps fused into one call, from one set of samples; they wait until so many are due."""
    asynchronous: bool = False
    """Take gradient steps while the environments step, each in a process of its own (vectorization async). They are
    those due from the steps before, so that learning lags ``train_every`` steps behind, by the same bits every time."""
    target_update_rate: float = 0.005
    """Weight of the new in the moving average that the target networks are."""
    n_steps: int = 1
    """Rewards summed before the target bootstraps. More than 1 speeds up credit, and ignores that the policy has
    changed since the actions in between."""
    prioritized: bool = False
    """Draw transitions in proportion to their last TD error."""
    priority_exponent: float = 0.6
    """How much priorities count; 0 is uniform."""
    importance_exponent: float = 0.4
    """How much the weights undo prioritised drawing at the start; it goes to 1 over the run."""
    steps_per_iteration: int = 1_000
    """Environment steps between rows of figures; evaluations and checkpoints fall on these too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "train_every", "updates_per_call", "n_steps", "steps_per_iteration"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "update_ratio"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.buffer_size >= 2, "buffer_size", self.buffer_size, "at least 2")
        require(self.learning_starts >= 0, "learning_starts", self.learning_starts, "zero or more")
        norm = self.max_gradient_norm
        require(norm is None or norm > 0, "max_gradient_norm", norm, "a positive number or none")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(0 < self.target_update_rate <= 1, "target_update_rate", self.target_update_rate, "in (0, 1]")
        for name in ("priority_exponent", "importance_exponent"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class PolicyAndCriticConfig(OffPolicyConfig):
    """What every one of them has that learns a policy beside its critics."""

    learning_rate: float = 3e-4
    """Adam's step size of the policy at the start."""
    critic_learning_rate: float = 3e-4
    """Adam's step size of the critics at the start; follows the same schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.critic_learning_rate
        require(rate > 0, "critic_learning_rate", rate, "a positive number")
