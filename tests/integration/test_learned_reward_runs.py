"""Runs whose reward comes from labels: live and from a finished project, resumed, and refused where they cannot be."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers_runs import differences, steepest_command, timeless_rows

import steepest
from steepest import Run, UsageError
from steepest.preferences.clips import RewardConfig
from steepest.preferences.learned import Answer, LiveLabels, Segment

OPTIONS: dict[str, Any] = {
    "num_envs": 8,
    "rollout_steps": 64,
    "minibatches": 4,
    "epochs": 8,
    "gamma": 0.0,
    "learning_rate": 3e-3,
    "hidden_sizes": (16,),
    "eval_episodes": 10,
    "tensorboard": False,
    "threads": 1,
}
REWARD = RewardConfig(hidden_sizes=(32,), first_steps=100, steps=60)


class Follow(gym.Env):
    """Ten steps of doing with the action what a random number says; pays less the further off it is."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.show(), {}

    def show(self) -> np.ndarray:
        self.target = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.target

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        paid = -float(abs(action[0] - self.target[0]))
        self.steps += 1
        return self.show(), paid, False, self.steps == 10, {}


def follow(**options: Any) -> gym.Env:
    return Follow(**options)


def labeller(scale: float = 4.0) -> Any:
    """Bradley-Terry on the environment's own reward of the clips."""

    def answer(pairs: Sequence[tuple[Segment, Segment]], asked: int) -> list[Answer]:
        g = torch.Generator().manual_seed(asked)
        margin = torch.tensor([scale * float(a.rewards.sum() - b.rewards.sum()) for a, b in pairs])
        first = torch.rand(len(pairs), generator=g) < torch.sigmoid(margin)
        return ["first" if x else "second" for x in first.tolist()]

    return answer


def live(scale: float = 4.0, **options: Any) -> LiveLabels:
    return LiveLabels(labeller=labeller(scale), **{"labels": 200, "clip_steps": 3, "reward": REWARD, **options})


def test_control_from_labels_alone() -> None:
    """200 labels of three steps teach what the reward would have; exchanged labels teach the opposite."""

    def trained(scale: float) -> float:
        with Run("ppo", follow, reward=live(scale), total_steps=6144, **OPTIONS) as run:
            rows = list(run)
            assert rows[-1]["health/reward_labels"] >= 180
            assert 0.5 < rows[-1]["health/reward_accuracy"] <= 1.0  # of the labeller's own answers, in both cases
            # Returns are the environment's own: never above 0.
            assert max(row["train/return_mean"] for row in rows if "train/return_mean" in row) <= 0.0
            return run.evaluations[0].mean

    assert trained(20.0) > -5.0  # untrained: -7.8
    assert trained(-20.0) < -9.0


@pytest.mark.parametrize("moment", [1, 5])
def test_a_run_resumes_to_the_same_bits(moment: int, tmp_path: Path) -> None:
    """Stopped anywhere, with labels still to be asked for."""
    options = {**OPTIONS, "total_steps": 512 * 8, "checkpoint_every": 512 * 2, "eval_every": 512 * 2}
    with Run("ppo", follow, reward=live(), out=tmp_path / "alone", **options) as run:
        list(run)
    run = Run("ppo", follow, reward=live(), out=tmp_path / "stopped", **options)
    with run:
        for _ in range(moment):
            run.iterate()
    if moment < 2:  # before the first checkpoint
        assert run.store is not None
        assert run.store.latest() is None
    with Run.resume(tmp_path / "stopped", env=follow, reward=live()) as resumed:
        list(resumed)
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    assert any("health/reward_labels" in row for row in timeless_rows(tmp_path / "alone"))


def test_what_was_given_in_python_is_given_again(tmp_path: Path) -> None:
    options = {**OPTIONS, "total_steps": 512}
    with Run("ppo", follow, reward=live(), out=tmp_path / "run", **options) as run:
        run.iterate()
    with pytest.raises(UsageError, match="pass them again: reward="):
        Run.resume(tmp_path / "run", env=follow)
    with Run("ppo", follow, out=tmp_path / "plain", **options) as run:
        run.iterate()
    with pytest.raises(UsageError, match="learns from its environment's: leave it out"):
        Run.resume(tmp_path / "plain", env=follow, reward=live())


# From a finished project


class Clip(NamedTuple):
    id: int
    env: str
    source: str
    episode: int
    observations: Any
    actions: Any


class Item(NamedTuple):
    id: int
    kind: str


class Judgement(NamedTuple):
    item: int
    labeller: str
    kind: str
    ranking: tuple[int, ...]
    shown: tuple[int, ...]
    repeat: bool


