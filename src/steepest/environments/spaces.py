"""Between Gymnasium's spaces and the library's: observations in, actions out, masks flat.

Nothing here knows an environment: the functions need only the space, or the spec made from it, so a saved agent can act
on raw observations with its specs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from steepest.environments.errors import UnsupportedSpaceError
from steepest.errors import RunError, UsageError
from steepest.types import BARE_OBS, ActionSpec, ObsField, ObsSpec

Array = NDArray[Any]
Squash = Literal["clip", "tanh"]


# Observations


def obs_spec(space: Space[Any]) -> ObsSpec:
    """The fields an observation space travels as.

    Box                      ``vector``, float32, shape kept
    Box uint8, 2 or 3 axes   ``image``, uint8, channels first. Three axes are (C, H, W) unless the last is shorter than
                             the first, which makes them (H, W, C); two axes are one channel
    MultiBinary              ``vector``, float32
    Discrete, MultiDiscrete  ``discrete``, int64, counted from 0
    Dict, Tuple              their parts, named "outer/inner"; a Tuple's parts are named "0", "1", ...

    Raises: UnsupportedSpaceError for any other space, naming it.
    """
    return ObsSpec(tuple(_fields(space, "")), isinstance(space, spaces.Dict | spaces.Tuple))


def _fields(space: Space[Any], name: str) -> Iterator[ObsField]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            if isinstance(space, spaces.Dict) and (not isinstance(key, str) or "/" in key):
                raise UnsupportedSpaceError(
                    f"The key {key!r} of the observation space {space} cannot be a field name: "
                    'keys must be strings without "/", which joins nested keys.'
                )
            yield from _fields(part, f"{name}/{key}" if name else str(key))
        return
    field = _leaf(space, name or BARE_OBS)
    if 0 in field.shape:
        raise UnsupportedSpaceError(
            f"The observation space {space}{_where(name)} is empty: its shape is {space.shape}."
        )
    yield field


def _leaf(space: Space[Any], name: str) -> ObsField:
    if isinstance(space, spaces.Box):
        shape = space.shape
        if space.dtype == np.uint8 and len(shape) in (2, 3):
            if len(shape) == 2:
                shape = (1, *shape)
            elif shape[2] < shape[0]:
                shape = (shape[2], *shape[:2])
            return ObsField(name, "image", shape, "uint8")
        if space.dtype == np.uint8 and len(shape) > 3:
            raise UnsupportedSpaceError(
                f"The observation space {space}{_where(name)} has {len(shape)} axes; images need 3: "
                "stack frames along the channels, or flatten it (gymnasium.wrappers.FlattenObservation)."
            )
        if space.dtype.kind in "fiub":
            return ObsField(name, "vector", shape, "float32")
    if isinstance(space, spaces.MultiBinary):
        return ObsField(name, "vector", tuple(space.shape), "float32")
    if isinstance(space, spaces.Discrete):
        return ObsField(name, "discrete", (), "int64", (int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete):
        return ObsField(name, "discrete", tuple(space.nvec.shape), "int64", _ints(space.nvec), _ints(space.start))
    raise UnsupportedSpaceError(
        f"The observation space {space}{_where(name)} is not supported. Supported are Box, Discrete, MultiDiscrete, "
        "MultiBinary, and Dict and Tuple of these. A gymnasium.ObservationWrapper can turn it into one of them."
    )


def _where(name: str) -> str:
    return f" (field {name!r})" if name and name != BARE_OBS else ""


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(x) for x in np.asarray(values).ravel())


def convert_obs(spec: ObsSpec, raw: Any, num_envs: int, *, copy: bool = False) -> dict[str, Array]:
    """A batch of raw observations as named arrays.

    Args:    raw as a vector environment gives it: an array (num_envs, ...), or a dict or tuple of them, nested as the
             space is; keys that the spec does not have are ignored. copy: never share memory with ``raw``; without it
             arrays that already have the right type are passed on as they are.
    Returns: one array (num_envs, *shape) of the field's dtype for every field
    Raises:  ValueError on a missing field, a wrong shape or a discrete value out of range
    """
    if not spec.is_dict:
        field = spec.fields[0]
        return {field.name: _convert(field, raw, num_envs, copy)}
    return {field.name: _convert(field, _part(raw, field.name), num_envs, copy) for field in spec.fields}


def _part(raw: Any, name: str) -> Any:
    part = raw
    for key in name.split("/"):
        try:
            part = part[int(key)] if isinstance(part, tuple | list) else part[key]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"The observation has no field {name!r}; it is {_brief(raw)}.") from error
    return part


def _convert(field: ObsField, raw: Any, num_envs: int, copy: bool) -> Array:
    make = np.array if copy else np.asarray
    if field.kind == "vector":
        array = make(raw, dtype=np.float32)
    elif field.kind == "image":
        array = _channels_first(field, make(raw))
    else:
        array = make(raw, dtype=np.int64)
    if array.shape != (num_envs, *field.shape):
        raise ValueError(
            f"The observation{_where(field.name)} has shape {array.shape}, not {(num_envs, *field.shape)}."
        )
    return array if field.kind != "discrete" else _from_zero(field, array)


def _channels_first(field: ObsField, array: Array) -> Array:
    if array.dtype != np.uint8:
        raise ValueError(f"The image observation{_where(field.name)} has dtype {array.dtype}, not uint8.")
    channels, height, width = field.shape
    if array.shape[1:] == field.shape:
        return array
    if array.shape[1:] == (height, width, channels):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if channels == 1 and array.shape[1:] == (height, width):
        return array[:, None]
    return array


def _from_zero(field: ObsField, array: Array) -> Array:
    if any(field.start):
        array = array - np.reshape(field.start, field.shape)
    sizes = np.reshape(field.sizes, field.shape)
    if ((array < 0) | (array >= sizes)).any():
        start = np.reshape(field.start, field.shape) if field.start else 0
        raise ValueError(
            f"The discrete observation{_where(field.name)} is {_brief(array + start)}, "
            f"not in {np.add(start, 0).tolist()} .. {(start + sizes - 1).tolist()}."
        )
    return array


def _brief(value: Any) -> str:
    """``value`` on one short line."""
    text = " ".join(
        np.array2string(value, threshold=8, precision=4).split() if isinstance(value, np.ndarray) else [repr(value)]
    )
    return text if len(text) <= 160 else text[:157] + "..."


# Actions


def action_spec(space: Space[Any]) -> ActionSpec:
    """The action space as policies see it. MultiDiscrete, MultiBinary and Box of any shape are flattened.

    A bound as large as the space's floating type allows counts as infinite, which is what it stands for.

    Raises: UnsupportedSpaceError for any other space, naming it.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", (), str(space.dtype), (int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete):
        shape = tuple(space.nvec.shape)
        return ActionSpec("multi_discrete", shape, str(space.dtype), _ints(space.nvec), _ints(space.start))
    if isinstance(space, spaces.MultiBinary):
        n = int(np.prod(space.shape))
        return ActionSpec("multi_binary", tuple(space.shape), str(space.dtype), (2,) * n, (0,) * n)
    if isinstance(space, spaces.Box) and space.dtype.kind in "fiu":
        low, high = (np.asarray(x, dtype=np.float64).ravel() for x in (space.low, space.high))
        if space.dtype.kind == "f":
            largest = float(np.finfo(space.dtype).max)
            low = np.where(low <= -largest, -np.inf, low)
            high = np.where(high >= largest, np.inf, high)
        if 0 in space.shape:
            raise UnsupportedSpaceError(f"The action space {space} is empty: its shape is {space.shape}.")
        return ActionSpec(
            "box",
            tuple(space.shape),
            str(space.dtype),
            low=tuple(float(x) for x in low),
            high=tuple(float(x) for x in high),
        )
    raise UnsupportedSpaceError(
        f"The action space {space} is not supported. Supported are Discrete, MultiDiscrete, MultiBinary and Box. "
        "A gymnasium.ActionWrapper can turn it into one of them."
    )


