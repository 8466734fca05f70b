"""Standard errors and bootstrap intervals of off-policy estimates, by episode.

Episodes are independent, steps are not: whole episodes are drawn again. All estimators reach this file as
``Contributions``, so a resample is a row of counts, and nothing of the size (resamples, episodes, steps) is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steepest.evaluation.importance import Contributions, estimate, totals

CELLS = 1 << 22
"""Counts that are drawn at a time."""


class Interval(NamedTuple):
    """Both ends of an interval, (...) reward units each."""

    low: Tensor
    high: Tensor


def standard_error(contributions: Contributions, counts: Float[Tensor, "b e"] | None = None) -> Float[Tensor, "..."]:
    """Return the standard error of the estimate, by the influence of every episode.

    Equation:  psi_i = sum_k (numerator_ik - R_k denominator_ik) / D_k,  R_k the k-th ratio, D_k the mean denominator;
               s^2 = sum_i psi_i^2 / (E (E - 1))
    Source:    the delta method; Owen 2013, Chapter 9. For a mean over episodes it is the usual standard error, exactly.
    Args:      contributions of E episodes; counts (B, E) as for ``estimate``
    Returns:   (...) reward units, or (..., B) with counts
    Raises:    ValueError if there are fewer than two episodes
    Verified:  tests/exact/test_off_policy_evaluation.py::test_standard_error_of_a_ratio
    """
    _check_episodes(contributions)
    numerator, denominator = totals(contributions, counts)
    number = contributions.numerator.shape[-2]
    scale = number / denominator
    ratio = numerator / denominator
    influence = contributions.numerator @ scale.mT - contributions.denominator @ (ratio * scale).mT  # (..., E, B)
    square = influence.square()
    total = square.sum(-2) if counts is None else (counts.mT * square).sum(-2)
    error = (total / (number * (number - 1))).sqrt()
    return error.squeeze(-1) if counts is None else error


def bootstrap_interval(
    contributions: Contributions, generator: torch.Generator, *, resamples: int = 2000, share: float = 0.95
) -> Interval:
    """Return the interval between two quantiles of the estimates from resampled episodes.

    Equation:  [q_{(1-share)/2}, q_{(1+share)/2}] of V^*_1 ... V^*_B, each from E episodes drawn with replacement
    Source:    Efron & Tibshirani 1993, Chapter 13 (percentile).
    Args:      contributions of E episodes, leading axes resampled alike, so that estimators may be compared; generator
               of the caller, on the contributions' device; share of the resamples within
    Returns:   Interval; NaN where some resample has no episode with a weight
    Raises:    ValueError if there are fewer than two episodes or resamples, or unless 0 < share < 1
    Verified:  tests/exact/test_off_policy_evaluation.py::test_percentile_interval_of_two_episodes,
               tests/exact/test_off_policy_evaluation.py::test_intervals_cover_what_they_promise
    """
    _check(contributions, resamples, share)
    drawn = [estimate(contributions, counts) for counts in _draws(contributions, generator, resamples)]
    low, high = _quantiles(torch.cat(drawn, -1), share)
    return Interval(low, high)


def bootstrap_t_interval(
    contributions: Contributions, generator: torch.Generator, *, resamples: int = 2000, share: float = 0.95
) -> Interval:
    """Return the interval from the resampled distribution of the error over its own standard error.

    Equation:  [V^ - q_{(1+share)/2} s, V^ - q_{(1-share)/2} s],  q of t* = (V^* - V^) / s*
    Source:    Efron & Tibshirani 1993, Chapter 12 (bootstrap-t). It follows skewed estimates, such as rare large
               weights give, where the percentile interval is too short; it is wider.
    Args:      as ``bootstrap_interval``
    Returns:   Interval; where all episodes contribute the same, the estimate itself twice; infinite where so many
               resamples consist of equal episodes that a quantile of t* is
    Raises:    ValueError as ``bootstrap_interval``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_t_interval_against_a_loop,
               tests/exact/test_off_policy_evaluation.py::test_intervals_cover_what_they_promise
    """
    _check(contributions, resamples, share)
    centre, error = estimate(contributions), standard_error(contributions)
    drawn: list[Tensor] = []
    for counts in _draws(contributions, generator, resamples):
        distance = estimate(contributions, counts) - centre.unsqueeze(-1)
        drawn.append(torch.where(distance == 0.0, 0.0, distance / standard_error(contributions, counts)))
    low, high = _quantiles(torch.cat(drawn, -1), share)
    flat = error == 0.0
    return Interval(
        torch.where(flat, centre, centre - high * error),
        torch.where(flat, centre, centre - low * error),
    )


def _draws(contributions: Contributions, generator: torch.Generator, resamples: int) -> Iterator[Tensor]:
    """Counts of episodes drawn with replacement, (b, E) at a time, ``resamples`` rows in all."""
    numerator = contributions.numerator
    episodes = numerator.shape[-2]
    rows = max(1, CELLS // episodes)
    for begin in range(0, resamples, rows):
        shape = (min(rows, resamples - begin), episodes)
        index = torch.randint(episodes, shape, generator=generator, device=numerator.device)
        yield torch.zeros(shape, dtype=numerator.dtype, device=numerator.device).scatter_add_(
            1, index, torch.ones(shape, dtype=numerator.dtype, device=numerator.device)
        )


def _quantiles(drawn: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The two quantiles between which a share of the last axis lies; NaN where one of the values is."""
    ordered = drawn.sort(-1).values  # NaN last
    broken = ordered[..., -1:].isnan()
    places = torch.tensor([(1.0 - share) / 2.0, (1.0 + share) / 2.0], dtype=drawn.dtype) * (drawn.shape[-1] - 1)
    found = torch.where(broken, torch.nan, ordered[..., places.round().long().to(drawn.device)])
    return found[..., 0], found[..., 1]


def _check_episodes(contributions: Contributions) -> None:
    if contributions.numerator.shape[-2] < 2:
        raise ValueError("one episode alone says nothing of how much estimates vary; give at least two")


def _check(contributions: Contributions, resamples: int, share: float) -> None:
    _check_episodes(contributions)
    if resamples < 2 or not 0.0 < share < 1.0:
        raise ValueError(f"resamples is {resamples} and share {share}; expected resamples >= 2 and 0 < share < 1")
