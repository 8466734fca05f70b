"""Recording: policies that play and say how likely their actions were, and rows of environments cut into episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor

from steepest.agents.acting import Actor, act_once, first_member
from steepest.agents.agent import Agent, normalization
from steepest.distributions import Bernoulli, Categorical, Distribution, Factored, action_noise, floored_log_probs
from steepest.environments.spaces import ActionMap
from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Array, RawObs, RecordedEpisode, nested, parts
from steepest.experience.datasets.spaces import as_given
from steepest.experience.replay import ReplayBuffer
from steepest.experience.rollout import Collector, Environments, step_bytes
from steepest.files.space import require_space
from steepest.learner.trees import tree_map
from steepest.networks.inputs import PolicyInput, PolicyOutput
from steepest.types import ActionSpec, Obs, ObsSpec

ROWS = 128
"""Rows that are played at a time."""
COPIES = 3
"""Times that all steps are in memory at the end: as they were played, in one array, and as episodes."""


class Player(Protocol):
    """One policy in a number of environments, as ``record`` plays it."""

    num_envs: int
    members: int
    obs_spec: ObsSpec
    action_spec: ActionSpec
    memory_size: int
    sequence_length: int
    device: torch.device

    def initial_memory(self, num_envs: int) -> Tensor | None: ...
    def to_env(self, action: Array) -> Array: ...
    def draw(
        self, obs: Obs, noise: Tensor, mask: Tensor | None, start: Tensor | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...


class AgentPolicy:
    """An agent of one member, in any number of environments.

    Args:      deterministic: take the mode of the policy, which has no log-probability
    Verified:  tests/unit/test_recording.py::test_log_probabilities_are_those_of_the_policy
    """

    members = 1

    def __init__(self, agent: Agent, num_envs: int, *, deterministic: bool = False) -> None:
        self.agent = agent
        self.num_envs = num_envs
        self.deterministic = deterministic
        self.obs_spec, self.action_spec = agent.obs_spec, agent.action_spec
        self.memory_size, self.sequence_length = agent.memory_size, agent.sequence_length
        self.device = agent.device
        self.initial_memory, self.to_env = agent.initial_memory, agent.to_env
        needed = (k for k in agent.state if k == "params" or k.startswith(("buffers/", "obs_")))
        state = {k: agent.state[k][0].clone() for k in needed}
        self.statistics = normalization(state)
        self.module = agent.call.bind(state["params"], state)

    def draw(
        self, obs: Obs, noise: Tensor, mask: Tensor | None, start: Tensor | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return actions (N, ...) as the policy draws them, their log-probabilities (N,), and the new memory."""
        seen: list[Distribution] = []

        def forward(inputs: PolicyInput) -> PolicyOutput:
            output = self.module(inputs, self.statistics, False)
            seen.append(output.distribution)
            return output

        action, memory = act_once(forward, obs, None if self.deterministic else noise, mask, start, memory)
        if self.deterministic:
            return action, None, memory
        # A recurrent policy sees a step as a sequence of one.
        policy = seen[0] if memory is None else cast(Distribution, tree_map(first_member, seen[0]))
        return action, policy.log_prob(action), memory


