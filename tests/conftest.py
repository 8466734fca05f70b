"""Shape annotations are enforced in the test run.

The import hook wraps the pure modules with jaxtyping and beartype before anything imports them. A wrapped function
cannot be traced for the compiler, so a test that compiles carries ``@pytest.mark.compiles``, for which the
checks are switched off. Nothing is checked in tests/integration and tests/learning, where compiling is the agent's
choice. STEEPEST_TYPECHECK=0 leaves the hook out altogether.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

CHECKED_MODULES = ("distributions", "numerics", "returns", "losses", "evaluation")
ENFORCED = os.environ.get("STEEPEST_TYPECHECK", "1") != "0"

# What a shell starts in the background ignores Ctrl-C, and so would the runs that tests start to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if ENFORCED:
    names = [f"steepest.{name}" for name in CHECKED_MODULES]
    early = sorted(set(names) & set(sys.modules))
    if early:
        raise RuntimeError(f"{', '.join(early)} were imported before the shape checks could be installed")
    jaxtyping.install_import_hook(names, "helpers.check_shapes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiles: compiles functions, hence without shape checks")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    enforce(folder not in {"integration", "learning"} and item.get_closest_marker("compiles") is None)


def enforce(on: bool) -> None:
    """Switch the checks. A wrapped function looks at jaxtyping's switch, which the compiler can follow; the methods of
    the distributions, which it cannot, are exchanged for the bare ones.
    """
    jaxtyping.config.update("jaxtyping_disable", not on)
    if not ENFORCED:
        return
    from steepest import distributions

    for _, owner in inspect.getmembers(distributions, inspect.isclass):
        if owner.__module__ == distributions.__name__ and owner not in _METHODS:
            methods = {k: v for k, v in vars(owner).items() if inspect.isfunction(v) and hasattr(v, "__wrapped__")}
            _METHODS[owner] = {k: v for k, v in methods.items() if v.__module__ == distributions.__name__}
    for owner, methods in _METHODS.items():
        for name, method in methods.items():
            setattr(owner, name, method if on else inspect.unwrap(method))


_METHODS: dict[type, dict[str, Any]] = {}
