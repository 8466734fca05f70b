"""docs/equations.md says what is so, and leaves no equation of the notes out."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from steepest import distributions, losses, numerics, returns
from steepest.verification import statements, theorems

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "equations.md").read_text()

DISPLAYED = {
    "1": 1,
    "1.1": 9,
    "1.2": 2,
    "1.3": 2,
    "1.4": 3,
    "1.5": 2,
    "1.6": 2,
    "1.7": 6,
    "1.8": 4,
    "1.9": 7,
    "1.10": 9,
    "1.11": 9,
    "2.1": 1,
    "2.1.1": 2,
    "2.1.2": 1,
    "2.2.1": 3,
    "2.2.2": 8,
}
"""How many displayed equations each section of the notes has, an aligned group being one; counted from the notes."""

NUMBERED = {
    "1.1": {"Lemma 1", "Lemma 2", "Theorem 3"},
    "1.8": {"Theorem 4"},
    "1.9": {"Lemma 5", "Theorem 6"},
    "2.2.2": {"Lemma 7"},
}
BESIDE = "Beside the notes"


class Row(NamedTuple):
    """One row of a table, its cells unescaped."""

    section: str
    covers: str
    equation: str
    computed: str
    checked: str
    erratum: str


def cells(line: str) -> list[str]:
    return [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]


def parsed() -> Iterator[Row]:
    """Every row; those beside the notes cover nothing and have a source where the others have an erratum."""
    for part in PAGE.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        for line in lines[2:]:
            section = BESIDE if title == BESIDE else title.split()[0]
            found = ["", *cells(line)] if title == BESIDE else cells(line)
            assert len(found) == 5, line
            yield Row(section, *found)


ROWS = list(parsed())


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def claims(row: Row) -> tuple[list[str], list[str]]:
    """The rows of ``steepest verify`` that a row names: those that pass, and the negative controls."""
    text = f"{row.checked}; {row.erratum}"
    passing = re.findall(r"verify: ((?:`[^`]+`(?:, )?)+)", text)
    failing = re.findall(r"fails: ((?:`[^`]+`(?: \(`[^`]+`\))?(?:, )?)+)", text)
    controls = [name for part in failing for name in spans(re.sub(r" \(`verification\.theorems\.[\w.]+`\)", "", part))]
    return [name for part in passing for name in spans(part)], controls


def resolve(dotted: str) -> Any:
    """The thing of that dotted path below ``steepest``."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["steepest", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module of steepest is called {dotted}")


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def label(row: Row) -> str:
    return f"{row.section} {row.covers} {row.equation}"[:60]


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_what_a_row_names_exists(row: Row) -> None:
    assert row.equation
    functions = spans(row.computed)
    assert functions, "nothing computes it"
    for name in functions:
        assert callable(resolve(name)), name
    tests = [name for name in spans(row.checked) if name.startswith("tests/")]
    for name in tests:
        path, _, test = name.partition("::")
        assert test.startswith("test_")
        assert test in functions_of(path), name
    passing, failing = claims(row)
    assert tests or passing or failing, "nothing checks it"
    for kinds, named in ((("equality", "inequality"), passing), (("negative control",), failing)):
        for claim in named:
            found = [s for s in statements() if s.claim == claim and row.section in (s.section, BESIDE)]
            assert found, f"steepest verify has no row {claim!r} in section {row.section}"
            assert any(s.kind in kinds for s in found), claim
    for name in re.findall(r"`(verification\.theorems\.[\w.]+)`", row.erratum):
        assert callable(resolve(name)), name


@pytest.mark.parametrize("row", [r for r in ROWS if r.section != BESIDE], ids=label)
def test_exact_only_is_said_where_it_is_so(row: Row) -> None:
    shipped = [name for name in spans(row.computed) if not name.startswith(("exact.", "verification."))]
    assert row.computed.startswith("exact only: ") == (not shipped)


def test_no_displayed_equation_is_missing() -> None:
    for section, count in DISPLAYED.items():
        assert {int(part) for part in covered(section) if part.isdigit()} == set(range(1, count + 1)), section
    assert {r.section for r in ROWS} == {*DISPLAYED, BESIDE}


def test_no_numbered_statement_is_missing() -> None:
    for section in DISPLAYED:
        named = [part for part in covered(section) if part.startswith(("Lemma", "Theorem"))]
        assert sorted(named) == sorted(NUMBERED.get(section, set())), section


def covered(section: str) -> list[str]:
    """What the rows of a section say that they cover: numbers of displayed equations, names, or where it stands."""
    parts = [part for r in ROWS if r.section == section for part in re.split(r"[;,] ", r.covers)]
    for part in parts:
        assert re.fullmatch(r"\d+|Lemma \d+|Theorem \d+|text|box", part), part
    return parts


def test_every_verified_row_is_named() -> None:
    """In its section, or beside the notes; on the side that its kind belongs to."""
    missing = [
        f"{s.section} {s.claim}"
        for s in statements()
        if not any(
            r.section in (s.section, BESIDE) and s.claim in claims(r)[s.kind == "negative control"] for r in ROWS
        )
    ]
    assert missing == []


def formulas() -> Iterator[str]:
    """The public functions and distributions, below ``steepest``."""
    for name in losses.__all__:
        yield f"{getattr(losses, name).__module__}.{name}".removeprefix("steepest.")
    for module in (returns, distributions, numerics):
        for name, thing in vars(module).items():
            if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "") == module.__name__:
                yield f"{module.__name__}.{name}".removeprefix("steepest.")
    for statement in theorems.STATEMENTS:
        for function in (statement.problem, getattr(statement.sides, "func", statement.sides)):
            yield f"{function.__module__}.{function.__name__}".removeprefix("steepest.")


def test_every_formula_is_named() -> None:
    found = set(formulas())
    assert len(found) > 130
    assert {"returns.reward_to_go", "losses.value.value_loss", "numerics.standardize"} <= found
    assert {
        "distributions.TanhGaussian",
        "verification.theorems.language.lemma_7",
        "verification.random_problems.episodic",
    } <= found
    assert sorted(name for name in found if f"`{name}`" not in PAGE) == []
