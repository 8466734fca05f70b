"""The layers of the design, read from the imports; and the tests that docstrings promise, looked up."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "steepest"
MODULES = {
    ".".join(("steepest", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules that a file imports, as dotted names; at_import: only those that importing the file itself loads."""
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text()), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
    return found


def _nodes(tree: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, at_import)


STOREYS: list[set[str]] = [
    {"errors", "fields", "types", "problems", "seeding", "numerics", "distributions", "returns"},  # the ground floor
    {"losses"},
    {"exact", "files"},
    {"environments", "networks", "learner"},
    {"agents"},
    {"experience"},
    {"preferences"},
    {"algorithms", "language", "evaluation"},
    {"runs"},
    {"verification", "estimators", "scale"},
    {"api"},
    {"cli"},
    {"steepest", "__main__"},
]
"""Lowest first: a module imports from lower storeys and from its own folder only; the ground floor is one folder."""

APART = {
    "exact": {"losses"},  # an oracle that shares code with its subject proves nothing
    **{name: {"losses", "exact"} for name in ("environments", "networks", "learner", "experience")},
    **{
        name: {"exact"}
        for name in ("agents", "algorithms", "preferences", "language", "evaluation", "runs", "scale", "api")
    },  # nothing that learns looks up
}
"""Of what is below, what a folder keeps apart from."""


def room(module: str) -> str:
    """The folder that a module belongs to, or its own name for a file at the root."""
    return module.split(".")[1] if "." in module else "steepest"


def storey(module: str) -> int:
    return next((i for i, rooms in enumerate(STOREYS) if room(module) in rooms), -1)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_stands_on_a_storey_and_imports_from_below(module: str) -> None:
    assert storey(module) >= 0, f"{module} is on no storey"
    for name in imports(MODULES[module]):
        if name.split(".")[0] != "steepest" or name == "steepest":
            continue
        same = room(name) == room(module) or storey(name) == storey(module) == 0
        assert same or storey(name) < storey(module), f"{module} imports {name}, which is not below it"
        assert room(name) not in APART.get(room(module), ()), f"{module} must do without {name}"


def test_the_root_holds_the_ground_floor_alone() -> None:
    modules = [path.stem for path in SOURCE.glob("*.py")]
    assert {name for name in modules if not name.startswith("__")} == STOREYS[0]
    assert len(modules) <= 10
    for name in STOREYS[0]:
        outside = {x.split(".")[0] for x in imports(SOURCE / f"{name}.py")} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "numpy", "jaxtyping", "steepest"}, name


def test_files_are_short_enough_to_know_one_s_room() -> None:
    assert {str(path): n for path in MODULES.values() if (n := len(path.read_text().splitlines())) > 450} == {}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("steepest.algorithms.")])
def test_algorithms_never_import_each_other(module: str) -> None:
    own = {module, f"steepest.algorithms.configs.{module.rpartition('.')[2]}", "steepest.algorithms.configs"}
    others = {name for name in imports(MODULES[module]) if name.startswith("steepest.algorithms.")} - own
    assert not others


def test_exact_imports_only_numbers() -> None:
    for module in [m for m in MODULES if room(m) == "exact"]:
        outside = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "numpy", "steepest", "jaxtyping"}, module
        within = {room(name) for name in imports(MODULES[module]) if name.split(".")[0] == "steepest"}
        assert within - {"steepest"} <= {"types", "problems", "errors", "exact"}, module


def test_problems_are_only_numbers() -> None:
    outside = {name.split(".")[0] for name in imports(MODULES["steepest.problems"])} - set(sys.stdlib_module_names)
    assert outside <= {"numpy"}


LIGHT = [
    *("steepest", "steepest.cli.main", "steepest.errors", "steepest.runs.options.presets", "steepest.algorithms"),
    *("steepest.runs.options.config", "steepest.runs.options.language", "steepest.environments.config"),
    *("steepest.experience.datasets.places", "steepest.language.models.places", "steepest.runs.store.folder"),
    *(m for m in MODULES if m.startswith(("steepest.algorithms.configs", "steepest.language.training.configs"))),
    *("steepest.preferences.serving", "steepest.api.preferences"),
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_load_torch(module: str) -> None:
    """Read from the source: neither torch nor a module that imports it."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        loaded = imports(MODULES[name], at_import=True)
        assert not {x.split(".")[0] for x in loaded} & {"torch", "gymnasium", "matplotlib"}, name
        waiting += loaded
        waiting += [".".join(x.split(".")[:i]) for x in loaded for i in range(1, x.count(".") + 1)]


def test_importing_the_command_does_not_load_torch() -> None:
    code = f"import {', '.join(LIGHT)}, sys; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == "False"


# Promised tests

PROMISE = re.compile(r"tests/[\w/]+\.py::\w+")


def promises() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if "Verified:" in text:
                    name = getattr(node, "name", "")
                    tests = PROMISE.findall(text.split("Verified:")[1])
                    assert tests, f"{module}.{name}: no test on its Verified line"
                    found += [(f"{module}.{name}", test) for test in tests]
    return found


@pytest.mark.parametrize(("function", "test"), promises())
def test_every_promised_test_exists(function: str, test: str) -> None:
    path, name = test.split("::")
    assert (ROOT / path).is_file(), f"{function} promises {test}: no such file"
    defined = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
    assert name in defined, f"{function} promises {test}: no such test"
