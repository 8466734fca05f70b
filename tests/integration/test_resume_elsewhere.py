"""A run that is resumed on another machine, or with other packages, repeats its decisions and says what it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest import Run
from steepest.runs import run as run_module
from steepest.runs.loops.agents import AgentTraining
from steepest.runs.options import auto as settings_module

SMALL: dict[str, Any] = {
    "rollout_steps": 16,
    "hidden_sizes": (8,),
    "num_envs": 4,
    "epochs": 1,
    "minibatches": 1,
    "eval_episodes": 2,
    "total_steps": 1200,
    "checkpoint_every": 128,
    "tensorboard": False,
}


def left(out: Path, **options: Any) -> None:
    with Run("ppo", "CartPole-v1", out=out, **SMALL, **options) as run:
        for _ in range(4):
            run.iterate()


def test_nothing_left_to_auto_is_decided_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())["run"]
    assert before["compile"] == "off"
    assert before["threads"] == 1
    # Where compiling is free and there are more threads, a new run would decide otherwise.
    monkeypatch.setattr(settings_module, "COMPILE_SECONDS", -1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    notes: list[str] = []
    try:
        with Run.resume(tmp_path, note=notes.append) as run:
            assert json.loads(json.dumps(run.description()["run"])) == before
            seen: list[int] = []
            monkeypatch.setattr(run, "_evaluate", lambda rows: seen.append(torch.get_num_threads()))
            list(run)
        assert seen
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(threads)
    assert len(notes) == 1, notes
    assert notes[0].startswith("resuming from step-")


def test_what_differs_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(tmp_path)
    report = run_module.environment_report()
    packages = {**report["packages"], "torch": "9.9", "gymnasium": "9.8"}
    monkeypatch.setattr(run_module, "environment_report", lambda: {**report, "packages": packages, "cpu": "Abacus 2"})
    notes: list[str] = []
    with Run.resume(tmp_path, note=notes.append):
        pass
    (line,) = [note for note in notes if "bits may differ from an uninterrupted run" in note]
    for part in ("torch was 2", "is 9.9", "gymnasium was ", "CPU was ", "is Abacus 2"):
        assert part in line
    assert "numpy" not in line


def test_how_functions_ran_is_saved_and_repeated(tmp_path: Path) -> None:
    left(tmp_path, seeds=2)
    with Run.resume(tmp_path) as run:
        assert run.training.modes["steps"] == "vmapped"
        list(run)
    assert json.loads((tmp_path / "summary.json").read_text())["modes"] == run.training.modes
    left(tmp_path / "other", seeds=2)
    with Run("ppo", "CartPole-v1", **SMALL, seeds=2) as run:
        saved = {**run.agent.modes(), "steps": "one member at a time", "prepare": "compiled"}
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        load = AgentTraining.load
        patch.setattr(AgentTraining, "load", lambda self, x, metadata: load(self, x, {**metadata, "modes": saved}))
        with Run.resume(tmp_path / "other", note=notes.append) as run:
            run.iterate()
    assert run.training.modes["steps"] == "one member at a time"
    assert any("prepare no longer runs compiled" in note for note in notes)
