"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from steepest.errors import RunError
from steepest.files.atomic import atomic_file, atomic_place, open_own, write_text_atomic


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "could not write"), (errno.EDQUOT, "full")]
)
def test_a_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=message):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
@pytest.mark.parametrize("folder", [False, True])
def test_a_place_is_taken_as_a_whole(tmp_path: Path, folder: bool, error: BaseException | None) -> None:
    """What a library writes to a path, a file or a folder of files, is there when it is complete."""
    path = tmp_path / "new" / "a"

    def write() -> None:
        with atomic_place(path) as place:
            assert place.parent == path.parent
            assert not place.exists()
            file = place / "inner" / "b" if folder else place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("new")
            if error is not None:
                raise error
            assert not path.exists()

    if error is None:
        write()
        assert (path / "inner" / "b" if folder else path).read_text() == "new"
        assert list(path.parent.iterdir()) == [path]
        return
    with pytest.raises(RunError if isinstance(error, OSError) else KeyboardInterrupt):
        write()
    assert list(path.parent.iterdir()) == []


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    """Symbolic or hard; nor are pipes and folders opened."""
    victim, place = tmp_path / "victim", tmp_path / "place"
    victim.write_text("keep")
    for make in (place.symlink_to, place.hardlink_to):
        make(victim)
        with pytest.raises(OSError, match="link"):
            open_own(place, os.O_RDWR | os.O_CREAT)
        place.unlink()
    os.mkfifo(place)
    with pytest.raises(OSError, match="no ordinary file"):
        open_own(place, os.O_RDWR | os.O_CREAT)
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="symbolic link"):
        open_own(place, os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "nowhere").exists()
    place.unlink()
    os.close(open_own(place, os.O_RDWR | os.O_CREAT))
    os.close(open_own(place, os.O_RDWR))
    assert victim.read_text() == "keep"
