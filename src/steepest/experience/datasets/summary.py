"""What a dataset holds, in figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from steepest.environments.spaces import action_spec, obs_spec
from steepest.errors import RunError, UsageError
from steepest.experience.datasets.dataset import Array, Dataset, parts, pieces
from steepest.experience.datasets.sampling import DatasetRows, unit_actions
from steepest.experience.datasets.spaces import spaces_of

CELLS = 32
"""Cells per axis of the grid that coverage is measured on."""
SAMPLE = 20_000
"""Rows at most, evenly spread, that the axes of the grid are found from."""
PIXELS = 16
"""Images count with so many pixels per axis."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Statistics of one figure per episode, or per row."""

    mean: float
    std: float
    min: float
    quartiles: tuple[float, float, float]
    max: float


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of the actions; of a discrete one, how often each choice was taken."""

    min: float
    max: float
    at_low: float | None  # share of steps at the lower bound, None where it is not known or infinite
    at_high: float | None
    counts: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Field:
    """One array of the observations."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float
    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a dataset; ``as_dict`` for JSON, ``lines`` for people."""

    source: str
    env: str | None
    episodes: int
    steps: int
    length: Figures
    returns: Figures
    terminated: float  # share of episodes
    truncated: float
    observations: tuple[Field, ...]
    actions: tuple[Component, ...]
    coverage: float  # see ``coverage``
    score: Figures | None  # normalised by the reference returns
    reference: tuple[float, float] | None
    log_prob: Figures | None
    notes: tuple[str, ...]

    @property
    def amount(self) -> str:
        """Steps and episodes, in words."""
        return f"{self.steps:,} steps in {self.episodes:,} episode{'' if self.episodes == 1 else 's'}"

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as plain JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield the lines of a table."""
        env = self.env or "an environment without a name"
        yield f"{self.source}: {self.amount} of {env}"
        yield f"  {'':14}{'mean':>11}{'std':>11}{'min':>11}{'25%':>11}{'50%':>11}{'75%':>11}{'max':>11}"
        for label, found in (
            ("return", self.returns),
            ("score", self.score),
            ("length", self.length),
            ("log_prob", self.log_prob),
        ):
            if found is not None:
                figures = (found.mean, found.std, found.min, *found.quartiles, found.max)
                yield f"  {label:14}{''.join(f'{x:11,.2f}' for x in figures)}"
        yield f"  {'ended':14}{self.terminated:.1%} terminated, {self.truncated:.1%} truncated"
        if self.reference is not None:
            yield f"  {'reference':14}{self.reference[0]:,.2f} (random), {self.reference[1]:,.2f} (expert)"
        yield f"  {'coverage':14}{self.coverage:.1%} of the cells over two principal components, by entropy"
        for number, field in enumerate(self.observations):
            shape = " x ".join(map(str, field.shape)) or "scalar"
            yield (
                f"  {'observations' if number == 0 else '':14}{field.name}: {shape} {field.dtype}, {field.min:.4g} to "
                f"{field.max:.4g}, mean {field.mean:.4g}"
            )
        for number, action in enumerate(self.actions):
            yield f"  {'actions' if number == 0 else '':14}{number}: {_of(action, self.steps)}"
        if self.log_prob is None:
            yield f"  {'log_prob':14}not recorded"
        for note in self.notes:
            yield f"  note: {note}"


def summarised(dataset: Dataset) -> Summary:
    """Return the figures of a dataset.

    Raises:    UsageError where the spaces are known, and observations or actions are not of them
    Verified:  tests/unit/test_datasets.py::test_a_summary_by_hand
    """
    notes: list[str] = []
    try:
        known = spaces_of(dataset)
    except (UsageError, RunError) as error:  # as where the environment's package is not installed
        known = None
        notes.append(f"bounds are not checked: {error}")
    if known is not None:
        DatasetRows(dataset, obs_spec(known[0]), action_spec(known[1]))  # which refuses what is not of the spaces
    elif not notes:
        notes.append("bounds are not checked: the dataset names no environment")
    returns, ended = dataset.returns, dataset.terminated.sum()
    reference = dataset.reference
    return Summary(
        source=dataset.source,
        env=dataset.env,
        episodes=len(returns),
        steps=dataset.steps,
        length=figures(dataset.lengths),
        returns=figures(returns),
        terminated=float(ended / len(returns)),
        truncated=float(1 - ended / len(returns)),
        observations=tuple(_field(name, array) for name, array in parts(dataset.obs)),
        actions=_components(dataset, None if known is None else known[1]),
        coverage=coverage(dataset),
        score=None if reference is None else figures(reference.score(returns)),
        reference=None if reference is None else (reference.random, reference.expert),
        log_prob=None if dataset.log_prob is None else figures(dataset.log_prob[dataset.valid]),
        notes=tuple(notes),
    )


def figures(values: Array) -> Figures:
    """Return the statistics of numbers (N,)."""
    values = np.asarray(values, np.float64)
    low, middle, high = (float(x) for x in np.quantile(values, (0.25, 0.5, 0.75)))
    return Figures(
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        quartiles=(low, middle, high),
        max=float(values.max()),
    )


