"""Scores of models: against closed forms, their own equations, and what intervals promise."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from steepest import UsageError
from steepest.preferences.scores import (
    Wins,
    bradley_terry_scores,
    is_determined,
    model_scores,
    why_not_determined,
    wins,
)

F64 = torch.float64


class Said(NamedTuple):
    item: int
    kind: str
    ranking: tuple[int, ...] = ()
    repeat: bool = False
    labeller: str = "a"
    shown: tuple[int, ...] = ()


class Text(NamedTuple):
    id: int
    prompt: int
    source: str


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_wins_are_counted_by_prompt() -> None:
    responses = [
        Text(1, 10, "b"),
        Text(2, 10, "a"),
        Text(3, 10, "c"),
        Text(4, 20, "a"),
        Text(5, 20, "b"),
        Text(6, 20, "a"),
    ]
    said = [
        Said(1, "prefer", (1, 2)),
        Said(1, "prefer", (2, 1), repeat=True),  # asked for consistency, not for another vote
        Said(2, "rank", (3, 1, 2)),
        Said(3, "tie", (5, 4)),
        Said(4, "prefer", (4, 6)),  # of one model
        Said(5, "skip"),
    ]
    found = wins(said, responses)
    assert found.models == ("a", "b", "c")
    assert found.table.tolist() == [
        [[0, 0, 0], [2, 0, 0], [1, 1, 0]],
        [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]],
    ]
    with pytest.raises(UsageError, match="speaks of 1 and 9"):
        wins([Said(6, "prefer", (9, 1))], responses)


@pytest.mark.parametrize(("won", "lost"), [(3.0, 1.0), (1.0, 1.0), (0.5, 7.5), (1.0, 999.0)])
def test_scores_of_two_are_the_log_odds(won: float, lost: float) -> None:
    found = bradley_terry_scores(table([5.0, won], [lost, 0.0]))  # the diagonal says nothing
    half = 0.5 * math.log(won / lost)
    torch.testing.assert_close(found, torch.tensor([half, -half], dtype=F64), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_expected_wins_are_the_wins(seed: int) -> None:
    """What the maximum of the likelihood solves: every model's expected number of wins is that observed."""
    count = torch.poisson(torch.full((5, 5), 2.0, dtype=F64), generator=generator(seed)) + torch.eye(5).roll(1, 0)
    count.fill_diagonal_(0.0)
    score = bradley_terry_scores(count)
    chance = torch.sigmoid(score.unsqueeze(-1) - score)
    expected = ((count + count.mT) * chance).sum(-1) - 0.5 * torch.diagonal(count + count.mT)
    torch.testing.assert_close(expected, count.sum(-1), rtol=1e-9, atol=1e-9)
    assert float(score.sum()) == pytest.approx(0.0, abs=1e-12)


def test_true_scores_are_found_from_expected_wins() -> None:
    """In a batch, with comparisons of unequal number; scores far apart are found too."""
    true = torch.tensor([[0.3, -0.1, 0.5, -0.7], [6.0, 2.0, -2.0, -6.0]], dtype=F64)
    games = table([0, 9, 2, 1], [9, 0, 4, 0], [2, 4, 0, 8], [1, 0, 8, 0])
    count = games * torch.sigmoid(true.unsqueeze(-1) - true.unsqueeze(-2))
    torch.testing.assert_close(bradley_terry_scores(count), true, rtol=1e-7, atol=1e-8)
    nothing = torch.zeros_like(games)
    mixed = bradley_terry_scores(torch.stack([count[0], nothing]))
    torch.testing.assert_close(mixed[0], true[0], rtol=1e-7, atol=1e-8)
    assert bool(mixed[1].isnan().all())


