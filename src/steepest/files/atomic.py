"""Files that are whole or absent, whatever interrupts the writing of them."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from steepest.errors import RunError

_TEMPORARY = re.compile(r"^\..+\.\d+-\d+\.tmp$")
_counter = itertools.count()


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


@contextmanager
def atomic_place(path: Path) -> Generator[Path]:
    """Give a free path in the same folder, for a file or a folder that a library writes; complete, it becomes ``path``.

    Whatever goes wrong, ``path`` holds what it held before. A folder does not replace another.

    Raises:    RunError when the system refuses
    Verified:  tests/unit/test_files.py::test_a_place_is_taken_as_a_whole
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{next(_counter)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    try:
        yield temporary
        for file in (temporary, *temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            elif file.is_dir():
                _sync_folder(file)
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    finally:
        with suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
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


def open_own(path: Path, flags: int) -> int:
    """Open a file that is written in place, an ordinary one that no link shares; return its descriptor.

    Args:      flags of os.open besides O_CLOEXEC, such as os.O_RDWR | os.O_CREAT
    Raises:    OSError where it is a link, a folder, a pipe, or has another name besides: what it stands for is not ours
    Verified:  tests/unit/test_files.py::test_a_link_is_never_written_through
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not written through", str(path)) from error
        raise
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(descriptor)
        named = "it has another name besides (a hard link)" if stat.S_ISREG(about.st_mode) else "it is no ordinary file"
        raise OSError(errno.EMLINK, f"{named}, and is not written to", str(path))
    return descriptor


def remove_stray_files(folder: Path) -> None:
    """Delete the temporary files that killed writers left in ``folder``; files still being written stay."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if _TEMPORARY.match(path.name):
                with suppress(OSError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


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
