"""From data to playing: regret while playing, beside learning from nothing.

    python benchmarks/offline.py --env Hopper-v5 --data medium-replay --algorithms bc      makes the data
    python benchmarks/offline_to_online.py --env Hopper-v5 --data runs/offline-Hopper-v5/medium-replay.npz

Three ways to the same number of environment steps, each evaluated --evaluations times on the way and at its start:

- cal_ql: calibrated CQL for --updates gradient steps on the data, then playing, half of every minibatch from the data
- sac and data: SAC from nothing, half of every minibatch from the data (RLPD)
- sac: SAC from nothing

Regret is the mean over these evaluations of 100 - score: 0 is a random policy's score, 100 the expert's. Everything
goes into --out; what stands there is not done again. RESULT.json has all seeds, the commit, the machine and the
command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import steepest
from offline import claimed
from run import machine
from steepest.experience.datasets.dataset import Dataset
from steepest.files.atomic import write_text_atomic

WAYS = ("cal_ql", "sac and data", "sac")


def play(way: str, data: Dataset, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train in one way with one seed; the scores on the way."""
    began = time.perf_counter()
    common: dict[str, Any] = {"seed": seed, "threads": 1, "precision": args.precision}
    online = {**common, "total_steps": args.steps, "eval_every": args.steps // args.evaluations, "eval_episodes": 10}
    start: list[float] = []
    assert data.reference is not None
    if way == "cal_ql":
        settings: dict[str, Any] = {"calibrated": True, **common, "total_steps": args.updates, "eval_every": 0}
        with steepest.Run("cql", None, data=data, eval_episodes=10, **settings) as run:
            list(run)
            start = [run.evaluations[0].mean]
            agent = run.agent
        more: dict[str, Any] = {"agent": agent, "data": data, "data_share": 0.5}
        more |= {"warm_up": "policy", "calibrated": True}
    else:
        more = {"data": data, "data_share": 0.5} if way == "sac and data" else {}
    with steepest.Run("cql" if way == "cal_ql" else "sac", args.env, **online, **more) as run:
        rows = list(run)
    returns = [row["eval/return_mean"] for row in rows if "eval/return_mean" in row]
    scores = [float(data.reference.score(x)) for x in (*start, *returns)]
    return {
        "scores": scores,
        "returns": [*start, *returns],
        "regret": statistics.mean(100.0 - s for s in scores),
        "seconds": time.perf_counter() - began,
        "git_commit": machine()["git_commit"],
    }


def table(results: dict[str, Any]) -> str:
    """Regret, and the first and the last score, as Markdown: means over seeds, and each."""
    lines = ["| | regret | first score | last score |", "|-|-|-|-|"]
    for way, seeds in results["runs"].items():
        found = list(seeds.values())
        columns = [[r["regret"] for r in found], [r["scores"][0] for r in found], [r["scores"][-1] for r in found]]
        cells = [f"{statistics.mean(c):.1f} ({', '.join(f'{x:.1f}' for x in c)})" for c in columns]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--data", type=Path, required=True, help="with reference returns, as offline.py makes it")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--updates", type=int, default=50_000, help="on the data alone")
    parser.add_argument("--steps", type=int, default=30_000, help="of playing")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="default: runs/online-ENV")
    args = parser.parse_args()
    folder: Path = args.out or Path("runs") / f"online-{args.env}"
    folder.mkdir(parents=True, exist_ok=True)
    data = steepest.read_dataset(args.data)
    if data.reference is None:
        parser.error(f"{args.data} has no reference returns to score by")
    ways: list[str] = args.ways
    for seed, way in itertools.product(range(args.seeds), ways):
        place = folder / f"{way} - {seed}.json"
        with claimed(place) as mine:
            if not mine or place.exists():
                continue
            found = play(way, data, seed, args)
            write_text_atomic(place, json.dumps(found, indent=1))
        print(f"{way}, seed {seed}: regret {found['regret']:.1f} in {found['seconds']:.0f} s", flush=True)
    known: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "env": args.env}
    known |= {"updates": args.updates, "steps": args.steps, "reference": data.reference._asdict(), "runs": {}}
    for place in sorted(folder.glob("* - *.json")):
        way, seed = place.stem.split(" - ")
        known["runs"].setdefault(way, {})[seed] = json.loads(place.read_text())
    write_text_atomic(folder / "RESULT.json", json.dumps(known, indent=1))
    print(table(known))


if __name__ == "__main__":
    main()
