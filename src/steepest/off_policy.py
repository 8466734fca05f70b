"""What off-policy algorithms share: their settings, what the loop asks of them, and the steps between networks.

All functions are pure and see one member. A batch is a dict of tensors over B transitions, as ``buffers.ReplayBuffer``
gives them; what is random about an update comes in a dict beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from steepest.errors import require
from steepest.learner import Hyper, Metrics, State, adam_step
from steepest.networks import NetworkConfig, Schedule
from steepest.types import Obs

Batch = dict[str, Tensor]
Noise = dict[str, Tensor]


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


class OffPolicyAgent(Protocol):
    """What the off-policy loop asks of an algorithm, besides what every agent does."""

    @property
    def noise_correlation(self) -> float:
        """What share of the exploration noise of one step stays in the next; 0 for independent noise."""
        ...

    def hyperparameters(self, progress: float) -> Hyper:
        """Everything of an update that a schedule may change, at a progress in [0, 1]."""
        ...

    def update_noise(self, updates: int) -> Noise:
        """What is random about so many gradient steps, (M, updates, ...), every member's from its own generator."""
        ...

    def update(self, batch: Batch, noise: Noise, hyper: Hyper) -> tuple[Metrics, Tensor]:
        """Gradient steps on minibatches (M, updates, B, ...); changes the agent's state.

        Returns health figures (M,), still on the device, and absolute TD errors (M, updates, B).
        """
        ...


def group(state: State, prefix: str) -> State:
    """A network's own entries of the state, without its prefix: what ``adam_step`` takes."""
    return {k: state[f"{prefix}{k}"] for k in ("params", "adam_mean", "adam_square", "adam_count")}


def descend(
    state: State, prefix: str, gradient: Tensor, learning_rate: Tensor, max_gradient_norm: Tensor
) -> tuple[State, Tensor]:
    """One step of Adam for one of several networks; the state, and the norm of the gradient."""
    # Adam's own epsilon: these algorithms were published with it.
    new, norm = adam_step(group(state, prefix), gradient, learning_rate, max_gradient_norm, epsilon=1e-8)
    return {**state, **{f"{prefix}{k}": v for k, v in new.items()}}, norm


def track(state: State, target: str, source: str, rate: Tensor) -> State:
    """Polyak averaging: the target's parameters move a share of the way to the source's.

    Equation:  psi_bar <- (1 - rate) psi_bar + rate psi
    Source:    notes 1.7 (psi_bar); Polyak & Juditsky 1992; Lillicrap et al. 2016.
    Verified:  tests/unit/test_off_policy.py::test_track_is_the_moving_average
    """
    return {**state, target: torch.lerp(state[target], state[source], rate.to(state[target].dtype))}


def batch_obs(batch: Batch, prefix: str) -> Obs:
    """The observations of a batch by field name; prefix "obs/" or "next_obs/"."""
    return {k.removeprefix(prefix): x for k, x in batch.items() if k.startswith(prefix)}


def sample_weight(batch: Batch) -> Tensor:
    """What each transition counts in the critic's loss, (B,): 1, or the weights that undo prioritised drawing."""
    return batch["weight"] if "weight" in batch else torch.ones_like(batch["reward"])


def unrolled(
    step: Callable[[State, Batch, Noise, bool], tuple[State, Metrics, Tensor]],
    state: State,
    batch: Batch,
    noise: Noise,
    delay: int,
) -> tuple[State, Metrics, Tensor]:
    """Gradient steps on minibatches (K, B, ...) one after another, the policy's only every ``delay`` th time.

    Returns:   the state, the mean of every figure over the steps that have it, and the absolute TD errors (K, B)
    """
    totals: dict[str, list[Tensor]] = {}
    errors: list[Tensor] = []
    for k in range(batch["reward"].shape[0]):
        one, drawn = ({key: x[k] for key, x in tree.items()} for tree in (batch, noise))
        state, metrics, error = step(state, one, drawn, (k + 1) % delay == 0)
        errors.append(error)
        for key, value in metrics.items():
            totals.setdefault(key, []).append(value)
    return state, {k: torch.stack(v).mean(0) for k, v in totals.items()}, torch.stack(errors)
