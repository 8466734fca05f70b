"""Seeds of a run's streams of random numbers."""

from __future__ import annotations

import numpy as np


def stream_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of a run: streams of the same run, and of neighbouring seeds, never overlap."""
    words = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
