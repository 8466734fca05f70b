"""Deterministic policy gradients of learned critics, against linear-quadratic control."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import F64
from steepest.exact import lqr, lqr_gradients
from steepest.losses import deterministic_policy_loss, q_learning_target, smoothed_action
from steepest.verification.random_problems import control

SEEDS = pytest.mark.parametrize("seed", range(5))


@SEEDS
def test_policy_gradient_of_an_lqr(seed: int) -> None:
    """The loss at the true Q, differentiated, is minus the exact gradient of the objective."""
    c = control(seed)
    # Columns x of a Cholesky factor have sum x x' = M, which is all that a quadratic Q sees of the states.
    states = torch.linalg.cholesky(lqr.second_moment(c.problem, c.feedback)).mT
    leaf = c.feedback.clone().requires_grad_()
    q = lqr.q_function(c.problem, c.feedback)(states, states @ leaf.mT)
    (slope,) = torch.autograd.grad(deterministic_policy_loss(q).sum(), leaf)
    exact = lqr_gradients.deterministic_policy_gradient(c.problem, c.feedback)
    torch.testing.assert_close(slope, -exact, rtol=1e-10, atol=1e-12)


@SEEDS
def test_the_critic_of_an_lqr_is_a_fixed_point(seed: int) -> None:
    """With the policy's next action, not with another policy's; without noise, so that one next state is all."""
    c = control(seed)
    problem = replace(c.problem, W=torch.zeros_like(c.problem.W))
    q = lqr.q_function(problem, c.feedback)
    g = torch.Generator().manual_seed(seed)
    state, action = (torch.randn((8, n), generator=g, dtype=F64) for n in (problem.n, problem.m))
    reward = -((state @ problem.Q * state).sum(-1) + (action @ problem.R * action).sum(-1))
    following, never = state @ problem.A.mT + action @ problem.B.mT, torch.zeros(8, dtype=torch.bool)
    target, wrong = (
        q_learning_target(reward, q(following, following @ k.mT), never, problem.discount)
        for k in (c.feedback, c.other)
    )
    torch.testing.assert_close(target, q(state, action), rtol=1e-10, atol=1e-12)
    assert float((wrong - target).norm() / target.norm()) > 1e-2


def test_the_target_stops_at_termination() -> None:
    one = torch.ones(2, dtype=F64, requires_grad=True)
    target = q_learning_target(one, 10.0 * one, torch.tensor([False, True]), 0.9)
    assert target.tolist() == [10.0, 1.0]
    assert not target.requires_grad


def test_smoothing_by_cases() -> None:
    """Inside the clip range; cut by it on either side; cut by the bounds of the action."""
    action = torch.tensor([0.1, 0.1, 0.1, 0.9, -0.9], dtype=F64)
    noise = torch.tensor([1.0, 9.0, -9.0, 2.0, -2.0], dtype=F64)
    expected = torch.tensor([0.3, 0.4, -0.2, 1.0, -1.0], dtype=F64)
    torch.testing.assert_close(smoothed_action(action, noise, 0.2, 0.3), expected, rtol=1e-12, atol=0.0)
