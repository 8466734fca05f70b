"""What a sweep leaves for people: a table, a picture, and the best settings as a file for --config."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from steepest.files.atomic import write_bytes_atomic, write_text_atomic
from steepest.files.style import COLOURS, FAINT_INK, STYLE
from steepest.scale.search import Choices, Interval, Search
from steepest.scale.study import Trial
from steepest.scale.sweep import Sweep, said, spoken

SHOWN = 10
"""Trials in a table."""


def table(trials: Sequence[tuple[Trial, float | None]], shown: int = SHOWN) -> list[str]:
    """Return the best trials as lines of a table, and how many failed."""
    known = sorted(
        ((value, t) for t, value in trials if value is not None), key=lambda pair: (-pair[0], pair[1].number)
    )
    lines = [f"{value:12.1f}  trial {t.number:<4}  {spoken(t.settings)}" for value, t in known[:shown]]
    failed = sum(value is None for _, value in trials)
    return [
        f"{'value':>12}",
        *lines,
        *([f"{failed} trials have no value: they failed, or are running"] if failed else []),
    ]


def write_report(sweep: Sweep, settings: Mapping[str, Any], search: Search) -> None:
    """Write best.yaml, result.json and sweep.png into the folder of the study.

    Args:      settings: the best ones with what was given for all
    """
    assert sweep.best is not None
    plain = json.loads(json.dumps(dict(settings), default=list))
    head = "# The best settings of the sweep, for --config.\n"
    if sweep.found is not None and sweep.default is not None:
        head += f"# On fresh seeds: {said(sweep.found)}; the default ones: {said(sweep.default)}\n"
    write_text_atomic(sweep.study / "best.yaml", head + yaml.safe_dump(plain, sort_keys=True))
    known: dict[str, Any] = {
        "best": sweep.best,
        "importances": sweep.importances,
        "found": None if sweep.found is None else sweep.found._asdict(),
        "default": None if sweep.default is None else sweep.default._asdict(),
        "trials": [{"number": t.number, "settings": t.settings, "value": value} for t, value in sweep.trials],
    }
    write_text_atomic(sweep.study / "result.json", json.dumps(known, indent=1) + "\n")
    draw(sweep, search, sweep.study / "sweep.png")


def draw(sweep: Sweep, search: Search, out: Path) -> None:
    """Draw the value of every trial against each setting that was searched, the best one marked."""
    import matplotlib
    from matplotlib.figure import Figure

    known = [(t, value) for t, value in sweep.trials if value is not None]
    columns = min(3, len(search))
    rows = -(-len(search) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.8 + 3.2 * columns, 0.6 + 2.8 * rows), dpi=160, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, (name, dimension) in zip(panels.flat, search.items(), strict=False):
            values = [value for _, value in known]
            axes.plot(_places(dimension, [t.settings[name] for t, _ in known]), values, "o", markersize=4,
                      color=COLOURS["blue"], alpha=0.6)  # fmt: skip
            if sweep.best is not None:
                axes.plot(_places(dimension, [sweep.best[name]]), [max(values)], "o", markersize=7,
                          color=COLOURS["vermilion"], label="best")  # fmt: skip
            if isinstance(dimension, Choices):
                axes.set_xticks(range(len(dimension.values)), [json.dumps(v) for v in dimension.values])
                axes.set_xlim(-0.5, len(dimension.values) - 0.5)
            elif dimension.log:
                axes.set_xscale("log")
            share = sweep.importances.get(name)
            axes.set_xlabel(name if share is None else f"{name} (importance {share:.0%})")
            axes.grid(visible=True, axis="y", color=FAINT_INK, alpha=0.3)
        for axes in panels.flat[len(search) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel("return, last evaluations")
        held = io.BytesIO()
        figure.savefig(held, format="png")
    write_bytes_atomic(out, held.getvalue())


def _places(dimension: Interval | Choices, values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Where values stand on the axis."""
    if isinstance(dimension, Choices):
        written = [json.dumps(v) for v in dimension.values]
        return np.array([written.index(json.dumps(v)) for v in values], dtype=float)
    return np.array(values, dtype=float)
