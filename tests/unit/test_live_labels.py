"""How people are asked while an agent trains: what a run keeps of it, in which rounds, and how answers add up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from helpers_preferences import clip, say, take
from steepest.errors import UsageError
from steepest.preferences.clips import RewardConfig
from steepest.preferences.learned import LiveLabels
from steepest.preferences.people import People, _answer
from steepest.preferences.records import Settings
from steepest.preferences.rewards import as_json, asks_people, from_json
from steepest.preferences.store import Project


def test_how_people_are_asked_is_kept(tmp_path: Path) -> None:
    people = People(
        project=tmp_path / "p.db", host="localhost", port=9, labellers=("ana",), certificate=Path("c"), key=Path("k")
    )
    given = LiveLabels(labeller=people, labels=12, clip_steps=5, reward=RewardConfig(hidden_sizes=(8, 4)))
    saved = json.loads(json.dumps(as_json(given)))
    found = from_json(saved)
    assert isinstance(found.labeller, People)
    assert found.labeller.project == str(tmp_path / "p.db")
    assert (found.labeller.labellers, found.labeller.key) == (("ana",), Path("k"))
    assert (found.labels, found.reward) == (12, given.reward)
    assert as_json(found) == as_json(given)
    assert asks_people(found)
    assert not asks_people(LiveLabels(labeller=lambda pairs, asked: []))
    assert not asks_people("p.db")
    for wrong in ({}, {"people": []}, {"people": {}}, {**saved, "labels": "many"}, {**saved, "people": {"host": 3}}):
        with pytest.raises(UsageError):
            from_json(wrong)


def test_people_are_called_for_rounds(tmp_path: Path) -> None:
    """Ten labels at a time after the first ones, and never more than the first ones; a function is asked at once."""
    people = People(project=tmp_path / "p.db")

    def rounds(live: LiveLabels) -> tuple[int, list[int]]:
        due = [live.due(i / 5000) for i in range(5001)]
        return due[0], [b - a for a, b in itertools.pairwise(due) if b > a]

    for options, first, together in (
        ({"labels": 700}, 175, 10),
        ({"labels": 12}, 3, 3),
        ({"labels": 3}, 1, 1),
        ({"labels": 700, "at_once": 4}, 175, 4),
    ):
        begins, later = rounds(LiveLabels(labeller=people, **options))
        assert begins == first
        assert set(later[:-1]) == {together}
        assert 1 <= later[-1] <= together  # what is left over
        assert begins + sum(later) == options["labels"]
    assert set(rounds(LiveLabels(labeller=lambda pairs, asked: [], labels=700))[1]) == {1}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("prefer", 0)], "first"),
        ([("prefer", 1)], "second"),
        ([("tie", 0)], "tie"),
        ([("skip", 0)], "skip"),
        ([("prefer", 0), ("prefer", 1)], "tie"),
        ([("prefer", 1), ("tie", 0)], "second"),
        ([("skip", 0), ("prefer", 0)], "first"),
    ],
)
def test_several_people_answer_together(kinds: list[tuple[str, int]], expected: str, tmp_path: Path) -> None:
    with Project.create(tmp_path / "p.db") as project:
        project.change_settings(Settings(labels_per_item=len(kinds), repeat_share=0.0))
        pair = project.add_clip(clip(0), b""), project.add_clip(clip(1), b"")
        project.add_items([pair], kind="clip")
        for number, (kind, better) in enumerate(kinds):
            asked = take(project, f"labeller {number}", seed=number)
            say(project, asked, number, kind=kind, best=asked.shown.index(pair[better]))
        assert _answer(project.judgements(), pair) == expected


def test_items_are_closed_and_opened_by_an_undo(tmp_path: Path) -> None:
    from steepest.preferences.labelling import undo

    with Project.create(tmp_path / "p.db") as project:
        ids = [project.add_clip(clip(i), b"") for i in range(3)]
        items = project.add_items(itertools.pairwise(ids), kind="clip")
        assert project.item_of((ids[2], ids[1]), kind="clip") == items[1]
        with pytest.raises(UsageError, match="no item compares"):
            project.item_of((ids[0], ids[2]), kind="clip")
        assert project.open_items([*items, 99]) == set(items)
        say(project, take(project), 1, kind="skip")
        project.close_items(items[:1])
        assert project.open_items(items) == {items[1]}
        assert [j.item for j in project.judgements(items[:1])] == items[:1]
        assert project.judgements(items[1:]) == []
        undo(project, "ana", uuid="6f1c7a52-0d4b-4a53-9a57-0f5f0c8a2b11", now=2e9)
        assert project.open_items(items) == set(items)
        assert project.find_clip(clip(1)) == ids[1]
        assert project.find_clip(clip(7)) is None
