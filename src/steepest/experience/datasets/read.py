"""Read a dataset from whatever was given."""

from __future__ import annotations

from typing import Any

from steepest.errors import UsageError
from steepest.experience.datasets.dataset import Dataset


def read_dataset(source: Any) -> Dataset:
    """Return a dataset: as it is given, or from a file."""
    if isinstance(source, Dataset):
        return source
    raise UsageError(f"{source} is no dataset")


def env_of(source: Any) -> str:
    """Return the id of the environment that a dataset names."""
    env = read_dataset(source).env
    if env is None:
        raise UsageError("the dataset names no environment: give it")
    return env
