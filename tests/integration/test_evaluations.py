"""Evaluations beside training: whatever they do, what was trained is saved, and training goes on to its end."""

from __future__ import annotations

import json
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers_runs import differences, start_command, steepest_command

import steepest
from steepest import Run, RunError
from steepest.cli.main import main
from steepest.runs.loops import evaluations
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.metrics import read_metrics
from steepest.runs.view import plots

EVERY = 64
SMALL: dict[str, Any] = {
    "total_steps": 4 * EVERY, "num_envs": 1, "rollout_steps": 16, "minibatches": 1, "hidden_sizes": (8,),
    "eval_every": EVERY, "checkpoint_every": EVERY, "eval_episodes": 3, "tensorboard": False, "vectorization": "sync",
}  # fmt: skip


class Plain(gym.Env[Any, Any]):
    """Ends after eight steps, each worth 1."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.look(), 1.0, self.steps == 8, False, {}


class Endless(Plain):
    """Like ``Plain`` to a policy that explores; an evaluation's environment never ends."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


class Partly(Plain):
    """Every third episode never ends."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        Partly.episodes += 1
        self.number = Partly.episodes
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, ended, _, info = super().step(action)
        return obs, reward, ended and self.number % 3 != 0, False, info


def failing(error: BaseException, at: int = 5) -> Callable[[], Plain]:
    class Failing(Plain):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self.steps == at - 1:
                raise error
            return super().step(action)

    return Failing


def wrong_reward() -> Plain:
    class Wrong(Plain):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, np.array([1.0]), *rest

    return Wrong()


def cannot_be_made() -> Plain:
    raise OSError("no room for another simulator")


def training(run: Run) -> Any:
    return run.training


def same_training(one: Run, other: Run) -> None:
    """The same parameters, whatever their evaluations were."""
    mine, others = one.agent.tensors(), other.agent.tensors()
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        assert value.equal(others[name]), name


def trained(eval_env: Any, out: Path | None = None, **options: Any) -> tuple[Run, list[dict[str, Any]], list[str]]:
    notes: list[str] = []
    with Run("ppo", Plain, eval_env=eval_env, out=out, note=notes.append, **{**SMALL, **options}) as run:
        return run, list(run), notes


def test_an_evaluation_that_does_not_end_costs_nothing_else(tmp_path: Path) -> None:
    run, rows, notes = trained(Endless, tmp_path / "run", eval_episode_steps=50)
    assert run.done
    evaluated = [row for row in rows if "eval/episodes" in row]
    assert [row["step"] for row in evaluated] == [row["step"] for row in rows if row["step"] % EVERY < 16][-4:]
    for row in evaluated:
        assert (row["eval/episodes"], row["eval/unfinished"]) == (0, 3)
        assert "eval/return_mean" not in row
    said = [text for text in notes if "is unfinished: 3 of 3 episodes had not ended after 50 steps" in text]
    assert len(said) == 4
    assert "max_episode_steps" in said[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation"][0]["unfinished"] == 3
    assert summary["evaluation"][0]["mean"] is None
    assert (tmp_path / "run" / "curve.png").is_file()
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    same_training(run, trained(Plain)[0])


def test_by_default_an_episode_is_given_up_in_seconds() -> None:
    """Of an environment that says nothing of its length; one that does is never cut before its own limit."""
    with Run("ppo", Plain, **SMALL) as run:
        assert run.settings.eval_episode_steps == 30_000
    with Run("ppo", "CartPole-v1", **{**SMALL, "max_episode_steps": 70_000}) as run:
        assert run.settings.eval_episode_steps == 70_000


def test_an_unfinished_evaluation_is_no_best_one_and_no_target(tmp_path: Path) -> None:
    """Two episodes of 8 and one that never ends are not a mean of 8."""
    Partly.episodes = 0
    options = {"eval_episode_steps": 50, "stop_at_return": 8.0, "checkpoint_every": 0}
    run, rows, _ = trained(Partly, tmp_path / "run", **options)
    assert not training(run).stopped
    assert run.done
    first = next(row for row in rows if "eval/episodes" in row)
    assert (first["eval/episodes"], first["eval/unfinished"], first["eval/return_mean"]) == (2, 1, 8.0)
    assert not (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
    stopped, _, _ = trained(Plain, **options)
    assert stopped.step < 2 * EVERY


FAILURES: dict[str, tuple[Any, str]] = {
    "a step": (failing(ZeroDivisionError("the wheel came off")), "raised ZeroDivisionError in step(): the wheel"),
    "the program's end": (failing(SystemExit(0)), "ended the program in step(): sys.exit(0)"),
    "memory": (failing(MemoryError("no more")), "raised MemoryError in step(): no more"),
    "a wrong reward": (wrong_reward, "returned the reward array([1.]) of shape (1,)"),
    "the first step": (failing(ValueError("boom"), at=1), "raised ValueError in step(): boom"),
    "its constructor": (cannot_be_made, "cannot be made: OSError: no room for another simulator"),
}


@pytest.mark.parametrize(("name", "vectorization"), [*((name, "sync") for name in FAILURES), ("a step", "async")])
def test_an_evaluation_that_fails_costs_nothing_else(name: str, vectorization: str) -> None:
    env, said = FAILURES[name]
    run, rows, notes = trained(env, vectorization=vectorization)
    assert run.done
    evaluated = [row for row in rows if "eval/episodes" in row]
    assert len(evaluated) == 4
    assert all((row["eval/episodes"], row["eval/unfinished"]) == (0, 3) for row in evaluated)
    assert sum("failed, and training goes on" in text and said in text for text in notes) == 4
    assert run.training.summary(1.0, run.step)["evaluation"][0]["episodes"] == 0
    if vectorization == "sync":
        same_training(run, trained(Plain)[0])


def test_an_evaluation_that_failed_once_is_tried_again() -> None:
    made: list[int] = []

    def sometimes() -> Plain:
        made.append(1)
        return failing(RuntimeError("busy"))() if len(made) <= 3 else Plain()

    _, rows, notes = trained(sometimes)
    found = [row["eval/episodes"] for row in rows if "eval/episodes" in row]
    assert found == [0, 3, 3, 3]
    assert sum("failed" in text for text in notes) == 1


def test_a_hanging_step_of_an_evaluation_costs_its_timeout(tmp_path: Path) -> None:
    class Hangs(Plain):
        def step(self, action: Any) -> Any:
            time.sleep(60.0)

    options = {"step_timeout": 0.4, "total_steps": EVERY, "eval_episodes": 1, "vectorization": "async"}
    run, rows, notes = trained(Hangs, tmp_path / "run", **options)
    assert run.done
    assert rows[-1]["eval/unfinished"] == 1
    assert any("had not returned from step() after 0.4 s" in text for text in notes)


def test_what_python_is_told_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Without a display nobody sees notes."""
    steepest.train("ppo", Plain, eval_env=Endless, **{**SMALL, "eval_episode_steps": 20})
    assert any(r.levelname == "WARNING" and "is unfinished" in r.getMessage() for r in caplog.records)


