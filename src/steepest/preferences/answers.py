"""From judgements to arrays: who answered what about which pair, and which rankings a model can learn from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from steepest.errors import UsageError

FIRST, TIE, SECOND = 0, 1, 2
"""Answers about a pair, the member with the smaller id being the first."""
MISSING = -1
"""Where a labeller has said nothing."""


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


class Answers(NamedTuple):
    """What every labeller said of every pair, once."""

    labellers: tuple[str, ...]
    pairs: tuple[Pair, ...]
    values: Tensor  # (labellers, pairs) int64: FIRST, TIE, SECOND or MISSING


def answers_of(judgements: Sequence[Judged]) -> Answers:
    """Return the answers of all labellers in a table; of a pair judged several times by one labeller, the first.

    Verified:  tests/unit/test_preference_agreement.py::test_the_table_of_answers
    """
    said: dict[tuple[str, Pair], int] = {}
    for judgement in judgements:
        if not judgement.repeat:
            for pair, answer in pair_answers(judgement).items():
                said.setdefault((judgement.labeller, pair), answer)
    labellers = tuple(sorted({name for name, _ in said}))
    pairs = tuple(sorted({pair for _, pair in said}))
    values = [[said.get((name, pair), MISSING) for pair in pairs] for name in labellers]
    return Answers(labellers, pairs, torch.tensor(values, dtype=torch.int64).view(len(labellers), len(pairs)))


def repeated_answers(judgements: Sequence[Judged]) -> tuple[Tensor, Tensor]:
    """Return what labellers said of a pair at first, and when asked again: (N,) int64 each.

    Verified:  tests/unit/test_preference_agreement.py::test_repeats_are_compared_with_the_same_labeller
    """
    table = answers_of(judgements)
    first: list[int] = []
    again: list[int] = []
    rows = {name: i for i, name in enumerate(table.labellers)}
    columns = {pair: i for i, pair in enumerate(table.pairs)}
    for judgement in judgements:
        if judgement.repeat and judgement.labeller in rows:
            for pair, answer in pair_answers(judgement).items():
                before = MISSING if pair not in columns else int(table.values[rows[judgement.labeller], columns[pair]])
                if before != MISSING:
                    first.append(before)
                    again.append(answer)
    return torch.tensor(first, dtype=torch.int64), torch.tensor(again, dtype=torch.int64)


class Comparisons(NamedTuple):
    """Rankings of P items, padded to the longest: what a reward is learned from."""

    members: Tensor  # (P, K) int64 places in a list, best first; 0 where there is no more
    size: Tensor  # (P,) int64 how many were compared
    tie: Tensor  # (P,) bool: neither of two was better


def comparisons(judgements: Sequence[Judged], ids: Sequence[int]) -> Comparisons:
    """Return the rankings and ties that judgements hold, as places in ``ids``; what was skipped says nothing.

    Args:      judgements of items of one kind; ids of responses or clips
    Raises:    UsageError where a judgement is of something that is not among ids
    Verified:  tests/unit/test_clip_rewards.py::test_judgements_become_comparisons
    """
    place = {member: i for i, member in enumerate(ids)}
    said = [j for j in judgements if j.kind in ("prefer", "tie", "rank")]
    unknown = sorted({member for j in said for member in j.ranking if member not in place})
    if unknown:
        raise UsageError(f"judgements speak of {unknown[:5]}, which are not among the {len(place)} that are given")
    longest = max((len(j.ranking) for j in said), default=2)
    members = torch.zeros((len(said), longest), dtype=torch.int64)
    for row, judgement in zip(members, said, strict=True):
        row[: len(judgement.ranking)] = torch.tensor([place[member] for member in judgement.ranking])
    return Comparisons(
        members,
        torch.tensor([len(j.ranking) for j in said], dtype=torch.int64),
        torch.tensor([j.kind == "tie" for j in said], dtype=torch.bool),
    )
