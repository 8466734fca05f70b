"""Files of flat arrays, .npz and HDF5: read array by array, written in D4RL's layout; nothing is ever unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Array, Dataset
from steepest.experience.datasets.folders import described_by, description_of
from steepest.experience.datasets.layouts import to_d4rl
from steepest.experience.datasets.packages import package
from steepest.experience.datasets.places import HDF5_ENDINGS
from steepest.files.atomic import atomic_place
from steepest.files.reading import parse_json

KEY = "steepest"
"""The array of an .npz file, or the attribute of an HDF5 file, that holds the description as JSON."""


class Stored(NamedTuple):
    """An open file: its arrays by name, read when they are indexed, and the fields of a dataset that it describes."""

    arrays: dict[str, Any]
    described: dict[str, Any]


class Member:
    """An array in a file, of which shape and type are known; indexing reads it."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], read: Any) -> None:
        self.path, self.name, self.shape, self.dtype, self.read = path, name, shape, dtype, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        try:
            return cast(Array, self.read()[index])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(f"{self.path}: {self.name} cannot be read: {error}") from error


@contextmanager
def open_file(path: Path, unpack: Path | None = None) -> Generator[Stored]:
    """Open an .npz or HDF5 file.

    Args:      unpack: a folder to unpack an .npz file's arrays into, where they are mapped instead of read
    Raises:    UsageError where the file is damaged, holds Python objects, or its package is not installed
    """
    if path.suffix in HDF5_ENDINGS:
        h5py = package("h5py", f"{path}, an HDF5 file,")
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise UsageError(f"{path} cannot be read as an HDF5 file: {error}") from error
        with file:
            yield Stored(dict(_hdf5_arrays(h5py, file, path)), _described(file.attrs.get(KEY), path))
        return
    headers = _npz_headers(path)
    for name, (_, dtype) in headers.items():
        if dtype.hasobject:
            raise UsageError(f"{path}: {name} holds Python objects, which are not unpickled; expected numbers")

    def member(name: str) -> Member:
        return Member(path, name, *headers[name], cache(partial(_npz_array, path, name, unpack)))

    arrays = {name: member(name) for name in headers if name != KEY}
    yield Stored(arrays, _described(str(member(KEY)[()]) if KEY in headers else None, path))


def write_file(dataset: Dataset, path: Path) -> None:
    """Write a dataset to an .npz or HDF5 file in D4RL's layout, wholly or not at all.

    Raises:    UsageError for another ending, or where a package is not installed; RunError where the system refuses
    Verified:  tests/unit/test_datasets.py::test_every_layout_gives_back_what_was_written
    """
    description = json.dumps(description_of(dataset))
    with atomic_place(path) as temporary:
        if path.suffix in HDF5_ENDINGS:
            h5py = package("h5py", f"{path}, an HDF5 file,")
            with h5py.File(temporary, "w") as file:
                file.attrs[KEY] = description
                for name, shape, dtype, pieces in to_d4rl(dataset):
                    stored, begin = file.create_dataset(name, shape, dtype), 0
                    for piece in pieces:
                        stored[begin : begin + len(piece)] = piece
                        begin += len(piece)
            return
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, shape, dtype, pieces in to_d4rl(dataset):
                _write_member(archive, name, shape, dtype, pieces)
            text = np.array(description)
            _write_member(archive, KEY, (), text.dtype, iter([text]))


def _hdf5_arrays(h5py: Any, group: Any, path: Path, outer: str = "") -> Iterator[tuple[str, Member]]:
    for key, value in group.items():
        name = f"{outer}{key}"
        if isinstance(value, h5py.Group):
            yield from _hdf5_arrays(h5py, value, path, f"{name}/")
        elif isinstance(value, h5py.Dataset):
            yield name, Member(path, name, value.shape or (), value.dtype, partial(_itself, value))


def _itself(value: Any) -> Any:
    return value


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of every array in an .npz file, without reading the arrays."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        old = np.lib.format.read_magic(file) == (1, 0)
                        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                        shape, _, dtype = read(file)
                        found[member.removesuffix(".npy")] = (shape, dtype)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} cannot be read as an .npz file of arrays: {error}") from error
    return found


def _npz_array(path: Path, name: str, unpack: Path | None) -> Array:
    with zipfile.ZipFile(path) as archive:
        if unpack is not None:
            return np.load(archive.extract(f"{name}.npy", unpack), mmap_mode="r", allow_pickle=False)
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _write_member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[Array]
) -> None:
    # With the time of 1980 that a bare ZipInfo has, the same dataset is the same file.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).tobytes())


def _described(text: Any, path: Path) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        description = parse_json(text.decode() if isinstance(text, bytes) else str(text))
    except ValueError as error:
        raise UsageError(f"{path}: its description is not JSON: {error}") from error
    return described_by(description, str(path))
