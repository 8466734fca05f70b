"""The off-policy loop: play a few steps into a replay buffer, then learn from minibatches of all that it holds.

    repeat
      1. every environment plays ``train_every`` steps: with uniformly random actions until ``learning_starts``, then
         with the policy; all go into the buffer
      2. gradient steps are due at ``update_ratio`` per environment step; as long as ``updates_per_call`` of them are,
         they are taken in one call, on minibatches drawn for all of them at once

``asynchronous``: the gradient steps due from earlier rows are taken in 1, spread over its steps, each while the
environments take theirs. The policy of these steps is that of before, and their rows are learned from in the next
round: a lag of ``train_every`` rows, made good when the run ends. One thread does it all in one order, whichever
side is faster.

``data``: a share of every minibatch is drawn from a dataset, the rest from the buffer.

What is drawn, minibatches too, comes from the members' own generators, so that a checkpoint of these, of the number of
rows in the buffer and of the gradient steps still due is all that is needed to resume with the same bits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from steepest.agents.acting import Actor
from steepest.agents.agent import Agent
from steepest.agents.config import OffPolicyConfig
from steepest.agents.replay_updates import ReplayAgent
from steepest.agents.statistics import update_observations
from steepest.distributions import Categorical, masked_logits
from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Dataset
from steepest.experience.replay import ReplayBuffer
from steepest.experience.rollout import Collector, Environments, Episode
from steepest.experience.transitions import Batch
from steepest.learner.step import Metrics
from steepest.learner.trees import to_host
from steepest.numerics import correlated
from steepest.runs.loops.loop import Iteration, Watch, unwatched
from steepest.runs.loops.offline import check_same, prepared_rows, require_minibatches
from steepest.runs.options.config import RunConfig
from steepest.types import Obs, Rollout


class OffPolicyLoop:
    """An iteration is about ``steps_per_iteration`` environment steps; see ``loops.Loop``.

    The last cycle of a run plays only the rows that are left of it: with one environment to the step, else to within
    the steps of one row.

    Verified:  tests/integration/test_off_policy_runs.py::test_a_run_ends_at_the_step_that_was_asked_for,
               tests/integration/test_off_policy_runs.py::test_gradient_steps_keep_their_ratio,
               tests/integration/test_off_policy_runs.py::test_killed_runs_resume_to_the_same_bits,
               tests/integration/test_off_policy_runs.py::test_asynchronous_learning_lags_by_what_is_played
    """

    def __init__(
        self, env: Environments, agent: ReplayAgent, settings: RunConfig, dataset: Dataset | None = None
    ) -> None:
        self.agent = agent
        self.config = config = cast(OffPolicyConfig, agent.config)
        require_minibatches(agent)
        self.data = None if dataset is None else prepared_rows(dataset, agent)
        # At least one transition of every minibatch is of the buffer, however small minibatches are.
        self.from_data = min(round((settings.data_share or 0.0) * config.batch_size), config.batch_size - 1)
        self.settings = settings
        self.collector = Collector(env, agent, config.train_every)
        self.merge = agent.learner.lift(update_observations, compile=False)
        self.cycles = math.ceil(config.steps_per_iteration / (agent.num_envs * config.train_every))
        # A row more than is needed where every row is decided: restarts take rows too.
        every = settings.checkpoint_every or 0
        self.spare_rows = math.ceil(1.1 * every / agent.num_envs) + 2 * self.cycles * config.train_every + 2
        self.rows_at_restart = 0
        self.due = 0.0
        self.frames = settings.atari.frame_stack if settings.atari else 1
        self.noise: Tensor | None = None

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        agent, config = self.agent, self.config
        self.buffer = ReplayBuffer(
            agent.obs_spec,
            agent.action_spec,
            rows=max(2, config.buffer_size // agent.num_envs),
            num_envs=agent.num_envs,
            members=agent.members,
            spare_rows=self.spare_rows if folder is not None and self.settings.checkpoint_every else 0,
            frame_stack=self.frames,
            prioritized=config.prioritized,
            folder=folder,
            reopen=resuming,
        )

    @property
    def restart_due(self) -> bool:
        """Rows that environments spend restarting are not counted as steps: the spare rows may run out before."""
        rows = self.buffer.written - self.rows_at_restart + (self.cycles + 1) * self.config.train_every
        return bool(self.settings.checkpoint_every) and rows > self.spare_rows

    def restart(self, seed: int) -> None:
        self.buffer.cut()
        self.rows_at_restart = self.buffer.written
        self.collector.reset(seed)
        self.noise = None

    def iterate(self, progress: float, left: int, watch: Watch = unwatched) -> Iteration:
        agent, config = self.agent, self.config
        hyper = agent.hyperparameters(progress)
        episodes: list[Episode] = []
        steps = np.zeros(agent.members, np.int64)
        totals: list[Metrics] = []
        calls, rows = 0, config.train_every  # due when a cycle begins, and played in it

        def learn(calls: int) -> None:
            totals.extend(self._learn(hyper, progress) for _ in range(calls))

        def meanwhile(t: int) -> None:
            learn(calls * (t + 1) // rows - calls * t // rows)

        for _ in range(self.cycles):
            rows = min(config.train_every, math.ceil((left - steps.sum() // agent.members) / agent.num_envs))
            if rows < 1:
                break
            warming = self.buffer.written * agent.num_envs < config.learning_starts
            calls = self.calls_due
            between = meanwhile if config.asynchronous else None
            episodes += self.collector.play(self._actor(warming), self._draw(rows), between)
            played = self.collector.rows()
            steps += played.valid.numpy().reshape(-1, *self.collector.shape).sum((0, 2))
            self.buffer.append(played)
            if config.normalize_obs:
                agent.state = self.merge(agent.state, _members(played, self.collector.shape), {})
            if not warming:
                self.due += config.update_ratio * rows * agent.num_envs
                if not config.asynchronous:
                    learn(self.calls_due)
            watch(int(steps.sum()) // agent.members)
        health = to_host({k: torch.stack([x[k] for x in totals]).mean(0) for k in totals[0]}) if totals else {}
        return Iteration(episodes, steps, health, self.collector.info_means())

    def finish(self, progress: float) -> None:
        hyper = self.agent.hyperparameters(progress)
        for _ in range(self.calls_due):
            self._learn(hyper, progress)

    @property
    def calls_due(self) -> int:
        """Calls of ``updates_per_call`` gradient steps that are due."""
        return int(self.due // self.config.updates_per_call)

    def _learn(self, hyper: dict[str, Tensor], progress: float) -> Metrics:
        """One call of ``updates_per_call`` gradient steps, which are due no longer."""
        agent, config = self.agent, self.config
        self.due -= config.updates_per_call
        own = config.batch_size - self.from_data
        batch = self.buffer.sample(
            agent.generators,
            config.updates_per_call,
            own,
            gamma=config.gamma,
            n_steps=config.n_steps,
            importance_exponent=config.importance_exponent + progress * (1.0 - config.importance_exponent),
        )
        index = batch.pop("index")
        if self.data is not None and self.from_data > 0:
            shape = (config.updates_per_call, self.from_data)
            rest = self.data[0].sample(agent.generators, *shape, gamma=config.gamma, n_steps=config.n_steps)
            batch = joined(batch, rest)
        batch = {k: x.to(agent.device) for k, x in batch.items()}
        metrics, error = agent.update(batch, agent.update_noise(config.updates_per_call), hyper)
        self.buffer.set_priorities(index, error[..., :own], exponent=config.priority_exponent)
        return metrics

    def _actor(self, warming: bool) -> Actor:
        """The policy as it is now, or the uniform one."""
        uniform = warming and self.config.warm_up == "uniform"
        return uniform_actor(self.agent) if uniform else self.agent.actor(fused=self.agent.learner.compile)

    def _draw(self, rows: int) -> Tensor:
        """Exploration noise (T, M, N, ...) for the next steps."""
        noise = self.agent.draw_noise((rows, self.agent.num_envs))
        if self.agent.noise_correlation:
            noise = correlated(noise, self.noise, self.agent.noise_correlation)
            self.noise = noise[-1]
        return noise

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.buffer.flush()
        tensors, figures = self.buffer.state()
        more = {} if self.data is None else {"fingerprint": self.data[1]}
        return tensors, {**figures, "due": self.due, **more}

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        if self.data is not None:
            check_same(figures["fingerprint"], self.data[1], self.data[0])
        self.buffer.load_state(tensors, figures)
        self.due = float(figures["due"])


MISSING = {"return_to_go": -math.inf, "next_action": 0.0, "next_known": 0.0, "weight": 1.0}
"""What a transition has where one side of a minibatch does not say: nothing that counts."""


def joined(replay: Batch, data: Batch) -> Batch:
    """Return minibatches (M, K, B, ...) of the buffer's transitions, then the dataset's.

    Raises:    UsageError where action masks are known of one side only
    Verified:  tests/integration/test_online_from_data.py::test_minibatches_are_of_both
    """
    out: Batch = {}
    for name in dict.fromkeys([*replay, *data]):
        sides = []
        for side, other in ((replay, data), (data, replay)):
            if name not in side and name not in MISSING:
                raise UsageError(f"the data and the environment do not agree: one has {name}, the other has not")
            shape = (*side["reward"].shape, *other.get(name, side["reward"]).shape[3:])
            sides.append(side[name] if name in side else torch.full(shape, MISSING[name]))
        out[name] = torch.cat(sides, 2)
    return out


def uniform_actor(agent: Agent) -> Actor:
    """A policy that takes every action with the same probability, drawing from the same noise as the agent's own.

    Verified:  tests/unit/test_off_policy.py::test_the_warm_up_is_uniform
    """

    def act(
        obs: Obs, noise: Tensor | None, mask: Tensor | None, start: Tensor | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        del obs, start
        assert noise is not None
        if agent.action_spec.kind == "discrete":
            logits = torch.zeros_like(noise)
            return Categorical(logits if mask is None else masked_logits(logits, mask)).sample(noise), memory
        # A standard normal variable through its own distribution function is uniform.
        unit = torch.erf(noise / math.sqrt(2.0))
        return (torch.atanh(unit.clamp(-1.0 + 1e-6, 1.0 - 1e-6)) if agent.squash == "tanh" else unit), memory

    return act


def _members(rows: Rollout, shape: tuple[int, int]) -> Rollout:
    """Rows (T, M N, ...) as what ``update_observations`` takes, (M, T, N, ...)."""

    def give(x: Tensor) -> Tensor:
        return x.view(x.shape[0], *shape, *x.shape[2:]).transpose(0, 1)

    return rows._replace(
        obs={k: give(x) for k, x in rows.obs.items()},
        **{k: give(getattr(rows, k)) for k in ("action", "reward", "terminated", "truncated", "valid", "episode_step")},
        action_mask=None,
    )