class UniformPolicy:
    """Takes every action with the same probability; stands where an agent of one member does.

    Actions in a box are drawn in units of half their range, [-1, 1].

    Raises:    UsageError for a box without two finite bounds for every component
    Verified:  tests/unit/test_recording.py::test_the_random_policy_is_uniform
    """

    members = 1
    memory_size = sequence_length = 0
    device = torch.device("cpu")

    def __init__(self, obs_spec: ObsSpec, action_spec: ActionSpec, num_envs: int) -> None:
        if not np.isfinite([*action_spec.low, *action_spec.high]).all():
            raise UsageError(
                f"the actions go from {list(action_spec.low)} to {list(action_spec.high)}; a random policy needs "
                "finite bounds to be uniform between"
            )
        self.num_envs = num_envs
        self.obs_spec = obs_spec
        self.action_spec = action_spec
        self.to_env = ActionMap(action_spec, "clip")

    def initial_memory(self, num_envs: int) -> None:
        """Return no memory."""
        del num_envs

    def actor(self, *, deterministic: bool = False) -> Actor:
        """Return the policy as a function, see ``Agent.actor``; noise and mask alone count."""
        if deterministic:
            raise UsageError("the random policy has no most likely action; leave out deterministic")
        return lambda obs, noise, mask, start, memory: (self.uniform(cast(Tensor, noise), mask)[0], memory)

    def draw(
        self, obs: Obs, noise: Tensor, mask: Tensor | None, start: Tensor | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor, None]:
        """Return actions (N, ...) and their log-probabilities (N,); there is no memory."""
        del obs, start, memory
        return *self.uniform(noise, mask), None

    def uniform(self, noise: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return actions (...) and their log-probabilities, from noise of the kind that ``action_noise`` draws."""
        spec = self.action_spec
        if spec.kind == "box":
            # A standard normal variable through its own distribution function is uniform.
            action = torch.erf(noise / math.sqrt(2.0))
            return action, torch.full(action.shape[:-1], -spec.dimension * math.log(2.0))
        leading = noise.shape[: noise.ndim - (1 if spec.kind == "discrete" else 2)]
        masks = [None] * len(spec.sizes) if mask is None else mask.split(list(spec.sizes), dim=-1)
        choices = [
            F.pad(
                floored_log_probs(torch.zeros(*leading, size), 0.0, legal),
                (0, max(spec.sizes) - size),
                value=torch.finfo(torch.float32).min,
            )
            for size, legal in zip(spec.sizes, masks, strict=True)
        ]
        policy: Distribution
        if spec.kind == "discrete":
            policy = Categorical(choices[0])
        else:
            policy = (Factored if spec.kind == "multi_discrete" else Bernoulli)(torch.stack(choices, dim=-2))
        action = policy.sample(noise)
        return action, policy.log_prob(action)


class Steps(NamedTuple):
    """The steps of one environment: the rows in which something was decided, and where episodes end."""

    taken: Array  # (K,) rows
    terminated: Array  # (K,) bool
    truncated: Array  # (K,) bool; always where the recording stops

    @property
    def ends(self) -> Array:
        """The positions, among the K, of the last step of every episode, (E,)."""
        return np.flatnonzero(self.terminated | self.truncated)


def steps_of(terminated: Array, truncated: Array, valid: Array, limit: int | None = None) -> Steps:
    """Return the steps in the rows (R,) of one environment, at most ``limit``.

    A row in which nothing was decided may be marked as an end, where all environments were restarted: that truncates
    the episode that was going on.

    Verified:  tests/unit/test_recording.py::test_steps_end_where_environments_were_restarted
    """
    taken = np.flatnonzero(valid)
    ended = terminated[taken] | truncated[taken]
    restarts = np.flatnonzero((terminated | truncated) & ~valid)
    before = np.searchsorted(taken, restarts) - 1
    cut = np.zeros(len(taken), np.bool_)
    cut[before[before >= 0]] = True
    taken, ended, cut = taken[:limit], ended[:limit], cut[:limit]
    cut[-1:] = True
    return Steps(taken, terminated[taken], (truncated[taken] & ~terminated[taken]) | (cut & ~ended))


def cut(
    steps: Steps,
    obs: RawObs,
    final: RawObs,
    action: Array,
    reward: Array,
    *,
    log_prob: Array | None = None,
    drawn: Array | None = None,
) -> Iterator[RecordedEpisode]:
    """Yield the episodes of K steps in order.

    Args:      obs (K, ...): at every step; final (E, ...): what followed the last step of every episode; the others (K,
               ...)
    """
    first = 0
    for number, last in enumerate(steps.ends.tolist()):
        taken = slice(first, last + 1)
        names = [name for name, _ in parts(obs)]
        joined = {
            name: np.concatenate([x[taken], y[number : number + 1]])
            for name, (_, x), (_, y) in zip(names, parts(obs), parts(final), strict=True)
        }
        yield RecordedEpisode(
            nested(joined) if isinstance(obs, Mapping) else next(iter(joined.values())),
            action[taken],
            reward[taken],
            bool(steps.terminated[last]),
            bool(steps.truncated[last]),
            None if log_prob is None else log_prob[taken],
            None if drawn is None else drawn[taken],
        )
        first = last + 1


def record(
    env: Environments,
    space: Space[Any],
    player: Player,
    steps: int,
    *,
    seed: int,
    on_rows: Callable[[int, list[float]], None] = lambda _, __: None,
) -> list[RecordedEpisode]:
    """Play ``steps`` steps, spread evenly over the environments, and return the episodes of one after the other.

    The last episode of every environment is truncated where its share of the steps is taken.

    Raises:    UsageError where so many steps do not fit into memory
    Args:      space: of observations, see ``spaces.recorded_spaces``; player: with as many environments; on_rows:
               called now and then with the steps so far, and the returns of the episodes that ended since
    Verified:  tests/unit/test_recording.py::test_what_is_recorded_is_what_was_played,
               tests/integration/test_datasets.py::test_the_same_seed_gives_the_same_bits
    """
    n = env.num_envs
    require_space(
        COPIES * steps * step_bytes(player.obs_spec, player.action_spec),
        f"a recording of {steps:,} steps",
        "record fewer steps, or several datasets",
    )
    rows = ROWS if not player.sequence_length else math.ceil(ROWS / player.sequence_length) * player.sequence_length
    quota = np.full(n, steps // n)
    quota[: steps % n] += 1
    log_probs: list[Tensor] = []

    def act(
        obs: Obs, noise: Tensor | None, mask: Tensor | None, start: Tensor | None, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        given = tree_map(first_member, (obs, noise, mask, start, memory))
        action, log_prob, memory = player.draw(*given)
        if log_prob is not None:
            log_probs.append(log_prob)
        return action.unsqueeze(0), None if memory is None else memory.unsqueeze(0)

    collector = Collector(env, cast(Any, player), rows)
    collector.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    names = ("action", "reward", "terminated", "truncated", "valid")
    played: dict[str, list[Array]] = {}

    def keep(name: str, rows: Tensor) -> None:
        played.setdefault(name, []).append(rows.clone().numpy())  # the collector uses its buffers again

    taken = np.zeros(n, np.int64)
    while (taken < quota).any():
        noise = action_noise(player.action_spec, (rows, 1, n), generator).to(player.device)
        finished = collector.play(act, noise)
        found = collector.rows()
        for name in names:
            keep(name, getattr(found, name))
        for name, array in found.obs.items():
            keep(f"obs/{name}", array[:-1])
        if log_probs:
            keep("log_prob", torch.stack(log_probs).cpu())
            log_probs.clear()
        taken += played["valid"][-1].sum(0)
        on_rows(int(np.minimum(taken, quota).sum()), [episode.episode_return for episode in finished])
    for name, array in collector.rows().obs.items():
        keep(f"obs/{name}", array[-1:])
    whole = {name: np.concatenate(played.pop(name)) for name in list(played)}
    return [e for i in range(n) for e in _column(whole, i, int(quota[i]), player, space)]


def _column(rows: dict[str, Array], i: int, limit: int, player: Player, space: Space[Any]) -> Iterator[RecordedEpisode]:
    """Yield the episodes of one environment, of rows (R, N, ...) and observations (R+1, N, ...)."""
    steps = steps_of(rows["terminated"][:, i], rows["truncated"][:, i], rows["valid"][:, i], limit)
    taken = steps.taken
    drawn = rows["action"][taken, i]

    def seen(at: Array) -> RawObs:
        return as_given(space, {f.name: rows[f"obs/{f.name}"][at, i] for f in player.obs_spec.fields})

    yield from cut(
        steps,
        seen(taken),
        seen(taken[steps.ends] + 1),
        player.to_env(drawn),
        rows["reward"][taken, i],
        log_prob=rows["log_prob"][taken, i] if "log_prob" in rows else None,
        drawn=drawn,
    )


def replayed(buffer: ReplayBuffer, space: Space[Any], agent: Agent, member: int) -> Iterator[RecordedEpisode]:
    """Yield the episodes in a replay buffer, environment by environment, in the order in which they were played.

    Of the oldest episodes, what the buffer no longer holds is missing.

    Verified:  tests/integration/test_datasets.py::test_a_replay_buffer_becomes_a_dataset
    """
    numbers = np.arange(buffer.first, buffer.written)
    for i in range(member * buffer.num_envs, (member + 1) * buffer.num_envs):
        here = (numbers % buffer.length) * buffer.envs + i
        flags = buffer.flat
        steps = steps_of(flags["terminated"][here], flags["truncated"][here], flags["valid"][here])
        if not len(steps.taken):
            continue

        def seen(rows: Array, what: str, env: int = i) -> dict[str, Array]:
            found = buffer.transitions(rows, np.full_like(rows, env), gamma=1.0)
            return {k: x.numpy() for k, x in found.items() if k in ("action", "reward")} | {
                k: x.numpy() for k, x in found.items() if k.startswith(f"{what}/")
            }

        taken = seen(numbers[steps.taken], "obs")
        after = seen(numbers[steps.taken[steps.ends]], "next_obs")
        names = [f.name for f in agent.obs_spec.fields]
        yield from cut(
            steps,
            as_given(space, {name: taken[f"obs/{name}"] for name in names}),
            as_given(space, {name: after[f"next_obs/{name}"] for name in names}),
            agent.to_env(taken["action"]),
            taken["reward"],
            drawn=taken["action"],
        )
