"""Labels that people give while an agent trains: a scripted person labels on the page that the run itself serves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("imageio_ffmpeg")

from gymnasium import spaces
from helpers_live import Person, link_in, person_in_thread, project_said
from helpers_runs import differences, start_command

from steepest import Run, UsageError
from steepest.preferences.clips import RewardConfig
from steepest.preferences.learned import LiveLabels
from steepest.preferences.people import People
from steepest.preferences.records import Settings
from steepest.preferences.store import Project

OPTIONS: dict[str, Any] = {
    "num_envs": 4,
    "rollout_steps": 32,
    "minibatches": 2,
    "epochs": 2,
    "hidden_sizes": (8,),
    "eval_episodes": 0,
    "tensorboard": False,
    "threads": 1,
    "total_steps": 768,
    "checkpoint_every": 256,
}
REWARD = RewardConfig(hidden_sizes=(8,), first_steps=20, steps=10)


class Dot(gym.Env[Any, Any]):
    """A point that is pushed left or right; small pictures, so that tests take no time to draw and to pack them."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32), 0
        return self.at, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.at = np.clip(self.at + (0.1 if action else -0.1), -1.0, 1.0).astype(np.float32)
        return self.at, float(self.at[0]), False, self.steps == 16, {}

    def render(self) -> Any:
        frame = np.full((16, 48, 3), 240, np.uint8)
        frame[:, int(24 + 20 * self.at[0])] = 0
        return frame


def dot(render_mode: str | None = None) -> gym.Env[Any, Any]:
    return Dot(render_mode)


def asking(project: Path, **options: Any) -> LiveLabels:
    """Labels from people, without the repeats that come by chance once ten pairs are judged."""
    with Project.create(project) as made:
        made.change_settings(Settings(repeat_share=0.0))
    people = People(project=project, port=0)
    return LiveLabels(labeller=people, **{"labels": 12, "clip_steps": 5, "reward": REWARD, **options})


def trained(project: Path, out: Path, *, moment: int | None = None, **person: Any) -> tuple[Person, list[Any]]:
    """Train with a person at the page, for some iterations or to the end."""
    notes: list[str] = []
    with Run("ppo", dot, reward=asking(project), out=out, note=notes.append, **OPTIONS) as run:
        thread, made = person_in_thread(lambda: "\n".join(notes), **person)
        rows = list(run) if moment is None else [run.iterate() for _ in range(moment)]
    thread.join(20)
    assert not thread.is_alive()
    return made[0], rows


def test_people_answer_while_it_trains(tmp_path: Path) -> None:
    """What people say is learned from; the project holds the clips, with the videos and numbers of what was played."""
    person, rows = trained(tmp_path / "p.db", tmp_path / "run")
    labels = [row["health/reward_labels"] for row in rows if "health/reward_labels" in row]
    assert labels == sorted(labels)
    assert labels[0] == 3
    assert labels[-1] == len(person.views) >= 9
    assert person.states[0]["labels"] == 12
    assert (person.states[0]["answered"], person.states[0]["pending"]) == (0, 3)
    assert all(state["answered"] + state["pending"] <= 12 for state in person.states)
    with Project.open(tmp_path / "p.db") as project:
        clips, judgements = project.clips(), project.judgements()
        assert len(judgements) == len(person.views)
        assert project.rows("SELECT count(*) FROM item WHERE open = 1") == [(0,)]
        assert {clip.env for clip in clips} == {"dot"}
        for clip in clips:
            seen = np.asarray(clip.observations)
            assert (seen.shape, clip.actions.shape, clip.fps) == ((6, 1), (5,), 5.0)  # a second, for people
            moved = np.clip(seen[:-1, 0] + np.where(clip.actions == 1, 0.1, -0.1), -1.0, 1.0)
            np.testing.assert_allclose(seen[1:, 0], moved, atol=1e-6)
            assert project.video(clip.id)[4:8] == b"ftyp"


@pytest.mark.parametrize(("moment", "saved"), [(1, 0), (4, 364)])
def test_what_was_answered_is_not_asked_again(moment: int, saved: int, tmp_path: Path) -> None:
    """Killed after answers and before their checkpoint, a run asks only what nobody has answered; to the same bits."""
    whole, _ = trained(tmp_path / "whole.db", tmp_path / "whole")
    first, rows = trained(tmp_path / "part.db", tmp_path / "part", moment=moment)
    first_steps = rows[-1]["step"]
    notes: list[str] = []
    with Run.resume(tmp_path / "part", env=dot, note=notes.append) as resumed:
        assert resumed.step == saved < first_steps
        thread, made = person_in_thread(lambda: "\n".join(notes), start=100)
        list(resumed)
    thread.join(20)
    asked = [sorted(m["id"] for m in view["members"]) for view in (*first.views, *made[0].views)]
    assert len(asked) == len({tuple(pair) for pair in asked}) == len(whole.views)
    # The description names the project.
    assert differences(tmp_path / "whole", tmp_path / "part") == ["metadata description"]
    assert project_said(tmp_path / "part.db") == project_said(tmp_path / "whole.db")


