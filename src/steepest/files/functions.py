"""Functions of the user's, named FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from steepest.errors import UsageError


def load_function(named: str, what: str) -> Callable[..., Any]:
    """Return the function that FILE.py:FUNCTION names, running the file; ``what`` it is for, in errors.

    Raises:    UsageError where there is no such file or function, or the file cannot be run
    Verified:  tests/unit/test_conservative.py::test_a_regulariser_from_a_file
    """
    file, _, name = named.rpartition(":")
    path = Path(file).expanduser()
    if not file.endswith(".py") or not name:
        raise UsageError(f"{what} is {named!r}; expected FILE.py:FUNCTION")
    if not path.is_file():
        raise UsageError(f"{what} is {named!r}; there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's program
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{path} has no function {name}")
    return cast(Callable[..., Any], function)
