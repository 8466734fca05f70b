"""The checkpoints of a run: which are kept, which is the best, and from which the run resumes."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from steepest.files.atomic import remove_stray_files
from steepest.files.space import in_bytes, require_space
from steepest.files.tensors import CheckpointError, NewerSchemaError, load_metadata, load_tensors, save_tensors

_STEP_FILE = re.compile(r"^step-(\d{12,})\.safetensors$")


class CheckpointStore:
    """The checkpoints of one run: the newest ``keep`` scheduled ones, the best one and an interrupted one.

    Opening a store deletes what killed writers left behind, and nothing that is still being written.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}: a run without a checkpoint cannot be resumed")
        self.directory = Path(directory)
        self.keep = keep
        remove_stray_files(self.directory)

    @property
    def best_path(self) -> Path:
        return self.directory / "best.safetensors"

    @property
    def interrupted_path(self) -> Path:
        return self.directory / "interrupted.safetensors"

    def require_room(self, each: int, scheduled: int) -> None:
        """Refuse a run whose checkpoints the disk cannot hold; those that are there already are replaced.

        Args:      each: bytes of one; scheduled: how many the run saves in all
        Raises:    UsageError, before anything is taken
        Verified:  tests/unit/test_space.py::test_so_are_checkpoints_of_agents
        """
        count = min(self.keep + 1, scheduled) + 1  # an old one goes after a new one has come; and the best one
        held = sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))
        require_space(
            max(each * count - held, each),
            f"the run ({count} checkpoints of {in_bytes(each)})",
            "free some, or give a smaller keep_checkpoints or another --out",
            self.directory,
        )

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Save a checkpoint to resume from; older ones go only when this one is safely on disk.

        Args:      step, environment steps so far, names the file and is added to the metadata
        Raises:    CheckpointError when it could not be written; all earlier checkpoints are then still there
        """
        path = self.directory / f"step-{step:012d}.safetensors"
        save_tensors(path, tensors, {**metadata, "step": step})
        for old in self._scheduled()[self.keep :]:
            if old != path:
                try:
                    old.unlink(missing_ok=True)
                except OSError as error:  # the new one is safe: what cannot be tidied up ends no training
                    warnings.warn(f"could not delete {old}: {error.strerror}", RuntimeWarning, stacklevel=2)
        return path

    def save_best(
        self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], score: float
    ) -> Path | None:
        """Save an agent if its score beats the stored best one, or none is stored. NaN is never best.

        Returns:   the path, or None when nothing was written
        Raises:    CheckpointError when it could not be written; the earlier best is then still there
        """
        best = self.best_score()
        if math.isnan(score) or (best is not None and score <= best):
            return None
        save_tensors(self.best_path, tensors, {**metadata, "step": step, "score": float(score)}, kind="agent")
        return self.best_path

    def save_interrupted(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Save a usable agent off the schedule. A run never resumes from it: its step is not a scheduled boundary.

        Raises:    CheckpointError when it could not be written
        """
        save_tensors(self.interrupted_path, tensors, {**metadata, "step": step}, kind="agent")
        return self.interrupted_path

    def best_score(self) -> float | None:
        """The score of the stored best agent, or None when there is none that can be read."""
        if not self.best_path.exists():
            return None
        try:
            return float(load_metadata(self.best_path)["score"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"ignoring the stored best agent: {error}", RuntimeWarning, stacklevel=2)
            return None

    def latest(self) -> Path | None:
        """The newest scheduled checkpoint that reads back whole, or None when none was ever saved.

        Warns about, and passes over, damaged ones.

        Raises:    CheckpointError when there are checkpoints and all are damaged;
                   NewerSchemaError when the newest comes from a newer version
        """
        found = self.load_latest()
        return None if found is None else found[0]

    def load_latest(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """Path, tensors and metadata of :meth:`latest`, reading the file once."""
        paths = self._scheduled()
        for path in paths:
            try:
                return path, *load_tensors(path, kind="checkpoint")
            except NewerSchemaError:
                raise
            except CheckpointError as error:
                warnings.warn(f"{error} Trying the checkpoint before it.", RuntimeWarning, stacklevel=2)
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.directory} can be read; start the run again."
            )
        return None

    def _scheduled(self) -> list[Path]:
        """Scheduled checkpoints, newest first."""
        if not self.directory.is_dir():
            return []
        files = [path for path in self.directory.iterdir() if path.is_file()]
        steps = [(int(match[1]), path) for path in files if (match := _STEP_FILE.match(path.name))]
        return [path for _, path in sorted(steps, reverse=True)]
