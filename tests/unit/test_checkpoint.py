"""Checkpoints come back bit for bit, or say what is wrong with them."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from steepest.errors import RunError
from steepest.files import tensors
from steepest.files.atomic import atomic_file
from steepest.files.tensors import CheckpointError, NewerSchemaError, load_tensors
from steepest.runs.store.checkpoints import CheckpointStore


def test_newer_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.zeros(3)}, {})
    monkeypatch.setattr(tensors, "SCHEMA", 99)
    path = store.save(2, {"w": torch.zeros(3)}, {})
    monkeypatch.undo()
    with pytest.raises(NewerSchemaError, match=r"schema 99.*Upgrade"):
        load_tensors(path)
    with pytest.raises(NewerSchemaError):  # going back silently to step 1 would lose work
        store.latest()


def test_an_agent_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save_interrupted(5, {"w": torch.zeros(1)}, {"seed": 3})
    assert load_tensors(path, kind="agent")[1] == {"seed": 3, "step": 5}
    with pytest.raises(CheckpointError, match="saved agent, and a checkpoint is needed"):
        load_tensors(path, kind="checkpoint")
    assert store.latest() is None


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    old = store.save(1, {"w": torch.zeros(3)}, {})
    store.save_best(1, {"w": torch.zeros(3)}, {}, 1.0)
    full_disk(monkeypatch)
    with pytest.raises(CheckpointError, match=r"disk is full.*untouched.*--resume"):
        store.save(2, {"w": torch.ones(3)}, {})
    with pytest.raises(CheckpointError, match="disk is full"):
        store.save_best(2, {"w": torch.ones(3)}, {}, 2.0)
    monkeypatch.undo()
    assert store.latest() == old
    assert store.best_score() == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", old.name]
    assert issubclass(CheckpointError, RunError)


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        store.save(step, {"w": torch.tensor(step)}, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000000030.safetensors",
        "step-000000000040.safetensors",
    ]
    latest = store.load_latest()
    assert latest is not None
    path, tensors, metadata = latest
    assert path == store.latest()
    assert tensors["w"].item() == metadata["step"] == 40
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, keep=0)


def test_old_ones_go_only_when_the_new_one_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    old = store.save(1, {}, {})
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(old.exists()))
    store.save(2, {}, {})
    assert synced == [True, True]  # the file, then its folder
    assert not old.exists()


def test_what_cannot_be_tidied_up_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named like an old checkpoint is none; a file that the system will not delete stays, with a warning."""
    store = CheckpointStore(tmp_path, keep=1)
    for name in ("step-000000000000.safetensors", "step-999999999999.safetensors"):
        (tmp_path / name).mkdir()
    store.save(1, {"w": torch.zeros(1)}, {})
    store.save(2, {"w": torch.ones(1)}, {})
    found = store.load_latest()
    assert found is not None
    assert found[2]["step"] == 2

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match=r"could not delete .*step-000000000002"):
        store.save(3, {"w": torch.ones(1)}, {})
    monkeypatch.undo()
    assert store.latest() == tmp_path / "step-000000000003.safetensors"


def test_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.save_best(1, {"w": torch.tensor(1)}, {}, float("nan")) is None
    assert store.best_score() is None
    assert store.save_best(2, {"w": torch.tensor(2)}, {}, -50.0) == store.best_path
    assert store.save_best(3, {"w": torch.tensor(3)}, {}, -60.0) is None
    assert store.save_best(4, {"w": torch.tensor(4)}, {}, -50.0) is None
    assert store.save_best(5, {"w": torch.tensor(5)}, {}, -40.0) is not None
    tensors, metadata = load_tensors(store.best_path)
    assert tensors["w"].item() == metadata["step"] == 5
    assert metadata["score"] == store.best_score() == -40.0
    assert CheckpointStore(tmp_path).save_best(6, {}, {}, -45.0) is None  # a resumed run remembers


def test_damaged_best_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.best_path.write_bytes(b"short")
    with pytest.warns(RuntimeWarning, match="ignoring the stored best"):
        assert store.save_best(1, {}, {}, 0.0) is not None


def test_latest_falls_back_past_a_damaged_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    assert CheckpointStore(tmp_path / "absent").latest() is None
    first, second = store.save(1, {"w": torch.zeros(9)}, {}), store.save(2, {"w": torch.zeros(9)}, {})
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert store.latest() == first
    first.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="damaged"), pytest.raises(CheckpointError, match="none of the 2"):
        store.latest()


def test_stray_temporary_files_go_and_files_being_written_stay(tmp_path: Path) -> None:
    stray = tmp_path / ".step-000000000007.safetensors.999999-0.tmp"
    stray.write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("the user's own")
    with atomic_file(tmp_path / "step-000000000008.safetensors") as file:
        file.write(b"so far")
        assert CheckpointStore(tmp_path).latest() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "step-000000000008.safetensors"]


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from steepest.runs.store.checkpoints import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep=2)
found = store.load_latest()
step = 0 if found is None else found[2]["step"]
while True:
    step += 1
    store.save(step, {"w": torch.full((200_000,), float(step))}, {"note": step})
    store.save_best(step, {"w": torch.full((1000,), float(step))}, {}, step)
    print(step, flush=True)
"""


def test_killed_at_any_moment_the_latest_loads(tmp_path: Path) -> None:
    moments = random.Random(0)
    reached = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # saving has begun
            time.sleep(moments.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            announced = [int(line) for line in process.stdout.read().splitlines()]
        found = CheckpointStore(tmp_path, keep=2).load_latest()  # warnings are errors: nothing may be damaged
        assert found is not None
        _, tensors, metadata = found
        assert metadata["step"] >= max([reached + 1, *announced])  # what was reported saved is saved
        assert bool((tensors["w"] == metadata["step"]).all())
        reached = metadata["step"]
        assert not list(tmp_path.glob(".*.tmp"))
