"""The table of `steepest verify`: all rows, run and shown."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steepest.errors import UsageError
from steepest.learner.threads import one_thread
from steepest.runs.view.bar import Bar
from steepest.verification.shipped import (
    compatible,
    distributions,
    kl_penalty,
    language,
    off_policy,
    off_policy_actor,
    off_policy_evaluation,
    offline,
    on_policy,
    policy_gradient,
    preference,
    q_learning,
    ranking,
    soft,
    trpo,
    trust_region,
    vtrace,
)
from steepest.verification.statement import (
    CONTROL_SHARE,
    CONTROL_THRESHOLD,
    TOLERANCE,
    Kind,
    Statement,
    relative_error,
    tightness,
)
from steepest.verification.theorems import STATEMENTS

SHIPPED: tuple[Statement, ...] = (
    *distributions.rows,
    *policy_gradient.rows,
    *off_policy_actor.rows,
    *soft.rows,
    *off_policy.rows,
    *q_learning.rows,
    *offline.rows,
    *trust_region.rows,
    *kl_penalty.rows,
    *vtrace.rows,
    *trpo.rows,
    *compatible.rows,
    *on_policy.rows,
    *language.rows,
    *preference.rows,
    *ranking.rows,
    *off_policy_evaluation.rows,
)
"""Every statement that goes through a shipped function, one file per idea."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one row came out."""

    section: str
    statement: str
    kind: Kind
    tested: str
    """The shipped function that the row goes through, or "exact"."""
    seeds: int
    """Random problems."""
    passed: bool
    figure: float
    """Equality: the worst error. Inequality: the tightest ratio. Negative control: the smallest error. NaN: none."""
    share: float
    """The share of the problems on which the row came out as it should."""
    message: str = ""
    """What went wrong, if it is not the figure."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; a figure that is no number becomes None."""
        data = dataclasses.asdict(self)
        return {**data, "figure": self.figure if math.isfinite(self.figure) else None}


def statements(section: str | None = None) -> list[Statement]:
    """All rows, or those of a section of the notes and its subsections, in the notes' order.

    Raises:    UsageError if no row belongs to the section
    """
    rows = sorted((*STATEMENTS, *SHIPPED), key=lambda s: [int(part) for part in s.section.split(".")])
    if section is None:
        return rows
    chosen = [s for s in rows if f"{s.section}.".startswith(f"{section}.")]
    if not chosen:
        known = ", ".join(dict.fromkeys(s.section for s in rows))
        raise UsageError(f"no statement of section {section!r} is verified; the sections are {known}")
    return chosen


@one_thread()
def check(statement: Statement, seeds: int) -> Result:
    """One row over ``seeds`` random problems; whatever it raises is a failure of the row, not of the run."""
    measure = tightness if statement.kind == "inequality" else relative_error
    message = ""
    figures: list[float] = []
    try:
        figures = [measure(statement.at(seed)) for seed in range(seeds)]
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    wrong_on_purpose = statement.kind == "negative control"
    most = TOLERANCE if statement.kind == "equality" else 1.0 + TOLERANCE
    share = sum(x > CONTROL_THRESHOLD if wrong_on_purpose else x <= most for x in figures) / seeds
    needed, worst = (CONTROL_SHARE, min) if wrong_on_purpose else (1.0, max)
    figure = math.nan if not figures or any(math.isnan(x) for x in figures) else worst(figures)
    return Result(
        section=statement.section,
        statement=statement.claim,
        kind=statement.kind,
        tested=statement.tested,
        seeds=seeds,
        passed=not message and not math.isnan(figure) and share >= needed,
        figure=figure,
        share=share,
        message=message,
    )


def results(section: str | None = None, *, seeds: int = 100) -> Iterator[Result]:
    """The rows one by one, as ``verify``."""
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; expected at least 1")
    rows = statements(section)
    return (check(row, seeds) for row in rows)


def verify(section: str | None = None, *, seeds: int = 100) -> list[Result]:
    """Check every statement of the notes, and the shipped functions, on random problems against exact solutions.

    Args:      section: of the notes, such as "1.9", with its subsections; None is all; seeds: random problems per row
    Returns:   one Result per row; all should have passed
    Raises:    UsageError if no row belongs to the section, or seeds < 1
    Verified:  tests/unit/test_verify.py::test_everything_passes,
               tests/unit/test_verify.py::test_a_broken_function_fails_its_rows
    """
    return list(results(section, seeds=seeds))


def _outcome(r: Result) -> str:
    """The figure of a row in a few words."""
    if r.message:
        return r.message
    if r.kind == "equality":
        return f"error {r.figure:.1e}"
    if r.kind == "inequality":
        return f"ratio {r.figure:.3f}"
    return f"off by {r.figure:.1e} or more" if r.share == 1.0 else f"off on {r.share:.0%} of the problems"


def _verdict(r: Result) -> str:
    """A negative control is wrong on purpose: what passes is that it shows."""
    return "FAIL" if not r.passed else "rejected" if r.kind == "negative control" else "pass"


_LEGEND = (
    "error: the worst norm-wise relative error of an equality, at most 1e-9; ratio: the tightest left/right of an\n"
    "inequality, at most 1; off by: the smallest error of a negative control (a known mistake), which is rejected if\n"
    "it is off by more than 1e-3 on at least 90% of the problems."
)


def show(rows: Iterator[Result], total: int) -> list[Result]:
    """Print the rows and what they come to: a table on a terminal, plain lines as they are found anywhere else.

    Args:      rows as ``results`` gives them; total: how many these will be
    """
    began = time.monotonic()
    found = _show_table(rows, total) if sys.stdout.isatty() else _show_lines(rows)
    failed = sum(not r.passed for r in found)
    controls = sum(r.passed and r.kind == "negative control" for r in found)
    print(_LEGEND)
    print(
        f"{len(found)} statements on {found[0].seeds} random problems each: {len(found) - failed} as expected "
        f"({len(found) - failed - controls} hold; {controls} known mistakes detected), {failed} failed, "
        f"{time.monotonic() - began:.1f} s"
    )
    return found


def _show_lines(rows: Iterator[Result]) -> list[Result]:
    found: list[Result] = []
    for r in rows:
        found.append(r)
        print(f"{r.section:<6} {_verdict(r):<8} {r.statement:<61} {_outcome(r):<28} {r.tested}", flush=True)
    return found


def _show_table(rows: Iterator[Result], total: int) -> list[Result]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, found = Console(), list[Result]()
    with Bar("verify", "statements") as bar:
        for r in rows:
            found.append(r)
            bar.at(len(found), total)
    table = Table()
    for heading in ("section", "statement", "result", "figure", "tested"):
        table.add_column(heading, overflow="fold")  # on a narrow terminal names are wrapped, not cut
    styles = {"FAIL": "bold red", "rejected": "yellow", "pass": "green"}
    for i, r in enumerate(found):
        last = i + 1 == len(found) or found[i + 1].section != r.section
        verdict = _verdict(r)
        cells = (r.section, r.statement, Text(verdict, style=styles[verdict]), _outcome(r), r.tested)
        table.add_row(*(Text(x) if isinstance(x, str) else x for x in cells), end_section=last)
    console.print(table)
    return found
