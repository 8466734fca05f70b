"""What is free on a disk and in memory, compared with what is needed before any of it is taken."""

from __future__ import annotations

import resource
import shutil
from contextlib import suppress
from pathlib import Path

from steepest.errors import UsageError

KEPT_FREE = 256 * 2**20
"""Bytes of a disk and of memory that a run leaves to everything else."""
NOT_WORTH_ASKING = 32 * 2**20
"""Bytes that are taken without looking: the libraries take more."""


def free_disk(folder: Path) -> int:
    """Return the free bytes of the file system that a folder is or will be on."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def free_memory() -> int | None:
    """Return the bytes that this process may still take: of the machine, its container, and its limit; None if unknown.

    Verified:  tests/unit/test_space.py::test_the_least_of_all_limits_counts
    """
    limits: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        limits.append(figures["MemAvailable"] + figures.get("SwapFree", 0))
    with suppress(OSError, ValueError):  # a container's own; "max" where there is none
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        # What is cached of files counts as used there, and goes as soon as memory is wanted.
        cached = sum(int(number) for name, number in lines if name in ("active_file", "inactive_file"))
        limits.append(most - used + cached)
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(most - pages * resource.getpagesize())
    return max(0, min(limits)) if limits else None


def require_space(needed: int, what: str, remedy: str, folder: Path | None = None) -> None:
    """Compare a need with what is free, in a folder or, without one, in memory.

    Args:      needed: bytes; what, remedy: for the message, "the replay buffer", "give a smaller buffer_size"
    Raises:    UsageError where it does not fit
    Verified:  tests/unit/test_space.py::test_what_does_not_fit_is_refused
    """
    if needed <= NOT_WORTH_ASKING:
        return
    free = free_memory() if folder is None else free_disk(folder)
    if free is None or needed <= free - KEPT_FREE:
        return
    where = "of memory" if folder is None else f"on the disk of {folder}"
    rest = in_bytes(max(0, free - KEPT_FREE))
    raise UsageError(f"{what} needs {in_bytes(needed)} {where}, where {rest} are free for it; {remedy}")


def in_bytes(number: int) -> str:
    """Return a size as people read it: "12 kB", "3.4 GB"."""
    size, units = float(number), ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    for unit in units:
        if size < 1000.0 or unit == units[-1]:
            return f"{size:.3g} {unit}"
        size /= 1000.0
    raise AssertionError("unreachable")
