"""A few cases of every kind of ``fuzz``; ``make fuzz`` tries thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from fuzz.attack import attempt
from fuzz.harness import Outcome
from fuzz.kinds import KINDS, Stock

CASES = {"kills": 1, "signals": 1, "model": 1}
"""Of every kind that begins from a long run; two of every other."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_ends_as_it_promises(kind: str, stock: Stock, tmp_path: Path) -> None:
    for number in range(CASES.get(kind, 2)):
        found = attempt(kind, number, stock, tmp_path / "case")
        assert not found.faults, f"{kind} {number}, {found.what}"


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome(3, "", "x", False, 1.0), "ended with 3"),
        (Outcome(-11, "", "x", False, 1.0), "ended with -11"),
        (Outcome(1, "", "", False, 1.0), "ended with 1 without a word"),
        (Outcome(1, "", "steepest: internal error, KeyError", False, 1.0), "says 'internal error'"),
        (Outcome(2, "", "no \x1b[2J", False, 1.0), "wrote the control character '\\x1b'"),
        (Outcome(143, "", "", False, 1.0), "ended with 143 though nobody asked"),
    ],
)
def test_what_counts_as_a_fault(outcome: Outcome, fault: str) -> None:
    assert fault in outcome.faults()
