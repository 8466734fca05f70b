"""The code at hand does what the code that recorded tests/recorded did: the same bits, and old runs go on.

Where no digests were recorded on this kind of machine, sums and norms of every tensor have to agree instead.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import steepest
from recorded.cases import (
    CASES,
    FOLDER,
    LANGUAGE_CASES,
    Summary,
    language_data,
    machine,
    of_tensors,
    run_case,
    run_language_case,
)
from steepest.algorithms import ALGORITHMS
from steepest.language.models.loading import load_model
from steepest.runs.language_run import LanguageRun

RECORDED: dict[str, Any] = json.loads((FOLDER / "digests.json").read_text())
ENDS: dict[str, Any] = json.loads((FOLDER / "runs" / "ends.json").read_text())


def check(found: tuple[str, Summary], digest: str | None, summary: Summary) -> None:
    """Equal to the bit on a machine that has recorded, else to rounding: a few units of float32 per update."""
    if digest is not None:
        assert found[0] == digest
        return
    assert found[1].keys() == summary.keys()
    for name, values in summary.items():
        assert found[1][name] == pytest.approx(values, rel=1e-3, abs=1e-4), name


def check_case(label: str, found: tuple[str, Summary]) -> None:
    digest = RECORDED["digests"].get(machine(), {}).get(label)
    if digest is None and label.startswith("trpo"):
        # Its solve of a nearly singular system in float32 enlarges rounding a thousandfold, and the next rollout is
        # another one. tests/exact/test_trpo.py holds its updates on every machine.
        assert found[1].keys() == RECORDED["summaries"][label].keys()
        return
    check(found, digest, RECORDED["summaries"][label])


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_three_updates_leave_the_recorded_state(name: str, members: int) -> None:
    check_case(f"{name}, members {members}, eager", run_case(name, members, compiled=False))


# Compiling takes half a minute where the compiler's cache is empty: of every regime one case, the rest when asked for.
RECORDED_ALGORITHMS = [name for name in ALGORITHMS if name in CASES]
QUICKLY_COMPILED = {("ppo", 1), ("td3", 1)}


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("name", "members"),
    [
        pytest.param(name, members, marks=() if (name, members) in QUICKLY_COMPILED else pytest.mark.slow)
        for name, members in itertools.product(RECORDED_ALGORITHMS, (1, 2))
    ],
)
def test_three_compiled_updates_leave_the_recorded_state(name: str, members: int) -> None:
    check_case(f"{name}, members {members}, compiled", run_case(name, members, compiled=True))


@pytest.mark.parametrize("name", LANGUAGE_CASES)
def test_three_updates_of_a_language_model_leave_the_recorded_state(name: str) -> None:
    check_case(f"language: {name}", run_language_case(name))


def old_run(regime: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "runs" / regime, tmp_path / regime))


def check_end(regime: str, tensors: dict[str, Any]) -> None:
    end = ENDS[regime]
    check(of_tensors(tensors, []), end["digest"] if end["machine"] == machine() else None, end["summary"])


@pytest.mark.parametrize("regime", ["on-policy", "off-policy"])
def test_an_old_run_loads_evaluates_and_resumes(regime: str, tmp_path: Path) -> None:
    run = old_run(regime, tmp_path)
    for which in ("latest", "best"):
        (result,) = steepest.evaluate(steepest.load(run, which=which), episodes=2)
        assert len(result.returns) == 2
    agent = steepest.resume(run)
    check_end(regime, agent.tensors())
    assert (run / "summary.json").exists()


def test_an_old_run_on_a_language_model_resumes(tmp_path: Path) -> None:
    run = old_run("language", tmp_path)
    lm = load_model(run / "best-model")
    assert len(steepest.respond(lm, ["This film was great."], max_new_tokens=4)) == 1
    with LanguageRun.resume(run, data=language_data()["pairs"]) as resumed:
        assert resumed.step == 4
        for _ in resumed:
            pass
    check_end("language", resumed.trainer.tensors())
    assert (run / "model" / "config.json").exists()
