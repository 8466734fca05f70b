"""State what a run asks of the thing that it trains: agents in environments, or a language model."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from torch import Tensor

from steepest.runs.options.config import SharedConfig
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.folder import RunDirectory

Row = dict[str, Any]
"""Metrics of one iteration, by tag."""

Note = Callable[[str], None]
"""Takes a line of text that a user should see."""

IN_MEMORY = "(made in Python)"
"""Recorded instead of a path or an id."""

S = TypeVar("S", bound=SharedConfig)


def crosses(before: int, after: int, every: int | None) -> bool:
    """Return whether the steps in between reach a multiple of an interval; 0 and None are never."""
    return every is not None and every > 0 and after // every > before // every


def mean_row(rows: list[Row]) -> Row:
    """Return means over members, of the metrics that all have, and the deviation of evaluations over members."""
    if len(rows) == 1:
        return rows[0]
    shared = [k for k in rows[0] if all(k in row for row in rows) and k != "seed"]
    mean = {k: float(np.mean([row[k] for row in rows])) for k in shared}
    if "eval/return_mean" in mean:
        mean["eval/return_std_over_seeds"] = float(np.std([row["eval/return_mean"] for row in rows]))
    return {**mean, "step": int(mean["step"])}


def ignore(text: str) -> None:
    """Drop a note, for which nobody asked."""
    del text


def source_of(given: Any) -> str | None:
    """Return what a file can hold of a model or data: a path or an id; or that it was made in Python."""
    if given is None:
        return None
    if not isinstance(given, (str, Path)):
        return IN_MEMORY
    path = Path(given).expanduser()
    return (
        str(path.resolve()) if os.path.exists(path) else str(given)
    )  # so that a resumed run may start from another folder


class Training(ABC, Generic[S]):
    """Train step by step; the run around it owns the folder, the metrics, the checkpoints and the order of all this.

    A method that no kind of training but one needs has a default that does nothing.
    """

    what: ClassVar[str]
    """One word for the thing that is trained, in messages."""
    again: ClassVar[tuple[str, ...]]
    """Arguments that ``Run.resume`` takes for this kind."""
    extends: ClassVar[str] = ""
    """Hint for a finished run that can be trained further."""

    algorithm: str
    name: str
    label: str
    """Default name of the run's folder."""
    seeds: tuple[int, ...]
    settings: S
    note: Callable[[str], None]
    directory: RunDirectory | None = None
    store: CheckpointStore | None = None
    alone = True
    """False where other processes train along."""
    begins_with_checkpoint = False
    """True where no file holds the weights that the run starts from: a checkpoint of them comes first."""

    # Beginning

    @classmethod
    def meet(cls) -> AbstractContextManager[Any]:
        """Find the other processes of this training; errors inside the context are raised in all of them."""
        return nullcontext()

    @classmethod
    def is_main(cls) -> bool:
        """Return whether this process is the one with the folder."""
        return True

    @classmethod
    @abstractmethod
    def read(cls, directory: RunDirectory) -> dict[str, Any]:
        """Read and check the config.json of a run of this kind."""

    @classmethod
    @abstractmethod
    def restore(
        cls, directory: RunDirectory, saved: dict[str, Any], note: Callable[[str], None], given: dict[str, Any]
    ) -> Self:
        """Make the training that config.json describes, before its checkpoint is loaded; ``given``: of ``again``."""

    def open(self, directory: RunDirectory | None, store: CheckpointStore | None, *, resuming: bool) -> None:
        """Take up storage in the run's folder, or in memory; once, before anything else."""
        del resuming
        self.directory, self.store = directory, store

    def listen(self, note: Note, warn: Note, watch: Callable[[int], None], hold: Note) -> None:
        """Send notes to another taker from now on, fallbacks of the learner to ``warn``, and steps to ``watch``.

        Args:      watch: takes how many steps are done, while an iteration takes long; hold: takes what the run waits
                   for, and an empty text once it no longer does
        """
        del warn, watch, hold
        self.note = note

    def check_unchanged(self, place: Path, saved: dict[str, Any], *, elsewhere: bool) -> list[str]:
        """Compare data and model with those of the run's beginning; return what a user should know of them.

        Args:      place: the run's folder; elsewhere: whether packages or machine differ
        Raises:    UsageError where the run cannot resume with them
        """
        del place, saved, elsewhere
        return []

    def extend(self) -> bool:
        """Take up a new number of total steps once the checkpoint is loaded; return whether config.json changes."""
        return False

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Name what lets the bits of the resumed run differ, besides packages, machine and threads."""
        del saved
        return []

    # One iteration, in the order of the calls

    @property
    @abstractmethod
    def step(self) -> int:
        """Steps so far: of the environment per member, or updates of a language model."""

    @property
    def last_step(self) -> int:
        """Steps of the member that is furthest, by which checkpoints are named."""
        return self.step

    @property
    @abstractmethod
    def steps_by_seed(self) -> dict[int, int]:
        """Steps of every member, as in its rows of metrics."""

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Steps at which the run ends."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """True once nothing is left to train."""

    @abstractmethod
    def iterate(self) -> None:
        """Gather data and learn from it, and check that all numbers are finite."""

    @abstractmethod
    def rows(self, wall_seconds: float, seconds: float) -> list[Row]:
        """Return the metrics of the latest iteration, which took ``seconds``, for every member."""

    @property
    def evaluation_may_hang(self) -> bool:
        """True where an evaluation calls what others wrote: the checkpoint that is due is then saved before it, too."""
        return False

    @abstractmethod
    def evaluate(self) -> list[Row] | None:
        """Evaluate every member and return its metrics; None where evaluation is off or impossible."""

    @abstractmethod
    def act_on_evaluation(self, metadata: dict[str, Any]) -> None:
        """Keep the best so far, with the run's metadata, and whatever else follows from an evaluation."""

    @property
    def checkpoint_due(self) -> bool:
        """True where a checkpoint cannot wait for the next iteration."""
        return False

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON to resume from; the JSON comes on top of ``metadata``. All processes call it."""

    def restart(self) -> None:
        """Begin anew, from a seed derived from the step, with what a checkpoint cannot hold."""

    # Files

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides tensors."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Load the tensors and metadata of a checkpoint."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return everything that defines the training, as JSON."""

    @abstractmethod
    def summary(self, wall_seconds: float, evaluated_at: int) -> dict[str, Any]:
        """Return how the training ended."""

    @abstractmethod
    def save_interrupted(self, metadata: dict[str, Any]) -> Path | None:
        """Save what is trained as it is, off the schedule; return the place."""

    # The end

    def finish(self) -> None:
        """Save what the run was for, where that is more than the checkpoints."""

    def release(self) -> None:
        """Undo settings of the training in what it gives away, once all is trained."""

    def close(self) -> None:
        """Release environments. Closing twice is harmless."""

    # Several processes

    def together(self) -> AbstractContextManager[Any]:
        """Raise errors inside in all processes."""
        return nullcontext()

    def decided(self, value: Any) -> Any:
        """Return the main process's value in all processes."""
        return value

    def interrupts(self) -> AbstractContextManager[Callable[[], None]]:
        """Take signals together: the function it gives is called after every iteration and may interrupt all."""
        return nullcontext(lambda: None)


class Clock:
    """Measures the seconds since it was last asked."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def seconds(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before
