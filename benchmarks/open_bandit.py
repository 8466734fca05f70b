"""Off-policy estimates of two real policies beside their real click rates, on the Open Bandit Dataset.

    pip download obp==0.4.1 --no-deps -d obd && unzip -q obd/obp-0.4.1-py3-none-any.whl 'obp/dataset/obd/*' -d obd
    python benchmarks/open_bandit.py obd/obp/dataset/obd [--resamples 2000] [--seed 0]

A fashion shop showed items at three positions of a page by two policies, side by side: uniformly random, and Bernoulli
Thompson sampling. The package carries 10,000 rounds of each in each of three campaigns, with the probability of what
was shown. Each policy is evaluated from the other one's log; its own log gives the click rate that came about.

- A round is an episode of one step; the context is the position, and both policies' probabilities are those of the
  item at that position.
- The random policy's probabilities are known. Those of Thompson sampling change with time and are logged for what was
  shown alone: as a target it is represented by how often it showed every item at every position, which its clicks do
  not enter. As a behaviour policy it has its logged probabilities.
- The model of DM and DR is the click rate by item and position, shrunk towards the position's; five folds, so that no
  round is judged by a model that has seen it.

Everything goes to benchmarks/results/open-bandit.json, and the table of docs/off_policy_evaluation.md is written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablations import between
from steepest.evaluation import (
    Contributions,
    Interval,
    LoggedRounds,
    bootstrap_interval,
    bootstrap_t_interval,
    direct_method,
    doubly_robust,
    effective_sample_size,
    estimate,
    read_rounds,
    trajectory_importance,
    weighted_doubly_robust,
    weighted_trajectory_importance,
)
from steepest.runs.store.folder import environment_report

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "open-bandit.json"
PAGE = HERE.parent / "docs" / "off_policy_evaluation.md"
CAMPAIGNS = ("all", "men", "women")
POLICIES = {"random": "random", "bts": "Thompson sampling"}
FOLDS = 5
STRENGTH = 100.0
"""Rounds that the position's click rate counts for in the model of an item's."""


def target_policy(name: str, own: LoggedRounds) -> Tensor:
    """(positions, items) probabilities of the policy to evaluate; of Thompson sampling, its frequencies."""
    shape = (own.num_positions, own.num_items)
    if name == "random":
        return torch.full(shape, 1.0 / own.num_items, dtype=torch.float64)
    shown = torch.zeros(shape, dtype=torch.float64)
    shown.index_put_((own.position, own.item), torch.ones_like(own.click), accumulate=True)
    return shown / shown.sum(-1, keepdim=True)


def click_model(rounds: LoggedRounds, used: Tensor) -> Tensor:
    """(positions, items) shrunk click rates of the rounds that are used."""
    shape = (rounds.num_positions, rounds.num_items)
    place = (rounds.position[used], rounds.item[used])
    shown, clicks = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    shown.index_put_(place, torch.ones_like(rounds.click[used]), accumulate=True)
    clicks.index_put_(place, rounds.click[used], accumulate=True)
    rate = clicks.sum(-1, keepdim=True) / shown.sum(-1, keepdim=True)
    return (clicks + STRENGTH * rate) / (shown + STRENGTH)


def estimates(log: LoggedRounds, target: Tensor) -> tuple[dict[str, Contributions], float]:
    """What every estimator makes of a log, and the effective sample size of its weights."""
    q, value = torch.zeros_like(log.click), torch.zeros_like(log.click)
    fold = torch.arange(len(log.click)) % FOLDS
    for k in range(FOLDS):
        model, here = click_model(log, fold != k), fold == k
        q[here] = model[log.position[here], log.item[here]]
        value[here] = (target * model).sum(-1)[log.position[here]]
    target_log_prob = target[log.position, log.item].log()
    rows = [x.unsqueeze(-1) for x in (log.click, q, value, target_log_prob, log.log_prob)]
    reward, q, value, *log_probs = rows
    data = (*log_probs, torch.ones_like(reward, dtype=torch.bool), 1.0)
    found = {
        "IPS": trajectory_importance(reward, *data),
        "SNIPS": weighted_trajectory_importance(reward, *data),
        "DM": direct_method(value.squeeze(-1)),
        "DR": doubly_robust(reward, q, value, *data),
        "SNDR": weighted_doubly_robust(reward, q, value, *data),
    }
    return found, float(effective_sample_size(target_log_prob - log.log_prob))


def measured(contributions: Contributions, seed: int, resamples: int) -> dict[str, Any]:
    """An estimate with both intervals, in clicks per 1000 rounds."""
    functions: dict[str, Callable[..., Interval]] = {"percentile": bootstrap_interval, "t": bootstrap_t_interval}
    found: dict[str, Any] = {"estimate": 1000.0 * float(estimate(contributions))}
    for name, function in functions.items():
        interval = function(contributions, torch.Generator().manual_seed(seed), resamples=resamples)
        found[name] = [1000.0 * float(x) for x in interval]
    return found


def case(data: Path, campaign: str, target: str, seed: int, resamples: int) -> dict[str, Any]:
    """Evaluate one policy of a campaign from the log of the other one."""
    (behaviour,) = set(POLICIES) - {target}
    own, log = (read_rounds(data, name, campaign) for name in (target, behaviour))
    found, size = estimates(log, target_policy(target, own))
    return {
        "campaign": campaign,
        "target": target,
        "behaviour": behaviour,
        "items": own.num_items,
        "rounds": {target: len(own.click), behaviour: len(log.click)},
        "effective_sample_size": size,
        "largest_weight": float((target_policy(target, own)[log.position, log.item] / log.log_prob.exp()).max()),
        "own_log": measured(direct_method(own.click), seed, resamples),
        "estimates": {name: measured(x, seed, resamples) for name, x in found.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The table of the page: clicks per 1000 rounds, with bootstrap-t intervals."""
    names = list(result["cases"][0]["estimates"])
    lines = [
        f"| campaign, target | effective rounds | its own log | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 3),
    ]

    def cell(x: dict[str, Any]) -> str:
        low, high = x["t"]
        return f"{x['estimate']:.2f} ({low:.1f} .. {high:.1f})"

    for row in result["cases"]:
        cells = [cell(x) for x in (row["own_log"], *row["estimates"].values())]
        title = f"{row['campaign']}, {POLICIES[row['target']]}"
        lines.append(f"| {title} | {row['effective_sample_size']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate both policies of all campaigns and keep every figure."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder that holds random/ and bts/")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = [options.data / name / c / f"{c}.csv" for c in CAMPAIGNS for name in POLICIES]
    arguments = ["DATA", "--resamples", str(options.resamples), "--seed", str(options.seed)]
    result = {
        "command": shlex.join(["python", "benchmarks/open_bandit.py", *arguments]),
        "unit": "clicks per 1000 rounds",
        "settings": {"folds": FOLDS, "strength": STRENGTH, "share": 0.95},
        "data": {str(p.relative_to(options.data)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths},
        "cases": [
            case(options.data, campaign, target, options.seed, options.resamples)
            for campaign in CAMPAIGNS
            for target in POLICIES
        ],
        "environment": environment_report(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    if PAGE.is_file():
        PAGE.write_text(between("open bandit", table(result), PAGE.read_text()))


if __name__ == "__main__":
    main()
