"""The whole demonstration, stage by stage; started again, it goes on where it was.

python -m demonstrations.sentiment [full | quick] [--jobs 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from demonstrations.sentiment import report
from demonstrations.sentiment.methods import Experiment, all_methods
from demonstrations.sentiment.settings import VARIANTS, budget


def main() -> int:
    """Run what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", nargs="?", choices=list(VARIANTS), default="full")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each, and threads before them")
    parser.add_argument("--out", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--budget", action="store_true", help="print what it will cost, and do nothing")
    parser.add_argument("--publish", action="store_true", help="write results and picture into docs/ as well")
    options = parser.parse_args()
    planned = budget(VARIANTS[options.variant])
    for name, seconds in {**planned, "in all": sum(planned.values())}.items():
        print(f"{name:16}{seconds:6.0f} core-seconds planned")
    if options.budget:
        return 0
    torch.set_num_threads(options.jobs)
    out = options.out.resolve()
    experiment = Experiment(VARIANTS[options.variant], out / options.variant, out / "cache", options.jobs, say)
    try:
        _ = experiment.start_record, experiment.best_of_record
        seeds = experiment.variant.seeds
        together(experiment, [partial(make_reward, seed=s) for s in seeds], options.jobs)
        together(experiment, [partial(make_method, i=i) for i in range(len(all_methods(experiment.variant)))],
                 options.jobs)  # fmt: skip
        results = report.write(experiment, publish=options.publish)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{results['core_seconds_used']:.0f} core-seconds used")
    for file in ("results.json", "frontier.png", "tables.md"):
        print(experiment.root / file)
    return 0


def together(experiment: Experiment, tasks: list[Callable[..., Any]], jobs: int) -> None:
    """Independent stages, ``jobs`` of them at a time, each on one thread."""
    if jobs == 1:
        for task in tasks:
            task(experiment)
        return
    # A fresh process for each worker: a copy of this one would inherit its threads' locks.
    context = multiprocessing.get_context("spawn")
    fresh = Experiment(experiment.variant, experiment.root, experiment.cache, 1, say)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker) as pool:
        try:
            for done in [pool.submit(task, fresh) for task in tasks]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def begin_worker() -> None:
    """One thread; and an end with the process that began it, which may be killed without a word to this one."""
    torch.set_num_threads(1)
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def make_reward(experiment: Experiment, seed: int) -> None:
    """One seed's reward model."""
    experiment.reward(seed)


def make_method(experiment: Experiment, i: int) -> None:
    """One method with one seed."""
    experiment.method(*all_methods(experiment.variant)[i])


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
