"""Shape annotations are enforced in the test run.

The import hook wraps the pure modules with jaxtyping and beartype before anything imports them. A wrapped function
cannot be traced whole by ``torch.compile``, so a test that compiles carries ``@pytest.mark.compiles``, for which the
checks are switched off (jaxtyping reads the switch at every call). Nothing is checked in tests/integration and
tests/learning, where compiling is the agent's choice. STEEPEST_TYPECHECK=0 leaves the hook out altogether.
"""

from __future__ import annotations

import os
import sys

import jaxtyping
import pytest

CHECKED_MODULES = ("distributions", "numerics", "returns", "losses")
ENFORCED = os.environ.get("STEEPEST_TYPECHECK", "1") != "0"

if ENFORCED:
    names = [f"steepest.{name}" for name in CHECKED_MODULES]
    early = sorted(set(names) & set(sys.modules))
    if early:
        raise RuntimeError(f"{', '.join(early)} were imported before the shape checks could be installed")
    jaxtyping.install_import_hook(names, "helpers.check_shapes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiles: runs torch.compile, hence without shape checks")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    free = {"integration", "learning"} & {parent.name for parent in item.path.parents}
    unchecked = bool(free) or item.get_closest_marker("compiles") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
