"""Small functions of what many environments gave at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.environments.reading import number

Array = NDArray[Any]


def all_finite(x: Array) -> bool:
    """Whether no number is infinite or NaN."""
    # A sum of squares is finite only if every term is, and costs half of the elementwise test on short arrays. It may
    # overflow on finite values, hence the second look. On long ones BLAS would start threads.
    if x.size <= 10_000 and math.isfinite(np.vdot(x, x)):
        return True
    return bool(np.isfinite(x).all())


def first_bad(x: Array) -> int:
    """The first environment with a number that is infinite or NaN."""
    return int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])


def text_of(value: Any) -> str:
    """An array on one short line."""
    return " ".join(np.array2string(np.asarray(value), threshold=12, precision=4).split())


def row_of(batched: Any, i: int | np.integer[Any]) -> Any:
    """Environment ``i``'s part of a batch: an array (an object array too), or a dict or tuple of arrays."""
    if isinstance(batched, dict):
        return {key: row_of(value, i) for key, value in batched.items()}
    if isinstance(batched, tuple):
        return tuple(row_of(value, i) for value in batched)
    return batched[i]


def as_batch(raw: Any) -> Any:
    """One environment's observation or mask as a batch of one."""
    if isinstance(raw, dict):
        return {key: as_batch(value) for key, value in raw.items()}
    if isinstance(raw, tuple):
        return tuple(as_batch(value) for value in raw)
    return np.asarray(raw)[None]


def numbers(info: Mapping[str, Any], key: str, count: int) -> NDArray[np.float64]:
    """The numbers of an entry of merged infos, NaN where an environment gave none.

    Raises:    WrongReturn where they are not one number each
    """
    values = np.full(count, np.nan)
    if key in info:
        given = np.asarray(info.get(f"_{key}", np.ones(count, dtype=np.bool_)))
        for i in np.flatnonzero(given):
            values[i] = number(info[key] if isinstance(info[key], dict) else info[key][i], key)
    return values
