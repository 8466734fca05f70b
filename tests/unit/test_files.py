"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steepest.errors import RunError
from steepest.files.atomic import atomic_file, atomic_place, open_own, remove_stray_files, write_text_atomic


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
            assert place.name == path.name
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


KILLED = """
import os, sys
from pathlib import Path
from steepest.files.atomic import atomic_place
path, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def dying(self, target):
    if moment == "before the first" and self == path:
        os._exit(9)
    if moment == "between" and self.parent != path.parent and Path(target) == path:
        os._exit(9)
    return rename(self, target)
Path.rename = dying
with atomic_place(path, replace=True) as place:
    place.mkdir()
    (place / "weights").write_text("new")
    if moment == "while writing":
        os._exit(9)
os._exit(9)
"""


@pytest.mark.parametrize(
    ("moment", "holds"),
    [("while writing", "old"), ("before the first", "old"), ("between", "old"), ("at the end", "new")],
)
@pytest.mark.parametrize("cleaner", ["the next run", "the next writer"])
def test_a_folder_is_the_old_one_or_the_new_one_whenever_it_is_killed(
    tmp_path: Path, moment: str, holds: str, cleaner: str
) -> None:
    """And whoever comes next finds it, and takes away what was left."""
    path = tmp_path / "best-model"
    path.mkdir()
    (path / "weights").write_text("old")
    (tmp_path / ".others.1.note").write_text("the user's own")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False, timeout=60)
    assert killed.returncode == 9
    assert path.exists() == (moment != "between")
    if cleaner == "the next run":
        remove_stray_files(tmp_path)
    else:
        with atomic_place(path, replace=True) as place:
            assert (path / "weights").read_text() == holds
            place.mkdir()
            (place / "weights").write_text(holds)
    assert (path / "weights").read_text() == holds
    assert sorted(p.name for p in tmp_path.iterdir()) == [".others.1.note", "best-model"]


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    """Also what it has moved: only a writer that is gone leaves strays."""
    path = tmp_path / "model"
    with atomic_place(path) as place:
        place.mkdir()
        (place / "weights").write_text("so far")
        remove_stray_files(tmp_path)
        assert (place / "weights").read_text() == "so far"
    assert (path / "weights").read_text() == "so far"


@pytest.mark.parametrize("there", [True, False])
def test_strays_of_earlier_versions_go_too(tmp_path: Path, there: bool) -> None:
    """They had a folder of their own for what was replaced, which is put back where the new one never came."""
    for name in (".best-model.4711.tmp", ".best-model.4711.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    if there:
        (tmp_path / "best-model").mkdir()
    remove_stray_files(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["best-model"]
    assert (tmp_path / "best-model" / "weights").exists() != there


def test_a_folder_does_not_replace_another_unasked(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    (path / "rows").write_text("old")

    def write() -> None:
        with atomic_place(path) as place:
            place.mkdir()
            (place / "rows").write_text("new")

    with pytest.raises(RunError, match="could not write"):
        write()
    assert (path / "rows").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no text in Unicode"):
        write_text_atomic(tmp_path / "a", "half \ud83d")
    assert list(tmp_path.iterdir()) == []
