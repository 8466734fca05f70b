"""A run on an Atari game: every preprocessing option, and figures that are the game's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import steepest
from steepest import Run, UsageError
from steepest.cli import main
from steepest.environments import AtariOptions
from steepest.runs.options.resolve import resolve_options

pytest.importorskip("ale_py")

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "rollout_steps": 32,
    "minibatches": 1,
    "epochs": 1,
    "hidden_sizes": (8,),
    "eval_episodes": 1,
    "compile": "off",
    "checkpoint_every": 0,
}
GAME: dict[str, Any] = {"sticky": 0.0, "frame_skip": 8, "size": 36, "frame_stack": 2}


def test_options_go_over_the_preset_by_name_or_replace_it_whole() -> None:
    def options(env: Any, **given: Any) -> Any:
        return resolve_options("ppo", env, given)[0].atari

    assert options("ALE/Pong-v5") == AtariOptions(clip_reward=True)
    assert options("ALE/Pong-v5", atari={"sticky": 0, "size": 42}) == AtariOptions(
        clip_reward=True, sticky=0.0, size=42
    )
    assert options("ALE/Pong-v5", atari=AtariOptions(size=42)) == AtariOptions(size=42)
    assert options("CartPole-v1") is None
    assert options(lambda: None) is None
    for given, message in (
        ({"stiky": 0.1}, r"atari has no option 'stiky'; did you mean sticky\?"),
        ({"size": "big"}, "atari.size is 'big'; expected a whole number"),
        ({"sticky": 2.0}, "sticky is 2.0"),
        (7, "atari is 7"),
    ):
        with pytest.raises(UsageError, match=message):
            options("ALE/Pong-v5", atari=given)
    with pytest.raises(UsageError, match="not an Atari game"):
        Run("ppo", "CartPole-v1", atari={"sticky": 0.0})


def test_returns_are_whole_games_and_their_own_score() -> None:
    """MsPacman pays 10 and more at a time, and three lives: neither signs nor lives could add up to this."""
    options = {**GAME, "clip_reward": True, "life_loss_terminates": True}
    with Run("ppo", "ALE/MsPacman-v5", **SMALL, total_steps=100_000, atari=options) as run:
        for _ in range(60):
            rollout_rewards = set(run.training.loop.collector.reward.unique().tolist())
            assert rollout_rewards <= {0.0, 1.0}
            row = run.iterate()
            if row["train/episodes"] >= 2:
                break
        games = list(run.training.recent[0])
    assert len(games) == row["train/episodes"] >= 2
    assert all(score >= 60 and score % 10 == 0 and length > 60 for score, length in games), games
    assert row["train/return_mean"] == sum(score for score, _ in games) / len(games)


def test_evaluation_plays_whole_games_for_their_own_score(tmp_path: Path) -> None:
    options = {**GAME, "clip_reward": True, "life_loss_terminates": True}
    out = tmp_path / "run"
    agent = steepest.train("ppo", "ALE/MsPacman-v5", out=out, **SMALL, total_steps=128, atari=options)
    assert agent.trained_on["atari"]["size"] == 36
    saved = json.loads((out / "summary.json").read_text())["evaluation"][0]
    (found,) = steepest.evaluate(out, episodes=1)
    (elsewhere,) = steepest.evaluate(agent, "MsPacmanNoFrameskip-v4", episodes=1)  # what it sees goes with the agent
    for mean in (saved["mean"], found.mean, elsewhere.mean):
        assert mean >= 60
        assert mean % 10 == 0
    with Run.resume(out, total_steps=256) as run:
        assert run.settings.atari == AtariOptions(**options)


def test_the_command_and_config_files_take_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from steepest.runs import run as module

    taken: list[Any] = []

    def take(*_: Any, **options: Any) -> Any:
        taken.append(options["atari"])
        raise UsageError("enough")

    monkeypatch.setattr(module, "Run", take)
    file = tmp_path / "game.yaml"
    file.write_text("atari:\n  noop-max: 30\n  sticky: 1e-1\n")
    line = ["train", "ppo", "ALE/Pong-v5", "--config", str(file), "--atari.fire-reset", "True", "--atari.sticky", "0.0"]
    assert main.main([*line, "--atari.clip-reward", "False"]) == 2
    assert taken == [AtariOptions(noop_max=30, fire_reset=True, sticky=0.0)]
    assert main.main(["train", "ppo", "CartPole-v1", "--atari.sticky", "0.0"]) == 2
    assert len(taken) == 1
    capsys.readouterr()
    for env, there in (("ALE/Pong-v5", True), ("CartPole-v1", False)):
        assert main.main(["train", "ppo", env, "--help"]) == 0
        text = capsys.readouterr().out
        assert [f"--atari.{name}" in text for name in ("sticky", "noop-max", "full-action-space")] == [there] * 3


def test_a_q_network_learns_from_replayed_stacks_of_frames() -> None:
    """With everything on: dueling streams over convolutions, priorities, three steps; only newest frames are stored."""
    settings = {"num_envs": 1, "hidden_sizes": (8,), "compile": "off", "eval_episodes": 0, "checkpoint_every": 0}
    small = {"learning_starts": 32, "steps_per_iteration": 32, "batch_size": 8, "buffer_size": 200, "total_steps": 96}
    options = {"dueling": True, "prioritized": True, "n_steps": 3, "target_update_every": 5}
    with Run("dqn", "ALE/Pong-v5", **settings, **small, **options, atari={**GAME, "clip_reward": True}) as run:
        before = run.agent.state["params"].clone()
        list(run)
        loop: Any = run.training.loop
        assert loop.buffer.arrays["obs/obs"].shape[2:] == (1, 36, 36)
        assert tuple(run.agent.obs_spec.fields[0].shape) == (2, 36, 36)
    state = run.agent.state
    assert int(state["adam_count"][0]) == (loop.buffer.written - 32) // 4
    assert (state["params"] - before).abs().max() > 1e-5
    assert not state["target/params"].equal(before)
