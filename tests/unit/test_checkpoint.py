"""Checkpoints come back bit for bit, or say what is wrong with them."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steepest.errors import RunError
from steepest.runs import checkpoint as module
from steepest.runs.checkpoint import (
    CheckpointError,
    CheckpointStore,
    NewerSchemaError,
    load_metadata,
    load_tensors,
    save_tensors,
)

TENSORS = {
    "policy/weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "flags": torch.tensor([True, False, True]),
    "generator": torch.arange(255, dtype=torch.uint8),
    "count": torch.tensor(2**40),
    "half": torch.tensor([1.5, -2.25, 3.0]).bfloat16(),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "empty": torch.zeros(0, 3),
    "view": torch.arange(10.0)[3:5],
}
METADATA = {"algorithm": "ppo", "bounds": (1, 2), "score": float("inf"), "big": 2**127, "name": "é\n"}


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    tensors, metadata = load_tensors(path)
    assert {name: bits(tensor) for name, tensor in tensors.items()} == {k: bits(t) for k, t in TENSORS.items()}
    assert metadata == {**METADATA, "bounds": [1, 2]}
    assert load_metadata(path) == metadata


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    assert {name: bits(tensor) for name, tensor in load_file(path).items()} == {k: bits(t) for k, t in TENSORS.items()}


def test_same_contents_same_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", TENSORS, METADATA)
    save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(1000)}, {})
    tensors, _ = load_tensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(tensors["w"], torch.ones(1000))


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="complex"):
        save_tensors(tmp_path / "a", {"z": torch.zeros(2, dtype=torch.complex64)}, {})
    with pytest.raises(TypeError, match="Path"):
        save_tensors(tmp_path / "a", {}, {"where": tmp_path})
    with pytest.raises(TypeError, match="reserves"):
        save_tensors(tmp_path / "a", {"__metadata__": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.arange(4.0), "n": torch.tensor(7)}, {"learning_rate": 0.001})
    sound = path.read_bytes()
    expected = load_tensors(path)
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_tensors(path)
        except CheckpointError:
            continue
        # A flip in the padding, or in how the JSON is spelt, may leave the meaning as it was: then exactly so.
        assert metadata == expected[1]
        assert {k: bits(t) for k, t in tensors.items()} == {k: bits(t) for k, t in expected[0].items()}


def test_a_flipped_tensor_byte_names_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.arange(100.0)}, {})
    damaged = bytearray(path.read_bytes())
    damaged[-50] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"damaged.*checksum"):
        load_tensors(path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, METADATA)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged \(truncated"):
        load_tensors(path)


def test_missing_foreign_and_not_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_tensors(tmp_path)
    (tmp_path / "text").write_text("this is a shopping list, not a checkpoint")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_tensors(tmp_path / "text")
    torch.save({"w": torch.zeros(3)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_tensors(tmp_path / "pickle.pt")
    save_file({"w": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="steepest did not write it"):
        load_tensors(tmp_path / "foreign.safetensors")
    save_file({"w": torch.zeros(3)}, tmp_path / "odd.safetensors", metadata={"steepest": json.dumps({"schema": "?"})})
    with pytest.raises(CheckpointError, match="not JSON of the expected form"):
        load_tensors(tmp_path / "odd.safetensors")


def test_newer_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"w": torch.zeros(3)}, {})
    monkeypatch.setattr(module, "SCHEMA", 99)
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
    with module.atomic_file(tmp_path / "step-000000000008.safetensors") as file:
        file.write(b"so far")
        assert CheckpointStore(tmp_path).latest() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "step-000000000008.safetensors"]


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from steepest.runs.checkpoint import CheckpointStore
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