def test_a_killed_run_loses_no_answer(tmp_path: Path) -> None:
    """The command, killed while it waits with half of the answers; then ended by SIGTERM; then resumed to its end."""
    place, log = tmp_path / "run", tmp_path / "log"
    options = ["--total-steps", 512, "--num-envs", 4, "--rollout-steps", 64, "--eval-episodes", 0, "--no-tensorboard"]
    live = ["--label-live", "--live.labels", 8, "--live.clip-steps", 5, "--live.port", 0, "--checkpoint-every", 256]
    command = ["train", "ppo", "CartPole-v1", "--reward", tmp_path / "p.db", *live, *options, "--out", place]
    shown = lambda: log.read_text() if log.exists() else ""  # noqa: E731
    process = start_command(*command, log=log)
    try:
        person = Person(link_in(shown), most=1)
        person.answer_all(lambda: process.poll() is None)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        assert len(project_said(tmp_path / "p.db")) == 1
        assert "waiting for labels: 0 of 2" in shown()

        log.unlink()
        process = start_command("train", "--resume", place, log=log)
        browser = link_in(shown)
        deadline = time.monotonic() + 30
        while "waiting for labels: 1 of 2" not in shown():
            assert time.monotonic() < deadline, shown()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert "the agent as it was" in shown()
        with pytest.raises(ConnectionError):
            browser.send("/api/next", {"labeller": "ana"})

        assert shown().count("#token=") == 1
        with Project.open(tmp_path / "p.db") as project:
            assert project.settings.lease_seconds == 60.0
    finally:
        process.kill()
        process.wait()
    notes: list[str] = []
    with Run.resume(place, note=notes.append) as resumed:
        thread, made = person_in_thread(lambda: "\n".join(notes), start=10)
        list(resumed)
    thread.join(20)
    pairs = [tuple(sorted(m["id"] for m in view["members"])) for view in (*person.views, *made[0].views)]
    assert len(pairs) == len(set(pairs)) == len(project_said(tmp_path / "p.db")) >= 6


def test_what_is_skipped_is_given_up(tmp_path: Path) -> None:
    """Nobody else may be there to be asked, and the run waits for nobody."""
    person, rows = trained(tmp_path / "p.db", tmp_path / "run", moment=2, kind="skip", ranking=[])
    assert len(person.views) >= 3
    assert not any("health/reward_labels" in row for row in rows)
    with Project.open(tmp_path / "p.db") as project:
        assert project.rows("SELECT count(*) FROM item WHERE open = 1") == [(0,)]


def test_what_people_cannot_see_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    class Blind(Dot):
        def render(self) -> Any:
            return None

    def unseen() -> gym.Env[Any, Any]:
        return Dot()

    for env, options, said in (
        (Blind, {}, "people cannot be asked about Blind, of which there are no pictures .*returned no picture"),
        (unseen, {}, "people cannot be asked about unseen, .*unexpected keyword argument 'render_mode'"),
        (dot, {"rollout_steps": 4}, "clip_steps is 5, but a rollout has 4 steps"),
        ("steepest/RandomWalk-v0", {}, "people cannot be asked about steepest/RandomWalk-v0"),
    ):
        with pytest.raises(UsageError, match=said):
            Run("ppo", env, reward=asking(tmp_path / "p.db"), out=tmp_path / "run", **{**OPTIONS, **options})
        assert not (tmp_path / "run").exists()
    with Project.create(tmp_path / "other.db") as project:
        from helpers_preferences import clip

        project.add_clip(clip(), b"")
    with pytest.raises(UsageError, match="holds clips of CartPole-v1, and the agent is to learn in dot"):
        Run("ppo", dot, reward=asking(tmp_path / "other.db"), **OPTIONS)


def test_a_damaged_description_is_told(tmp_path: Path) -> None:
    trained(tmp_path / "p.db", tmp_path / "run", moment=1)
    config = tmp_path / "run" / "config.json"
    saved = json.loads(config.read_text())
    for wrong in ({}, {"people": 3}, {**saved["reward"], "labels": 0}, {**saved["reward"], "labeller": 1}):
        config.write_text(json.dumps({**saved, "reward": wrong}))
        with pytest.raises(Exception, match=r"config.json: ") as caught:
            Run.resume(tmp_path / "run", env=dot)
        assert "reward" in str(caught.value) or "labels" in str(caught.value)
