"""Rows of a dataset, wherever they are: JSON lines, JSON, Parquet, a folder, the hub, or in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from steepest.errors import UsageError

Row = dict[str, Any]
ENDINGS = (".jsonl", ".json", ".parquet")


def read_rows(source: Any) -> list[Row]:
    """The rows of a dataset, as dicts.

    Args:      source: a file ending in .jsonl, .json or .parquet; a folder of such files, or one that
               ``datasets.save_to_disk`` wrote; the id of a dataset on the Hugging Face hub, its ``train`` split or
               ``id:split``; a ``datasets.Dataset``; or a sequence of dicts
    Raises:    UsageError where there is no such thing, or a row is no object
    Verified:  tests/unit/test_language_data.py::test_one_dataset_in_every_container
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_file():
            return _read_file(path)
        if path.is_dir():
            return _read_folder(path)
        return _read_hub(str(source))
    if isinstance(source, dict):
        names = ", ".join(map(str, cast(dict[Any, Any], source)))
        raise UsageError(f"the dataset is a dict of {names}; pass one split of it, such as data['train']")
    rows = [dict(row) if hasattr(row, "keys") else row for row in cast(Iterable[Any], source)]
    return _checked(rows, "the dataset")


def check_source(source: Any) -> None:
    """Raise UsageError where ``source`` can be neither a file nor a folder nor the id of a dataset; reads nothing."""
    if isinstance(source, (str, Path)) and not Path(source).expanduser().exists():
        _hub_name(str(source))


def _read_file(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".json":
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{path} is not JSON: {error}") from error
        if not isinstance(data, list):
            raise UsageError(f"{path} holds a JSON {type(data).__name__}; expected a list of objects")
        return _checked(cast(list[Any], data), str(path))
    if path.suffix != ".jsonl":
        raise UsageError(f"{path} has an unknown ending; expected {', '.join(ENDINGS)}")
    rows: list[Any] = []
    # Not splitlines: text inside JSON may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UsageError(f"line {number} of {path} is not JSON: {error}") from error
    return _checked(rows, str(path))


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as parquet

    try:
        return cast(list[Row], parquet.read_table(path).to_pylist())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _read_folder(folder: Path) -> list[Row]:
    if (folder / "dataset_dict.json").is_file():
        raise UsageError(f"{folder} holds several splits; give one of them, such as {folder / 'train'}")
    if (folder / "state.json").is_file():
        import datasets

        return [dict(row) for row in cast(Iterable[Any], datasets.load_from_disk(str(folder)))]
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
    if not files:
        raise UsageError(f"no data in {folder}: expected files ending in {', '.join(ENDINGS)}, or a saved dataset")
    return [row for path in files for row in _read_file(path)]


def _hub_name(name: str) -> tuple[str, str]:
    """The id of a dataset on the hub, and the split."""
    identity, _, split = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", identity) or name.startswith(".") or identity.endswith(ENDINGS):
        raise UsageError(f"there is no dataset at {name}")
    return identity, split or "train"


def _read_hub(name: str) -> list[Row]:
    identity, split = _hub_name(name)
    import datasets

    try:
        data = datasets.load_dataset(identity, split=split)
    except Exception as error:  # a network, a missing dataset, a missing split: each has an exception of its own
        raise UsageError(f"the dataset {name} cannot be loaded: {' '.join(str(error).split())}") from error
    return [dict(row) for row in cast(Iterable[Any], data)]


def _checked(rows: Sequence[Any], where: str) -> list[Row]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"row {number} of {where} is a {type(row).__name__}; expected an object with columns")
    return [cast(Row, row) for row in rows]
