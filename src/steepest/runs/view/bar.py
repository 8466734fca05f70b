"""How far a long verb is: a bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from steepest.runs.view.progress import duration

_LINE_SECONDS = 5.0


class Bar:
    """Shows on standard error how many of a known number of things are done; use it as a context manager.

    Args:      what, such as "estimators on walk"; unit, the things in the plural; quiet, show nothing
    Verified:  tests/unit/test_progress.py::test_a_bar_counts_on_a_terminal_and_elsewhere
    """

    def __init__(self, what: str, unit: str, *, quiet: bool = False) -> None:
        self.what, self.unit, self.quiet = what, unit, quiet
        self._began = self._shown = 0.0
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._began = self._shown = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            words = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"))
            self._live = Progress(*words, *times, console=Console(file=sys.stderr), transient=True)
            self._task = self._live.add_task(self.what, total=None)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def at(self, done: int, total: int) -> None:
        """Show that so many of all are done."""
        if self._live is not None:
            self._live.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        if self.quiet or now - self._shown < _LINE_SECONDS:
            return
        self._shown = now
        elapsed = now - self._began
        left = elapsed * (total - done) / max(done, 1)
        print(
            f"{self.what}: {done:,} of {total:,} {self.unit}, {duration(elapsed)}, about {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )
