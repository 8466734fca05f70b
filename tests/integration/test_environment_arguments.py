"""Arguments of environments on the command line, and environments in a module of the working folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from helpers_runs import ENVIRONMENT

import steepest
from steepest.cli.main import main
from steepest.environments import UnknownEnvironment, find_spec

SMALL = [
    "--total-steps",
    "64",
    "--rollout-steps",
    "16",
    "--num-envs",
    "2",
    "--minibatches",
    "1",
    "--eval-episodes",
    "2",
]
SMALL += ["--no-tensorboard"]


def described(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def test_arguments_reach_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    given = ["--env-kwargs", "g=2.5", "render_mode=null"]
    assert main(["train", "ppo", "Pendulum-v1", *given, *SMALL, "--max-episode-steps", "20", "--out", str(run)]) == 0
    assert described(run)["env_kwargs"] == {"g": 2.5, "render_mode": None}
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "3", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(run), "--episodes", "3", "--json", "--env-kwargs", "g=20"]) == 0
    elsewhere = json.loads(capsys.readouterr().out)
    assert here != elsewhere
    (expected,) = steepest.evaluate(run, episodes=3)
    assert here["mean"] == expected.mean
    assert main(["train", "--resume", str(run), "--total-steps", "96"]) == 0
    assert main(["collect", str(run), "--steps", "40", "--out", str(tmp_path / "d"), "--env-kwargs", "g=1"]) == 0


def test_arguments_of_a_file_and_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("env_kwargs: {g: 3, render_mode: null}\nmax_episode_steps: 20\n")
    assert main(["train", "ppo", "Pendulum-v1", "--config", str(file), *SMALL, "--out", str(tmp_path / "a")]) == 0
    assert described(tmp_path / "a")["env_kwargs"] == {"g": 3, "render_mode": None}
    more = ["--env-kwargs", "g=4"]
    assert (
        main(["train", "ppo", "Pendulum-v1", "--config", str(file), *more, *SMALL, "--out", str(tmp_path / "b")]) == 0
    )
    assert described(tmp_path / "b")["env_kwargs"] == {"g": 4}
    again = str(tmp_path / "b" / "config.json")
    assert main(["train", "ppo", "Pendulum-v1", "--config", again, "--out", str(tmp_path / "c")]) == 0
    assert described(tmp_path / "c")["env_kwargs"] == {"g": 4}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gravity"], "--env-kwargs has 'gravity'; expected KEY=VALUE"),
        (["gravity=9"], "does not take these arguments"),
        (["g=1", "g=2"], "--env-kwargs has g twice"),
    ],
)
def test_wrong_arguments_are_said(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "Pendulum-v1", "--env-kwargs", *given, *SMALL]) == 2
    assert said in capsys.readouterr().err


def test_a_file_without_a_mapping_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("env_kwargs: [g, 3]\n")
    assert main(["train", "ppo", "Pendulum-v1", "--config", str(file), *SMALL]) == 2
    assert "expected arguments by name" in capsys.readouterr().err


# Environments in the working folder

MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Mine(CartPoleEnv):
    def __init__(self, length=0.5, **kw):
        super().__init__(**kw)
        import {sibling}
        self.length = length

gym.register("{name}-v0", Mine, max_episode_steps=10)
"""


def write(folder: Path, module: str, name: str, sibling: str = "json") -> None:
    (folder / f"{module}.py").write_text(MODULE.format(name=name, sibling=sibling))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return tmp_path


def test_a_module_of_the_working_folder_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For training, for the evaluation that it names next, and for resuming; with a sibling imported later."""
    write(folder, "one_of_mine", "OneOfMine", sibling="sibling_of_mine")
    (folder / "sibling_of_mine.py").write_text("")
    assert main(["train", "ppo", "one_of_mine:OneOfMine-v0", *SMALL, "--env-kwargs", "length=1.5", "--out", "run"]) == 0
    assert described(folder / "run")["env_kwargs"] == {"length": 1.5}
    assert main(["evaluate", "run", "--episodes", "1"]) == 0
    assert main(["train", "--resume", "run", "--total-steps", "96"]) == 0
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1
    capsys.readouterr()


def test_the_installed_command_finds_it_too(folder: Path) -> None:
    """A console script has its own folder in the path, not the working one."""
    command = Path(sysconfig.get_path("scripts")) / "steepest"
    if not command.is_file():
        pytest.skip("the command is not installed")
    write(folder, "two_of_mine", "TwoOfMine")
    options = [*SMALL, "--vectorization", "async", "--out", "run", "--quiet"]
    done = subprocess.run(
        [str(command), "train", "ppo", "two_of_mine:TwoOfMine-v0", *options],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_working_folder_stands_in_for_nothing_installed(folder: Path) -> None:
    """A file with the name of a module that is found elsewhere is not run."""
    (folder / "colorsys.py").write_text("raise SystemExit('taken')")
    with pytest.raises(UnknownEnvironment, match="There is no environment 'Nothing-v0'"):
        find_spec("colorsys:Nothing-v0")
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("raise RuntimeError('half written')", "it raised RuntimeError: half written"),
        ("def broken(:", "it raised SyntaxError"),
        ("import sys; sys.exit(3)", "it raised SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_leaves_the_path_alone(text: str, said: str, folder: Path) -> None:
    (folder / "broken_of_mine.py").write_text(text)
    before = list(sys.path)
    with pytest.raises(UnknownEnvironment, match="The module of 'broken_of_mine:X-v0' cannot be imported") as caught:
        find_spec("broken_of_mine:X-v0")
    assert said in str(caught.value)
    assert sys.path == before


@pytest.mark.parametrize("given", ["./mine.py", "mine.py", "./mine", "/tmp/mine.py", "envs/mine"])
def test_a_file_is_no_name_of_a_module(given: str, folder: Path) -> None:
    (folder / "mine.py").write_text("raise RuntimeError")
    with pytest.raises(UnknownEnvironment, match=r"is given as a file; expected its name, such as 'mine:X-v0'"):
        find_spec(f"{given}:X-v0")


def test_a_module_that_is_nowhere_is_said(folder: Path) -> None:
    with pytest.raises(UnknownEnvironment, match="No module named 'nowhere_of_mine'"):
        find_spec("nowhere_of_mine:X-v0")
    assert str(folder) not in sys.path
    assert "nowhere_of_mine" not in gym.registry
