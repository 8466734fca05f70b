"""The files of a ring of rows: arrays of an exact size, and checksums of what was written into them."""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from steepest.errors import RunError
from steepest.files.atomic import open_own

Array = NDArray[Any]


class Checksums:
    """Checksums of a ring's rows, in a file beside it; 0 where none was ever recorded, which no row has."""

    CHUNK = 4096

    def __init__(self, path: Path, length: int, *, new: bool) -> None:
        new = new or not path.exists()  # runs of earlier versions have none
        self.array = map_file(path, (length,), np.dtype("uint32"), new=new)
        self.until = 0

    def record(self, stored: Callable[[Array], Array], until: int) -> None:
        """Take the checksums of rows up to this one that were written since the last time."""
        rows = np.arange(max(self.until, until - len(self.array) + 2), until)
        for position in self._chunks(rows):
            self.array[position] = self._of(stored(position))
        self.until = max(self.until, until)

    def altered(self, stored: Callable[[Array], Array], rows: Array) -> int:
        """Count the rows that do not have the checksum that was recorded, or of which none was."""
        return sum(int((self.array[at] != self._of(stored(at))).sum()) for at in self._chunks(rows))

    def _chunks(self, rows: Array) -> Iterator[Array]:
        for start in range(0, len(rows), self.CHUNK):
            yield rows[start : start + self.CHUNK] % len(self.array)

    @staticmethod
    def _of(content: Array) -> Array:
        return np.fromiter((zlib.crc32(row) or 1 for row in content), np.uint32, len(content))


def map_file(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, new: bool) -> Array:
    """An array in a file of exactly its size. Its blocks are reserved: a full disk is an error now, no crash later."""
    size = math.prod(shape) * dtype.itemsize
    try:
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        with os.fdopen(open_own(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0)), "r+b") as file:
            if new:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except BaseException:  # another process took the space, or this one is being stopped
                    path.unlink(missing_ok=True)
                    raise
            elif (held := os.fstat(file.fileno()).st_size) != size:
                raise RunError(f"{path} holds {held:,} bytes; this run's replay needs {size:,}")
            return cast(Array, np.memmap(file, dtype=dtype, mode="r+", shape=shape))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk is full: the replay buffer needs {size / 1e9:.2f} GB for {path}. Free some space, or give a "
                "smaller buffer_size"
            ) from error
        raise RunError(f"{path} cannot be used for replay: {error.strerror or error}") from error
