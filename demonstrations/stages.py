"""Stages that are done once: each has a folder, a key of all that it depends on, and a record that ends it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steepest.files.atomic import write_text_atomic

Result = dict[str, Any]


@dataclass
class Work:
    """The folder of a stage in progress, and the time that it has taken so far, over all its attempts."""

    folder: Path
    began: float = field(default_factory=time.perf_counter)
    began_cpu: float = field(default_factory=time.process_time)
    before: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        path = self.folder / "spent.json"
        if path.is_file():
            spent = json.loads(path.read_text())
            self.before = (spent["seconds"], spent["cpu_seconds"])

    def spent(self) -> dict[str, float]:
        """Seconds on the clock and of the processor."""
        seconds = self.before[0] + time.perf_counter() - self.began
        cpu = self.before[1] + time.process_time() - self.began_cpu
        return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}

    def keep(self) -> None:
        """Write the time down; called wherever a killed stage would go on from."""
        write_json(self.folder / "spent.json", self.spent())


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON, wholly or not at all."""
    write_text_atomic(path, json.dumps(value, indent=1) + "\n")


def stage_key(settings: Mapping[str, Any], needs: Sequence[Mapping[str, Any]]) -> str:
    """A hash of what a stage was told, and of the stages before it."""
    told = json.dumps({"settings": settings, "needs": [n["key"] for n in needs]}, sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def stage(
    folder: Path,
    settings: Mapping[str, Any],
    make: Callable[[Work], Result],
    *,
    needs: Sequence[Mapping[str, Any]] = (),
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The record of a stage, made now unless it was made before with the same settings.

    A folder that another version of the stage left is emptied; one that was interrupted is gone on with.

    Args:      settings of the stage, as JSON; make does the work in a folder and gives a result, as JSON;
               needs: records of the stages that it builds on
    Returns:   its key, settings, times and result
    Verified:  tests/unit/test_demonstrations.py::test_a_stage_is_made_once_and_goes_on_where_it_was
    """
    key = stage_key(settings, needs)
    record, begun = folder / "stage.json", folder / "begun.json"
    if record.is_file() and (found := json.loads(record.read_text()))["key"] == key:
        return found
    if not begun.is_file() or json.loads(begun.read_text())["key"] != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(begun, {"key": key, "settings": settings})
    note(f"{time.strftime('%H:%M:%S')} {folder.name} ...")
    work = Work(folder)
    result = make(work)
    done = {"key": key, "settings": dict(settings), **work.spent(), "result": result}
    write_json(record, done)
    note(f"{time.strftime('%H:%M:%S')} {folder.name}: {done['seconds']:.0f} s, {done['cpu_seconds']:.0f} s of a core")
    return done
