"""Weighted statistics, running moments and linear recurrences against loops and NumPy, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from helpers import F64
from steepest.numerics import (
    LineSearch,
    conjugate_gradient_start,
    conjugate_gradient_step,
    correlated,
    forward_recurrence,
    line_search_start,
    line_search_step,
    merge_moments,
    reverse_recurrence,
    standardize,
    weighted_mean,
    weighted_variance,
)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def weights(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6).to(F64)


def test_weighted_mean_and_variance_are_those_of_the_selected() -> None:
    x, w = rand(5, 7), weights(5, 7)
    kept = x[w > 0]
    assert float(weighted_mean(x, w)) == pytest.approx(float(kept.mean()), rel=1e-12)
    assert float(weighted_variance(x, w)) == pytest.approx(float(kept.var(correction=0)), rel=1e-12)
    assert weighted_mean(x, torch.zeros_like(x)) == 0.0
    assert weighted_variance(x, torch.zeros_like(x)) == 0.0


def test_standardize_ignores_what_has_no_weight() -> None:
    x, w = 3.0 * rand(5, 7) + 2.0, weights(5, 7)
    z = standardize(x, w)
    kept = z[w > 0]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(kept.std(correction=0)) == pytest.approx(1.0, abs=1e-7)
    other = torch.where(w > 0, x, 1e6)
    torch.testing.assert_close(standardize(other, w)[w > 0], kept, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("number", [100.1, 12345.1, -0.3, 1e-6, 7e7])
def test_equal_numbers_have_no_deviation(number: float, dtype: torch.dtype) -> None:
    """Whose mean is rounded. Those that differ by a rounding count as equal, those that differ by more do not."""
    for n in (2, 3, 7, 100, 4097):
        x = torch.full((n,), number, dtype=dtype)
        assert not standardize(x, torch.ones_like(x)).any(), n
        weight = torch.ones_like(x)
        weight[0] = 0.0
        assert not standardize(torch.cat([x.new_tensor([5.0]), x[1:]]), weight)[1:].any(), n
        assert not torch.vmap(standardize)(x.expand(3, n), torch.ones(3, n, dtype=dtype)).any(), n
        near = x.clone()
        near[0] = torch.nextafter(near[0], torch.tensor(torch.inf, dtype=dtype))
        assert not standardize(near, torch.ones_like(x)).any(), n
    other = torch.tensor([number, number, number * (1.0 + 1000.0 * torch.finfo(dtype).eps)], dtype=dtype)
    found = standardize(other, torch.ones_like(other), epsilon=0.0)
    assert abs(float(found[2])) == pytest.approx(2.0**0.5, rel=5e-3)
    whole = torch.tensor([1_000_000.0, 1_000_001.0], dtype=dtype)
    assert standardize(whole, torch.ones_like(whole)).tolist() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5, 1e6])
def test_moments_far_from_zero(offset: float) -> None:
    """A row at a time, as one environment gives them: with moments in float32 the deviation was off by 24 %."""
    x = offset + torch.randn((3000, 2), generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x.float()
    mean, variance, count = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), torch.tensor(0.0, dtype=F64)
    for row in x:
        mean, variance, count = merge_moments(mean, variance, count, row.unsqueeze(0), torch.ones(1))
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(variance, x.double().var(0, correction=0), rtol=1e-8, atol=0.0)


def test_counts_go_on_beyond_what_float32_can_count() -> None:
    """2^24 + 1 is 2^24 in float32, and a count that no longer grows stops averaging."""
    moments = torch.zeros((), dtype=F64), torch.ones((), dtype=F64), torch.tensor(2.0**24, dtype=F64)
    _, _, count = merge_moments(*moments, torch.ones(1), torch.ones(1))
    assert float(count) == 2.0**24 + 1.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_merge_moments_equals_the_moments_of_everything(shape: tuple[int, ...]) -> None:
    """Three batches, far apart, some rows left out; started from nothing and compared with all rows at once."""
    mean, variance, count = torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64), torch.tensor(0.0, dtype=F64)
    seen: list[Tensor] = []
    for i, n in enumerate((5, 1, 40)):
        x, w = 10.0 * i + (1.0 + i) * rand(n, *shape, seed=i), weights(n, seed=10 + i)
        if n == 1:
            w = torch.ones(1, dtype=F64)
        mean, variance, count = merge_moments(mean, variance, count, x, w)
        seen.append(x[w > 0])
    everything = torch.cat(seen)
    assert count == len(everything)
    torch.testing.assert_close(mean, everything.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, everything.var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_merge_moments_of_nothing_changes_nothing() -> None:
    mean, variance, count = rand(3), rand(3).exp(), torch.tensor(0.0, dtype=F64)
    for seen in (count, count + 4):
        after = merge_moments(mean, variance, seen, rand(5, 3), torch.zeros(5, dtype=F64))
        assert all(torch.equal(a, b) for a, b in zip(after, (mean, variance, seen), strict=True))


def loop(x: Tensor, c: Tensor, initial: Tensor) -> Tensor:
    rows, y = [], initial
    for t in range(len(x)):
        y = x[t] + c[t] * y
        rows.append(y)
    return torch.stack(rows)


LENGTHS = [1, 2, 3, 4, 5, 8, 17, 64, 127]


@pytest.mark.parametrize("steps", LENGTHS)
def test_reverse_recurrence_equals_the_loop(steps: int) -> None:
    x, c = rand(steps, 3), 2.0 * torch.rand((steps, 3), generator=torch.Generator().manual_seed(5), dtype=F64) - 1.0
    c[steps // 2] = 0.0
    expected = loop(x.flip(0), c.flip(0), torch.zeros(3, dtype=F64)).flip(0)
    torch.testing.assert_close(reverse_recurrence(x, c), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", LENGTHS)
def test_forward_recurrence_equals_the_loop(steps: int) -> None:
    x, c = rand(steps, 3), 2.0 * torch.rand((steps, 3), generator=torch.Generator().manual_seed(5), dtype=F64) - 1.0
    initial = rand(3, seed=9)
    torch.testing.assert_close(forward_recurrence(x, c, initial), loop(x, c, initial), rtol=1e-12, atol=1e-12)


def test_recurrences_carry_gradient_and_vmap() -> None:
    x, c = (rand(6, 2, seed=s).requires_grad_() for s in (0, 1))
    torch.autograd.gradcheck(reverse_recurrence, (x, c))
    torch.autograd.gradcheck(forward_recurrence, (x, c, rand(2).requires_grad_()))
    xs, cs = rand(4, 6, 2), rand(4, 6, 2, seed=1)
    together = vmap(reverse_recurrence)(xs, cs)
    for m in range(4):
        torch.testing.assert_close(together[m], reverse_recurrence(xs[m], cs[m]), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 200), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_reverse_recurrence_keeps_float32_accuracy(steps: int, seed: int) -> None:
    """Against the sequential loop in float64, relative to the largest partial sum: 1e-5 in float32."""
    g = np.random.default_rng(seed)
    x, c = torch.from_numpy(g.normal(size=steps)), torch.from_numpy(g.uniform(0, 1, size=steps))
    expected = loop(x.flip(0), c.flip(0), torch.zeros((), dtype=F64)).flip(0)
    got = reverse_recurrence(x.float(), c.float()).double()
    scale = float(loop(x.abs().flip(0), c.flip(0), torch.zeros((), dtype=F64)).max())
    assert float((got - expected).abs().max()) < 1e-5 * max(scale, 1.0)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((3, 1), (3,))])
def test_a_wrong_shape_raises(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    if not hasattr(weighted_mean, "__wrapped__"):
        pytest.skip("STEEPEST_TYPECHECK=0")
    x, w = (torch.zeros(s) for s in shapes)
    for function in (weighted_mean, weighted_variance, standardize, reverse_recurrence):
        with pytest.raises(jaxtyping.TypeCheckError):
            function(x, w)


def test_correlated_noise_has_its_autocorrelation() -> None:
    """Unit variance throughout and correlation c^k at distance k, within 5 standard errors of 100,000 series; pieces of
    a series are the whole."""
    noise = torch.randn((6, 100_000), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = correlated(noise, None, 0.85)
    covariance = x @ x.T / noise.shape[1]
    distance = (torch.arange(6).unsqueeze(1) - torch.arange(6)).abs()
    assert (covariance - 0.85**distance).abs().max() < 5 * (2 / 100_000) ** 0.5
    first = correlated(noise[:2], None, 0.85)
    assert torch.equal(torch.cat([first, correlated(noise[2:], first[-1], 0.85)]), x)
    assert torch.equal(correlated(noise, None, 0.0), noise)


# Conjugate gradients


def spectrum(values: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(rand(len(values), len(values), seed=seed))
    return q @ torch.diag(torch.tensor(values, dtype=F64)) @ q.T


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    at = conjugate_gradient_start(b, tolerance)
    for _ in range(iterations):
        at = conjugate_gradient_step(matvec, at)
    return at.solution, torch.linalg.vector_norm(at.residual)


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradient_solves_as_a_dense_solver(seed: int) -> None:
    a, b = spectrum([0.1, 0.5, 1.0, 2.0, 5.0, 9.0], seed), rand(6, seed=seed + 9)
    found, residual = conjugate_gradient(a.matmul, b, 20, tolerance=1e-14)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-10, atol=1e-12)
    assert float(residual) <= 1e-14 * float(b.norm())
    # Half-way it is the minimiser over the Krylov space, found densely here.
    half, left = conjugate_gradient(a.matmul, b, 3)
    krylov, _ = torch.linalg.qr(torch.stack([b, a @ b, a @ a @ b], 1))
    expected = krylov @ torch.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
    torch.testing.assert_close(half, expected, rtol=1e-10, atol=1e-12)
    assert float(left) == pytest.approx(float((b - a @ half).norm()), rel=1e-10)
    assert float((half - found).norm()) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_of_a_singular_matrix(seed: int, dtype: torch.dtype) -> None:
    """With b in its range, the solution of least norm; iterations to spare do no harm, in either precision."""
    a = spectrum([0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0], seed)
    b = a @ rand(7, seed=seed + 9)
    expected = torch.linalg.pinv(a, hermitian=True) @ b
    found, _ = conjugate_gradient(a.to(dtype).matmul, b.to(dtype), 50)
    tolerance = 1e-9 if dtype == F64 else 1e-4  # eps^(2/3) times the condition number
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_without_a_limit_rounding_takes_over_a_singular_system() -> None:
    """Negative control: iterations continue in the null space, where the curvature is rounding and the steps are not.

    Of some systems, since how a processor rounds decides which.
    """

    def error(seed: int) -> float:
        a = spectrum([0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0], seed)
        b = a @ rand(7, seed=seed + 9)
        found, _ = conjugate_gradient(a.matmul, b, 50, tolerance=0.0)
        return float((found - torch.linalg.pinv(a, hermitian=True) @ b).norm())

    assert max(error(seed) for seed in range(1, 9)) > 1e-3


def test_conjugate_gradient_stops_where_it_has_arrived() -> None:
    """To the last bit, also from b = 0 and along a direction that is mapped to nothing or bent downwards."""
    a, b = spectrum([1.0, 2.0, 3.0, 4.0]), rand(4, seed=3)
    at = conjugate_gradient_start(b)
    for _ in range(6):
        at = conjugate_gradient_step(a.matmul, at)
    after = conjugate_gradient_step(a.matmul, at)
    assert all(torch.equal(x, y) for x, y in zip(at, after, strict=True))
    for matrix, right in ((a, torch.zeros_like(b)), (torch.zeros_like(a), b), (-a, b)):
        found, residual = conjugate_gradient(matrix.matmul, right, 3)
        assert torch.equal(found, torch.zeros_like(b))
        assert float(residual) == pytest.approx(float(right.norm()))


def test_conjugate_gradient_of_several_systems_at_once() -> None:
    """One arrives after an iteration, one never has to leave, one needs them all."""
    a = torch.stack([torch.eye(4, dtype=F64), spectrum([1.0, 2.0, 3.0, 4.0]), spectrum([0.1, 2.0, 30.0, 4.0], 1)])
    b = torch.stack([rand(4, seed=1), torch.zeros(4, dtype=F64), rand(4, seed=2)])
    together, residuals = vmap(lambda m, x: conjugate_gradient(m.matmul, x, 8))(a, b)
    for i in range(3):
        alone, residual = conjugate_gradient(a[i].matmul, b[i], 8)
        torch.testing.assert_close(together[i], alone, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(residuals[i], residual, rtol=1e-6, atol=1e-12)


# Line search


def line_search(
    measure: Any, start: Tensor, step: Tensor, trials: int, backtrack: float = 0.8, *, least: float = 0.0, most: Any
) -> LineSearch:
    at = line_search_start(start)
    for _ in range(trials):
        at = line_search_step(measure, start, step, at, backtrack, least, most)
    return at


def parabola(x: Tensor) -> tuple[Tensor, Tensor]:
    """Improvement 3 d - d^2 at a distance d from 0, best at 1.5 and gone at 3; divergence d^2."""
    d = x.sum()
    return 3.0 * d - d.square(), d.square()


@pytest.mark.parametrize(
    ("length", "limit", "trials"),
    [(1.0, 9.0, 1), (4.0, 9.0, 2), (4.0, 1.5, 3), (8.0, 1.5, 4), (4.0, 2.0**-6, 6), (1.0, 1.0, 1)],
)
def test_line_search_takes_the_first_acceptable_trial(length: float, limit: float, trials: int) -> None:
    """By hand: the step is halved until it improves and is within the limit, which counts as within it."""
    start, step = torch.zeros(2, dtype=F64), torch.tensor([0.25, 0.75], dtype=F64) * length
    found = line_search(parabola, start, step, 10, 0.5, most=limit)
    expected = step * 0.5 ** (trials - 1)
    improvement, divergence = parabola(expected)
    assert torch.equal(found.point, expected)
    assert float(found.trials) == trials
    assert float(found.accepted) == 1.0
    assert (float(found.improvement), float(found.divergence)) == (float(improvement), float(divergence))


def test_line_search_asks_for_the_least_improvement() -> None:
    start, step = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    for least, accepted in ((1.99, 1.0), (2.0, 0.0), (-torch.inf, 1.0)):
        found = line_search(parabola, start, step, 1, least=least, most=torch.inf)
        assert float(found.accepted) == accepted


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_a_failed_line_search_restores_the_start(bad: float) -> None:
    """To the last bit, whatever was measured; and a search that fails leaves its neighbours under vmap alone."""
    start, step = rand(3), rand(3, seed=1)
    measured = torch.tensor(bad, dtype=F64)
    for improvement, divergence in ((measured, torch.zeros_like(measured)), (torch.ones_like(measured), measured)):
        fails = not (improvement > 0.0 and divergence <= 0.5)
        found = line_search(lambda _, i=improvement, d=divergence: (i, d), start, step, 4, most=0.5)
        assert torch.equal(found.point, start) == fails
        assert float(found.accepted) == float(not fails)
        assert float(found.trials) == (4.0 if fails else 1.0)
    limits = torch.tensor([9.0, 1e-12], dtype=F64)
    zeros, steps = torch.zeros((2, 2), dtype=F64), rand(2, 2).abs()
    together = vmap(lambda s, d, m: line_search(parabola, s, d, 5, most=m))(zeros, steps, limits)
    assert together.accepted.tolist() == [1.0, 0.0]
    assert torch.equal(together.point[1], zeros[1])
    assert not torch.equal(together.point[0], zeros[0])
