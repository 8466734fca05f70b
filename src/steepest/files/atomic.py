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

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.\d+(-\d+)?\.(tmp|old)$")
"""Names of what is being written. Earlier versions moved a folder that was replaced to one ending in .old."""
_REPLACED = ".old"
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
        remove_stray_files(path.parent, path.name)
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
def atomic_place(path: Path, *, replace: bool = False) -> Generator[Path]:
    """Give a free path of the same name, for a file or a folder that a library writes; complete, it becomes ``path``.

    It lies in a hidden folder beside ``path``, where a folder that it replaces is moved first: killed between the two
    steps, the next ``remove_stray_files`` puts that one back. Whatever else goes wrong, ``path`` holds what it held.

    Args:      replace: put a folder in the place of another; a file always replaces one
    Raises:    RunError when the system refuses
    Verified:  tests/unit/test_files.py::test_a_place_is_taken_as_a_whole,
               tests/unit/test_files.py::test_a_folder_is_the_old_one_or_the_new_one_whenever_it_is_killed
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stray_files(path.parent, path.name)
        holder, lock = _open_holder(path)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    new, old = holder / path.name, holder / f"{path.name}{_REPLACED}"
    try:
        yield new
        for file in (new, *new.rglob("*")):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            elif file.is_dir():
                _sync_folder(file)
        if replace and path.is_dir():
            path.rename(old)
        new.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_explain_write_failure(path, error)) from error
    finally:
        with suppress(OSError):
            _tidy(holder, path.name)
        os.close(lock)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, wholly or not at all.

    Raises:    RunError when the system refuses the write
    """
    with atomic_file(path) as file:
        file.write(data)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, wholly or not at all.

    Raises:    RunError when the system refuses the write, or the text holds half a character, as a file name may
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise RunError(f"could not write {path}: what goes into it is no text in Unicode ({error.reason})") from error
    write_bytes_atomic(path, data)


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


def remove_stray_files(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers left in ``folder``, or put back what they had moved; what is being written stays.

    Args:      name: of one file or folder, to look for what its writers left alone
    Verified:  tests/unit/test_files.py::test_a_folder_is_the_old_one_or_the_new_one_whenever_it_is_killed,
               tests/unit/test_checkpoint.py::test_stray_temporary_files_go_and_files_being_written_stay
    """
    with suppress(OSError):
        for path in list(Path(folder).iterdir()):
            match = _TEMPORARY.match(path.name)
            if match is None or name not in (None, match["name"]):
                continue
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _tidy(path, match["name"])
                finally:
                    os.close(descriptor)


def _tidy(path: Path, name: str) -> None:
    """Delete a temporary file or folder; what it holds of a folder that is missing beside it goes back first."""
    old = path if path.suffix == _REPLACED else path / f"{name}{_REPLACED}"
    if old.is_dir() and not os.path.lexists(path.parent / name):
        old.rename(path.parent / name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_holder(path: Path) -> tuple[Path, int]:
    """Make and lock a hidden folder beside a path, for what is going to be there."""
    while True:
        holder = path.parent / f".{path.name}.{os.getpid()}-{next(_counter)}.tmp"
        holder.mkdir()
        try:
            descriptor = os.open(holder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed as an orphan before it was opened
            continue
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if holder.is_dir():
            return holder, descriptor
        os.close(descriptor)  # or before it was locked


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
