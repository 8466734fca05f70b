"""What a dataset holds, drawn: returns, lengths, actions, and where its observations lie."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest.experience.datasets.dataset import Dataset
from steepest.experience.datasets.summary import Summary, cells
from steepest.files.atomic import write_bytes_atomic
from steepest.files.style import COLOURS, FAINT_INK, STYLE, check_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 5
"""Components of an action that are drawn as lines; more are rows of a picture."""


def draw(dataset: Dataset, summary: Summary, out: Path) -> Path:
    """Draw a dataset into a picture; return its path.

    Raises:    UsageError on another ending; RunError when the system refuses the write
    """
    out = out if out.suffix else out.with_suffix(".png")
    check_picture(out)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 7.4), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        returns, lengths, actions, observations = figure.subplots(2, 2).flat
        _returns(returns, dataset)
        _histogram(lengths, dataset.lengths, COLOURS["green"])
        _label(lengths, "Lengths", "steps of an episode", "episodes")
        _actions(actions, dataset, summary)
        _coverage(observations, dataset, summary)
        title = f"{summary.env or Path(summary.source).name}: {summary.amount}"
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=out.suffix[1:].lower())
    write_bytes_atomic(out, buffer.getvalue())
    return out


def _returns(axes: Axes, dataset: Dataset) -> None:
    _histogram(axes, dataset.returns, COLOURS["blue"])
    if dataset.reference is not None:
        for name, value, line in (
            ("random", dataset.reference.random, ":"),
            ("expert", dataset.reference.expert, "--"),
        ):
            axes.axvline(value, color=COLOURS["vermilion"], linestyle=line, linewidth=1.4, label=name)
        # Above the panel, where it can hide no bar.
        axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=2, frameon=False)
    _label(axes, "Returns", "return of an episode", "episodes")


def _histogram(axes: Axes, values: Any, colour: str) -> None:
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) and high - low < 40:
        _whole_numbers(axes.xaxis)
        bins: Any = np.arange(low, high + 2) - 0.5
    elif low == high:  # one bar, wide enough to be seen
        bins = np.array([low - 0.5, high + 0.5])
    else:
        bins = np.linspace(low, high, 41)
    if len(bins) == 2:
        axes.set_xlim(low - 5, high + 5)
    axes.hist(values, bins=bins, color=colour, edgecolor="white", linewidth=0.5)
    _whole_numbers(axes.yaxis)


def _actions(axes: Axes, dataset: Dataset, summary: Summary) -> None:
    steps = summary.steps
    action = dataset.action[dataset.valid].reshape(steps, -1)
    colours = list(COLOURS.values())
    counts = [c.counts for c in summary.actions]
    if all(c is not None for c in counts):
        width = 0.8 / len(counts)
        for i, found in enumerate(counts[:MOST_LINES]):
            places = np.arange(len(found or ())) + (i - (len(counts) - 1) / 2) * width
            heights = np.array(found) / steps
            axes.bar(places, heights, width, color=colours[i], label=str(i), edgecolor="white", linewidth=0.5)
        _whole_numbers(axes.xaxis)
        axes.grid(visible=False, axis="x")
        _label(axes, "Actions", "choice, counted from 0", "share of steps")
    elif len(counts) <= MOST_LINES:
        bins = np.linspace(action.min(), action.max() + (action.min() == action.max()), 61)
        for i, x in enumerate(action.T):
            weights = np.full(steps, 1 / steps)
            axes.hist(x, bins=bins, weights=weights, histtype="step", linewidth=1.6, color=colours[i], label=str(i))
        _label(axes, "Actions", "as the environment took them", "share of steps")
    else:
        bins = np.linspace(action.min(), action.max() + (action.min() == action.max()), 61)
        rows = np.stack([np.histogram(x, bins=bins)[0] / steps for x in action.T])
        image = axes.pcolormesh(bins, np.arange(len(rows) + 1) - 0.5, np.sqrt(rows), cmap="Blues", vmin=0.0)
        image.set_rasterized(True)
        axes.invert_yaxis()
        _whole_numbers(axes.yaxis)
        axes.grid(visible=False)
        _label(axes, "Actions", "as the environment took them (darker: more often)", "component")
        return
    if len(counts) > 1:
        more = f", of {len(counts)}" if len(counts) > MOST_LINES else ""
        axes.legend(title=f"component{more}", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _coverage(axes: Axes, dataset: Dataset, summary: Summary) -> None:
    grid, edges = cells(dataset)
    shown = np.ma.masked_equal(np.log1p(grid.T), 0)
    axes.pcolormesh(*edges, shown, cmap="viridis_r").set_rasterized(True)
    axes.grid(visible=False)
    _label(axes, "Observations", "first principal component", "second")
    axes.annotate(
        f"coverage {summary.coverage:.1%}",
        xy=(1, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        color=FAINT_INK,
        fontsize=9,
    )


def _whole_numbers(axis: Any) -> None:
    axis.get_major_locator().set_params(integer=True)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
