"""Errors for people: a wrong call, or a failure while running."""

from __future__ import annotations

import os
from pathlib import Path


class SteepestError(Exception):
    """Any error whose message is meant for the user as it stands."""


class UsageError(SteepestError):
    """The call or the command line was wrong; the command exits with code 2."""


class RunError(SteepestError):
    """The request was right but something failed; the command exits with code 1."""


class NonFiniteError(RunError):
    """Something that is learned became infinite or no number: these settings do not work, others may."""


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise the one kind of error that a bad configuration value gives."""
    if not condition:
        raise UsageError(f"{name} is {brief(value)}; expected {expected}")


def brief(value: object, most: int = 200) -> str:
    """Return how Python writes a value, cut where it is too long for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def as_path(value: object, name: str) -> Path:
    """Return a path; whatever else is given, which ``str`` would make a name of, is refused.

    Verified:  tests/integration/test_api.py::test_what_is_no_path_is_refused
    """
    if isinstance(value, str | os.PathLike) and isinstance(place := os.fspath(value), str):
        return Path(place)
    raise UsageError(f"{name} is {brief(value)}; expected a path")