def coverage(dataset: Dataset) -> float:
    """Return the share of cells that the steps would fill if they were spread evenly over as many as they fill now.

    Equation:  exp(H) / cells,  H = - sum_c p_c log p_c,  p_c the share of steps in cell c
               a grid of CELLS x CELLS over the first two principal components of the observations, see ``cells``
    Returns:   in (0, 1]: 1 where every cell holds as many steps as any other
    Verified:  tests/unit/test_datasets.py::test_coverage_is_the_share_of_cells
    """
    grid = cells(dataset)[0]
    share = grid[grid > 0] / grid.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / grid.size)


def cells(dataset: Dataset) -> tuple[Array, tuple[Array, Array]]:
    """Return the steps in every cell of the grid, (X, Y), and the edges of the cells along both axes.

    An axis along which the observations have few values has a cell for each. Any other goes from the first percentile
    to the last, and what lies beyond counts to the outermost cells.
    """
    points = principal_components(dataset)
    edges = tuple(_edges(points[:, i]) for i in range(2))
    inside = [np.clip(points[:, i], edges[i][0], edges[i][-1]) for i in range(2)]
    return np.histogram2d(*inside, bins=list(edges))[0], (edges[0], edges[1])


def principal_components(dataset: Dataset) -> Array:
    """Return the first two principal components of the standardised observations, (N, 2), of at most SAMPLE steps."""
    rows = np.flatnonzero(dataset.valid)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64))]
    features = np.concatenate([_features(array, rows) for _, array in parts(dataset.obs)], axis=1)
    low, high = features.min(0), features.max(0)
    differs = high - low > 4 * np.finfo(features.dtype).eps * np.maximum(abs(low), abs(high))  # else rounding alone
    features = features[:, differs]
    features = (features - features.mean(0)) / features.std(0)
    if features.shape[1] < 2:  # one number, or nothing, differs between observations
        return np.pad(features, ((0, 0), (0, 2 - features.shape[1])))
    _, vectors = np.linalg.eigh(features.T @ features / len(features))
    axes = vectors[:, [-1, -2]]
    largest = np.abs(axes).argmax(0)
    return features @ (axes * np.sign(axes[largest, [0, 1]]))


def _features(array: Array, rows: Array) -> Array:
    if array.dtype == np.uint8 and array.ndim >= 3:
        steps = [slice(None, None, max(1, size // PIXELS)) for size in array.shape[1:]]
        array = array[(slice(None), *steps)]
    return np.asarray(array[rows], np.float64).reshape(len(rows), -1)


def _edges(values: Array) -> Array:
    distinct = np.unique(np.round(values, 9))
    if len(distinct) <= CELLS:
        between = (distinct[1:] + distinct[:-1]) / 2
        return np.concatenate([[distinct[0] - 0.5], between, [distinct[-1] + 0.5]])
    low, high = np.quantile(values, (0.01, 0.99))
    if low == high:
        low, high = values.min(), values.max()
    return np.linspace(low, high, CELLS + 1)


def _field(name: str, array: Array) -> Field:
    chunks = (array[piece] for piece in pieces(array))
    found = [(float(x.min()), float(x.sum(dtype=np.float64)), float(x.max())) for x in chunks]
    return Field(
        name=name,
        shape=tuple(array.shape[1:]),
        dtype=str(array.dtype),
        min=min(low for low, _, _ in found),
        mean=sum(total for _, total, _ in found) / array.size,
        max=max(high for _, _, high in found),
    )


def _components(dataset: Dataset, space: Any) -> tuple[Component, ...]:
    action = dataset.action[dataset.valid].reshape(dataset.steps, -1)
    at: list[tuple[float | None, float | None]] = [(None, None)] * action.shape[1]
    discrete = action.dtype.kind in "biu"
    if space is not None:
        spec = action_spec(space)
        discrete = spec.kind != "box"
        if not discrete:
            unit = unit_actions(dataset, spec)[dataset.valid]
            bounded = np.isfinite(spec.low) & np.isfinite(spec.high)
            shares = ((unit <= -1 + 1e-6).mean(0), (unit >= 1 - 1e-6).mean(0))
            at = [
                (float(low), float(high)) if b else (None, None) for low, high, b in zip(*shares, bounded, strict=True)
            ]
    return tuple(
        Component(
            min=float(x.min()),
            max=float(x.max()),
            at_low=low,
            at_high=high,
            counts=_counts(x, space, i) if discrete else None,
        )
        for i, (x, (low, high)) in enumerate(zip(action.T, at, strict=True))
    )


def _counts(values: Array, space: Any, component: int) -> tuple[int, ...]:
    """Return how often each choice was taken: all of the space's, or those between the least and the greatest seen."""
    first, count = int(values.min()), int(values.max()) - int(values.min()) + 1
    if space is not None:
        spec = action_spec(space)
        first, count = spec.start[component], spec.sizes[component]
    return tuple(int(n) for n in np.bincount(values.astype(np.int64) - first, minlength=count))


def _of(action: Component, steps: int) -> str:
    text = f"{action.min:.4g} to {action.max:.4g}"
    if action.counts is not None:
        shown = ", ".join(f"{n / steps:.1%}" for n in action.counts[:12])
        return f"{text}; {shown}{', ...' if len(action.counts) > 12 else ''}"
    if action.at_low is None or action.at_high is None:
        return text
    return f"{text}; {action.at_low:.1%} at the lower bound, {action.at_high:.1%} at the upper"
