"""What each detail of an algorithm is worth: trained with it and without it, five seeds each.

    python benchmarks/ablations.py [RUN ...]     # train what is missing, or these runs again, and fill the pages
    python benchmarks/ablations.py --pages       # only fill the pages

A run is a start (an algorithm on the cheapest environment on which the detail can matter, with its preset), or a start
with one setting changed. Every run is five seeds in one population, evaluated ten times: the last evaluation is what it
reached, their mean the area under its learning curve. Results go to benchmarks/results/ablations.json, run by run, so
that an interrupted command goes on where it was; from there into the tables of docs/, where a test holds them. The
on-policy chapter takes about 20 minutes of one core; DQN's preset about a minute a seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from steepest.runs.run import Run
from steepest.runs.store.folder import environment_report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ablations.json"
DOCS = HERE.parent / "docs"

Options = dict[str, Any]

COMMON: Options = {"seeds": 5, "eval_episodes": 10, "compile": "off", "threads": 1}
"""Eager, since compiling takes longer than runs as short as these."""

SMALL: Options = {"hidden_sizes": [64, 64], "batch_size": 64, "steps_per_iteration": 600}
"""Of the algorithms that take a gradient step after every step: a tenth of the time."""

STARTS: dict[str, tuple[str, str, Options]] = {
    "ppo": ("ppo", "CartPole-v1", {"total_steps": 50_000}),
    "reinforce": ("reinforce", "CartPole-v1", {"total_steps": 100_000}),
    "average": ("ppo", "steepest/RiverSwim-v0", {"total_steps": 50_000}),
    "actor_critic": ("actor_critic", "CartPole-v1", {"total_steps": 60_000}),
    "ppo_kl": ("ppo_kl", "CartPole-v1", {"total_steps": 50_000}),
    "trpo": ("trpo", "CartPole-v1", {"total_steps": 50_000}),
    "ppo_pendulum": ("ppo", "Pendulum-v1", {"total_steps": 50_000}),
    "dqn": ("dqn", "CartPole-v1", {"total_steps": 80_000}),
    "sac": ("sac", "Pendulum-v1", {"total_steps": 6_000, **SMALL}),
    "td3": ("td3", "Pendulum-v1", {"total_steps": 6_000, **SMALL}),
    "ddpg": ("ddpg", "Pendulum-v1", {"total_steps": 6_000, **SMALL}),
}
"""Algorithm, environment and what is not left to the preset."""

ABLATIONS: dict[str, dict[str, list[tuple[str, Options]]]] = {
    "reinforce": {
        "reward-to-go instead of the episode's return": [("reinforce", {"estimator": "full_return"})],
        "learned baseline v(s_t)": [
            ("reinforce", {"baseline": "none"}),
            ("reinforce", {"baseline": "average_return"}),
        ],
        "states weighted alike, not by gamma^t": [("reinforce", {"state_weighting": "discounted"})],
        "value bootstrap where a rollout or a time limit cuts an episode": [("reinforce", {"at_cut": "drop"})],
        "psi scaled over the rollout": [("reinforce", {"normalize_advantage": False})],
        "gradient norm limited": [("reinforce", {"max_gradient_norm": 10_000.0})],
        "learning rate falls linearly": [("reinforce", {"learning_rate_schedule": "constant"})],
        "entropy bonus": [("reinforce", {"entropy_coef": 0.01})],
        "policy and value function apart": [("reinforce", {"shared_torso": True})],
    },
    "actor_critic": {
        "short rollouts of many environments": [("actor_critic", {"rollout_steps": 128})],
        "rewards to the rollout's end": [("actor_critic", {"gae_lambda": 1.0})],
        "one number of steps instead": [
            ("actor_critic", {"advantage": "n_step", "n_steps": 1, "gae_lambda": 1.0}),
            ("actor_critic", {"advantage": "n_step", "n_steps": 4, "gae_lambda": 1.0}),
        ],
        "critic fitted to bootstrapped targets": [("actor_critic", {"critic": "monte_carlo"})],
        "states weighted alike, not by gamma^t": [("actor_critic", {"state_weighting": "discounted"})],
        "advantages standardised over the rollout": [("actor_critic", {"normalize_advantage": True})],
        "gradient norm limited": [("actor_critic", {"max_gradient_norm": 10_000.0})],
        "learning rate falls linearly": [("actor_critic", {"learning_rate_schedule": "constant"})],
        "entropy bonus": [("actor_critic", {"entropy_coef": 0.0})],
        "policy and value function apart": [("actor_critic", {"shared_torso": True})],
    },
    "ppo": {
        "clipped objective": [("ppo", {"clip_epsilon": 1000.0})],
        "several environments at once": [("ppo", {"num_envs": 1, "rollout_steps": 1024})],
        "generalised advantage": [("ppo", {"gae_lambda": 1.0}), ("ppo", {"gae_lambda": 0.0})],
        "several epochs": [("ppo", {"epochs": 1})],
        "advantages and targets corrected every epoch": [("ppo", {"off_policy_correction": "vtrace"})],
        "advantages standardised per minibatch": [("ppo", {"normalize_advantage": False})],
        "value loss beside the policy loss": [("ppo", {"value_coef": 0.0})],
        "value loss clipped": [("ppo", {"value_clip": 0.2})],
        "entropy bonus": [("ppo", {"entropy_coef": 0.01})],
        "gradient norm limited": [("ppo", {"max_gradient_norm": 10_000.0})],
        "learning rate falls linearly": [("ppo", {"learning_rate_schedule": "constant"})],
        "clip range falls linearly": [("ppo", {"clip_schedule": "constant"})],
        "tanh activations": [("ppo", {"activation": "relu"})],
        "policy and value function apart": [("ppo", {"shared_torso": True})],
        "spread independent of the state, starting at `initial_std`": [("ppo_pendulum", {"initial_std": 0.5})],
        "observations normalised, clipped at 10": [("ppo_pendulum", {"normalize_obs": True})],
        "rewards divided by the deviation of the discounted return, never centred, not clipped": [
            ("ppo_pendulum", {"normalize_reward": False})
        ],
        "stop at a target KL": [("ppo", {"target_kl": 0.015})],
        "probabilities and spreads have a floor": [
            ("ppo", {"min_probability": 0.0}),
            ("ppo_pendulum", {"min_std": 1e-8}),
        ],
    },
    "ppo_kl": {
        "target of 0.01 nats": [("ppo_kl", {"target_kl": 0.01}), ("ppo_kl", {"target_kl": 0.003})],
        "first coefficient 1": [("ppo_kl", {"kl_coef": 10.0})],
        "the paper's direction of the KL": [("ppo_kl", {"kl_direction": "new_old"})],
    },
    "trpo": {
        "conjugate gradients stopped after few iterations": [
            ("trpo", {"cg_iterations": 1}),
            ("trpo", {"cg_iterations": 40}),
        ],
        "damping": [("trpo", {"cg_damping": 0.0}), ("trpo", {"cg_damping": 0.1})],
        "F from fewer steps than g": [("trpo", {"fisher_subsample": 4})],
        "restoring after a failed search": [("trpo", {"line_search_steps": 0})],
        "advantages standardised over the rollout": [("trpo", {"normalize_advantage": False})],
        "value function fitted by Adam on minibatches, after the policy's step": [("trpo", {"epochs": 1})],
    },
    "average_reward": {
        "average reward as the objective": [
            ("average", {"objective": "discounted", "gamma": 0.99}),
            ("average", {"objective": "discounted", "gamma": 0.9}),
        ],
        "gain as a moving average over rollouts": [
            ("average", {"gain_rate": 1.0}),
            ("average", {"gain_rate": 0.01}),
        ],
    },
    "sac": {
        "least of two critics": [("sac", {"num_critics": 1, "target_critics": 1})],
        "critics of one mean instead of the least, for the policy": [("sac", {"policy_q": "mean"})],
        "temperature learned": [("sac", {"temperature": 0.2}), ("sac", {"temperature": 1.0})],
        "target entropy -D": [("sac", {"target_entropy": 0.0})],
        "target networks, a moving average": [
            ("sac", {"target_update_rate": 1.0}),
            ("sac", {"target_update_rate": 0.05}),
            ("sac", {"target_update_rate": 0.0005}),
        ],
        "one gradient step per environment step": [("sac", {"update_ratio": 0.25}), ("sac", {"update_ratio": 4.0})],
        "uniform actions first": [("sac", {"learning_starts": 0})],
        "layer norm in the critics": [("sac", {"layer_norm": True})],
        "n-step returns": [("sac", {"n_steps": 3})],
        "prioritised replay": [("sac", {"prioritized": True})],
        "gradient norm limited": [("sac", {"max_gradient_norm": 1.0})],
        "log std clipped": [("sac", {"min_log_std": -20.0})],
    },
    "td3": {
        "target actions blurred": [("td3", {"target_noise": 0.0})],
        "policy and targets delayed": [("td3", {"policy_delay": 1})],
        "independent exploration noise": [("td3", {"noise_correlation": 0.85})],
        "size of the exploration noise": [("td3", {"exploration_std": 0.01}), ("td3", {"exploration_std": 0.5})],
        "target networks, a moving average": [
            ("td3", {"target_update_rate": 1.0}),
            ("td3", {"target_update_rate": 0.05}),
        ],
        "uniform actions first": [("td3", {"learning_starts": 0})],
        "one gradient step per environment step": [("td3", {"update_ratio": 0.25})],
        "n-step returns": [("td3", {"n_steps": 3})],
        "prioritised replay": [("td3", {"prioritized": True})],
        "gradient norm limited": [("td3", {"max_gradient_norm": 1.0})],
    },
    "ddpg": {
        "target networks, a moving average": [
            ("ddpg", {"target_update_rate": 1.0}),
            ("ddpg", {"target_update_rate": 0.001}),
        ],
        "Ornstein-Uhlenbeck noise": [("ddpg", {"noise_correlation": 0.0})],
        "size of the exploration noise": [("ddpg", {"exploration_std": 0.1})],
        "critic faster than policy": [("ddpg", {"learning_rate": 1e-4})],
        "uniform actions first": [("ddpg", {"learning_starts": 0})],
        "one gradient step per environment step": [("ddpg", {"update_ratio": 0.25})],
        "gradient norm limited": [("ddpg", {"max_gradient_norm": 1.0})],
    },
    "dqn": {
        # 256 rows are those of the last burst of steps.
        "replay": [("dqn", {"buffer_size": 256}), ("dqn", {"buffer_size": 10_000})],
        "target network, copied": [
            ("dqn", {"target_update_every": 1}),
            ("dqn", {"target_update_every": 1, "target_update_rate": 0.01}),
            ("dqn", {"target_update_every": 1280}),
        ],
        "one gradient step in four": [
            ("dqn", {"update_ratio": 0.25}),
            ("dqn", {"train_every": 4, "update_ratio": 0.25}),
        ],
        "error limited": [("dqn", {"huber_threshold": None})],
        "double": [("dqn", {"double": False})],
        "dueling, streams from the last hidden layer on": [("dqn", {"dueling": True})],
        "n-step returns": [("dqn", {"n_steps": 1}), ("dqn", {"n_steps": 10})],
        "prioritised replay": [("dqn", {"prioritized": True})],
        "gradient norm limited to 10": [("dqn", {"max_gradient_norm": None})],
        "epsilon falls linearly": [("dqn", {"initial_epsilon": 0.04}), ("dqn", {"exploration_fraction": 1.0})],
        "uniform actions first": [("dqn", {"learning_starts": 0})],
        "Adam's step size falls linearly": [("dqn", {"learning_rate_schedule": "constant"})],
    },
}
"""Page, detail as its row begins, and what is changed to go without it, or to have it where the start has it not."""

CHAPTER = ("reinforce", "actor_critic", "ppo", "ppo_kl", "trpo", "average_reward")
"""The pages that docs/on_policy.md sums up."""

SIGNIFICANT = 0.02
"""A difference counts up to this share of regroupings, whatever the number of comparisons: of five figures against
five, up to 4 of 252."""


# Training


def settings(start: str, change: Options) -> tuple[str, str, Options]:
    """Algorithm, environment and every option that is given, of a start with a change."""
    algorithm, env, options = STARTS[start]
    return algorithm, env, {**COMMON, **options, **change}


def run_name(start: str, change: Options) -> str:
    return " ".join([start, *(f"{option}={value}" for option, value in change.items())])


def all_runs() -> dict[str, tuple[str, Options]]:
    """Every run by name, a start before what is compared with it."""
    asked = [pair for details in ABLATIONS.values() for pairs in details.values() for pair in pairs]
    ordered = [(start, change) for start in STARTS for change in [{}, *(c for s, c in asked if s == start)]]
    return {run_name(*pair): pair for pair in ordered}


def train(start: str, change: Options) -> dict[str, Any]:
    """The evaluations of one run, of every seed."""
    algorithm, env, options = settings(start, change)
    steps: list[int] = []
    evaluations: list[list[float]] = []
    began = time.process_time()
    with Run(algorithm, env, **options) as run:
        resolved = run.description()
        for _ in run:
            if run.evaluated_at == run.step:
                steps.append(run.step)
                evaluations.append([round(found.mean, 3) for found in run.evaluations])
    by_seed = list(zip(*evaluations, strict=True))
    return {
        "algorithm": algorithm,
        "env": env,
        "options": options,
        "command": shlex.join(["python", "benchmarks/ablations.py", run_name(start, change)]),
        "commit": git("rev-parse", "HEAD"),
        "describe": git("describe", "--always", "--dirty"),
        "resolved": {key: resolved[key] for key in ("config", "run")},
        "cpu_seconds": round(time.process_time() - began, 1),
        "steps": steps,
        "evaluations": evaluations,
        "final_by_seed": [seed[-1] for seed in by_seed],
        "area_by_seed": [round(statistics.fmean(seed), 3) for seed in by_seed],
    }


def git(*command: str) -> str:
    return subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def write_results(environment: dict[str, Any], runs: dict[str, Any]) -> None:
    noted = {"note": note(runs)} if note(runs) else {}
    RESULTS.write_text(json.dumps({"environment": environment, **noted, "runs": runs}, indent=1) + "\n")


def note(runs: dict[str, Any]) -> str:
    """What to know about runs that were not all made by one version of the code; empty where they were."""
    commits = {run["commit"] for run in runs.values()}
    if len(commits) < 2:
        return ""
    pairs = [pair for details in ABLATIONS.values() for pairs in details.values() for pair in pairs]
    return (
        f"Runs of {len(commits)} commits, each with its own; the environment is the last one's. "
        f"{across(pairs, runs)} comparisons are between runs of different commits. {unresolved(runs)} runs have kept "
        "the options that were given, but neither the resolved ones nor whether the working tree had changes."
    )


def unresolved(runs: dict[str, Any]) -> int:
    """How many runs were made before they kept every setting and whether the working tree had changes."""
    return sum("resolved" not in run for run in runs.values())


def across(pairs: list[tuple[str, Options]], runs: dict[str, Any]) -> int:
    """How many of the changes were measured at another commit than what they are compared with."""
    found = [pair for pair in pairs if measured(pair, runs)]
    return sum(runs[start]["commit"] != runs[run_name(start, change)]["commit"] for start, change in found)


def read_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": {}}


# Comparing


def chance(a: list[float], b: list[float]) -> float:
    """How often two groups of these sizes, drawn from the same figures, have means at least as far apart.

    The exact two-sided permutation test: over all ways to divide the figures into two such groups.
    """
    figures, seen = [*a, *b], abs(statistics.fmean(a) - statistics.fmean(b))
    total, distances = sum(figures), []
    for chosen in itertools.combinations(range(len(figures)), len(a)):
        first = sum(figures[i] for i in chosen)
        distances.append(abs(first / len(a) - (total - first) / len(b)))
    return sum(distance >= seen - 1e-9 for distance in distances) / len(distances)


def called_by_chance(count: int, seeds: int = 5) -> float:
    """How many of so many changes without any effect are called better or worse, on average, where no figures tie."""
    groupings = math.comb(2 * seeds, seeds)
    # Every grouping has one as far apart the other way round, so shares go up in steps of two.
    return count * 2 * int(SIGNIFICANT * groupings / 2) / groupings


def verdict(start: dict[str, Any], changed: dict[str, Any]) -> str:
    """What the change did to the area under the learning curve: "worse", "better" or "no difference seen"."""
    a, b = start["area_by_seed"], changed["area_by_seed"]
    if chance(a, b) > SIGNIFICANT:
        return "no difference seen"
    return "better" if statistics.fmean(b) > statistics.fmean(a) else "worse"


# Writing


def spoken(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def spoken_change(change: Options) -> str:
    return ", ".join(f"`{option}` {spoken(value)}" for option, value in change.items())


def figures(run: dict[str, Any]) -> tuple[str, str]:
    """Final evaluation and area: mean and standard deviation of these very seeds (divided by their number)."""

    def text(values: list[float]) -> str:
        return f"{statistics.fmean(values):.0f} ± {statistics.pstdev(values):.0f}"

    return text(run["final_by_seed"]), text(run["area_by_seed"])


def cell(pairs: list[tuple[str, Options]], runs: dict[str, Any], usual: str) -> str:
    """What a table says of a detail: every change's figures and what they come to."""
    parts: list[str] = []
    for start, change in [pair for pair in pairs if measured(pair, runs)]:
        run = runs[run_name(start, change)]
        final, area = figures(run)
        where = "" if start == usual else f"{run['env']}, "
        parts.append(f"{where}{spoken_change(change)}: {final}, area {area}; {verdict(runs[start], run)}")
    return ". ".join(parts) or "not measured yet"


