"""Fields of a configuration that state what they accept, as in ``gamma: Share = 0.99``, and the one check of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from steepest.errors import require


class Accepts(NamedTuple):
    """The values that a field accepts, and the words that say which they are."""

    test: Callable[[Any], bool]
    words: str


Count = Annotated[int, Accepts(lambda x: x >= 1, "at least 1")]
AtLeastTwo = Annotated[int, Accepts(lambda x: x >= 2, "at least 2")]
AtLeastTen = Annotated[int, Accepts(lambda x: x >= 10, "at least 10")]
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
