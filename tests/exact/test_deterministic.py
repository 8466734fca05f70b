"""Deterministic policy gradients of learned critics, against linear-quadratic control."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.losses import q_learning_target, smoothed_action
from steepest.verification.random_problems import control
from steepest.verification.shipped import off_policy
from steepest.verification.statement import relative_error

SEEDS = pytest.mark.parametrize("seed", range(5))


@SEEDS
def test_policy_gradient_of_an_lqr(seed: int) -> None:
    """The loss at the true Q, differentiated, is the exact gradient of the objective."""
    assert relative_error(off_policy.deterministic_gradient(control(seed))) < 1e-10


@SEEDS
def test_the_critic_of_an_lqr_is_a_fixed_point(seed: int) -> None:
    """With the policy's next action, not with another policy's."""
    assert relative_error(off_policy.q_learning_fixed_point(control(seed))) < 1e-10
    assert relative_error(off_policy.q_learning_with_the_behaviours_action(control(seed))) > 1e-2


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
