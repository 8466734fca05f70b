"""Train a run to its end in front of a user: progress, notes, and what Ctrl-C leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from steepest.errors import SteepestError
from steepest.runs.run import Note, Run
from steepest.runs.view.progress import Progress

logger = logging.getLogger("steepest")

R = TypeVar("R", bound=Run)


def drive(make_run: Callable[[Note], R], *, quiet: bool) -> R:
    """Make a run and train it to its end under a progress display. Interrupted, it saves what is trained and re-raises.

    Of several processes that train together, the main one alone shows anything.
    """
    notes: list[str] = []
    run = make_run(notes.append)
    with run:
        training = run.training
        seeds = training.seeds
        which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        title = f"{run.algorithm} on {run.name}, {which}"
        hidden = quiet or not training.is_main()
        with (
            Progress(run.total_steps, title=title, start_step=run.step, members=len(seeds), quiet=hidden) as progress,
            training.interrupts() as stop,
        ):
            # Without a display, what a user should know goes to the log: fallbacks as warnings.
            note, warn = (logger.info, logger.warning) if quiet else (progress.note, progress.note)
            for text in notes:
                note(text)
            training.listen(note, warn, progress.at, progress.waits)
            try:
                for row in run:
                    progress.update({**row, "seed": seeds[0]})
                    stop()
            except KeyboardInterrupt:
                try:
                    path = run.save_interrupted()
                except SteepestError as error:
                    progress.note(str(error))
                else:
                    if path is not None:
                        progress.note(f"interrupted at step {run.step:,}; the {training.what} as it was: {path}")
                raise
    return run
