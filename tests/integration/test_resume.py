"""Runs that are killed, interrupted or finished, and then resumed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers_runs import (
    differences,
    final_state,
    start_command,
    steepest_command,
    stray_files,
    timeless_rows,
    wait_for_step,
)

import steepest
from helpers_language import demonstrations, tiny
from steepest import Run, UsageError
from steepest.cli.main import main
from steepest.runs.language_run import LanguageRun
from steepest.runs.store.metrics import read_metrics

KILLED: dict[str, list[Any]] = {
    "native": ["ppo", "CartPole-v1", "--total-steps", 40_000, "--checkpoint-every", 2000],
    "sync": [
        *("ppo", "HalfCheetah-v5", "--vectorization", "sync", "--total-steps", 8000, "--checkpoint-every", 1000),
        *("--rollout-steps", 64, "--minibatches", 8, "--normalize-obs", "--normalize-reward"),
    ],
    "envpool": [
        *("ppo", "CartPole-v1", "--vectorization", "envpool", "--total-steps", 40_000, "--checkpoint-every", 2000)
    ],
}

COMMON: list[Any] = ["--seed", 3, "--eval-episodes", 2]


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    if name == "envpool":
        pytest.importorskip("envpool")
    if name == "sync":
        pytest.importorskip("mujoco")
    options = [*KILLED[name], *COMMON]
    total = options[options.index("--total-steps") + 1]
    assert steepest_command("train", *options, "--out", tmp_path / "alone").returncode == 0
    draw = random.Random(f"{name} {os.getpid()} {time.time_ns()}")  # any moment at all must do
    killed = tmp_path / "killed"
    arguments = ["train", *options, "--out", killed]
    moments = sorted(draw.randrange(total // 10, total - total // 5) for _ in range(2))
    for moment in moments:
        process = start_command(*arguments)
        wait_for_step(killed, moment, process)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "summary.json").exists()
        arguments = ["train", "--resume", killed]
    done = steepest_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-" in done.stderr
    assert differences(tmp_path / "alone", killed) == [], f"killed at steps {moments}"
    assert stray_files(killed) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_an_agent_and_resumes(number: signal.Signals, code: int, tmp_path: Path) -> None:
    options = ["reinforce", "CartPole-v1", "--total-steps", 400_000, "--checkpoint-every", 20_000, *COMMON]
    out = tmp_path / "run"
    log = tmp_path / "log"
    process = start_command("train", *options, "--out", out, log=log)
    wait_for_step(out, 25_000, process)
    process.send_signal(number)
    assert process.wait(60) == code, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "interrupted at step" in log.read_text()
    interrupted = out / "checkpoints" / "interrupted.safetensors"
    assert str(interrupted) in log.read_text()
    assert stray_files(out) == []

    played = steepest_command("evaluate", out, "--which", "interrupted", "--episodes", 3, "--json")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout)["episodes"] == 3
    agent = steepest.load(out, which="interrupted")
    assert agent.act([0.0, 0.0, 0.0, 0.0])[0] in (0, 1)

    resumed = steepest_command("train", "--resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step-" in resumed.stderr
    assert steepest_command("train", *options, "--out", tmp_path / "alone").returncode == 0
    assert differences(tmp_path / "alone", out) == []


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's content and time of change; the lock file says who had the run last."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def small(**options: Any) -> dict[str, Any]:
    return {
        "rollout_steps": 32,
        "hidden_sizes": (8,),
        "epochs": 1,
        "minibatches": 1,
        "num_envs": 4,
        "eval_episodes": 2,
        "compile": "off",
        "total_steps": 1200,
        "checkpoint_every": 256,
        **options,
    }


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steepest.train("ppo", "CartPole-v1", out=out, **small())
    before = snapshot(out)
    done = steepest_command("train", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stderr
    assert "--total-steps" in done.stderr
    assert "return" in done.stdout
    assert snapshot(out) == before


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steepest.train("ppo", "CartPole-v1", out=out, **small())
    done = steepest_command("train", "--resume", out, "--total-steps", 2400)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["step"] >= 2400
    assert json.loads((out / "summary.json").read_text())["steps"][0] >= 2400
    assert json.loads((out / "config.json").read_text())["run"]["total_steps"] == 2400
    again = steepest_command("train", "--resume", out)
    assert again.returncode == 0
    assert "is finished" in again.stderr


def test_a_run_of_either_kind_resumes_by_either_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a language model by ``train --resume`` and ``Run.resume`` too; of agents by no verb of language models."""
    rows = demonstrations(8)
    of_text, of_agent = tmp_path / "sft", tmp_path / "ppo"
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "max_length": 32, "threads": 1, "checkpoint_every": 1}
    data = tmp_path / "films.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with LanguageRun("sft", tiny(scale=1.0), data, out=of_text, **settings) as left:
        left.iterate()
    steepest.train("ppo", "CartPole-v1", out=of_agent, **small())
    with Run.resume(of_text) as run:
        assert isinstance(run, LanguageRun)
        assert (run.step, run.total_steps) == (1, 4)
    with pytest.raises(UsageError, match=r"total_steps is given to resume .*Accepted are"):
        Run.resume(of_text, total_steps=9)
    with pytest.raises(UsageError, match=r"data is given to resume .* learns from no data: leave it out"):
        Run.resume(of_agent, data=rows)
    with pytest.raises(UsageError, match=r"a language model; resume it with steepest\.resume_language"):
        steepest.resume(of_text)
    with pytest.raises(UsageError, match="is a run of agents, by ppo: steepest train --resume"):
        steepest.resume_language(of_agent)
    assert main(["train", "--resume", str(of_text)]) == 0
    assert f"model:          {of_text / 'model'}" in capsys.readouterr().out
    assert main(["sft", "--resume", str(of_agent)]) == 2
    assert "is a run of agents, by ppo: steepest train --resume" in capsys.readouterr().err
    with Run.resume(of_text) as run:
        assert run.done


