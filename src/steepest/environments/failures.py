"""What environments do wrong: who did it, what happened, and how to close what is broken."""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

AnyVector = VectorEnv[Any, Any, Any]
PATIENCE = 2.0
"""Seconds that a process has to end, before it is killed."""


class WrongObservation(ValueError):
    """An observation whose shape is not its space's."""


class Guarded(gym.Wrapper[Any, Any, Any, Any]):
    """An environment in a process of its own: wrong shapes are refused, which shared memory would stretch to fit.

    What closing raises is a warning there.

    Verified:  tests/unit/test_environment_failures.py::test_a_wrong_shape_is_not_stretched
    """

    def close(self) -> None:
        try:
            self.env.close()
        except BaseException as error:
            _warn(type(self.env.unwrapped).__name__, error)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        check_shape(self.observation_space, obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        check_shape(self.observation_space, obs)
        return obs, reward, terminated, truncated, info


def check_shape(space: spaces.Space[Any], obs: Any, name: str = "") -> None:
    """Raise WrongObservation where an observation, or a part of it, has another shape than its space."""
    if isinstance(space, spaces.Dict) and isinstance(obs, dict):
        for key, part in space.items():
            if key in obs:
                check_shape(part, obs[key], f"{name}.{key}" if name else key)
    elif isinstance(space, spaces.Tuple) and isinstance(obs, tuple):
        for i, (part, one) in enumerate(zip(space, obs, strict=False)):
            check_shape(part, one, f"{name}.{i}" if name else str(i))
    elif isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) and np.shape(obs) != space.shape:
        what = f"the field {name!r}" if name else "it"
        raise WrongObservation(f"{what} has the shape {np.shape(obs)}, its space {space.shape}")


def what_happened(venv: AnyVector, call: str, error: BaseException) -> tuple[int | None, str]:
    """Return which sub-environment failed in ``call``, where that can be told, and what it did, for people.

    Verified:  tests/unit/test_environment_failures.py::test_a_dead_process_is_named
    """
    index = culprit(venv, error)
    if isinstance(error, WrongObservation):
        return index, f"returned a wrong observation: {error}"
    if isinstance(venv, AsyncVectorEnv) and isinstance(error, (EOFError, ConnectionError, BrokenPipeError)):
        dead = ended(venv)
        if dead is not None:
            return dead[0], f"ended in {call}(): its process {dead[1]}"
    if isinstance(error, SystemExit):
        return index, f"ended the program in {call}(): sys.exit({error.code!r})"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(venv, SyncVectorEnv) and any("concatenate" in frame.name for frame in frames):
        return index, f"returned a wrong observation: {error}"
    return index, f"raised {type(error).__name__} in {call}(): {error}"


def culprit(venv: AnyVector, error: BaseException) -> int | None:
    """Which sub-environment raised. Gymnasium does not say, but its loop variable (or the pipe it closed) does."""
    if isinstance(venv, AsyncVectorEnv):
        closed = [i for i, pipe in enumerate(venv.parent_pipes) if pipe is None]  # pyright: ignore[reportUnnecessaryComparison]
        return closed[0] if closed else None
    if isinstance(venv, SyncVectorEnv):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_locals.get("self") is venv and isinstance(frame.f_locals.get("i"), int):
                return frame.f_locals["i"]
    return None


def ended(venv: AsyncVectorEnv) -> tuple[int, str] | None:
    """Return the first environment whose process has ended, and how; None where all still run."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:  # a process has closed its pipes before the system says that it has ended
        for i, process in enumerate(venv.processes):
            code = process.exitcode
            if code is not None:
                return i, f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        time.sleep(0.01)
    return None


def close(venv: AnyVector, name: str, *, failed: bool) -> None:
    """Close environments; what goes wrong is a warning, and their processes end whatever they do.

    Args:      failed: something went wrong before: processes are not asked any more
    Verified:  tests/unit/test_environment_failures.py::test_closing_never_raises
    """
    unwrapped = venv.unwrapped
    try:
        if not (failed and isinstance(unwrapped, AsyncVectorEnv)):
            venv.close()
            return
    except BaseException as error:
        _warn(name, error)
    if isinstance(unwrapped, AsyncVectorEnv):
        _end_processes(unwrapped)


def _warn(name: str, error: BaseException) -> None:
    """Warn of what closing raised; what is the user's, Ctrl-C, is raised again."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    warnings.warn(f"{name} raised {type(error).__name__} in close(): {error}", RuntimeWarning, stacklevel=3)


def _end_processes(venv: AsyncVectorEnv) -> None:
    for process in venv.processes:
        if process.is_alive():
            process.terminate()
    for process in venv.processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join(PATIENCE)
    for pipe in venv.parent_pipes:
        with suppress(Exception):
            pipe.close()
    venv.closed = True
