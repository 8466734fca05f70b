"""Offline algorithms on datasets of our own agents, beside cloning, the data's own return, and plain SAC on the data.

    python benchmarks/offline.py --env Hopper-v5                    everything; an interrupted call resumes
    python benchmarks/offline.py --env Hopper-v5 --data medium --algorithms iql cql --seeds 2

1. trains SAC for --expert-steps steps; its agent at the end plays "medium", its replay buffer is "medium-replay"
2. trains every algorithm for --updates gradient steps on each dataset and each seed
3. reports the last evaluation (never the best), in returns and in scores: 0 is a random policy, 100 the expert

The expert is SAC's agent at the end, so a score above 100 is better than the policy that made the data. Everything goes
into --out, a folder; what stands there is not done again. RESULT.json has all seeds, the machine and the command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import steepest
from run import machine
from steepest.experience.datasets.dataset import Dataset
from steepest.files.atomic import write_text_atomic

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {}),
    "bc, best 10 %": ("bc", {"best_fraction": 0.1}),
    "td3_bc": ("td3_bc", {}),
    "rebrac": ("rebrac", {"batch_size": 256}),
    "iql": ("iql", {}),
    "awac": ("awac", {}),
    "cql": ("cql", {}),
    "cql, rho": ("cql", {"regulariser": "previous"}),
    "cal_ql": ("cql", {"calibrated": True}),
    "sac": ("sac", {}),
}
"""Row of the table -> algorithm and settings; everything else is the default."""


def datasets(env: str, steps: int, folder: Path, wanted: list[str]) -> dict[str, Path]:
    """The files of the datasets, made where they are missing."""
    expert = folder / "expert"
    if not (expert / "summary.json").exists():
        if (expert / "config.json").exists():
            steepest.resume(expert, quiet=False)
        else:
            options = {"total_steps": steps, "seed": 0, "checkpoint_every": 20_000, "buffer_size": 2 * steps}
            steepest.train("sac", env, out=expert, quiet=False, **options)
    places = {name: folder / f"{name}.npz" for name in wanted}
    agent = steepest.load(expert)
    for name, place in places.items():
        if place.exists():
            continue
        more: dict[str, Any] = {"reference_episodes": 20, "out": place}
        if name == "medium-replay":
            steepest.collect_replay(expert, **more)
        elif name == "medium":
            steepest.collect(agent, env, steps=steps, seed=1, **more)
        else:
            raise SystemExit(f"no dataset is called {name}; known: medium, medium-replay")
    return places


def train(row: str, data: Dataset, seed: int, updates: int, evaluations: int) -> dict[str, Any]:
    """Train on a dataset; the last evaluation, and what the critics say of the data's actions."""
    algorithm, options = ALGORITHMS[row]
    began = time.perf_counter()
    settings = {"total_steps": updates, "seed": seed, "eval_every": 0, "eval_episodes": evaluations, **options}
    with steepest.Run(algorithm, None, data=data, threads=1, **settings) as run:
        rows = list(run)
        evaluation = run.evaluations[0]
    assert data.reference is not None
    return {
        "returns": list(evaluation.returns),
        "return_mean": evaluation.mean,
        "score": float(data.reference.score(evaluation.mean)),
        "q_mean": rows[-1].get("health/q_mean"),
        "seconds": time.perf_counter() - began,
        "modes": run.training.summary(1.0, updates)["modes"],
    }


def table(results: dict[str, Any]) -> str:
    """Scores of the last evaluation, as Markdown: mean over seeds, and each."""
    names = list(results["data"])
    lines = ["| |" + "|".join(names) + "|", "|-|" + "-|" * len(names)]
    own = [f"{results['data'][n]['score']:.1f}" for n in names]
    lines.append("| the data's own mean return |" + "|".join(own) + "|")
    for row in ALGORITHMS:
        cells = []
        for name in names:
            scores = [v["score"] for v in results["runs"].get(f"{name}: {row}", {}).values()]
            each = ", ".join(f"{x:.1f}" for x in scores)
            cells.append(f"{statistics.mean(scores):.1f} ({each})" if scores else "-")
        lines.append(f"| {row} |" + "|".join(cells) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--expert-steps", type=int, default=150_000)
    parser.add_argument("--data", nargs="+", default=["medium-replay", "medium"])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS), metavar="ROW")
    parser.add_argument("--updates", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=20, help="episodes of the last evaluation")
    parser.add_argument("--out", type=Path, help="default: runs/offline-ENV")
    args = parser.parse_args()
    folder: Path = args.out or Path("runs") / f"offline-{args.env}"
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "RESULT.json"
    known: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"data": {}, "runs": {}}
    known |= {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "updates": args.updates}
    for name, place in datasets(args.env, args.expert_steps, folder, args.data).items():
        data = steepest.read_dataset(place)
        assert data.reference is not None
        mean = float(data.returns.mean())
        known["data"][name] = {
            "steps": data.steps,
            "episodes": len(data.returns),
            "return_mean": mean,
            "score": float(data.reference.score(mean)),
            "reference": data.reference._asdict(),
        }
        for row in args.algorithms:
            for seed in range(args.seeds):
                runs = known["runs"].setdefault(f"{name}: {row}", {})
                if str(seed) in runs:
                    continue
                runs[str(seed)] = found = train(row, data, seed, args.updates, args.evaluations)
                print(f"{name}, {row}, seed {seed}: {found['score']:.1f} in {found['seconds']:.0f} s", flush=True)
                write_text_atomic(result, json.dumps(known, indent=1))
    write_text_atomic(result, json.dumps(known, indent=1))
    print(table(known))


if __name__ == "__main__":
    main()
