"""What ``torchrun`` tells each process that it starts; read without loading torch."""

from __future__ import annotations

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """This process among those of one run."""

    rank: int = 0
    local_rank: int = 0  # among those on this machine
    world_size: int = 1


def launch() -> Launch:
    """From the environment; one process alone, unless everything is there that processes need to meet.

    Verified:  tests/unit/test_distributed.py::test_what_torchrun_says
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if any(name not in os.environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in names))
