"""Agreement of labellers against published examples, and against counts by hand."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
import torch

from steepest.preferences.agreement import agreement, cohen_kappa, krippendorff_alpha, proportion
from steepest.preferences.answers import MISSING, answers_of
from steepest.preferences.judged import FIRST, SECOND, TIE, pair_answers, repeated_answers


class Said(NamedTuple):
    """A judgement as the project gives it, without what nothing here reads."""

    item: int
    labeller: str
    kind: str
    ranking: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()
    repeat: bool = False


KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, -1, -1, -1],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, -1, 3],
    [-1, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, -1],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, -1],
]
"""Four observers and twelve units, Krippendorff 2011, section C."""


def test_krippendorff_s_own_example() -> None:
    """0.815 for ordinal data; units, observers and the names of answers may stand in any order or distance."""
    values = torch.tensor(KRIPPENDORFF)
    assert float(krippendorff_alpha(values)) == pytest.approx(0.815, abs=5e-4)
    expected = float(krippendorff_alpha(values))
    for other in (values.flip(0), values.flip(1), torch.where(values > 0, 3 * values + 2, -7)):
        assert float(krippendorff_alpha(other)) == pytest.approx(expected, abs=1e-12)
    backwards = torch.where(values > 0, 6 - values, -1)
    assert float(krippendorff_alpha(backwards)) == pytest.approx(expected, abs=1e-12)
    nominal = torch.where(values > 0, torch.tensor([0, 4, 2, 1, 5, 3])[values.clamp(min=0)], -1)
    assert abs(float(krippendorff_alpha(nominal)) - expected) > 0.01  # the order counts


def alpha_by_pairs(values: list[list[int]]) -> float:
    """One minus observed over expected disagreement, every pair of answers looked at by itself."""
    units = [[v for v in unit if v >= 0] for unit in zip(*values, strict=True)]
    units = [unit for unit in units if len(unit) >= 2]
    everything = [v for unit in units for v in unit]
    n = len(everything)

    def distance(c: int, k: int) -> float:
        low, high = min(c, k), max(c, k)
        between = sum(low <= v <= high for v in everything)
        return (between - (everything.count(c) + everything.count(k)) / 2) ** 2

    observed = sum(distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2))
    expected = sum(distance(a, b) for a, b in itertools.permutations(everything, 2))
    return 1.0 - (observed / n) / (expected / (n * (n - 1)))


@pytest.mark.parametrize("seed", range(5))
def test_alpha_by_listing_all_pairs(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-1, 3, (2 + seed % 3, 12), generator=g)
    assert float(krippendorff_alpha(values)) == pytest.approx(alpha_by_pairs(values.tolist()), abs=1e-12)


def test_alpha_at_its_ends() -> None:
    equal = torch.tensor([[0, 2, 1, 0], [0, 2, 1, 0], [0, 2, 1, -1]])
    assert float(krippendorff_alpha(equal)) == 1.0
    opposed = torch.tensor([[0, 2, 0, 2], [2, 0, 2, 0]])
    assert float(krippendorff_alpha(opposed)) < -0.5
    assert math.isnan(float(krippendorff_alpha(torch.tensor([[2, 2], [2, 2]]))))
    for nothing in (torch.tensor([[0, -1], [-1, 2]]), torch.full((2, 3), -1)):
        with pytest.raises(ValueError, match="two labellers"):
            krippendorff_alpha(nothing)


def from_table(table: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers of two judges, from how often each pair of answers was given."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])


def test_cohen_s_own_example() -> None:
    """Cohen 1960, Table 1: p_o = .29, p_c = .35; and the diagnoses of Cohen 1968, who reports .492."""
    first, second = from_table([[25, 13, 12], [12, 2, 16], [3, 15, 2]])
    assert float(cohen_kappa(first, second)) == pytest.approx((0.29 - 0.35) / (1 - 0.35), abs=1e-12)
    first, second = from_table([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    assert float(cohen_kappa(first, second)) == pytest.approx(0.492, abs=5e-4)


def test_kappa_by_counting() -> None:
    first, second = torch.tensor([0, 0, 2, 1, 2, 2]), torch.tensor([0, 2, 2, 1, 0, 2])
    chance = (2 * 2 + 1 * 1 + 3 * 3) / 36
    assert float(cohen_kappa(first, second)) == pytest.approx((4 / 6 - chance) / (1 - chance), abs=1e-12)
    assert float(cohen_kappa(7 - first, 7 - second)) == pytest.approx(float(cohen_kappa(first, second)), abs=1e-12)
    assert float(cohen_kappa(first, first)) == 1.0
    assert math.isnan(float(cohen_kappa(torch.ones(3).long(), torch.ones(3).long())))
    with pytest.raises(ValueError, match="no unit in common"):
        cohen_kappa(first[:0], second[:0])


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombe_s_intervals(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Table I, method 3."""
    found = proportion(torch.arange(count) < hits)
    assert found.share == pytest.approx(hits / count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.number == count
    with pytest.raises(ValueError, match="no answers"):
        proportion(torch.zeros(0, dtype=torch.bool))


def test_answers_of_every_kind_of_judgement() -> None:
    assert pair_answers(Said(3, "a", "prefer", (7, 4))) == {(3, 4, 7): SECOND}
    assert pair_answers(Said(3, "a", "prefer", (4, 7))) == {(3, 4, 7): FIRST}
    assert pair_answers(Said(3, "a", "tie", (7, 4))) == {(3, 4, 7): TIE}
    assert pair_answers(Said(3, "a", "skip")) == {}
    assert pair_answers(Said(3, "a", "retract", (4, 7))) == {}
    ranked = pair_answers(Said(5, "a", "rank", (2, 9, 1)))
    assert ranked == {(5, 2, 9): FIRST, (5, 1, 2): SECOND, (5, 1, 9): SECOND}


def test_the_table_of_answers() -> None:
    said = [
        Said(1, "b", "prefer", (1, 2)),
        Said(1, "a", "tie", (1, 2)),
        Said(2, "a", "prefer", (2, 1)),  # the same two in another item
        Said(1, "a", "prefer", (2, 1)),  # said later, of what was said already
        Said(1, "b", "prefer", (2, 1), repeat=True),
        Said(3, "c", "skip"),
    ]
    table = answers_of(said)
    assert table.labellers == ("a", "b")
    assert table.pairs == ((1, 1, 2), (2, 1, 2))
    assert table.values.tolist() == [[TIE, SECOND], [FIRST, MISSING]]
    assert answers_of([]).values.shape == (0, 0)


def test_repeats_are_compared_with_the_same_labeller() -> None:
    said = [
        Said(1, "a", "prefer", (1, 2), repeat=True),  # the order of judgements does not matter
        Said(1, "a", "prefer", (1, 2)),
        Said(1, "b", "prefer", (2, 1)),
        Said(1, "b", "tie", (1, 2), repeat=True),
        Said(2, "a", "prefer", (3, 4), repeat=True),  # never asked before
        Said(1, "c", "prefer", (1, 2), repeat=True),  # nor was this labeller
        Said(1, "a", "skip", repeat=True),
    ]
    assert repeated_answers(said) == [(FIRST, FIRST), (SECOND, TIE)]


def test_a_project_s_agreement() -> None:
    """Ten pairs, two labellers who disagree on two; one always prefers what stands on the left when asked again."""
    said = [
        Said(
            i, name, "prefer", (1, 2) if i % 2 == (i < 2 and name == "b") else (2, 1), shown=(1, 2) if i < 7 else (2, 1)
        )
        for i in range(10)
        for name in ("a", "b")
    ]
    said += [Said(i, "a", "prefer", (2, 1), shown=(2, 1), repeat=True) for i in range(4)]
    said += [Said(10, "a", "skip", shown=(1, 2)), Said(11, "b", "tie", (1, 2), shown=(1, 2))]
    found = agreement(said)
    a = torch.tensor([FIRST if i % 2 == 0 else SECOND for i in range(10)])
    b = torch.tensor([SECOND, FIRST, *a[2:].tolist()])
    assert found.labellers == ("a", "b")
    assert (found.judged, found.skipped, found.ties) == (21, 1, 1)
    assert found.alpha == pytest.approx(float(krippendorff_alpha(torch.stack([a, b]))))
    assert found.kappa == pytest.approx(float(cohen_kappa(a, b)))
    assert found.kappa == pytest.approx(0.6)
    assert found.consistency == proportion(torch.tensor([False, True, False, True]))
    assert found.left is not None
    left = sum(s.shown[0] == s.ranking[0] for s in said if s.kind == "prefer")
    assert (found.left.share, found.left.number) == (left / 24, 24)
    third = agreement([*said, Said(0, "c", "prefer", (1, 2))])
    assert third.kappa is None  # Cohen's is of exactly two
    assert third.alpha is not None


def test_too_little_to_measure() -> None:
    nothing = agreement([])
    assert nothing == ((), 0, 0, 0, None, None, None, None)
    alone = agreement([Said(1, "a", "prefer", (1, 2), shown=(2, 1))])
    assert (alone.alpha, alone.kappa, alone.consistency) == (None, None, None)
    assert alone.left is not None
    assert alone.left.share == 0.0
    one_answer = [Said(i, name, "prefer", (1, 2), shown=(1, 2)) for i in range(3) for name in "ab"]
    assert agreement(one_answer).alpha is None  # chance could not miss it
