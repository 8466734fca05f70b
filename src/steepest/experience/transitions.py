"""Rows of recorded steps, and the transitions that minibatches are made of.

A row is all that environments did at one moment, in the convention of ``types.Rollout``: the row after it holds the
true observation that followed. Rows are numbered from the beginning of the recording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.experience.datasets.dataset import pieces
from steepest.types import ObsField

Batch = dict[str, Tensor]
Array = NDArray[Any]


def hash_of(arrays: Mapping[str, Array]) -> str:
    """Return a hash of arrays, by which a resumed run knows that it has the same; read in pieces, for mapped files.

    Verified:  tests/integration/test_offline_runs.py::test_a_changed_dataset_is_refused,
               tests/integration/test_off_pac_logged.py::test_a_run_on_a_log_resumes_to_the_same_bits
    """
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for piece in pieces(array):
            digest.update(np.ascontiguousarray(array[piece]).tobytes())
    return digest.hexdigest()


class Transitions:
    """Rows in memory or in files, to read transitions from; ``replay.ReplayBuffer`` writes them, datasets hold them."""

    length: int
    """Rows that there is room for; row i lies at i modulo this."""
    envs: int
    """Environments per row."""
    written: int
    """Rows so far."""
    obs_fields: tuple[ObsField, ...]
    flat: dict[str, Array]
    """Arrays (length envs, ...): obs/*, action, reward, terminated, truncated, valid and, where there are any,
    action_mask, episode_step."""
    more: tuple[str, ...] = ()
    """Further arrays that a transition takes along."""
    stacked: set[str]
    """Image fields of which only the newest frame is stored."""
    frame_stack: int = 1
    repeats_first_frame: bool = False
    """Fill a stack up with the first frame at the beginning of an episode; else with zeros."""

    def transitions(self, row: Array, env: Array, *, gamma: float, n_steps: int = 1) -> Batch:
        """The transitions that begin at these rows of these environments, by their numbers since the beginning.

        Equation:  reward = sum_{k < m} gamma^k r_{t+k},  discount = gamma^m,  next_obs = o_{t+m}
                   m = n_steps, or fewer decisions where the episode ends, or where the buffer does. A row is a step
                   of n_steps whether it decides or pauses, so that a window never reaches further than n_steps rows;
                   with m decisions among them discount is gamma^m, which keeps the target unbiased
        Returns:   obs/*, action, reward, terminated, discount, next_obs/*, and where there are masks action_mask and
                   next_action_mask; the target of a critic is reward + discount (1 - terminated) V(next_obs)
        Verified:  tests/unit/test_buffers.py::test_n_step_returns_against_a_loop,
                   tests/unit/test_buffers.py::test_next_observations_are_the_true_ones
        """
        here = (row % self.length) * self.envs + env
        # Rows that decided nothing, pauses and restarts, hold no rewards: they pass on what comes after.
        reward, terminated = self.flat["reward"][here], self.flat["terminated"][here]
        discount = np.where(self.flat["valid"][here], np.float32(gamma), np.float32(1.0))
        going = ~(terminated | self.flat["truncated"][here])
        following = row + 1
        for k in range(1, n_steps):
            if not going.any():
                break
            at = (np.minimum(row + k, self.written - 1) % self.length) * self.envs + env
            going = going & (row + k < self.written)
            ended = self.flat["terminated"][at]
            decided = going & self.flat["valid"][at]
            reward = np.where(decided, reward + discount * self.flat["reward"][at], reward)
            discount = np.where(decided, discount * np.float32(gamma), discount)
            terminated = terminated | (decided & ended)
            following = np.where(going, row + k + 1, following)
            going = going & ~(ended | self.flat["truncated"][at])
        after = (following % self.length) * self.envs + env
        out = {"action": self.flat["action"][here], "reward": reward}
        out |= {"terminated": terminated, "discount": discount}
        out |= {name: self.flat[name][here] for name in self.more}
        for field in self.obs_fields:
            stored = self.flat[f"obs/{field.name}"]
            for name, position, number in (("obs", here, row), ("next_obs", after, following)):
                newest = stored[position]
                stacks = field.name in self.stacked
                out[f"{name}/{field.name}"] = self._stack(stored, newest, number, env) if stacks else newest
        if "action_mask" in self.flat:
            masks = self.flat["action_mask"]
            out["action_mask"] = masks[here]
            out["next_action_mask"] = masks[after]
        return {name: torch.from_numpy(x) for name, x in out.items()}

    def _stack(self, stored: Array, newest: Array, row: Array, env: Array) -> Array:
        """The frames that led to the newest ones, those of these rows, and they themselves, oldest first."""
        step = self.flat["episode_step"][(row % self.length) * self.envs + env]
        frames = [newest]
        for back in range(1, self.frame_stack):
            inside = step >= back
            row = row - inside
            # After a pause the observation is still that before it.
            row = row - (inside & ~self.flat["valid"][(row % self.length) * self.envs + env])
            frame = stored[(row % self.length) * self.envs + env]
            if not self.repeats_first_frame:
                frame[~inside] = 0
            frames.append(frame)
        return np.concatenate(frames[::-1], axis=1)
