"""Standard streams that are closed or full, and signals: a training ends as it should, and is saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import final_state, start_command, wait_for_step

from steepest.cli import main
from steepest.files.terminal import ENDING

COMMAND = [sys.executable, "-m", "steepest"]
SMALL = ("--total-steps", "256", "--eval-episodes", "1", "--compile", "off", "--checkpoint-every", "100")


def run(words: list[str], redirection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = " ".join([*COMMAND, *words, redirection])
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "redirection",
    ["> /dev/full", "> /dev/full 2> /dev/full", ">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | head -c 1"],
)
def test_a_failing_stream_ends_no_training(redirection: str, tmp_path: Path) -> None:
    """All is there, and the code says that the output is not; no file takes a closed stream's number."""
    done = run(["train", "ppo", "CartPole-v1", *SMALL, "--out", "run"], redirection, tmp_path)
    assert (tmp_path / "run" / "summary.json").exists()
    assert "internal error" not in done.stderr
    assert "Traceback" not in done.stderr
    if "|" not in redirection:
        assert done.returncode == (1 if ">" in redirection.replace("2>", "") else 0)
    again = run(["evaluate", "run", "--episodes", "1", "--json"], "", tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("words", "redirection", "code", "said"),
    [
        (["list"], "> /dev/full", 1, "could not write the output: No space left on device"),
        (["--help"], "> /dev/full", 1, "could not write the output: No space left on device"),
        (["list"], "2> /dev/full", 0, ""),
        (["nonsense"], "2> /dev/full", 2, ""),
        (["list"], "2>&-", 0, ""),
    ],
)
def test_results_that_cannot_be_written(
    words: list[str], redirection: str, code: int, said: str, tmp_path: Path
) -> None:
    done = run(words, redirection, tmp_path)
    assert done.returncode == code
    assert done.stderr.count("could not write") == said.count("could not write")
    assert said in done.stderr


def test_output_in_ascii(tmp_path: Path) -> None:
    """Notes and progress have signs beyond it."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    words = ["train", "ppo", "CartPole-v1", *SMALL, "--out", "run", "--eval-every", "100"]
    done = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\xb1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_lost_terminal_leaves_the_agent(number: signal.Signals, tmp_path: Path) -> None:
    """As SIGTERM does: the agent is saved, the code is 143, and the run resumes."""
    words: list[Any] = ["train", "ppo", "CartPole-v1", "--total-steps", 40_000, "--compile", "off"]
    words += ["--checkpoint-every", 2000, "--eval-episodes", 0, "--out", tmp_path / "run"]
    process = start_command(*words)
    wait_for_step(tmp_path / "run", 4000, process)
    process.send_signal(number)
    assert process.wait(60) == 143
    assert (tmp_path / "run" / "checkpoints" / "interrupted.safetensors").exists()
    assert run(["train", "--resume", "run", "--quiet"], "", tmp_path).returncode == 0
    assert final_state(tmp_path / "run")


@pytest.mark.parametrize("number", ENDING)
def test_whatever_asks_for_an_end_is_as_sigterm(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "_list", lambda _: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert main.main(["list"]) == 143
    assert capsys.readouterr().err == "steepest: terminated\n"
    assert signal.getsignal(number) == before


def test_without_a_standard_input_there_is_nothing_to_answer(tmp_path: Path) -> None:
    done = run(["generate", "nowhere"], "<&-", tmp_path)
    assert done.returncode == 2
    assert "nothing to answer: standard input is empty; give --prompt or --file" in done.stderr


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    words = [*COMMAND, "train", "ppo", "CartPole-v1", *SMALL, "--total-steps", "60000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(["nohup", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(tmp_path / "run", 1000, process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 143
