"""From offline to online: agents that start from another run's, and play with a share of every minibatch from data."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import differences, start_command, steepest_command, wait_for_step
from test_offline_runs import options_of, played, state_of

import steepest
from steepest import Run, UsageError
from steepest.runs.loops.off_policy import joined
from tiny_problems import Aim, Bandit

PLAYS: dict[str, Any] = {
    "num_envs": 2, "learning_starts": 64, "update_ratio": 0.5, "buffer_size": 4096, "total_steps": 1200,
}  # fmt: skip


def test_minibatches_are_of_both() -> None:
    """The buffer's transitions first; what one side does not know counts for nothing."""
    replay = {"reward": torch.zeros(1, 2, 3), "action": torch.zeros(1, 2, 3, 2), "weight": torch.full((1, 2, 3), 0.5)}
    data = {"reward": torch.ones(1, 2, 4), "action": torch.ones(1, 2, 4, 2), "return_to_go": torch.full((1, 2, 4), 7.0)}
    data |= {"next_action": torch.ones(1, 2, 4, 2), "next_known": torch.ones(1, 2, 4)}
    found = joined(replay, data)
    assert {k: tuple(x.shape) for k, x in found.items()} == {
        "reward": (1, 2, 7), "action": (1, 2, 7, 2), "weight": (1, 2, 7), "return_to_go": (1, 2, 7),
        "next_action": (1, 2, 7, 2), "next_known": (1, 2, 7),
    }  # fmt: skip
    assert found["reward"][0, 0].tolist() == [0.0] * 3 + [1.0] * 4
    assert found["weight"][0, 1].tolist() == [0.5] * 3 + [1.0] * 4
    assert found["return_to_go"][0, 0].tolist() == [-math.inf] * 3 + [7.0] * 4
    assert found["next_known"][0, 0].tolist() == [0.0] * 3 + [1.0] * 4
    with pytest.raises(UsageError, match="do not agree: one has action_mask"):
        joined(replay, {**data, "action_mask": torch.ones(1, 2, 4, 2)})


@pytest.mark.parametrize("algorithm", ["sac", "iql", "awac", "discrete_cql", "dqn", "cql", "rebrac"])
def test_learns_from_data_and_play(algorithm: str) -> None:
    """Half of every minibatch from each."""
    problem = Aim if algorithm in ("cql", "rebrac") else Bandit
    more = {"calibrated": True} if algorithm == "cql" else {}
    with Run(
        algorithm, problem, data=played(problem, 200), data_share=0.5, **options_of(algorithm, **PLAYS, **more)
    ) as run:
        rows = list(run)
        assert abs(problem.score(run.agent) - problem.best) < 0.1
    assert rows[-1]["train/episodes"] > 100


def test_the_share_decides_what_is_learned() -> None:
    """Data that pays the opposite: nearly all of every minibatch, or none of it."""
    wrong = played(Bandit, 400, sign=-1.0)
    scores = []
    for share in (0.95, 0.0):
        with Run("dqn", Bandit, data=wrong, data_share=share, **options_of("dqn", **PLAYS)) as run:
            list(run)
            scores.append(Bandit.score(run.agent))
    assert scores[0] < 0.2
    assert scores[1] > 0.8


def test_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data = played(Bandit, 100)
    options = options_of("iql", **PLAYS, checkpoint_every=300, tensorboard=False, prioritized=True)
    with Run("iql", Bandit, data=data, data_share=0.25, **options, out=tmp_path / "whole") as whole:
        list(whole)
        expected = state_of(whole)
    with Run("iql", Bandit, data=data, data_share=0.25, **options, out=tmp_path / "run") as left:
        for row in left:
            if row["step"] >= 700:
                break
    with Run.resume(tmp_path / "run", env=Bandit, data=data) as again:
        list(again)
        found = state_of(again)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_an_agent_starts_from_another_and_plays_its_own_policy_first() -> None:
    """Trained on data, then let loose: its first steps are its own, not uniform."""
    options = options_of("iql")
    agent = steepest.train("iql", Bandit, data=played(Bandit, 100), **options)
    returns = []
    for warm_up in ("policy", "uniform"):
        settings = {**options, **PLAYS, "learning_starts": 400, "total_steps": 400, "warm_up": warm_up}
        with Run("iql", Bandit, agent=agent, **settings) as run:
            rows = list(run)
        returns.append(rows[0]["train/return_mean"])
    assert returns[0] > 0.9
    assert abs(returns[1] - 0.5) < 0.2


def test_soft_actor_critic_starts_from_a_conservative_agent() -> None:
    """Their networks are the same: it acts alike at once, and keeps the critics."""
    agent = steepest.train("cql", Aim, data=played(Aim, 200), **options_of("cql", total_steps=300))
    with Run(
        "sac", Aim, agent=agent, **options_of("sac", **{**PLAYS, "total_steps": 64, "learning_starts": 64})
    ) as run:
        assert Aim.score(run.agent) == Aim.score(agent)
        assert torch.equal(run.agent.state["critic/params"], agent.state["critic/params"])
        list(run)


def test_a_minibatch_is_never_of_data_alone() -> None:
    """However near the share is to 1 and however small the minibatch."""
    options = options_of("dqn", **{**PLAYS, "batch_size": 8, "total_steps": 200})
    with Run("dqn", Bandit, data=played(Bandit, 50), data_share=0.99, **options) as run:
        assert run.training.loop.from_data == 7
        list(run)


def test_what_does_not_fit_together_is_refused() -> None:
    data = played(Bandit, 20)
    for algorithm, given, words in (
        ("bc", {"data": data, "data_share": 0.5}, "bc learns from data alone"),
        ("dqn", {"data_share": 0.5}, "data_share is 0.5, but there is no data"),
        ("off_pac", {"data": data, "data_share": 0.5}, "off_pac has no replay buffer to mix data with"),
        ("dqn", {"data": data, "data_share": 1.0}, r"data_share is 1.0; expected .*in \[0, 1\)"),
    ):
        with pytest.raises(UsageError, match=words):
            Run(algorithm, Bandit, **given)


def test_the_command_goes_from_data_to_play_through_a_kill(tmp_path: Path) -> None:
    data, run = tmp_path / "data.npz", tmp_path / "offline"
    steepest.collect("random", "Pendulum-v1", steps=1000, out=data)
    small = ["--hidden-sizes", 16, "--compile", "off", "--eval-episodes", 1, "--no-tensorboard", "--batch-size", 32]
    small += ["--steps-per-iteration", 100]
    assert steepest_command("train", "cql", data, "--total-steps", 200, *small, "--out", run).returncode == 0
    arguments = ["train", "cql", "Pendulum-v1", "--from", run, "--data", data, "--data-share", 0.5, *small]
    arguments += ["--total-steps", 3000, "--checkpoint-every", 800, "--warm-up", "policy", "--learning-starts", 200]
    done = steepest_command(*arguments, "--out", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = start_command(*arguments, "--out", killed)
    wait_for_step(killed, 1500, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = steepest_command("train", "--resume", killed)
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "alone", killed) == []


def test_nothing_is_shared_between_a_dataset_and_a_run() -> None:
    """The dataset that was given stays as it was."""
    data = played(Aim, 50)
    before = {name: np.array(getattr(data, name)) for name in ("obs", "action", "reward", "valid")}
    with Run("cql", Aim, data=data, **options_of("cql", total_steps=100)) as run:
        list(run)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(data, name), array)
