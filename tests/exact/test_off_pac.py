"""What the emphatic form of Off-PAC's actor gathers, against exact emphases, in float64."""

from __future__ import annotations

import pytest
import torch

from helpers import F64
from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients, linear_td
from steepest.losses import emphatic_weight, followon_trace
from steepest.verification.random_problems import continuing, episodic
from steepest.verification.shipped.off_policy_actor import steps_of


def test_emphatic_weight_spans_off_pac_and_the_gradient() -> None:
    """lambda_a = 0 is the interest, 1 the follow-on trace, and between them lies a mixture."""
    followon, interest = torch.tensor([3.0, 0.5], dtype=F64), torch.tensor([1.0, 0.25], dtype=F64)
    assert torch.equal(emphatic_weight(followon, interest, 0.0), interest)
    assert torch.equal(emphatic_weight(followon, interest, 1.0), followon)
    assert emphatic_weight(followon, interest, 0.25).tolist() == [1.5, 0.3125]


@pytest.mark.parametrize("seed", range(3))
def test_followon_trace_gathers_the_emphasis(seed: int) -> None:
    """Its sum over the visits to a state has the mean m, interest gamma^t; with interest 1 it has not."""
    c = episodic(seed)
    m = torch.where(c.mdp.absorbing, 0.0, gradients.emphasis(c.mdp, c.other, c.policy, "discounted"))
    for interest_base, right in ((c.mdp.gamma, True), (1.0, False)):
        trace = previous = torch.ones_like(c.other_paths.probability)
        total = torch.zeros_like(m)
        for step in steps_of(c):
            interest = torch.full_like(trace, interest_base**step.t)
            trace = followon_trace(trace, previous, interest, step.start, c.mdp.gamma)
            total = total.index_add(0, step.state, step.weight * trace)
            previous = step.ratio
        off = float((total - m).norm() / m.norm())
        assert off < 1e-12 if right else off > 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_lambda_action_advantage_spans_td_and_monte_carlo(seed: int) -> None:
    """lambda = 0 is the one-step error for any V, lambda = 1 is Q^pi - v, and with V exact it is A for every lambda."""
    c = continuing(seed)
    v, value = c.baseline, mdps.state_value(c.mdp, c.policy)
    one_step = c.mdp.reward + c.mdp.gamma * c.mdp.transition @ v - v.unsqueeze(-1)
    torch.testing.assert_close(linear_td.lambda_action_advantage(c.mdp, c.policy, v, 0.0), one_step)
    monte_carlo = mdps.action_value(c.mdp, c.policy) - v.unsqueeze(-1)
    torch.testing.assert_close(linear_td.lambda_action_advantage(c.mdp, c.policy, v, 1.0), monte_carlo)
    advantage = mdps.advantage(c.mdp, c.policy)
    torch.testing.assert_close(linear_td.lambda_action_advantage(c.mdp, c.policy, value, 0.5), advantage)
