"""The reward of a run from what a user gives: the file of a labelled project, a project, or who is asked live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch

from steepest.agents.agent import Agent
from steepest.agents.replay_updates import ReplayAgent
from steepest.environments.batch import EnvBatch
from steepest.errors import UsageError
from steepest.fields import checked_options
from steepest.preferences.answers import comparisons
from steepest.preferences.clips import ClipRewards, read_clips
from steepest.preferences.film import Film
from steepest.preferences.learned import LearnedReward, LiveLabels
from steepest.preferences.people import LivePage, People
from steepest.preferences.selection import reserved_groups
from steepest.preferences.store import Project
from steepest.seeding import stream_seed


def reward_of(project: Any, rewards: ClipRewards, env: str | None, note: Callable[[str], None]) -> LearnedReward:
    """Return the reward that the labels of a project teach, told with its accuracy on episodes kept aside.

    It is learned twice: without a fifth of the episodes, to say how good it is on those, and then from everything.

    Args:      project: ``store.Project``, or anything else with its ``clips()``, ``items()`` and ``judgements()``;
               rewards not yet fitted; env: the id that the clips should be of, None: unknown
    Raises:    UsageError where the clips are of another environment, or nothing was said of them
    Verified:  tests/integration/test_learned_reward_runs.py::test_a_finished_project_is_learned_from
    """
    clips = list(project.clips())
    of_clips = {item.id for item in project.items() if item.kind == "clip"}
    judgements = [j for j in project.judgements() if j.item in of_clips and not j.repeat]
    others = sorted({clip.env for clip in clips} - {env})
    if env is not None and others:
        raise UsageError(f"the project's clips are of {', '.join(others)}, but the agent is to learn in {env}")
    start = {name: x.clone() for name, x in rewards.tensors().items()}
    episodes = {clip.id: (clip.source, clip.episode) for clip in clips}
    numbers = {episode: i for i, episode in enumerate(sorted(set(episodes.values())))}
    group = torch.tensor([numbers[episodes[clip.id]] for clip in clips], dtype=torch.int64)
    aside = {clip.id for clip, kept in zip(clips, reserved_groups(group, 0.2, 0).tolist(), strict=True) if kept}
    known = [j for j in judgements if not aside & set(j.ranking)]
    unseen = [j for j in judgements if j.ranking and aside >= set(j.ranking) and j.kind != "tie"]
    measured = ""
    if any(j.kind != "skip" for j in known) and unseen:
        rewards.fit(clips, known)
        data = read_clips(clips, rewards.obs_spec, rewards.action_spec)
        found = rewards.accuracy(data, comparisons(unseen, [clip.id for clip in clips]))
        measured = f"; {found:.0%} of {len(unseen)} preferences in episodes kept aside are foretold"
        rewards.load_tensors(start)
    rewards.fit(clips, judgements)
    said = sum(j.kind != "skip" for j in judgements)
    note(f"the reward is learned from {said} judgements of {len(clips)} clips{measured}")
    return LearnedReward(rewards)


def learned_reward(
    given: Any,
    batch: EnvBatch,
    *,
    env: str | None,
    seed: int,
    device: torch.device | str,
    note: Callable[[str], None] | None,
    rollout_steps: int = 1,
    source: str = "",
) -> LearnedReward:
    """Return the reward that a user asks for: from a project, or from labels asked for live.

    Args:      given: the file of a project, a project, or ``LiveLabels``; batch that is played in; env: its id, where
               it has one; note: takes what a user should know; None: a run resumes, so that nothing is learned here and
               its checkpoint says all; rollout_steps, source: where people are asked, the rows of a rollout, and the
               run as their project names it
    Raises:    UsageError where a project has nothing to learn from, or clips of another environment, or people would
               have no pictures to look at; RunError where their page cannot be served
    Verified:  tests/integration/test_learned_reward_runs.py::test_a_finished_project_is_learned_from,
               tests/integration/test_live_labels.py::test_what_people_cannot_see_is_refused_before_anything_is_trained
    """
    live = given if isinstance(given, LiveLabels) else None
    own = stream_seed(seed, "reward") % 2**31
    config = None if live is None else live.reward
    rewards = ClipRewards(batch.obs_spec, batch.action_spec, config, seed=own, device=device)
    if live is not None and isinstance(live.labeller, People):
        film = Film(batch, live.clip_steps, rollout_steps)
        page = LivePage(live.labeller, env=env or batch.name, source=source, fps=film.fps, labels=live.labels)
        return LearnedReward(rewards, live, seed=own, page=page, film=film)
    if live is not None or note is None:
        return LearnedReward(rewards, live, seed=own)
    if not isinstance(given, (str, Path)):
        return reward_of(given, rewards, env, note)
    with Project.open(given) as project:
        return reward_of(project, rewards, env, note)


def asks_people(given: Any) -> bool:
    """Return whether a reward asks people while an agent trains, who have to see what it does."""
    return isinstance(given, LiveLabels) and isinstance(given.labeller, People)


def as_json(given: LiveLabels) -> dict[str, Any]:
    """Return how people are asked, as a run's folder holds it; ``from_json`` reads it.

    Verified:  tests/unit/test_live_labels.py::test_how_people_are_asked_is_kept
    """
    assert isinstance(given.labeller, People)
    people = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(given.labeller).items()}
    people["project"] = str(Path(given.labeller.project).expanduser().resolve())  # a resumed run may start elsewhere
    others = {f.name: getattr(given, f.name) for f in fields(given) if f.name != "labeller"}
    return {"people": people, **others, "reward": asdict(given.reward)}


def from_json(saved: Mapping[str, Any]) -> LiveLabels:
    """Return how people are asked, from what ``as_json`` gave.

    Raises:    UsageError where it is something else
    """
    options = dict(saved)
    people = options.pop("people", None)
    if not isinstance(people, Mapping) or "labeller" in options:
        raise UsageError("reward names no people who are asked")
    named = {str(k): v for k, v in cast(Mapping[Any, Any], people).items()}
    for name in ("certificate", "key"):
        if isinstance(named.get(name), str):
            named[name] = Path(named[name])
    if "project" not in named:
        raise UsageError("reward names no project")
    return LiveLabels(labeller=People(**checked_options(People, named)), **checked_options(LiveLabels, options))


def check_reward(agent_class: type[Agent], data: Any, reward: Any, seeds: int) -> None:
    """Raise UsageError unless a reward from labels can take the place of the environment's.

    Verified:  tests/integration/test_learned_reward_runs.py::test_what_cannot_learn_from_labels_is_refused
    """
    if reward is None:
        return
    if data is not None:
        raise UsageError("reward and data are both given: a reward from labels is of what an agent plays, not of data")
    if issubclass(agent_class, ReplayAgent):
        raise UsageError(
            f"{agent_class.algorithm} learns from a replay buffer, whose rewards would be those of labels long ago; a "
            "reward from labels needs an on-policy algorithm, such as ppo"
        )
    if isinstance(reward, LiveLabels) and seeds > 1:
        raise UsageError(f"labels are asked for about one agent's clips, but seeds is {seeds}; train one seed")
