"""Runs with a replay buffer: their gradient steps, their files, and that they go on with the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers_runs import differences, start_command, steepest_command, stray_files, wait_for_step

import steepest
from steepest import Run, UsageError

SMALL: dict[str, Any] = {
    "hidden_sizes": (16,),
    "batch_size": 16,
    "learning_starts": 200,
    "steps_per_iteration": 50,
    "compile": "off",
    "eval_episodes": 0,
    "num_envs": 1,
    "tensorboard": False,
}

KILLED: dict[str, list[Any]] = {
    # The buffer is overwritten twice: what the newest checkpoint needs has to be left alone.
    "sac": ["sac", "Pendulum-v1", "--buffer-size", 400, "--prioritized", "--n-steps", 3],
    "td3": ["td3", "Pendulum-v1", "--buffer-size", 600, "--num-envs", 3, "--noise-correlation", 0.8, "--normalize-obs"],
    "asynchronous": ["sac", "Pendulum-v1", "--buffer-size", 400, "--num-envs", 2, "--asynchronous"],
}


def test_checkpoints_come_often_enough_for_the_replay_buffer() -> None:
    """What is written between two is kept beside its rows: by default a tenth of them at most, but whole episodes."""
    for size, expected in ((100_000, 10_000), (50_000, 5_000), (1_000_000, 50_000), (1_000, 800)):
        with Run("sac", "Pendulum-v1", **SMALL, total_steps=500_000, buffer_size=size) as run:
            assert run.settings.checkpoint_every == expected


@pytest.mark.parametrize("name", KILLED)
def test_killed_runs_resume_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Killed at any moment, twice: parameters, figures, evaluations and what is left in the buffer."""
    total = 1_600
    options = [*KILLED[name], "--total-steps", total, "--checkpoint-every", 200, "--eval-episodes", 2, "--seed", 3]
    options += ["--hidden-sizes", 16, "--batch-size", 16, "--learning-starts", 200, "--steps-per-iteration", 50]
    assert steepest_command("train", *options, "--out", tmp_path / "alone").returncode == 0
    draw = random.Random(f"{name} {os.getpid()} {time.time_ns()}")  # any moment at all must do
    killed = tmp_path / "killed"
    arguments = ["train", *options, "--out", killed]
    moments = sorted(draw.randrange(total // 5, total - total // 5) for _ in range(2))
    for moment in moments:
        process = start_command(*arguments)
        wait_for_step(killed, moment, process)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        arguments = ["train", "--resume", killed]
    done = steepest_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-" in done.stderr
    assert differences(tmp_path / "alone", killed) == [], f"killed at steps {moments}"
    assert stray_files(killed) == []
    assert list((killed / "replay").iterdir())


@pytest.mark.parametrize(
    ("algorithm", "options", "per_row"),
    [
        ("sac", {"num_envs": 2}, 2.0),
        ("sac", {"num_envs": 2, "train_every": 5, "updates_per_call": 4, "update_ratio": 0.7}, 1.4),
        ("td3", {"num_envs": 3}, 3.0),
        ("ddpg", {"update_ratio": 0.25}, 0.25),
    ],
)
def test_gradient_steps_keep_their_ratio(algorithm: str, options: dict[str, Any], per_row: float) -> None:
    """Every row after the warm-up makes gradient steps due; less than a call of them is still due at the end."""
    with Run(algorithm, "Pendulum-v1", total_steps=1_000, checkpoint_every=0, **{**SMALL, **options}) as run:
        list(run)
        loop: Any = run.training.loop
        rows, config = loop.buffer.written, run.agent.config
        taken = int(run.agent.state["critic/adam_count"][0])
    before = -(-config.learning_starts // run.agent.num_envs // config.train_every) * config.train_every
    due = (rows - before) * per_row - taken
    assert due == pytest.approx(loop.due)
    assert 0 <= due < config.updates_per_call


@pytest.mark.parametrize(
    "options",
    [{"num_envs": 2}, {"num_envs": 2, "train_every": 3, "updates_per_call": 2, "vectorization": "sync"}],
    ids=["a step at a time", "three steps at a time"],
)
def test_asynchronous_learning_lags_by_what_is_played(options: dict[str, Any]) -> None:
    """By exactly the gradient steps of one cycle; and an agent in environments in this process gets the same bits."""
    agents = []
    for vectorization in (options.get("vectorization", "async"), "sync"):
        settings = {**SMALL, **options, "asynchronous": True, "vectorization": vectorization}
        with Run("sac", "Pendulum-v1", total_steps=600, checkpoint_every=300, **settings) as run:
            while run.step < 500:
                run.iterate()
            loop: Any = run.training.loop
            config = run.agent.config
            cycle, per_call = run.agent.num_envs * config.train_every, config.updates_per_call
            before = -(-config.learning_starts // cycle) * cycle

            def due(run: Run = run, before: int = before) -> float:
                # The restart at step 300 adds a row that nothing was decided in and no gradient step is due for.
                buffer: Any = cast(Any, run.training.loop).buffer
                return (buffer.written - 1) * run.agent.num_envs - before - int(run.agent.state["critic/adam_count"][0])

            assert due() == loop.due
            assert cycle <= due() < cycle + per_call
            list(run)
            assert due() == loop.due
            assert 0 <= due() < per_call, "what was still due is done at the end"
        agents.append(run.agent.tensors())
    assert [k for k in agents[0] if not torch.equal(agents[0][k], agents[1][k])] == []


def test_asynchronous_learning_is_another_order_of_the_same(tmp_path: Path) -> None:
    """Environments are put into processes unless told otherwise; gradient steps come a cycle later, and all of them."""
    settings = {**SMALL, "total_steps": 300, "checkpoint_every": 0}
    agents = []
    for asynchronous in (False, True):
        with Run("sac", "Pendulum-v1", asynchronous=asynchronous, **settings) as run:
            assert run.training.env.backend == ("async" if asynchronous else "sync")
            list(run)
            agents.append(run.agent)
    states = [agent.state for agent in agents]
    assert int(states[0]["critic/adam_count"][0]) == int(states[1]["critic/adam_count"][0])
    assert not torch.equal(states[0]["params"], states[1]["params"])


def test_asynchronous_without_processes_is_said_to_gain_nothing() -> None:
    for vectorization in ("sync", "async"):
        notes: list[str] = []
        settings = {**SMALL, "asynchronous": True, "vectorization": vectorization}
        with Run("sac", "Pendulum-v1", note=notes.append, **settings):
            assert any("nothing is gained" in text for text in notes) == (vectorization == "sync")


def test_resuming_a_finished_run_leaves_its_buffer_alone(tmp_path: Path) -> None:
    with Run("sac", "Pendulum-v1", total_steps=300, out=tmp_path, **SMALL) as run:
        list(run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "replay").iterdir()}
    with Run.resume(tmp_path) as run:
        assert run.done
        list(run)
    assert before
    assert {path.name: path.read_bytes() for path in (tmp_path / "replay").iterdir()} == before


def test_a_delayed_policy_moves_at_its_own_pace() -> None:
    with Run("td3", "Pendulum-v1", total_steps=400, **SMALL) as run:
        list(run)
    state = run.agent.state
    assert int(state["critic/adam_count"][0]) == 2 * int(state["adam_count"][0]) > 100
    assert not torch.equal(state["target/params"], state["critic/params"])
    assert not torch.equal(state["target_policy/params"], state["params"])


def test_with_and_without_files_is_the_same_run(tmp_path: Path) -> None:
    """Restarts at checkpoints, and where the spare rows run out, do not depend on whether anything is written."""
    settings = {**SMALL, "total_steps": 900, "checkpoint_every": 150, "buffer_size": 400}
    agents = []
    for out in (None, tmp_path / "run"):
        with Run("sac", "Pendulum-v1", out=out, **settings) as run:
            list(run)
        agents.append(run.agent.tensors())
    assert [k for k in agents[0] if not torch.equal(agents[0][k], agents[1][k])] == []


def test_an_agent_is_trained_saved_loaded_and_evaluated(tmp_path: Path) -> None:
    settings = {k: v for k, v in SMALL.items() if k != "num_envs"}
    agent = steepest.train("sac", "Pendulum-v1", total_steps=600, out=tmp_path / "run", **settings)
    assert agent.num_envs == 1, "the preset"
    loaded = steepest.load(tmp_path / "run")
    obs = np.zeros(3, np.float32)
    assert np.array_equal(agent.act(obs, deterministic=True)[0], loaded.act(obs, deterministic=True)[0])
    (result,) = steepest.evaluate(tmp_path / "run", episodes=2)
    assert -4_000 < result.mean < 0
    longer = steepest.resume(tmp_path / "run", total_steps=800)
    assert float(longer.state["critic/adam_count"][0]) > float(agent.state["critic/adam_count"][0])


def test_an_algorithm_says_which_actions_it_takes() -> None:
    done = steepest_command("train", "td3", "CartPole-v1")
    assert done.returncode == 2
    assert "td3 takes Box actions; this environment has Discrete actions" in done.stderr
    with pytest.raises(UsageError, match="multiple of policy_delay"):
        Run("td3", "Pendulum-v1", updates_per_call=3)
    with pytest.raises(UsageError, match="at most num_critics"):
        Run("sac", "Pendulum-v1", target_critics=3)


@pytest.mark.parametrize(
    ("total", "options"),
    [
        (100, {}),
        (1_003, {}),
        (997, {"train_every": 7}),
        (301, {"train_every": 4, "asynchronous": True, "vectorization": "sync"}),
        (250, {"normalize_obs": True, "learning_starts": 1_000}),
    ],
)
def test_a_run_ends_at_the_step_that_was_asked_for(total: int, options: dict[str, Any]) -> None:
    """The last cycle is as long as what is left; it learns as the others do."""
    with Run("sac", "Pendulum-v1", **{**SMALL, "total_steps": total, **options}) as run:
        rows = list(run)
    assert run.step == rows[-1]["step"] == total
    buffer = cast(Any, run.training).loop.buffer
    restarts = buffer.written - total
    assert 0 <= restarts <= total // 200 + total // 50 + 1
    learned = max(0, total - 200) if "learning_starts" not in options else 0
    assert abs(int(run.agent.state["adam/step"].max() if "adam/step" in run.agent.state else learned) - learned) <= 8


@pytest.mark.parametrize("num_envs", [2, 4])
def test_several_environments_end_within_a_row(num_envs: int) -> None:
    """Episodes of 200 steps end together, so rows are of all environments or of none."""
    with Run("sac", "Pendulum-v1", **{**SMALL, "num_envs": num_envs, "total_steps": 1_000}) as run:
        list(run)
    assert run.step == 1_000
    with Run("dqn", "CartPole-v1", **{**SMALL, "num_envs": num_envs, "total_steps": 501}) as run:
        list(run)
    assert 501 <= run.step < 501 + num_envs


def test_a_run_that_is_extended_starts_from_its_exact_end(tmp_path: Path) -> None:
    options = {**SMALL, "checkpoint_every": 100}
    steepest.train("sac", "Pendulum-v1", out=tmp_path / "run", **options, total_steps=333)
    with Run.resume(tmp_path / "run", total_steps=777) as run:
        assert run.step == 333
        list(run)
    assert run.step == 777