NAMES = ("a", "b", "c", "d")
OPEN = {
    "never compared": (
        table([0, 3, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1], [0, 0, 4, 0]),
        "a, b and c, d were never compared",
    ),
    "one alone": (table([0, 3, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]), "a, b, c and d were never compared"),
    "never lost": (table([0, 3, 1, 0], [0, 0, 1, 2], [0, 1, 0, 1], [0, 1, 1, 0]), "a never lost"),
    "two never lost": (table([0, 1, 1, 0], [1, 0, 0, 2], [0, 0, 0, 1], [0, 0, 1, 0]), "a, b never lost"),
    "one always lost": (table([0, 1, 1, 0], [1, 0, 1, 2], [1, 1, 0, 1], [0, 0, 0, 0]), "a, b, c never lost"),
    "no comparison": (torch.zeros(4, 4, dtype=F64), "a; b; c and d were never compared"),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_word_where_scores_are_not_determined(name: str) -> None:
    count, expected = OPEN[name]
    assert not bool(is_determined(count))
    assert why_not_determined(NAMES, count).startswith(expected)
    assert bool(bradley_terry_scores(count).isnan().all())
    found = model_scores(Wins(NAMES, count.unsqueeze(0)), generator(), resamples=5)
    assert found.word.startswith(expected)
    assert bool(torch.stack(found[1:4]).isnan().all())


def test_a_cycle_determines_all_scores() -> None:
    """Who beat whom in a circle, and nothing else: all are equally good."""
    circle = torch.eye(4, dtype=F64).roll(1, 1)
    assert bool(is_determined(circle))
    assert why_not_determined(NAMES, circle) == ""
    torch.testing.assert_close(bradley_terry_scores(circle), torch.zeros(4, dtype=F64), rtol=0, atol=1e-10)
    assert why_not_determined(("a", "b"), torch.ones(2, 2, dtype=F64)) == ""


def test_intervals_are_of_prompts() -> None:
    """A hundred labels of the same prompt are no more than one prompt: the interval does not shrink with them."""
    count = torch.poisson(torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=F64).expand(30, 2, 2), generator=generator(1))
    few = model_scores(Wins(("a", "b"), count), generator())
    many = model_scores(Wins(("a", "b"), 100.0 * count), generator())
    assert few.word == ""
    torch.testing.assert_close(few.score, many.score, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(few.low, many.low, rtol=1e-8, atol=1e-9)
    assert bool((few.low < few.score).all())
    assert bool((few.score < few.high).all())
    alone = model_scores(Wins(("a", "b"), count.sum(0, keepdim=True)), generator())
    torch.testing.assert_close(alone.low, alone.score)  # one prompt says nothing of how prompts differ
    # By hand, from the same draws.
    index = torch.randint(30, (1000, 30), generator=generator())
    drawn = torch.stack([bradley_terry_scores(count[rows].sum(0)) for rows in index[:20]])
    redrawn = model_scores(Wins(("a", "b"), count), generator(), resamples=1000, share=0.95)
    assert float(redrawn.low[0]) <= float(drawn[:, 0].median()) <= float(redrawn.high[0])


def test_resamples_without_scores_leave_the_interval_open() -> None:
    """One win in one prompt of ten holds everything together; a third of the resamples are without it."""
    count = torch.zeros(10, 2, 2, dtype=F64)
    count[:, 0, 1] = 1.0
    count[3, 1, 0] = 1.0
    found = model_scores(Wins(("a", "b"), count), generator())
    assert bool(found.score.isfinite().all())
    assert bool(found.low.isneginf().all())
    assert bool(found.high.isposinf().all())


def test_intervals_cover_what_they_promise() -> None:
    """Over 200 studies of 40 prompts, whose winner depends on the prompt too."""
    truth, covered = 0.8, 0
    g = generator(3)
    # What a prompt adds to the difference is drawn anew in each: the log-odds over all prompts is the target.
    shifts = torch.randn(200_000, generator=g, dtype=F64)
    p = float(torch.sigmoid(truth + shifts).mean())
    target = 0.5 * math.log(p / (1.0 - p))
    for study in range(200):
        chance = torch.sigmoid(truth + torch.randn(40, generator=g, dtype=F64))
        won = torch.binomial(torch.full((40,), 5.0, dtype=F64), chance, generator=g)
        count = torch.zeros(40, 2, 2, dtype=F64)
        count[:, 0, 1], count[:, 1, 0] = won, 5.0 - won
        found = model_scores(Wins(("a", "b"), count), generator(study), resamples=200)
        covered += bool(found.low[0] <= target <= found.high[0])
    assert 178 <= covered <= 199  # 95% of 200, with three deviations and the percentile's known lack for few prompts


def test_what_cannot_be_scored_is_refused() -> None:
    two = Wins(("a", "b"), torch.ones(3, 2, 2, dtype=F64))
    for found, options in (
        (Wins(("a",), torch.ones(3, 1, 1, dtype=F64)), {}),
        (two, {"resamples": 1}),
        (two, {"share": 1.0}),
    ):
        with pytest.raises(ValueError, match="expected at least two models"):
            model_scores(found, generator(), **options)
