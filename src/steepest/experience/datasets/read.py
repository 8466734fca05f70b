"""``read_dataset``: from whatever holds recorded episodes to a dataset; ``write_dataset``: the way back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from steepest.errors import UsageError, as_path
from steepest.experience.datasets import flat_files, folders, minari_files
from steepest.experience.datasets.dataset import Dataset
from steepest.experience.datasets.layouts import from_arrays, known_arrays
from steepest.experience.datasets.places import (
    ACCEPTED,
    DESCRIPTION,
    ENDINGS,
    HDF5_ENDINGS,
    MINARI,
    check_there,
    data_folder,
)
from steepest.files.atomic import atomic_place, remove_stray_files

SHARE_OF_MEMORY = 0.5
"""What takes more of the free memory than this is not read into it."""


def read_dataset(source: Any, *, cache: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the dataset in what is given: ``ACCEPTED`` lists what that may be.

    Args:      cache: a folder for the rows of a file that is too large for memory. They are put there once, in files
               that are mapped into memory; while the source is the same, the next call opens them as they are
    Raises:    UsageError for anything else, for what is malformed, and for what is too large where there is no cache
    Verified:  tests/unit/test_datasets.py::test_what_is_no_dataset_is_refused,
               tests/unit/test_datasets.py::test_a_large_file_is_mapped_from_a_cache
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        return from_arrays(cast(Mapping[str, Any], source))
    if isinstance(source, str) and source.startswith(MINARI):
        return _read(minari_files.local_folder(source.removeprefix(MINARI)), source, cache)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"the data is an object of type {type(source).__name__}; accepted are {ACCEPTED}")
    path = Path(source).expanduser()
    check_there(str(source))
    return _read(path, str(path), cache)


def env_of(source: Any) -> str:
    """Return the id of the environment that a dataset names.

    Raises:    UsageError where it names none
    """
    dataset = read_dataset(source)
    if dataset.env is None:
        raise UsageError(f"{dataset.source} names no environment; give the one that it is of")
    return dataset.env


def write_dataset(dataset: Dataset, out: str | os.PathLike[str]) -> str:
    """Write a dataset to a place that ``check_free`` accepts, wholly or not at all; return the place.

    Raises:    UsageError where it is taken or of an unknown kind; RunError where the system refuses
    """
    place = check_free(out)
    if place.startswith(MINARI):
        minari_files.write_minari(dataset, place.removeprefix(MINARI))
    elif Path(place).suffix in ENDINGS:
        flat_files.write_file(dataset, Path(place))
    else:
        folders.write_folder(dataset, Path(place))
    return place


def check_free(out: str | os.PathLike[str]) -> str:
    """Return where a dataset can be written: "minari:ID", an .npz or HDF5 file, or a folder that is not there yet.

    Raises:    UsageError where something is there already, or a package is missing
    """
    place = str(as_path(out, "out")) if not isinstance(out, str) else out
    if place.startswith(MINARI):
        minari_files.check_free(place.removeprefix(MINARI))
        return place
    path = Path(place)
    if path.suffix and path.suffix not in ENDINGS:
        raise UsageError(
            f'cannot write a dataset to {path}: expected "minari:NAME-v0", a file ending in '
            f"{', '.join(ENDINGS)}, or a folder"
        )
    if path.suffix in HDF5_ENDINGS:
        flat_files.package("h5py", f"{path}, an HDF5 file,")
    remove_stray_files(path.parent, path.name)  # of a writer that was killed after it had written all
    if path.exists():
        raise UsageError(f"{path} exists already; give another place, or remove it")
    return place


def _read(path: Path, source: str, cache: str | os.PathLike[str] | None) -> Dataset:
    if path.is_dir() and (path / DESCRIPTION).is_file():
        return folders.read_folder(path)
    is_minari = path.is_dir() and data_folder(path) is not None
    if not is_minari and (path.is_dir() or path.suffix not in ENDINGS):
        kind = "a folder without a dataset" if path.is_dir() else f"a file ending in {path.suffix or 'nothing'}"
        raise UsageError(f"{path} is {kind}; accepted are {ACCEPTED}")
    if cache is None:
        if is_minari:
            _check_fits(source, minari_files.nbytes(path, source))
            return minari_files.read_minari(path, source)
        with flat_files.open_file(path) as stored:
            known = [x for _, x in known_arrays(stored.arrays)]
            _check_fits(source, sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in known))
            return from_arrays(stored.arrays, source=source, **stored.described)
    return _read_through(path, source, Path(cache), is_minari=is_minari)


def _read_through(path: Path, source: str, cache: Path, *, is_minari: bool) -> Dataset:
    """Put the rows into files of the cache, unless these are there already, and map them."""
    stamp = _stamp(path)
    spaces = minari_files.spaces_in(path, source) if is_minari else None
    if (cache / DESCRIPTION).is_file():
        if folders.read_json(cache).get("made_from") != stamp:
            raise UsageError(f"{cache} holds the rows of other data than {source} is now; give another folder as cache")
        return folders.read_folder(cache, spaces)
    if cache.exists():
        raise UsageError(f"{cache} exists and holds no dataset; give a folder that is not there yet as cache")
    with atomic_place(cache) as temporary:
        temporary.mkdir()
        allocate = folders.in_folder(temporary)
        if is_minari:
            dataset = minari_files.read_minari(path, source, allocate=allocate)
        else:
            with flat_files.open_file(path, unpack=temporary / "unpacked") as stored:
                dataset = from_arrays(stored.arrays, source=source, allocate=allocate, **stored.described)
            folders.remove(temporary / "unpacked")
        folders.describe(dataset, temporary, made_from=stamp)
    return folders.read_folder(cache, spaces)


def _stamp(path: Path) -> list[Any]:
    """Return by what a file, or those in a folder, are known to be the same: path, sizes and times."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [str(path.resolve()), [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]]


def _check_fits(source: str, size: int) -> None:
    free = available_memory()
    if free is not None and size > SHARE_OF_MEMORY * free:
        raise UsageError(
            f"{source} takes {size / 1e9:.2f} GB in memory, of which {free / 1e9:.2f} GB are free. Give a folder as "
            "cache, on a disk with room for as much: its rows are put there once and mapped from there"
        )


def available_memory() -> int | None:
    """Return the bytes of memory that are free for use, or None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
