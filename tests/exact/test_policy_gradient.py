"""The score-function loss, summed over every trajectory of a small process, against the exact policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from helpers import F64, LayeredMDP, Paths, layered_mdp
from steepest.losses import score_function_loss
from steepest.returns import reward_to_go

GAMMA = 0.8


class Problem(NamedTuple):
    mdp: LayeredMDP
    logits: Tensor
    paths: Paths
    exact: Tensor
    baseline: Tensor  # by state


@pytest.fixture(scope="module", params=[0, 1, 2])
def problem(request: pytest.FixtureRequest) -> Problem:
    mdp = layered_mdp(request.param, GAMMA)
    g = torch.Generator().manual_seed(request.param)
    logits = torch.randn((mdp.states, mdp.actions), generator=g, dtype=F64)
    paths = mdp.paths(torch.softmax(logits, -1))
    assert float(paths.probability.sum()) == pytest.approx(1.0, abs=1e-12)
    baseline = 2.0 * torch.randn(mdp.states, generator=g, dtype=F64)
    return Problem(mdp, logits, paths, mdp.gradient(logits), baseline)


def to_go(p: Problem) -> Tensor:
    zero = torch.zeros((p.mdp.horizon + 1, p.paths.reward.shape[1]), dtype=F64)
    none = torch.zeros_like(p.paths.terminated)
    return reward_to_go(p.paths.reward, zero, p.paths.terminated, none, p.paths.valid, GAMMA)


def powers(p: Problem) -> Tensor:
    return (GAMMA ** torch.arange(p.mdp.horizon, dtype=F64)).unsqueeze(-1)


def expected_gradient(p: Problem, weight: Tensor, advantage: Tensor) -> Tensor:
    """Minus the gradient of the expected loss: sum over trajectories of their probability times the sum over steps."""
    leaf = p.logits.clone().requires_grad_()
    log_prob = torch.log_softmax(leaf, -1)[p.paths.state[:-1], p.paths.action]
    per_step = score_function_loss(log_prob, advantage) * weight * p.paths.valid
    return -torch.autograd.grad((p.paths.probability * per_step.sum(0)).sum(), leaf)[0]


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


UNBIASED: dict[str, Callable[[Problem], tuple[Tensor, Tensor]]] = {
    "full return (1.2)": lambda p: (torch.ones(1, dtype=F64), full_return(p)),
    "reward-to-go (1.3)": lambda p: (powers(p), to_go(p)),
    "baseline b(s_t) (1.4)": lambda p: (powers(p), to_go(p) - p.baseline[p.paths.state[:-1]]),
    "exact value as baseline": lambda p: (powers(p), to_go(p) - values(p)[p.paths.state[:-1]]),
    "exact advantage (1.5)": lambda p: (powers(p), exact_q(p) - values(p)[p.paths.state[:-1]]),
}

BIASED: dict[str, Callable[[Problem], tuple[Tensor, Tensor]]] = {
    "states weighted without gamma^t (1.1)": lambda p: (torch.ones(1, dtype=F64), to_go(p)),
    "b(s_t') inside the sum (1.4 as printed)": lambda p: (powers(p), to_go(p) - baseline_to_go(p)),
    "reward-to-go from the next step on": lambda p: (powers(p), to_go(p) - p.paths.reward),
    "baseline that has seen the action": lambda p: (powers(p), to_go(p) - exact_q(p)),
    "returns of the other sign": lambda p: (powers(p), -to_go(p)),
}


def full_return(p: Problem) -> Tensor:
    return (powers(p) * p.paths.reward).sum(0).expand_as(p.paths.reward)


def values(p: Problem) -> Tensor:
    return p.mdp.values(torch.softmax(p.logits, -1))


def exact_q(p: Problem) -> Tensor:
    return p.mdp.q_values(torch.softmax(p.logits, -1))[p.paths.state[:-1], p.paths.action]


def baseline_to_go(p: Problem) -> Tensor:
    """sum_{t' >= t} gamma^(t'-t) b(s_t'), over the decided steps."""
    b = p.baseline[p.paths.state[:-1]] * p.paths.valid
    return torch.stack([sum(GAMMA ** (k - t) * b[k] for k in range(t, len(b))) for t in range(len(b))])


@pytest.mark.parametrize("name", UNBIASED)
def test_score_function_gradient_is_the_exact_gradient(problem: Problem, name: str) -> None:
    found = expected_gradient(problem, *UNBIASED[name](problem))
    assert relative_error(found, problem.exact) < 1e-10


@pytest.mark.parametrize("name", BIASED)
def test_wrong_forms_are_not_the_gradient(problem: Problem, name: str) -> None:
    found = expected_gradient(problem, *BIASED[name](problem))
    assert relative_error(found, problem.exact) > 0.02


def test_exact_gradient_against_differences(problem: Problem) -> None:
    """The ground truth itself: the linear solve's gradient by differences, and the trajectories' mean return."""
    mdp, logits = problem.mdp, problem.logits
    total = (problem.paths.probability * (powers(problem) * problem.paths.reward).sum(0)).sum()
    assert float(total) == pytest.approx(float(mdp.objective(torch.softmax(logits, -1))), rel=1e-10)
    leaf = logits.clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: mdp.objective(torch.softmax(x, -1)), leaf)


def test_no_gradient_through_the_advantage() -> None:
    log_prob, advantage = (torch.randn(5, dtype=F64, requires_grad=True) for _ in range(2))
    loss = score_function_loss(log_prob, advantage)
    assert torch.equal(loss, -log_prob * advantage)
    slope, none = torch.autograd.grad(loss.sum(), (log_prob, advantage), allow_unused=True)
    assert torch.equal(slope, -advantage)
    assert none is None
