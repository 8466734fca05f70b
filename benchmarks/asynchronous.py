"""What ``asynchronous`` gains: SAC on HalfCheetah-v5 whose simulator takes more and more of a step's time.

    python benchmarks/asynchronous.py [--frame-skip 5 100 500] [--steps 1000] [--compile on]

Gradient steps have one thread, so that of two cores one is left for the environment. Both ways run in turn, in one
process; only steps with a gradient step are timed. Results go to benchmarks/results/asynchronous.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import steepest
from steepest.runs.store.folder import environment_report

RESULTS = Path(__file__).resolve().parent / "results" / "asynchronous.json"
WARM_UP = 100
ROUNDS = 4


class Way:
    """One run, timed a round at a time."""

    def __init__(self, frame_skip: int, asynchronous: bool, compile: str, round_steps: int) -> None:
        start = time.perf_counter()
        self.run = steepest.Run(
            "sac",
            "HalfCheetah-v5",
            env_kwargs={"frame_skip": frame_skip},
            vectorization="async" if asynchronous else "sync",
            asynchronous=asynchronous,
            total_steps=10**9,
            num_envs=1,
            batch_size=256,
            hidden_sizes=(256, 256),
            learning_starts=WARM_UP,
            steps_per_iteration=round_steps,
            threads=1,
            compile=compile,
            eval_every=0,
            eval_episodes=0,
            checkpoint_every=0,
        )
        while self.run.step < 2 * WARM_UP:
            self.run.iterate()
        self.warm_up_seconds = time.perf_counter() - start
        self.milliseconds: list[float] = []

    def round(self) -> None:
        first, start = self.run.step, time.perf_counter()
        self.run.iterate()
        self.milliseconds.append(1e3 * (time.perf_counter() - start) / (self.run.step - first))


def compare(frame_skip: int, compile: str, steps: int) -> dict[str, Any]:
    """Milliseconds a step both ways, and their ratio within rounds."""
    ways = [Way(frame_skip, asynchronous, compile, steps // ROUNDS) for asynchronous in (False, True)]
    for _ in range(ROUNDS):
        for way in ways:
            way.round()
    for way in ways:
        way.run.close()
    ordinary, asynchronous = (way.milliseconds for way in ways)
    gain = [a / b for a, b in zip(ordinary, asynchronous, strict=True)]
    return {
        "frame_skip": frame_skip,
        "ordinary_ms": round(statistics.median(ordinary), 3),
        "asynchronous_ms": round(statistics.median(asynchronous), 3),
        "gain": round(statistics.median(gain), 3),
        "gain_min": round(min(gain), 3),
        "gain_max": round(max(gain), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frame-skip", type=int, nargs="+", default=[5, 100, 500], help="simulator steps a step")
    parser.add_argument("--steps", type=int, default=1000, help="timed steps each way")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    options = parser.parse_args()
    cases: list[dict[str, Any]] = []
    for frame_skip in options.frame_skip:
        cases.append(compare(frame_skip, options.compile, options.steps))
        print(json.dumps(cases[-1]), flush=True)
    report = {"machine": environment_report(), "compile": options.compile, "steps": options.steps, "cases": cases}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
