"""Text for people: what would command a terminal is escaped, and a stream that fails ends nothing."""

from __future__ import annotations

import io
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from steepest.errors import RunError


def escaped(text: str) -> str:
    """Text in which characters that would command a terminal are escaped; line ends and tabs stay.

    Besides controls, some formatting characters turn the direction of what follows; half a pair of surrogates, as a
    file name may hold it, is no text at all.

    Verified:  tests/unit/test_terminal.py::test_what_commands_a_terminal_is_escaped
    """

    def commands(char: str) -> bool:
        kind = unicodedata.category(char)
        control = (kind == "Cc" and char not in "\n\t") or kind == "Cs"
        return control or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"

    return "".join(char.encode("unicode_escape").decode("ascii") if commands(char) else char for char in text)


class Forgiving:
    """A text stream in the place of one that may fail: closed, full, or of an encoding that lacks a character.

    Such a character is escaped. After its first failure the rest is dropped, and ``failure`` says why; with ``raises``
    that failure is raised, as a RunError or a BrokenPipeError.

    Verified:  tests/unit/test_terminal.py::test_a_stream_that_fails_ends_nothing,
               tests/unit/test_terminal.py::test_a_failure_is_raised_where_output_is_the_purpose
    """

    def __init__(self, stream: Any, *, raises: bool = False) -> None:
        self.stream = stream
        self.raises = raises
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        self._attempt(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda: self.stream.flush())  # noqa: PLW0108 - there may be no stream

    def isatty(self) -> bool:
        return self.failure is None and self.stream is not None and bool(self.stream.isatty())

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _attempt(self, act: Callable[[], Any]) -> None:
        if self.failure is not None:
            return
        try:
            act()
        except (OSError, ValueError, AttributeError) as error:  # full or broken; closed; none at all
            self.failure = error
            if self.raises and isinstance(error, BrokenPipeError):
                raise
            if self.raises and self.stream is not None:
                raise RunError(self.said()) from error

    def said(self) -> str:
        """Return why the output failed, for people."""
        why = "it is closed" if self.stream is None else getattr(self.failure, "strerror", None) or self.failure
        return f"could not write the output: {why}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1)
"""Signals that ask for an end, from a user, a lost terminal, a limit of processor time, and a batch system that is
about to kill: what has been trained is saved. One that is ignored stays ignored: nohup asks for that."""


@contextmanager
def forgiving_streams(*, raises: bool) -> Generator[Forgiving]:
    """Put ``Forgiving`` streams in the place of standard output, which is given, and of standard error.

    Args:      raises: let a failure of standard output be raised; one of standard error never is
    Verified:  tests/integration/test_streams.py::test_a_failing_stream_ends_no_training
    """
    before = sys.stdout, sys.stderr
    out, err = Forgiving(before[0], raises=raises), Forgiving(before[1])
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        for stream, real in ((out, sys.__stdout__), (err, sys.__stderr__)):
            stream.raises = False
            stream.flush()
            if stream.failure is not None and stream.stream is real:
                _drain(real)


def open_descriptors() -> None:
    """Open standard input, output and error where they are closed, on nothing.

    The next file that is opened would take their numbers, and what libraries print would go into it. Python has no
    standard input then: an empty one stands for it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdin = io.StringIO()


def _drain(stream: Any) -> None:
    """Lead a failed stream nowhere: what it still holds would fail again as the process ends."""
    with suppress(Exception):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
