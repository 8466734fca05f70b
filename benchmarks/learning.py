"""Learning results: train the listed cases, most on five seeds, and keep every seed's final evaluation.

    python benchmarks/learning.py [CASE ...] [--out runs/learning]

A case that was interrupted goes on from its last checkpoint; one that is finished is only summarised again. Each result
is benchmarks/results/learning-CASE.json: the command, the machine, the commit, and the final evaluation of every seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

CASES: dict[str, tuple[str, ...]] = {
    "ppo-cartpole": ("ppo", "CartPole-v1", "--total-steps", "100000"),
    "ppo-acrobot": ("ppo", "Acrobot-v1"),
    "ppo-pendulum": ("ppo", "Pendulum-v1"),
    "ppo-lunarlander": ("ppo", "LunarLander-v3"),
    "ppo-halfcheetah": ("ppo", "HalfCheetah-v5"),
    "ppo-hopper": ("ppo", "Hopper-v5"),
    "ppo-walker2d": ("ppo", "Walker2d-v5"),
    "ppo-pong": ("ppo", "ALE/Pong-v5", "--total-steps", "1000000"),
    "reinforce-cartpole": ("reinforce", "CartPole-v1"),
    "reinforce-full-cartpole": (*("reinforce", "CartPole-v1", "--estimator", "full_return", "--baseline", "none"),),
    "reinforce-to-go-cartpole": ("reinforce", "CartPole-v1", "--baseline", "none"),
    "actor_critic-cartpole": ("actor_critic", "CartPole-v1"),
    "trpo-cartpole": ("trpo", "CartPole-v1", "--total-steps", "100000"),
    "trpo-halfcheetah": ("trpo", "HalfCheetah-v5"),
    "trpo-hopper": ("trpo", "Hopper-v5"),
    "trpo-walker2d": ("trpo", "Walker2d-v5"),
    "ppo_kl-cartpole": ("ppo_kl", "CartPole-v1", "--total-steps", "100000"),
    "ppo_kl-halfcheetah": ("ppo_kl", "HalfCheetah-v5"),
    "ppo_kl-hopper": ("ppo_kl", "Hopper-v5"),
    "ppo_kl-walker2d": ("ppo_kl", "Walker2d-v5"),
    "off_pac-cartpole": ("off_pac", "CartPole-v1"),
    "sac-pendulum": ("sac", "Pendulum-v1"),
    "sac_v-pendulum": ("sac_v", "Pendulum-v1"),
    "td3-pendulum": ("td3", "Pendulum-v1"),
    "ddpg-pendulum": ("ddpg", "Pendulum-v1"),
    "sac-cartpole": ("sac", "CartPole-v1"),
    "sac-lunarlander": ("sac", "LunarLander-v3"),
    "sac-halfcheetah": ("sac", "HalfCheetah-v5", "--total-steps", "150000"),
    "sac_v-halfcheetah": ("sac_v", "HalfCheetah-v5", "--total-steps", "150000"),
    "td3-halfcheetah": ("td3", "HalfCheetah-v5", "--total-steps", "150000"),
    "sac-hopper": ("sac", "Hopper-v5", "--total-steps", "150000"),
    "td3-hopper": ("td3", "Hopper-v5", "--total-steps", "300000"),
    "sac-pendulum-bfloat16": ("sac", "Pendulum-v1", "--precision", "bfloat16"),
    "sac-halfcheetah-bfloat16": (*("sac", "HalfCheetah-v5", "--total-steps", "150000", "--precision", "bfloat16"),),
    "td3-pendulum-bfloat16": ("td3", "Pendulum-v1", "--precision", "bfloat16"),
    "dqn-cartpole": ("dqn", "CartPole-v1"),
    "dqn-lunarlander": ("dqn", "LunarLander-v3"),
}

IMAGES = ("ppo-pong",)
"""Cases long enough for one seed to do, on every core: convolutions use them, where small networks only wait."""

TWO_SEEDS = (
    "sac-halfcheetah",
    "sac_v-halfcheetah",
    "td3-halfcheetah",
    "sac-hopper",
    "td3-hopper",
    "sac-halfcheetah-bfloat16",
)
"""Cases whose every environment step is a gradient step of networks of 256 units: hours for five seeds on one core."""


def main() -> None:
    """Run the cases that were asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--seeds", type=int, help="5 by default, fewer for the longest cases")
    options = parser.parse_args()
    for case in options.cases:
        if case not in CASES:
            parser.error(f"no case {case!r}; there are {', '.join(CASES)}")
    for case in options.cases:
        run_case(case, options.out / case, options.seeds or seeds_of(case))


def seeds_of(case: str) -> int:
    """How many seeds a case is run with."""
    return 1 if case in IMAGES else 2 if case in TWO_SEEDS else 5


def run_case(case: str, folder: Path, seeds: int) -> None:
    """Train one case to its end and write its result."""
    steepest = (sys.executable, "-m", "steepest")
    threads = () if case in IMAGES else ("--threads", "1")
    options = ("--seeds", str(seeds), "--eval-episodes", "20", *threads, "--out", str(folder))
    arguments = ("train", *CASES[case], *options)
    resumed = (folder / "config.json").is_file()
    command = ("train", "--resume", str(folder)) if resumed else arguments
    subprocess.run((*steepest, *command), check=True)
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    finals = [e["mean"] for e in summary["evaluation"]]
    mean = sum(finals) / len(finals)
    std = (sum((x - mean) ** 2 for x in finals) / len(finals)) ** 0.5
    result = {
        "case": case,
        "command": f"steepest {shlex.join(arguments[:-2])}",
        "commit": subprocess.run(
            ("git", "rev-parse", "HEAD"), cwd=HERE, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "final_evaluation_by_seed": finals,
        "mean": mean,
        "std_over_seeds": std,
        "summary": summary,
        "config": config["config"],
        "run": config["run"],
        "environment": config["environment"],
    }
    path = HERE / "results" / f"learning-{case}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{case}: {mean:.1f} +- {std:.1f} over {len(finals)} seeds {[round(x, 1) for x in finals]}")


if __name__ == "__main__":
    main()