def check_squash(spec: ActionSpec, squash: Squash) -> None:
    """Refuse ``squash`` where the action space cannot be squashed so.

    Raises: UnsupportedSpaceError if ``squash`` is "tanh" and the Box has a component without two finite bounds (tanh
            has nothing to stretch to), UsageError if it is neither "clip" nor "tanh". Discrete actions are never
            squashed.
    """
    if squash not in ("clip", "tanh"):
        raise UsageError(f'squash is {squash!r}; it must be "clip" or "tanh".')
    if squash == "clip" or spec.kind != "box":
        return
    open_ended = [
        f"component {i} in [{low}, {high}]"
        for i, (low, high) in enumerate(zip(spec.low, spec.high, strict=True))
        if not (np.isfinite(low) and np.isfinite(high))
    ]
    if open_ended:
        more = f" and {len(open_ended) - 1} more" if len(open_ended) > 1 else ""
        raise UnsupportedSpaceError(
            'squash="tanh" needs two finite bounds for every action component, '
            f"but this space has {open_ended[0]}{more}. "
            'Use squash="clip", or bound the actions (gymnasium.wrappers.RescaleAction, ClipAction).'
        )


def to_env_action(spec: ActionSpec, action: Array, squash: Squash) -> Array:
    """The action an environment takes, from the action a policy drew.

    Discrete kinds: ``start`` is added.
    Box, component with two finite bounds:
        "clip"  low + (clip(a, -1, 1) + 1) / 2 (high - low)
        "tanh"  low + (tanh(a) + 1) / 2 (high - low)
    Box, component with an infinite bound ("clip" only): a itself, clipped to whichever bound is finite.
    Integer boxes are stretched by half on either side and rounded, so that every integer has the same share of [-1, 1].
    The result lies in the space whatever the rounding, and has its dtype.

    Args:    action: (N,) for Discrete, (N, spec.dimension) else
    Returns: (N, *spec.shape)
    Raises:  ValueError on a wrong shape; RunError if the policy's action is NaN
    """
    return ActionMap(spec, squash)(np.asarray(action))


