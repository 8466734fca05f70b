"""The C library's treatment of freed memory."""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next tensor instead of giving it back to the system at once.

    A gradient step on thousands of rows allocates megabytes and frees them again; returned and mapped anew, their pages
    are faulted in on every step, which took up to a fifth of its time. Does nothing on another C library.
    """
    trim_threshold, mmap_threshold = -1, -3  # the numbers of malloc.h
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(trim_threshold, 1 << 30)
