"""EnvPool's C++ environments behind the same face."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from steepest.environments.batch import EnvBatch, derive_seeds
from steepest.environments.names import import_envpool


class EnvPoolBatch(EnvBatch):
    """N environments of EnvPool.

    EnvPool follows the NEXT_STEP convention itself: an environment's row after its episode's end is its restart. (It
    shows ``info["elapsed_step"] == 0`` there, except where an Atari game goes on after a lost life.) Two things differ
    from Gymnasium:

    - EnvPool takes seeds only at construction, so ``reset(seed)`` makes the pool anew.
    - An episode that terminates on the very step of its time limit is truncated only.

    Args: num_threads: default as many as there are cores to run on, at most ``num_envs``. wrap: put around every pool.
          info_keys: see ``EnvBatch``. options: go to ``envpool.make_gymnasium``.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int = 0,
        wrap: Callable[[Any], Any] | None = None,
        info_keys: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._wrap = wrap
        options.setdefault("num_threads", min(num_envs, available_cores()))
        self._env_id = env_id
        self._options = {**options, "num_envs": num_envs}
        self._unused_seed: int | None = seed  # of a pool that has not played yet
        # The pool's arrays are never used twice, so they need no copy.
        pool = self._make_pool(seed)
        super().__init__(pool, name=env_id, backend="envpool", seed=seed, shares_memory=False, info_keys=info_keys)

    def _make_pool(self, seed: int) -> Any:
        envpool = import_envpool()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            seeds = derive_seeds(seed, self._options["num_envs"])
            pool = envpool.make_gymnasium(self._env_id, seed=seeds, **self._options)
            # Made on first use, with a warning about rounded bounds each time.
            _ = pool.observation_space, pool.action_space
        return pool if self._wrap is None else self._wrap(pool)

    def _reset_all(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and seed != self._unused_seed:
            self._venv.close()
            self._venv = self._make_pool(seed)
        self._unused_seed = None
        return self._venv.reset()


def available_cores() -> int:
    """Cores this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
