"""Baird's counterexample: expected updates of TD(0), TDC and GTD2, drawn into docs/images/baird.png.

    python benchmarks/baird.py

Off-policy, semi-gradient TD(0) drives the weights to infinity, though its step sizes are small and every value is 0.
The gradient methods bring the projected Bellman error down. Nothing is sampled: each step is the mean over every
transition of the behaviour, through the library's own functions. What is left of the error then is a value that is the
same in every state, which only falls at the pace of (1 - gamma)^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from steepest.exact import linear_td
from steepest.exact.finite_mdp import FiniteMDP
from steepest.exact.gains import stationary_distribution
from steepest.losses import auxiliary_direction, gtd2_direction, tdc_direction
from steepest.problems import baird
from steepest.returns import td_error

METHODS = {"TD(0)": "-", "TDC": "-", "GTD2": "--"}
"""And how they are drawn: TDC and GTD2 take nearly the same way."""

STEP_SIZE, AUXILIARY_STEP_SIZE = 0.01, 0.1
STEPS = 6_000
INITIAL = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0)  # Sutton & Barto 2018, Section 11.2
IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "baird.png"


def expected_updates(method: str, steps: int = STEPS) -> Iterator[tuple[float, float]]:
    """(root of the projected Bellman error, largest weight) before every step, and after the last one."""
    problem = baird()
    mdp = FiniteMDP.from_problem(problem)
    behaviour, features = torch.tensor(problem.behaviour), torch.tensor(problem.features)
    policy = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(mdp.num_states, 1)
    visits = stationary_distribution(mdp, behaviour)
    system = linear_td.td_system(mdp, policy, features, visits)
    probability = (visits.unsqueeze(-1) * behaviour).unsqueeze(-1) * mdp.transition
    state, action, next_state = probability.nonzero().unbind(1)
    weight = probability[state, action, next_state]
    phi, next_phi = features[state], features[next_state]
    trace = (policy / behaviour)[state, action].unsqueeze(-1) * phi
    reward, no = mdp.reward[state, action], torch.zeros_like(state, dtype=torch.bool)
    theta, w = torch.tensor(INITIAL, dtype=torch.float64), torch.zeros(len(INITIAL), dtype=torch.float64)
    for _ in range(steps):
        yield _figures(system, theta)
        delta = td_error(reward, phi @ theta, next_phi @ theta, no, mdp.gamma)
        if method == "GTD2":
            direction = gtd2_direction(trace, phi, next_phi, w, no, mdp.gamma)
        else:  # without auxiliary weights TDC is TD(0)
            direction = tdc_direction(delta, trace, next_phi, w, no, no, mdp.gamma, 0.0)
        if method != "TD(0)":
            w = w + AUXILIARY_STEP_SIZE * weight @ auxiliary_direction(delta, trace, phi, w)
        theta = theta + STEP_SIZE * weight @ direction
    yield _figures(system, theta)


def _figures(system: linear_td.TDSystem, theta: Tensor) -> tuple[float, float]:
    error = linear_td.projected_bellman_error(system, theta)
    return float(error.clamp(min=0.0).sqrt()), float(theta.abs().max())


def main() -> None:
    """Draw both figures of the three methods."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    for method, style in METHODS.items():
        errors, weights = zip(*expected_updates(method), strict=True)
        left.plot(range(1, STEPS + 2), errors, style, label=method)
        right.plot(range(1, STEPS + 2), weights, style, label=method)
        print(f"{method:6} RMSPBE {errors[-1]:.3g}, largest weight {weights[-1]:.3g} after {STEPS} expected updates")
    for axes, title in ((left, "root of the projected Bellman error"), (right, "largest weight")):
        axes.set(title=title, xlabel="expected updates", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    left.set_ylim(1e-4, 1e4)
    right.set_ylim(1.0, 1e7)
    left.legend()
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
