"""Small preference projects."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from steepest.preferences.labelling import judge, next_assignment
from steepest.preferences.records import Assignment, Clip, Settings
from steepest.preferences.store import Project

NOW = 1_800_000_000.0


def new_uuid(number: int) -> str:
    return str(uuid.UUID(int=number))


def text_project(path: Path, *, prompts: int = 3, responses: int = 2, ask: str = "pairs", **settings: Any) -> Project:
    """A project of short texts; repeats are off unless asked for, so that what comes next is known."""
    project = Project.create(path)
    project.change_settings(Settings(**{"repeat_share": 0.0, **settings}))
    for number in range(prompts):
        prompt = project.add_prompt(f"Question {number}?")
        texts = [f"Answer {letter} to {number}." for letter in "abcdefghi"[:responses]]
        ids = project.add_responses(prompt, texts, source="model", settings=[{"draw": i} for i in range(responses)])
        groups = [ids] if ask == "ranking" else [[a, b] for i, a in enumerate(ids) for b in ids[i + 1 :]]
        project.add_items(groups, kind="text")
    return project


def clip(episode: int = 0, *, steps: int = 4, start: int = 0, **fields: Any) -> Clip:
    rng = np.random.default_rng(episode)
    given: dict[str, Any] = {
        "env": "CartPole-v1",
        "source": "runs/one",
        "episode": episode,
        "observations": rng.normal(size=(steps + 1, 3)).astype(np.float32),
        "actions": rng.integers(0, 2, steps),
        "fps": 20.0,
        "start": start,
    }
    return Clip(**{**given, **fields})


def take(project: Project, labeller: str = "ana", *, now: float = NOW, seed: int = 0) -> Assignment:
    found = next_assignment(project, labeller, now, random.Random(seed))
    assert found is not None
    return found


def say(
    project: Project, assignment: Assignment, number: int, *, best: int = 0, kind: Any = "prefer", now: float = NOW
) -> bool:
    """Judge an assignment: the one at place ``best`` on the page is better."""
    shown = assignment.shown
    ranking = (shown[best], *(x for x in shown if x != shown[best]))
    return judge(
        project,
        assignment.labeller,
        uuid=new_uuid(number),
        assignment=assignment.id,
        kind=kind,
        ranking=() if kind == "skip" else ranking,
        began=now,
        ended=now + 2.0,
        now=now + 2.0,
    )
