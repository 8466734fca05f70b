"""Replay: the latest transitions of all environments in one ring of rows, in memory or in files.

A row is what all environments did at one moment, in the convention of ``types.Rollout``: the row after it holds the
true observation that followed, so no observation is stored twice, ``terminated`` and ``truncated`` stay apart, and a
row that only restarts an environment has ``valid`` 0 and is never drawn. Rows are numbered from the beginning of the
run; row i lies at i modulo the length of the ring. The newest row has an observation and nothing else yet.

Resuming: a checkpoint names the number of rows written. ``spare_rows`` more than what is sampled are kept, so that what
is written between two checkpoints overwrites nothing that the earlier one needs.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.experience.ring_files import Checksums, map_file
from steepest.experience.transitions import Array, Batch, Transitions
from steepest.files.space import require_space
from steepest.types import ActionSpec, ObsSpec, Rollout


class ReplayBuffer(Transitions):
    """A ring of ``rows`` rows to sample from, for ``members`` populations of ``num_envs`` environments.

    Args:
        rows: rows that are sampled, counting those that only restart an environment.
        spare_rows: rows kept beyond them, at least what is written between two checkpoints.
        frame_stack: images are stacks of this many frames; only the newest frame is stored, and stacks are put
            together again as they are sampled.
        prioritized: draw in proportion to priorities instead of uniformly.
        folder: keep the rows in files here instead of in memory.
        reopen: take up the files that are there, to ``load_state`` next; else they are overwritten.

    Raises: UsageError where images are not stacks of frame_stack frames, or where there is not so much space; RunError
        where files cannot be made or do not hold what they should
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        *,
        rows: int,
        num_envs: int = 1,
        members: int = 1,
        spare_rows: int = 0,
        frame_stack: int = 1,
        prioritized: bool = False,
        folder: Path | None = None,
        reopen: bool = False,
    ) -> None:
        if rows < 2 or spare_rows < 0:
            raise ValueError(f"{rows} rows and {spare_rows} spare ones: a buffer needs at least 2, and no fewer than 0")
        self.rows = rows
        self.spare_rows = spare_rows
        self.length = rows + spare_rows + 1  # and one for the observation of the newest row
        self.members = members
        self.num_envs = num_envs
        self.envs = members * num_envs
        self.frame_stack = frame_stack
        self.folder = folder
        self.written = 0
        self.repeats_first_frame = False  # how a stack is filled up at the beginning of an episode; else with zeros
        self.arrays: dict[str, Array] = {}
        self._checks: Checksums | None = None
        self.flat = {}
        self._reopens = reopen
        self.obs_fields = obs_spec.fields
        self.stacked = {f.name for f in obs_spec.fields if f.kind == "image" and frame_stack > 1}
        plan: list[tuple[str, tuple[int, ...], str]] = []
        for field in obs_spec.fields:
            shape = field.shape
            if field.name in self.stacked:
                if shape[0] % frame_stack:
                    raise UsageError(
                        f"frame_stack is {frame_stack}; the images {shape} are no stack of so many frames along axis 0"
                    )
                shape = (shape[0] // frame_stack, *shape[1:])
            plan.append((f"obs/{field.name}", shape, field.dtype))
        box = action_spec.kind == "box"
        shape = () if action_spec.kind == "discrete" else (action_spec.dimension,)
        plan += [("action", shape, "float32" if box else "int64"), ("reward", (), "float32")]
        plan += [(name, (), "bool") for name in ("terminated", "truncated", "valid")]
        plan += [("episode_step", (), "int32")] if self.stacked else []
        if self._reopens and self._file("action_mask").exists():
            plan.append(("action_mask", (action_spec.mask_size,), "bool"))
        self._make(plan)
        self.trees = [SumTree(self.length * num_envs) for _ in range(members)] if prioritized else []
        self.highest_priority = np.ones(members)

    # Storage

    def _make(self, plan: list[tuple[str, tuple[int, ...], str]]) -> None:
        """Make the arrays of every environment, and that of the rows' numbers: all of them or none."""
        if not self._reopens:
            sizes = [self.envs * math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in plan]
            need = self.length * (sum(sizes) + 12)  # and the rows' numbers and checksums
            rows = f"{self.rows:,} rows of {self.envs} environment{'s' if self.envs > 1 else ''}"
            rows += f", and {self.spare_rows:,} between checkpoints" if self.spare_rows else ""
            remedy = "give a smaller buffer_size" + (", or checkpoints more often" if self.spare_rows else "")
            require_space(need, f"the replay buffer ({rows})", remedy, self.folder)
        try:
            for name, shape, dtype in plan:
                self._add(name, shape, dtype)
            self._add("row", (), "int64", per_environment=False)
            if self.folder is not None:
                self._checks = Checksums(self._file("check"), self.length, new=not self._reopens)
        except BaseException:
            if not self._reopens:
                for name in (*self.arrays, "check"):
                    self._file(name).unlink(missing_ok=True)
            raise

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, *, per_environment: bool = True) -> None:
        full = (self.length, self.envs, *shape) if per_environment else (self.length, *shape)
        if self.folder is None:
            array = np.zeros(full, dtype)  # pages that nothing has touched take no memory yet
        else:
            array = map_file(self._file(name), full, np.dtype(dtype), new=not self._reopens)
        self.arrays[name] = array
        if per_environment:
            self.flat[name] = np.asarray(array).reshape(-1, *shape)

    def _file(self, name: str) -> Path:
        return Path() if self.folder is None else self.folder / f"{name.replace('/', '.')}.bin"

    @property
    def nbytes(self) -> int:
        """Bytes that a full buffer takes, in memory or on disk."""
        return sum(x.nbytes for x in self.arrays.values())

    @property
    def first(self) -> int:
        """The oldest row that may be drawn."""
        oldest = max(0, self.written - self.rows)
        # Behind the oldest row a stack's older frames may be gone. Between two decisions there is at most one pause.
        return oldest + 2 * (self.frame_stack - 1) if oldest and self.stacked else oldest

    def flush(self) -> None:
        """Put on disk what the files hold, with checksums of new rows; only what changed is written."""
        if self._checks is None:
            return
        self._checks.record(self._stored, self.written - 1)  # ``cut`` may change the last row: a checkpoint has its own
        for array in (*self.arrays.values(), self._checks.array):
            cast("np.memmap[Any, Any]", array).flush()

    def _stored(self, position: Array) -> Array:
        """The bytes (n, bytes of a row) of rows at these places of the ring."""
        parts = [np.ascontiguousarray(x[position]) for name, x in sorted(self.arrays.items()) if name != "row"]
        return np.concatenate([x.reshape(len(position), -1).view(np.uint8) for x in parts], axis=1)

    def _newest(self) -> int:
        """A checksum of the last row, and of the newest observations and masks, which no decision has followed yet."""
        found = zlib.crc32(self._stored(np.array([(self.written - 1) % self.length])).tobytes()) if self.written else 0
        for name, x in sorted(self.arrays.items()):
            if name.startswith("obs/") or name == "action_mask":
                found = zlib.crc32(x[self.written % self.length].tobytes(), found)
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds beside the files: tensors, and plain JSON."""
        tensors = {"replay/priority": torch.stack([tree.leaves() for tree in self.trees])} if self.trees else {}
        figures = {
            "written": self.written,
            "repeats_first_frame": self.repeats_first_frame,
            "highest_priority": self.highest_priority.tolist(),
        }
        if self.folder is not None:
            last = self.arrays["truncated"][(self.written - 1) % self.length]
            figures |= {"newest": self._newest(), "last_truncated": last.tolist()}
        return tensors, figures

    def load_state(self, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Take over what ``state`` gave, over the files as they are.

        Raises:    RunError if rows that it needs have been overwritten, altered, or never reached the disk
        Verified:  tests/unit/test_buffers.py::test_an_altered_file_is_noticed
        """
        self.written = int(figures["written"])
        self.repeats_first_frame = bool(figures["repeats_first_frame"])
        self.highest_priority = np.array(figures["highest_priority"])
        needed = np.arange(max(0, self.written - self.rows), self.written)
        lost = int((self.arrays["row"][needed % self.length] != needed + 1).sum())
        if lost:
            raise RunError(
                f"{self.folder} no longer holds {lost:,} of the {len(needed):,} rows of replay that this checkpoint "
                "needs: only the newest checkpoint can be resumed with its replay. Start the run again, or start a new "
                "one from the saved agent."
            )
        if self._checks is not None and "newest" in figures:
            if self.written:  # ``cut`` may have changed it since
                self.arrays["truncated"][(self.written - 1) % self.length] = figures["last_truncated"]
            altered = self._checks.altered(self._stored, needed[:-1]) + (self._newest() != figures["newest"])
            if altered:
                raise RunError(
                    f"{altered:,} of the {len(needed) + 1:,} rows of replay in {self.folder} are not what was written: "
                    "the files have been altered or damaged. Restore them, start the run again, or start a new one "
                    "from the saved agent"
                )
            self._checks.until = max(0, self.written - 1)
        for tree, leaves in zip(self.trees, tensors.get("replay/priority", ()), strict=True):
            tree.fill(leaves)

    # Writing

    def append(self, rollout: Rollout) -> None:
        """Write the T rows of a rollout with axes (T, E), E environments of all members, and the observation after."""
        steps = rollout.reward.shape[0]
        position = (self.written + np.arange(steps + 1)) % self.length
        decided = position[:-1]
        if rollout.action_mask is not None:
            if "action_mask" not in self.arrays:
                self._add("action_mask", tuple(rollout.action_mask.shape[2:]), "bool")
            self.arrays["action_mask"][position] = rollout.action_mask.numpy()
        for name, x in rollout.obs.items():
            frames = self._newest_frames(name, x.numpy(), rollout.episode_step.numpy())
            self.arrays[f"obs/{name}"][position] = frames
        parts = {k: getattr(rollout, k) for k in ("action", "reward", "terminated", "truncated", "valid")}
        for name, x in parts.items():
            self.arrays[name][decided] = x.numpy()
        if self.stacked:
            self.arrays["episode_step"][position] = rollout.episode_step.numpy()
        # From 1: 0 is what was never written, and the newest observation, whose row is not decided yet.
        self.arrays["row"][decided] = self.written + np.arange(steps) + 1
        self.arrays["row"][position[-1]] = 0
        before = self.first
        self.written += steps
        self._admit(decided, rollout.valid.numpy(), before)

    def cut(self) -> None:
        """Say that the environments restart now: what comes next does not follow from the newest observation.

        The last row becomes a truncation, and the newest observation the final one of its episodes.
        """
        if self.written == 0:
            return
        last, head = (self.written - 1) % self.length, self.written % self.length
        self.arrays["truncated"][last] |= ~self.arrays["terminated"][last]
        for name in ("reward", "terminated", "truncated", "valid"):
            self.arrays[name][head] = 0
        self.arrays["row"][head] = self.written + 1
        before = self.first
        self.written += 1
        self._admit(np.array([head]), np.zeros((1, self.envs), np.bool_), before)

    def _newest_frames(self, name: str, stacks: Array, episode_step: Array) -> Array:
        """The part of an observation (T+1, E, ...) that is stored."""
        if name not in self.stacked:
            return stacks
        channels = stacks.shape[2] // self.frame_stack
        newest = stacks[:, :, -channels:]
        for t, env in np.argwhere(episode_step == 0):
            oldest = stacks[t, env, :channels]
            repeats = bool((oldest == newest[t, env]).all())
            if not repeats and oldest.any():
                raise UsageError(
                    f"frame_stack is {self.frame_stack}; but the first observation of an episode is no stack of one "
                    "frame filled up with zeros or with itself"
                )
            if oldest.any():
                self.repeats_first_frame = repeats
        return newest

    def _admit(self, position: Array, valid: Array, before: int) -> None:
        """Give new rows the highest priority so far, and rows that may no longer be drawn none."""
        if not self.trees:
            return
        gone = np.arange(before, self.first) % self.length
        columns = np.arange(self.num_envs)
        for m, tree in enumerate(self.trees):
            mine = valid[:, m * self.num_envs : (m + 1) * self.num_envs]
            tree.set((gone[:, None] * self.num_envs + columns).ravel(), np.zeros(gone.size * self.num_envs))
            tree.set((position[:, None] * self.num_envs + columns).ravel(), (mine * self.highest_priority[m]).ravel())

    # Sampling

    def sample(
        self,
        generators: list[torch.Generator],
        batches: int,
        batch_size: int,
        *,
        gamma: float,
        n_steps: int = 1,
        importance_exponent: float = 0.0,
    ) -> Batch:
        """Minibatches for several gradient steps at once, every member's drawn from its own generator.

        Args:      batches K, batch_size B: the shape of what is drawn; gamma, n_steps: see ``transitions``;
                   importance_exponent: of the weights that undo prioritised drawing, 1 undoes it fully
        Returns:   tensors (M, K, B, ...): those of ``transitions``; index, where each was drawn; with priorities,
                   weight in (0, 1]
        Raises:    ValueError if there is nothing to draw
        Verified:  tests/unit/test_buffers.py::test_only_decided_rows_are_drawn,
                   tests/unit/test_buffers.py::test_uniform_sampling_is_uniform,
                   tests/unit/test_buffers.py::test_priorities_are_drawn_in_proportion
        """
        shape = (self.members, batches, batch_size)
        probability: Array | None = None
        if self.trees:
            drawn = [tree.draw(batches, batch_size, g) for tree, g in zip(self.trees, generators, strict=True)]
            leaf, probability = (np.stack(x) for x in zip(*drawn, strict=True))
            # Position in the ring -> number of the row, counted back from the newest.
            row = self.written - 1 - (self.written - 1 - leaf // self.num_envs) % self.length
        else:
            leaf = np.stack([self._draw(m, batches * batch_size, g) for m, g in enumerate(generators)])
            row = self.first + leaf // self.num_envs
        env = leaf % self.num_envs
        mine = env + self.num_envs * np.arange(self.members)[:, None]
        out = self.transitions(row.ravel(), mine.ravel(), gamma=gamma, n_steps=n_steps)
        out = {k: x.view(*shape, *x.shape[1:]) for k, x in out.items()}
        out["index"] = torch.from_numpy((row % self.length) * self.num_envs + env).view(shape)
        if probability is not None:
            weight = torch.from_numpy(probability).view(shape) ** (-importance_exponent)
            out["weight"] = (weight / weight.amax(-1, keepdim=True)).to(torch.float32)
        return out

    def _draw(self, member: int, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Uniform draws of (row - first) num_envs + environment, among the member's decided rows."""
        first, n = self.first, self.num_envs
        span = self.written - first
        valid = self.arrays["valid"]
        columns = slice(member * n, (member + 1) * n)
        if span == 0 or not any(valid[i % self.length, columns].any() for i in range(first, self.written)):
            raise ValueError("there is no transition in the buffer yet")

        def undecided(drawn: NDArray[np.int64]) -> NDArray[np.int64]:
            rows = (first + drawn // n) % self.length
            return np.flatnonzero(~valid[rows, member * n + drawn % n])

        out = torch.randint(span * n, (count,), generator=generator).numpy()
        missing = undecided(out)
        while missing.size:
            out[missing] = torch.randint(span * n, (missing.size,), generator=generator).numpy()
            missing = missing[undecided(out[missing])]
        return out

    def set_priorities(self, index: Tensor, error: Tensor, *, exponent: float, floor: float = 1e-6) -> None:
        """Priorities (error + floor)^exponent of what was drawn; does nothing in a uniform buffer.

        Source:    Schaul et al. 2016, section 3.3.
        Args:      index (M, ...) as ``sample`` gave it; error (M, ...) absolute TD errors, reward units
        Verified:  tests/unit/test_buffers.py::test_priorities_are_drawn_in_proportion
        """
        for m, tree in enumerate(self.trees):
            priority = (error[m].detach().cpu().double().flatten().abs().numpy() + floor) ** exponent
            self.highest_priority[m] = max(self.highest_priority[m], float(priority.max()))
            leaf = index[m].flatten().numpy()
            # What was drawn for an earlier of several steps may have left since: what may not be drawn stays so.
            tree.set(leaf, np.where(tree.get(leaf) > 0, priority, 0.0))


class SumTree:
    """Sums of non-negative priorities in a binary heap: draws in proportion to them, all levels vectorised."""

    def __init__(self, leaves: int) -> None:
        self.count = leaves
        self.base = 1 << max(0, (leaves - 1).bit_length())
        self.sums = np.zeros(2 * self.base)

    def get(self, leaf: Array) -> NDArray[np.float64]:
        """The priorities of some leaves."""
        return self.sums[self.base + leaf]

    def set(self, leaf: Array, priority: Array) -> None:
        """Change some priorities; of a leaf that is named several times, the last one counts."""
        node = self.base + leaf
        self.sums[node] = priority
        while node.size and node[0] > 1:
            node = np.unique(node >> 1)
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1]

    def leaves(self) -> Tensor:
        """All priorities, as one tensor."""
        return torch.from_numpy(self.sums[self.base : self.base + self.count].copy())

    def fill(self, leaves: Tensor) -> None:
        """Take over what ``leaves`` gave; the sums come out to the same bits, being always added in the same order."""
        self.sums[self.base : self.base + self.count] = leaves.numpy()
        for level in range(self.base.bit_length() - 2, -1, -1):
            node = np.arange(1 << level, 2 << level)
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1]

    def draw(
        self, batches: int, batch_size: int, generator: torch.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Leaves in proportion to their priorities, one from each of ``batch_size`` equal shares of the sum.

        Returns:   leaves and their probabilities, each (batches * batch_size,)
        """
        total = self.sums[1]
        if not total > 0.0:
            raise ValueError("there is no transition in the buffer yet")
        share = torch.rand((batches, batch_size), generator=generator, dtype=torch.float64).numpy()
        mass = ((share + np.arange(batch_size)) * (total / batch_size)).ravel()
        node = np.ones(batches * batch_size, np.int64)
        while node[0] < self.base:
            left = self.sums[2 * node]
            # Rounding may carry the mass past the last leaf with any: never into a half without.
            right = (mass >= left) & (self.sums[2 * node + 1] > 0.0)
            mass = np.where(right, mass - left, mass)
            node = 2 * node + right
        return node - self.base, self.sums[node] / total
