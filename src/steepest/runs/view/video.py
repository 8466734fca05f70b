"""Recording what an environment renders."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from steepest.errors import RunError, UsageError
from steepest.files.video import require_video


class Renders(Protocol):
    """An environment batch that can show its first environment."""

    def render(self) -> Any: ...
    @property
    def render_fps(self) -> float: ...


def check_video(path: Path) -> None:
    """Raise UsageError unless the video extra is installed and the name of the file ends in .mp4."""
    if path.suffix != ".mp4":
        raise UsageError(f"the video file is {path}; expected a name ending in .mp4")
    require_video()


class Recorder:
    """Writes one frame per call into an .mp4 file, which appears under its name only when it is complete.

    Where it stops halfway, such as on a full disk, that is a warning, and what is played goes on to its result.

    Raises:    UsageError if the video extra is not installed, the name does not end in .mp4, or nothing is rendered
    Verified:  tests/integration/test_evaluations.py::test_a_video_that_fails_hides_no_result
    """

    def __init__(self, path: Path, env: Renders) -> None:
        check_video(path)
        import imageio.v2 as imageio

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The encoder is a process of its own, whose complaints are no use to anyone: try for it.
            path.with_name(f".{path.name}.partial.mp4").touch()
        except OSError as error:
            raise RunError(f"could not write {path}: {error.strerror}") from error
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial.mp4")
        self.env = env
        self.stopped = False
        self.writer: Any = imageio.get_writer(self.partial, fps=env.render_fps, macro_block_size=1, codec="libx264")

    def frame(self) -> None:
        if self.stopped:
            return
        frame = self.env.render()
        if frame is None:
            raise UsageError("this environment renders no pictures (render_mode 'rgb_array')")
        frame = np.asarray(frame, dtype=np.uint8)
        # Video codecs want even sides.
        try:
            self.writer.append_data(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        except OSError as error:
            self._stop(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.writer.close()
            if kind is None and not self.stopped:
                self.partial.replace(self.path)
        except OSError as problem:
            self._stop(problem)
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _stop(self, error: OSError) -> None:
        self.stopped = True
        warnings.warn(f"could not write {self.path}: {error.strerror or error}", RuntimeWarning, stacklevel=3)
