"""Kill runs at random moments and resume them until they end: the bits must be those of a run left alone.

    python benchmarks/kill_and_resume.py [--kills 10] [--cases cartpole-native ...]

Every case trains once in peace, then again under SIGKILL at moments drawn uniformly, start-up included. Parameters,
optimiser, statistics and generators of the last checkpoint, metrics.jsonl (but for time), the best agent and what is
left in the replay buffer's files are compared. Results go to benchmarks/results/kill_and_resume.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from helpers_runs import differences, start_command, steepest_command, stray_files  # noqa: E402

from steepest.runs.store.folder import environment_report  # noqa: E402

SMALL_REPLAY: list[Any] = [
    *("--hidden-sizes", 32, 32, "--batch-size", 32, "--learning-starts", 300, "--steps-per-iteration", 100),
    *("--total-steps", 2400, "--checkpoint-every", 300, "--buffer-size", 900),
]
"""The buffer is overwritten twice and a half."""

COMMON = ["--seed", 3, "--eval-episodes", 2, "--no-tensorboard"]
CASES: dict[str, list[Any]] = {
    "cartpole-native": ["ppo", "CartPole-v1", "--total-steps", 60_000, "--checkpoint-every", 3000],
    "cartpole-compiled": ["ppo", "CartPole-v1", "--total-steps", 60_000, "--checkpoint-every", 3000, "--compile", "on"],
    "cartpole-envpool": [
        *("ppo", "CartPole-v1", "--vectorization", "envpool", "--total-steps", 60_000, "--checkpoint-every", 3000)
    ],
    "cartpole-3-seeds": ["ppo", "CartPole-v1", "--seeds", 3, "--total-steps", 30_000, "--checkpoint-every", 3000],
    "cheetah-sync": [
        *("ppo", "HalfCheetah-v5", "--vectorization", "sync", "--total-steps", 20_000, "--checkpoint-every", 2000),
        *("--rollout-steps", 64, "--minibatches", 8, "--normalize-obs", "--normalize-reward"),
    ],
    "cheetah-envpool": [
        *("ppo", "HalfCheetah-v5", "--vectorization", "envpool", "--total-steps", 20_000, "--checkpoint-every", 2000),
        *("--rollout-steps", 64, "--minibatches", 8, "--normalize-obs", "--normalize-reward"),
    ],
    "replay-sac": ["sac", "Pendulum-v1", *SMALL_REPLAY, "--prioritized", "--n-steps", 3],
    "replay-sac-compiled": ["sac", "HalfCheetah-v5", *SMALL_REPLAY, "--compile", "on"],
    "replay-sac-discrete": ["sac", "CartPole-v1", *SMALL_REPLAY, "--num-envs", 4],
    "replay-sac-asynchronous": ["sac", "Pendulum-v1", *SMALL_REPLAY, "--num-envs", 2, "--asynchronous"],
    "replay-td3": [
        *("td3", "Pendulum-v1", *SMALL_REPLAY, "--num-envs", 3, "--noise-correlation", 0.8, "--normalize-obs"),
    ],
    "replay-sac-images": [
        *("sac", "ALE/Pong-v5", *SMALL_REPLAY, "--num-envs", 2, "--train-every", 4, "--update-ratio", 0.1),
        *("--atari.size", 36, "--atari.frame-stack", 4, "--eval-every", 1200, "--max-episode-steps", 200),
    ],
}


def train_undisturbed(case: list[Any], out: Path) -> tuple[float, float]:
    """Seconds before training begins, imports mostly, and seconds of training."""
    began = time.perf_counter()
    done = steepest_command("train", *case, *COMMON, "--out", out, "--quiet", timeout=1800)
    if done.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{done.stderr}")
    seconds = time.perf_counter() - began
    training = float(json.loads((out / "summary.json").read_text())["wall_seconds"])
    return seconds - training, training


def train_killed(
    case: list[Any], out: Path, before: float, training: float, kills: int, draw: random.Random
) -> list[float]:
    """Kill and resume until ``kills`` kills have hit, then let it end. Returns when each struck, in seconds."""
    struck: list[float] = []
    log = out.parent / f"{out.name}.log"
    while True:
        resume = (out / "config.json").is_file()
        arguments = ["train", "--resume", out] if resume else ["train", *case, *COMMON, "--out", out]
        process = start_command(*arguments, "--quiet", log=log)
        if len(struck) < kills:
            # Steps go on between kills, but not so far that the run would end before the last of them.
            delay = draw.uniform(0.3, before + 2.0 * training / (kills + 1))
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                struck.append(round(delay, 2))
                continue
        if process.wait():
            raise SystemExit(f"{' '.join(map(str, arguments))} failed:\n{log.read_text()}")
        return struck


def run_case(name: str, kills: int, folder: Path, draw: random.Random) -> dict[str, Any]:
    """One case: how often it was killed, and what differs."""
    alone = folder / f"{name}-alone"
    before, training = train_undisturbed(CASES[name], alone)
    seconds = round(before + training, 1)
    struck: list[list[float]] = []
    wrong: list[str] = []
    # A run that resumes fast, or close to its end, escapes the last kills; another run then takes them.
    while sum(map(len, struck)) < kills and not wrong:
        killed = folder / f"{name}-killed-{len(struck)}"
        left = kills - sum(map(len, struck))
        struck.append(train_killed(CASES[name], killed, before, training, left, draw))
        wrong = differences(alone, killed) + stray_files(killed)
        training *= 0.7 if len(struck[-1]) < left else 1.0
    return {
        "kills": sum(map(len, struck)),
        "seconds_alone": seconds,
        "killed_after_seconds": struck,
        "differences": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kill_and_resume.json")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    results: dict[str, Any] = {}
    print(f"{'case':24}{'kills':>6}{'alone, s':>10}  result", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            result = results[name] = run_case(name, options.kills, Path(folder), draw)
            wrong = result["differences"]
            verdict = "DIFFERS: " + ", ".join(wrong[:5]) if wrong else "bitwise equal"
            print(f"{name:24}{result['kills']:>6}{result['seconds_alone']:>10}  {verdict}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": environment_report(), "kills_asked": options.kills, "seed": options.seed, "cases": results}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"results: {options.out}")
    return int(any(r["differences"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
