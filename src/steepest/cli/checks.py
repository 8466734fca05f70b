"""The verbs that check the mathematics: ``verify`` and ``estimators``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from steepest.cli.options import Usage, parse, print_line
from steepest.errors import UsageError
from steepest.fields import AtLeastTen, Checked, Count, Whole

VERIFY_TIME = "All of it takes about a minute on one core, --section 1.9 a few seconds."
ESTIMATORS_TIME = "The two default problems take about half a minute on one core."

SECTIONS = (
    *("1", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11"),
    *("2.1", "2.1.1", "2.1.2", "2.2.1", "2.2.2"),
)
"""The sections of the deep RL notes that have statements, here so that a wrong one is told at once."""

Problem = Literal["walk", "cliff_walking", "garnet", "riverswim", "two_state", "access_control"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(Checked):
    """Check every formula of the deep RL notes, and the functions that compute them, against exact solutions."""

    section: str | None = None
    """Only this section of the notes and its subsections, such as 1.9 (default: all)."""
    seeds: Count = 100
    """Random problems per row."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.section is not None and not any(f"{s}.".startswith(f"{self.section}.") for s in SECTIONS):
            raise UsageError(
                f"no statement of section {self.section!r} is verified; the sections are {', '.join(SECTIONS)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorsOptions(Checked):
    """Bias and variance of policy-gradient estimators against the exact gradient, at equal numbers of steps."""

    problem: tuple[Problem, ...] = ("walk", "cliff_walking")
    """Problems: walk, cliff_walking and garnet end; riverswim, two_state and access_control continue."""
    objective: Literal["discounted", "undiscounted", "average"] | None = None
    """Gradient to estimate; by default the average reward's for continuing problems, the discounted return's for
    episodic ones."""
    repeats: AtLeastTen = 1000
    """Independent estimates."""
    steps: Count = 250
    """Environment steps per estimate."""
    seed: Whole = 0
    """Seed of everything random."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """The picture (.png, .pdf or .svg); by default estimators.png, and none with --json."""


def verify(argv: list[str]) -> int:
    """Run ``steepest verify``."""
    options, _ = parse(VerifyOptions, argv, Usage("steepest verify", about=VERIFY_TIME))
    from steepest.verification import results, show, statements

    rows = results(options.section, seeds=options.seeds)
    if options.json:
        found = list(rows)
        print(json.dumps([r.as_dict() for r in found]))
    else:
        found = show(rows, len(statements(options.section)))
    return 0 if all(r.passed for r in found) else 1


def estimators(argv: list[str]) -> int:
    """Run ``steepest estimators``."""
    options, _ = parse(EstimatorsOptions, argv, Usage("steepest estimators", about=ESTIMATORS_TIME))
    if not options.problem:
        raise UsageError("--problem needs at least one name, such as walk")
    out = options.out or (None if options.json else Path("estimators.png"))
    if out is not None:
        from steepest.files.style import check_picture

        check_picture(out)
    from steepest.estimators import Comparison, compare, plot, show
    from steepest.runs.view.bar import Bar

    found: list[Comparison] = []
    for name in options.problem:
        with Bar(f"estimators on {name}", "estimates", quiet=options.json) as bar:
            given = {field: getattr(options, field) for field in ("objective", "repeats", "steps", "seed")}
            found.append(compare(name, watch=bar.at, **given))
    if options.json:
        print(json.dumps([comparison.to_json() for comparison in found]))
    else:
        show(found)
    if out is not None:
        path = plot(found, out)
        if not options.json:
            print_line(f"picture: {path}")
    return 0
