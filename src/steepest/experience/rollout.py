"""Collecting experience: T steps of all environments into one preallocated rollout."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.acting import Actor
from steepest.agents.agent import Agent
from steepest.files.space import require_space
from steepest.types import ActionSpec, Obs, ObsSpec, Rollout


class Environments(Protocol):
    """The protocol of a batch of environments as the collector needs it (``environments.make_env`` makes them)."""

    num_envs: int
    obs_spec: ObsSpec
    action_spec: ActionSpec

    def reset(self, seed: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_] | None]: ...
    def step(self, action: NDArray[Any]) -> Any: ...
    def step_async(self, action: NDArray[Any]) -> None: ...
    def step_wait(self) -> Any: ...


class Episode(NamedTuple):
    """A finished episode. Its return is the plain sum of the environment's rewards."""

    member: int
    episode_return: float
    length: int
    infos: tuple[float | None, ...] = ()
    """Of every name in ``info_keys``, the number that its last step gave."""


def step_bytes(obs_spec: ObsSpec, action_spec: ActionSpec) -> int:
    """Return the bytes that one step of one environment takes in a rollout."""
    obs = sum(math.prod(field.shape) * field.torch_dtype.itemsize for field in obs_spec.fields)
    action = action_spec.dimension * (4 if action_spec.kind == "box" else 8)
    return obs + action + action_spec.mask_size + 4 + 3 + 8  # and the reward, the flags, and the step of the episode


