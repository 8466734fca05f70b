"""Configurations refuse the values that their fields do not accept."""

from __future__ import annotations

from dataclasses import dataclass

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
