"""From judgements to arrays: who answered what about which pair, and which rankings a model can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.preferences.judged import Judged, Pair, first_answers

MISSING = -1
"""Where a labeller has said nothing."""


class Answers(NamedTuple):
    """What every labeller said of every pair, once."""

    labellers: tuple[str, ...]
    pairs: tuple[Pair, ...]
    values: Tensor  # (labellers, pairs) int64: FIRST, TIE, SECOND or MISSING


def answers_of(judgements: Sequence[Judged]) -> Answers:
    """Return the answers of all labellers in a table; of a pair judged several times by one labeller, the first.

    Verified:  tests/unit/test_preference_agreement.py::test_the_table_of_answers
    """
    said = first_answers(judgements)
    labellers = tuple(sorted({name for name, _ in said}))
    pairs = tuple(sorted({pair for _, pair in said}))
    values = [[said.get((name, pair), MISSING) for pair in pairs] for name in labellers]
    return Answers(labellers, pairs, torch.tensor(values, dtype=torch.int64).view(len(labellers), len(pairs)))


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