class Collector:
    """Plays a population's policies in its environments; member m owns environments m N to (m + 1) N - 1.

    The buffers are reused: a rollout is good until the next ``collect``.

    Raises:    UsageError where they do not fit into memory
    Verified:  tests/unit/test_space.py::test_what_an_option_asks_for_is_compared_before_it_is_taken
    """

    def __init__(self, env: Environments, agent: Agent, steps: int) -> None:
        self.env = env
        self.agent = agent
        self.steps = steps
        m, total = agent.members, env.num_envs
        if total != m * agent.num_envs:
            raise ValueError(f"{total} environments for {m} members of {agent.num_envs} each")
        shape = (m, agent.num_envs)
        self.shape = shape
        spec = agent.action_spec
        require_space(
            (steps + 1) * total * step_bytes(agent.obs_spec, spec),
            f"what is played between updates ({steps:,} steps of {total:,} environments)",
            "give fewer environments (num_envs, seeds) or steps (rollout_steps, train_every)",
        )
        box = spec.kind == "box"
        action_shape = () if spec.kind == "discrete" else (spec.dimension,)
        self.obs: Obs = {
            f.name: torch.zeros((steps + 1, total, *f.shape), dtype=f.torch_dtype) for f in agent.obs_spec.fields
        }
        self.action = torch.zeros((steps, total, *action_shape), dtype=torch.float32 if box else torch.int64)
        self.reward = torch.zeros((steps, total))
        self.terminated = torch.zeros((steps, total), dtype=torch.bool)
        self.truncated = torch.zeros((steps, total), dtype=torch.bool)
        self.valid = torch.zeros((steps, total), dtype=torch.bool)
        self.episode_step = torch.zeros((steps + 1, total), dtype=torch.int64)
        self.mask: Tensor | None = None
        self.sequences = steps // agent.sequence_length if agent.memory_size else 0
        self.memories: Tensor | None = None
        if agent.memory_size:
            self.memories = torch.zeros((self.sequences, *shape, agent.memory_size), device=agent.device)
        self.memory: Tensor | None = None
        # The buffers stay where they are, so what every step writes to and reads from is looked up once.
        self.obs_arrays = {name: x.numpy() for name, x in self.obs.items()}
        self.obs_rows = {name: self._members(x).unbind(0) for name, x in self.obs.items()}
        self.action_rows, self.reward_rows = self.action.numpy(), self.reward.numpy()
        self.terminated_rows, self.truncated_rows = self.terminated.numpy(), self.truncated.numpy()
        self.valid_rows, self.step_rows = self.valid.numpy(), self.episode_step.numpy()
        self.returns = np.zeros(total)
        self.counters = np.zeros(total, dtype=np.int64)
        self.waiting: NDArray[np.bool_] | None = None
        self.played = steps  # rows of the latest ``play``
        self.info_keys: tuple[str, ...] = getattr(env, "info_keys", ())
        self.info_sums, self.info_counts = np.zeros((2, len(self.info_keys), m))

    def reset(self, seed: int) -> None:
        """Restart every environment from the seed. Unfinished episodes are dropped from the statistics."""
        obs, mask = self.env.reset(seed)
        self.played = self.steps
        for name, value in obs.items():
            self.obs[name][self.steps] = torch.as_tensor(value)
        if mask is not None:
            if self.mask is None:
                self.mask = torch.ones((self.steps + 1, *mask.shape), dtype=torch.bool)
            self.mask[self.steps] = torch.as_tensor(mask)
        self.memory = self.agent.initial_memory(self.agent.num_envs)
        self.returns[:] = 0.0
        self.counters[:] = 0
        self.waiting = None

    def collect(self) -> tuple[Rollout, list[Episode]]:
        """Play ``steps`` steps of the policy from where the last call stopped; the rollout has axes (M, T, N)."""
        agent = self.agent
        noise = agent.draw_noise((self.steps, agent.num_envs))
        episodes = self.play(agent.behaviour(fused=agent.learner.compile), noise)
        return self._rollout(), episodes

    def play(self, act: Actor, noise: Tensor, meanwhile: Callable[[int], None] | None = None) -> list[Episode]:
        """Fill the buffers with steps of any policy; noise (T, M, N, ...), T <= ``steps``, is what it draws from.

        ``meanwhile(t)`` is called between the beginning and the end of every step t. If it raises, the step is ended
        first: the environments can then be reset or closed like any others.

        Verified:  tests/unit/test_rollout.py::test_what_fails_meanwhile_leaves_no_step_under_way,
                   tests/unit/test_rollout.py::test_fewer_steps_continue_where_they_stopped
        """
        agent, env, steps = self.agent, self.env, len(noise)
        for x in (*self.obs.values(), self.mask):
            if x is not None:
                x[0] = x[self.played]
        self.played = steps
        mask_rows = None if self.mask is None else self.mask.numpy()
        draws = noise.unbind(0)
        episodes: list[Episode] = []
        recurrent = self.memory is not None
        every = agent.sequence_length
        on_host = agent.device.type == "cpu"
        with torch.no_grad():
            for t in range(steps):
                self.step_rows[t] = self.counters
                start = None
                if recurrent and self.memories is not None and self.memory is not None:
                    if t % every == 0:
                        self.memories[t // every] = self.memory
                    start = self._members(self.episode_step)[t] == 0
                    start = start if on_host else start.to(agent.device)
                obs = {k: rows[t] for k, rows in self.obs_rows.items()}
                mask = None if self.mask is None else self._members(self.mask)[t]
                if not on_host:
                    obs = {k: x.to(agent.device, non_blocking=True) for k, x in obs.items()}
                    mask = None if mask is None else mask.to(agent.device)
                action, new_memory = act(obs, draws[t], mask, start, self.memory)
                raw = action.numpy() if on_host else action.cpu().numpy()
                raw = raw.reshape(self.action_rows[t].shape)
                self.action_rows[t] = raw
                if meanwhile is None:
                    result = env.step(agent.to_env(raw))
                else:
                    env.step_async(agent.to_env(raw))
                    try:
                        meanwhile(t)
                    except BaseException:
                        with suppress(Exception):  # what failed first is what should be heard of
                            env.step_wait()
                        raise
                    result = env.step_wait()
                for name, value in result.obs.items():
                    self.obs_arrays[name][t + 1] = value
                self.reward_rows[t] = result.reward
                self.terminated_rows[t] = result.terminated
                self.truncated_rows[t] = result.truncated
                self.valid_rows[t] = result.valid
                if mask_rows is not None:
                    mask_rows[t + 1] = result.action_mask
                if new_memory is not None and self.memory is not None:
                    counts = self._members(self.valid)[t].unsqueeze(-1).to(agent.device)
                    self.memory = torch.where(counts, new_memory, self.memory)
                self._account(result, episodes)
            self.step_rows[steps] = self.counters
        return episodes

    def rows(self) -> Rollout:
        """Return the rows just played, on the host, with axes (T, M N) and without a recurrent policy's memories."""
        t = self.played
        obs = {name: x[: t + 1] for name, x in self.obs.items()}
        mask = None if self.mask is None else self.mask[: t + 1]
        flags = (self.terminated[:t], self.truncated[:t], self.valid[:t], self.episode_step[: t + 1], mask)
        return Rollout(obs, self.action[:t], self.reward[:t], *flags, None)

    def info_means(self) -> dict[str, NDArray[np.float64]]:
        """Return the mean of every named info over the steps since the last call, (M,), NaN where none gave it."""
        means = np.full(self.info_sums.shape, np.nan)
        np.divide(self.info_sums, self.info_counts, out=means, where=self.info_counts > 0)
        self.info_sums[:] = 0.0
        self.info_counts[:] = 0.0
        return dict(zip(self.info_keys, means, strict=True))

    def _account(self, result: Any, episodes: list[Episode]) -> None:
        """Episode statistics and step counters; the row after an episode's end is its restart."""
        self.returns += result.reward
        self.counters += result.valid
        for k, key in enumerate(self.info_keys):
            values = result.infos[key].reshape(self.shape)
            self.info_sums[k] += np.nansum(values, axis=1)
            self.info_counts[k] += np.isfinite(values).sum(axis=1)
        if self.waiting is not None:
            self.returns[self.waiting] = 0.0
            self.counters[self.waiting] = 0
            self.waiting = None
        done = result.terminated | result.truncated
        if np.count_nonzero(done):
            self.waiting = done.copy()
            for i in np.flatnonzero(done):
                last = [float(result.infos[key][i]) for key in self.info_keys]
                infos = tuple(x if np.isfinite(x) else None for x in last)
                episodes.append(Episode(int(i) // self.shape[1], float(self.returns[i]), int(self.counters[i]), infos))

    def _members(self, x: Tensor) -> Tensor:
        """(T, M N, ...) -> (T, M, N, ...)."""
        return x.view(x.shape[0], *self.shape, *x.shape[2:])

    def _rollout(self) -> Rollout:
        def give(x: Tensor) -> Tensor:
            return self._members(x).transpose(0, 1).to(self.agent.device)

        return Rollout(
            obs={k: give(x) for k, x in self.obs.items()},
            action=give(self.action),
            reward=give(self.reward),
            terminated=give(self.terminated),
            truncated=give(self.truncated),
            valid=give(self.valid),
            episode_step=give(self.episode_step),
            action_mask=None if self.mask is None else give(self.mask),
            memory=None if self.memories is None else self.memories.transpose(0, 1),
        )
