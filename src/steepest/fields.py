"""Fields of a configuration that state what they accept, as in ``gamma: Share = 0.99``, and the one check of them.

Options come from calls, from the command line and from files; ``checked_options`` makes them what fields declare.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from steepest.errors import UsageError, brief, require


class Accepts(NamedTuple):
    """The values that a field accepts, and the words that say which they are."""

    test: Callable[[Any], bool]
    words: str


Count = Annotated[int, Accepts(lambda x: x >= 1, "at least 1")]
AtLeastTwo = Annotated[int, Accepts(lambda x: x >= 2, "at least 2")]
AtLeastTen = Annotated[int, Accepts(lambda x: x >= 10, "at least 10")]
Threads = Annotated[int, Accepts(lambda x: 1 <= x <= 1024, "1 to 1,024")]  # far more end the process without a word
Whole = Annotated[int, Accepts(lambda x: x >= 0, "zero or more")]
Positive = Annotated[float, Accepts(lambda x: x > 0, "a positive number")]
NonNegative = Annotated[float, Accepts(lambda x: x >= 0, "zero or more")]
Share = Annotated[float, Accepts(lambda x: 0 <= x <= 1, "in [0, 1]")]
PositiveShare = Annotated[float, Accepts(lambda x: 0 < x <= 1, "in (0, 1]")]
InnerShare = Annotated[float, Accepts(lambda x: 0 < x < 1, "between 0 and 1")]
PartialShare = Annotated[float, Accepts(lambda x: 0 <= x < 1, "in [0, 1)")]
BelowHalf = Annotated[float, Accepts(lambda x: 0 <= x < 0.5, "in [0, 0.5)")]


class Checked:
    """A dataclass that checks its fields as it is made; rules between fields go into a subclass's ``__post_init__``.

    Raises:    UsageError that names the field, its value and the values it accepts
    Verified:  tests/unit/test_fields.py::test_a_field_refuses_values_it_does_not_accept
    """

    def __post_init__(self) -> None:
        for name, accepts, optional in _rules(type(self)):
            value = getattr(self, name)
            if value is None and optional:
                continue
            items = value if isinstance(value, tuple) else (value,)
            require(all(accepts.test(x) for x in items), name, value, accepts.words + (" or none" if optional else ""))


@cache
def _rules(kind: Any) -> tuple[tuple[str, Accepts, bool], ...]:
    """(name, what is accepted, whether None is too) of every field that says so."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[tuple[str, Accepts, bool]] = []
    for field in fields(kind):
        hint = hints[field.name]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for option in options:
            inner = get_args(option)[0] if get_origin(option) is tuple else option
            found += [
                (field.name, part, type(None) in options)
                for part in getattr(inner, "__metadata__", ())
                if isinstance(part, Accepts)
            ]
    return tuple(found)


LARGEST_BITS = 1000
"""Of a whole number: a longer one has no float, nor perhaps a text."""


def checked_options(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the fields of a config dataclass declare them: 1e6 becomes a whole number, a list a tuple.

    Raises:    UsageError naming the option that is unknown, or whose value has the wrong type, is no choice, or is not
               finite
    Verified:  tests/unit/test_fields.py::test_options_of_any_source_are_checked_alike
    """
    _refuse_unknown(options, [f.name for f in fields(kind)], kind.__name__)
    hints = get_type_hints(kind)
    return {name: _checked(name, value, hints[name]) for name, value in options.items()}


def _checked(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        kinds = [k for k in get_args(hint) if k is not type(None)]
        return None if value is None or value in ("none", "None") else _checked(name, value, kinds[0])
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if isinstance(value, bool) and "on" in choices:  # what YAML makes of on and off
            value = "on" if value else "off"
        require(value in choices, name, value, f"one of {', '.join(map(repr, choices))}")
        return value
    if is_dataclass(hint):
        return _checked_part(name, value, cast(type[Any], hint))
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            example = ["success"] if get_args(hint)[0] is str else [64, 64]
            raise UsageError(f"{name} is {brief(value)}; expected a list, such as {example}")
        return tuple(_checked(name, item, get_args(hint)[0]) for item in value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy scalars
        value = value.item()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise UsageError(f"{name} is a whole number of {value.bit_length():,} bits; expected one that a float can hold")
    if hint is int:
        require(number and isinstance(value, int), name, value, "a whole number")
        return value
    if hint is float:
        require(number and math.isfinite(value), name, value, "a finite number")
        return float(value)
    require(isinstance(value, hint), name, value, f"a {hint.__name__}" if hint is not bool else "True or False")
    return value


def _checked_part(name: str, value: Any, kind: type[Any]) -> Any:
    """A config within a config, from its fields by name or as it is."""
    if isinstance(value, kind):
        given = asdict(value)
    elif isinstance(value, Mapping):
        given = {str(k): v for k, v in cast(Mapping[Any, Any], value).items()}
    else:
        raise UsageError(f"{name} is {brief(value)}; expected {kind.__name__}(...), or its fields by name")
    hints = get_type_hints(kind)
    _refuse_unknown(given, [f.name for f in fields(kind)], name)
    return kind(**{k: _checked(f"{name}.{k}", v, hints[k]) for k, v in given.items()})


def _refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    """UsageError for an option that ``what`` does not have, with the nearest ones that it has."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"{what} has no option {name!r}{hint}")
