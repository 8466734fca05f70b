"""What off-policy algorithms share: their settings, what the loop asks of them, and the steps between networks.

All functions are pure and see one member. A batch is a dict of tensors over B transitions, as
``experience.replay.ReplayBuffer`` gives them; what is random about an update comes in a dict beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from steepest.learner.step import Hyper, Metrics, State, adam_step
from steepest.types import Obs

Batch = dict[str, Tensor]
Noise = dict[str, Tensor]


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
