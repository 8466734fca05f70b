"""Tensors in one safetensors file, written whole or not at all, checked when read, never unpickled.

A file holds tensors by flat names; everything else is JSON in the file's metadata, under the one key ``steepest``:
``schema`` (version of this layout), ``kind`` ("checkpoint" can be resumed, "agent" can only act or start a new run),
``checksum`` and ``metadata`` (what the caller gave). Any safetensors reader opens it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steepest.errors import RunError
from steepest.files.atomic import atomic_file
from steepest.files.reading import parse_json

Kind = Literal["checkpoint", "agent"]

SCHEMA = 1
"""Version of the layout. A file of a higher one is refused, never guessed at."""

_KEY = "steepest"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CheckpointError(RunError):
    """A checkpoint could not be written, or what was read is not one this version can use."""


class NewerSchemaError(CheckpointError):
    """The file is sound, but a newer version of steepest wrote it."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, kind: Kind = "checkpoint"
) -> None:
    """Write tensors and JSON metadata to one safetensors file, durable when this returns.

    The file carries a BLAKE2b checksum of all that is in it, which costs about 1 s per GB here and again on loading
    (0.2 ms for a 64-64 network with its optimiser).

    Args:      path of the file; tensors by name, any strided tensor of a float, integer or bool dtype, on any device;
               metadata that JSON can hold (tuples come back as lists, keys as strings; NaN and infinities survive)
    Raises:    CheckpointError when the system refuses the write (a file that was there is then untouched);
               TypeError on a tensor or metadata that cannot be stored
    """
    # The header is written here. safetensors.torch.save_file renames a temporary file of its own over the target: that
    # file has no lock, so another process may delete it, and a full disk comes without its error number.
    # safetensors.torch.save returns bytes, after two copies of everything: 24 GB to save a model of 10^9 parameters.
    arrays = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    payload = _as_read_back({"schema": SCHEMA, "kind": kind, "metadata": dict(metadata)})
    payload["checksum"] = _checksum(payload, arrays)
    header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(payload)}}
    order = sorted(arrays, key=lambda name: (-arrays[name].element_size(), name))  # keeps every tensor aligned
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _DTYPES[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    try:
        with atomic_file(Path(path)) as file:
            file.write(len(encoded).to_bytes(8, "little"))
            file.write(encoded)
            for name in order:
                file.write(_bytes_of(arrays[name]))
    except RunError as error:
        raise CheckpointError(f"checkpoint not saved: {error}") from error


def load_tensors(path: Path, *, kind: Kind | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and verify its checksum.

    Args:      path of the file; kind that it must be, or None for either
    Returns:   (tensors on the CPU, owned by the caller; metadata as it was given)
    Raises:    CheckpointError when the file is missing, truncated, corrupted, foreign, or of the wrong kind;
               NewerSchemaError when a newer version of steepest wrote it
    """
    path = Path(path)
    payload = _read_payload(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            # Cloned, because these tensors map the file: they would change, or crash the process, if it did.
            tensors = {str(name): cast(Tensor, file.get_tensor(name)).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(path, str(error))) from error
    if payload.get("checksum") != _checksum(payload, tensors):
        raise CheckpointError(_unreadable(path, "the checksum does not match its contents"))
    if kind is not None and payload["kind"] != kind:
        raise CheckpointError(
            f"{path} is a saved {payload['kind']}, and a {kind} is needed here"
            + (": an agent can act, but holds no point from which a run continues." if kind == "checkpoint" else ".")
        )
    return tensors, payload["metadata"]


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, from its header alone: fast, and without verifying the checksum.

    Raises:    CheckpointError as :func:`load_tensors` does
    """
    return _read_payload(Path(path))["metadata"]


def _storable(name: str, tensor: Tensor) -> Tensor:
    if name == "__metadata__":
        raise TypeError("a tensor cannot be named '__metadata__': safetensors reserves that name")
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise TypeError(
            f"tensor {name!r} of dtype {tensor.dtype} and layout {tensor.layout} cannot be stored; "
            f"give a strided tensor of one of {', '.join(str(dtype) for dtype in _DTYPES)}"
        )
    return tensor.detach().cpu().contiguous()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _as_read_back(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload as JSON gives it back, so that the checksum is of what a reader will see."""

    def scalar(value: Any) -> Any:
        if hasattr(value, "item"):  # NumPy and torch scalars
            return value.item()
        raise TypeError(f"checkpoint metadata holds a {type(value).__name__}, which JSON cannot: {value!r}")

    return cast(dict[str, Any], json.loads(json.dumps(payload, default=scalar)))


def _checksum(payload: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    # BLAKE2b because it runs at about 1.2 GB/s on any 64-bit processor; SHA-256 is faster only where there are
    # instructions for it.
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps({key: value for key, value in payload.items() if key != "checksum"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, _DTYPES.get(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _read_payload(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; give a .safetensors file in it.")
        raise CheckpointError(f"there is no checkpoint at {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = cast(dict[str, str], file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(path, str(error))) from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but steepest did not write it: it is not a checkpoint.")
    try:
        payload = parse_json(text)
        schema = int(payload["schema"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(_unreadable(path, "its metadata is not JSON of the expected form")) from error
    if schema > SCHEMA:
        raise NewerSchemaError(
            f"{path} has checkpoint schema {schema}, and this version of steepest reads up to {SCHEMA}. "
            "Upgrade steepest: pip install --upgrade steepest"
        )
    if not isinstance(payload.get("metadata"), dict) or payload.get("kind") not in ("checkpoint", "agent"):
        raise CheckpointError(_unreadable(path, "its metadata is not JSON of the expected form"))
    return cast(dict[str, Any], payload)


def _unreadable(path: Path, detail: str) -> str:
    start = b""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its JSON header, eight bytes, then the header itself.
    if len(start) == 9 and start[8:] != b"{":
        return f"{path} is not a safetensors file, so it is not a checkpoint."
    return f"{path} is damaged (truncated or corrupted): {detail}."
