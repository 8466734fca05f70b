"""Stages side by side, in processes of their own.

Apart from the command, since a fresh process cannot import what a package's ``__main__`` defines.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from demonstrations.sentiment.methods import Experiment, all_methods


def together(experiment: Experiment, tasks: list[Callable[..., Any]], jobs: int) -> None:
    """Independent stages, ``jobs`` of them at a time, each on one thread.

    Verified:  tests/unit/test_demonstrations.py::test_workers_find_what_they_are_given
    """
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
