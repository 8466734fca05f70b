"""Rows of a dataset, wherever they are: JSON lines, JSON, Parquet, a folder, a preference project, the hub, memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from steepest.errors import UsageError
from steepest.files.reading import Unusable, parse_json, read_text
from steepest.preferences.exchange import preference_rows
from steepest.preferences.schema import is_database
from steepest.preferences.store import Project

Row = dict[str, Any]
Columns = Sequence[str] | Mapping[str, str]
"""Where the data has other names: {"prompt": "question"}, or ("prompt=question",)."""
ENDINGS = (".jsonl", ".json", ".parquet")


def is_list(value: Any) -> bool:
    """Return whether a column holds a list, as Parquet gives it too."""
    return isinstance(value, (list, tuple, np.ndarray))


@dataclass(frozen=True)
class Table:
    """The rows of a dataset, and where they are from."""

    rows: list[Row]
    files: tuple[tuple[str, int], ...] = ()
    """Name and number of rows of every file, in order; none for rows in memory."""
    repeated: int = 0
    """Rows that have a column twice, of which the last counts."""

    def place(self, number: int) -> str:
        """Return where a row is, counted from 1 over all files: "row 3 of a.jsonl"."""
        for name, count in self.files:
            if number <= count:
                return f"row {number} of {name}"
            number -= count
        return f"row {number}"


def read_rows(source: Any) -> list[Row]:
    """The rows of a dataset, as dicts; arguments and errors as for ``read_table``."""
    return read_table(source).rows


def read_table(source: Any) -> Table:
    """The rows of a dataset, and where they are from.

    Args:      source: a file ending in .jsonl, .json or .parquet; a preference project, whose rows are its preferences
               about texts; a folder of such files, or one that ``datasets.save_to_disk`` wrote; the id of a dataset on
               the Hugging Face hub, its ``train`` split or ``id:split``; a ``datasets.Dataset``; or dicts, one after
               the other
    Raises:    UsageError where there is no such thing, or a row is no object
    Verified:  tests/unit/test_language_data.py::test_one_dataset_in_every_container,
               tests/unit/test_preference_exchange.py::test_a_project_is_read_where_data_is_expected
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if os.path.isfile(path):  # False, too, of a name that no file can have
            return _read_file(path)
        if os.path.isdir(path):
            return _read_folder(path)
        return _read_hub(str(source))
    check_source(source)
    rows = [dict(row) if hasattr(row, "keys") else row for row in cast(Iterable[Any], source)]
    return Table(_checked(rows, "the dataset"))


def check_source(source: Any) -> None:
    """Raise UsageError where ``source`` can be no dataset; reads nothing.

    Verified:  tests/unit/test_language_data.py::test_what_is_no_dataset_is_refused
    """
    if isinstance(source, (str, Path)):
        if not os.path.exists(Path(source).expanduser()):
            _hub_name(str(source))
    elif isinstance(source, dict):
        names = ", ".join(map(str, cast(dict[Any, Any], source)))
        raise UsageError(f"the dataset is a dict of {names}; pass one split of it, such as data['train']")
    elif isinstance(source, bytes) or not isinstance(source, Iterable):
        raise UsageError(
            f"the dataset is of type {type(source).__name__}; expected a file, a folder, the id of a dataset, or rows "
            "(dicts of columns)"
        )


def _read_file(path: Path) -> Table:
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
        return Table(rows, ((str(path), len(rows)),))
    if is_database(path):
        with Project.open(path) as project:
            rows = preference_rows(project)
        return Table(rows, ((str(path), len(rows)),))
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path} has an unknown ending; expected {', '.join(ENDINGS)}")
    try:
        text = read_text(path)
    except Unusable as error:
        raise UsageError(f"{path}: {error}") from error
    repeated: list[str] = []
    if path.suffix == ".json":
        data = _parsed(text, str(path), repeated)
        if not isinstance(data, list):
            raise UsageError(f"{path} holds a JSON {type(data).__name__}; expected a list of objects")
        found, count = cast(list[Any], data), len(repeated)
    else:
        found, count = [], 0
        # Not splitlines: text inside JSON may hold characters that it takes for line ends.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                before = len(repeated)
                found.append(_parsed(line, f"line {number} of {path}", repeated))
                count += len(repeated) > before
    rows = _checked(found, str(path))
    return Table(rows, ((str(path), len(rows)),), count)


def _parsed(text: str, what: str, repeated: list[str]) -> Any:
    try:
        return parse_json(text, repeated=repeated.append)
    except Unusable as error:
        raise UsageError(f"{what} cannot be read as JSON: {error}") from error


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as parquet

    try:
        return cast(list[Row], parquet.read_table(path).to_pylist())
    except (OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _read_folder(folder: Path) -> Table:
    if (folder / "dataset_dict.json").is_file():
        raise UsageError(f"{folder} holds several splits; give one of them, such as {folder / 'train'}")
    if (folder / "state.json").is_file():
        import datasets

        try:
            rows = [dict(row) for row in cast(Iterable[Any], datasets.load_from_disk(str(folder)))]
        except Exception as error:  # on damaged files it raises whatever it runs into
            raise UsageError(f"{folder} cannot be read as a saved dataset: {' '.join(str(error).split())}") from error
        return Table(rows, ((str(folder), len(rows)),))
    if (folder / "config.json").is_file():
        raise UsageError(f"no data in {folder}: it is the folder of a run or a model")
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
    if not files:
        raise UsageError(f"no data in {folder}: expected files ending in {', '.join(ENDINGS)}, or a saved dataset")
    parts = [_read_file(path) for path in files]
    return Table(
        [row for part in parts for row in part.rows],
        tuple(file for part in parts for file in part.files),
        sum(part.repeated for part in parts),
    )


def _hub_name(name: str) -> tuple[str, str]:
    """The id of a dataset on the hub, and the split."""
    identity, _, split = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", identity) or name.startswith(".") or identity.endswith(ENDINGS):
        raise UsageError(f"there is no dataset at {name[:200]}")
    return identity, split or "train"


def _read_hub(name: str) -> Table:
    identity, split = _hub_name(name)
    import datasets

    try:
        data = datasets.load_dataset(identity, split=split)
    except Exception as error:  # a network, a missing dataset, a missing split: each has an exception of its own
        raise UsageError(f"the dataset {name} cannot be loaded: {' '.join(str(error).split())}") from error
    rows = [dict(row) for row in cast(Iterable[Any], data)]
    return Table(rows, ((name, len(rows)),))


def _checked(rows: Sequence[Any], where: str) -> list[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"row {number} of {where} is a {type(row).__name__}; expected an object with columns")
    return [cast(Row, row) for row in rows]


def named_columns(columns: Columns) -> dict[str, str]:
    """Return our names of columns with the data's own.

    Raises:    UsageError for what is not of the form "prompt=question"
    Verified:  tests/unit/test_language_data.py::test_columns_of_other_names
    """
    if isinstance(columns, Mapping):
        return {str(name): str(theirs) for name, theirs in columns.items()}
    named: dict[str, str] = {}
    for pair in columns:
        name, equals, theirs = pair.partition("=")
        if not equals or not name or not theirs:
            raise UsageError(f"columns has {pair!r}; expected our name and the data's, such as prompt=question")
        if name in named:
            raise UsageError(f"columns has {name} twice, from {named[name]} and from {theirs}; keep one of them")
        named[name] = theirs
    return named
