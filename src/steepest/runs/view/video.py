"""Recording what an environment renders."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from steepest.errors import RunError, UsageError


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


def require_video() -> None:
    """Raise UsageError unless the video extra is installed."""
    if any(importlib.util.find_spec(package) is None for package in ("imageio", "imageio_ffmpeg")):
        raise UsageError('recording needs the video extra: pip install "steepest[video]"')


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


def encoded(frames: Sequence[NDArray[np.uint8]], fps: float) -> bytes:
    """Return frames (height, width, 3) as the bytes of an MP4 file that a browser plays and can be scrubbed.

    Raises:    UsageError if the video extra is not installed
    Verified:  tests/integration/test_sampling_preferences.py::test_clips_of_an_agent_are_sampled
    """
    require_video()
    import imageio.v2 as imageio

    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    # A whole picture every few frames, so that any place is reached at once; the index first, so that it plays at once.
    options = ["-crf", "18", "-g", "5", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        opened: Any = imageio.get_writer(path, fps=fps, macro_block_size=1, codec="libx264", output_params=options)
        with opened as writer:
            for frame in frames:
                writer.append_data(np.ascontiguousarray(frame[:height, :width]))
        return path.read_bytes()
