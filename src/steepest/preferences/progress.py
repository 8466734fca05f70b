"""How far labelling has come, and how each labeller judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from steepest.preferences.judged import left_preferred, repeated_answers
from steepest.preferences.records import Judgement
from steepest.preferences.store import Project


class Labeller(NamedTuple):
    """What one labeller has done; shares are None where nothing was counted."""

    name: str
    judged: int  # skips and repeats included
    ties: int
    skips: int
    left: float | None  # share of preferences for what stood on the left: 0.5 without a position bias
    repeats: int  # answers about a pair that was judged before, with the sides swapped
    consistent: float | None  # share of these judged the same both times
    seconds: float | None  # median time of a judgement


class Summary(NamedTuple):
    """The state of a project."""

    items: int
    complete: int  # items that have all their labels
    judged: int
    labellers: list[Labeller]


def summarised(project: Project) -> Summary:
    """Return how far a project has come, with every labeller by name."""
    items, complete = project.rows("SELECT count(*), coalesce(sum(open = 0), 0) FROM item")[0]
    found = project.judgements()
    by_name: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in found:
        by_name[judgement.labeller].append(judgement)
    return Summary(int(items), int(complete), len(found), [described(name, by_name[name]) for name in sorted(by_name)])


def described(name: str, judgements: Sequence[Judgement]) -> Labeller:
    """Return how one labeller judges.

    Verified:  tests/unit/test_preference_labelling.py::test_a_labeller_is_described
    """
    same = [first == again for first, again in repeated_answers(judgements)]
    return Labeller(
        name=name,
        judged=len(judgements),
        ties=sum(j.kind == "tie" for j in judgements),
        skips=sum(j.kind == "skip" for j in judgements),
        left=_share(left_preferred(judgements)),
        repeats=len(same),
        consistent=_share(same),
        seconds=median(j.ended - j.began for j in judgements) if judgements else None,
    )


def _share(answers: Sequence[bool]) -> float | None:
    return sum(answers) / len(answers) if answers else None
