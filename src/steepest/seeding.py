"""Seeds of a run's streams of random numbers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_process_generator = threading.RLock()


def stream_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of a run: streams of the same run, and of neighbouring seeds, never overlap."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


@contextmanager
def drawing_from(seed: int, devices: Sequence[torch.device] | None = None) -> Generator[None]:
    """Seed PyTorch's own generators, of which there is one in a process, and leave them as they were.

    Initialisers and dropout layers draw from these and from no other. Threads therefore take turns: two runs side by
    side would draw each other's numbers.

    Args:      devices: GPUs whose generators are put back too; default: all
    Verified:  tests/unit/test_seeding.py::test_threads_draw_what_they_draw_alone
    """
    with _process_generator, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
