"""Off-PAC from a uniformly random behaviour on the pendulum of Degris et al. 2012, with linear features.

    python benchmarks/off_pac.py [--seeds 5] [--total-steps 1000000] [--out runs/off_pac]

An interrupted run goes on from its last checkpoint. Every evaluation of every seed (eight episodes of 1,000 steps, mode
of the policy) goes to benchmarks/results/off-pac-pendulum.json. The settings are those of docs/off_pac.md, where the
differences from the paper are listed; the tile coding has to be given in Python, hence this script.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import steepest
from steepest.networks.tile_coding import TileCoding
from steepest.runs.store.folder import environment_report
from steepest.runs.store.metrics import read_metrics

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "off-pac-pendulum.json"
ENVIRONMENT = "steepest/PendulumThreeTorques-v0"
FASTEST = 25 * math.pi
SETTINGS: dict[str, Any] = {
    "behaviour_epsilon": 1.0,
    "policy_learning_rate": 0.05,
    "value_learning_rate": 0.02,
    "auxiliary_learning_rate": 1e-4,
    "learning_rate_schedule": "linear",
    "max_gradient_norm": 1000.0,
    "rollout_steps": 64,
    "steps_per_call": 4,
}


def features(_: Any) -> TileCoding:
    """Ten tilings of 10 x 10 over angle and speed."""
    return TileCoding((-math.pi, -FASTEST), (math.pi, FASTEST))


def main() -> None:
    """Train all seeds together and keep every evaluation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/off_pac"))
    options = parser.parse_args()
    if (options.out / "config.json").is_file():
        run = steepest.Run.resume(options.out, network=features)
    else:
        run = steepest.Run(
            "off_pac",
            ENVIRONMENT,
            network=features,
            seeds=options.seeds,
            total_steps=options.total_steps,
            threads=1,
            eval_episodes=8,
            eval_every=100_000,
            out=options.out,
            **SETTINGS,
        )
    for row in run:
        if "eval/return_mean" in row:
            print(row["step"], [round(e.mean, 1) for e in run.evaluations], flush=True)
    curves: dict[int, dict[int, float]] = {}
    for row in read_metrics(options.out):
        if "eval/return_mean" in row:
            curves.setdefault(int(row["seed"]), {})[int(row["step"])] = row["eval/return_mean"]
    commit = subprocess.run(("git", "rev-parse", "HEAD"), cwd=HERE, capture_output=True, text=True, check=False)
    arguments = ["--seeds", str(options.seeds), "--total-steps", str(options.total_steps)]
    result = {
        "command": shlex.join(["python", "benchmarks/off_pac.py", *arguments]),
        "commit": commit.stdout.strip(),
        "settings": SETTINGS,
        "final_evaluation_by_seed": [e.mean for e in run.evaluations],
        "evaluations_by_seed": curves,
        "environment": environment_report(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(result["final_evaluation_by_seed"])


if __name__ == "__main__":
    sys.exit(main())
