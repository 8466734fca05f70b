"""Progress is legible on a terminal and sober in a file."""

from __future__ import annotations

import io
import math
import re
import sys
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
    assert re.fullmatch(r"ppo on CartPole-v1 +0:10 elapsed", lines[1])
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
    assert module.duration(seconds) == text


def test_a_run_without_returns_shows_its_loss() -> None:
    stream = io.StringIO()
    with Progress(10, title="sft", stream=stream) as progress:
        progress.update({"step": 1, "seed": 0, "train/loss": 2.5, "time/steps_per_second": 0.25})
        progress.update({"step": 10, "seed": 0, "train/loss": 1.5, "eval/loss": 1.75, "time/steps_per_second": 0.25})
        assert progress._figures() == [("loss", "1.5000"), ("evaluation", "1.7500")]
    first, last = stream.getvalue().splitlines()[1:]
    assert first == "step 1/10  loss 2.5000  0.25 steps/s  0:36 left"
    assert last == "step 10/10  loss 1.5000  evaluation 1.7500  0.25 steps/s"


def test_one_row_for_several_seeds_counts_for_all(clock: Clock) -> None:
    """What training gives is one row of means; its rate is of all seeds together."""
    stream = io.StringIO()
    with Progress(30_000, title="t", stream=stream, members=3) as progress:
        clock.now += 10
        progress.update(row(8_000, **{"time/steps_per_second": 3000.0}))
    assert "step 8,000/30,000  return 312.4  3,000 steps/s  0:22 left" in stream.getvalue()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"eval/return_std": 21.0, "eval/episodes": 10}, "487.2 ± 21.0 over 10 episodes"),
        ({"eval/return_std": 0.0, "eval/episodes": 1}, "487.2 ± 0.0 over 1 episode"),
        ({"eval/return_std": 21.0, "eval/return_std_over_seeds": 4.5, "eval/episodes": 10.0}, "487.2 ± 4.5 over seeds"),
        ({}, "487.2"),
    ],
)
def test_a_deviation_says_what_it_is_over(clock: Clock, values: dict[str, float], text: str) -> None:
    stream = io.StringIO()
    with Progress(100, title="t", stream=stream) as progress:
        progress.update(row(100, **{"eval/return_mean": 487.25, **values}))
    assert stream.getvalue().splitlines()[1] == f"step 100/100  return 312.4  evaluation {text}  4,100 steps/s"


def test_a_long_iteration_is_counted_and_timed(clock: Clock) -> None:
    """Warming up is fast and learning is slow: neither count nor remaining time may stand still, or stay as it was."""
    stream = Terminal()
    with Progress(4_000, title="sac on Pendulum-v1", stream=stream) as progress:
        clock.now += 0.1
        progress.update(row(996, **{"time/steps_per_second": 10_000.0}))
        assert screen(stream.getvalue())[1].endswith("996 / 4,000 steps  10,000 steps/s  0:00 left")
        clock.now += 1.0
        progress.at(1_026)
        assert "1,026 / 4,000 steps" in screen(stream.getvalue())[1]
        for second in range(2, 11):
            clock.now += 1.0
            progress.at(996 + 30 * second)
        title, bar = screen(stream.getvalue())[:2]
        assert bar.endswith("1,296 / 4,000 steps  30 steps/s  1:30 left")
        assert title.endswith("0:10 elapsed")
        clock.now += 1.0
        progress.update(row(2_000, **{"time/steps_per_second": 50.0}))
        assert screen(stream.getvalue())[1].endswith("2,000 / 4,000 steps  50 steps/s  0:40 left")


