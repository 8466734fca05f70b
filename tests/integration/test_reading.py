"""How many files one passes through from the call of an update down to its loss, as README and CONTRIBUTING say."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steepest
from recorded.cases import run_case, run_language_case

ROOT = Path(__file__).parents[2]
PACKAGE = Path(steepest.__file__).parent
NUMBERS = {"three": 3, "four": 4, "five": 5, "six": 6}


def passed_through(module: str, loss: str, learn: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the package on the stack where a loss is first computed, from the update's call, in their order."""
    importer = importlib.import_module(module)
    function: Any = getattr(importer, loss)
    found: list[str] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        if not found:
            files = [Path(frame.filename) for frame in inspect.stack()]
            inside = [path.relative_to(PACKAGE).as_posix() for path in files if PACKAGE in path.parents]
            update = [name for name in inside if not name.startswith("runs/")]
            home = Path(inspect.getfile(inspect.unwrap(function))).relative_to(PACKAGE).as_posix()
            found.extend(dict.fromkeys([*reversed(update), home]))
        return function(*arguments, **options)

    monkeypatch.setattr(importer, loss, spy)
    learn()
    return found


CASES = {
    "PPO": ("steepest.algorithms.ppo", "clipped_surrogate_loss", lambda: run_case("ppo", 1, compiled=False)),
    "SAC": ("steepest.agents.soft", "soft_policy_loss", lambda: run_case("sac", 1, compiled=False)),
    "DPO": ("steepest.language.training.dpo", "dpo_loss", lambda: run_language_case("dpo")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_an_update_are_those_that_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = passed_through(*CASES[name], monkeypatch)
    contributing = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    said = re.search(rf"(\w+)(?: files)? for {name} \(([^)]+)\)", contributing)
    assert said
    assert [Path(path).stem for path in found] == said[2].split(", ")
    assert NUMBERS[said[1]] == len(found)


def test_the_readme_counts_as_contributing_does() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(r"through (\w+) files for PPO: (.*?\))\. It is (\w+) for SAC, and (\w+) for DPO", readme)
    assert said
    linked = re.findall(r"\(src/steepest/([\w/]+\.py)\)", said[2])
    assert NUMBERS[said[1]] == len(linked)
    contributing = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    for name, number in (("SAC", said[3]), ("DPO", said[4])):
        assert re.search(rf"{number} for {name} \(", contributing)
    named = re.search(r"five files for PPO \(([^)]+)\)", contributing)
    assert named
    assert [Path(path).stem for path in linked] == named[1].split(", ")