def measured(pair: tuple[str, Options], runs: dict[str, Any]) -> bool:
    return pair[0] in runs and run_name(*pair) in runs


def starts_of(page: str) -> list[str]:
    return list(dict.fromkeys(start for pairs in ABLATIONS[page].values() for start, _ in pairs))


def start_table(page: str, runs: dict[str, Any]) -> str:
    """What the measurements of a page are to be compared with."""
    starts = [runs[start] for start in starts_of(page) if start in runs]
    if not starts:
        return "\nNothing has been measured yet.\n\n"
    lines = ["| settings as they are | steps | last evaluation | area |", "|---|---|---|---|"]
    for run in starts:
        steps = f"{run['options']['total_steps']:,}"
        lines.append(f"| `{run['algorithm']}`, {run['env']} | {steps} | {' | '.join(figures(run))} |")
    return "\n".join(["", *lines, "", ""])


def filled(page: str, text: str, runs: dict[str, Any]) -> str:
    """The page with what was measured in the last column of its table of details, and above it."""
    text = between("ablations", start_table(page, runs), text)
    before, heading, table = text.partition("## Details")
    for detail, pairs in ABLATIONS[page].items():
        row = re.compile(rf"^\| {re.escape(detail)} \|.*\|", re.MULTILINE)
        (found,) = row.findall(table)
        cells = re.split(r"(?<!\\)\|", found)
        replacement = "|".join([*cells[:-2], f" {cell(pairs, runs, starts_of(page)[0])} ", ""])
        table = table.replace(found, replacement)
    return before + heading + table