class Project:
    """Clips of Pendulum-v1 under random torques, two of each of twenty episodes, and answers of someone who knows."""

    def __init__(self, judged: int = 150, env: str = "Pendulum-v1") -> None:
        self.made: list[Clip] = []
        worth: list[float] = []
        with gym.make("Pendulum-v1") as pendulum:
            pendulum.action_space.seed(0)
            for i in range(40):
                obs, _ = pendulum.reset(seed=i)
                seen, taken, paid = [obs], [], 0.0
                for _ in range(8):
                    taken.append(pendulum.action_space.sample())
                    obs, reward, *_ = pendulum.step(taken[-1])
                    seen.append(obs)
                    paid += float(reward)
                self.made.append(Clip(i + 1, env, "random", i // 2, np.array(seen), np.array(taken)))
                worth.append(paid)
        g = np.random.default_rng(0)
        self.said = [Judgement(999, "a", "prefer", (500, 501), (500, 501), False)]  # of two responses, not of clips
        for item in range(judged):
            a, b = (int(x) for x in g.choice(40, 2, replace=False))
            best = (a + 1, b + 1) if worth[a] > worth[b] else (b + 1, a + 1)
            self.said.append(Judgement(item, "a", "prefer", best, best, False))
        self.said.append(Judgement(0, "a", "skip", (), (1, 2), True))

    def clips(self) -> list[Clip]:
        return self.made

    def items(self) -> list[Item]:
        return [Item(999, "text"), *(Item(i, "clip") for i in range(150))]

    def judgements(self) -> list[Judgement]:
        return self.said


SHORT: dict[str, Any] = {
    **{k: v for k, v in OPTIONS.items() if k not in ("gamma", "epochs")},
    "epochs": 2,
    "total_steps": 1024,
    "checkpoint_every": 512,
    "eval_episodes": 0,
}


def test_a_finished_project_is_learned_from(tmp_path: Path) -> None:
    """The ensemble is learned once, before training, told of, kept in checkpoints, and resumed without the project."""
    notes: list[str] = []
    with Run("ppo", "Pendulum-v1", reward=Project(), out=tmp_path / "alone", note=notes.append, **SHORT) as run:
        reward = run.training.loop.reward  # pyright: ignore[reportAttributeAccessIssue]
        project = Project()
        worse, better = (
            float(reward.rewards.scores(project.made[i - 1].observations, project.made[i - 1].actions).sum())
            for i in (project.said[1].ranking[1], project.said[1].ranking[0])
        )
        assert better > worse
        list(run)
    assert any(
        "learned from 150 judgements of 40 clips" in text and "kept aside are foretold" in text for text in notes
    )
    with Run("ppo", "Pendulum-v1", reward=Project(), out=tmp_path / "stopped", **SHORT) as run:
        run.iterate()
    empty = Project(judged=0)  # what a resumed run is given is not read again
    with Run.resume(tmp_path / "stopped", reward=empty) as resumed:
        list(resumed)
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    agent = steepest.load(tmp_path / "alone")
    assert agent.act(np.zeros(3, np.float32))[0].shape == (1,)


def test_several_seeds_learn_from_one_project() -> None:
    with Run("ppo", "Pendulum-v1", reward=Project(), seeds=2, **{**SHORT, "total_steps": 256}) as run:
        row = run.iterate()
    assert np.isfinite(row["health/policy_loss"])


@pytest.mark.parametrize("algorithm", ["actor_critic", "trpo", "reinforce"])
def test_every_on_policy_algorithm_learns_from_labels(algorithm: str) -> None:
    options = {k: v for k, v in OPTIONS.items() if k not in ("minibatches", "epochs", "learning_rate")}
    with Run(algorithm, follow, reward=live(), total_steps=600, **options) as run:
        rows = list(run)
    assert rows[-1]["health/reward_labels"] > 0


def test_what_cannot_learn_from_labels_is_refused(tmp_path: Path) -> None:
    for algorithm, options, said in (
        ("sac", {"reward": live()}, "sac learns from a replay buffer"),
        ("ppo", {"reward": live(), "seeds": 2}, "seeds is 2"),
        ("ppo", {"reward": Project(judged=0)}, "nothing was said of the 40 clips"),
        (
            "ppo",
            {"reward": Project(env="Hopper-v5")},
            "clips are of Hopper-v5, but the agent is to learn in Pendulum-v1",
        ),
        ("ppo", {"reward": live(), "data": "log.npz"}, "reward and data are both given"),
    ):
        with pytest.raises(UsageError, match=said):
            Run(algorithm, "Pendulum-v1", out=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_the_command_learns_from_the_file_of_a_project(tmp_path: Path) -> None:
    """Clips of a discrete space, judged as the page judges them; resumed where the file is gone."""
    store = pytest.importorskip("steepest.preferences.store")
    labelling = pytest.importorskip("steepest.preferences.labelling")
    records = pytest.importorskip("steepest.preferences.records")
    path, draw = tmp_path / "carts.project", np.random.default_rng(0)
    with store.Project.create(path) as project:
        leaning = [draw.normal(size=(6, 4)).astype(np.float32) for _ in range(30)]
        clips = []
        for i, seen in enumerate(leaning):
            clip = records.Clip("CartPole-v1", "random", i // 2, seen, draw.integers(0, 2, 5), 50.0, 5 * i)
            clips.append(project.add_clip(clip, b""))
        worth = {clip: -float(np.abs(seen[:-1, 2]).sum()) for clip, seen in zip(clips, leaning, strict=True)}
        project.add_items([draw.choice(clips, 2, replace=False).tolist() for _ in range(60)], kind="clip")
        for turn in range(40):
            asked = labelling.next_assignment(project, "ann", 1e9 + turn, random.Random(turn))
            best = tuple(sorted(asked.shown, key=lambda clip: -worth[clip]))
            labelling.judge(
                project,
                "ann",
                uuid=str(uuid.UUID(int=turn, version=4)),
                assignment=asked.id,
                kind="prefer",
                ranking=best,
                began=1e9 + turn,
                ended=1e9 + turn,
                now=1e9 + turn,
            )
    run = tmp_path / "run"
    options = ["--total-steps", 1024, "--num-envs", 8, "--eval-episodes", 0, "--checkpoint-every", 512]
    done = steepest_command("train", "ppo", "CartPole-v1", "--reward", path, *options, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "judgements of 30 clips" in done.stderr
    assert json.loads((run / "config.json").read_text())["reward"] == str(path)
    path.unlink()
    done = steepest_command("train", "--resume", run, "--total-steps", 2048)
    assert done.returncode == 0, done.stderr
    missing = steepest_command("train", "ppo", "CartPole-v1", "--reward", path, "--out", tmp_path / "none")
    assert missing.returncode == 2
    assert str(path) in missing.stderr
    assert not (tmp_path / "none").exists()
