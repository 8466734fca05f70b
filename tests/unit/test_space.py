"""Needs of disk and memory, compared with what is free."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest

from steepest import UsageError
from steepest.files import space


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a margin; a folder need not exist yet."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 2 * 10**9))
    folder = tmp_path / "not" / "yet"
    space.require_space(2 * 10**9 - space.KEPT_FREE, "it", "help", folder)
    with pytest.raises(UsageError, match=r"^it needs 1.73 GB on the disk of .*not/yet, where 1.73 GB are free for it"):
        space.require_space(2 * 10**9 - space.KEPT_FREE + 1, "it", "help", folder)
    monkeypatch.setattr(space, "free_memory", lambda: 10**9 + space.KEPT_FREE)
    space.require_space(10**9, "it", "help")
    with pytest.raises(UsageError, match=r"^it needs 15 TB of memory, where 1 GB are free for it; help$"):
        space.require_space(15 * 10**12, "it", "help")
    monkeypatch.setattr(space, "free_memory", lambda: None)
    space.require_space(15 * 10**11, "it", "help")


def test_the_least_of_all_limits_counts() -> None:
    """The machine's, and the process's own."""
    whole = space.free_memory()
    assert whole is not None
    assert 2**20 < whole < 2**50
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
        limited = space.free_memory()
        assert limited is not None
        assert limited <= min(2**40, whole + 2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (12_345, "12.3 kB"), (3 * 10**9, "3 GB")],
)
def test_sizes_are_said_as_people_read_them(number: int, text: str) -> None:
    assert space.in_bytes(number) == text
