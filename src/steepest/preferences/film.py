"""Pictures of what an agent plays while it learns: of some stretches of a rollout, taken as they are played.

People compare what was truly played. Playing it again in an environment that draws would need the environment to be
deterministic, and to keep nothing from one episode to the next; so the environments of training draw themselves, and
only those steps that somebody may be asked about.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.environments.batch import EnvBatch, StepResult
from steepest.errors import SteepestError, UsageError

Place = tuple[int, int]
"""Where a stretch begins: its first row in the rollout, and its environment."""


class Picture(NamedTuple):
    """A picture, packed without loss: those of a whole rollout would fill the memory."""

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, frame: NDArray[np.uint8]) -> Picture:
        """Pack a picture."""
        return cls(frame.shape, zlib.compress(frame.tobytes(), 1))

    def unpacked(self) -> NDArray[np.uint8]:
        """Return the picture, (height, width, 3)."""
        return np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.shape)


@contextmanager
def seen_by_people(name: str, needed: bool) -> Generator[None]:
    """Say, of environments that cannot be made with pictures, what the pictures are needed for.

    Raises:    UsageError in the place of whatever an environment says of its render mode
    Verified:  tests/integration/test_live_labels.py::test_what_people_cannot_see_is_refused_before_anything_is_trained
    """
    try:
        yield
    except SteepestError as error:
        if needed and "render_mode" in str(error):
            raise _unseen(name, error) from error
        raise


def _unseen(name: str, error: Exception) -> UsageError:
    why = str(error) or type(error).__name__
    return UsageError(f"people cannot be asked about {name}, of which there are no pictures (render_mode): {why}")


class Film:
    """A batch of environments that is filmed, where a rollout is; see ``experience.rollout.Environments``.

    Args:      batch, made with render_mode "rgb_array"; steps of a stretch; length of a rollout, in rows
    Raises:    UsageError where the environments give no pictures, or a stretch is longer than a rollout
    Verified:  tests/unit/test_film.py::test_stretches_are_filmed_as_they_are_played
    """

    def __init__(self, batch: EnvBatch, steps: int, length: int) -> None:
        if steps > length:
            raise UsageError(
                f"clip_steps is {steps}, but a rollout has {length} steps of every environment: set clip_steps to "
                "less, or rollout_steps to more"
            )
        self.batch = batch
        self.steps = steps
        self.length = length
        self.num_envs, self.obs_spec, self.action_spec = batch.num_envs, batch.obs_spec, batch.action_spec
        self.info_keys = batch.info_keys
        self.fps = batch.render_fps
        self.kept: dict[Place, list[Picture]] = {}
        self._row = 0
        self._wanted = 0
        self._begins: dict[int, int] = {}  # environment -> the row at which its next stretch begins
        self._rolling: dict[int, list[Picture]] = {}
        self._check()

    def _check(self) -> None:
        """Take one picture, before anything is trained."""
        self.batch.reset(None)
        try:
            (frame,) = self.batch.pictures([0])
        except Exception as error:  # whatever an environment does that has never been asked for one
            raise _unseen(self.batch.name, error) from error
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise UsageError(
                f"{self.batch.name} gave a picture of shape {frame.shape} and type {frame.dtype}; expected "
                "(height, width, 3) and uint8, as render_mode 'rgb_array' has it"
            )

    def begin(self, wanted: int, generator: torch.Generator) -> None:
        """Film about so many stretches of the rollout that comes next, in environments that are drawn from all.

        Fewer where episodes end within them. With 0 nothing is drawn, and stepping costs what it did.
        """
        self.kept, self._rolling, self._begins = {}, {}, {}
        self._row, self._wanted = 0, wanted
        if wanted < 1:
            return
        each = self.length // self.steps
        count = min(self.num_envs, math.ceil(wanted / each))
        chosen = torch.randperm(self.num_envs, generator=generator)[:count]
        # Somewhere in the rows that are left over, or what comes at its end would never be seen.
        first = torch.randint(self.length - each * self.steps + 1, (count,), generator=generator)
        self._begins = dict(zip(chosen.tolist(), first.tolist(), strict=True))

    def reset(self, seed: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_] | None]:
        """Reset the environments; what was being filmed is dropped."""
        self._rolling, self._begins = {}, {}
        return self.batch.reset(seed)

    def step(self, action: NDArray[Any]) -> StepResult:
        """Step the environments, and take the pictures that are due."""
        if not self._begins and not self._rolling:
            return self.batch.step(action)
        begins = [i for i, row in self._begins.items() if row == self._row]
        for i, picture in zip(begins, self._take(begins), strict=True):
            del self._begins[i]
            self._rolling[i] = [picture]
        result = self.batch.step(action)
        self._row += 1
        # The row after an end restarts, and nothing is decided in it.
        done = result.terminated | result.truncated
        cut = [i for i, roll in self._rolling.items() if not result.valid[i] or (done[i] and len(roll) < self.steps)]
        for i in cut:
            del self._rolling[i]
            self._resume(i, self._row + int(done[i]))
        filmed = list(self._rolling)
        for i, picture in zip(filmed, self._take(filmed), strict=True):
            self._rolling[i].append(picture)
            if len(self._rolling[i]) > self.steps:
                self.kept[self._row - self.steps, i] = self._rolling.pop(i)
                self._resume(i, self._row + int(done[i]))
        if len(self.kept) >= self._wanted:
            self._begins, self._rolling = {}, {}
        return result

    def step_async(self, action: NDArray[Any]) -> None:
        """Begin a step, unfilmed."""
        self.batch.step_async(action)

    def step_wait(self) -> StepResult:
        """End a step that ``step_async`` has begun."""
        return self.batch.step_wait()

    def _resume(self, index: int, row: int) -> None:
        """Film an environment again from a row on, if a stretch still fits into the rollout."""
        if row + self.steps <= self.length:
            self._begins[index] = row

    def _take(self, which: Sequence[int]) -> list[Picture]:
        return [Picture.of(frame) for frame in self.batch.pictures(which)] if which else []
