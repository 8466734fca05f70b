"""What the environments of a batch look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from steepest.environments.errors import missing_extra
from steepest.errors import UsageError


def pictures(venv: VectorEnv[Any, Any, Any], name: str, which: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Return the pictures of some environments, (height, width, 3) each.

    Of environments in this process those alone are drawn; others draw all of theirs at once.

    Raises:    UsageError where they were made without a render mode, or give no picture; MissingExtra where what draws
               them is not installed
    Verified:  tests/unit/test_film.py::test_pictures_are_of_the_environments_that_are_asked_for
    """
    if venv.render_mode is None:
        raise UsageError(f'{name} was made without a render mode: pass render_mode="rgb_array".')
    inner = venv.unwrapped
    try:
        if isinstance(inner, SyncVectorEnv):
            frames: list[Any] = [inner.envs[i].render() for i in which]
        else:
            drawn = cast(Any, venv.render())
            frames = [None if drawn is None else drawn[i] for i in which]
    except (ImportError, DependencyNotInstalled) as error:
        raise missing_extra(f"{name}'s picture", error) from error
    for frame in frames:
        if frame is None:
            raise UsageError(f"{name} returned no picture in render mode {venv.render_mode!r}.")
    return [np.asarray(frame) for frame in frames]
