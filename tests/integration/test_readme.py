"""The README and docs/ say what is so: their Python runs, their commands parse, their links and tests exist.

A code block after ``<!-- not run -->`` is left alone. Blocks of one page run one after another in one namespace, in an
empty folder, as a reader would run them, with large budgets made small: ``total_steps`` above 5,000 becomes 600, and
more than 10 ``episodes`` become 2. Run as a script, this file writes the table of presets into docs/presets.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<mark><!-- not run -->\n+)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BUDGETS = {"total_steps": (5_000, 600), "episodes": (10, 2)}
RESULT_TABLE = re.compile(r"(?<=<!-- begin: results -->\n)(.*?)(?=<!-- end: results -->)", re.DOTALL)
PRESET_TABLE = re.compile(r"(?<=<!-- begin: presets -->\n)(.*?)(?=<!-- end: presets -->)", re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every code block in these languages that is not marked as not run."""
    content = page.read_text()
    for match in BLOCK.finditer(content):
        if match["language"] in languages and not match["mark"]:
            yield content.count("\n", 0, match.start("text")), match["text"]


def small(code: str) -> str:
    """The same code without large budgets."""

    def limit(match: re.Match[str]) -> str:
        largest, instead = BUDGETS[match[1]]
        return f"{match[1]}={instead}" if int(match[2]) > largest else match[0]

    return re.sub(rf"\b({'|'.join(BUDGETS)})=([\d_]+)", limit, code)


def test_budgets_are_made_small() -> None:
    assert (
        small("train(total_steps=1_000_000), evaluate(episodes=100)") == "train(total_steps=600), evaluate(episodes=2)"
    )
    assert small("total_steps=4_000") == "total_steps=4_000"


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p, "python"))], ids=page_id)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("ALE/" in code for _, code in blocks(page, "python")):
        pytest.importorskip("ale_py")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    threads = torch.get_num_threads()
    try:
        for line, code in blocks(page, "python"):
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * line + small(code), str(page), "exec"), namespace)
    finally:
        torch.set_num_threads(threads)


class Parsed(BaseException):
    """The command line was understood; nothing further is to happen."""


