"""Bias against variance, drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steepest.errors import UsageError
from steepest.estimators.comparison import Comparison
from steepest.estimators.estimators import ESTIMATORS, Group
from steepest.files.atomic import write_bytes_atomic
from steepest.files.style import COLOURS, FAINT_INK, STYLE, check_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: dict[Group, str] = {
    "Monte Carlo": COLOURS["grey"],
    "baseline": COLOURS["blue"],
    "actor-critic": COLOURS["vermilion"],
    "n-step": COLOURS["purple"],
    "GAE": COLOURS["green"],
    "off-policy": COLOURS["orange"],
    "own": COLOURS["sky blue"],
}
_MARKERS = "os^Dv<>PX"


def plot(comparisons: Sequence[Comparison], out: str | Path) -> Path:
    """Draw bias against variance, a panel per comparison, with 95% intervals.

    Args:      out: the picture (.png, .pdf or .svg; .png when there is no ending)
    Returns:   the path written
    Raises:    UsageError on another ending, or nothing to draw; RunError when the system refuses the write
    Verified:  tests/exact/test_estimators.py::test_the_command_prints_and_draws
    """
    if not comparisons:
        raise UsageError("nothing to draw: give at least one comparison")
    out = Path(out)
    out = out if out.suffix else out.with_suffix(".png")
    check_picture(out)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looks = _looks(comparisons)
    with mpl.rc_context(STYLE):
        count = len(comparisons)
        columns = count if count <= 3 else 2
        lines = math.ceil(count / columns)
        height = max(4.8 * lines, 0.28 * (len(looks) + 2))
        figure = Figure(figsize=(4.4 * columns + 2.4, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        handles: dict[str, Any] = {}
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat[count:]:
            axes.set_visible(False)
        for axes, comparison in zip(panels.flat, comparisons, strict=False):
            _draw(axes, comparison, looks, handles)
        for row in panels:
            row[0].set_ylabel("variance of one estimate / |exact gradient|\u00b2")
        # Beside the panels, where it can hide no point.
        legend = panels[0][-1].legend(
            [handles[name] for name in looks],
            list(looks),
            loc="upper left",
            bbox_to_anchor=(1.02, 1.02),
            frameon=False,
            title="bars: 95% intervals\ngreen line: GAE over lambda",
            title_fontproperties={"size": 9},
            alignment="left",
        )
        legend.get_title().set_color(FAINT_INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=out.suffix[1:].lower())
    write_bytes_atomic(out, buffer.getvalue())
    return out


def _looks(comparisons: Sequence[Comparison]) -> dict[str, tuple[str, str]]:
    """Colour by group and marker within it, by estimator, the same in every panel."""
    groups: dict[str, Group] = {row.name: row.group for comparison in comparisons for row in comparison.rows}
    names = [name for name in ESTIMATORS if name in groups]
    looks: dict[str, tuple[str, str]] = {}
    met: dict[Group, int] = {}
    for name in [*names, *(name for name in groups if name not in names)]:
        number = met.get(groups[name], 0)
        looks[name] = _COLOURS[groups[name]], _MARKERS[number % len(_MARKERS)]
        met[groups[name]] = number + 1
    return looks


def _draw(axes: Axes, comparison: Comparison, looks: Mapping[str, tuple[str, str]], handles: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # In one recording without an end the learned baseline is not quite lambda 1: it does not bootstrap.
    longest = 0.99 if comparison.objective == "average" else 1.0
    traces = ((r.gae_lambda, r.bias, r.variance) for r in comparison.rows if r.gae_lambda is not None)
    path = sorted(trace for trace in traces if trace[0] <= longest)
    axes.plot([p[1] for p in path], [p[2] for p in path], color=_COLOURS["GAE"], linewidth=1, alpha=0.5)
    for row in comparison.rows:
        colour, marker = looks[row.name]
        axes.errorbar(
            row.bias,
            row.variance,
            xerr=[[row.bias - row.bias_interval[0]], [row.bias_interval[1] - row.bias]],
            yerr=[[row.variance - row.variance_interval[0]], [row.variance_interval[1] - row.variance]],
            fmt="none",
            ecolor=colour,
            elinewidth=1.1,
        )
        (handles[row.name],) = axes.plot(
            row.bias,
            row.variance,
            marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.7,
            clip_on=False,
            zorder=3,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    # The interval of an estimator of huge variance says little about bias: it may leave the picture.
    furthest = max(row.bias for row in comparison.rows)
    usual = float(np.median([row.bias_interval[1] for row in comparison.rows]))
    axes.set_xlim(0.0, 1.15 * max(furthest, 2.0 * usual))
    axes.set_xlabel("bias / |exact gradient|")
    axes.set_title(comparison.problem, loc="left", fontweight="bold", pad=22)
    what = {
        "discounted": f"return, gamma {comparison.gamma:g}",
        "undiscounted": f"undiscounted states, gamma {comparison.gamma:g}",
        "average": "average reward",
    }[comparison.objective]
    facts = f"{what}  \u00b7  {comparison.repeats} estimates, {comparison.steps} steps each"
    axes.annotate(
        facts,
        xy=(0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=FAINT_INK,
        fontsize=9,
    )
