"""Configurations refuse the values that their fields do not accept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from steepest.errors import UsageError
from steepest.fields import (
    BelowHalf,
    Checked,
    Count,
    InnerShare,
    NonNegative,
    PartialShare,
    Positive,
    PositiveShare,
    Share,
    Whole,
    checked_options,
)


@dataclass(frozen=True, kw_only=True)
class Base(Checked):
    steps: Count = 1
    seed: Whole = 0
    rate: Positive = 1.0
    weight: NonNegative = 0.0
    gamma: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    tau: PositiveShare = 1.0
    dropout: PartialShare = 0.0
    inner: InnerShare = 0.5
    floor: BelowHalf = 0.0
    clip: Positive | None = None
    sizes: tuple[Count, ...] = (1, 2)
    name: str = "free"


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("steps", 1, 0, "at least 1"),
        ("seed", 0, -1, "zero or more"),
        ("rate", 1e-9, 0.0, "a positive number"),
        ("weight", 0.0, -1e-9, "zero or more"),
        ("gamma", 1.0, 1.1, r"in \[0, 1\]"),
        ("gamma", 0.0, -0.1, r"in \[0, 1\]"),
        ("gamma", 0.5, float("nan"), r"in \[0, 1\]"),
        ("tau", 1.0, 0.0, r"in \(0, 1\]"),
        ("inner", 0.5, 0.0, "between 0 and 1"),
        ("inner", 0.5, 1.0, "between 0 and 1"),
        ("dropout", 0.0, 1.0, r"in \[0, 1\)"),
        ("floor", 0.49, 0.5, r"in \[0, 0.5\)"),
        ("clip", None, 0.0, "a positive number or none"),
        ("sizes", (), (3, 0), "at least 1"),
    ],
)
def test_a_field_refuses_values_it_does_not_accept(name: str, good: object, bad: object, words: str) -> None:
    assert getattr(Config(**{name: good}), name) == good
    with pytest.raises(UsageError, match=f"^{name} is .*; expected {words}$"):
        Config(**{name: bad})


def test_a_field_that_does_not_say_so_refuses_none() -> None:
    with pytest.raises(TypeError):
        Config(gamma=None)


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    steps: Count = 1
    rate: Positive | None = 1.0
    sizes: tuple[Count, ...] = (1, 2)
    mode: Literal["auto", "on", "off"] = "auto"
    quiet: bool = False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "x"}, "steps is 'x'; expected a whole number"),
        ({"steps": 1.5}, "steps is 1.5; expected a whole number"),
        ({"steps": float("inf")}, "steps is inf; expected a whole number"),
        ({"steps": True}, "steps is True; expected a whole number"),
        ({"steps": 10**400}, "steps is a whole number of 1,329 bits; expected one that a float can hold"),
        ({"rate": 10**5000}, "rate is a whole number of 16,610 bits"),
        ({"rate": [1.0]}, r"rate is \[1.0\]; expected a finite number"),
        ({"sizes": 8}, r"sizes is 8; expected a list, such as \[64, 64\]"),
        ({"sizes": [8, None]}, "sizes is None; expected a whole number"),
        ({"sizes": {"a": 1}}, "expected a list"),
        ({"mode": "On"}, "mode is 'On'; expected one of"),
        ({"mode": ["on"]}, r"mode is \['on'\]; expected one of"),
        ({"quiet": "yes"}, "quiet is 'yes'; expected True or False"),
        ({"step": 1}, "Options has no option 'step'; did you mean steps"),
    ],
)
def test_options_of_any_source_are_checked_alike(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked_options(Options, given)


def test_a_value_is_shown_as_far_as_it_fits() -> None:
    for value in ("x" * 200_000, ["x"] * 200_000):
        with pytest.raises(
            UsageError, match=r"^rate is .{200}\.\.\. \([0-9,]+ characters\); expected a finite number$"
        ):
            checked_options(Options, {"rate": value})


def test_options_become_what_their_fields_declare() -> None:
    found = checked_options(Options, {"steps": 1e6, "rate": "none", "sizes": [8, 8.0], "mode": True, "quiet": False})
    assert found == {"steps": 1_000_000, "rate": None, "sizes": (8, 8), "mode": "on", "quiet": False}
    assert Options(**found).sizes == (8, 8)
