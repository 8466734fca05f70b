"""Where recorded episodes are: told from a name and the files there, without reading any, and without torch."""

from __future__ import annotations

from pathlib import Path

from steepest.errors import UsageError

MINARI = "minari:"
"""What the name of a Minari dataset begins with."""
HDF5_ENDINGS = (".hdf5", ".h5")
ENDINGS = (".npz", *HDF5_ENDINGS)
"""Endings of files of flat arrays, in D4RL's or OGBench's layout."""
DESCRIPTION = "dataset.json"
"""The file that describes a folder of arrays."""

ACCEPTED = (
    "a Dataset; flat arrays by name, in D4RL's or OGBench's layout; a file of such arrays that ends in "
    f'{", ".join(ENDINGS)}; "minari:ID" of a Minari dataset, or its folder; a folder that steepest wrote'
)


def is_dataset(place: str) -> bool:
    """Return whether a text names data that can be read, not an environment: a folder of that name may be anything.

    Verified:  tests/integration/test_offline_runs.py::test_the_command_takes_what_the_data_says_of_its_environment
    """
    path = Path(place)
    if place.startswith(MINARI) or path.suffix in ENDINGS:
        return True
    return path.is_dir() and ((path / DESCRIPTION).is_file() or data_folder(path) is not None)


def data_folder(path: Path) -> Path | None:
    """Return the folder that holds a Minari dataset's data: the path or its "data"; None if there is none."""
    return next((p for p in (path, path / "data") if (p / "metadata.json").is_file()), None)


def check_there(source: str) -> None:
    """Raise UsageError where nothing is at a path; whether the ids of Minari's datasets are, Minari itself says.

    Verified:  tests/integration/test_light.py::test_wrong_arguments_are_told_without_torch
    """
    path = Path(source).expanduser()
    if not source.startswith(MINARI) and not path.exists():
        raise UsageError(f"there is no data at {path}; accepted are {ACCEPTED}")
