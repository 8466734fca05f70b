"""Numbers that environments give in their infos, in the rows of a run and in its evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import steepest
from steepest import Run, UsageError
from steepest.environments import EnvFailure, make_env
from steepest.runs.store.metrics import read_metrics

SMALL: dict[str, Any] = {
    "total_steps": 120, "num_envs": 2, "rollout_steps": 15, "minibatches": 1, "hidden_sizes": (8,), "eval_every": 60,
    "eval_episodes": 4, "tensorboard": False, "vectorization": "sync", "checkpoint_every": 0, "sequence_length": 5,
}  # fmt: skip
LENGTH = 5


class Informs(gym.Env[Any, Any]):
    """Episodes of five steps; ``speed`` is the step, ``success`` is given at the end: 1 in every second episode.

    Other infos are nobody's business, and of all kinds.
    """

    def __init__(self, **more: Any) -> None:
        self.observation_space = spaces.Box(-1.0, 9.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.episode, self.steps, self.more = -1, 0, more

    def look(self) -> Any:
        return np.array([self.episode % 2, self.steps], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps = (0 if seed is not None else self.episode + 1), 0
        return self.look(), {"speed": 99.0, "ragged": list(range(self.episode))}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == LENGTH
        info: dict[str, Any] = {"speed": self.steps, "ragged": np.zeros(self.steps), "text": "a"}
        if ended:
            info["success"] = np.bool_(self.episode % 2 == 1)
        return self.look(), 1.0, ended, False, {**info, **self.more}


def of_each(vectorization: str) -> Any:
    """Environments that give the same, made in every way."""
    modes = {"next": AutoresetMode.NEXT_STEP, "same": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
    if vectorization in modes:
        return SyncVectorEnv([Informs] * 2, autoreset_mode=modes[vectorization]), {}
    if vectorization == "ready processes":
        return AsyncVectorEnv([Informs] * 2), {}
    return Informs, {"vectorization": vectorization}


@pytest.mark.parametrize("vectorization", ["sync", "async", "next", "same", "disabled", "ready processes"])
def test_every_step_gives_the_numbers_that_are_named(vectorization: str) -> None:
    env, options = of_each(vectorization)
    batch = make_env(env, 2, info_keys=("success", "speed", "absent"), **options)
    batch.reset(0)
    rows = [batch.step(np.zeros(2, np.int64)) for _ in range(2 * LENGTH + 1)]
    batch.close()
    nan = math.nan
    speed = [1, 2, 3, 4, 5, nan, 1, 2, 3, 4, 5]
    success = [nan] * 4 + [0] + [nan] * 5 + [1]
    for i in range(2):
        np.testing.assert_array_equal([row.infos["speed"][i] for row in rows], speed)
        np.testing.assert_array_equal([row.infos["success"][i] for row in rows], success)
        assert all(np.isnan(row.infos["absent"][i]) for row in rows)


def test_whole_numbers_of_one_environment_do_not_round_those_of_another() -> None:
    """Gymnasium takes an array's type from whoever comes first."""
    made: list[int] = []

    def one() -> Informs:
        made.append(1)
        return Informs(part=1 if len(made) == 1 else 0.75)

    batch = make_env(one, 2, vectorization="sync", info_keys=("part",))
    batch.reset(None)
    assert batch.step(np.zeros(2, np.int64)).infos["part"].tolist() == [1.0, 0.75]
    batch.close()


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_rows_and_evaluations_have_them(algorithm: str, members: int, tmp_path: Path) -> None:
    options = {k: v for k, v in SMALL.items() if algorithm == "ppo" or k not in ("rollout_steps", "minibatches")}
    options.pop("sequence_length")
    if algorithm == "dqn":
        options |= {"steps_per_iteration": 30, "learning_starts": 30, "batch_size": 8}
    with Run(algorithm, Informs, out=tmp_path / "run", info_keys=("success", "speed"), seeds=members, **options) as run:
        list(run)
    rows = read_metrics(tmp_path / "run")
    assert {row["seed"] for row in rows} == set(range(members))
    for row in rows:
        # 15 rows of each environment: five steps and one restart, again and again.
        assert 2.5 <= row["info/speed_mean"] <= 3.5
        assert row["info/speed_last"] == LENGTH
        each = row["train/episodes"] // 2  # of both environments, in the same steps
        assert row["info/success_last"] == pytest.approx(each // 2 / each)
        assert 0.0 <= row["info/success_mean"] <= 1.0  # of the episodes of this iteration
    evaluated = [row for row in rows if "eval/episodes" in row]
    assert len(evaluated) == 2 * members
    for row in evaluated:
        assert row["eval/info/speed_mean"] == 3.0
        assert row["eval/info/speed_last"] == LENGTH
        # Four environments play one episode each, the first, which does not succeed.
        assert row["eval/info/success_last"] == 0.0
    assert run.training.summary(1.0, 1)["evaluation"][0]["infos"]["speed_mean"] == 3.0


def test_a_run_resumes_with_its_windows(tmp_path: Path) -> None:
    options = {**SMALL, "checkpoint_every": 30, "info_keys": ("success",), "eval_episodes": 0}
    with Run("ppo", Informs, out=tmp_path / "whole", **options) as run:
        whole = [row["info/success_last"] for row in run]
    with Run("ppo", Informs, out=tmp_path / "cut", **options) as run:
        first = [run.iterate()["info/success_last"] for _ in range(2)]
    with Run.resume(tmp_path / "cut", env=Informs) as run:
        assert run.settings.info_keys == ("success",)
        rest = [row["info/success_last"] for row in run]
    assert (first + rest)[-len(rest) :] == whole[-len(rest) :]


def test_without_names_nothing_changes() -> None:
    def rows(**options: Any) -> list[dict[str, Any]]:
        with Run("ppo", Informs, **{**SMALL, **options}) as run:
            return list(run)

    plain, named = rows(), rows(info_keys=["speed"])
    for one, other in zip(plain, named, strict=True):
        assert not any("info/" in key for key in one)
        kept = {k: v for k, v in other.items() if "info/" not in k}
        timeless = [{k: v for k, v in row.items() if "second" not in k} for row in (one, kept)]
        assert timeless[0] == timeless[1]


def test_a_name_that_nobody_gives_is_said_once() -> None:
    notes: list[str] = []
    with Run("ppo", Informs, note=notes.append, info_keys=("succes", "speed"), **SMALL) as run:
        list(run)
    said = [text for text in notes if "info_keys" in text]
    assert said == ["info_keys: no step has given info['succes'] so far"]


@pytest.mark.parametrize("value", ["yes", None, np.zeros(2), [1.0], {"a": 1.0}], ids=repr)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_is_no_number_is_said(value: Any, vectorization: Any) -> None:
    batch = make_env(lambda: Informs(speed=value), 2, vectorization=vectorization, info_keys=("speed",))
    batch.reset(0)
    with pytest.raises(EnvFailure, match=r"gave info\['speed'\] as .*expected one number, as info_keys has it"):
        batch.step(np.zeros(2, np.int64))
    batch.close()
    ready = SyncVectorEnv([lambda: Informs(speed=value)])
    batch = make_env(ready, 1, info_keys=("speed",))
    batch.reset(0)
    with pytest.raises(EnvFailure, match=r"gave info\['speed'\] as"):
        batch.step(np.zeros(1, np.int64))


def test_names_come_in_a_list() -> None:
    with pytest.raises(UsageError, match=r"info_keys is 'success'; expected a list, such as \['success'\]"):
        steepest.train("ppo", Informs, info_keys="success", total_steps=10)


def test_mujoco_s_parts_of_the_reward() -> None:
    pytest.importorskip("mujoco")
    with Run("ppo", "HalfCheetah-v5", info_keys=("reward_forward", "reward_ctrl"), **SMALL) as run:
        row = run.iterate()
    assert row["info/reward_ctrl_mean"] < 0.0
    assert math.isfinite(row["info/reward_forward_mean"])