def test_a_long_iteration_fills_no_log(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(10_000, title="t", stream=stream) as progress:
        for second in range(65):
            clock.now += 1.0
            progress.at(10 * second)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert lines[-1].endswith("step 600/10,000  9.8 steps/s  15:56 left")


def test_what_is_waited_for_is_shown(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a line of the display that goes again; elsewhere a line at once, and then now and then."""
    link = "label here: http://127.0.0.1:8765/#token=" + "x" * 60
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    with Progress(1000, title="t", stream=terminal) as progress:
        progress.note(link)
        progress.waits("waiting for labels: 0 of 2")
        progress.waits("waiting for labels: 1 of 2")
        assert screen(terminal.getvalue())[0] == link  # whole, so that it can be opened
        assert [text for text in screen(terminal.getvalue()) if "waiting" in text] == ["waiting for labels: 1 of 2"]
        progress.waits("")
        assert not [text for text in screen(terminal.getvalue()) if "waiting" in text]
    plain = io.StringIO()
    with Progress(1000, title="t", stream=plain) as progress:
        for number in range(4):
            progress.waits(f"{number} of 4")
            progress.waits(f"{number} of 4")
            clock.now += 3.0
        progress.waits("")
    assert plain.getvalue().splitlines() == ["t", "0 of 4", "2 of 4"]


def test_within_the_first_iteration_the_rate_is_its_own(clock: Clock) -> None:
    stream = Terminal()
    with Progress(1_000, title="t", stream=stream, members=2) as progress:
        clock.now += 5.0
        progress.at(100)
        assert screen(stream.getvalue())[1].endswith("100 / 1,000 steps  40 steps/s  0:45 left")


@pytest.mark.parametrize("columns", [60, 120])
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_the_display_fits_its_terminal(
    clock: Clock, columns: int, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, health = Terminal(), DISPLAYS[algorithm][0]
    title = {"ppo": "ppo on CartPole-v1, seeds 0 to 2", "sac": "sac on Pendulum-v1, seed 0"}[algorithm]
    with Progress(30_000, title=title, stream=stream, members=3 if algorithm == "ppo" else 1) as progress:
        clock.now += 9.0
        progress.update(row(8_011, **health))
        if algorithm == "sac":
            clock.now += 20.0
            progress.at(8_411)
    assert screen(stream.getvalue()) == DISPLAYS[algorithm][1][columns].splitlines()
    assert max(map(len, screen(stream.getvalue()))) <= columns


DISPLAYS: dict[str, tuple[dict[str, float], dict[int, str]]] = {
    "ppo": (
        {
            "train/return_mean": 189.44,
            "train/episode_length_mean": 189.4,
            "time/steps_per_second": 9528.0,
            "eval/return_mean": 301.2,
            "eval/return_std": 88.0,
            "eval/return_std_over_seeds": 41.7,
            "eval/episodes": 10.0,
            "health/policy_loss": -0.0071,
            "health/value_loss": 14.23,
            "health/entropy": 0.5531,
            "health/approx_kl": 0.0081,
            "health/clip_fraction": 0.0912,
            "health/explained_variance": 0.8123,
            "health/learning_rate": 0.0015,
        },
        {
            60: """\
ppo on CartPole-v1, seeds 0 to 2                0:09 elapsed
━━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
8,011 / 30,000 steps                9,528 steps/s  0:07 left
return                    189.4   episode length     189
evaluation ± seeds 301.2 ± 41.7   policy loss    -0.0071
value loss                 14.2   entropy         0.5531
approx kl                0.0081   clip fraction   0.0912
explained variance       0.8123   learning rate   0.0015
""",
            120: """\
ppo on CartPole-v1, seeds 0 to 2                                                                            0:09 elapsed
━━━━━━━━━━━━━━━━━━━╺━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  8,011 / 30,000 steps  9,528 steps/s  0:07 left
return              189.4   episode length    189   evaluation ± seeds 301.2 ± 41.7   policy loss   -0.0071
value loss           14.2   entropy        0.5531   approx kl                0.0081   clip fraction  0.0912
explained variance 0.8123   learning rate  0.0015
""",
        },
    ),
    "sac": (
        {
            "train/return_mean": -812.3,
            "train/episode_length_mean": 200.0,
            "time/steps_per_second": 35.0,
            "eval/return_mean": -401.8,
            "eval/return_std": 155.2,
            "eval/episodes": 10,
            "health/critic_loss": 3.412,
            "health/policy_loss": 41.7,
            "health/entropy": -0.312,
            "health/temperature": 0.1873,
        },
        {
            60: """\
sac on Pendulum-v1, seed 0                      0:29 elapsed
━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
8,411 / 30,000 steps                  20 steps/s  17:59 left
return                        -812.3
episode length                   200
evaluation ± episodes -401.8 ± 155.2
critic loss                   3.4120
policy loss                     41.7
entropy                      -0.3120
temperature                   0.1873
""",
            120: """\
sac on Pendulum-v1, seed 0                                                                                  0:29 elapsed
━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  8,411 / 30,000 steps  20 steps/s  17:59 left
return      -812.3   episode length     200   evaluation ± episodes -401.8 ± 155.2   critic loss 3.4120
policy loss   41.7   entropy        -0.3120   temperature                   0.1873
""",
        },
    ),
}
"""Metrics of a row, and what a terminal of so many columns shows of them."""


def test_a_bar_counts_on_a_terminal_and_elsewhere(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.runs.view import bar

    monkeypatch.setattr(bar, "time", clock)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with bar.Bar("estimators on walk", "estimates") as shown:
            for done in range(1, 101):
                clock.now += 1.0
                shown.at(done, 400)
        text = stream.getvalue()
        assert "estimators on walk" in text
        if not stream.isatty():
            lines = text.splitlines()
            assert len(lines) == 20
            assert lines[-1] == "estimators on walk: 100 of 400 estimates, 1:40, about 5:00 left"
    monkeypatch.setattr(sys, "stderr", silent := io.StringIO())
    with bar.Bar("verify", "statements", quiet=True) as shown:
        clock.now += 60.0
        shown.at(1, 2)
    assert silent.getvalue() == ""
