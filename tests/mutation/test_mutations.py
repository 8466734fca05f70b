"""The list of mutations keeps up with the code. What the tests catch of it, ``mutations.py`` measures."""

from __future__ import annotations

import ast

import pytest
from mutations import ROOT, SUSPECTS, mutate, mutations


@pytest.mark.parametrize(
    ("file", "mistake", "old", "new"), [pytest.param(*m, id=f"{m[0]}: {m[1]}") for m in mutations()]
)
def test_the_mutation_applies(file: str, mistake: str, old: str, new: str) -> None:
    source = (ROOT / "src" / "steepest" / file).read_text()
    mutated = ast.unparse(ast.parse(mutate(source, old, new)))
    assert mutated != ast.unparse(ast.parse(source)), f"{mistake}: only the layout or a comment changes"


def test_the_tests_that_should_notice_exist() -> None:
    assert [t for s in SUSPECTS.values() for t in s.tests if not (ROOT / "tests" / t).is_file()] == []


@pytest.mark.parametrize("old", ["no such text", "import"])
def test_a_text_that_is_not_there_once_is_an_error(old: str) -> None:
    with pytest.raises(ValueError, match="times instead of once"):
        mutate("import a\nimport b\n", old, "something else")
