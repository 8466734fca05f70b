"""A dataset in a folder: its rows in one .npy file per array, which are mapped into memory instead of read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import Space

from steepest.errors import UsageError
from steepest.experience.datasets.dataset import (
    FLAGS,
    Allocate,
    Array,
    Dataset,
    Reference,
    as_dataset,
    named_obs,
    pieces,
)
from steepest.experience.datasets.places import DESCRIPTION
from steepest.files.atomic import atomic_place

SCHEMA = 1
"""Version of the description, here and in the other layouts; a higher one is refused, never guessed at."""


def in_folder(folder: Path) -> Allocate:
    """Allocate arrays in .npy files of a folder."""

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        path = folder / f"{_stem(name)}.npy"
        return cast(Array, np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape))

    return allocate


def write_folder(dataset: Dataset, folder: Path) -> None:
    """Write a dataset to a new folder, wholly or not at all.

    Raises:    RunError where the system refuses
    Verified:  tests/unit/test_datasets.py::test_every_layout_gives_back_what_was_written
    """
    with atomic_place(folder) as temporary:
        temporary.mkdir()
        allocate = in_folder(temporary)
        for name, array in arrays_of(dataset).items():
            rows = allocate(name, array.shape, array.dtype)
            for piece in pieces(array):
                rows[piece] = array[piece]
        describe(dataset, temporary)


def describe(dataset: Dataset, folder: Path, **more: Any) -> None:
    """Write the description beside the arrays, which makes a folder a dataset."""
    description = {**description_of(dataset), "arrays": list(arrays_of(dataset)), **more}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def read_folder(folder: Path, spaces: tuple[Space[Any], Space[Any]] | None = None) -> Dataset:
    """Return the dataset in a folder; its arrays stay on disk.

    Args:      spaces: of observations and actions, where they are known; a folder does not hold them
    Raises:    UsageError where a file is missing, damaged, or contradicts the others
    """
    description = read_json(folder)
    try:
        names = [str(name) for name in description["arrays"]]
        arrays = {name: np.load(folder / f"{_stem(name)}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} cannot be read as a folder of arrays: {error}") from error
    missing = {"action", "reward", *FLAGS} - arrays.keys()
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(sorted(missing))}")
    return as_dataset(arrays, source=str(folder), spaces=spaces, **described_by(description, str(folder)))


def read_json(folder: Path) -> dict[str, Any]:
    """Return the description in a folder, as it stands."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / DESCRIPTION} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder / DESCRIPTION} holds a JSON {type(found).__name__}; expected an object")
    return cast(dict[str, Any], found)


def remove(folder: Path) -> None:
    """Delete a folder of temporary arrays, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)


def arrays_of(dataset: Dataset) -> dict[str, Array]:
    """Return every array of a dataset by its name."""
    steps = ("action", "reward", *FLAGS, "log_prob", "drawn")
    return named_obs(dataset.obs) | {name: x for name in steps if (x := getattr(dataset, name)) is not None}


def description_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a file says of a dataset besides its arrays, as plain JSON."""
    reference = None if dataset.reference is None else dataset.reference._asdict()
    return {
        "schema": SCHEMA,
        "env": dataset.env,
        "env_kwargs": dataset.env_kwargs,
        "max_episode_steps": dataset.max_episode_steps,
        "reference": reference,
    }


def described_by(description: Any, source: str) -> dict[str, Any]:
    """Return the fields of a ``Dataset`` that a file's description gives; the inverse of ``description_of``.

    Raises:    UsageError for one of a newer version, or of another form
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("schema"), int):
        raise UsageError(f"{source}: its description is not of the form that steepest writes: {description!r:.80}")
    if description["schema"] > SCHEMA:
        raise UsageError(
            f"{source} has schema {description['schema']}, and this version of steepest reads up to {SCHEMA}. Upgrade "
            "steepest: pip install --upgrade steepest"
        )
    reference = description.get("reference")
    try:
        return {
            "env": description.get("env"),
            "env_kwargs": description.get("env_kwargs"),
            "max_episode_steps": description.get("max_episode_steps"),
            "reference": None if reference is None else Reference(reference["random"], reference["expert"]),
        }
    except (KeyError, TypeError) as error:
        raise UsageError(f"{source}: its reference returns are {reference!r:.80}") from error


def _stem(name: str) -> str:
    """Return the name of an array's file: a "." joins nested keys, and is written "%2E" within one."""
    return name.replace("%", "%25").replace(".", "%2E").replace("/", ".")
