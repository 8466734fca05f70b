"""A dataset in a folder: its rows in one .npy file per array, which are mapped into memory instead of read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

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
from steepest.files.reading import Unusable, parse_json, read_text, refuse_halves
from steepest.files.schema import check

SCHEMA = 1
"""Version of the description, here and in the other layouts; a higher one is refused, never guessed at."""


class Versioned(TypedDict):
    """What every version's description holds."""

    schema: int


class ReferenceReturns(TypedDict):
    """Returns that scores are relative to."""

    random: float
    expert: float


class Description(Versioned):
    """What a file says of a dataset besides its arrays."""

    env: NotRequired[str | None]
    env_kwargs: NotRequired[dict[str, Any] | None]
    max_episode_steps: NotRequired[int | None]
    reference: NotRequired[ReferenceReturns | None]
    arrays: NotRequired[list[str]]


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
        found = parse_json(read_text(folder / DESCRIPTION))
        check(found, dict)
    except (Unusable, FileNotFoundError) as error:
        raise UsageError(f"{folder / DESCRIPTION} cannot be read as JSON: {error}") from error
    return found


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
    try:
        check(description, Versioned)
    except Unusable as error:
        raise UsageError(f"{source}: its description is not of the form that steepest writes: {error}") from error
    if description["schema"] > SCHEMA:
        raise UsageError(
            f"{source} has schema {description['schema']}, and this version of steepest reads up to {SCHEMA}. Upgrade "
            "steepest: pip install --upgrade steepest"
        )
    try:
        check(description, Description)
        refuse_halves(description)
    except Unusable as error:
        raise UsageError(f"{source}: its description is not of the form that steepest writes: {error}") from error
    reference = description.get("reference")
    return {
        "env": description.get("env"),
        "env_kwargs": description.get("env_kwargs"),
        "max_episode_steps": description.get("max_episode_steps"),
        "reference": None if reference is None else Reference(reference["random"], reference["expert"]),
    }


def _stem(name: str) -> str:
    """Return the name of an array's file: a "." joins nested keys, and is written "%2E" within one."""
    return name.replace("%", "%25").replace(".", "%2E").replace("/", ".")
