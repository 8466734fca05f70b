"""Scores of models from what labellers preferred: Bradley-Terry's, with intervals from resampled prompts.

A score is the logarithm of a model's worth: sigmoid(score_i - score_j) is the probability that i is preferred to j.
Scores have mean zero, since differences are all that preferences speak of. A tie counts as half a win of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.preferences.judged import FIRST, TIE, Judged, pair_answers

F64 = torch.float64
ITERATIONS = 200
"""Newton's method takes about ten."""


class Answered(Protocol):
    """A response as it is read here; ``records.Response`` is one."""

    @property
    def id(self) -> int: ...
    @property
    def prompt(self) -> int: ...
    @property
    def source(self) -> str: ...


class Wins(NamedTuple):
    """How often each model was preferred to each other one, prompt by prompt."""

    models: tuple[str, ...]
    table: Tensor  # (prompts, M, M) float64, row preferred to column; a tie is half a win of each


class ModelScores(NamedTuple):
    """Scores of models; where the comparisons do not determine them, NaN, and the word that says why."""

    models: tuple[str, ...]
    score: Tensor  # (M,) float64, mean zero
    low: Tensor  # (M,) float64, ends of the interval; infinite where resamples do not bound it
    high: Tensor
    word: str


def wins(judgements: Sequence[Judged], responses: Iterable[Answered]) -> Wins:
    """Count wins between the sources of responses; two responses of one source say nothing about it.

    Args:      judgements of items of text; repeats are left out here
    Raises:    UsageError where a judgement is of other responses
    Verified:  tests/unit/test_preference_scores.py::test_wins_are_counted_by_prompt
    """
    known = {r.id: r for r in responses}
    models = sorted({r.source for r in known.values()})
    prompts = {prompt: i for i, prompt in enumerate(sorted({r.prompt for r in known.values()}))}
    place = {name: i for i, name in enumerate(models)}
    count = torch.zeros((len(prompts), len(models), len(models)), dtype=F64)
    for judgement in judgements:
        if judgement.repeat:
            continue
        for (_, one, other), answer in pair_answers(judgement).items():
            if one not in known or other not in known:
                raise UsageError(f"a judgement speaks of {one} and {other}; expected responses that are given")
            i, j = place[known[one].source], place[known[other].source]
            if i != j:
                table = count[prompts[known[one].prompt]]
                share = 0.5 if answer == TIE else float(answer == FIRST)
                table[i, j] += share
                table[j, i] += 1.0 - share
    return Wins(tuple(models), count)


def bradley_terry_scores(count: Float[Tensor, "*batch m m"]) -> Float[Tensor, "*batch m"]:
    """Return the scores under which the wins are most likely.

    Equation:  argmax_s sum_ij w_ij log sigmoid(s_i - s_j),  sum_i s_i = 0
    Source:    Bradley & Terry 1952; Ford 1957: it exists, and is unique, where every model leads to every other one by
               wins. By Newton's method, each step halved until the likelihood rises.
    Args:      count (..., M, M) wins of row over column, the diagonal ignored
    Returns:   (..., M) float64, nats; NaN where it does not exist (see ``is_determined``)
    Raises:    RunError if it does not converge
    Verified:  tests/unit/test_preference_scores.py::test_scores_of_two_are_the_log_odds,
               tests/unit/test_preference_scores.py::test_expected_wins_are_the_wins,
               tests/unit/test_preference_scores.py::test_true_scores_are_found_from_expected_wins
    """
    size = count.shape[-1]
    tables = (count.to(F64) * (1.0 - torch.eye(size, dtype=F64))).reshape(-1, size, size)
    determined = is_determined(tables)
    tables = torch.where(determined.view(-1, 1, 1), tables, 1.0 - torch.eye(size, dtype=F64))  # anything that converges
    both = tables + tables.mT
    # Relative to the number of comparisons, so that the tolerance is that of probabilities.
    tables, both = (x / both.sum((-2, -1), keepdim=True).clamp(min=1.0) for x in (tables, both))
    score = torch.zeros(tables.shape[:-1], dtype=F64)
    for _ in range(ITERATIONS):
        chance = torch.sigmoid(score.unsqueeze(-1) - score.unsqueeze(-2))
        slope = (tables - both * chance).sum(-1)
        if float(slope.abs().max()) <= 1e-13:
            centred = score - score.mean(-1, keepdim=True)
            return torch.where(determined.unsqueeze(-1), centred, torch.nan).view(count.shape[:-1])
        curvature = both * chance * chance.mT
        hessian = torch.diag_embed(curvature.sum(-1)) - curvature + 1.0 / size  # the last keeps the sum at zero
        step = torch.linalg.solve(hessian, slope)
        length = torch.ones(len(score), 1, dtype=F64)
        here = _likelihood(tables, score)
        for _ in range(60):
            worse = _likelihood(tables, score + length * step) < here - 1e-15
            if not bool(worse.any()):
                break
            length = torch.where(worse.unsqueeze(-1), 0.5 * length, length)
        score = score + length * step
    raise RunError(f"the scores of {size} models have not converged in {ITERATIONS} steps; are the counts finite?")


