"""The packages that files of datasets need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from steepest.errors import UsageError


def package(name: str, what: str) -> Any:
    """Import a package; UsageError that says how to install it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise UsageError(
            f"{what} needs {missing}, which is not installed. Run: pip install 'steepest[offline]'"
        ) from error
