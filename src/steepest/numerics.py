"""Small numerical tools: weighted means, running moments, linear recurrences, conjugate gradients, a line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def weighted_mean(x: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over every axis with weights, 0 where all weights are 0.

    Equation:  sum w x / max(sum w, 1)  for weights that are 0 or 1
    Masks are weights because boolean indexing has data-dependent shapes, which ``vmap`` and ``compile`` reject.
    """
    return (x * weight).sum() / weight.sum().clamp(min=1.0)


def weighted_variance(x: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean squared deviation from the weighted mean."""
    return weighted_mean((x - weighted_mean(x, weight)).square(), weight)


def standardize(
    x: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"], epsilon: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Zero weighted mean and unit weighted standard deviation over all axes.

    Equation:  (x - m) / (s + epsilon), s^2 = sum w (x - m)^2 / max(sum w, 1); 0 where all x are equal, to rounding
    Verified:  tests/unit/test_numerics.py::test_standardize_ignores_what_has_no_weight,
               tests/unit/test_numerics.py::test_equal_numbers_have_no_deviation
    """
    scaled = (x - weighted_mean(x, weight)) / (weighted_variance(x, weight).sqrt() + epsilon)
    return torch.where(are_equal(*weighted_range(x, weight)), torch.zeros_like(x), scaled)


def weighted_range(
    x: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Least and greatest of the numbers that have a weight."""
    counts = weight > 0.0
    return torch.where(counts, x, torch.inf).amin(), torch.where(counts, x, -torch.inf).amax()


def are_equal(low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """True where numbers between these are equal, to rounding: their deviation then says nothing.

    Equation:  high - low <= 4 eps max(|low|, |high|)
    Verified:  tests/unit/test_numerics.py::test_equal_numbers_have_no_deviation
    """
    return high - low <= 4.0 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())


def merge_moments(
    mean: Float[Tensor, "*shape"],
    variance: Float[Tensor, "*shape"],
    count: Float[Tensor, ""],
    x: Float[Tensor, "n *shape"],
    weight: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, ""]]:
    """Running mean and variance after seeing the rows of x whose weight is 1.

    Source:    Chan, Golub & LeVeque 1979, the parallel update.
    Args:      mean, variance (...), count: what was seen before, in float64, so that numbers far from zero, and merges
               by the million, lose nothing; x (n, ...); weight (n,) 0 or 1
    Returns:   the moments of everything seen, in the same precision; unchanged where no row counts
    Verified:  tests/unit/test_numerics.py::test_merge_moments_equals_the_moments_of_everything,
               tests/unit/test_numerics.py::test_moments_far_from_zero
    """
    x, weight = x.to(mean.dtype), weight.to(mean.dtype)
    shape = (-1, *([1] * (x.ndim - 1)))
    w = weight.view(shape)
    n = weight.sum()
    safe_n = n.clamp(min=1.0)
    batch_mean = (x * w).sum(0) / safe_n
    batch_variance = ((x - batch_mean).square() * w).sum(0) / safe_n
    total = (count + n).clamp(min=1.0)
    delta = batch_mean - mean
    new_mean = mean + delta * (n / total)
    new_variance = (variance * count + batch_variance * n + delta.square() * (count * n / total)) / total
    seen = n > 0
    return torch.where(seen, new_mean, mean), torch.where(seen, new_variance, variance), count + n


def reverse_recurrence(x: Float[Tensor, "t *shape"], c: Float[Tensor, "t *shape"]) -> Float[Tensor, "t *shape"]:
    """Solve y_t = x_t + c_t y_{t+1} backwards over the first axis, with y_T = 0.

    Composes the affine maps by doubling (Hillis & Steele 1986): log2(T) array operations instead of T, the same code
    eager, compiled and vmapped. For |c| <= 1 it is as accurate as the sequential loop.

    Args:      x, c (T, ...), both may carry gradient
    Returns:   (T, ...)
    Verified:  tests/unit/test_numerics.py::test_reverse_recurrence_equals_the_loop
    """
    steps = x.shape[0]
    shift = 1
    while shift < steps:
        x = torch.cat([x[:-shift] + c[:-shift] * x[shift:], x[-shift:]])
        c = torch.cat([c[:-shift] * c[shift:], c[-shift:]])
        shift *= 2
    return x


def forward_recurrence(
    x: Float[Tensor, "t *shape"], c: Float[Tensor, "t *shape"], initial: Float[Tensor, "*shape"]
) -> Float[Tensor, "t *shape"]:
    """Solve y_t = x_t + c_t y_{t-1} forwards over the first axis, with y_{-1} = initial.

    Verified:  tests/unit/test_numerics.py::test_forward_recurrence_equals_the_loop
    """
    first = (x[0] + c[0] * initial).unsqueeze(0)
    return reverse_recurrence(torch.cat([first, x[1:]]).flip(0), c.flip(0)).flip(0)


def correlated(
    noise: Float[Tensor, "t *shape"], previous: Float[Tensor, "*shape"] | None, correlation: float
) -> Float[Tensor, "t *shape"]:
    """Standard normal noise of which every step keeps a share of the one before: an Ornstein-Uhlenbeck process.

    Equation:  x_t = c x_{t-1} + sqrt(1 - c^2) eps_t, so that x_t ~ N(0, 1) for every t, with autocorrelation c^k
    Source:    Uhlenbeck & Ornstein 1930, sampled exactly at whole steps (c = exp(-theta)). Lillicrap et al. 2016 take
               Euler's step of it: their theta 0.15 and sigma 0.2 are c = 0.85 and a standard deviation of 0.38.
    Args:      noise (T, ...) independent standard normal; previous x_{-1}, or None at the beginning; c in [0, 1)
    Verified:  tests/unit/test_numerics.py::test_correlated_noise_has_its_autocorrelation
    """
    rows: list[Tensor] = []
    for fresh in noise.unbind(0):
        previous = fresh if previous is None else correlation * previous + math.sqrt(1.0 - correlation**2) * fresh
        rows.append(previous)
    return torch.stack(rows)


class ConjugateGradient(NamedTuple):
    """State of the solution of A x = b after some iterations."""

    solution: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]  # b - A x, by its recurrence
    direction: Float[Tensor, " n"]
    limit: Float[Tensor, ""]  # squared norm of the residual at which nothing moves any more


def conjugate_gradient_start(b: Float[Tensor, " n"], tolerance: float | None = None) -> ConjugateGradient:
    """x = 0, before the first iteration of solving A x = b.

    Args:      b (n,), in the range of A; tolerance of ||b - A x|| / ||b||, after which nothing changes any more: by
               default eps^(2/3) of the type, since beyond it only rounding is left, which a singular A does not reduce
               and whose tiny curvatures would throw x anywhere
    Verified:  tests/unit/test_numerics.py::test_conjugate_gradient_of_a_singular_matrix
    """
    share = torch.finfo(b.dtype).eps ** (2.0 / 3.0) if tolerance is None else tolerance
    return ConjugateGradient(torch.zeros_like(b), b, b, share**2 * (b * b).sum())


def conjugate_gradient_step(
    matvec: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]], at: ConjugateGradient
) -> ConjugateGradient:
    """One iteration; none once the residual is within its limit, or along a direction that A maps to nothing.

    A is symmetric, positive semi-definite and only known by its products; where it is singular, x goes to the solution
    of least norm.

    Equation:  alpha = r.r / p.Ap;  x <- x + alpha p;  r' = r - alpha Ap;  p <- r' + (r'.r' / r.r) p:
               x_k = argmin 1/2 x.Ax - b.x over span{b, Ab, ..., A^(k-1) b}; exact after rank A iterations
    Source:    Hestenes & Stiefel 1952. A mask stops it: a branch on a value would neither compile nor vmap.
    Verified:  tests/unit/test_numerics.py::test_conjugate_gradient_solves_as_a_dense_solver,
               tests/unit/test_numerics.py::test_conjugate_gradient_stops_where_it_has_arrived
    """
    image = matvec(at.direction)
    square = (at.residual * at.residual).sum()
    curvature = (at.direction * image).sum()
    moves = (square > at.limit) & (curvature > 0.0)
    one = torch.ones_like(square)
    length = torch.where(moves, square, 0.0) / torch.where(moves, curvature, one)
    residual = at.residual - length * image
    turn = torch.where(moves, (residual * residual).sum() / torch.where(moves, square, one), 0.0)
    direction = torch.where(moves, residual + turn * at.direction, at.direction)
    return ConjugateGradient(at.solution + length * at.direction, residual, direction, at.limit)


class LineSearch(NamedTuple):
    """State of a search along one step after some trials."""

    point: Float[Tensor, " n"]  # where to go; the start, to the last bit, until a trial is accepted
    improvement: Float[Tensor, ""]  # of the accepted trial, 0 while there is none
    divergence: Float[Tensor, ""]  # of the accepted trial, 0 while there is none
    accepted: Float[Tensor, ""]  # 1 or 0
    trials: Float[Tensor, ""]  # needed so far
    scale: Float[Tensor, ""]  # what the next trial multiplies the step by


def line_search_start(start: Float[Tensor, " n"]) -> LineSearch:
    """Before the first trial, which is of the full step."""
    zero = torch.zeros_like(start[0])
    return LineSearch(start, zero, zero, zero, zero, torch.ones_like(zero))


def line_search_step(
    measure: Callable[[Float[Tensor, " n"]], tuple[Float[Tensor, ""], Float[Tensor, ""]]],
    start: Float[Tensor, " n"],
    step: Float[Tensor, " n"],
    at: LineSearch,
    backtrack: float | Float[Tensor, ""],
    least_improvement: float | Float[Tensor, ""],
    most_divergence: float | Float[Tensor, ""],
) -> LineSearch:
    """One trial; it changes nothing once one was accepted. A measure that is no number is never accepted.

    Equation:  x + b^j step for the first j = 0, 1, ... with improvement > least_improvement and
               divergence <= most_divergence; x if there is none
    Args:      measure x (n,) -> (improvement, divergence); start, step (n,); backtrack b in (0, 1)
    Returns:   the search; every trial is measured, since a branch on a value would neither compile nor vmap
    Verified:  tests/unit/test_numerics.py::test_line_search_takes_the_first_acceptable_trial,
               tests/unit/test_numerics.py::test_a_failed_line_search_restores_the_start
    """
    trial = start + at.scale * step
    improvement, divergence = measure(trial)
    searching = at.accepted == 0.0
    good = searching & (improvement > least_improvement) & (divergence <= most_divergence)
    return LineSearch(
        torch.where(good, trial, at.point),
        torch.where(good, improvement, at.improvement),
        torch.where(good, divergence, at.divergence),
        torch.where(good, torch.ones_like(at.accepted), at.accepted),
        at.trials + searching.to(at.trials.dtype),
        at.scale * backtrack,
    )
