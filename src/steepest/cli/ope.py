"""The verb ``ope``: what saved agents are worth, from data of other policies."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steepest.cli.options import Usage, fields_of, parse, print_line, say
from steepest.errors import UsageError
from steepest.fields import Checked, Count, InnerShare, NonNegative, Positive, Share, Whole

if TYPE_CHECKING:
    from steepest.api.ope import Estimate, OffPolicyEvaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpeOptions(Checked):
    """Estimate the values of saved agents from a dataset, without playing."""

    deterministic: bool = False
    """Evaluate the mode of every policy instead of the policy itself."""
    true_episodes: Whole = 0
    """Play so many episodes of every policy for its true value, to compare; with bandit 100 by default."""
    bandit: Whole = 0
    """Instead of estimating, say which policy a user ends with after 1 to so many online episodes, chosen by an
    upper-confidence bandit. The mode of every policy plays; of the options below, candidates and seed count then."""
    candidates: Count | None = None
    """Policies that the bandit chooses from, drawn anew in every repeat; by default all."""
    gamma: Share = 0.99
    """Discount factor."""
    updates: Count = 20_000
    """Gradient steps of fitted Q evaluation."""
    hidden_sizes: tuple[Count, ...] = (256, 256)
    """Widths of the hidden layers of its network."""
    learning_rate: Positive = 3e-4
    """Its step size at the start; it falls to 0."""
    batch_size: Count = 256
    """Transitions per gradient step."""
    conservative_weight: NonNegative = 1.0
    """Weight of the penalty of the conservative estimate; 0 leaves that estimate out."""
    bound: Literal["expectation", "pointwise"] = "expectation"
    """Let it bound the value, or Q at every state and action."""
    share: InnerShare = 0.95
    """Share of the bootstrap intervals."""
    seed: Whole = 0
    """Seed of everything random."""
    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """Show no progress."""


FOR_BOTH = ("seed", "json", "quiet")
"""Options that count with ``bandit`` and without."""


def ope(argv: list[str]) -> int:
    """Run ``steepest ope RUN... DATA ...``."""
    what = "RUN: folders of runs, or saved agents. DATA: what `steepest collect` wrote, or any other dataset."
    usage = Usage("steepest ope", "RUN... DATA", what, least=2, most=None)
    options, (*runs, data) = parse(OpeOptions, argv, usage)
    note = None if options.quiet or options.json else say
    if options.bandit:
        refuse_estimation(options)
        _check_places(runs, data)
        return bandit(runs, data, options, note)
    if options.candidates is not None:
        raise UsageError(f"candidates is {options.candidates}, but only --bandit N chooses among them")
    _check_places(runs, data)
    left_out = ("json", "quiet", "bandit", "candidates")
    settings = {k: v for k, v in fields_of(options).items() if k not in left_out}
    from steepest.api.ope import ope as evaluate
    from steepest.runs.store.folder import finite_json

    found = evaluate(runs, data, note=note, **settings)
    if options.json:
        print(json.dumps(finite_json(found.as_dict())))
        return 0
    for line in table(found, options.share):
        print_line(line)
    return 0


def refuse_estimation(options: Any) -> None:
    """Raise UsageError where an option was set that the bandit, which estimates nothing, would ignore."""
    counted = {f.name for f in dataclasses.fields(OpeOptions)} - {*FOR_BOTH, "bandit", "candidates", "true_episodes"}
    default = OpeOptions()
    for name in sorted(counted):
        if getattr(options, name) != getattr(default, name):
            option = name.replace("_", "-")
            raise UsageError(
                f"--bandit plays the mode of every policy and estimates nothing, so --{option} would not count; "
                f"leave out --bandit or --{option}"
            )


def _check_places(runs: list[str], data: str) -> None:
    """Raise UsageError where no agent or no data is at a place."""
    from steepest.experience.datasets.places import check_there
    from steepest.runs.store.folder import check_saved

    for run in runs:
        check_saved(Path(run))
    check_there(data)


def bandit(runs: list[str], data: str, options: Any, note: Callable[[str], None] | None) -> int:
    """Run ``steepest ope --bandit N``."""
    from steepest.api.selection import select_online
    from steepest.runs.store.folder import finite_json

    found = select_online(
        runs,
        data,
        tries=options.bandit,
        episodes=options.true_episodes or 100,
        candidates=options.candidates,
        deterministic=True,
        seed=options.seed,
        note=note,
    )
    if options.json:
        print(json.dumps(finite_json(found.as_dict())))
        return 0
    print_line(f"{found.dataset}: mean {found.unit} of {found.episodes} episodes each")
    for name, mean in found.policies.items():
        print_line(f"  {name:42}{mean:10.4g}")
    print()
    print_line(
        f"the policy kept, of {found.candidates} to choose from: its mean {found.unit}, and 5 to 95% of 1,000 repeats"
    )
    tries = [n for power in range(10) for n in (10**power, 2 * 10**power, 5 * 10**power) if n < options.bandit]
    for n in [*tries, options.bandit]:
        low, high = found.low[n - 1], found.high[n - 1]
        print_line(
            f"  after {n:6,} online episode{' ' if n == 1 else 's'}{found.kept[n - 1]:32.4g}   [{low:.4g}, {high:.4g}]"
        )
    return 0


def table(found: OffPolicyEvaluation, share: float) -> list[str]:
    """Return the lines that a person reads: a block per policy, and how well each estimator ranks them."""
    from steepest.api.ope import NAMES

    lines = [
        f"{found.dataset}: {found.episodes:,} episodes; discounted returns, gamma {found.gamma:g}, "
        f"{100 * share:g}% intervals",
        f"{'the data itself':44}{_shown(found.behaviour)}",
    ]
    for policy in found.policies:
        lines += ["", policy.policy]
        if policy.true is not None:
            lines.append(f"  {'true, by playing':42}{_shown(policy.true)}")
        lines += [f"  {NAMES[name]:42}{_shown(value)}" for name, value in policy.estimates.items()]
        if policy.effective_episodes is not None:
            lines.append(f"  the weights leave {policy.effective_episodes:.1f} of {found.episodes:,} episodes")
        else:
            lines.append(f"  no importance sampling: {policy.refused}")
    ranked = found.selection()
    if ranked:
        lines += ["", f"{'':44}{'rank correlation':>18}{'regret@1':>12}"]
        for name, row in ranked.items():
            lines.append(f"  {NAMES[name]:42}{row['rank_correlation']:18.2f}{row['regret_at_1']:12.4g}")
    return lines


def _shown(value: Estimate) -> str:
    if math.isnan(value.value):
        return f"{'-':>10}   no episode has a weight"
    return f"{value.value:10.4g}   [{value.low:.4g}, {value.high:.4g}]"