def to_unit_action(spec: ActionSpec, action: Array) -> Array:
    """The actions of a policy, before any squashing, that ``to_env_action`` makes these of a box of.

    Args:    action: (N, spec.dimension), within the bounds
    Returns: (N, spec.dimension) float64, in [-1, 1] where a component has two finite bounds
    Verified: tests/unit/test_spaces.py::test_every_integer_of_a_box_has_the_same_share
    """
    box = _box_map(spec)
    unit = (action - box.centre) / np.where(box.half_width > 0, box.half_width, 1.0)
    return np.clip(unit, box.unit_low, box.unit_high)


class ActionMap:
    """``to_env_action`` for one space, with everything that does not depend on the action worked out once."""

    def __init__(self, spec: ActionSpec, squash: Squash) -> None:
        check_squash(spec, squash)
        self.spec = spec
        self.squash = squash
        self.trailing = () if spec.kind == "discrete" else (spec.dimension,)
        self.dtype = np.dtype(spec.dtype)
        self.offset = np.asarray(spec.start[0] if spec.kind == "discrete" else spec.start or 0)
        if spec.kind == "box":
            self.box = _box_map(spec)
            unit = self.box.half_width == 1.0
            # Bounds of [-1, 1] need no arithmetic, so float32 stays float32 and clipping is exact.
            self.only_clips = bool(unit.all()) and not self.box.centre.any() and self.dtype == np.float32

    def __call__(self, action: Array) -> Array:
        """See ``to_env_action``."""
        n = len(action) if action.ndim else 0
        if action.shape != (n, *self.trailing):
            expected = "(N,)" if not self.trailing else f"(N, {self.spec.dimension})"
            raise ValueError(f"The action has shape {action.shape}, not {expected}.")
        if self.spec.kind != "box":
            return (action + self.offset).astype(self.dtype).reshape(n, *self.spec.shape)
        return self._to_box(action).reshape(n, *self.spec.shape)

    def _to_box(self, action: Array) -> Array:
        box = self.box
        if self.only_clips and self.squash == "clip" and action.dtype == np.float32:
            value = np.minimum(np.maximum(action, box.low32), box.high32)
        else:
            action = action.astype(np.float64)
            unit = np.tanh(action) if self.squash == "tanh" else action
            unit = np.minimum(np.maximum(unit, box.unit_low), box.unit_high)
            value = unit * box.half_width + box.centre
            if box.integer:
                value = np.rint(value)
            # The bounds are exact in the environment's dtype and rounding is monotone: the cast cannot leave the space.
            value = np.minimum(np.maximum(value, box.low), box.high)
        # Squares cannot cancel, so their sum is NaN only where a term is. On long arrays BLAS would start threads.
        if math.isnan(np.vdot(value, value)) if value.size <= 10_000 else np.isnan(value).any():
            row = int(np.flatnonzero(np.isnan(value).any(axis=1))[0])
            raise RunError(
                f"The policy drew the action {_brief(value[row])} for environment {row}: its parameters, or the "
                "observation, are no longer finite. A smaller learning rate or normalised observations usually help."
            )
        return value.astype(self.dtype, copy=False)


