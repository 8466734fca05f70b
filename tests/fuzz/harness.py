"""The command in a fork of a process that has everything loaded, watched from outside: tens of calls a minute, not two.

A call may end as the command promises: 0, 1 and 2, 130 after Ctrl-C, 143 after SIGTERM or SIGHUP, and by SIGKILL where
that was sent. Anything else is a failure, and so is a call that says "internal error", shows a traceback, sends raw
control characters to a terminal, fails without a word, or goes on after it was asked to end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["steepest", "steepest.cli.main", "steepest.api.language", "transformers", "pyarrow"])

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 40.0
"""How long a call may take before it is asked to end by SIGTERM, and then again until it has ended."""
FILE_BYTES = 300 << 20
"""No file grows beyond: a mistake must not fill the disk of whoever looks for it."""

PROMISED = (0, 1, 2, 130, 143)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "400",
    "MUJOCO_GL": "disable",
    "SDL_VIDEODRIVER": "dummy",
    "HF_HUB_OFFLINE": "1",
}


class Outcome(NamedTuple):
    """How a call ended."""

    code: int  # negative: by that signal
    out: str
    err: str
    asked: bool  # whether it was asked to end by SIGTERM, because it took long
    seconds: float

    def faults(self, *, killed: bool = False) -> list[str]:
        """What no call may do; killed: SIGKILL was sent."""
        found = []
        if self.code not in PROMISED and not (killed and self.code == -signal.SIGKILL):
            found.append(f"ended with {self.code}")
        if self.code == 143 and not self.asked and not killed and "terminated" not in self.err:
            found.append("ended with 143 though nobody asked")
        text = self.out + self.err
        found += [
            f"says {words!r}" for words in ("internal error", "Traceback (most recent call last)") if words in text
        ]
        if self.code in (1, 2) and not self.err.strip():
            found.append(f"ended with {self.code} without a word")
        if control := CONTROL.search(self.err):
            found.append(f"wrote the control character {control.group()!r}")
        return found


class Call:
    """A call that runs, in a process group of its own."""

    def __init__(
        self,
        arguments: list[Any],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.streams = [folder / "stdout", folder / "stderr"]
        texts = [str(a) for a in arguments]
        self.process = CONTEXT.Process(
            target=_run, args=(texts, str(folder), {**ENVIRONMENT, **(environment or {})}, prepare)
        )
        self.began = time.monotonic()
        self.process.start()

    def signal(self, number: int) -> None:
        """Send a signal to the command alone, as `kill` does."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait for the end; after so many seconds ask for it, after as many again take it as hanging."""
        asked = False
        self.process.join(seconds)
        if self.process.is_alive():
            asked = True
            self.signal(signal.SIGTERM)
            self.process.join(seconds)
        if self.process.is_alive():
            self.kill_group(signal.SIGKILL)
            self.process.join()
        self.kill_group(signal.SIGKILL)  # what an environment's worker may have left
        code = self.process.exitcode
        assert code is not None
        out, err = (p.read_text(errors="backslashreplace") if p.exists() else "" for p in self.streams)
        return Outcome(code, out, err, asked, time.monotonic() - self.began)

    def kill_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid or 0, number)
        except (ProcessLookupError, PermissionError):
            return


def call(arguments: list[Any], folder: Path, *, seconds: float = SECONDS, **options: Any) -> Outcome:
    """Run one command to its end; stdout and stderr are files in ``folder``, which is also the working folder."""
    return Call(arguments, folder, **options).wait(seconds)


def _run(arguments: list[str], folder: str, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, errors="surrogateescape")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.path.insert(0, str(TESTS))
    if prepare is not None:
        prepare()
    from steepest.cli.main import main

    code = main(arguments)
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def readable(arguments: list[Any]) -> str:
    """The call in one line that no terminal trips over."""
    return " ".join(json.dumps(str(a)) if re.search(r"[^\w./=:-]", str(a)) else str(a) for a in arguments)
