"""Running the command in a process of its own, and reading what a run left."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from steepest.files.tensors import load_tensors
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.metrics import read_metrics

COMMAND = [sys.executable, "-m", "steepest"]

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "400",  # the option parser's boxes wrap their text otherwise
    "MUJOCO_GL": "disable",
    "SDL_VIDEODRIVER": "dummy",
}

TIME_FIELDS = ("wall_seconds", "time/steps_per_second")


def steepest_command(*arguments: object, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `steepest` to its end; both streams as text."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def start_command(*arguments: object, log: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start `steepest` in a session of its own, so that a signal to the test's group does not reach it."""
    with (log or Path(os.devnull)).open("ab") as stream:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=ENVIRONMENT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            **options,
        )


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of the newest checkpoint, without the figures that are time."""
    found = CheckpointStore(run / "checkpoints").load_latest()
    assert found is not None
    _, tensors, metadata = found
    return tensors, {k: v for k, v in metadata.items() if k != "wall_seconds"}


def timeless_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what is time; the last line has to be whole."""
    assert (run / "metrics.jsonl").read_bytes().endswith(b"\n")
    return [
        {k: v for k, v in row.items() if k not in TIME_FIELDS and not k.startswith("time/")}
        for row in read_metrics(run)
    ]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs that should be the same to the bit; empty if nothing does."""
    found: list[str] = []
    (tensors, metadata), (others, other_metadata) = final_state(one), final_state(other)
    found += [f"tensor {k}" for k in tensors.keys() ^ others.keys()]
    found += [f"tensor {k}" for k in tensors.keys() & others.keys() if not torch.equal(tensors[k], others[k])]
    found += [f"metadata {k}" for k in metadata if metadata[k] != other_metadata.get(k)]
    rows, other_rows = timeless_rows(one), timeless_rows(other)
    found += [f"{len(rows)} rows against {len(other_rows)}"] if len(rows) != len(other_rows) else []
    found += [f"row {i}" for i, (a, b) in enumerate(zip(rows, other_rows, strict=False)) if a != b]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    found += [
        f"summary {k}"
        for k in summaries[0]
        if k not in ("wall_seconds", "steps_per_second") and summaries[0][k] != summaries[1].get(k)
    ]
    best = [run / "checkpoints" / "best.safetensors" for run in (one, other)]
    if best[0].exists() != best[1].exists():
        found.append("best agent")
    elif best[0].exists():
        tensors, others = (load_tensors(path)[0] for path in best)
        found += [f"best {k}" for k in tensors if not torch.equal(tensors[k], others[k])]
    replay = [{p.name: p for p in (run / "replay").glob("*")} for run in (one, other)]
    names = replay[0].keys() | replay[1].keys()
    found += [f"replay {k}" for k in sorted(names) if not _same_bytes(replay[0].get(k), replay[1].get(k))]
    return found


def _same_bytes(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and filecmp.cmp(one, other, shallow=False)


def stray_files(folder: Path) -> list[str]:
    """Temporary and half-written files anywhere below a folder."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and (p.name.endswith(".tmp") or ".partial" in p.name)]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has written a row of at least that step."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        assert process.poll() is None, "the run ended before it was stopped"
        path = run / "metrics.jsonl"
        if path.exists() and any(row["step"] >= step for row in read_metrics(path)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{run} did not reach step {step}")
