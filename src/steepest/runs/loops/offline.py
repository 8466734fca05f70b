"""The offline loop: gradient steps on minibatches of a dataset; nothing is played.

    repeat
      updates_per_call gradient steps in one call, on minibatches that every member draws uniformly from the dataset

Steps are gradient steps. Observations are normalised, where they are, by the statistics of the whole dataset, fixed
before the first step. All that is drawn comes from the members' own generators, so that a checkpoint of these and of
the agent is all that is needed to resume with the same bits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.config import OffPolicyConfig
from steepest.agents.replay_updates import ReplayAgent
from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Dataset
from steepest.experience.datasets.sampling import DatasetRows
from steepest.experience.rollout import step_bytes
from steepest.files.space import require_space
from steepest.learner.step import Metrics
from steepest.learner.trees import to_host
from steepest.runs.loops.loop import Iteration, Watch, unwatched

SQUASHED_LIMIT = 1.0 - 1e-6
"""Largest absolute action that still has a draw before tanh."""


class OfflineLoop:
    """An iteration is ``steps_per_iteration`` gradient steps, in whole calls, the last what is left; see ``loop.Loop``.

    Raises:    UsageError for settings that need a replay buffer, observations or actions of other spaces, and a dataset
               that has changed when a run resumes
    Verified:  tests/integration/test_offline_runs.py::test_learns_from_a_dataset,
               tests/integration/test_offline_runs.py::test_a_killed_run_resumes_to_the_same_bits,
               tests/integration/test_offline_runs.py::test_a_changed_dataset_is_refused
    """

    restart_due = False

    def __init__(self, dataset: Dataset, agent: ReplayAgent) -> None:
        self.agent = agent
        self.config = config = cast(OffPolicyConfig, agent.config)
        if config.prioritized:
            raise UsageError("prioritized is True; minibatches of a dataset are drawn uniformly")
        require_minibatches(agent)
        self.rows, self.fingerprint = prepared_rows(dataset, agent)
        if config.normalize_obs:
            agent.state = {**agent.state, **_statistics(self.rows, agent)}

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        del folder, resuming

    def restart(self, seed: int) -> None:
        del seed  # there is nothing to restart

    def iterate(self, progress: float, left: int, watch: Watch = unwatched) -> Iteration:
        agent, config = self.agent, self.config
        hyper = agent.hyperparameters(progress)
        totals: list[Metrics] = []
        wanted = min(config.steps_per_iteration, left)
        calls = max(1, math.ceil(wanted / config.updates_per_call))
        for _ in range(calls):
            batch = self.rows.sample(
                agent.generators, config.updates_per_call, config.batch_size, gamma=config.gamma, n_steps=config.n_steps
            )
            batch = {k: x.to(agent.device) for k, x in batch.items()}
            metrics, _ = agent.update(batch, agent.update_noise(config.updates_per_call), hyper)
            totals.append(metrics)
            watch(len(totals) * config.updates_per_call)
        health = to_host({k: torch.stack([x[k] for x in totals]).mean(0) for k in totals[0]})
        return Iteration([], np.full(agent.members, calls * config.updates_per_call, np.int64), health)

    def finish(self, progress: float) -> None:
        del progress

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"fingerprint": self.fingerprint}

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        del tensors
        check_same(figures["fingerprint"], self.fingerprint, self.rows)


def require_minibatches(agent: ReplayAgent) -> None:
    """Raise UsageError where the minibatches of one call, and what networks make of them, do not fit into memory.

    Verified:  tests/unit/test_space.py::test_what_an_option_asks_for_is_compared_before_it_is_taken
    """
    config = cast(OffPolicyConfig, agent.config)
    drawn = 2 * config.updates_per_call * step_bytes(agent.obs_spec, agent.action_spec)
    hidden = 4 * sum(config.hidden_sizes)
    require_space(
        agent.members * config.batch_size * (drawn + hidden),
        f"a call of {config.updates_per_call:,} gradient steps on minibatches of {config.batch_size:,} transitions",
        "give a smaller batch_size or updates_per_call",
    )


def prepared_rows(dataset: Dataset, agent: ReplayAgent) -> tuple[DatasetRows, str]:
    """Return a dataset's rows with actions as the agent draws them and all that it needs besides; and their hash."""
    rows = DatasetRows(dataset, agent.obs_spec, agent.action_spec)
    fingerprint = rows.fingerprint()
    if agent.squash == "tanh" and agent.action_spec.kind == "box":
        rows.flat["action"] = np.arctanh(np.clip(rows.flat["action"], -SQUASHED_LIMIT, SQUASHED_LIMIT))
    agent.prepare_data(rows)
    return rows, fingerprint


def check_same(before: str, now: str, rows: DatasetRows) -> None:
    """Raise UsageError where a dataset is another one than before."""
    if before != now:
        raise UsageError(
            f"{rows.dataset.source} has changed since the run began, so the run cannot resume. Restore it, or start a "
            "new run"
        )


def check_data(agent_class: type[Agent], data: Any, share: float | None) -> None:
    """Raise UsageError where an algorithm cannot learn from data, or from data and playing as it is asked to."""
    name, replays = agent_class.algorithm, issubclass(agent_class, ReplayAgent)
    if data is not None and not replays and not agent_class.learns_from_logs:
        raise UsageError(
            f"{name} learns from what it plays itself, not from data; cql, iql, rebrac, td3_bc, awac, bc and "
            "discrete_cql are made for data"
        )
    if not agent_class.learns_by_playing and (data is None or share is not None):
        raise UsageError(f"{name} learns from data alone: steepest train {name} DATA")
    if share is not None and data is None:
        raise UsageError(f"data_share is {share:g}, but there is no data; give it with --data, or leave data_share out")
    if share is not None and not replays:
        raise UsageError(
            f"data_share is {share:g}, but {name} has no replay buffer to mix data with; sac, iql, cql have"
        )


def _statistics(rows: DatasetRows, agent: ReplayAgent) -> dict[str, Tensor]:
    """Return the mean and variance of the dataset's observations as the agent's state keeps them."""
    found: dict[str, Tensor] = {}
    for name, moments in rows.moments().items():
        for part, one in zip(("mean", "variance"), moments, strict=True):
            found[f"obs_{part}/{name}"] = one.to(agent.device).expand(agent.members, *one.shape).clone()
    return {**found, "obs_count": torch.full((agent.members,), float(len(rows.decided)), device=agent.device)}
