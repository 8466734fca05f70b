"""The numbers of a run, one JSON object per line, mirrored to TensorBoard and, if asked, to Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from steepest.errors import RunError, UsageError
from steepest.files.atomic import open_own, write_bytes_atomic, write_text_atomic
from steepest.files.reading import Unusable, parse_json
from steepest.files.schema import check
from steepest.runs.store.descriptions import MetricsRow
from steepest.runs.store.folder import finite_json

METRICS_FILE = "metrics.jsonl"

_NOT_METRICS = ("step", "wall_seconds", "seed")
_KINDS = (int, float, type(None))


class MetricsLog:
    """Appends rows of metrics to ``metrics.jsonl`` in a run's folder; each is in the system's hands when written.

    A row has ``step`` (environment steps), ``wall_seconds``, ``seed``, and numbers under tags such as
    "train/return_mean", "eval/return_std", "health/approx_kl" or "time/steps_per_second".

    Args:      directory of the run;
               resume_step, the step of the checkpoint that the run continues from, or that of every seed: rows after
               it are dropped, because they will be written again; None for a new run;
               seeds of all members: with several, each has its own TensorBoard folder and wandb prefix;
               tensorboard, whether to write TensorBoard events (``tensorboard/``, imported at the first row, 0.3 s);
               wandb, whether to log to Weights & Biases too
    Raises:    UsageError when a new run finds metrics there, or wandb is wanted and not installed;
               RunError when the system refuses a write, or wandb cannot start (no login, no network)
    """

    def __init__(
        self,
        directory: Path,
        *,
        resume_step: int | Mapping[int, int] | None = None,
        seeds: Sequence[int] = (),
        tensorboard: bool = True,
        wandb: bool = False,
    ) -> None:
        self.path = Path(directory) / METRICS_FILE
        several = len(seeds) > 1
        self._events = _TensorBoard(self.path.parent / "tensorboard", resume_step, several) if tensorboard else None
        # Imported before anything is written: a missing package leaves the folder as it was.
        wandb_module = _import_wandb() if wandb else None
        if resume_step is not None:
            _drop_after(self.path, resume_step)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a row is handed over whole, and a failed write leaves nothing behind to fail again.
            new = os.O_EXCL if resume_step is None else 0
            descriptor = open_own(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | new)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
        except FileExistsError as error:
            raise UsageError(
                f"{self.path} exists already: another run is in that folder. "
                "Continue it with --resume, or choose another --out."
            ) from error
        except OSError as error:
            raise RunError(f"could not write {self.path}: {error.strerror}") from error
        self._wandb: _WeightsAndBiases | None = None
        if wandb:
            try:
                self._wandb = _WeightsAndBiases(wandb_module, self.path.parent, resume_step, several)
            except BaseException:
                self._file.close()
                if resume_step is None:
                    self.path.unlink()  # nothing is in it yet, and another try needs the place
                raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row. NaN and infinities are written as null and left out of the mirrors.

        Args:      row with "step", "wall_seconds", "seed", and numbers (Python, NumPy or 0-d tensors) or None
        Raises:    RunError when the system refuses the write; KeyError or TypeError on a malformed row
        """
        for key in _NOT_METRICS:
            if key not in row:
                raise KeyError(f"a row of metrics needs {key!r}; this one has {sorted(row)}")
        clean = cast(dict[str, Any], finite_json(row))
        for key, value in clean.items():
            if value is not None and not isinstance(value, (int, float)):
                raise TypeError(f"metric {key!r} must be a number or None, got {type(value).__name__}: {value!r}")
        line = (json.dumps(clean, allow_nan=False) + "\n").encode()
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            if self._events is not None:
                self._events.write(clean)
        except OSError as error:
            raise RunError(
                f"could not write metrics in {self.path.parent}: {error.strerror}. "
                "The checkpoints are untouched; continue with --resume when that is solved."
            ) from error
        if self._wandb is not None:
            self._wandb.write(clean)

    def close(self) -> None:
        """Close the files and finish the mirrors. Closing twice is harmless."""
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a run, in the order written; a torn last line, which a killed run leaves, is passed over.

    Args:      path of a ``metrics.jsonl``, or of the run's folder
    Raises:    RunError when there is none, or a line before the last is not a JSON object, or one of another shape
    Verified:  tests/integration/test_damaged_runs.py::test_a_row_of_metrics_that_cannot_be_used_is_named
    """
    path = Path(path)
    if path.is_dir() and path.name != METRICS_FILE:
        path = path / METRICS_FILE
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise RunError(f"{path} cannot be read: it is no ordinary file.")
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise RunError(f"there are no metrics at {path}.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line.decode("utf-8-sig"))
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"line {number} of {path} is not a JSON object; delete that line to go on.") from error
        try:
            check(row, MetricsRow)
            if not all(type(value) in _KINDS for value in row.values()):
                check(row, dict[str, float | None])  # which finds out what it is
        except Unusable as error:
            raise RunError(
                f"line {number} of {path} is no row of metrics: {error}; delete that line to go on."
            ) from error
        rows.append(cast(dict[str, Any], row))
    return rows


def _step_of(resume_step: int | Mapping[int, int], seed: int) -> int:
    return resume_step if isinstance(resume_step, int) else resume_step[seed]


def _drop_after(path: Path, resume_step: int | Mapping[int, int]) -> None:
    if path.exists():
        rows = read_metrics(path)
        if not isinstance(resume_step, int):
            foreign = next((row["seed"] for row in rows if row["seed"] not in resume_step), None)
            if foreign is not None:
                ours = ", ".join(map(str, resume_step))
                raise RunError(f"{path} has a row of seed {foreign}; this run has {ours}. Delete that row to go on.")
        kept = [row for row in rows if row["step"] <= _step_of(resume_step, row["seed"])]
        data = b"".join((json.dumps(row) + "\n").encode() for row in kept)
        if data != path.read_bytes():
            write_bytes_atomic(path, data)


class _TensorBoard:
    """Write TensorBoard event files, one event a row, in the system's hands when ``write`` returns.

    ``torch.utils.tensorboard.SummaryWriter`` makes an event of every tag and hands each to a thread: with a flush after
    every row, 0.62 ms for 16 tags against 0.08 ms here, where an iteration of small networks takes a few milliseconds.
    """

    def __init__(self, folder: Path, resume_step: int | Mapping[int, int] | None, several: bool) -> None:
        self._folder = folder
        self._resume_step = resume_step
        self._several = several
        self._files: dict[int, BinaryIO] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        event_pb2 = import_module("tensorboard.compat.proto.event_pb2")
        summary_pb2 = import_module("tensorboard.compat.proto.summary_pb2")
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=value)
            for tag, value in row.items()
            if tag not in _NOT_METRICS and value is not None
        ]
        event = event_pb2.Event(wall_time=time.time(), step=int(row["step"]), summary=summary_pb2.Summary(value=values))
        self._append(self._file(int(row["seed"])), event)

    def close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()

    def _file(self, seed: int) -> BinaryIO:
        member = seed if self._several else 0
        if member not in self._files:
            folder = self._folder / f"seed-{seed}" if self._several else self._folder
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names: a resumed run's must come later.
            name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
            file = self._files[member] = (folder / name).open("xb", buffering=0)
            event_pb2 = import_module("tensorboard.compat.proto.event_pb2")
            self._append(file, event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
            if self._resume_step is not None:
                # TensorBoard discards all that it has read from this step on: it is about to come again.
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                step = _step_of(self._resume_step, seed) + 1
                self._append(file, event_pb2.Event(wall_time=time.time(), step=step, session_log=start))
        return self._files[member]

    @staticmethod
    def _append(file: BinaryIO, event: Any) -> None:
        import_module("tensorboard.summary.writer.record_writer").RecordWriter(file).write(event.SerializeToString())


def _import_wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError as error:
        raise UsageError(
            "logging to Weights & Biases needs the package wandb, which is not installed. "
            'Install it: pip install "steepest[wandb]"'
        ) from error


class _WeightsAndBiases:
    """One wandb run per run directory; its id is kept there, so that resuming continues the same one."""

    def __init__(self, wandb: Any, directory: Path, resume_step: int | Mapping[int, int] | None, several: bool) -> None:
        self._several = several
        id_file = directory / "wandb-id.txt"
        if resume_step is not None and id_file.exists():
            identity = id_file.read_text(encoding="utf-8").strip()
        else:
            identity = f"{directory.name}-{secrets.token_hex(4)}"
            write_text_atomic(id_file, identity + "\n")
        try:
            self._run: Any = wandb.init(
                project="steepest", name=directory.name, id=identity, resume="allow", dir=str(directory)
            )
        except Exception as error:
            raise RunError(
                f"Weights & Biases did not start: {' '.join(str(error).split()) or type(error).__name__}. Log in with "
                "`wandb login`, set WANDB_MODE=offline, or train without wandb."
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._finished = False

    def write(self, row: Mapping[str, Any]) -> None:
        prefix = f"seed-{row['seed']}/" if self._several else ""
        values = {prefix + key: value for key, value in row.items() if key not in _NOT_METRICS and value is not None}
        self._mirror(lambda: self._run.log({"step": row["step"], "wall_seconds": row["wall_seconds"], **values}))

    def close(self) -> None:
        if not self._finished:
            self._mirror(self._run.finish)
            self._finished = True

    def _mirror(self, call: Callable[[], Any]) -> None:
        """Call something of theirs. What it raises ends no run: the mirror ends, and metrics.jsonl has all rows."""
        if self._finished:
            return
        try:
            call()
        except Exception as error:
            self._finished = True
            text = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"Weights & Biases takes no more rows: {text}", RuntimeWarning, stacklevel=4)
