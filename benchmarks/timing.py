"""What every timed script shares: its arguments, its thread limit and its one line of output. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
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


LEARNING_STARTS = 1_000
FIRST_UPDATES = 200
"""Of the off-policy peers: steps before the first gradient step, and gradient steps before the clock starts."""


def learn_off_policy(model: Any, total_steps: int, wait: Callable[[], Any]) -> dict[str, Any]:
    """Time steps of Stable-Baselines3's off-policy interface in which a gradient step is taken.

    wait: returns when all that was computed is there
    """
    start = time.perf_counter()
    model.learn(LEARNING_STARTS + FIRST_UPDATES)
    wait()
    warm_up_seconds = time.perf_counter() - start
    first_step, first_update = model.num_timesteps, model._n_updates

    start, cpu_start = time.perf_counter(), time.process_time()
    model.learn(total_steps, reset_num_timesteps=False)
    wait()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    steps, updates = model.num_timesteps - first_step, model._n_updates - first_update
    if steps != updates:
        raise RuntimeError(f"{updates} gradient steps in {steps} environment steps")
    return {
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "step_cpu_ms": 1e3 * cpu_seconds / steps,
        "warm_up_seconds": warm_up_seconds,
    }


def report(**figures: Any) -> None:
    """Print one JSON line, the last one of the script."""
    print(json.dumps(figures), flush=True)
