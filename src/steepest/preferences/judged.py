"""What judgements say of pairs, counted once for all who ask: without torch, since the page asks too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

FIRST, TIE, SECOND = 0, 1, 2
"""Answers about a pair, the member with the smaller id being the first."""


class Judged(Protocol):
    """A judgement as it is read here; ``records.Judgement`` is one. Retracted ones are left out before."""

    @property
    def item(self) -> int: ...
    @property
    def labeller(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def ranking(self) -> tuple[int, ...]: ...
    @property
    def shown(self) -> tuple[int, ...]: ...
    @property
    def repeat(self) -> bool: ...


Pair = tuple[int, int, int]
"""An item and two of its members, the smaller id first: what an answer is about."""


def pair_answers(judgement: Judged) -> dict[Pair, int]:
    """Return what a judgement says of every pair of its members; nothing if it was skipped.

    A ranking of K says something of all K (K - 1) / 2 pairs.

    Verified:  tests/unit/test_preference_agreement.py::test_answers_of_every_kind_of_judgement
    """
    if judgement.kind not in ("prefer", "tie", "rank"):
        return {}
    found: dict[Pair, int] = {}
    for better, worse in itertools.combinations(judgement.ranking, 2):
        pair = (judgement.item, min(better, worse), max(better, worse))
        found[pair] = TIE if judgement.kind == "tie" else FIRST if better < worse else SECOND
    return found


def first_answers(judgements: Sequence[Judged]) -> dict[tuple[str, Pair], int]:
    """Return what every labeller said of every pair; of one judged several times by one labeller, the first.

    Verified:  tests/unit/test_preference_agreement.py::test_the_table_of_answers
    """
    said: dict[tuple[str, Pair], int] = {}
    for judgement in judgements:
        if not judgement.repeat:
            for pair, answer in pair_answers(judgement).items():
                said.setdefault((judgement.labeller, pair), answer)
    return said


def repeated_answers(judgements: Sequence[Judged]) -> list[tuple[int, int]]:
    """Return what labellers said of a pair at first, and when asked again with the sides swapped.

    Verified:  tests/unit/test_preference_agreement.py::test_repeats_are_compared_with_the_same_labeller
    """
    first = first_answers(judgements)
    return [
        (first[judgement.labeller, pair], again)
        for judgement in judgements
        if judgement.repeat
        for pair, again in pair_answers(judgement).items()
        if (judgement.labeller, pair) in first
    ]


def left_preferred(judgements: Sequence[Judged]) -> list[bool]:
    """Return, of every strict preference between two, repeats too, whether it is for the one further left.

    Sides are drawn, so that without position bias that is half of them.

    Verified:  tests/unit/test_preference_agreement.py::test_a_project_s_agreement
    """
    hits: list[bool] = []
    for judgement in judgements:
        for (_, one, other), answer in pair_answers(judgement).items():
            if answer != TIE and {one, other} <= set(judgement.shown):
                better, worse = (one, other) if answer == FIRST else (other, one)
                hits.append(judgement.shown.index(better) < judgement.shown.index(worse))
    return hits
