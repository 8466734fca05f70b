"""Progress of a run: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from steepest.files.terminal import Forgiving, escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

_REDRAW_SECONDS = 0.1
_TICK_SECONDS = 1.0
"""Between iterations a redraw is not worth more of the time of training."""
_LINE_SECONDS = 5.0
_TICK_LINE_SECONDS = 30.0
_SETTLED_SECONDS = 2.0
"""So long into an iteration its own speed is known better than from the last one: learning slows a run down."""
_NARROW = 80
"""Columns below which the bar has a line to itself."""


class Progress:
    """Shows how a run is going; use it as a context manager around training.

    On a terminal: a bar with steps, steps/s and remaining time, and below it the return and the algorithm's health
    figures. Elsewhere: a plain line at most every 5 s, at every evaluation, and at the end. With several members the
    metrics are means, of one row for all of them or over the newest row of each seed.

    Args:      total_steps, environment steps at which the run ends;
               title, such as "ppo on CartPole-v1, seed 0";
               stream, standard error by default, which keeps standard output for results;
               start_step, where a resumed run begins, so that its rate counts its own steps only;
               members, the seeds that train together: steps are of each, steps/s of all;
               quiet, show nothing at all, notes included
    """

    def __init__(
        self,
        total_steps: int,
        *,
        title: str,
        stream: TextIO | None = None,
        start_step: int = 0,
        members: int = 1,
        quiet: bool = False,
    ) -> None:
        self.total_steps = total_steps
        self.title = escaped(title)
        self._stream = cast(TextIO, Forgiving(sys.stderr if stream is None else stream))
        self._start_step = start_step
        self._given_members = members
        self._quiet = quiet
        self._rows: dict[int, dict[str, Any]] = {}
        self._evaluations: dict[int, Mapping[str, Any]] = {}
        self._began = self._shown = -math.inf
        self._row_at = -math.inf  # when the newest row came
        self._within = start_step  # steps so far, within an iteration too
        self._stale = False
        self._waiting = ""
        self._live: Any = None

    def __enter__(self) -> Self:
        self._began = self._row_at = time.monotonic()
        if self._quiet:
            return self
        if self._stream.isatty():
            from rich.console import Console  # 0.1 s that only a terminal needs
            from rich.live import Live

            console = Console(file=self._stream)
            if not console.is_dumb_terminal:
                # No refresh thread: it would compete with training; update() redraws.
                self._live = Live(self._render(), console=console, auto_refresh=False)
                self._live.start(refresh=True)
                return self
        self._print(self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()
            self._live = None
        elif self._stale and not self._quiet:
            self._print_line({})

    def update(self, row: Mapping[str, Any]) -> None:
        """Take in one row of metrics and show what is due."""
        seed = int(row.get("seed", 0))
        evaluation = {key: value for key, value in row.items() if key.startswith("eval/") and value is not None}
        # Merged, because a row that only evaluates must not blank the training metrics.
        self._rows[seed] = {**self._rows.get(seed, {}), **row}
        if evaluation:
            self._evaluations[seed] = evaluation
        if self._quiet:
            return
        now = self._row_at = time.monotonic()
        self._stale = True
        if self._live is not None:
            if now - self._shown >= _REDRAW_SECONDS or evaluation:
                self._shown = now
                self._live.update(self._render(), refresh=True)
        elif evaluation or now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._print_line(row if evaluation else {})

    def at(self, step: int) -> None:
        """Take in how many steps are done within an iteration, and show it now and then."""
        self._within = step
        if self._quiet:
            return
        now = time.monotonic()
        if now - self._shown < (_TICK_LINE_SECONDS if self._live is None else _TICK_SECONDS):
            return
        self._shown = now
        if self._live is None:
            self._print_line({})
        else:
            self._live.update(self._render(), refresh=True)

    def waits(self, text: str) -> None:
        """Show what the run waits for, at once and as it changes; an empty text ends that."""
        begins, self._waiting, changed = not self._waiting, text, text != self._waiting
        if self._quiet or not changed:
            return
        now = time.monotonic()
        if self._live is not None:
            self._shown = now
            self._live.update(self._render(), refresh=True)
        elif text and (begins or now - self._shown >= _LINE_SECONDS):
            self._shown = now
            self._print(escaped(text))

    def note(self, text: str) -> None:
        """Print a line of text, above the live display if there is one."""
        if self._quiet:
            return
        text = escaped(text)
        if self._live is not None:
            # As it stands: no markup, so that "[mujoco]" in a message is not taken for a style.
            # An address is not broken into lines, which nobody could open.
            self._live.console.print(text, markup=False, highlight=False, soft_wrap="://" in text)
        else:
            self._print(text)

    # -- figures ------------------------------------------------------------------------------------------------------

    def _mean(self, key: str, rows: Mapping[int, Mapping[str, Any]] | None = None) -> float | None:
        source = self._rows if rows is None else rows
        values = [float(row[key]) for row in source.values() if row.get(key) is not None]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / len(values) if values else None

    def _row_step(self) -> int:
        return max((int(row["step"]) for row in self._rows.values()), default=self._start_step)

    def _step(self) -> int:
        return max(self._within, self._row_step())

    def _rate(self) -> float | None:
        """Environment steps per second of all members together."""
        since, steps = time.monotonic() - self._row_at, self._within - self._row_step()
        rate = self._mean("time/steps_per_second")
        if steps > 0 and (rate is None or since >= _SETTLED_SECONDS):
            rate = steps * self._members() / since if since > 0 else None
        elif rate is None:
            elapsed = time.monotonic() - self._began
            rate = (self._step() - self._start_step) * self._members() / elapsed if elapsed > 0 else None
        return rate if rate else None

    def _remaining(self) -> str | None:
        rate = self._rate()
        left = max(0, self.total_steps - self._step()) * self._members()
        return None if rate is None else duration(left / rate)

    def _members(self) -> int:
        return max(self._given_members, len(self._rows))

    def _evaluated(self) -> Mapping[str, Any]:
        """The newest evaluation, of all members."""
        rows = list(self._evaluations.values())
        if len(rows) == 1:
            return rows[0]
        means = [float(row["eval/return_mean"]) for row in rows]
        return {"eval/return_mean": sum(means) / len(means), "eval/return_std_over_seeds": statistics.pstdev(means)}

    # -- plain lines --------------------------------------------------------------------------------------------------

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _print_line(self, evaluated: Mapping[str, Any]) -> None:
        parts = [f"step {self._step():,}/{self.total_steps:,}"]
        returns, loss = self._mean("train/return_mean"), self._mean("train/loss")
        if returns is not None:
            parts.append(f"return {returns:,.1f}")
        elif loss is not None:
            parts.append(f"loss {_number(loss)}")
        if evaluated:
            seed = f"seed {evaluated['seed']} " if len(self._rows) > 1 else ""
            if "eval/loss" in evaluated:
                parts.append(f"{seed}evaluation {_number(evaluated['eval/loss'])}")
            else:
                parts.append(f"{seed}evaluation {_spread(evaluated)}")
        rate, remaining = self._rate(), self._remaining()
        if rate is not None:
            parts.append(f"{_rate_text(rate)} steps/s")
        if remaining is not None and self._step() < self.total_steps:
            parts.append(f"{remaining} left")
        self._print("  ".join(parts))
        self._stale = False

    # -- live display -------------------------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        step, rate, remaining = self._step(), self._rate(), self._remaining()
        width = self._live.console.width if self._live is not None else _NARROW
        heading = Table.grid(padding=(0, 2), expand=True)
        heading.add_column(ratio=1)
        heading.add_column(justify="right", no_wrap=True)
        heading.add_row(Text(self.title, style="bold"), Text(f"{duration(time.monotonic() - self._began)} elapsed"))
        drawn = Table.grid(expand=True)  # a bar by itself would not end its line
        drawn.add_row(ProgressBar(total=max(1, self.total_steps), completed=min(step, self.total_steps)))
        words = [
            f"{step:,} / {self.total_steps:,} steps",
            f"{_rate_text(rate)} steps/s" if rate is not None else "",
            f"{remaining} left" if remaining is not None else "",
        ]
        bar = Table.grid(padding=(0, 2), expand=True)
        for column in range(4 if width >= _NARROW else 3):
            bar.add_column(ratio=None if column else 1, justify="right" if column else "left", no_wrap=True)
        bar.add_row(*([drawn, *words] if width >= _NARROW else words))
        figures = self._figures()
        pairs = next((n for n in (4, 3, 2) if _grid_width(figures, n) <= width), 1)
        grid = Table.grid(padding=(0, 1))
        for _ in range(pairs):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(justify="right", no_wrap=True)
            grid.add_column(width=1)
        for start in range(0, len(figures), pairs):
            cells: list[str] = []
            for name, text in figures[start : start + pairs]:
                cells += [name, text, ""]
            grid.add_row(*cells)
        parts: list[RenderableType] = [heading, bar] if width >= _NARROW else [heading, drawn, bar]
        if figures:
            parts.append(grid)
        if self._waiting:
            parts.append(Text(self._waiting, style="bold"))
        return Group(*parts)

    def _figures(self) -> list[tuple[str, str]]:
        loss = self._mean("train/loss")  # of trainers that play no episodes
        figures = [
            ("loss", _number(loss)) if loss is not None else ("return", _number(self._mean("train/return_mean"), 1))
        ]
        if any("train/episode_length_mean" in row for row in self._rows.values()):
            figures.append(("episode length", _number(self._mean("train/episode_length_mean"), 0)))
        if any("eval/loss" in row for row in self._evaluations.values()):
            figures.append(("evaluation", _number(self._mean("eval/loss", self._evaluations))))
        elif self._evaluations:
            found = self._evaluated()
            std, over = _deviation(found)
            name = f"evaluation ± {over}" if over else "evaluation"
            figures.append((name, _with_deviation(found, std)))
        health = dict.fromkeys(key for row in self._rows.values() for key in row if key.startswith("health/"))
        for key in health:
            figures.append((key.removeprefix("health/").replace("_", " "), _number(self._mean(key))))
        return figures if self._rows else []


def _grid_width(figures: list[tuple[str, str]], pairs: int) -> int:
    """Characters that the figures take in ``pairs`` columns of label and value, with the gaps between."""
    columns = [figures[start::pairs] for start in range(pairs)]
    return sum(
        max((len(name) for name, _ in column), default=0) + max((len(text) for _, text in column), default=0) + 4
        for column in columns
    )


def _number(value: float | None, decimals: int | None = None) -> str:
    """A figure that stays readable and keeps its width: "412.3", "0.0081", "3.2e-05", "-" when there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.2e}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.001 or size == 0:
        return f"{value:.4f}"
    return f"{value:.1e}"


def _rate_text(rate: float) -> str:
    """Steps per second: whole ones, but for updates of a large model, which take seconds each."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _deviation(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """The deviation of an evaluation, and what it is over: seeds, or the episodes of one; empty where nobody says."""
    if row.get("eval/return_std_over_seeds") is not None:
        return row["eval/return_std_over_seeds"], "seeds"
    return row.get("eval/return_std"), "episodes" if "eval/episodes" in row else ""


def _with_deviation(row: Mapping[str, Any], std: float | None) -> str:
    return _number(row.get("eval/return_mean"), 1) + ("" if std is None else f" ± {_number(std, 1)}")


def _spread(row: Mapping[str, Any]) -> str:
    """An evaluation in a sentence: 487.2 ± 21.0 over 10 episodes."""
    std, over = _deviation(row)
    over = counted(int(row["eval/episodes"]), "episode") if over == "episodes" else over
    return _with_deviation(row, std) + (f" over {over}" if over and std is not None else "")


def counted(number: int, thing: str) -> str:
    """A number of things: "1 episode", "1,000 episodes"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "0:05", "12:34", "1:02:03"."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
