"""Text that a terminal cannot be commanded by, and streams that fail."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from steepest import RunError
from steepest.cli.options import print_line, say
from steepest.files.terminal import Forgiving, escaped, forgiving_streams
from steepest.runs.view.progress import Progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[2Jred\x1b]0;title\x07", "\\x1b[2Jred\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("left\u202eright\u2066", "left\\u202eright\\u2066"),
        ("back\b\r\x7f", "back\\x08\\r\\x7f"),
        ("half \ud83d", "half \\ud83d"),
        ("π ± 🂡", "π ± 🂡"),
    ],
)
def test_what_commands_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_lines_and_titles_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("note \x1b[31m")
    with Progress(10, title="ppo on \x1b[2J") as progress:
        progress.note("raised \x1b]0;x\x07")
    err = capsys.readouterr().err
    assert "\x1b" not in err
    for text in ("note \\x1b[31m", "ppo on \\x1b[2J", "raised \\x1b]0;x\\x07"):
        assert text in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_results_are_escaped_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads them gets them as they are."""
    for stream, shown in ((Terminal(), "a\\x1bb\n"), (io.StringIO(), "a\x1bb\n")):
        monkeypatch.setattr("sys.stdout", stream)
        print_line("a\x1bb")
        assert stream.getvalue() == shown


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error


FAILURES: list[Any] = [OSError(28, "No space left on device"), ValueError("I/O operation on closed file"), None]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_stream_that_fails_ends_nothing(error: Exception | None) -> None:
    stream = Forgiving(None if error is None else Broken(error))
    for _ in range(2):
        print("text", file=stream, flush=True)  # type: ignore[arg-type]
    assert not stream.isatty()
    assert stream.failure is not None
    words = "it is closed" if error is None else str(error.args[-1])
    assert stream.said() == f"could not write the output: {words}"


def test_a_failure_is_raised_where_output_is_the_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: what is printed on the way out is dropped. Of standard error it never is."""
    monkeypatch.setattr("sys.stdout", Broken(OSError(28, "No space left on device")))
    monkeypatch.setattr("sys.stderr", Broken(OSError(28, "No space left on device")))
    with forgiving_streams(raises=True):
        say("beside")
        with pytest.raises(RunError, match=r"^could not write the output: No space left"):
            print_line("result")
        print_line("dropped")
    with forgiving_streams(raises=False) as out:
        print_line("result")
    assert out.failure is not None
    monkeypatch.setattr("sys.stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    with forgiving_streams(raises=True), pytest.raises(BrokenPipeError):
        print_line("result")


def test_a_character_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        print("1 ± 2", file=Forgiving(file))  # type: ignore[arg-type]
    assert (tmp_path / "log").read_text() == "1 \\xb1 2\n"
