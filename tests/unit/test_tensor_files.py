"""Tensors and metadata come back bit for bit, or the error says what is wrong with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steepest.files.tensors import CheckpointError, load_metadata, load_tensors, save_tensors

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
