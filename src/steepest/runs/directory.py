"""The folder of one run: where everything is, who may write there, and writes that are whole or absent."""

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
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from steepest.errors import RunError, UsageError

_TEMPORARY = re.compile(r"^\..+\.\d+-\d+\.tmp$")
_counter = itertools.count()


# ---------------------------------------------------------------------------------------------------------------------
# Writes that are whole or absent
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a file that appears at ``path`` only once it is complete and on disk.

    The bytes go to a temporary file in the same folder, which is synced and then renamed over ``path``; the folder is
    synced too, so the new name survives a power cut. Whatever goes wrong, an earlier file at ``path`` is untouched.

    Raises:    RunError when the system refuses (disk full, no permission, ...); the temporary file is gone by then
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _open_temporary(path)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Renamed while still locked: remove_stray_files in another process cannot take it for an orphan.
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, wholly or not at all.

    Raises:    RunError when the system refuses the write
    """
    with atomic_file(path) as file:
        file.write(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, wholly or not at all.

    Raises:    RunError when the system refuses the write
    """
    write_bytes_atomic(path, text.encode())


def remove_stray_files(folder: Path) -> None:
    """Delete the temporary files that killed writers left in ``folder``; files still being written stay."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if _TEMPORARY.match(path.name):
                with suppress(OSError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


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


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = path.parent / f".{path.name}.{os.getpid()}-{next(_counter)}.tmp"
        file = temporary.open("xb")
        with suppress(OSError):  # some network file systems have no locks; then nothing is cleaned up there either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # removed as an orphan between its creation and its lock


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _explain_write_failure(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: could not write {path}. What was there before is untouched. "
            "Free some space, then continue with --resume."
        )
    return f"could not write {path}: {error.strerror or error}. What was there before is untouched."


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

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

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
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the output directory {path} cannot be made: {error.strerror}. Choose another one with --out."
            ) from error
        directory = cls(path, _lock_folder(path))
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

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file ``name`` of this folder.

        Raises:    RunError when it is missing or not a JSON object
        """
        return read_json(self.path / name)

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        if self._lock is not None:
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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at ``path``.

    Raises:    RunError when it is missing, unreadable or not a JSON object
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: the run in that folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} holds a JSON {type(data).__name__}; an object was expected.")
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
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot write in {path}: {error.strerror}. Choose another output directory with --out."
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
        break
    with suppress(OSError):  # the pid is a courtesy; a full disk shows itself at the first real write
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    _held_locks.add(descriptor)
    return descriptor


# ---------------------------------------------------------------------------------------------------------------------
# Where a result came from
# ---------------------------------------------------------------------------------------------------------------------

_PACKAGES = ("steepest", "torch", "numpy", "gymnasium", "envpool", "mujoco", "ale-py")


def environment_report() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, machine, threads, and the state of the current git repository.

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
