"""Progress is legible on a terminal and sober in a file."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest

from steepest.runs.view import progress as module
from steepest.runs.view.progress import Progress


class Clock:
    """Stands for the module ``time``, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    return clock


def row(step: int, **values: Any) -> dict[str, Any]:
    defaults = {"train/return_mean": 312.44, "time/steps_per_second": 4100.0}
    return {"step": step, "wall_seconds": 1.0, "seed": 0, **defaults, **values}


def screen(text: str) -> list[str]:
    """What a terminal shows after the text: carriage return, newline, cursor up, erase line; colours ignored."""
    lines: list[list[str]] = [[]]
    y = x = 0
    for escape, character in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|(.|\n)", text.replace("\r\n", "\n")):
        if escape:
            if escape.endswith("A"):
                y -= int(escape[2:-1] or 1)
            elif escape.endswith("K"):
                lines[y] = []
        elif character == "\n":
            y, x = y + 1, 0
            if y == len(lines):
                lines.append([])
        elif character == "\r":
            x = 0
        else:
            lines[y] += [" "] * (x + 1 - len(lines[y]))
            lines[y][x] = character
            x += 1
    return ["".join(line).rstrip() for line in lines if "".join(line).strip()]


def test_plain_lines(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100_000, title="ppo on CartPole-v1", stream=stream) as progress:
        progress.update(row(61_440))
        for step in range(62_000, 80_000, 1000):  # all within five seconds: silent
            clock.now += 0.1
            progress.update(row(step))
        clock.now += 5
        progress.update(row(81_920))
        clock.now += 0.1
        progress.note("a note")
        progress.update(row(90_000, **{"eval/return_mean": 487.25, "eval/return_std": 21.0}))
        clock.now += 0.1
        progress.update(row(100_000))
    assert stream.getvalue().splitlines() == [
        "ppo on CartPole-v1",
        "step 61,440/100,000  return 312.4  4,100 steps/s  0:09 left",
        "step 81,920/100,000  return 312.4  4,100 steps/s  0:04 left",
        "a note",
        "step 90,000/100,000  return 312.4  evaluation 487.2 ± 21.0  4,100 steps/s  0:02 left",
        "step 100,000/100,000  return 312.4  4,100 steps/s",
    ]


def test_the_last_line_is_not_repeated(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(10, title="t", stream=stream) as progress:
        progress.update(row(10))
    assert len(stream.getvalue().splitlines()) == 2


def test_no_return_yet_and_own_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(4000, title="t", stream=stream, start_step=1000) as progress:
        clock.now += 2.0
        progress.update({"step": 3000, "wall_seconds": 9.0, "seed": 0, "train/return_mean": math.nan})
    assert stream.getvalue().splitlines()[1] == "step 3,000/4,000  1,000 steps/s  0:01 left"


def test_the_remaining_time_is_that_of_all_seeds(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(1_000_000, title="t", stream=stream) as progress:
        for seed in range(5):  # 5,000 steps/s for all of them, so 1,000 for each
            clock.now += 10
            progress.update(row(40_000, seed=seed, **{"time/steps_per_second": 5000.0}))
    assert "5,000 steps/s  16:00 left" in stream.getvalue()


def test_several_seeds_are_averaged(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100, title="t", stream=stream) as progress:
        progress.update(row(50, **{"train/return_mean": 10.0}))
        clock.now += 10
        progress.update(row(50, seed=1, **{"train/return_mean": 20.0}))
        progress.update(row(50, seed=1, **{"eval/return_mean": 3.0, "eval/return_std": 1.0, "train/return_mean": 20.0}))
    lines = stream.getvalue().splitlines()
    assert "return 15.0" in lines[2]
    assert "seed 1 evaluation 3.0 ± 1.0" in lines[3]


def test_quiet_prints_nothing(clock: Clock) -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(10, title="t", stream=stream, quiet=True) as progress:
            progress.note("n")
            progress.update(row(10, **{"eval/return_mean": 1.0}))
        assert stream.getvalue() == ""


def test_live_display_and_notes_share_the_terminal(clock: Clock) -> None:
    stream = Terminal()
    health = {"health/approx_kl": 0.0081, "health/value_loss": 14.23, "health/learning_rate": 3e-5}
    with Progress(100_000, title="ppo on CartPole-v1", stream=stream) as progress:
        for step in range(10_000, 100_001, 10_000):
            clock.now += 1.0
            progress.update(row(step, **health, **{"train/episode_length_mean": 287.0}))
            if step == 50_000:
                progress.note("install steepest[mujoco] [bold]for this[/bold]")
        progress.update(row(100_000, **{"eval/return_mean": 487.25, "eval/return_std": 21.0}))
    lines = screen(stream.getvalue())
    assert lines[0] == "install steepest[mujoco] [bold]for this[/bold]"  # verbatim, above the display
    assert lines[1] == "ppo on CartPole-v1"
    assert re.fullmatch(r"━+ +100,000 / 100,000 steps +4,100 steps/s +0:00 left", lines[2])
    figures = " ".join(lines[3:])
    for text in (
        r"return +312\.4",
        r"episode length +287",
        r"evaluation +487\.2 ± 21\.0",
        r"approx kl +0\.0081",
        r"value loss +14\.2",
        r"learning rate +3\.0e-05",
    ):
        assert re.search(text, figures), text
    assert len(lines) == 5
    assert max(map(len, lines)) <= 100


def test_live_display_survives_errors_and_narrow_terminals(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()

    def interrupted() -> None:
        with Progress(10, title="t", stream=stream) as progress:
            progress.update(row(5, **{"health/explained_variance": 0.9}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is back
    assert max(map(len, screen(stream.getvalue()))) <= 40


def test_a_dumb_terminal_gets_plain_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(10, title="t", stream=stream) as progress:
        progress.update(row(10))
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("t\nstep 10/10")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0.0, "0.0000"),
        (0.00812, "0.0081"),
        (3.2e-5, "3.2e-05"),
        (-12.34, "-12.3"),
        (98765.4, "98,765"),
        (1.5e9, "1.50e+09"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert module._number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (754, "12:34"), (3723, "1:02:03"), (0, "0:00")])
def test_durations(seconds: float, text: str) -> None:
    assert module._duration(seconds) == text


def test_a_run_without_returns_shows_its_loss() -> None:
    stream = io.StringIO()
    with Progress(10, title="sft", stream=stream) as progress:
        progress.update({"step": 1, "seed": 0, "train/loss": 2.5, "time/steps_per_second": 0.25})
        progress.update({"step": 10, "seed": 0, "train/loss": 1.5, "eval/loss": 1.75, "time/steps_per_second": 0.25})
        assert progress._figures() == [("loss", "1.5000"), ("evaluation", "1.7500")]
    first, last = stream.getvalue().splitlines()[1:]
    assert first == "step 1/10  loss 2.5000  0.25 steps/s  0:36 left"
    assert last == "step 10/10  loss 1.5000  evaluation 1.7500  0.25 steps/s"
