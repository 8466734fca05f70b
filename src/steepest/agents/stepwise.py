"""Updates of algorithms that move their weights at every time step, over all environments at once.

``StepwiseAgent`` orders an update; the functions below are pure and see one member. A batch is a dict of tensors
(T, N, ...); a step is one row of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.config import StepwiseConfig
from steepest.agents.statistics import update_observations
from steepest.learner.lifting import Lift
from steepest.learner.step import Hyper, Metrics, State
from steepest.learner.trees import to_host
from steepest.networks.inputs import PolicyInput
from steepest.types import Obs, Rollout

Batch = dict[str, Tensor]


class StepwiseAgent(Agent):
    """An agent whose weights follow every time step of a rollout; an algorithm adds ``prepare`` and ``time_step``."""

    lifts: ClassVar[Mapping[str, Lift]] = {
        "prepare": Lift("prepare"),
        "steps": Lift("time_steps"),
        "merge": Lift(update_observations, compiles=False),
    }
    hyper_fields = (
        "gamma", "max_gradient_norm", "policy_learning_rate", "value_learning_rate", "auxiliary_learning_rate",
    )  # fmt: skip

    @classmethod
    def planned_work(cls, config: Any, total_steps: int, num_envs: int) -> tuple[int, int]:
        return num_envs, total_steps // num_envs

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch]:
        """Return the statistics that changed, and the rollout by time step (T, N); pure, one member."""
        raise NotImplementedError

    def time_step(self, state: State, step: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Return the state after one time step of N environments, and its metrics summed; pure, one member."""
        raise NotImplementedError

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """Return V of one observation, a scalar; pure, one member."""
        return cast(Tensor, self.forward(vector, state, one_input(obs)).value).squeeze(0)

    def time_steps(self, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take several time steps in order, unrolled so that they cost one call; pure, one member."""
        totals: Metrics = {}
        for t in range(batch["reward"].shape[0]):
            state, metrics = self.time_step(state, {k: x[t] for k, x in batch.items()}, hyper)
            totals = add_metrics(totals, metrics)
        return state, totals

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        """Learn from a rollout (M, T, N) at a progress in [0, 1], which drives schedules; return metrics (M,)."""
        hyper = self.hyperparameters(progress)
        statistics, batch = self.over_members["prepare"](self.state, rollout, hyper)
        state, totals = {**self.state, **statistics}, dict[str, Tensor]()
        per_call = cast(StepwiseConfig, self.config).steps_per_call
        for first in range(0, batch["reward"].shape[1], per_call):
            chunk = {k: x[:, first : first + per_call] for k, x in batch.items()}
            state, metrics = self.over_members["steps"](state, chunk, hyper)
            totals = add_metrics(totals, metrics)
        self.state = self.over_members["merge"](state, rollout, hyper)
        return to_host(mean_of_steps(totals))


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
    """Return the policy's inputs at the T decided steps."""
    steps = rollout.action.shape[time_axis]
    mask = None if rollout.action_mask is None else rollout.action_mask.narrow(time_axis, 0, steps)
    obs = {k: x.narrow(time_axis, 0, steps) for k, x in rollout.obs.items()}
    return PolicyInput(obs, mask, None, None, None)


def one_input(obs: Obs, mask: Tensor | None = None) -> PolicyInput:
    """A single observation, as a batch of one."""
    named = {k: x.unsqueeze(0) for k, x in obs.items()}
    return PolicyInput(named, None if mask is None else mask.unsqueeze(0), None, None, None)


def shortened(direction: Tensor, limit: Tensor) -> Tensor:
    """A direction scaled down to a norm of ``limit`` if it is longer."""
    return direction * torch.clamp(limit / (torch.linalg.vector_norm(direction) + 1e-12), max=1.0)


def add_metrics(totals: Metrics, metrics: Metrics) -> Metrics:
    """Return sums of metrics over time steps; begin with {}."""
    return {k: totals[k] + x for k, x in metrics.items()} if totals else metrics


def mean_of_steps(totals: Metrics) -> Metrics:
    """Return means over the decided steps, from sums that include how many they are, "decided"."""
    decided = totals["decided"].clamp(min=1.0)
    return {k: x / decided for k, x in totals.items() if k != "decided"}
