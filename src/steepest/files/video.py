"""Pictures as the bytes of a video."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.errors import UsageError


def require_video() -> None:
    """Raise UsageError unless the video extra is installed."""
    if any(importlib.util.find_spec(package) is None for package in ("imageio", "imageio_ffmpeg")):
        raise UsageError('recording needs the video extra: pip install "steepest[video]"')


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
