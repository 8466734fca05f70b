"""Learning curves: one run while it is fresh, and several runs side by side with honest intervals."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steepest.errors import RunError, UsageError
from steepest.files.atomic import write_bytes_atomic
from steepest.files.style import COLOURS, FAINT_INK, STYLE, check_picture
from steepest.runs.options.varied import Varied, named_members, read_varied

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from steepest.runs.view.curves import (
    EVAL_LOSS,
    EVAL_RETURN,
    TRAIN_LOSS,
    TRAIN_RETURN,
    Curve,
    SavedRun,
    by_configuration,
    choose_metric,
    display_name,
    read_run,
)
from steepest.runs.view.statistics import Array, Statistic, interquartile_mean, mean, stratified_bootstrap

_COLOURS = tuple(COLOURS.values())
_LINES = ("-", "--", ":", "-.")
_GRID_POINTS = 200
_NAMED_MEMBERS = 16
"""Members of a population that a legend has room for."""
_LEGEND_WIDTH = 34
"""Characters per line of a legend."""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def plot_runs(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    statistic: Literal["mean", "iqm"] = "iqm",
    x: Literal["steps", "wall", "both"] = "both",
    metric: str = TRAIN_RETURN,
    interval: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Path:
    """Draw runs side by side: one curve per configuration, one row of panels per environment.

    All seeds of all runs with the same algorithm, environment and configuration form one group; the legend names what
    sets the configurations of an algorithm apart. From three seeds on, a group is its statistic with a bootstrap
    interval; below that its seeds are thin lines, as two runs carry no interval. A curve covers only what all seeds of
    its group covered.

    Args:      run_dirs, folders of runs; out, the picture (.png, .pdf or .svg; .png when there is no ending);
               statistic over seeds; x, environment steps, wall time or a panel each;
               metric, tag to draw: "train/return_mean" gives way to "eval/return_mean" where it was not measured;
               interval, bootstrap, seed: coverage, number of resamples, and where their randomness starts;
               labels: a name in the legend for every run, in their order, in the place of what sets runs apart
    Returns:   the path written
    Raises:    UsageError when a path is no run, or the metric or the ending is unknown;
               RunError when a run is empty or the system refuses the write
    """
    if not run_dirs:
        raise UsageError("nothing to plot: give at least one folder of a run.")
    out = Path(out)
    out = out if out.suffix else out.with_suffix(".png")
    check_picture(out)
    if not 0 < interval < 1:
        raise UsageError(f"the interval must lie between 0 and 1, such as 0.95; got {interval}.")
    if bootstrap < 1:
        raise UsageError(f"the number of bootstrap resamples must be at least 1; got {bootstrap}.")
    folders = [Path(path).resolve() for path in run_dirs]
    if labels and len(labels) != len(folders):
        raise UsageError(f"labels are {len(labels)}, and runs {len(folders)}; give one for every run, in their order")
    named = dict(zip(folders, labels, strict=True)) if labels else None
    runs = [read_run(path) for path in dict.fromkeys(folders)]
    metric = choose_metric(runs, metric)
    envs = list(dict.fromkeys(run.env for run in runs))
    groups = {env: by_configuration([run for run in runs if run.env == env], named) for env in envs}
    # Colours go with the label, in every row the same.
    labels = list(dict.fromkeys(label for by_label in groups.values() for label in by_label))
    summary = _Summary(interquartile_mean if statistic == "iqm" else mean, interval, bootstrap, seed)
    kinds: list[Literal["steps", "wall"]] = ["steps", "wall"] if x == "both" else [x]

    import matplotlib

    with matplotlib.rc_context(STYLE):
        width = (5.0 * len(kinds) if len(kinds) > 1 else 7.0) + (2.8 if len(labels) > 1 else 0.0)
        figure = _new_figure((width, 3.7 * len(envs) + 0.3))
        panels = figure.subplots(len(envs), len(kinds), squeeze=False, sharey="row")
        summarised: set[bool] = set()
        for row, env in enumerate(envs):
            curves_of = {
                label: [curve for run in members for curve in run.curves(metric)]
                for label, members in groups[env].items()
            }
            for axes, kind in zip(panels[row], kinds, strict=True):
                longest = max(_axis(curve, kind)[-1] for curves in curves_of.values() for curve in curves)
                unit, scale = ("", 1.0) if kind == "steps" else _time_unit(longest)
                for label, curves in curves_of.items():
                    index = labels.index(label)
                    colour, line = _COLOURS[index % len(_COLOURS)], _LINES[index // len(_COLOURS) % len(_LINES)]
                    text = textwrap.fill(f"{label} ({_seeds(len(curves))})", _LEGEND_WIDTH, subsequent_indent="  ")
                    summarised.add(_draw_group(axes, curves, kind, scale, summary, colour, line, text))
                _dress_x(axes, kind, unit)
                if kind == "steps" and metric in (TRAIN_LOSS, EVAL_LOSS):
                    axes.set_xlabel("updates")
                axes.margins(x=0.01)
            first: Axes = panels[row][0]
            first.set_ylabel(_metric_label(metric))
            _compact_ticks(first.yaxis)
            title = env if len(envs) > 1 or len(labels) > 1 else f"{labels[0]} on {env}"
            first.set_title(title, loc="left", fontweight="bold", pad=22 if row == 0 else 8)
            if len(labels) > 1:
                # Beside the panels, where it can hide no curve.
                handles, texts = first.get_legend_handles_labels()
                panels[row][-1].legend(handles, texts, loc="upper left", bbox_to_anchor=(1.01, 1.02), handlelength=1.6)
        facts = [_seeds(sum(len(run.curves(metric)) for run in runs))] if len(labels) == len(envs) == 1 else []
        if True in summarised:
            name = "interquartile mean" if statistic == "iqm" else "mean"
            facts.append(f"{name} over seeds, {interval * 100:g}% bootstrap interval")
        if False in summarised:
            facts.append("thin lines: single seeds")
        _subtitle(panels[0][0], "  ·  ".join(facts))
        return _save(figure, out)


def plot_curve(run_dir: Path) -> Path:
    """Draw the learning curve of one run to its ``curve.png``: training return and evaluations.

    A run without returns that has a training loss, such as of a language model on data, is drawn by its losses.

    One seed: the training return, faint as measured and solid as smoothed, and each evaluation with the standard
    deviation over its episodes. Several seeds: each faint, their mean solid, and each evaluation's mean with the
    standard deviation over seeds.

    Returns:   the path of ``curve.png``
    Raises:    UsageError when the path is no run; RunError when it measured no return, or the write is refused
    """
    run = read_run(run_dir)
    train, evaluations = run.curves(TRAIN_RETURN), run.curves(EVAL_RETURN)
    by_loss = not train and not evaluations and bool(run.curves(TRAIN_LOSS))
    if by_loss:
        train, evaluations = run.curves(TRAIN_LOSS), run.curves(EVAL_LOSS)
    eval_metric = EVAL_LOSS if by_loss else EVAL_RETURN
    if not train and not evaluations:
        raise RunError(f"{run.path} measured no return yet: no episode ended. There is no curve to draw.")

    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = _new_figure((7.6, 4.6))
        axes = figure.subplots()
        blue, orange = COLOURS["blue"], COLOURS["vermilion"]
        varied = read_varied(run.options.get("vary", ()))
        if varied:
            _draw_members(axes, run, varied, train, evaluations)
        elif len(train) == 1:
            axes.plot(train[0].steps, train[0].values, color=blue, alpha=0.28, linewidth=0.9)
            axes.plot(
                train[0].steps,
                _smooth(train[0].values),
                color=blue,
                linewidth=2,
                label="training, smoothed",
                marker="o" if len(train[0].steps) == 1 else "",
            )
        elif train:
            for curve in train:
                axes.plot(curve.steps, _smooth(curve.values), color=blue, alpha=0.3, linewidth=0.9)
            common = _common_grid(train, "steps")
            if common is not None:
                grid, values = common
                label = f"training, mean of {len(train)} seeds"
                axes.plot(grid, _smooth(values.mean(axis=0)), color=blue, linewidth=2, label=label)
        if evaluations and not varied:
            steps, centre, spread, reach, over = _evaluation_points(run, eval_metric)
            axes.errorbar(
                steps,
                centre,
                yerr=reach,
                fmt="o",
                color=orange,
                markersize=4.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                elinewidth=1.1,
                capsize=0,
                zorder=3,
                label="evaluation" if by_loss else f"evaluation ± standard deviation over {over}",
            )
        _dress_x(axes, "steps", "")
        if by_loss:
            axes.set_xlabel("updates")
        _compact_ticks(axes.yaxis)
        axes.set_ylabel("loss" if by_loss else "return per episode")
        axes.margins(x=0.015)
        seeds = sorted(run.rows)
        named = f"seed {seeds[0]}" if len(seeds) == 1 else _seeds(len(seeds))
        axes.set_title(f"{display_name(run.algorithm)} on {run.env}, {named}", loc="left", fontweight="bold", pad=22)
        if (varied and len(run.rows) <= _NAMED_MEMBERS) or (train and evaluations and not varied):
            # Below the axes: no place inside is sure to be free of curves and error bars.
            figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
        rows = [row for member in run.rows.values() for row in member]
        facts = [
            f"{max(int(row['step']) for row in rows):,} {'updates' if by_loss else 'steps'}",
            _spoken_time(max(float(row["wall_seconds"]) for row in rows)),
        ]
        if varied and train and evaluations:
            facts.append("lines: training, points: evaluations")
        elif evaluations:
            _, centre, spread, *_ = _evaluation_points(run, eval_metric)
            last = f"{centre[-1]:.4g}" if by_loss else f"{centre[-1]:,.1f} ± {spread[-1]:,.1f}"
            facts.append(f"last evaluation {last}")
        _subtitle(axes, "  ·  ".join(facts))
        return _save(figure, run.path / "curve.png")


def _draw_members(
    axes: Axes, run: SavedRun, varied: Varied, train: Sequence[Curve], evaluations: Sequence[Curve]
) -> None:
    """Draw every member of a population whose settings differ: training as a line, evaluations as points."""
    names = named_members(sorted(run.rows), varied)
    shown = names if len(names) <= _NAMED_MEMBERS else ["_"] * len(names)  # matplotlib's legends leave such names out
    for i, name in enumerate(shown):
        colour, line = _COLOURS[i % len(_COLOURS)], _LINES[i // len(_COLOURS) % len(_LINES)]
        if len(train) == len(names):
            axes.plot(train[i].steps, _smooth(train[i].values), line, color=colour, linewidth=1.4, label=name)
        if len(evaluations) == len(names):
            axes.plot(
                evaluations[i].steps,
                evaluations[i].values,
                "o",
                color=colour,
                label=None if len(train) == len(names) else name,
                markersize=4.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )


@dataclass(frozen=True)
class _Summary:
    """Statistic, interval and smoothing that make one curve of a group of seeds."""

    statistic: Statistic
    interval: float
    resamples: int
    seed: int


def _draw_group(
    axes: Axes,
    curves: Sequence[Curve],
    kind: Literal["steps", "wall"],
    scale: float,
    summary: _Summary,
    colour: str,
    line: str,
    label: str,
) -> bool:
    """Draw the seeds of one group; whether they became one curve with an interval, or stayed thin lines."""
    common = _common_grid(curves, kind) if len(curves) >= 3 else None
    if common is None:
        for number, curve in enumerate(curves):
            axes.plot(
                _axis(curve, kind) / scale,
                curve.values,
                line,
                color=colour,
                linewidth=1.1,
                label=label if number == 0 else None,
                marker="o" if len(curve.values) == 1 else "",
            )
        return False
    grid, values = common
    low, high = stratified_bootstrap(
        [values],
        summary.statistic,
        resamples=summary.resamples,
        interval=summary.interval,
        generator=np.random.default_rng(summary.seed),
    )
    centre = summary.statistic(values, 0)
    if len(grid) == 1:
        axes.errorbar(grid / scale, centre, yerr=[centre - low, high - centre], fmt="o", color=colour, label=label)
    else:
        axes.fill_between(grid / scale, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(grid / scale, centre, line, color=colour, linewidth=2, label=label)
    return True


def _evaluation_points(run: SavedRun, metric: str = EVAL_RETURN) -> tuple[Array, Array, Array, Array, str]:
    """Steps, means and deviations of the evaluations, whiskers (2, n), and what the deviations are over.

    A whisker is the deviation, but never reaches beyond the returns that were seen.
    """
    each = [[row for row in rows if row.get(metric) is not None] for rows in run.rows.values()]
    # Seeds are evaluated together, but restarts make their own step counts differ a little.
    together = list(zip(*each, strict=False))
    steps = np.array([np.mean([row["step"] for row in rows]) for rows in together], dtype=np.float64)
    values = np.array([[row[metric] for row in rows] for rows in together], dtype=np.float64)
    centre, spread, over = values.mean(1), values.std(1), "seeds"
    if len(run.rows) == 1:
        spread = np.array([rows[0].get("eval/return_std") or 0.0 for rows in together], dtype=np.float64)
        over = "episodes"
    # Earlier versions did not record the extremes.
    least = [min(row.get("eval/return_min", -math.inf) for row in rows) for rows in together]
    most = [max(row.get("eval/return_max", math.inf) for row in rows) for rows in together]
    whiskers = np.minimum(spread, np.maximum(0.0, [centre - np.array(least), np.array(most) - centre]))
    return steps, centre, spread, whiskers, over


def _axis(curve: Curve, kind: Literal["steps", "wall"]) -> Array:
    return curve.steps if kind == "steps" else curve.wall


def _common_grid(curves: Sequence[Curve], kind: Literal["steps", "wall"]) -> tuple[Array, Array] | None:
    """(grid (points,), values (seeds, points)) over the range that all seeds cover; None where there is no such."""
    low = max(_axis(curve, kind)[0] for curve in curves)
    high = min(_axis(curve, kind)[-1] for curve in curves)
    if low > high:
        return None
    grid = np.linspace(low, high, _GRID_POINTS) if high > low else np.array([low])
    return grid, np.stack([_resample(_axis(curve, kind), curve.values, grid) for curve in curves])


def _resample(x: Array, y: Array, grid: Array) -> Array:
    """Values on a grid: linear between the points, each grid cell's points averaged first where they are denser.

    Interpolation alone would pick one noisy point of many.
    """
    if len(grid) == 1:
        return np.array([np.interp(grid[0], x, y)])
    cell = np.searchsorted((grid[1:] + grid[:-1]) / 2, x)
    counts = np.bincount(cell, minlength=len(grid))
    filled = counts > 0
    centre_x = np.bincount(cell, x, len(grid))[filled] / counts[filled]
    centre_y = np.bincount(cell, y, len(grid))[filled] / counts[filled]
    return np.interp(grid, centre_x, centre_y)


def _smooth(values: Array) -> Array:
    """Centred moving average over a twentieth of the points; at the ends, over the points there are."""
    window = max(1, len(values) // 20) // 2 * 2 + 1
    kernel = np.ones(window)
    middle = slice(window // 2, window // 2 + len(values))
    return np.convolve(values, kernel)[middle] / np.convolve(np.ones(len(values)), kernel)[middle]


def _new_figure(size: tuple[float, float]) -> Figure:
    # Without pyplot: no global state, no display, and no figure left open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, out: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix[1:].lower())
    write_bytes_atomic(out, buffer.getvalue())
    return out


def _dress_x(axes: Axes, kind: Literal["steps", "wall"], unit: str) -> None:
    axes.set_xlabel("environment steps" if kind == "steps" else f"wall time ({unit})")
    axes.grid(visible=False, axis="x")
    if kind == "steps":
        _compact_ticks(axes.xaxis)


def _compact_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: compact_number(value)))


def compact_number(value: float) -> str:
    """A tick label: "0", "250", "50k", "1.5M", "2B", "-0.02"."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def _subtitle(axes: Axes, text: str) -> None:
    axes.annotate(
        text,
        xy=(0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=FAINT_INK,
        fontsize=9.5,
        annotation_clip=False,
    ).set_in_layout(False)


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _metric_label(metric: str) -> str:
    known = {
        TRAIN_RETURN: "training return per episode",
        EVAL_RETURN: "evaluation return per episode",
        TRAIN_LOSS: "training loss",
        EVAL_LOSS: "evaluation loss",
        "train/episode_length_mean": "training episode length (steps)",
        "eval/episode_length_mean": "evaluation episode length (steps)",
        "time/steps_per_second": "environment steps per second",
    }
    return known.get(metric, metric.split("/", 1)[-1].replace("_", " "))


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "s", 1.0
    return ("min", 60.0) if seconds < 3 * 3600 else ("h", 3600.0)


def _spoken_time(seconds: float) -> str:
    unit, scale = _time_unit(seconds)
    value = seconds / scale
    return f"{value:.1f} {unit}" if value < 10 and not math.isclose(value, round(value)) else f"{value:.0f} {unit}"
