"""What environments do wrong: who did it, what happened, and how to close what is broken."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from steepest.environments.reading import (
    WrongObservation,
    WrongReturn,
    check_shape,
    misread,
    of_interest,
    read_reset,
    read_step,
    taken_apart,
    text_of_error,
)

AnyVector = VectorEnv[Any, Any, Any]
PATIENCE = 2.0
"""Seconds that a process has to end what it was asked for, and to end itself, before it is killed."""


class Raised(Exception):
    """Whatever an environment raised in another process, by name and text: not every error can travel as it is.

    Of one that cannot be pickled nothing would ever arrive, and whoever waits for it would wait for ever.
    """

    def __init__(self, told: Raised | tuple[str, str]) -> None:
        if isinstance(told, Raised):  # Gymnasium makes one of another
            told = told.kind, told.said
        super().__init__(told)
        self.kind, self.said = told


class Guarded(gym.Wrapper[Any, Any, Any, Any]):
    """An environment in a process of its own: wrong returns are refused, and shapes that shared memory would stretch.

    What closing raises is a warning there.

    Args:      infos: entries of info that are sent on
    Verified:  tests/unit/test_environment_failures.py::test_a_wrong_shape_is_not_stretched
    """

    def __init__(self, env: gym.Env[Any, Any], infos: Sequence[str]) -> None:
        super().__init__(env)
        self.infos = infos

    def close(self) -> None:
        try:
            self.env.close()
        except BaseException as error:
            _warn(type(self.env.unwrapped).__name__, error)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with _sent_home(), taken_apart("reset"):
            obs, info = read_reset(self.env.reset(seed=seed, options=options))
        check_shape(self.observation_space, obs)
        return obs, of_interest(info, self.infos)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with _sent_home(), taken_apart("step"):
            obs, reward, terminated, truncated, info = read_step(self.env.step(action))
        check_shape(self.observation_space, obs)
        return obs, reward, terminated, truncated, of_interest(info, self.infos)


@contextmanager
def _sent_home() -> Generator[None]:
    """Raise ``Raised`` in the place of whatever is raised inside, but for what ends the process."""
    try:
        yield
    except (WrongReturn, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Raised((type(error).__name__, text_of_error(error))) from None


def what_happened(
    venv: AnyVector, call: str, error: BaseException, step_timeout: float | None = None
) -> tuple[int | None, str]:
    """Return which sub-environment failed in ``call``, where that can be told, and what it did, for people.

    Verified:  tests/unit/test_environment_failures.py::test_a_dead_process_is_named,
               tests/unit/test_environment_failures.py::test_a_step_that_does_not_end_is_named
    """
    index = culprit(venv, error)
    error = misread(call, error) or error
    if isinstance(error, WrongObservation):
        return index, f"returned a wrong observation: {error}"
    if isinstance(error, WrongReturn):
        return index, str(error)
    if isinstance(venv, AsyncVectorEnv) and isinstance(error, multiprocessing.TimeoutError) and index is None:
        late = [i for i, pipe in enumerate(venv.parent_pipes) if not pipe.poll()]
        return late[0] if late else None, f"had not returned from {call}() after {step_timeout:g} s, the step_timeout"
    if isinstance(venv, AsyncVectorEnv) and isinstance(error, (EOFError, ConnectionError, BrokenPipeError)):
        dead = ended(venv)
        if dead is not None:
            return dead[0], f"ended in {call}(): its process {dead[1]}"
    if isinstance(error, SystemExit):
        return index, f"ended the program in {call}(): sys.exit({error.code!r})"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(venv, SyncVectorEnv) and any("concatenate" in frame.name for frame in frames):
        return index, f"returned a wrong observation: {error}"
    if isinstance(error, Raised):
        return index, f"raised {error.kind} in {call}(): {error.said}"
    return index, f"raised {type(error).__name__} in {call}(): {text_of_error(error)}"


class Workers(AsyncVectorEnv):
    """Environments in processes of their own; what one of them raises is raised here, and nothing is logged of it.

    Verified:  tests/unit/test_environment_failures.py::test_a_worker_s_failure_is_said_once
    """

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        successes = list(successes)
        if all(successes):
            return
        with warnings.catch_warnings():  # Gymnasium warns of the error with its traceback, then raises it
            warnings.simplefilter("ignore")
            super()._raise_if_errors(successes)


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
    Verified:  tests/unit/test_environment_failures.py::test_closing_never_raises,
               tests/unit/test_environment_failures.py::test_closing_does_not_wait_for_a_step_that_does_not_end
    """
    unwrapped = venv.unwrapped
    try:
        if not (isinstance(unwrapped, AsyncVectorEnv) and (failed or not _answers(unwrapped))):
            venv.close()
            return
    except BaseException as error:
        _warn(name, error)
    if isinstance(unwrapped, AsyncVectorEnv):
        _end_processes(unwrapped)


def _answers(venv: AsyncVectorEnv) -> bool:
    """Return whether all processes have done what they were last asked, of which Ctrl-C may have hidden the answer."""
    if venv.closed or venv._state is AsyncState.DEFAULT:  # pyright: ignore[reportPrivateUsage]
        return True
    give_up = time.monotonic() + PATIENCE
    return all(pipe.poll(max(0.0, give_up - time.monotonic())) for pipe in venv.parent_pipes)


def _warn(name: str, error: BaseException) -> None:
    """Warn of what closing raised; what is the user's, Ctrl-C, is raised again."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    said = f"{name} raised {type(error).__name__} in close(): {text_of_error(error)}"
    warnings.warn(said, RuntimeWarning, stacklevel=3)


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
