"""What both sides of the offline cases learn from, and what they time. NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np

EPISODES, LENGTH, OBSERVATION, ACTION = 20, 1_000, 17, 6
"""The shapes of HalfCheetah: speed depends on nothing else."""

UPDATES = {"cql": 500, "iql": 4_000, "td3_bc": 4_000}
"""Gradient steps to time, by algorithm; before the clock starts, ``WARM_UP`` of them."""
WARM_UP = 100


def arrays() -> dict[str, Any]:
    """The transitions, episode after episode: random numbers."""
    generator = np.random.default_rng(0)
    steps = EPISODES * LENGTH
    last = np.arange(steps) % LENGTH == LENGTH - 1
    return {
        "observations": generator.standard_normal((steps, OBSERVATION)).astype(np.float32),
        "actions": generator.uniform(-0.99, 0.99, (steps, ACTION)).astype(np.float32),
        "rewards": generator.standard_normal(steps).astype(np.float32),
        "terminals": np.zeros(steps, np.float32),
        "timeouts": last.astype(np.float32),
    }
