"""PyTorch's threads, where one is faster than several."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Generator[None]:
    """Let PyTorch use one thread; also a decorator.

    Tables of a few states are bound by the calls on them: a second thread only waits, and on a busy machine that made
    ``steepest estimators`` more than ten times slower.

    Verified:  tests/unit/test_learner.py::test_one_thread_within_and_as_before_after
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