def between(name: str, content: str, text: str) -> str:
    """The text with other content between the two comments of that name."""
    block = re.compile(rf"(?<=<!-- begin: {name} -->\n)(.*?)(?=<!-- end: {name} -->)", re.DOTALL)
    assert len(block.findall(text)) == 1, name
    return block.sub(lambda _: content, text)


def overview(runs: dict[str, Any]) -> str:
    """All comparisons of the chapter by what came out."""
    outcomes: dict[str, list[str]] = {"worse": [], "better": [], "no difference seen": []}
    every: list[tuple[str, Options]] = []
    for page in CHAPTER:
        listed = [pair for pairs in ABLATIONS[page].values() for pair in pairs]
        every += listed
        for start, change in [pair for pair in listed if measured(pair, runs)]:
            run = runs[run_name(start, change)]
            areas = [statistics.fmean(x["area_by_seed"]) for x in (runs[start], run)]
            where = "" if start == starts_of(page)[0] else f" on {run['env']}"
            text = f"{spoken_change(change)}{where} ({areas[0]:.0f} to {areas[1]:.0f})"
            outcomes[verdict(runs[start], run)].append(f"[{page}]({page}.md#details): {text}")
    count = sum(map(len, outcomes.values()))
    names = {name for start, change in every for name in (start, run_name(start, change))}
    used = {name: runs[name] for name in names if name in runs}
    commits = {run["commit"] for run in used.values()}
    parts = [
        f"{count} changes of one setting, with the area before and after. Nothing is corrected for their number:",
        f"had none any effect, about {called_by_chance(count):.1f} would be called worse or better, on average.",
        f"The {len(used)} runs were made at {len(commits)} commits, {across(every, runs)} of the changes at another",
        f"one than what they are compared with; {unresolved(used)} of the runs kept the options that were given, but",
        "neither the resolved ones nor whether files had changed since the commit.",
        "",
    ]
    for outcome, changes in outcomes.items():
        parts += [f"**{outcome.capitalize()}** ({len(changes)})", "", *(f"- {change}" for change in changes), ""]
    return "\n".join(["", *parts, ""])


