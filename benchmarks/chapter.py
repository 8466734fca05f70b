"""The on-policy chapter side by side: every algorithm on CartPole-v1 for the same steps, five seeds each.

    python benchmarks/chapter.py [--out runs/chapter]

Each algorithm runs with its preset for CartPole. An interrupted command goes on from the last checkpoints. Draws
docs/images/on_policy.png, writes benchmarks/results/chapter.json and the table of docs/on_policy.md. About five minutes
of one core. The average reward is not there: CartPole ends when the pole falls, and the objective needs a problem that
never does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import steepest
from ablations import DOCS, between, figures, git
from steepest.runs.store.folder import environment_report
from steepest.runs.store.metrics import read_metrics

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "chapter.json"
IMAGE = DOCS / "images" / "on_policy.png"

COMMON: dict[str, Any] = {
    "seeds": 5,
    "total_steps": 150_000,
    "eval_every": 5_000,
    "eval_episodes": 20,
    "compile": "off",
    "threads": 1,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "REINFORCE, full return": ("reinforce", {"estimator": "full_return", "baseline": "none"}),
    "REINFORCE, reward-to-go": ("reinforce", {"baseline": "none"}),
    "REINFORCE, with baseline": ("reinforce", {}),
    "actor-critic": ("actor_critic", {}),
    "TRPO": ("trpo", {}),
    "PPO-clip": ("ppo", {}),
    "PPO-KL": ("ppo_kl", {}),
}


def folder_of(case: str, out: Path) -> Path:
    return out / case.lower().replace(",", "").replace(" ", "-")


def train(case: str, folder: Path) -> dict[str, Any]:
    """Train one case to its end, or go on with it; its evaluations, of every seed."""
    algorithm, options = CASES[case]
    options = {**COMMON, **options}
    if (folder / "config.json").is_file():
        steepest.resume(folder)
    else:
        steepest.train_seeds(algorithm, "CartPole-v1", out=folder, tensorboard=False, **options)
    by_seed: dict[int, list[float]] = {}
    for row in read_metrics(folder):
        if row.get("eval/return_mean") is not None:
            by_seed.setdefault(int(row["seed"]), []).append(float(row["eval/return_mean"]))
    return {
        "algorithm": algorithm,
        "options": options,
        "evaluations_by_seed": list(by_seed.values()),
        "final_by_seed": [seed[-1] for seed in by_seed.values()],
        "area_by_seed": [round(statistics.fmean(seed), 3) for seed in by_seed.values()],
    }


def table(cases: dict[str, Any]) -> str:
    """Every case's figures as Markdown."""
    lines = ["| | last evaluation | worst seed | area |", "|---|---|---|---|"]
    for case, result in cases.items():
        final, area = figures(result)
        lines.append(f"| {case} | {final} | {min(result['final_by_seed']):.0f} | {area} |")
    return "\n".join(["", *lines, "", ""])


def main() -> None:
    """Train, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/chapter"))
    out = parser.parse_args().out
    cases: dict[str, Any] = {}
    for case in CASES:
        cases[case] = train(case, folder_of(case, out))
        print(f"{case}: {', area '.join(figures(cases[case]))}", flush=True)
    folders = [folder_of(case, out) for case in CASES]
    steepest.plot(folders, IMAGE, statistic="mean", x="steps", metric="eval/return_mean")
    command = "python benchmarks/chapter.py"
    report = {
        "command": command,
        "commit": git("rev-parse", "HEAD"),
        "environment": environment_report(),
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    page = DOCS / "on_policy.md"
    page.write_text(between("chapter", table(cases), page.read_text()))


if __name__ == "__main__":
    sys.exit(main())
