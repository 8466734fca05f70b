"""Clips of what an agent does, for people to compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from steepest.agents.agent import Agent
from steepest.api.agents import PathLike, Which, check_fit, saved_file
from steepest.environments import EnvBatch
from steepest.errors import RunError, UsageError, require
from steepest.experience.datasets.recording import UniformPolicy
from steepest.files.video import encoded
from steepest.preferences.records import Clip
from steepest.runs.evaluate import evaluate_members, make_evaluation_env
from steepest.runs.store.agents import read_agent
from steepest.seeding import stream_seed
from steepest.types import BARE_OBS, ObsSpec

Array = NDArray[Any]

RANDOM = "random"
"""In the place of an agent: the policy that takes every action with the same probability."""

PER_EPISODE = 4
"""Clips of one episode, at most: more of the same would be compared with itself."""

SHORT_EPISODES = 20
"""So many episodes in a row without a clip are reason to give up."""


class Stretch(NamedTuple):
    """T steps of an episode: T + 1 observations and pictures, T actions."""

    start: int
    obs: list[dict[str, Array]]
    actions: list[Array]
    frames: list[NDArray[np.uint8]]


class Watched:
    """A batch of one environment that keeps a random sample of the stretches of its first episode.

    Verified:  tests/integration/test_sampling_preferences.py::test_a_clip_is_what_was_played
    """

    num_envs = 1

    def __init__(self, batch: EnvBatch, steps: int, rng: np.random.Generator) -> None:
        self.batch = batch
        self.steps = steps
        self.rng = rng
        self.obs_spec, self.action_spec = batch.obs_spec, batch.action_spec
        self.kept: list[Stretch] = []
        self.seen = 0
        self.step_count = 0
        self.current = Stretch(0, [], [], [])

    def reset(self, seed: int | None) -> tuple[dict[str, Array], Any]:
        """Reset the environment, and begin the first stretch at a random place before long."""
        obs, mask = self.batch.reset(seed)
        self._begin(int(self.rng.integers(0, self.steps)), obs)
        return obs, mask

    def step(self, action: Array) -> Any:
        """Step the environment, and keep what happened."""
        result = self.batch.step(action)
        self.step_count += 1
        start, seen, actions, frames = self.current
        if self.step_count == start:
            self._begin(start, result.obs)
        elif self.step_count > start:
            seen.append(_row(result.obs))
            actions.append(np.array(action[0]))
            frames.append(self.batch.render())
            if len(actions) == self.steps:
                self._keep()
                self._begin(self.step_count, result.obs)
        return result

    def step_async(self, action: Array) -> None:
        raise NotImplementedError

    def step_wait(self) -> Any:
        raise NotImplementedError

    def _begin(self, start: int, obs: dict[str, Array]) -> None:
        here = start == self.step_count
        self.current = Stretch(start, [_row(obs)] if here else [], [], [self.batch.render()] if here else [])

    def _keep(self) -> None:
        """Each stretch so far is kept with the same probability, whatever the length of the episode."""
        self.seen += 1
        if len(self.kept) < PER_EPISODE:
            self.kept.append(self.current)
        elif (place := int(self.rng.integers(0, self.seen))) < PER_EPISODE:
            self.kept[place] = self.current


def play_clips(
    source: Agent | PathLike | Literal["random"],
    count: int,
    *,
    env: Any = None,
    seconds: float = 1.5,
    seed: int = 0,
    deterministic: bool = False,
    which: Which = "latest",
    member: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    on_clip: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[Clip, bytes]]:
    """Yield clips of equal length of an agent's episodes, each with the MP4 file that shows it.

    Args:      source: an agent, what ``load`` takes, or "random"; env: by default the one that it was trained on;
               seconds: of a clip, as it plays; the others: see ``collect``
    Raises:    UsageError where the environment is unknown or renders no pictures; RunError where episodes are shorter
               than a clip
    Verified:  tests/integration/test_sampling_preferences.py::test_clips_of_an_agent_are_sampled,
               tests/integration/test_sampling_preferences.py::test_episodes_shorter_than_a_clip_are_explained
    """
    require(count >= 1, "clips", count, "at least 1")
    require(0 < seconds <= 60, "seconds", seconds, "a positive number up to 60")
    agent, name = _player(source, which, member)
    where: dict[str, Any] = {} if agent is None else agent.trained_on
    place = where.get("env") if env is None else env
    if place is None:
        raise UsageError(
            "in which environment? Give env: the random policy, and an agent whose environment has no id, need it"
        )
    same = env is None or env == where.get("env")
    batch = make_evaluation_env(
        place,
        cast(Any, agent if agent is not None and agent.members == 1 else _One()),
        1,
        env_kwargs=(where.get("env_kwargs") if same else None) if env_kwargs is None else env_kwargs,
        max_episode_steps=(where.get("max_episode_steps") if same else None)
        if max_episode_steps is None
        else max_episode_steps,
        atari=where.get("atari"),
        render_mode="rgb_array",
    )
    with closing(batch):
        if agent is not None:
            check_fit(agent, batch)
        player = agent or UniformPolicy(batch.obs_spec, batch.action_spec, 1)
        fps = batch.render_fps
        steps = max(1, round(seconds * fps))
        how = {"seed": seed, "deterministic": deterministic, "seconds": seconds}
        found = 0
        last_with_one = -1
        for episode in itertools.count():
            rng = np.random.default_rng(stream_seed(seed, f"clips of episode {episode}"))
            watched = Watched(batch, steps, rng)
            evaluate_members(
                cast(Any, player), cast(Any, watched), 1, seed=stream_seed(seed, f"episode {episode}") % 2**31,
                deterministic=deterministic,
            )  # fmt: skip
            for part in sorted(watched.kept):
                last_with_one = episode
                clip = Clip(
                    batch.name, name, episode, _observations(batch.obs_spec, part.obs), np.stack(part.actions), fps,
                    part.start, how,
                )  # fmt: skip
                yield clip, encoded(part.frames, fps)
                found += 1
                on_clip(found)
                if found == count:
                    return
            if episode - last_with_one >= SHORT_EPISODES:
                raise RunError(
                    f"{SHORT_EPISODES} episodes of {name} in {batch.name} were over before a clip of {steps} steps "
                    f"({seconds:g} s); ask for shorter ones (seconds)"
                )


class _One:
    """All that is asked of an agent when its environments are made."""

    num_envs = members = 1


def _player(source: Agent | PathLike, which: Which, member: int | None) -> tuple[Agent | None, str]:
    """Return the agent of one member that plays, None for the random policy, and a name for it."""
    if isinstance(source, str) and source == RANDOM:
        return None, RANDOM
    path = None if isinstance(source, Agent) else saved_file(source, which)
    agent = source if isinstance(source, Agent) else read_agent(cast(Path, path))
    name = f"an agent of {agent.algorithm}" if path is None else str(path)
    if agent.members == 1:
        require(member in (None, 0), "member", member, "0: there is one seed")
        return agent, name
    if member is None or not 0 <= member < agent.members:
        raise UsageError(f"member is {member}; {name} holds {agent.members} seeds, counted from 0")
    return agent.member(member), f"{name}, member {member}"


def _row(obs: dict[str, Array]) -> dict[str, Array]:
    return {name: np.array(x[0]) for name, x in obs.items()}


def _observations(spec: ObsSpec, rows: list[dict[str, Array]]) -> Array | dict[str, Array]:
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return stacked if spec.is_dict else stacked[BARE_OBS]
