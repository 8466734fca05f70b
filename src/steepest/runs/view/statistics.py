"""Means over runs, and their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


Array = NDArray[np.float64]
Statistic = Callable[[Array, int], Array]


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def interquartile_mean(values: Array, axis: int = 0) -> Array:
    """Mean of what is left when the lowest and the highest quarter are cut off.

    Equation:  with the n values sorted and k = floor(n / 4):  mean of values k+1 .. n-k
    Source:    Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice", section 4.3, as their library
               rliable computes it. Differences: none. Up to three values nothing is cut and this is the mean.
    Args:      values (..., n, ...), finite; axis that holds the n runs
    Returns:   (...), the axis removed
    Raises:    ValueError when the axis is empty or a value is NaN
    """
    values = np.asarray(values, dtype=np.float64)
    count = values.shape[axis]
    if count == 0 or np.isnan(values).any():
        raise ValueError("the interquartile mean needs at least one value and no NaN")
    ordered = np.sort(values, axis=axis)
    cut = count // 4
    return np.take(ordered, np.arange(cut, count - cut), axis=axis).mean(axis=axis)


def mean(values: Array, axis: int = 0) -> Array:
    """The mean along an axis, with the signature of :func:`interquartile_mean`."""
    return np.asarray(values, dtype=np.float64).mean(axis=axis)


def stratified_bootstrap(
    strata: Sequence[Array],
    statistic: Statistic,
    *,
    resamples: int = 2000,
    interval: float = 0.95,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of a statistic over runs, resampling runs within each stratum.

    Whole runs are resampled, so the points of one curve stay together; a stratum (a task, an environment) keeps its
    number of runs in every resample. The statistic pools the runs of all strata.

    Source:    Agarwal et al. 2021, section 4.1; Efron 1987 for the percentile method. Differences: none.
    Args:      strata, arrays (runs, points), the number of runs may differ; statistic(values, axis), which reduces an
               axis; interval, the share of resamples inside
    Returns:   (low, high), each (points,)
    Raises:    ValueError on an empty stratum, resamples < 1 or an interval outside (0, 1)
    """
    if not strata or any(len(runs) == 0 for runs in strata):
        raise ValueError("the bootstrap needs at least one run in every stratum")
    if resamples < 1 or not 0 < interval < 1:
        raise ValueError(f"expected resamples >= 1 and 0 < interval < 1, got {resamples} and {interval}")
    chosen = [generator.integers(len(runs), size=(resamples, len(runs))) for runs in strata]
    points = strata[0].shape[1]
    tails = [(1 - interval) / 2, (1 + interval) / 2]
    bounds = np.empty((2, points))
    # Some columns at a time, because (resamples, runs, points) at once would be hundreds of megabytes.
    width = max(1, 4_000_000 // (resamples * sum(len(runs) for runs in strata)))
    for start in range(0, points, width):
        columns = slice(start, start + width)
        drawn = [runs[:, columns][index] for runs, index in zip(strata, chosen, strict=True)]
        bounds[:, columns] = np.quantile(statistic(np.concatenate(drawn, axis=1), 1), tails, axis=0)
    return bounds[0], bounds[1]
