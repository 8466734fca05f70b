"""Offline algorithms on datasets of our own agents, beside cloning, the data's own return, and plain SAC on the data.

    python benchmarks/offline.py --env Hopper-v5                    everything; an interrupted call resumes, and a
                                                                    second call beside it takes its share
    python benchmarks/offline.py --env Hopper-v5 --data medium --algorithms iql cql --seeds 2
    python benchmarks/offline.py --env FrozenLake-v1 --data random --reference 0 1

1. trains SAC, or DQN where actions are discrete, for --expert-steps steps; its agent at the end plays "medium", its
   replay buffer is "medium-replay"
2. trains every algorithm for --updates gradient steps on each dataset and each seed
3. reports the last evaluation (never the best), in returns and in scores: 0 is a random policy, 100 the expert

The expert is that agent at the end, so a score above 100 is better than the policy that made the data. Everything goes
into --out, a folder; what stands there is not done again. RESULT.json has all seeds, each run's commit, the machine and
the command.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import shlex
import statistics
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch

import steepest
from run import machine
from steepest.agents.agent import normalization
from steepest.experience.datasets.dataset import Dataset
from steepest.files.atomic import write_text_atomic

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {}),
    "bc, best 10 %": ("bc", {"best_fraction": 0.1}),
    "td3_bc": ("td3_bc", {}),
    "rebrac": ("rebrac", {"batch_size": 256}),
    "iql": ("iql", {}),
    "awac": ("awac", {}),
    "sac": ("sac", {}),
    "cql": ("cql", {}),
    "cql, rho": ("cql", {"regulariser": "previous"}),
    "cal_ql": ("cql", {"calibrated": True}),
}
"""Row of the table -> algorithm and settings; everything else is the default."""

DISCRETE: dict[str, tuple[str, dict[str, Any]]] = {
    **{row: ALGORITHMS[row] for row in ("bc", "bc, best 10 %", "iql", "awac")},
    "dqn": ("dqn", {}),
    "discrete_cql": ("discrete_cql", {}),
}
"""The same where actions are discrete; plain DQN is the negative control."""


@contextmanager
def claimed(place: Path) -> Generator[bool]:
    """Give True where no other call works on this file, until the end of the block or of the process."""
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def datasets(
    env: str, learner: str, steps: int, folder: Path, wanted: list[str], reference: tuple[float, float] | None
) -> dict[str, Path]:
    """The files of the datasets, made where they are missing; "random" needs no expert where a reference is given."""
    expert = folder / "expert"
    places = {name: folder / f"{name}.npz" for name in wanted}
    more: dict[str, Any] = {"reference": reference} if reference else {"reference_episodes": 20}
    with claimed(expert) as mine:
        if not mine:
            raise SystemExit(f"another call makes the datasets in {folder}: start this one when they are there")
        if not (expert / "summary.json").exists() and not (reference and wanted == ["random"]):
            if (expert / "config.json").exists():
                steepest.resume(expert, quiet=False)
            else:
                options: dict[str, Any] = {"total_steps": steps, "buffer_size": 2 * steps}
                options |= {"seed": 0, "checkpoint_every": 20_000}
                steepest.train(learner, env, out=expert, quiet=False, **options)
        for name, place in places.items():
            if place.exists():
                continue
            if name == "medium-replay":
                steepest.collect_replay(expert, out=place, **more)
            elif name == "medium":
                steepest.collect(expert, env, steps=steps, seed=1, out=place, **more)
            elif name == "random":
                steepest.collect("random", env, steps=steps, seed=1, out=place, **more)
            else:
                raise SystemExit(f"no dataset is called {name}; known: random, medium, medium-replay")
    return places


def train(row: str, data: Dataset, seed: int, updates: int, evaluations: int, precision: str) -> dict[str, Any]:
    """Train on a dataset; the last evaluation, and what the critics say of the data's actions."""
    algorithm, options = (ALGORITHMS | DISCRETE)[row]
    began = time.perf_counter()
    settings: dict[str, Any] = {"total_steps": updates, "seed": seed, "eval_every": 0, "eval_episodes": evaluations}
    settings |= {"precision": precision, **options}
    with steepest.Run(algorithm, None, data=data, threads=1, **settings) as run:
        rows = list(run)
        evaluation = run.evaluations[0]
        claimed_value, true_value = values_of_play(run.agent, data)
    assert data.reference is not None
    return {
        "returns": list(evaluation.returns),
        "return_mean": evaluation.mean,
        "score": float(data.reference.score(evaluation.mean)),
        "q_of_data": rows[-1].get("health/q_mean"),
        "q_of_play": claimed_value,
        "true_value_of_play": true_value,
        "seconds": time.perf_counter() - began,
        "modes": run.training.summary(1.0, updates)["modes"],
        "precision": precision,
        "git_commit": machine()["git_commit"],
        **(success_probability(run.agent, data.env) if data.env and data.env.startswith("FrozenLake") else {}),
    }


