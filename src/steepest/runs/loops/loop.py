"""The protocol of loops: what happens between two rows of metrics, once per data regime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steepest.experience.rollout import Episode

Watch = Callable[[int], None]
"""Takes how many steps of every member an iteration has taken so far, for those that are long."""


def unwatched(steps: int) -> None:
    """Drop a number of steps, for which nobody asked."""
    del steps


class Iteration(NamedTuple):
    """Result of an iteration."""

    episodes: list[Episode]
    steps: NDArray[np.int64]  # (M,) environment steps
    health: dict[str, NDArray[np.float64]]  # each (M,); empty where nothing was learned
    infos: dict[str, NDArray[np.float64]] = {}  # noqa: RUF012  # of every name in info_keys the mean over steps (M,)


def last_means(keys: tuple[str, ...], episodes: Iterable[Sequence[float | None]] = ()) -> dict[str, float]:
    """Return the mean over episodes of what their last steps gave in the named infos, where any gave something."""
    columns = zip(*episodes, strict=True)
    found = {key: [x for x in column if x is not None] for key, column in zip(keys, columns, strict=False)}
    return {f"info/{key}_last": math.fsum(values) / len(values) for key, values in found.items() if values}


class Loop(Protocol):
    """One data regime: ``loops.on_policy``, ``loops.off_policy`` or ``loops.logs``; the run owns the files."""

    @property
    def restart_due(self) -> bool:
        """Return whether a checkpoint, with its restart of the environments, cannot wait for the next iteration."""
        ...

    def open(self, folder: Path | None, *, resuming: bool) -> None:
        """Take up storage in a folder, or in memory; once, before anything else."""
        ...

    def restart(self, seed: int) -> None:
        """Restart all environments from the seed."""
        ...

    def iterate(self, progress: float, left: int, watch: Watch = unwatched) -> Iteration:
        """Play and learn; progress in [0, 1] drives schedules, and ``left`` steps per member are left of the run."""
        ...

    def finish(self, progress: float) -> None:
        """Do what is still due of the last iteration, whose progress it was; the run ends after it."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds besides the agent: tensors, and plain JSON. Storage is on disk by then."""
        ...

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        ...
