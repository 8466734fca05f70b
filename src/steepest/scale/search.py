"""What a sweep searches: settings by name, each an interval or a list of choices. Checked without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args, get_type_hints

import yaml

from steepest.errors import UsageError

SET_HERE = ("seed", "seeds", "vary", "total_steps", "eval_every", "stop_at_return", "keep_checkpoints")
"""Settings of a run that a sweep sets, or that decide what is compared: they cannot be searched."""
EXPECTED = "expected LOW:HIGH, log:LOW:HIGH, or choices A|B|C"


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high; ``log``: evenly in their logarithm; ``whole``: whole ones alone."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{'log:' if self.log else ''}{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Choices:
    """Any values, none nearer to another."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "|".join(map(json.dumps, self.values))


Dimension = Interval | Choices
Search = dict[str, Dimension]


def read_search(
    given: Sequence[str] | Mapping[str, Any], kinds: Iterable[type[Any]], *, apart: Sequence[str]
) -> Search:
    """Return what to search, from NAME=LOW:HIGH, NAME=log:LOW:HIGH or NAME=A|B|C each.

    Args:      given: texts; or by name an ``Interval``, ``Choices``, a list of choices, or the text after "=";
               kinds: configs whose fields can be searched; apart: those of their fields that a sweep sets itself
    Raises:    UsageError for a name that is no setting, or one that cannot be searched, or for another form
    Verified:  tests/unit/test_sweep.py::test_what_is_searched_is_read
    """
    known = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items() if name not in apart}
    named = given if isinstance(given, Mapping) else _named(given)
    if not named:
        raise UsageError("nothing to search: give --search NAME=LOW:HIGH, such as learning_rate=log:1e-5:1e-2")
    found: Search = {}
    for name, what in cast(Mapping[str, Any], named).items():
        if name not in known:
            from steepest.runs.options.config import unknown_option

            if name in apart:
                raise UsageError(f"{name} is set by the sweep itself, and cannot be searched")
            raise UsageError(unknown_option(name, sorted(known), "the search"))
        found[name] = _dimension(name, what, known[name])
    return found


def _named(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, what = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"search has {text!r}; expected NAME=LOW:HIGH, NAME=log:LOW:HIGH, or NAME=A|B|C")
        if name in found:
            raise UsageError(f"search has {name} twice")
        found[name] = what
    return found


def _dimension(name: str, what: Any, hint: Any) -> Dimension:
    if isinstance(what, Interval | Choices):
        return what
    if isinstance(what, list | tuple):
        return _choices(name, what)
    text = str(what).strip()
    if "|" in text:
        return _choices(name, [_value(part) for part in text.split("|")])
    parts = text.split(":")
    log = parts[0] == "log"
    if len(parts) != 2 + log:
        raise UsageError(f"the search of {name} is {text!r}; {EXPECTED}")
    low, high = (_number(name, text, part) for part in parts[log:])
    if not low < high:
        raise UsageError(f"the search of {name} is {text!r}; its first number must be the smaller one")
    if log and low <= 0.0:
        raise UsageError(f"the search of {name} is {text!r}; a logarithmic one begins above 0")
    whole = int in (hint, *get_args(hint))
    if whole and not (low.is_integer() and high.is_integer()):
        raise UsageError(f"the search of {name} is {text!r}; it takes whole numbers")
    return Interval(low, high, log, whole)


def _choices(name: str, values: Sequence[Any]) -> Choices:
    as_lists = tuple(list(cast(Sequence[Any], v)) if isinstance(v, tuple) else v for v in values)
    if len({json.dumps(v) for v in as_lists}) < max(2, len(as_lists)):
        raise UsageError(f"the search of {name} has {len(as_lists)} choices; give at least two, all different")
    return Choices(as_lists)


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)  # YAML takes 3e-4 for text
        except ValueError:
            return value
    return value


def _number(name: str, whole: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"the search of {name} is {whole!r}; {EXPECTED}")
    return value
