"""Off-policy evaluation of ten policies on two tasks, beside what playing them gives.

    python benchmarks/off_policy_evaluation.py                      both tasks; an interrupted call resumes
    python benchmarks/off_policy_evaluation.py --tasks cartpole

1. saves ten policies from the beginning to the end of one training; one in the middle is the behaviour policy
2. plays each of them for its true value
3. estimates all from the same episodes of the behaviour policy: values, rank correlation, regret@1
4. estimates them again from each of 200 further, independent data sets: how often the 95 % interval holds the true
   value. The Q-function of the doubly robust estimators is that of step 3, so it does not depend on these data sets

Everything goes into --out, a folder; what stands there is not done again. RESULT.json has every policy, the commit, the
machine and the command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import steepest
from run import machine
from steepest.api.ope import NAMES, WEIGHTED, PaddedEpisodes, target_log_probs, weighted
from steepest.evaluation import (
    bootstrap_t_interval,
    effective_sample_size,
    estimate,
    log_weights,
    with_final_value,
)
from steepest.evaluation.fitted_q import FittedQ, FittedQConfig, policy_on
from steepest.experience.datasets.dataset import Dataset, from_episodes
from steepest.experience.datasets.sampling import DatasetRows
from steepest.files.atomic import write_text_atomic

POLICIES = 10


class Task(NamedTuple):
    """What is learned, and from how many episodes it is estimated."""

    env: str
    algorithm: str
    total_steps: int
    settings: dict[str, Any]
    behaviour: int
    """Which of the ten policies the data is of."""
    gamma: float
    episodes: int
    """Episodes of a data set."""
    limit: int
    """Steps after which an episode is cut."""
    ends: bool
    """Whether episodes end before."""


TASKS = {
    "cartpole": Task(
        "CartPole-v1", "ppo", 40_000, {"seed": 1}, behaviour=3, gamma=0.99, episodes=50, limit=500, ends=True
    ),
    "pendulum": Task(
        "Pendulum-v1", "sac", 10_000, {"seed": 1}, behaviour=4, gamma=0.97, episodes=25, limit=200, ends=False
    ),
}
"""gamma makes what follows a recording of 200 steps count for less than 0.3 % of a return."""


def policies(task: Task, folder: Path) -> list[Path]:
    """Train once; save the agent at ten times, equally far apart, the last one at the end."""
    places = [folder / f"policy-{i}.safetensors" for i in range(POLICIES)]
    if places[-1].exists():
        return places
    options: dict[str, Any] = {"total_steps": task.total_steps, "eval_episodes": 0, "threads": 1, **task.settings}
    with steepest.Run(task.algorithm, task.env, **options) as run:
        saved = 0
        for row in run:
            while saved < POLICIES and row["step"] >= (saved + 1) * task.total_steps / POLICIES:
                run.agent.save(places[saved])
                saved += 1
        run.agent.save(places[-1])
    return places


def episodes_of(agent: Any, task: Task, count: int, seed: int) -> Dataset:
    """The first so many episodes of an agent, one after another: to take what ends first of several would favour short
    ones."""
    steps = 100 * count
    while True:
        played = steepest.collect(agent, task.env, steps=steps, seed=seed, num_envs=1 if task.ends else 8)
        whole = [e for e in played.episodes() if e.terminated or len(e.reward) == task.limit]
        if len(whole) >= count:
            return from_episodes(whole[:count], env=task.env, spaces=played.spaces)
        steps *= 2


def coverage(task: Task, agents: list[Any], fitted: list[FittedQ], pool: Dataset, true: list[float]) -> dict[str, Any]:
    """Of each estimator and policy, the share of data sets whose interval holds the true value, and its mean width."""
    padded = PaddedEpisodes(pool)
    behaviour = padded.of(np.asarray(pool.log_prob))
    generator = torch.Generator().manual_seed(0)
    sets = len(padded.first) // task.episodes
    found: dict[str, dict[str, list[float]]] = {n: {"coverage": [], "width": [], "error": []} for n in WEIGHTED}
    effective = []
    for agent, model, value in zip(agents, fitted, true, strict=True):
        rows = DatasetRows(pool, agent.obs_spec, agent.action_spec)
        target = policy_on(agent, rows)
        moved = FittedQ(agent, rows, target, model.config)
        moved.q_network.load_state_dict(model.q_network.state_dict())
        moved.statistics = model.statistics
        q, v = (padded.of(x.numpy()) for x in (moved.q_values(padded.rows), moved.values(padded.rows)))
        final = torch.where(padded.truncated, v.new_tensor(moved.values(padded.last).numpy()), 0.0)
        reward = with_final_value(padded.reward, final, padded.valid, task.gamma)
        log_prob, refused = target_log_probs(pool, agent, target, padded)
        if log_prob is None:
            raise SystemExit(f"no weights: {refused}")
        kept: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WEIGHTED}
        size = []
        for k in range(sets):
            part = slice(k * task.episodes, (k + 1) * task.episodes)
            known = [x[part] for x in (reward, q, v, log_prob, behaviour, padded.valid)]
            size.append(float(effective_sample_size(log_weights(*known[3:])[..., -1])))
            for name, contributions in weighted(*known, gamma=task.gamma).items():
                low, high = bootstrap_t_interval(contributions, generator, resamples=400, share=0.95)
                kept[name].append((float(estimate(contributions)), float(low), float(high)))
        effective.append(statistics.mean(size))
        for name, intervals in kept.items():
            found[name]["coverage"].append(statistics.mean(low <= value <= high for _, low, high in intervals))
            found[name]["width"].append(statistics.median(high - low for _, low, high in intervals))
            found[name]["error"].append(statistics.median(abs(x - value) for x, *_ in intervals))
    return {"data_sets": sets, "episodes": task.episodes, "effective_episodes": effective, "estimators": found}


def measure(task: Task, folder: Path, sets: int, updates: int) -> dict[str, Any]:
    """All four steps for one task."""
    began = time.perf_counter()
    places = policies(task, folder)
    agents = [steepest.load(place) for place in places]
    true = []
    for i, agent in enumerate(agents):
        returns = episodes_of(agent, task, 400, seed=100 + i)
        first, _ = returns.bounds
        values = returns.returns_to_go(task.gamma)[first]
        true.append((float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)))
        print(f"{task.env}, policy {i}: true value {true[-1][0]:.2f} +- {true[-1][1]:.2f}", flush=True)
    data = episodes_of(agents[task.behaviour], task, 4 * task.episodes, seed=1)
    options: dict[str, Any] = {"gamma": task.gamma, "updates": updates}
    report = steepest.ope(agents, data, note=lambda line: print(line, flush=True), resamples=500, **options)
    estimates = [{name: e.value for name, e in p.estimates.items()} for p in report.policies]
    fitted = []
    for agent in agents:
        rows = DatasetRows(data, agent.obs_spec, agent.action_spec)
        model = FittedQ(agent, rows, policy_on(agent, rows), FittedQConfig(**options))
        model.fit()
        fitted.append(model)
    pool = episodes_of(agents[task.behaviour], task, sets * task.episodes, seed=2)
    values = [value for value, _ in true]
    return {
        "task": task._asdict(),
        "true": true,
        "estimates": estimates,
        "effective_episodes": [p.effective_episodes for p in report.policies],
        "ranking": ranking(estimates, values),
        "coverage": coverage(task, agents, fitted, pool, values),
        "seconds": time.perf_counter() - began,
        "git_commit": machine()["git_commit"],
    }


def ranking(estimates: list[dict[str, float]], true: list[float]) -> dict[str, dict[str, float]]:
    """Rank correlation, regret@1 and the mean absolute error of every estimator of all policies."""
    found = {}
    for name in NAMES:
        values, goal = torch.tensor([e[name] for e in estimates]), torch.tensor(true)
        found[name] = {
            "rank_correlation": float(steepest.evaluation.rank_correlation(values, goal)),
            "regret_at_1": float(steepest.evaluation.regret_at_k(values, goal, 1)),
            "mean_absolute_error": float((values - goal).abs().mean()),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """Rank correlation, regret@1, error and coverage of every estimator, as Markdown."""
    names = list(results["tasks"])
    head = "".join(f"{n}: rank correlation | regret@1 | error | coverage |" for n in names)
    lines = [f"| | {head}", "|-|" + "-|-|-|-|" * len(names)]
    for name, title in NAMES.items():
        cells = ""
        for task in names:
            found = results["tasks"][task]
            rank, held = found["ranking"][name], found["coverage"]["estimators"].get(name)
            share = f"{100.0 * statistics.mean(held['coverage']):.0f} %" if held else ""
            cells += f" {rank['rank_correlation']:.2f} | {rank['regret_at_1']:.3g} |"
            cells += f" {rank['mean_absolute_error']:.3g} | {share} |"
        lines.append(f"| {title} |{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sets", type=int, default=200, help="independent data sets for the coverage")
    parser.add_argument("--updates", type=int, default=20_000, help="of fitted Q evaluation")
    parser.add_argument("--out", type=Path, default=Path("runs/off-policy-evaluation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "tasks": {}}
    for name in args.tasks:
        folder: Path = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / "result.json"
        if not place.exists():
            write_text_atomic(place, json.dumps(measure(TASKS[name], folder, args.sets, args.updates), indent=1))
        known["tasks"][name] = json.loads(place.read_text())
    write_text_atomic(args.out / "RESULT.json", json.dumps(known, indent=1))
    print(table(known))


if __name__ == "__main__":
    main()
