"""The folder of one run: where everything is, and who may write there."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from steepest.errors import RunError, UsageError
from steepest.files.atomic import open_own, remove_stray_files, write_text_atomic
from steepest.files.reading import Unusable, parse_json, read_text, refuse_halves
from steepest.files.schema import check

# ---------------------------------------------------------------------------------------------------------------------
# The run's folder
# ---------------------------------------------------------------------------------------------------------------------

_held_locks: set[int] = set()

_LOCK_PATIENCE = 0.5
"""Seconds to wait for a lock: a run just killed holds its own until the system has taken it down."""


def _close_locks_in_child() -> None:
    # A forked environment worker inherits the lock; if it outlived a killed run, the run could not be resumed.
    for descriptor in _held_locks:
        with suppress(OSError):
            os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


class RunDirectory:
    """The folder that holds one run, locked against a second writer until closed.

    ``config.json``, ``metrics.jsonl``, ``summary.json``, ``curve.png``, ``checkpoints/`` and ``tensorboard/`` live in
    it. Make one by :meth:`create` for a new run or :meth:`open` for an old one; use it as a context manager or call
    :meth:`close`.
    """

    def __init__(self, path: Path, lock: int | None, *, made: bool = False) -> None:
        self.path = path
        self._lock = lock
        self._made = made

    @classmethod
    def create(cls, path: Path | None, name: str) -> Self:
        """Make and lock the folder of a new run.

        Args:      path, or None for ``runs/<name>`` (with -2, -3, ... appended while that exists);
                   name such as "ppo-CartPole-v1-seed0", other characters than letters, digits and ._+- become "-"
        Raises:    UsageError when the path holds a run already, is in use, or cannot be a folder
        """
        if path is None:
            base = Path("runs") / (re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run")
            path = _first_free(base)
            made = True
        else:
            made = not Path(path).exists()
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the output directory {path} cannot be made: {error.strerror}. Choose another one with --out."
            ) from error
        directory = cls(path, _lock_folder(path), made=made)
        try:
            if directory._holds_run():
                if not directory.config_path.exists():
                    raise UsageError(
                        f"{path} holds the beginnings of a run that was stopped before it could start. "
                        "Delete that folder, or choose another --out."
                    )
                raise UsageError(
                    f"{path} already holds a run. To continue it: --resume {path}. "
                    "To start afresh: choose another --out, or delete that folder."
                )
            remove_stray_files(path)
        except BaseException:
            directory.close()
            raise
        return directory

    @classmethod
    def open(cls, path: Path, *, lock: bool = True) -> Self:
        """Open the folder of an existing run: locked, to resume it; or not, only to read it.

        Raises:    UsageError when there is no run at the path, or, with ``lock``, another process writes to it
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            seen = "does not exist" if not path.exists() else "has no config.json in it"
            raise UsageError(f"no run at {path}: it {seen}. Give the folder that `steepest train` reported.")
        directory = cls(path, _lock_folder(path) if lock else None)
        if lock:
            remove_stray_files(path)
        return directory

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def curve_path(self) -> Path:
        return self.path / "curve.png"

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Write ``data`` to the file ``name`` of this folder, wholly or not at all; NaN and infinities become null.

        Raises:    RunError when the system refuses the write; TypeError on what JSON cannot hold
        """
        path = self.path / name
        write_text_atomic(path, json.dumps(finite_json(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    def read_json(self, name: str, shape: Any = dict) -> dict[str, Any]:
        """The JSON object in the file ``name`` of this folder; arguments and errors as of ``read_json``."""
        return read_json(self.path / name, shape)

    def holds_summary(self, summary: Mapping[str, Any]) -> bool:
        """Return whether summary.json says this, but for times: the last checkpoint cannot know what saving it took.

        A summary is output: one that is damaged is written again.
        """
        found: dict[str, Any] = {}
        with suppress(RunError):
            found = self.read_json("summary.json")
        mine = finite_json(summary)
        keys = found.keys() | mine.keys()
        return all(found.get(k) == mine.get(k) for k in keys - {"wall_seconds", "steps_per_second"})

    def close(self) -> None:
        """Release the lock, and take away a folder that was made and never used. Closing twice is harmless."""
        if self._lock is not None:
            if self._made:
                with suppress(OSError):
                    if [path.name for path in self.path.iterdir()] == [".lock"]:
                        (self.path / ".lock").unlink()
                        self.path.rmdir()
            _held_locks.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _holds_run(self) -> bool:
        return (
            self.config_path.exists()
            or self.metrics_path.exists()
            or next(self.checkpoints_path.glob("*.safetensors"), None) is not None
        )


def finite_json(value: Any) -> Any:
    """``value`` with NaN and infinities replaced by None, because JSON has no such numbers; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in cast(list[Any], value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # NumPy and torch scalars
        return finite_json(value.item())
    return value


def check_saved(path: Path) -> None:
    """Raise UsageError where a path is neither a file, as of a saved agent, nor the folder of a run; reads nothing.

    Verified:  tests/integration/test_light.py::test_wrong_arguments_are_told_without_torch
    """
    if path.is_file():
        return
    if not path.exists():
        raise UsageError(f"there is nothing at {path}; give a run's folder, a checkpoint, or a saved agent")
    if not (path / "config.json").is_file() and not (path / "checkpoints").is_dir():
        raise UsageError(
            f"no run at {path}: it has no config.json in it; give the folder that `steepest train` reported"
        )


def check_same_run(checkpoint: Path, metadata: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Compare what a checkpoint says of its run with the run's config.json.

    Raises:    RunError that names what was changed
    Verified:  tests/integration/test_resume.py::test_an_edited_config_is_refused
    """
    known = metadata.get("description", metadata)
    names = [name for name in ("algorithm", "env", "env_kwargs", "config", "run") if name in known]
    edited = different({name: known[name] for name in names}, {name: saved.get(name) for name in names})
    if edited:
        raise RunError(
            f"{checkpoint.parent.parent / 'config.json'} is not what {checkpoint.name} was trained with: "
            f"{'; '.join(edited)}. Change it back to resume, or start a new run from the saved agent"
        )


def different(one: Any, other: Any, name: str = "") -> list[str]:
    """Return where two descriptions of a run differ, in words; how long it is meant to train may differ.

    Verified:  tests/unit/test_directory.py::test_where_two_descriptions_differ
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        a, b = cast(Mapping[str, Any], one), cast(Mapping[str, Any], other)
        keys = [key for key in {**a, **b} if key != "total_steps"]
        return [text for k in keys for text in different(a.get(k), b.get(k), f"{name}.{k}" if name else k)]
    return [] if one == other else [f"{name} was {json.dumps(one)}, is {json.dumps(other)}"]


def read_json(path: Path, shape: Any = dict) -> dict[str, Any]:
    """The JSON object in the file at ``path``, of a shape that ``files.schema.check`` knows.

    Raises:    RunError when it is missing, unreadable, no JSON object or of another shape
    Verified:  tests/integration/test_damaged_runs.py::test_what_a_config_must_hold_is_checked_at_the_door
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise RunError(f"{path} cannot be read as JSON: it is no ordinary file")
    try:
        text = read_text(path)
        data = parse_json(text)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the run in that folder is incomplete.") from error
    except Unusable as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} holds a JSON {type(data).__name__}; an object was expected.")
    try:
        refuse_halves(data)
        check(data, shape)
    except Unusable as error:
        raise RunError(f"{path} is not as steepest wrote it: {error}. Restore that file, or start a new run") from error
    return cast(dict[str, Any], data)


def _first_free(base: Path) -> Path:
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir(parents=True)  # fails if it exists, so that two runs starting together get two folders
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"the output directory {path} cannot be made: {error.strerror}. Choose another one with --out."
            ) from error
        return path
    raise AssertionError("unreachable")


def _lock_folder(path: Path) -> int:
    file = path / ".lock"
    try:
        descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        name = "" if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR) else f"{file.name}: "
        raise UsageError(
            f"cannot write in {path}: {name}{error.strerror}. Choose another output directory with --out."
        ) from error
    give_up = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < give_up:
                time.sleep(0.02)
                continue
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UsageError(
                f"{path} is in use by another process ({owner}). Wait for it to end, or choose another --out."
            ) from error
        except OSError:
            pass  # this file system has no locks: better to train unlocked than not at all
        if os.fstat(descriptor).st_nlink == 0:  # another run took its unused folder away in between
            os.close(descriptor)
            path.mkdir(parents=True, exist_ok=True)
            return _lock_folder(path)
        break
    with suppress(OSError):  # the pid is a courtesy; a full disk shows itself at the first real write
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    _held_locks.add(descriptor)
    return descriptor


# ---------------------------------------------------------------------------------------------------------------------
# Where a result came from
# ---------------------------------------------------------------------------------------------------------------------

_PACKAGES = (
    *("steepest", "torch", "numpy", "gymnasium", "envpool", "mujoco", "ale-py"),
    *("transformers", "tokenizers", "peft", "bitsandbytes"),
)


def environment_report() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, machine, threads, and the state of the git repository.

    Takes well under 50 ms, imports none of the packages it reports, uses no network and never fails; what it cannot
    find out is None, and packages that are not installed are absent.
    """
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(Exception):
            packages[name] = importlib.metadata.version(name)
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": packages,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": _cpu_count(),
        "threads": _thread_count(),
        "gpu": _gpu_name(),
        "git": _git_state(),
    }
    return report


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two environment reports and can change the bits of a computation, in words.

    Of the packages only those that this process has imported count.

    Verified:  tests/unit/test_directory.py::test_what_changed_since_a_report
    """
    pairs = [(name, then["packages"].get(name), now["packages"].get(name)) for name in _PACKAGES]
    pairs = [pair for pair in pairs if pair[0].replace("-", "_") in sys.modules]
    pairs.append(("CPU", then["cpu"], now["cpu"]))
    if then["gpu"] and now["gpu"]:  # None only says that no GPU was in use
        pairs.append(("GPU", then["gpu"], now["gpu"]))
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def _cpu_model() -> str | None:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine() or None


def _cpu_count() -> int | None:
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))  # what this process may use, which a container may have cut down
    return os.cpu_count()


def _thread_count() -> int | None:
    torch = sys.modules.get("torch")
    with suppress(Exception):
        if torch is not None:
            return int(torch.get_num_threads())
    with suppress(KeyError, ValueError):
        return int(os.environ["OMP_NUM_THREADS"])
    return None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    with suppress(Exception):
        # Asking whether CUDA is available starts the driver; a run that uses the GPU has started it already.
        if torch is not None and torch.cuda.is_initialized():
            return str(torch.cuda.get_device_name())
    return None


def _git_state() -> dict[str, Any] | None:
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        result = subprocess.run(
            command,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # only look: never rewrite the user's index
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2.0,
            text=True,
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = result.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": None if commit == "(initial)" else commit, "dirty": dirty}