def _likelihood(tables: Tensor, score: Tensor) -> Tensor:
    """(B,) sum_ij w_ij log sigmoid(s_i - s_j)."""
    margin = score.unsqueeze(-1) - score.unsqueeze(-2)
    return (tables * torch.nn.functional.logsigmoid(margin)).sum((-2, -1))


def is_determined(count: Float[Tensor, "*batch m m"]) -> Bool[Tensor, "*batch"]:
    """Return whether every model leads to every other one by wins, which finite scores need.

    Source:    Ford 1957: no set of models has won all its games against the rest, or played none.
    Verified:  tests/unit/test_preference_scores.py::test_a_word_where_scores_are_not_determined
    """
    return _reach(count > 0.0).all(-1).all(-1)


def _reach(edges: Tensor) -> Tensor:
    """(..., M, M) whether a path leads from row to column."""
    size = edges.shape[-1]
    reach = (edges | torch.eye(size, dtype=torch.bool)).to(F64)
    for _ in range(max(1, size.bit_length())):
        reach = (reach @ reach > 0.0).to(F64)
    return reach > 0.0


def why_not_determined(models: Sequence[str], count: Float[Tensor, "m m"]) -> str:
    """Say in plain words what the comparisons leave open; empty where they determine all scores.

    Verified:  tests/unit/test_preference_scores.py::test_a_word_where_scores_are_not_determined
    """
    together = _reach((count > 0.0) | (count.mT > 0.0))
    groups = _groups(together)
    if len(groups) > 1:
        named = [_named(models, group) for group in groups]
        return (
            f"{'; '.join(named[:-1])} and {named[-1]} were never compared, not even through a third: label items that "
            "have responses of both"
        )
    reach = _reach(count > 0.0)
    groups = _groups(reach & reach.mT)
    for group in groups if len(groups) > 1 else []:
        rest = [i for i in range(len(models)) if i not in group]
        if not bool((count[rest][:, group] > 0.0).any()):
            return f"{_named(models, group)} never lost to the others, so nothing says by how much better: label more"
    return ""


def _groups(same: Tensor) -> list[list[int]]:
    """The classes of an equivalence (M, M)."""
    rows = same.tolist()
    groups = [[j for j, linked in enumerate(row) if linked] for row in rows]
    return [group for i, group in enumerate(groups) if group[0] == i]


def _named(models: Sequence[str], group: Sequence[int]) -> str:
    return ", ".join(models[i] for i in group)


def model_scores(found: Wins, generator: torch.Generator, *, resamples: int = 1000, share: float = 0.95) -> ModelScores:
    """Return scores of all models with intervals from prompts drawn again.

    Labels of one prompt share its difficulty, so that whole prompts are resampled, never labels. A resample whose
    comparisons determine no scores counts for both ends as unbounded.

    Equation:  [q_{(1-share)/2}, q_{(1+share)/2}] of the scores of P prompts drawn with replacement
    Source:    Efron & Tibshirani 1993, Chapter 13 (percentile).
    Args:      found: wins by prompt; generator of the caller; resamples; share of them within
    Returns:   ModelScores
    Raises:    ValueError unless there are two models, and 0 < share < 1, and at least two resamples
    Verified:  tests/unit/test_preference_scores.py::test_intervals_are_of_prompts,
               tests/unit/test_preference_scores.py::test_intervals_cover_what_they_promise
    """
    prompts, size = found.table.shape[0], len(found.models)
    if size < 2 or resamples < 2 or not 0.0 < share < 1.0:
        raise ValueError(
            f"{size} models, {resamples} resamples and share {share}; expected at least two models, at least two "
            "resamples, and 0 < share < 1"
        )
    total = found.table.sum(0)
    unknown = torch.full((size,), torch.nan, dtype=F64)
    word = why_not_determined(found.models, total)
    if word:
        return ModelScores(found.models, unknown, unknown, unknown, word)
    index = torch.randint(prompts, (resamples, prompts), generator=generator)
    drawn = torch.zeros((resamples, prompts), dtype=F64).scatter_add_(1, index, torch.ones(index.shape, dtype=F64))
    tables = (drawn @ found.table.flatten(1)).view(resamples, size, size)
    resampled = bradley_terry_scores(tables)
    ends = [
        torch.where(resampled.isnan(), open_end, resampled).sort(0).values[round(place * (resamples - 1))]
        for open_end, place in ((-torch.inf, (1.0 - share) / 2.0), (torch.inf, (1.0 + share) / 2.0))
    ]
    return ModelScores(found.models, bradley_terry_scores(total), ends[0], ends[1], "")
