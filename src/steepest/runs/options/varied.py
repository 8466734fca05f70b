"""Settings that differ between the members of a run, as text: "learning_rate=1e-4,3e-4,1e-3"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steepest.errors import UsageError

Varied = dict[str, tuple[float, ...]]
"""Field of the algorithm's config -> one value per member."""


def read_varied(texts: Sequence[str]) -> Varied:
    """Return the settings that NAME=VALUE,VALUE,... each name.

    Raises:    UsageError where one is no such text, or names what another one names
    Verified:  tests/unit/test_options.py::test_settings_that_differ_are_read
    """
    found: Varied = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"vary has {text!r}; expected NAME=VALUE,VALUE,..., such as learning_rate=1e-4,3e-4")
        if name in found:
            raise UsageError(f"vary has {name} twice")
        found[name] = tuple(_number(name, value.strip()) for value in values.split(","))
    return found


def _number(name: str, text: str) -> float:
    for kind in (int, float):  # a count stays a whole number
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(f"vary has {text!r} for {name}; expected numbers, separated by commas")


def varied_as_texts(varied: Any) -> Any:
    """Return the same as text, from a mapping of names to values; whatever else is given, as it is.

    Verified:  tests/unit/test_options.py::test_settings_that_differ_are_read
    """
    if not isinstance(varied, Mapping):
        return varied
    return [f"{name}={','.join(map(repr, values))}" for name, values in varied.items()]


def named_members(seeds: Sequence[int], varied: Mapping[str, Sequence[float]]) -> list[str]:
    """Return what to call every member: "seed 1", with what it has of its own: "seed 1 (learning_rate 0.0003)".

    Verified:  tests/unit/test_options.py::test_settings_that_differ_are_read
    """
    own = [", ".join(f"{name} {values[i]:g}" for name, values in varied.items()) for i in range(len(seeds))]
    return [f"seed {seed} ({said})" if said else f"seed {seed}" for seed, said in zip(seeds, own, strict=True)]