def values_of_play(agent: Any, data: Dataset) -> tuple[float | None, float]:
    """Means over states that the policy meets: the critics' Q (the mean of two), and the return that followed.

    Of every episode its first 500 steps, so that the end of the recording costs at most gamma^500 of a return.
    """
    played = steepest.collect(agent, data.env, steps=5_000, seed=7)
    first, last = played.bounds
    rows = np.concatenate([np.arange(a, min(b, a + 500)) for a, b in zip(first, last, strict=True)])
    true = float(played.returns_to_go(agent.config.gamma)[rows].mean())
    if "critic/" not in agent.calls:
        return None, true
    state = {k: v[0] for k, v in agent.state.items()}
    spec, taken = agent.action_spec, torch.from_numpy(played.action[rows])
    obs = {"obs": torch.from_numpy(np.asarray(played.obs)[rows])}
    with torch.no_grad():
        call = partial(agent.calls["critic/"], state["critic/params"], state, obs, normalization(state))
        if spec.kind == "discrete":
            q = call(None)[:, torch.arange(len(rows)), taken]
        else:
            low, high = torch.tensor(spec.low), torch.tensor(spec.high)
            q = call(2.0 * (taken.float() - low) / (high - low) - 1.0)
    return float(q.mean()), true


def success_probability(agent: Any, env_id: str) -> dict[str, float]:
    """FrozenLake: how likely the agent's greedy policy, and the best policy, reach the goal in time, exactly."""
    env = gymnasium.make(env_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps is not None
    model: Any = cast(Any, env.unwrapped).P
    greedy = [int(agent.act(s, deterministic=True)[0]) for s in range(len(model))]
    value, best = np.zeros(len(model)), np.zeros(len(model))

    def backed_up(after: Any, s: int, a: int) -> float:
        return sum(p * (reward + (0.0 if end else after[t])) for p, t, reward, end in model[s][a])

    for _ in range(env.spec.max_episode_steps):
        value = np.array([backed_up(value, s, greedy[s]) for s in range(len(model))])
        best = np.array([max(backed_up(best, s, a) for a in model[s]) for s in range(len(model))])
    return {"success_probability": float(value[0]), "best_success_probability": float(best[0])}


def figures(data: Dataset) -> dict[str, Any]:
    """What a reader needs to know of the data."""
    assert data.reference is not None
    mean = float(data.returns.mean())
    return {
        "steps": data.steps,
        "episodes": len(data.returns),
        "return_mean": mean,
        "score": float(data.reference.score(mean)),
        "reference": data.reference._asdict(),
    }


def table(results: dict[str, Any]) -> str:
    """Scores of the last evaluation, as Markdown: mean over seeds, and each."""
    names = list(results["data"])
    lines = ["| |" + "|".join(names) + "|", "|-|" + "-|" * len(names)]
    own = [f"{results['data'][n]['score']:.1f}" for n in names]
    lines.append("| the data's own mean return |" + "|".join(own) + "|")
    for row in ALGORITHMS | DISCRETE:
        if not any(row == run.partition(": ")[2] for run in results["runs"]):
            continue
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
    parser.add_argument("--reference", nargs=2, type=float, help="returns that score 0 and 100; default: measured")
    parser.add_argument("--algorithms", nargs="+", metavar="ROW", help="default: all")
    parser.add_argument("--updates", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=20, help="episodes of the last evaluation")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="default: runs/offline-ENV")
    args = parser.parse_args()
    discrete = isinstance(gymnasium.make(args.env).action_space, gymnasium.spaces.Discrete)
    rows = DISCRETE if discrete else ALGORITHMS
    wanted = args.algorithms or list(rows)
    unknown = [row for row in wanted if row not in rows]
    if unknown:
        parser.error(f"--algorithms: {args.env} has no {', '.join(unknown)}; expected some of {', '.join(rows)}")
    folder: Path = args.out or Path("runs") / f"offline-{args.env}"
    folder.mkdir(parents=True, exist_ok=True)
    places = datasets(args.env, "dqn" if discrete else "sac", args.expert_steps, folder, args.data, args.reference)
    read = {name: steepest.read_dataset(place) for name, place in places.items()}
    for row, name, seed in itertools.product(wanted, places, range(args.seeds)):
        place = folder / f"{name} - {row} - {seed}.json"
        with claimed(place) as mine:
            if not mine or place.exists():
                continue
            found = train(row, read[name], seed, args.updates, args.evaluations, args.precision)
            write_text_atomic(place, json.dumps(found, indent=1))
        print(f"{name}, {row}, seed {seed}: {found['score']:.1f} in {found['seconds']:.0f} s", flush=True)
    command = shlex.join(["python", *sys.argv])
    known: dict[str, Any] = {"command": command, "machine": machine(), "updates": args.updates, "runs": {}}
    known |= {"data": {name: figures(data) for name, data in read.items()}}
    for place in sorted(folder.glob("* - * - *.json")):
        name, row, seed = place.stem.split(" - ")
        known["runs"].setdefault(f"{name}: {row}", {})[seed] = json.loads(place.read_text())
    write_text_atomic(folder / "RESULT.json", json.dumps(known, indent=1))
    print(table(known))


if __name__ == "__main__":
    main()
