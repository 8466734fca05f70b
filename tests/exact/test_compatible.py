"""The compatible critic of a deterministic policy, on linear-quadratic control; in float64."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.exact import lqr, lqr_gradients
from steepest.losses import compatible_action_gradient, compatible_feature, deterministic_policy_direction
from steepest.verification.random_problems import Control, control
from steepest.verification.shipped.compatible import ROWS, directions_of, visits_of
from steepest.verification.table import check

SEEDS = range(3)


def row(claim: str) -> None:
    (statement,) = [s for s in ROWS if s.claim == claim]
    result = check(statement, len(SEEDS))
    assert result.passed, result


def test_action_gradient_of_the_critic() -> None:
    row("compatible features: slope J w, 0 at mu(s)")


def test_compatible_critic_gives_the_exact_gradient() -> None:
    """With the weights of least error of grad_a Q, though two directions of six cannot fit it; others do not."""
    row("COPDAC's actor with the fitted compatible critic")
    row("a fitted critic of other features")
    row("E[grad mu grad_a Q], Q exact")


def action_gradient_error(c: Control, w: torch.Tensor) -> torch.Tensor:
    """E_{p^mu} |grad_a Q^w - grad_a Q|^2."""
    v = visits_of(c)
    target = v.state @ lqr_gradients.action_gradient(c.problem, c.feedback).mT
    return v.weight @ (compatible_action_gradient(v.jacobian, w) - target).square().sum(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_fitted_weights_minimise_the_error(seed: int) -> None:
    """The shipped slope at the exact weights: the error has no gradient in w there, and is not zero."""
    c = control(seed)
    w = lqr_gradients.compatible_weights(c.problem, c.feedback, directions_of(c)).requires_grad_()
    error = action_gradient_error(c, w)
    slope = torch.autograd.grad(error, w)[0]
    assert float(slope.abs().max()) < 1e-9 * error.item()
    assert error.item() > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_on_exact_advantages_finds_them(seed: int) -> None:
    """Least squares of A(s, a) on phi(s, a), actions spread evenly around mu(s), fits grad_a Q: the critic that the
    actor needs. Every direction is there, so that the fit is exact but for the part of A that is quadratic in a."""
    c = control(seed)
    v = visits_of(c)
    eye = torch.eye(c.feedback.numel(), dtype=F64).view(-1, *c.feedback.shape)
    jacobian = torch.einsum("kmn,jn->jmk", eye, v.state)
    q = lqr.q_function(c.problem, c.feedback)
    features, targets = [], []
    for shift in (*torch.eye(c.problem.m, dtype=F64), *-torch.eye(c.problem.m, dtype=F64)):
        action = v.mean + shift
        features.append(compatible_feature(action, v.mean, jacobian))
        targets.append(q(v.state, action) - q(v.state, v.mean))
    w = torch.linalg.lstsq(torch.cat(features), torch.cat(targets)).solution
    direction = deterministic_policy_direction(jacobian, compatible_action_gradient(jacobian, w))
    exact = lqr_gradients.deterministic_policy_gradient(c.problem, c.feedback)
    torch.testing.assert_close((v.weight @ direction).view_as(exact), exact, rtol=1e-9, atol=1e-12)
