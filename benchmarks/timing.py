"""What every timed script shares: its arguments, its thread limit and its one line of output. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def arguments(description: str | None, cases: list[str]) -> argparse.Namespace:
    """Parse the arguments that every timed script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=cases)
    parser.add_argument("--threads", type=int, default=1, help="threads and CPU cores this process may use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-steps", type=int, default=0, help="environment steps to time (0: the case's own)")
    return parser.parse_args()


def limit_threads(threads: int) -> None:
    """Bind this process to ``threads`` cores and say so to the numerical libraries; call before importing them.

    The binding is there because XLA has no thread-count setting: it starts as many threads as it sees cores.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def report(**figures: Any) -> None:
    """Print one JSON line, the last one of the script."""
    print(json.dumps(figures), flush=True)
