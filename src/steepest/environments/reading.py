"""Read what ``reset`` and ``step`` of one environment return, and say in words what is wrong with it."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MASK = "action_mask"
READ = (MASK, "episode_frame_number")
"""The infos that the library itself reads: action masks, and by which an Atari game's end is known."""

EXPECTED = {
    "reset": "(observation, info), where info is a dictionary",
    "step": "(observation, reward, terminated, truncated, info)",
}
NUMBERS = frozenset({float, int, np.float64, np.float32})
FLAGS = frozenset({bool, np.bool_})
LARGEST_WHOLE = 2**128
"""Beyond float32; Python's whole numbers have no end."""
LONGEST = 1000
"""Characters of what an error says that are told."""
READERS = tuple(str(Path(gym.__file__).parent / part) for part in ("vector", "wrappers"))
"""Where Gymnasium takes apart what an environment returned."""


class WrongReturn(ValueError):
    """Something else than ``reset`` or ``step`` should return; the message says what the environment did."""


class WrongObservation(WrongReturn):
    """An observation whose shape is not its space's."""


def read_reset(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return the observation and the info that ``reset`` gave.

    Raises:    WrongReturn where these two are not what it returned
    Verified:  tests/unit/test_environment_failures.py::test_what_reset_returns_wrongly_is_said
    """
    if isinstance(result, tuple | list):
        parts = cast("tuple[Any, ...]", result)
        if len(parts) == 2 and isinstance(parts[1], Mapping):
            return parts[0], parts[1]
    raise WrongReturn(f"returned {_kind(result)} from reset(); expected {EXPECTED['reset']}")


def read_step(result: Any) -> tuple[Any, Any, Any, Any, Mapping[str, Any]]:
    """Return the observation, reward, two flags and info that ``step`` gave.

    Raises:    WrongReturn where these five are not what it returned
    Verified:  tests/unit/test_environment_failures.py::test_what_step_returns_wrongly_is_said
    """
    if not isinstance(result, tuple | list) or len(cast("tuple[Any, ...]", result)) != 5:
        old = isinstance(result, tuple) and len(cast("tuple[Any, ...]", result)) == 4
        raise WrongReturn(
            f"returned {_kind(result)} from step(); expected {EXPECTED['step']}"
            + ("; four are the interface of gym before 0.26, with one flag, done, for both ends" if old else "")
        )
    obs, reward, terminated, truncated, info = cast("tuple[Any, ...]", result)
    if type(reward) is int and not -LARGEST_WHOLE < reward < LARGEST_WHOLE:
        raise WrongReturn(f"returned the reward {shown(reward)}, which is more than float32 holds")
    plain = type(reward) in NUMBERS and type(terminated) in FLAGS and type(truncated) in FLAGS and type(info) is dict
    if plain:  # as nearly all are, at every step: nothing more to ask
        return obs, reward, terminated, truncated, info
    if not _is_number(reward):
        raise WrongReturn(f"returned the reward {shown(reward)}; expected one number")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_number(flag) or float(flag) not in (0.0, 1.0):
            raise WrongReturn(f"returned {name} as {shown(flag)}; expected True or False")
    if not isinstance(info, Mapping):
        raise WrongReturn(f"returned {_kind(info)} as info from step(); expected a dictionary")
    return obs, float(reward), bool(terminated), bool(truncated), cast("Mapping[str, Any]", info)


def of_interest(info: Mapping[str, Any], named: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entries of an info that anything reads: others are neither merged nor sent between processes.

    Args:      named: entries that a user has asked for; they are numbers, or absent
    Raises:    WrongReturn where a named one is no number
    """
    found = {key: info[key] for key in READ if key in info}
    return found | {key: number(info[key], key) for key in named if key in info}


def number(value: Any, key: str) -> float:
    """Return the number that an info gave under a name; WrongReturn where it is none."""
    if not _is_number(value):
        raise WrongReturn(f"gave info[{key!r}] as {shown(value)}; expected one number, as info_keys has it")
    return float(value)


def text_of_error(error: BaseException) -> str:
    """Return what an error says, cut where it is too long for a message; one may fail to say anything.

    Verified:  tests/unit/test_environment_failures.py::test_whatever_is_raised_names_the_environment
    """
    try:
        text = str(error)
    except Exception as inner:
        return f"(its text cannot be made: {type(inner).__name__})"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def misread(call: str, error: BaseException) -> WrongReturn | None:
    """Return the error to raise where Gymnasium's own lines failed to take apart what ``call`` returned.

    So it does in the wrappers of an environment, which see what it returned before anything here does.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if "unpack" not in text_of_error(error) or not frames or not frames[-1].filename.startswith(READERS):
        return None
    parts = EXPECTED[call]
    return WrongReturn(f"returned something else from {call}() than {parts}: {error}")


@contextmanager
def taken_apart(call: str) -> Generator[None]:
    """Raise WrongReturn in the place of what ``misread`` finds inside."""
    try:
        yield
    except Exception as error:
        wrong = misread(call, error)
        if wrong is None:
            raise
        raise wrong from error


def check_shape(space: spaces.Space[Any], obs: Any, name: str = "") -> None:
    """Raise WrongObservation where an observation, or a part of it, has another shape than its space, or no numbers."""
    if isinstance(space, spaces.Dict) and isinstance(obs, dict):
        for key, part in space.items():
            if key in obs:
                check_shape(part, obs[key], f"{name}.{key}" if name else key)
    elif isinstance(space, spaces.Tuple) and isinstance(obs, tuple):
        for i, (part, one) in enumerate(zip(space, obs, strict=False)):
            check_shape(part, one, f"{name}.{i}" if name else str(i))
    elif isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
        what = f"the field {name!r}" if name else "it"
        if np.shape(obs) != space.shape:
            raise WrongObservation(f"{what} has the shape {np.shape(obs)}, its space {space.shape}")
        if isinstance(obs, np.ndarray) and obs.dtype.kind not in "biuf":
            raise WrongObservation(f"{what} holds {obs.dtype}; expected numbers")


def shown(value: Any) -> str:
    """Return a value on one short line, with its shape where it is an array."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of thousands of digits, or a class of the user's own
        return _kind(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    shape = getattr(value, "shape", ())
    return f"{text} of shape {tuple(shape)}" if shape else text


def _is_number(value: Any) -> bool:
    """Return whether a value is one number or flag: of any type that has one, but not within an array's axes."""
    if value is None or isinstance(value, str | bytes):
        return False
    try:
        if np.ndim(value) != 0:
            return False
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _kind(value: Any) -> str:
    """Return what a value is, without its numbers."""
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        return f"a {type(cast(Any, value)).__name__} of {len(cast(Any, value))}"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
