"""What labels of clips are worth: a learned reward against the number of labels, and control from labels alone.

    python benchmarks/preferences.py labels [--seeds 5] [--labels 50 100 200 400 800]
    python benchmarks/preferences.py control [--env Pendulum-v1] [--seeds 3] [--labels 700] [--runs FOLDER]

The labeller is a script that knows the environment's reward and answers by the Bradley-Terry model.

labels: clips of Pendulum-v1 under random torques. An ensemble learns from pairs drawn uniformly, or from those that it
disagrees most about, chosen anew after every twenty-five labels. It is measured on clips of episodes of which nothing
was labelled: the correlation of its scores with the true ones. Draws docs/images/preferences.png. About twenty minutes
of one core.

control: PPO from labels, asked for while it trains, beside PPO from the true reward; each run in a folder of its own
under --runs, from which an interrupted benchmark goes on to the same bits. Pendulum-v1: about a quarter of an hour a
seed.

Both write their part of benchmarks/results/preferences.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.environments import EnvBatch, make_env
from steepest.preferences.answers import Comparisons
from steepest.preferences.clips import ClipRewards, Clips, action_features
from steepest.preferences.learned import Answer, LiveLabels, Segment
from steepest.preferences.selection import preference_disagreement
from steepest.runs.run import Run
from steepest.runs.store.folder import environment_report
from steepest.runs.store.metrics import read_metrics

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "preferences.json"
IMAGE = HERE.parent / "docs" / "images" / "preferences.png"
CLIP_STEPS, ROUND, OFFERED = 25, 25, 40
SHARPNESS = 0.15
"""Nats of preference per unit of return: clips that are a deviation apart (about 30) are told apart almost surely."""
TOTAL_STEPS = {"Pendulum-v1": 300_000, "Hopper-v5": 1_000_000}


# What labels teach


def play(env: EnvBatch, episodes: int, seed: int) -> tuple[Clips, Tensor]:
    """Clips of whole episodes of 200 random torques, (8 episodes,) of them, and their true returns."""
    g = torch.Generator().manual_seed(seed)
    obs, _ = env.reset(seed)
    seen, taken, paid = [], [], []
    for _ in range(200):
        action = 4.0 * torch.rand((episodes, 1), generator=g).numpy() - 2.0
        result = env.step(action.astype("float32"))
        seen.append(torch.as_tensor(obs["obs"]))
        taken.append(action_features(env.action_spec, action))
        paid.append(torch.as_tensor(result.reward))
        obs = result.obs

    def cut(x: list[Tensor]) -> Tensor:
        rows = torch.stack(x, 1)  # (episodes, 200, ...)
        return rows.unflatten(1, (-1, CLIP_STEPS)).flatten(0, 1)

    return Clips({"obs": cut(seen)}, cut(taken)), cut(paid).sum(-1).float()


def correlations(selection: str, budgets: Sequence[int], seed: int) -> list[float]:
    """The correlation on unseen episodes after every number of labels."""
    env = make_env("Pendulum-v1", 60)
    (pool, worth), (unseen, true) = play(env, 60, 2 * seed), play(env, 60, 2 * seed + 1)
    env.close()
    rewards = ClipRewards(env.obs_spec, env.action_spec, seed=seed)
    g = torch.Generator().manual_seed(seed)
    pairs = torch.zeros((0, 2), dtype=torch.int64)
    weight = rewards.draw_weights(0)
    found: list[float] = []
    while len(pairs) < budgets[-1]:
        offered = torch.randint(len(worth), (OFFERED * ROUND, 2), generator=g)
        offered = offered[offered[:, 0] != offered[:, 1]]
        if selection == "active" and len(pairs):
            score = rewards.clip_scores(pool)
            disputed = preference_disagreement(score[:, offered[:, 0]], score[:, offered[:, 1]])
            offered = offered[disputed.argsort(descending=True)]
        new = offered[:ROUND]
        margin = SHARPNESS * (worth[new[:, 0]] - worth[new[:, 1]])
        first = torch.rand(ROUND, generator=g) < torch.sigmoid(margin)
        pairs = torch.cat([pairs, torch.where(first.unsqueeze(-1), new, new.flip(-1))])
        weight = torch.cat([weight, rewards.draw_weights(ROUND)], 1)
        number = len(pairs)
        rewards.learn(pool, Comparisons(pairs, torch.full((number,), 2), torch.zeros(number).bool()), weight)
        if number in budgets:
            score = rewards.clip_scores(unseen).mean(0)
            found.append(float(torch.corrcoef(torch.stack([score, true]))[0, 1]))
    return found


def labels(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways of choosing pairs, over seeds; draw the picture."""
    budgets = sorted(-(-n // ROUND) * ROUND for n in options.labels or [50, 100, 200, 400, 800])
    found = {how: [correlations(how, budgets, seed) for seed in range(options.seeds)] for how in ("uniform", "active")}
    for how, rows in found.items():
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(f"{how:8}" + "  ".join(f"{n}: {x:.3f}" for n, x in zip(budgets, means, strict=True)), flush=True)
    draw(budgets, found)
    return {"labels": budgets, "correlation": found, "sharpness": SHARPNESS, "clip_steps": CLIP_STEPS}


def draw(budgets: Sequence[int], found: dict[str, list[list[float]]]) -> None:
    """The picture of the docs: every seed, and the means."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.8, 4.3), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for how, colour in (("uniform", "#777777"), ("active", "#0072b2")):
            for row in found[how]:
                axes.plot(budgets, row, "o", color=colour, alpha=0.35, markersize=4)
            means = [statistics.mean(column) for column in zip(*found[how], strict=True)]
            label = "pairs drawn uniformly" if how == "uniform" else "pairs that the ensemble disagrees about"
            axes.plot(budgets, means, color=colour, linewidth=2, label=f"{label}, mean over seeds")
        axes.set_xscale("log")
        axes.set_xticks(list(budgets), [str(n) for n in budgets])
        axes.minorticks_off()
        axes.set_xlabel("labelled pairs of clips")
        axes.set_ylabel("correlation with the true return, unseen episodes")
        axes.grid(visible=True, color="#e6e6e6")
        axes.legend(frameon=False, loc="lower right")
        axes.set_title("What labels teach about Pendulum-v1", loc="left", fontweight="bold")
        IMAGE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(IMAGE, dpi=130)


# Control


def bradley_terry_labeller(pairs: Sequence[tuple[Segment, Segment]], asked: int) -> list[Answer]:
    """Prefers the clip of the greater true return, by the Bradley-Terry model; draws from the question's number."""
    g = torch.Generator().manual_seed(asked)
    margin = torch.tensor([SHARPNESS * float(a.rewards.sum() - b.rewards.sum()) for a, b in pairs])
    first = torch.rand(len(pairs), generator=g) < torch.sigmoid(margin)
    return ["first" if x else "second" for x in first.tolist()]


def trained(env: str, seed: int, asked: int | None, folder: Path) -> dict[str, Any]:
    """One run, begun or gone on with; its last evaluation. ``asked``: labels, None: the true reward."""
    live = None if asked is None else LiveLabels(labeller=bradley_terry_labeller, labels=asked, clip_steps=CLIP_STEPS)
    if (folder / "config.json").exists():
        run = Run.resume(folder, reward=live, note=print)
    else:
        run = Run("ppo", env, reward=live, out=folder, seed=seed, threads=1, total_steps=TOTAL_STEPS[env])
    with run:
        for _ in run:
            pass
        mean = run.evaluations[0].mean
    learned = [row for row in read_metrics(folder) if "health/reward_labels" in row]
    print(f"{folder.name}: return {mean:.1f}", flush=True)
    figures = {k: learned[-1].get(f"health/{k}") for k in ("reward_labels", "reward_accuracy")} if learned else {}
    return {"return": mean, "seed": seed, **figures}


def control(options: argparse.Namespace) -> dict[str, Any]:
    """The same settings with labels and with the true reward."""
    asked = (options.labels or [700])[0]
    found: dict[str, list[dict[str, Any]]] = {"labels": [], "true reward": []}
    for seed in range(options.seeds):
        for name, given in (("labels", asked), ("true reward", None)):
            folder = options.runs / f"{options.env}-{name.replace(' ', '-')}-seed{seed}"
            found[name].append(trained(options.env, seed, given, folder))
    for name, rows in found.items():
        print(f"{options.env} from {name}: {statistics.mean(row['return'] for row in rows):.1f}", flush=True)
    return {"labels": asked, "total_steps": TOTAL_STEPS[options.env], "runs": found}


def main() -> None:
    """Measure one part and write it beside the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("labels", "control"))
    parser.add_argument("--env", choices=sorted(TOTAL_STEPS), default="Pendulum-v1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "preferences")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.part == "labels":
        results["labels"] = {**labels(options), "environment": environment_report()}
    else:
        results[f"control-{options.env}"] = {**control(options), "environment": environment_report()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