def test_a_run_cannot_be_shortened(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steepest.train("ppo", "CartPole-v1", out=out, **small())
    before = snapshot(out)
    with pytest.raises(UsageError, match="total_steps is 100"):
        steepest.resume(out, total_steps=100)
    assert snapshot(out) == before


def test_a_run_that_stopped_at_its_target_goes_on_if_asked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steepest.train("ppo", "CartPole-v1", out=out, stop_at_return=1.0, eval_every=256, **small())
    assert json.loads((out / "summary.json").read_text())["stopped_at_return"]
    stopped_at = final_state(out)[1]["steps"]
    steepest.resume(out)
    assert final_state(out)[1]["steps"] == stopped_at
    steepest.resume(out, total_steps=1000)
    assert final_state(out)[1]["steps"][0] >= 1000


@pytest.mark.parametrize("options", [{}, {"seeds": 3}, {"vectorization": "async"}])
def test_leaving_and_resuming_in_python_gives_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    """The whole of what a run leaves, for one algorithm; tests/conformance holds every algorithm to the same bits."""
    settings = small(**options)
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **settings) as run:
        rows = list(run)
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **settings) as run:
        for _ in range(len(rows) * 2 // 3):
            run.iterate()
    with Run.resume(tmp_path / "left") as run:
        assert 0 < run.step < settings["total_steps"]
        list(run)
    assert differences(tmp_path / "alone", tmp_path / "left") == []


class Episodes(gym.Env[Any, Any]):
    """Episodes of a fixed length, which is that of the environment's place in the batch."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return np.array([self.left], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.array([self.left], np.float32), float(action), self.left == 0, False, {}


def test_rows_of_seeds_that_run_at_different_speeds_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    """Restart rows do not count as steps, so the members of a population drift apart by more than an iteration."""
    options = small(seeds=2, num_envs=2, total_steps=600, checkpoint_every=200, rollout_steps=8, eval_episodes=0)

    def make_factory() -> Any:
        lengths = itertools.cycle([2, 2, 50, 50])
        return lambda: Episodes(next(lengths))

    with Run("ppo", make_factory(), out=tmp_path / "alone", **options) as run:
        list(run)
    with Run("ppo", make_factory(), out=tmp_path / "left", **options) as run:
        while run.step < 590:
            run.iterate()
        assert run.training.steps[1] - run.training.steps[0] > 100, (
            "the members have to drift apart for this test to mean anything"
        )
    with Run.resume(tmp_path / "left", env=make_factory()) as run:
        list(run)
    assert timeless_rows(tmp_path / "left") == timeless_rows(tmp_path / "alone")
    assert differences(tmp_path / "alone", tmp_path / "left") == []


def test_killed_before_the_first_checkpoint_it_starts_over(tmp_path: Path) -> None:
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **small()) as run:
        list(run)
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **small()) as run:
        run.iterate()
    notes: list[str] = []
    with Run.resume(tmp_path / "left", note=notes.append) as run:
        list(run)
    assert any("starting from the beginning" in note for note in notes)
    assert differences(tmp_path / "alone", tmp_path / "left") == []


def test_a_run_that_began_from_an_agent_resumes_from_that_agent(tmp_path: Path) -> None:
    agent = steepest.train("ppo", "CartPole-v1", **small())
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", agent=agent, **small()) as run:
        list(run)
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", agent=agent, **small()) as run:
        run.iterate()  # and left before its first scheduled checkpoint
    with Run.resume(tmp_path / "left") as run:
        list(run)
    assert differences(tmp_path / "alone", tmp_path / "left") == []


def test_a_torn_last_row_is_written_again(tmp_path: Path) -> None:
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **small()) as run:
        list(run)
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **small()) as run:
        for _ in range(6):
            run.iterate()
    with (tmp_path / "left" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "se')
    with Run.resume(tmp_path / "left") as run:
        list(run)
    assert differences(tmp_path / "alone", tmp_path / "left") == []


EDITS: dict[str, tuple[tuple[str, ...], Any]] = {
    "learning rate": (("config", "learning_rate"), 0.5),
    "discount": (("config", "gamma"), 0.5),
    "activation": (("config", "activation"), "relu"),
    "a setting that is gone": (("config", "epochs"), None),
    "environments": (("run", "num_envs"), 3),
    "seed": (("run", "seed"), 77),
    "checkpoints": (("run", "checkpoint_every"), 123),
    "environment": (("env",), "Acrobot-v1"),
    "environment options": (("env_kwargs",), {"render_mode": None}),
    "evaluations": (("run", "eval_every"), 7),
    "infos": (("run", "info_keys"), ["success"]),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_config_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What trains on is never silently another run than the one that began; put back, it resumes to the same bits."""
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **small()) as run:
        list(run)
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **small()) as run:
        for _ in range(6):
            run.iterate()
    file = tmp_path / "left" / "config.json"
    whole = file.read_text()
    (*path, last), value = EDITS[name]
    edited = inner = json.loads(whole)
    for key in path:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        assert inner[last] != value
        inner[last] = value
    file.write_text(json.dumps(edited))
    assert main(["train", "--resume", str(tmp_path / "left")]) in (1, 2)
    said = capsys.readouterr().err
    assert "config.json is not what" in said
    assert last in said
    file.write_text(whole)
    with Run.resume(tmp_path / "left") as run:
        list(run)
    assert differences(tmp_path / "alone", tmp_path / "left") == []


def test_a_damaged_summary_is_written_again(tmp_path: Path) -> None:
    """It is output: what it says is known from the checkpoint."""
    out = tmp_path / "run"
    steepest.train("ppo", "CartPole-v1", out=out, **small())
    whole = json.loads((out / "summary.json").read_text())
    for text in ("{", "[]", "", "null", '{"steps": 3}'):
        (out / "summary.json").write_text(text)
        steepest.resume(out)
        found = json.loads((out / "summary.json").read_text())
        timed = {"wall_seconds", "steps_per_second"}
        assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in whole.items() if k not in timed}
