"""Conservative against plain estimates of a policy, by the size of the data, drawn into docs/images/conservative.png.

    python benchmarks/conservative.py

A data set has n transitions of every state and action of a random process. The policy is the best one of the process
that the data suggests: the plain estimate of its value is there rather too high. Both conservative estimates (notes
2.1.1) take the weight that 95 % of the data sets of that size need; the right picture shows that weight. Everything is
exact but the data: 400 sets of each size.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from steepest import problems
from steepest.exact import offline
from steepest.exact.finite_mdp import FiniteMDP, action_value
from steepest.exact.optimal import policy_iteration

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SETS = 400
SHARE = 0.95
"""Of the data sets of one size, how many the weight is enough for."""
IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "conservative.png"
FORMS = {
    "pointwise": offline.conservative_evaluation,
    "in expectation": offline.conservative_evaluation_in_expectation,
}


class DataSet(NamedTuple):
    """What one data set says of its own best policy."""

    true: float
    plain: float
    lowered: dict[str, float]
    """By how much a weight of 1 lowers the estimate."""
    needed: dict[str, float]
    """The smallest weight at which the bound holds: of every action value, or of the policy's value."""


def process() -> FiniteMDP:
    """Ten states, four actions, three successors each."""
    return FiniteMDP.from_problem(problems.garnet(states=10, actions=4, branching=3, gamma=0.9, seed=3))


def draw_counts(mdp: FiniteMDP, n: int, generator: torch.Generator) -> Tensor:
    """(S, A, S) how often each transition occurs in n of every state and action."""
    rows = mdp.transition.flatten(0, 1)
    drawn = torch.multinomial(rows, n, replacement=True, generator=generator)
    counts = torch.zeros_like(rows).scatter_add(1, drawn, torch.ones_like(drawn, dtype=rows.dtype))
    return counts.view_as(mdp.transition)


def examine(mdp: FiniteMDP, counts: Tensor) -> DataSet:
    """Exact values of the policy that is best in the model of these transitions."""
    model, behaviour = offline.empirical_model(mdp, counts)
    policy = policy_iteration(model).policy
    true, plain = action_value(mdp, policy), action_value(model, policy)

    def value(q: Tensor) -> float:
        return float(mdp.initial @ (policy * q).sum(-1))

    lowered, needed = {}, {}
    for name, form in FORMS.items():
        by = plain - form(model, policy, behaviour, policy, 1.0)  # linear in the weight
        lowered[name] = value(by)
        if name == "pointwise":
            needed[name] = max(0.0, float(((plain - true) / by).amax()))
        else:
            needed[name] = max(0.0, (value(plain) - value(true)) / value(by))
    return DataSet(value(true), value(plain), lowered, needed)


def main() -> None:
    """Draw the errors and the weights."""
    mdp = process()
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, list[Tensor]] = {name: [] for name in ("plain", *FORMS)}
    weights: dict[str, list[float]] = {name: [] for name in FORMS}
    for n in SIZES:
        found = [examine(mdp, draw_counts(mdp, n, generator)) for _ in range(SETS)]
        errors["plain"].append(torch.tensor([s.plain - s.true for s in found]))
        line = f"n {n:4}: plain {float(errors['plain'][-1].mean()):+.3f}"
        for name in FORMS:
            weight = float(torch.tensor([s.needed[name] for s in found]).quantile(SHARE))
            weights[name].append(weight)
            errors[name].append(torch.tensor([s.plain - weight * s.lowered[name] - s.true for s in found]))
            above = float((errors[name][-1] > 1e-9).double().mean())
            line += f"; {name} {float(errors[name][-1].mean()):+.3f} at {weight:.3f}, above in {above:.1%}"
        print(line)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    for (name, found), colour in zip(errors.items(), ("#d55e00", "#0072b2", "#009e73"), strict=True):
        quantiles = torch.stack([e.quantile(torch.tensor([0.05, 0.5, 0.95])) for e in found])
        left.plot(SIZES, quantiles[:, 1], color=colour, label=f"conservative, {name}" if name in FORMS else name)
        left.fill_between(SIZES, quantiles[:, 0], quantiles[:, 2], color=colour, alpha=0.2, linewidth=0)
        if name in FORMS:
            right.plot(SIZES, weights[name], color=colour, label=name)
    left.axhline(0.0, color="black", linewidth=0.8)
    left.set(xscale="log", title="estimate minus true value", ylabel="reward units, median and 5 to 95 %")
    right.set(xscale="log", yscale="log", title=f"weight that {SHARE:.0%} of the data sets need", ylabel="reward units")
    for axes in (left, right):
        axes.set_xlabel("transitions of every state and action")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