def command_lines() -> Iterator[Any]:
    """Every command in the pages' shell blocks and in their indented lines, without comments."""
    for page in PAGES:
        indented = re.findall(r"^ {4}(steepest .*)$", page.read_text(), re.MULTILINE)
        fenced = [line for _, text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
        for number, line in enumerate([*fenced, *indented]):
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{page.name}-{number}-{'-'.join(words[1:3])}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_commands_parse(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the work would begin: a misspelled option, value, algorithm or verb fails."""
    from steepest import estimators
    from steepest.api import agents, datasets, drive, ope, preferences, selection
    from steepest.api import language as language_api
    from steepest.cli import main
    from steepest.experience.datasets import places as data_places
    from steepest.experience.datasets import read
    from steepest.language.data import rows
    from steepest.language.models import loading
    from steepest.language.models import places as model_places
    from steepest.runs import language_run
    from steepest.runs.store import folder
    from steepest.runs.view import plots
    from steepest.scale import sweep as sweeping
    from steepest.verification import table

    def begin(*_: Any, **__: Any) -> None:
        raise Parsed

    work = ((drive, "drive"), (agents, "load"), (plots, "plot_runs"), (table, "check"), (estimators, "compare"))
    work = (*work, (ope, "ope"), (selection, "select_online"), (sweeping, "sweep"), (read, "read_dataset"))
    data = tuple((datasets, name) for name in ("collect", "collect_replay", "dataset_summary"))
    people = (
        "sample",
        "sample_clips",
        "label",
        "project_summary",
        "project_measures",
        "export_preferences",
        "import_preferences",
    )
    data = (*data, *((preferences, name) for name in people))
    language = (
        (language_api, "compare"),
        (language_run, "LanguageRun"),
        (loading, "load_model"),
    )
    # Nothing that the pages name is there: that would be told before the work begins.
    there = ((folder, "check_saved"), (folder.RunDirectory, "open"), (data_places, "check_there"))
    there = (*there, (model_places, "locate"), (rows, "check_source"))
    for module, name in (*work, *data, *language, *there):
        monkeypatch.setattr(module, name, begin)
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for _, text in blocks(page, "yaml"):
            name = re.match(r"# (\S+\.yaml)\n", text)
            assert name, f"{page_id(page)}: a YAML block begins with the name of its file, as a comment"
            Path(name[1]).write_text(text)
    register = "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    Path("my_module.py").write_text(register)  # the module that docs/environments.md names
    assert words[0] in ("steepest", "pip", "make"), words
    if words[0] != "steepest":
        return
    with contextlib.suppress(Parsed):
        assert main.main(words[1:]) == 0  # help, list


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"^ {4}make ([a-z0-9-]+)|`make ([a-z0-9-]+)`", page.read_text(), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, page_id(page)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), f"{page_id(page)} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in slugs, f"{page_id(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_exist(page: Path) -> None:
    for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        file = ROOT / path
        assert file.is_file(), f"{page_id(page)} names {path}"
        assert f"def {test}(" in file.read_text(), f"{page_id(page)} names {path}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_functions_exist(page: Path) -> None:
    """`module.name` in a page's tables is a name of that module of steepest."""
    modules = "distributions|estimators|language|learner|losses|networks|numerics|on_policy|presets|returns|rollout"
    for dotted in re.findall(rf"`((?:steepest\.)?(?:{modules})(?:\.\w+)+)`", page.read_text()):
        *path, name = dotted.removeprefix("steepest.").split(".")
        if name == "py":
            continue
        assert hasattr(importlib.import_module(".".join(["steepest", *path])), name), f"{page_id(page)}: {dotted}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_options_exist(page: Path) -> None:
    """A word in backquotes that looks like an option in a details table is one."""
    from steepest.algorithms import ALGORITHMS, find
    from steepest.language.training.dpo import DPOConfig
    from steepest.language.training.reward_model import RewardModelConfig
    from steepest.language.training.rlhf import GRPOConfig, RLOOConfig, TokenPPOConfig
    from steepest.language.training.sft import SFTConfig
    from steepest.runs.options.config import RunConfig
    from steepest.runs.options.language import LanguageRunConfig

    language = (DPOConfig, RewardModelConfig, TokenPPOConfig, RLOOConfig, GRPOConfig, SFTConfig, LanguageRunConfig)
    configs = [RunConfig, *(find(algorithm).Config for algorithm in ALGORITHMS), *language]
    known = {f.name for kind in configs for f in dataclasses.fields(kind)}
    table = page.read_text().partition("## Details")[2]
    for row in re.findall(r"^\|[^|]*\|([^|]*)\|", table, re.MULTILINE):
        for option in re.findall(r"`(\w+)`", row):
            assert option in known, f"{page_id(page)}: {option}"


def preset_table() -> str:
    """The presets as one Markdown table per algorithm: options down, families and ids across."""
    from steepest.algorithms import find
    from steepest.runs.options.config import RunConfig
    from steepest.runs.options.presets import PRESETS

    parts: list[str] = []
    for algorithm in sorted({a for a, _ in PRESETS}):
        columns = {name: settings for (a, name), settings in PRESETS.items() if a == algorithm}
        fields = [*dataclasses.fields(RunConfig), *dataclasses.fields(find(algorithm).Config)]
        defaults = {f.name: f.default for f in fields}
        options = [f.name for f in fields if any(f.name in settings for settings in columns.values())]
        lines = [
            f"### {algorithm}",
            "",
            f"| option | default | {' | '.join(columns)} |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for option in options:
            cells = [cell(settings[option]) if option in settings else "" for settings in columns.values()]
            lines.append(f"| `{option}` | {cell(defaults[option])} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def test_every_preset_is_made_of_options() -> None:
    from steepest.runs.options.presets import PRESETS
    from steepest.runs.options.resolve import resolve_options

    for (algorithm, _), settings in PRESETS.items():
        resolve_options(algorithm, "none", settings)


def test_preset_table_is_current() -> None:
    (written,) = PRESET_TABLE.findall((ROOT / "docs" / "presets.md").read_text())
    assert written == preset_table(), "run: .venv/bin/python tests/integration/test_readme.py"


def result_table() -> str:
    """The final evaluations that benchmarks/learning.py has written, as one Markdown table."""
    lines = [
        "| `steepest train` | steps per seed | mean of the seeds | deviation over seeds | each seed |",
        "|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("learning-*.json")):
        result = json.loads(path.read_text())
        if "stopped" in result:  # before its end: a curve, no final evaluation
            continue
        seeds = result["final_evaluation_by_seed"]
        command = result["command"].removeprefix("steepest train ")
        command = re.sub(r" --(seeds|eval-episodes|threads|total-steps) \S+", "", command)
        digits = 0 if max(map(abs, seeds)) >= 1000 else 1
        each = ", ".join(f"{seed:.{digits}f}" for seed in seeds)
        steps = f"{max(result['summary']['steps']):,}"
        mean, deviation = result["mean"], result["std_over_seeds"]
        lines.append(f"| `{command}` | {steps} | {mean:.{digits}f} | {deviation:.{digits}f} | {each} |")
    return "\n".join(["", *lines, "", ""])


def test_results_are_those_written() -> None:
    (written,) = RESULT_TABLE.findall((ROOT / "docs" / "presets.md").read_text())
    assert written == result_table(), "run: .venv/bin/python tests/integration/test_readme.py"


if __name__ == "__main__":
    target = ROOT / "docs" / "presets.md"
    text = PRESET_TABLE.sub(lambda _: preset_table(), target.read_text())
    target.write_text(RESULT_TABLE.sub(lambda _: result_table(), text))
    sys.stdout.write(f"wrote {target}\n")
