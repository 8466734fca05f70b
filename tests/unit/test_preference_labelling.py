"""Who is asked what, and that every answer counts once."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers_preferences import NOW, clip, new_uuid, say, take, text_project
from steepest.errors import UsageError
from steepest.preferences.labelling import REPEAT_AFTER, Conflict, judge, next_assignment, undo
from steepest.preferences.measures import labeller_measures, model_measures
from steepest.preferences.progress import described, summarised
from steepest.preferences.records import Judgement, Settings
from steepest.preferences.store import LABELS_OF_ITEM, Project


def derived(project: Project) -> list[tuple[Any, ...]]:
    """What ``assignment.judged`` and ``item.open`` should be, from the judgements alone, where they differ from it."""
    last = {j.uuid: j for j in project.history()}
    assert len(last) == len(project.history())
    wrong = project.rows(
        "SELECT a.id FROM assignment a WHERE a.judged IS NOT (SELECT nullif(j.kind, 'retract') FROM judgement j "
        "WHERE j.assignment = a.id ORDER BY j.id DESC LIMIT 1)"
    )
    wanted = project.settings.labels_per_item
    return wrong + project.rows(f"SELECT id FROM item WHERE open <> (({LABELS_OF_ITEM}) < ?)", wanted)


def test_items_go_to_as_many_labellers_as_wanted(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=4, labels_per_item=2) as project:
        seen: Counter[int] = Counter()
        number = 0
        for name in ("ana", "ben", "eva"):
            while (found := next_assignment(project, name, NOW, random.Random(0))) is not None:
                number += 1
                seen[found.item] += 1
                say(project, found, number)
        assert dict(seen) == dict.fromkeys(range(1, 5), 2)
        assert {j.labeller for j in project.judgements()} == {"ana", "ben"}
        project.change_settings(Settings(labels_per_item=3, repeat_share=0.0))
        assert take(project, "eva").item == 1  # the items are open again
        assert derived(project) == []
        project.change_settings(Settings(labels_per_item=1, repeat_share=0.0))
        assert next_assignment(project, "uma", NOW, random.Random(0)) is None


def test_what_two_hold_is_not_given_to_a_third(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=2) as project:
        assert (take(project, "ana").item, take(project, "ben").item) == (1, 2)
        assert next_assignment(project, "eva", NOW, random.Random(0)) is None


def test_a_lease_ends(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=1, lease_seconds=60.0) as project:
        first = take(project, "ana")
        assert take(project, "ana", now=NOW + 59) == first  # which renews it
        assert next_assignment(project, "ben", NOW + 118, random.Random(0)) is None
        assert take(project, "ben", now=NOW + 120).item == first.item
        assert next_assignment(project, "ana", NOW + 121, random.Random(0)) is None  # ben has it now
        say(project, first, 1, now=NOW + 130)  # it was seen after all: what a person did is kept
        assert [j.labeller for j in project.judgements()] == ["ana"]
        say(project, take(project, "ben", now=NOW + 131), 2)
        assert [j.labeller for j in project.judgements()] == ["ana", "ben"]


def test_a_reload_shows_the_same_sides(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=20) as project:
        first = take(project, seed=1)
        for seed in range(20):
            assert take(project, seed=seed) == first


def test_sides_are_random_and_recorded(tmp_path: Path) -> None:
    rng = random.Random(0)
    with text_project(tmp_path / "p.db", prompts=200) as project:
        for number in range(200):
            found = next_assignment(project, "ana", NOW, rng)
            assert found is not None
            say(project, found, number)
        judgements = project.judgements()
        assert all(j.ranking[0] == j.shown[0] for j in judgements)  # the left one was chosen throughout
        swapped = sum(j.shown[0] > j.shown[1] for j in judgements)
        assert 70 <= swapped <= 130  # 4 deviations of a fair coin are 28


def test_higher_priorities_come_first(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=1, responses=3) as project:
        assert take(project, "ana").item == 1
        ids = [project.add_clip(clip(i), b"") for i in range(3)]
        asked = project.add_items([ids[:2], ids[1:], ids[::2]], kind="clip", priorities=[0.5, 3.0, 1.0])
        order: list[int] = []
        for number in range(3):
            found = take(project, "ben")
            order.append(found.item)
            say(project, found, number)
        assert order == [asked[1], asked[2], asked[0]]


def test_repeats_have_their_sides_swapped(tmp_path: Path) -> None:
    rng = random.Random(0)
    with text_project(tmp_path / "p.db", prompts=60, repeat_share=0.3) as project:
        number = 0
        while (found := next_assignment(project, "ana", NOW, rng)) is not None:
            number += 1
            say(project, found, number)
        judgements = project.judgements()
        first = {j.item: (place, j) for place, j in enumerate(judgements) if not j.repeat}
        repeats = [(place, j) for place, j in enumerate(judgements) if j.repeat]
        assert len(first) == 60
        assert 8 <= len(repeats) <= 40
        for place, j in repeats:
            before, original = first[j.item]
            assert j.shown == original.shown[::-1]
            assert place - before > REPEAT_AFTER
        assert len({j.item for _, j in repeats}) == len(repeats)  # once each
        assert derived(project) == []
        assert project.rows("SELECT count(*) FROM item WHERE open") == [(0,)]  # a repeat is no second label


def test_nothing_is_repeated_to_who_has_judged_all(tmp_path: Path) -> None:
    """A page that waits for what comes asks again and again, and would get all that was judged once more."""
    with text_project(tmp_path / "p.db", prompts=30) as project:
        for number in range(30):
            say(project, take(project), number)
        project.change_settings(Settings(repeat_share=1.0))
        assert next_assignment(project, "ana", NOW, random.Random(0)) is None


def test_a_skip_leaves_the_item_to_others(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=1) as project:
        say(project, take(project, "ana"), 1, kind="skip")
        assert next_assignment(project, "ana", NOW, random.Random(0)) is None
        say(project, take(project, "ben"), 2, kind="tie")
        assert [(j.kind, len(j.ranking)) for j in project.judgements()] == [("skip", 0), ("tie", 2)]
        assert derived(project) == []


# Counting once


def test_a_retry_counts_once(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project:
        found = take(project)
        assert say(project, found, 1) is True
        for _ in range(3):
            assert say(project, found, 1) is False
        assert len(project.history()) == 1
        with pytest.raises(Conflict, match="another judgement"):
            say(project, found, 1, best=1)
        with pytest.raises(Conflict, match="judged already"):
            say(project, found, 2)
        with pytest.raises(Conflict, match="another judgement"):
            say(project, take(project), 1)  # the uuid of another pair
    with Project.open(tmp_path / "p.db") as project:
        assert say(project, found, 1) is False  # after a restart, too
        assert len(project.history()) == 1


def test_undo_retracts_and_asks_again(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project:
        first = take(project)
        say(project, first, 1)
        second = take(project)
        say(project, second, 2, best=1)
        third = take(project)
        assert undo(project, "ana", uuid=new_uuid(3), now=NOW + 5) == second
        assert take(project, now=NOW + 6) == second  # a reload shows it, too
        assert undo(project, "ana", uuid=new_uuid(4), now=NOW + 7) == first
        assert project.judgements() == []
        assert undo(project, "ana", uuid=new_uuid(5), now=NOW + 8) is None
        assert [j.kind for j in project.history()] == ["prefer", "prefer", "retract", "retract"]
        assert derived(project) == []
        say(project, first, 6, best=1, now=NOW + 9)
        assert [(j.uuid, j.item) for j in project.judgements()] == [(new_uuid(6), first.item)]
        assert take(project, now=NOW + 10) == second
        say(project, second, 7)
        assert take(project) == third
        assert undo(project, "ben", uuid=new_uuid(8), now=NOW) is None  # what others said is theirs
        assert len(project.judgements()) == 2
        assert derived(project) == []


def test_a_retried_undo_takes_back_one_judgement(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db") as project:
        for number in (1, 2):
            say(project, take(project), number)
        taken = undo(project, "ana", uuid=new_uuid(3), now=NOW)
        for _ in range(3):
            assert undo(project, "ana", uuid=new_uuid(3), now=NOW) == taken
        assert len(project.judgements()) == 1
        with pytest.raises(Conflict):
            undo(project, "ana", uuid=new_uuid(1), now=NOW)
        with pytest.raises(Conflict):
            undo(project, "ben", uuid=new_uuid(3), now=NOW)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"uuid": "x"}, "the uuid is"),
        ({"uuid": new_uuid(1).upper().replace("0", "A")}, "the uuid is"),
        ({"assignment": 99}, "no assignment 99"),
        ({"labeller": "ben"}, "not ben's"),
        ({"kind": "retract"}, "the kind is"),
        ({"kind": "rank"}, "two are preferred"),
        ({"kind": "skip"}, "expected none"),
        ({"ranking": (1,)}, "expected all of"),
        ({"ranking": (1, 1)}, "expected all of"),
        ({"ranking": (1, 2, 3)}, "expected all of"),
        ({"ranking": (3, 4)}, "expected all of"),
        ({"ranking": ()}, "expected all of"),
        ({"began": float("nan")}, "seconds since the epoch"),
        ({"ended": float("inf")}, "seconds since the epoch"),
        ({"began": NOW + 10}, "in order"),
        ({"began": -1.0}, "seconds since the epoch"),
    ],
)
def test_judgements_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with text_project(tmp_path / "p.db") as project:
        found = take(project)
        given: dict[str, Any] = {"uuid": new_uuid(1), "assignment": found.id, "kind": "prefer", "ranking": (1, 2)}
        given |= {"labeller": "ana", "began": NOW, "ended": NOW + 1, "now": NOW + 1}
        with pytest.raises(UsageError, match=why):
            judge(project, **{**given, **change})
        assert project.history() == []
        assert judge(project, **given)


def test_rankings_are_kept_whole(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=1, responses=4, ask="ranking") as project:
        found = take(project)
        with pytest.raises(UsageError, match="more are ranked"):
            say(project, found, 1)
        say(project, found, 1, best=2, kind="rank")
        (judgement,) = project.judgements()
        assert (judgement.kind, judgement.ranking[0], sorted(judgement.ranking)) == (
            "rank",
            found.shown[2],
            [1, 2, 3, 4],
        )
        assert judgement.shown == found.shown


# What is said of labellers


def said(
    number: int, item: int, kind: Any, ranking: tuple[int, ...], *, repeat: bool = False, took: float = 1.0
) -> Judgement:
    shown = (2 * item, 2 * item + 1)
    return Judgement(
        new_uuid(number), item, "ana", kind, ranking, shown[::-1] if repeat else shown, repeat, NOW, NOW + took
    )


def test_a_labeller_is_described() -> None:
    judgements = [
        said(1, 1, "prefer", (2, 3), took=3.0),  # left
        said(2, 2, "prefer", (5, 4)),  # right
        said(3, 3, "tie", (6, 7)),
        said(4, 4, "skip", ()),
        said(5, 5, "prefer", (10, 11), took=9.0),  # left
        said(6, 1, "prefer", (2, 3), repeat=True),  # the same one, which stands on the right now
        said(7, 2, "prefer", (4, 5), repeat=True),  # the other one: right again
        said(8, 3, "tie", (7, 6), repeat=True),  # equal again
        said(9, 4, "prefer", (8, 9), repeat=True),  # skipped at first: nothing to compare with
    ]
    found = described("ana", judgements)
    assert (found.judged, found.ties, found.skips, found.repeats) == (9, 2, 1, 3)
    assert found.left == 2 / 6  # of six preferences, the left one in items 1 and 5
    assert found.consistent == 2 / 3
    assert found.seconds == 1.0
    assert described("eva", [])._replace(name="") == ("", 0, 0, 0, None, 0, None, None)


def test_a_project_is_summarised(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=3) as project:
        say(project, take(project, "ben"), 1)
        say(project, take(project, "ana"), 2, kind="skip")
        found = summarised(project)
        assert (found.items, found.complete, found.judged) == (3, 1, 2)
        assert [(x.name, x.judged, x.skips) for x in found.labellers] == [("ana", 1, 1), ("ben", 1, 0)]


def test_agreement_is_put_into_words(tmp_path: Path) -> None:
    with text_project(tmp_path / "p.db", prompts=6, labels_per_item=2) as project:
        assert labeller_measures(project) == []
        for number in range(6):
            for place, (name, others) in enumerate((("ana", 1), ("ben", 2))):
                found = take(project, name)
                better = max(found.shown) if number < others else min(found.shown)
                say(project, found, 2 * number + place, best=found.shown.index(better))
        alpha, kappa, left = labeller_measures(project)
        assert "alpha" in alpha
        assert kappa == "ana and ben agree to 0.57 (Cohen's kappa)."  # (30 - 22) / (36 - 22), of 36ths
        assert re.search(r"^Of preferences, \d+% of 12 \(95%: ", left)


def test_models_are_scored_from_labels(tmp_path: Path) -> None:
    with Project.create(tmp_path / "p.db") as project:
        project.change_settings(Settings(repeat_share=0.0))
        assert model_measures(project) == []
        for number in range(12):
            prompt = project.add_prompt(f"Question {number}?")
            ids = [
                project.add_responses(prompt, [f"{name} says {number}"], source=name, settings=[{}])[0]
                for name in ("good", "poor")
            ]
            project.add_items([ids], kind="text")
        for number in range(12):
            found = take(project)
            best = found.shown.index(min(found.shown) if number % 4 else max(found.shown))
            say(project, found, number, best=best)
        good, poor, *_ = model_measures(project)
        assert good.startswith("good: score +0.55")  # half of log(9 / 3)
        assert poor.startswith("poor: score -0.55")
