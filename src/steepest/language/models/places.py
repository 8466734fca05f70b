"""Where a language model is: told from a name and the files there, without loading it, and without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from steepest.errors import UsageError
from steepest.files.reading import Unusable, parse_json, read_text

LONGEST_ID = 200
"""Characters of a model's id on the hub, more than it allows."""


def locate(source: str) -> str | Path:
    """A path that exists, or the id of a model on the Hugging Face hub.

    Raises:    UsageError where it can be neither
    Verified:  tests/integration/test_light.py::test_wrong_arguments_are_told_without_torch
    """
    path = Path(source).expanduser()
    if os.path.isfile(path):  # False, too, of a name that no file can have
        if path.suffix != ".gguf":
            raise UsageError(f"{source} is a file, but no .gguf; give the folder that the model was saved in")
        return path
    if os.path.isdir(path):
        for folder in (path, path / "model", path / "interrupted-model"):
            has_model = (folder / "config.json").is_file() and not is_run(folder)
            if has_model or (folder / "adapter_config.json").is_file():
                return folder
        if _trains_agents(path):
            raise UsageError(
                f"{source} is a run of agents, which holds no language model; steepest evaluate {source} plays it"
            )
        if is_run(path):
            best = path / "best-model"
            so_far = f", or take its best model so far, {best}" if best.is_dir() else ""
            raise UsageError(
                f"{source} is a run that has not ended: it holds no model yet. Finish it with --resume{so_far}"
            )
        raise UsageError(f"no model in {source}: expected a folder with the config.json of a Hugging Face model in it")
    if len(source) <= LONGEST_ID and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith("."):
        return source
    raise UsageError(f"there is no model at {source[:LONGEST_ID]}")


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, finished or not."""
    return (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file()


def _trains_agents(folder: Path) -> bool:
    """Return whether a folder is of a run of agents, by what its config.json describes."""
    try:
        saved = parse_json(read_text(folder / "config.json"))
    except (Unusable, FileNotFoundError):
        return False
    return isinstance(saved, dict) and "env" in saved and "model" not in saved
