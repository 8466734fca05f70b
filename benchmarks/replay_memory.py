"""How much memory a million Atari frames take, and whether the stacks of four come out as they went in.

    python benchmarks/replay_memory.py [--rows 1000000] [--folder /somewhere/with/8GB]

Writes rows of single 84 x 84 frames, each seen by the agent in stacks of four, past the end of the ring, into files
mapped into memory as a run has them, with the spare rows of a run that saves a checkpoint every 3% of the buffer. Then
it draws stacks and compares every byte of them with what was put in. Results go to results/replay_memory.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.experience.replay import ReplayBuffer
from steepest.runs.store.folder import environment_report
from steepest.types import ActionSpec, ObsField, ObsSpec, Rollout

ROOT = Path(__file__).resolve().parent.parent
SIZE, STACK = 84, 4
FRAME = SIZE * SIZE
CHUNK = 500
SHORTEST, LONGEST = 2, 1500
"""Steps of an episode."""
LIMIT = 1.05
"""Of the bytes of the frames alone, besides the spare rows for checkpoints."""


class Game:
    """Rows of episodes of random lengths; the frame of every row is its own."""

    def __init__(self, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.noise = rng.integers(0, 256, FRAME + 65_521, dtype=np.uint8)
        # An episode of n steps has n + 1 observations; nothing is decided at the last one.
        ends = np.cumsum(rng.integers(SHORTEST, LONGEST, rows // SHORTEST) + 1)
        row = np.arange(rows)
        episode = np.searchsorted(ends, row, side="right")
        self.start = np.concatenate([[0], ends])[episode]
        self.valid = row != ends[episode] - 1
        self.terminated = row == ends[episode] - 2

    def frames(self, row: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(row), FRAME): noise, with the row's number in the first eight bytes."""
        offset = row * 7_919 % 65_521
        out = np.lib.stride_tricks.sliding_window_view(self.noise, FRAME)[offset]
        out[:, :8] = row[:, None].view(np.uint8)
        return out

    def stacks(self, row: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(row), STACK, SIZE, SIZE): oldest first, filled up with the episode's first frame."""
        wanted = np.maximum(row[:, None] + np.arange(1 - STACK, 1), self.start[row][:, None])
        known, place = np.unique(wanted, return_inverse=True)
        return self.frames(known)[place.ravel()].reshape(len(row), STACK, SIZE, SIZE)

    def rollout(self, first: int, count: int) -> Rollout:
        """``count`` rows of one environment, and the observation after."""
        row = np.arange(first, first + count + 1)
        step = row - self.start[row]

        def column(x: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(x[:, None].copy())

        decided = row[:-1]
        return Rollout(
            obs={"obs": torch.from_numpy(self.stacks(row)[:, None])},
            action=column(decided % 6),
            reward=column((decided % 3).astype(np.float32)),
            terminated=column(self.terminated[decided]),
            truncated=column(np.zeros(count, np.bool_)),
            valid=column(self.valid[decided]),
            episode_step=column(step),
            action_mask=None,
            memory=None,
        )


def mapped_bytes(folder: Path) -> dict[str, int]:
    """What the process has mapped of a folder's files: addressed, and resident at this moment."""
    found = {"size": 0, "rss": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith(("Size:", "Rss:")):
            name, value, _ = line.split()
            found[name[:-1].lower()] += 1024 * int(value)
    return found


def own_bytes() -> int:
    """Resident memory of the process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])  # type: ignore[index]


def check(buffer: ReplayBuffer, game: Game, draws: int, generator: torch.Generator) -> dict[str, Any]:
    """Draw stacks and compare them, and the ones that followed, with what was put in."""
    wrong = seconds = 0.0
    beginnings = 0
    for _ in range(draws // 256):
        began = time.perf_counter()
        batch = buffer.sample([generator], 1, 256, gamma=0.99)
        seconds += time.perf_counter() - began
        position = batch["index"].flatten().numpy()
        row = buffer.written - 1 - (buffer.written - 1 - position) % buffer.length
        beginnings += int((row - game.start[row] < STACK - 1).sum())
        for key, at in (("obs/obs", row), ("next_obs/obs", row + 1)):
            same = (batch[key].flatten(0, 2).numpy() == game.stacks(at)).reshape(len(at), -1).all(1)
            wrong += int((~same).sum())
        wrong += int((batch["terminated"].flatten().numpy() != game.terminated[row]).sum())
    return {
        "stacks_compared": 2 * (draws // 256) * 256,
        "near_an_episodes_beginning": beginnings,
        "wrong": int(wrong),
        "ms_per_256": round(1e3 * seconds / (draws // 256), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="frames that are sampled from")
    parser.add_argument("--folder", type=Path, help="where to make the temporary files")
    parser.add_argument("--draws", type=int, default=8_192)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "replay_memory.json")
    options = parser.parse_args()
    # As ``runs.off_policy`` has it for checkpoint_every of 3% of the buffer, and iterations of a thousand steps.
    spare = int(1.1 * 0.03 * options.rows) + 2 * 1_000 + 2
    total = int(1.05 * options.rows) // CHUNK * CHUNK
    game = Game(total + CHUNK, seed=0)
    obs = ObsSpec((ObsField("obs", "image", (STACK, SIZE, SIZE), "uint8"),), is_dict=False)
    actions = ActionSpec("discrete", (), "int64", sizes=(6,), start=(0,))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        before = own_bytes()
        buffer = ReplayBuffer(obs, actions, rows=options.rows, spare_rows=spare, frame_stack=STACK, folder=folder)
        began = time.perf_counter()
        for first in range(0, total, CHUNK):
            buffer.append(game.rollout(first, CHUNK))
        filled = time.perf_counter() - began
        checked = check(buffer, game, options.draws, torch.Generator().manual_seed(0))
        mapped = mapped_bytes(folder)
        anonymous = own_bytes() - before
        on_disk = sum(512 * file.stat().st_blocks for file in folder.iterdir())
    frames = options.rows * FRAME
    slack = spare * (buffer.nbytes // buffer.length)
    result = {
        "machine": environment_report(),
        "rows_sampled_from": options.rows,
        "rows_written": total,
        "frame_bytes": frames,
        "buffer_bytes": buffer.nbytes,
        "checkpoint_slack_bytes": slack,
        "ratio_without_slack": round((buffer.nbytes - slack) / frames, 4),
        "ratio_with_slack": round(buffer.nbytes / frames, 4),
        "bytes_on_disk": on_disk,
        "bytes_mapped": mapped["size"],
        "bytes_of_it_resident": mapped["rss"],
        "other_memory_grown_bytes": anonymous,
        "seconds_to_fill": round(filled, 1),
        **checked,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=2))
    within = max(buffer.nbytes, mapped["size"], on_disk) - slack <= LIMIT * frames
    print(f"written: {options.out}; {'within' if within else 'BEYOND'} {LIMIT} x the frames plus the checkpoint slack")
    return int(not within or checked["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
