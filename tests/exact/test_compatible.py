"""The compatible critic of a deterministic policy, on linear-quadratic control; in float64."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.exact import lqr, lqr_gradients
from steepest.losses import compatible_action_gradient, compatible_feature, deterministic_policy_direction
from steepest.verification.random_problems import Control, control
from steepest.verification.shipped.compatible import directions_of, visits_of

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
def test_action_gradient_of_the_critic(seed: int) -> None:
    """phi(s, a) . w has the slope J w in the action, and is 0 at a = mu(s)."""
    v, w = visits_of(control(seed)), torch.tensor([0.7, -1.3], dtype=F64)
    action = (v.mean + 1.0).requires_grad_()
    (slope,) = torch.autograd.grad((compatible_feature(action, v.mean, v.jacobian) @ w).sum(), action)
    torch.testing.assert_close(compatible_action_gradient(v.jacobian, w), slope, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, torch.einsum("nmk,k->nm", v.jacobian, w), rtol=1e-12, atol=1e-14)
    assert not bool(compatible_feature(v.mean, v.mean, v.jacobian).any())


@pytest.mark.parametrize("seed", SEEDS)
def test_compatible_critic_gives_the_exact_gradient(seed: int) -> None:
    """With the weights of least error of grad_a Q, though two directions of six cannot fit it; and with grad_a Q."""
    c = control(seed)
    v, exact = visits_of(c), lqr_gradients.deterministic_policy_gradient(c.problem, c.feedback)
    w = lqr_gradients.compatible_weights(c.problem, c.feedback, directions_of(c))
    fitted = compatible_action_gradient(v.jacobian, w)
    true = v.state @ lqr_gradients.action_gradient(c.problem, c.feedback).mT
    assert float((fitted - true).norm()) > 1e-3
    for slope in (fitted, true):
        found = v.weight @ deterministic_policy_direction(v.jacobian, slope)
        torch.testing.assert_close(found, torch.einsum("kmn,mn->k", directions_of(c), exact), rtol=1e-9, atol=1e-12)


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