def test_the_command_says_that_no_episode_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("EndlessAtEvaluation-v0", Endless)
    options = ["--total-steps", "128", "--rollout-steps", "16", "--num-envs", "1", "--minibatches", "1"]
    code = main(["train", "ppo", "EndlessAtEvaluation-v0", *options, "--eval-episodes", "2", "--eval-episode-steps",
                 "30", "--out", str(tmp_path / "run")])  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0
    assert "seed 0: no evaluation episode ended, 2 unfinished, after 128 steps" in shown.out
    assert "is unfinished: 2 of 2 episodes had not ended after 30 steps" in shown.err


# Saved before it is evaluated


class Stop(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(("algorithm", "more"), [
    ("ppo", {"normalize_reward": True}),
    ("dqn", {"buffer_size": 100, "steps_per_iteration": 16, "learning_starts": 16, "batch_size": 8}),
    ("ppo", {"seeds": 2}),
])  # fmt: skip
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("logged", [False, True])
def test_a_run_that_ends_in_an_evaluation_resumes_with_it(
    algorithm: str, more: dict[str, Any], at: int, logged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first, a middle or the last evaluation; before its row is written, or between that and the checkpoint."""
    options = {k: v for k, v in SMALL.items() if algorithm == "ppo" or k not in ("rollout_steps", "minibatches")} | more
    options["eval_env"] = None
    with Run(algorithm, Plain, out=tmp_path / "whole", **options) as run:
        list(run)
    evaluations_made = 0
    broken = Run(algorithm, Plain, out=tmp_path / "broken", **options)
    save = broken._save_checkpoint

    def save_or_end(pending: Any = None) -> None:
        nonlocal evaluations_made
        if pending is None and logged and evaluations_made == at:
            raise Stop
        save(pending)

    evaluate = broken.training.evaluate

    def evaluate_or_end() -> Any:
        nonlocal evaluations_made
        evaluations_made += 1
        if evaluations_made == at and not logged:
            raise Stop
        return evaluate()

    monkeypatch.setattr(broken, "_save_checkpoint", save_or_end)
    monkeypatch.setattr(broken.training, "evaluate", evaluate_or_end)
    with broken, pytest.raises(Stop):
        list(broken)
    newest = CheckpointStore(tmp_path / "broken" / "checkpoints").load_latest()
    assert newest is not None
    assert newest[2]["pending"][0]["step"] == max(newest[2]["steps"][:1])
    with Run.resume(tmp_path / "broken", env=Plain) as resumed:
        assert not resumed.done
        first = resumed.iterate()
        assert first["step"] == newest[2]["step"]
        assert first["eval/episodes"] == 3
        list(resumed)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_a_process_that_dies_in_an_evaluation_has_saved_before(tmp_path: Path) -> None:
    """Killed by its own environment at the first evaluation, it resumes from the step at which that was due."""
    module = tmp_path / "deadly.py"
    module.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nimport gymnasium as gym\n"
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv\n"
        "class Deadly(CartPoleEnv):\n"
        "    made = 0\n"
        "    def __init__(self, **kw):\n"
        "        super().__init__(**kw)\n"
        "        Deadly.made += 1\n"
        "        self.number = Deadly.made\n"
        "    def step(self, action):\n"
        f"        if self.number > 1 and Path({str(tmp_path / 'mark')!r}).exists():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().step(action)\n"
        "gym.register('Deadly-v0', Deadly, max_episode_steps=20)\n"
    )
    (tmp_path / "mark").touch()
    options = ["ppo", "deadly:Deadly-v0", "--total-steps", 256, "--rollout-steps", 32, "--num-envs", 1]
    options += [
        "--minibatches",
        1,
        "--eval-every",
        64,
        "--checkpoint-every",
        64,
        "--eval-episodes",
        2,
        "--no-tensorboard",
    ]
    run = tmp_path / "run"
    process = start_command("train", *options, "--out", run, cwd=tmp_path)
    assert process.wait(120) == -signal.SIGKILL
    found = CheckpointStore(run / "checkpoints").load_latest()
    assert found is not None
    assert found[2]["step"] >= 64
    assert found[2]["pending"]
    (tmp_path / "mark").unlink()
    done = steepest_command("train", "--resume", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert next(row for row in read_metrics(run) if "eval/return_mean" in row)["step"] == found[2]["step"]


def test_without_evaluations_nothing_is_saved_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = CheckpointStore.save

    def counted(self: CheckpointStore, step: int, *rest: Any) -> Path:
        saved.append(step)
        return save(self, step, *rest)

    monkeypatch.setattr(CheckpointStore, "save", counted)
    trained(None, tmp_path / "none", eval_episodes=0)
    assert len(saved) == len(set(saved)) == 4
    saved.clear()
    trained(None, tmp_path / "some")
    assert sorted(saved) == sorted(2 * sorted(set(saved)))
    assert len(saved) == 8


# Pictures


def test_a_window_that_fails_ends_only_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    shown: list[int] = []
    play = evaluations.evaluate_members

    def window(agent: Any, env: Any, episodes: int, **options: Any) -> Any:
        if options["limit"] == evaluations.SHOWN_STEPS:
            shown.append(episodes)
            raise RunError("the display went away")
        return play(agent, env, episodes, **options)

    monkeypatch.setattr(evaluations, "evaluate_members", window)
    with Run("ppo", "CartPole-v1", note=notes.append, render=True, **{**SMALL, "eval_episodes": 1}) as run:
        made = training(run).evaluator._environments
        monkeypatch.setattr(
            training(run).evaluator,
            "_environments",
            lambda n, render_mode=None, **more: made(n, **more),
        )
        list(run)
    assert run.step >= 4 * EVERY
    assert shown == [1]
    assert any("not rendering: the display went away" in text for text in notes)


@pytest.mark.parametrize("error", [RuntimeError("no fonts"), MemoryError(), OSError("read-only"), ImportError("no")])
def test_a_curve_that_cannot_be_drawn_hides_no_result(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(plots, "plot_curve", fails)
    _, _, notes = trained(None, tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()
    assert any(text.startswith("no curve was drawn") for text in notes)


def test_a_video_that_fails_hides_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")

    class Writer:
        frames = 0

        def append_data(self, frame: Any) -> None:
            self.frames += 1
            if self.frames > 3:
                raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    agent = steepest.train("ppo", "CartPole-v1", **{**SMALL, "eval_episodes": 0})
    monkeypatch.setattr(imageio, "get_writer", lambda *_, **__: Writer())
    video = tmp_path / "a.mp4"
    with pytest.warns(RuntimeWarning, match=r"could not write .*a\.mp4: No space left on device"):
        (found,) = steepest.evaluate(agent, "CartPole-v1", episodes=2, video=video)
    assert len(found.returns) == 2
    assert list(tmp_path.iterdir()) == []
    agent.save(tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code = main(
            ["evaluate", str(tmp_path / "agent"), "--episodes", "2", "--env", "CartPole-v1", "--video", str(video)]
        )
    shown = capsys.readouterr()
    assert code == 1
    assert "2 episodes" in shown.out
    assert "video:" not in shown.out
    assert "could not write" in shown.err
