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


def layer(module: str) -> str:
    """The layer that a module belongs to: its package, or its own name for a file at the top."""
    return module.split(".")[1] if "." in module else "steepest"


PURE = {"types", "distributions", "returns", "numerics"}
BELOW = {
    # layer: what it may import of the package
    "errors": set[str](),
    "drawing": set[str](),
    "products": set[str](),
    "files": {"errors"},
    "tensor_files": {"errors", "files"},
    "problems": set[str](),
    "types": {"errors"},
    "numerics": {"types", "errors"},
    "distributions": {"types", "errors", "numerics"},
    "returns": {"types", "errors", "numerics"},
    "losses": {*PURE, "errors"},
    "exact": {"types", "problems", "errors"},
    "learner": {*PURE, "errors", "products"},
    "networks": {*PURE, "errors"},
    "buffers": {*PURE, "errors"},
}
NEVER = {
    # layer: what it must not import, besides the layers above it
    "networks": {"losses"},
    "buffers": {"losses"},
    "rollout": {"losses"},
    "environments": {"losses"},
    "learner": {"losses"},
    "on_policy": set[str](),
    "agent": set[str](),
}
ABOVE = ["losses", "algorithms", "runs", "cli"]  # each knows only what stands before it
TOP = {"cli", "cli_language", "cli_options", "api", "language_api", "runs", "presets"}
VERIFIERS = {"cli", "verification", "estimators"}  # what compares shipped functions with the exact solutions
VERIFICATION = {*PURE, "errors", "losses", "on_policy", "algorithms", "language", "exact"}
"""What `steepest verify` may look at."""


def used(module: str) -> set[str]:
    return {layer(name) for name in imports(MODULES[module]) if name.split(".")[0] == "steepest"} - {layer(module)}


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in BELOW])
def test_pure_layers_know_only_what_is_below(module: str) -> None:
    assert used(module) <= BELOW[layer(module)]


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in NEVER])
def test_machinery_never_imports_losses_or_what_is_above(module: str) -> None:
    forbidden = NEVER[layer(module)] | {"algorithms", "language", *TOP}
    assert not used(module) & forbidden


@pytest.mark.parametrize("module", MODULES)
def test_layers_are_ordered(module: str) -> None:
    """losses <- algorithms, language <- runs <- cli; nothing that learns imports ``exact``."""
    mine = {"language": "algorithms"}.get(layer(module), layer(module))
    if mine in ABOVE:
        above = set(ABOVE[ABOVE.index(mine) + 1 :])
        # api is the face of runs; runs may not look back at it
        assert not used(module) & (above | ({"api", "language_api"} if mine != "cli" else set()))
    if mine not in {"exact", "api", *VERIFIERS}:
        assert "exact" not in used(module)


def test_verification_stands_between_what_learns_and_what_is_exact() -> None:
    assert {u for m in MODULES if layer(m) == "verification" for u in used(m)} - {"steepest"} <= VERIFICATION
    assert {m for m in MODULES if "verification" in used(m)} <= {"steepest.cli", "steepest.api"}


def test_estimators_stand_between_what_learns_and_what_is_exact() -> None:
    below = {*PURE, "errors", "files", "drawing", "losses", "problems", "exact"}
    assert {u for m in MODULES if layer(m) == "estimators" for u in used(m)} - {"steepest"} <= below
    assert {m for m in MODULES if "estimators" in used(m)} <= {"steepest.cli"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("steepest.algorithms.")])
def test_algorithms_never_import_each_other(module: str) -> None:
    others = {name for name in imports(MODULES[module]) if name.startswith("steepest.algorithms.") and name != module}
    assert not others


def test_exact_imports_only_numbers() -> None:
    for module in [m for m in MODULES if layer(m) == "exact"]:
        outside = {name.split(".")[0] for name in imports(MODULES[module])} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "numpy", "steepest", "jaxtyping"}, module
        within = {name for name in imports(MODULES[module]) if name.split(".")[0] == "steepest"}
        allowed = ("steepest.types", "steepest.problems", "steepest.errors", "steepest.exact")
        assert all(name.startswith(allowed) for name in within), module


def test_problems_are_only_numbers() -> None:
    outside = {name.split(".")[0] for name in imports(MODULES["steepest.problems"])} - set(sys.stdlib_module_names)
    assert outside <= {"numpy"}


LIGHT = ["steepest", "steepest.cli", "steepest.errors", "steepest.presets", "steepest.algorithms"]


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


def test_some_tests_are_promised() -> None:
    assert len(promises()) > 15
