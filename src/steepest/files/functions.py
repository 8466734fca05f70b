"""Functions of the user's, named FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from steepest.errors import UsageError


def load_function(named: str, what: str) -> Callable[..., Any]:
    """Return the function that FILE.py:FUNCTION names, running the file; ``what`` it is, in errors.

    Raises:    UsageError where it does not name one, and as ``function_in``
    Verified:  tests/unit/test_conservative.py::test_what_names_no_function_is_explained
    """
    file, _, name = named.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UsageError(f"{what} is {named!r}; expected FILE.py:FUNCTION")
    return function_in(Path(file).expanduser(), name, what)


def function_in(file: Path, name: str, what: str) -> Callable[..., Any]:
    """Return a function out of a Python file, running it.

    Raises:    UsageError where there is no such file or function, or the file cannot be run
    Verified:  tests/unit/test_conservative.py::test_what_names_no_function_is_explained,
               tests/unit/test_rewards.py::test_what_is_no_reward_is_refused
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file} with a {what} in it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's program
        raise UsageError(f"{file} cannot be imported: {said_by(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{file} has no function {name}")
    return cast(Callable[..., Any], function)


def said_by(error: Exception) -> str:
    """Return what an exception of a user's program says, with the line that raised it."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"  # it names the line itself
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