def write_pages(runs: dict[str, Any]) -> None:
    for page in ABLATIONS:
        path = DOCS / f"{page}.md"
        path.write_text(filled(page, path.read_text(), runs))
    path = DOCS / "on_policy.md"
    path.write_text(between("ablations", overview(runs), path.read_text()))


def main() -> None:
    """Train what is missing, or what was asked for, and fill the pages."""
    runs = all_runs()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help='train these again, such as "ppo" or "ppo epochs=1"')
    parser.add_argument("--pages", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for name in arguments.runs:
        if name not in runs:
            parser.error(f"no run {name!r}; there are {', '.join(map(repr, runs))}")
    results = read_results()
    # What was measured under other options than are listed now is measured again.
    known = [n for n, r in results["runs"].items() if n in runs and r["options"] == settings(*runs[n])[2]]
    missing = [name for name in runs if name not in known]
    for name in [] if arguments.pages else arguments.runs or missing:
        found = train(*runs[name])
        kept = {n: r for n, r in {**results["runs"], name: found}.items() if n in runs}
        write_results(environment_report(), kept)
        results = read_results()
        print(f"{name}: {', area '.join(figures(found))} in {found['cpu_seconds']} s", flush=True)
    if results["runs"]:
        write_results(results["environment"], results["runs"])  # what is said of all runs may be said otherwise now
    write_pages(results["runs"])


if __name__ == "__main__":
    sys.exit(main())