class _BoxMap(NamedTuple):
    """value = clip(a, unit_low, unit_high) half_width + centre, clipped to [low, high]; all float64 of shape (D,)."""

    unit_low: Array
    unit_high: Array
    half_width: Array
    centre: Array
    low: Array
    high: Array
    low32: Array
    high32: Array
    integer: bool


@lru_cache(maxsize=64)
def _box_map(spec: ActionSpec) -> _BoxMap:
    low, high = np.array(spec.low), np.array(spec.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    finite_low, finite_high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    dtype = np.dtype(spec.dtype)
    integer = dtype.kind in "iu"
    smallest, largest = _finite_range(dtype)
    return _BoxMap(
        np.where(bounded, -1.0, -np.inf),
        np.where(bounded, 1.0, np.inf),
        finite_high / 2 - finite_low / 2 + (0.5 if integer else 0.0) * bounded,
        finite_low / 2 + finite_high / 2,
        np.maximum(low, smallest),
        np.minimum(high, largest),
        np.maximum(low, smallest).astype(np.float32),
        np.minimum(high, largest).astype(np.float32),
        integer,
    )


def _finite_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the greatest float64 that ``dtype`` can hold."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    info = np.iinfo(dtype)
    largest = float(info.max)
    # float64 has no 2^63 - 1: the nearest is 2^63, which would overflow.
    return float(info.min), largest if int(largest) <= info.max else float(np.nextafter(largest, 0.0))


# Action masks


def flatten_mask(spec: ActionSpec, mask: Any, finished: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Action masks as one boolean array, True where legal.

    Args:    mask: bool or 0/1, in any of these forms: (N, mask_size); for MultiDiscrete also a tuple or list of one
             array (N, n_k) per component; an object array (N,) whose entries are one environment's mask in either form.
             finished: (N,) True where the episode is over. Nothing is chosen there, so an empty mask is replaced by a
             full one.
    Returns: (N, spec.mask_size)
    Raises:  UnsupportedSpaceError for actions that cannot be masked; ValueError on a wrong shape, a value other than 0
             and 1, or a mask that leaves a component without a legal action
    """
    if not spec.mask_size:
        raise UnsupportedSpaceError(f"Action masks need Discrete or MultiDiscrete actions; these are {spec.kind}.")
    if isinstance(mask, np.ndarray) and mask.dtype == object:
        rows = [np.concatenate([np.ravel(x) for x in row]) if isinstance(row, tuple | list) else row for row in mask]
        mask = np.stack([np.asarray(row) for row in rows]) if len({np.shape(row) for row in rows}) == 1 else rows
    elif isinstance(mask, tuple | list):
        parts = [np.asarray(part) for part in cast("list[Any]", mask)]
        mask = np.concatenate(parts, axis=-1) if len({part.shape[:-1] for part in parts}) == 1 else parts
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.shape[1] != spec.mask_size:
        shape = mask.shape if isinstance(mask, np.ndarray) else [np.shape(part) for part in mask]
        raise ValueError(f"The action mask has shape {shape}, not (N, {spec.mask_size}): one entry per choice.")
    legal = mask.astype(np.bool_)
    if mask.dtype != np.bool_ and not (mask == legal).all():
        raise ValueError(
            f"The action mask holds {_brief(mask[mask != legal])}; only 0 (illegal) and 1 (legal) have a meaning."
        )
    starts = np.cumsum((0, *spec.sizes[:-1]))
    possible = np.logical_or.reduceat(legal, starts, axis=1)
    if not possible.all():
        empty = ~possible.all(axis=1)
        if finished is not None:
            legal[empty & finished] = True
            empty &= ~finished
        if empty.any():
            row = int(np.flatnonzero(empty)[0])
            raise ValueError(
                f"The action mask of environment {row} allows no action in component {int(np.argmin(possible[row]))}: "
                f"{_brief(legal[row].astype(int))}. At least one must be legal."
            )
    return legal
