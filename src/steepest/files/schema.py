"""One check of what a file must hold, before any of it is used.

A shape is an ordinary annotation: str, int, float, bool, list[X], dict[str, X], X | None, Any, or a TypedDict of these.
"""

from __future__ import annotations

import json
import types
from functools import cache
from typing import Any, NoReturn, NotRequired, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from steepest.files.reading import Unusable

SHOWN = 60
"""Characters of a value that an error shows."""

_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def check(value: Any, shape: Any, place: str = "") -> None:
    """Raise Unusable, which names the place, what is there and what is expected, unless a value has a shape.

    Args:      value as JSON or YAML gives it; shape: see above; place of the value, such as "run" or "run.seed"; the
               whole where it is empty
    Verified:  tests/unit/test_reading_files.py::test_a_shape_is_checked_to_the_last_part
    """
    if shape is Any:
        return
    origin, arguments = get_origin(shape), get_args(shape)
    if origin in (Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return
        if len(options) == 1:
            check(value, options[0], place)
        elif not any(_is(value, option) for option in options):
            _refuse(value, " or ".join(_WORDS[option] for option in arguments), place)
        return
    if is_typeddict(shape):
        _check_names(value, shape, place)
        return
    kind = origin or shape
    if not _is(value, kind):
        _refuse(value, _WORDS[kind], place)
    if origin is list:
        for number, part in enumerate(cast(list[Any], value), start=1):
            check(part, arguments[0], f"{place}[{number}]")
    elif origin is dict:
        for name, part in cast(dict[Any, Any], value).items():
            check(name, arguments[0], f"a name in {place}" if place else "a name")
            check(part, arguments[1], f"{place}.{name}" if place else str(name))


def shown(value: Any) -> str:
    """Return a value as a file has it, cut to a length that a message can hold."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check_names(value: Any, shape: Any, place: str) -> None:
    if not isinstance(value, dict):
        _refuse(value, _WORDS[dict], place)
    parts = cast(dict[str, Any], value)
    hints, required = _hints(shape)
    missing = [name for name in hints if name in required and name not in parts]
    if missing:
        raise Unusable(f"{place or 'it'} has no {', '.join(missing)}")
    for name, hint in hints.items():
        if name in parts:
            check(parts[name], hint, f"{place}.{name}" if place else name)


@cache
def _hints(shape: Any) -> tuple[dict[str, Any], frozenset[str]]:
    # Its own __required_keys__ knows nothing of NotRequired where annotations are text, as by a __future__ import.
    marked = get_type_hints(shape, include_extras=True)
    required = frozenset(name for name, hint in marked.items() if get_origin(hint) is not NotRequired)
    return get_type_hints(shape), required


def _is(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _refuse(value: Any, expected: str, place: str) -> NoReturn:
    raise Unusable(f"{place or 'it'} is {shown(value)}; expected {expected}")
