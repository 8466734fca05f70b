"""What is measured of models' answers: means and shares with their intervals, win rates, diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class WinRate:
    """How often one of two is better."""

    rate: Interval
    wins: int
    ties: int
    losses: int


@cache
def t_quantile(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t distribution.

    Equation:  P(|T| <= sqrt(n) tan x) = sin x sum_{k < n/2} c_k cos^2k x,  c_k = c_{k-1} (2k - 1) / 2k,   for even n,
               (2 / pi) (x + sin x cos x sum_{k < (n-1)/2} c_k cos^2k x),  c_k = c_{k-1} 2k / (2k + 1),    for odd n;
               the x at which it is 0.95, by halving
    Source:    Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
    Args:      freedom: n >= 1 degrees of freedom
    Raises:    ValueError for n < 1
    Verified:  tests/unit/test_comparison.py::test_quantiles_of_students_t
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; there has to be one")
    odd = freedom % 2
    k = np.arange(freedom // 2)
    weight = np.cumprod(np.where(k == 0, 1.0, (2 * k - 1 + odd) / np.maximum(2 * k + odd, 1)))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        x = (low + high) / 2
        inside = math.sin(x) * math.cos(x) ** odd * float((weight * math.cos(x) ** (2 * k)).sum())
        inside = 2 / math.pi * (x + inside) if odd else inside
        low, high = (x, high) if inside < 0.95 else (low, x)
    return math.sqrt(freedom) * math.tan(low)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with Student's 95 % interval.

    Equation:  m +- t s / sqrt(n),  s^2 = sum_i (x_i - m)^2 / (n - 1),  t of n - 1 degrees of freedom
    Source:    Student 1908: exact for normal values; for others by the central limit theorem, so for many of them.
    Args:      values, n >= 1 numbers in any unit
    Returns:   the same unit; of a single value the bounds are NaN
    Raises:    ValueError for no values
    Verified:  tests/unit/test_comparison.py::test_mean_by_hand_and_by_coverage,
               tests/unit/test_comparison.py::test_few_normal_values_are_covered_as_often_as_said
    """
    n = len(values)
    if n == 0:
        raise ValueError("there is no mean of no values")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(n - 1) * math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return Interval(mean, mean - half, mean + half)


def share_interval(count: float, n: int) -> Interval:
    """A share with Wilson's 95 % interval, which stays in [0, 1] and is never empty.

    Equation:  (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),  p = count / n
    Source:    Wilson 1927: the p that a normal test of the count would not reject.
    Args:      count in [0, n], not necessarily whole; n >= 1
    Raises:    ValueError for a count outside of [0, n], or n < 1
    Verified:  tests/unit/test_comparison.py::test_wilson_inverts_the_test_of_a_share
    """
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"a share of {count} among {n}; the count must be in [0, n], and n at least 1")
    p, z2 = count / n, Z * Z
    centre = p + z2 / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the edges a bound is the edge itself, which rounding might miss.
    low = 0.0 if count == 0 else (centre - half) / (1 + z2 / n)
    high = 1.0 if count == n else (centre + half) / (1 + z2 / n)
    return Interval(p, low, high)


def win_rate(mine: Sequence[float], other: Sequence[float]) -> WinRate:
    """How often a score is above the other of its pair, a tie counting half.

    Equation:  (#{a > b} + #{a = b} / 2) / n, with Wilson's interval
    Source:    Wilson 1927. A tie varies less than a binomial's half, so with ties the interval is wider than need be.
    Args:      mine, other: scores of n >= 1 pairs
    Raises:    ValueError where they differ in number, or there are none
    Verified:  tests/unit/test_comparison.py::test_win_rate_by_hand
    """
    if len(mine) != len(other):
        raise ValueError(f"{len(mine)} scores against {len(other)}; a win rate is of pairs")
    wins = sum(a > b for a, b in zip(mine, other, strict=True))
    ties = sum(a == b for a, b in zip(mine, other, strict=True))
    return WinRate(share_interval(wins + 0.5 * ties, len(mine)), wins, ties, len(mine) - wins - ties)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different ones among all stretches of n words in all texts together.

    Equation:  #different n-grams / #n-grams;  0 where there is none
    Source:    Li et al. 2016. It falls with the amount of text: two sets are compared at one size (``equally_long``).
    Args:      n >= 1; words are what white space separates
    Returns:   in [0, 1]
    Raises:    ValueError for n < 1
    Verified:  tests/unit/test_comparison.py::test_distinct_by_hand
    """
    if n < 1:
        raise ValueError(f"n is {n}; stretches have at least one word")
    split = [text.split() for text in texts]
    stretches = [tuple(words[i : i + n]) for words in split for i in range(len(words) - n + 1)]
    return len(set(stretches)) / len(stretches) if stretches else 0.0


def equally_long(a: Sequence[str], b: Sequence[str]) -> tuple[list[str], list[str]]:
    """Two sets of texts, of each pair the longer cut to as many words as the shorter has.

    Both then have as many stretches of n words, for every n, and ``distinct_n`` does not favour the shorter texts.

    Raises:    ValueError where they differ in number
    Verified:  tests/unit/test_comparison.py::test_shorter_texts_are_not_more_distinct
    """
    pairs = [(x.split(), y.split()) for x, y in zip(a, b, strict=True)]
    shorter = [(x[: len(y)], y[: len(x)]) for x, y in pairs]
    return [" ".join(x) for x, _ in shorter], [" ".join(y) for _, y in shorter]
