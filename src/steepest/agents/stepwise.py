"""What algorithms share whose weights move at every time step, over all environments at once.

All functions are pure and see one member. A batch is a dict of tensors (T, N, ...); a step is one row of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.learner.step import Metrics
from steepest.networks.inputs import PolicyInput
from steepest.types import Obs, Rollout

Batch = dict[str, Tensor]


def step_batch(rollout: Rollout, reward: Tensor) -> Batch:
    """A rollout by time steps, each with its next observation; ``reward`` (T, N) takes the recorded one's place.

    Verified:  tests/unit/test_per_step.py::test_every_step_has_its_next_observation
    """
    batch = {
        "action": rollout.action,
        "reward": reward,
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "valid": rollout.valid,
        "episode_step": rollout.episode_step[:-1],
    }
    if rollout.action_mask is not None:
        batch["action_mask"] = rollout.action_mask[:-1]
    batch |= {f"obs/{k}": x[:-1] for k, x in rollout.obs.items()}
    batch |= {f"next_obs/{k}": x[1:] for k, x in rollout.obs.items()}
    return batch


def acting_inputs(rollout: Rollout, time_axis: int = 0) -> PolicyInput:
    """What the policy saw at the T decided steps."""
    steps = rollout.action.shape[time_axis]
    mask = None if rollout.action_mask is None else rollout.action_mask.narrow(time_axis, 0, steps)
    obs = {k: x.narrow(time_axis, 0, steps) for k, x in rollout.obs.items()}
    return PolicyInput(obs, mask, None, None, None)


def observations(step: Batch, prefix: str) -> Obs:
    """The observations of a step that ``step_batch`` put under "obs/" or "next_obs/"."""
    return {k.removeprefix(prefix): x for k, x in step.items() if k.startswith(prefix)}


def one_input(obs: Obs, mask: Tensor | None = None) -> PolicyInput:
    """A single observation, as a batch of one."""
    named = {k: x.unsqueeze(0) for k, x in obs.items()}
    return PolicyInput(named, None if mask is None else mask.unsqueeze(0), None, None, None)


def shortened(direction: Tensor, limit: Tensor) -> Tensor:
    """A direction scaled down to a norm of ``limit`` if it is longer."""
    return direction * torch.clamp(limit / (torch.linalg.vector_norm(direction) + 1e-12), max=1.0)


def add_figures(totals: Metrics, figures: Metrics) -> Metrics:
    """Sums of figures over time steps; begin with {}."""
    return {k: totals[k] + x for k, x in figures.items()} if totals else figures


def mean_figures(totals: Metrics) -> Metrics:
    """Means over the decided steps, from sums that include how many they are, "decided"."""
    decided = totals["decided"].clamp(min=1.0)
    return {k: x / decided for k, x in totals.items() if k != "decided"}
