"""PPO's whole path from rollout to gradient, on a rollout that holds every trajectory exactly as often as expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, LayeredMDP, expected_rollout, quarters_mdp
from helpers_exact import PROBABILITIES, random_values, tabular
from steepest.agents.rollout_updates import all_sequences
from steepest.algorithms.ppo import PPO
from steepest.types import Rollout

ENTROPY_COEF = 0.3


def make(mdp: LayeredMDP, values: Tensor, **config: Any) -> PPO:
    return tabular(PPO, mdp, values, minibatches=1, **config)


def gradient(agent: PPO, rollout: Rollout, **hyper: float) -> dict[str, Tensor]:
    """The gradient of the loss over the whole rollout, by parameter; the agent is old and new policy at once."""
    values = {"gamma": 1.0, "gae_lambda": 1.0, "clip_epsilon": 0.2, "value_coef": 1.0, "entropy_coef": 0.0, **hyper}
    tensors = {k: torch.tensor(x, dtype=F64) for k, x in values.items()}
    state = {k: x[0] for k, x in agent.state.items()}
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, tensors)
    leaf = state["params"].clone().requires_grad_()
    loss, _ = agent.loss(leaf, state, all_sequences(batch), tensors)
    return agent.layout.unflatten(torch.autograd.grad(loss, leaf)[0])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("exact_values", [False, True])
def test_the_first_gradient_is_the_policy_gradient(seed: int, exact_values: bool) -> None:
    """With gamma = 1 and lambda = 1 for any values, and with exact values for any lambda. The mean is over steps."""
    mdp = quarters_mdp(seed, 1.0)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    steps = int(rollout.valid.sum())
    assert steps < rollout.valid.numel()
    exact = mdp.gradient(PROBABILITIES.log())
    values = mdp.values(PROBABILITIES) if exact_values else random_values(mdp)
    for lam in (0.0, 0.6, 1.0) if exact_values else (1.0,):
        found = gradient(make(mdp, values), rollout, gae_lambda=lam)
        torch.testing.assert_close(-found["policy_head.weight"].T * steps / trajectories, exact, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            -found["policy_head.bias"] * steps / trajectories, exact.sum(0), rtol=1e-10, atol=1e-10
        )


def test_inexact_values_below_lambda_one_bias_the_gradient() -> None:
    mdp = quarters_mdp(0, 1.0)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    exact = mdp.gradient(PROBABILITIES.log())
    found = gradient(make(mdp, random_values(mdp)), rollout, gae_lambda=0.6)["policy_head.weight"].T
    error = -found * int(rollout.valid.sum()) / trajectories - exact
    assert float(error.norm() / exact.norm()) > 0.05


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_exact_values_are_a_fixed_point_of_the_critic(lam: float) -> None:
    """With a discount: the value gradient is zero at V^pi, and is not at other values or with another discount."""
    mdp = quarters_mdp(0, 0.9)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    agent = make(mdp, mdp.values(PROBABILITIES))
    found = gradient(agent, rollout, gamma=0.9, gae_lambda=lam)["value_head.weight"]
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    assert float(gradient(agent, rollout, gamma=0.8, gae_lambda=lam)["value_head.weight"].norm()) > 1e-3
    assert float(gradient(make(mdp, random_values(mdp)), rollout, gamma=0.9)["value_head.weight"].norm()) > 1e-3


def test_value_and_entropy_terms_have_their_weights_and_signs() -> None:
    """loss = surrogate + c_v value loss - c_e entropy, each a mean over the decided steps."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    agent = make(mdp, random_values(mdp))
    base = gradient(agent, rollout, value_coef=0.0)
    both = gradient(agent, rollout, value_coef=0.7, entropy_coef=ENTROPY_COEF)
    assert float(base["value_head.weight"].abs().max()) == 0.0
    leaf = PROBABILITIES.log().requires_grad_()
    visits = (rollout.obs["obs"][:-1] * rollout.valid.unsqueeze(-1)).sum((0, 1)) / rollout.valid.sum()
    entropy = -(leaf.softmax(-1) * leaf.log_softmax(-1)).sum(-1)
    (slope,) = torch.autograd.grad((visits * entropy).sum(), leaf)
    difference = both["policy_head.weight"].T - base["policy_head.weight"].T
    torch.testing.assert_close(difference, -ENTROPY_COEF * slope, rtol=1e-9, atol=1e-12)
    # d/dV(s) of c_v 1/2 (V - G)^2, averaged: c_v visits(s) (V(s) - V^pi(s))
    error = random_values(mdp) - mdp.values(PROBABILITIES)
    torch.testing.assert_close(both["value_head.weight"][0], 0.7 * visits * error, rtol=1e-9, atol=1e-12)


def test_standardised_advantages_rescale_and_shift() -> None:
    """(A - mean) / deviation: the shift is a constant baseline, so the policy gradient is only divided."""
    mdp = quarters_mdp(1, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    values = mdp.values(PROBABILITIES)
    plain = gradient(make(mdp, values), rollout)["policy_head.weight"]
    scaled = gradient(make(mdp, values, normalize_advantage=True), rollout)["policy_head.weight"]
    returns = rollout.reward.flip(0).cumsum(0).flip(0)
    advantage = (returns - rollout.obs["obs"][:-1] @ values)[rollout.valid]
    torch.testing.assert_close(scaled * advantage.std(correction=0), plain, rtol=1e-6, atol=1e-9)


def test_old_quantities_are_those_of_the_policy_that_acted() -> None:
    mdp = quarters_mdp(0, 0.9)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    agent = make(mdp, random_values(mdp))
    state = {k: x[0] for k, x in agent.state.items()}
    hyper = {"gamma": torch.tensor(0.9, dtype=F64), "gae_lambda": torch.tensor(0.5, dtype=F64)}
    _, batch, _ = agent.prepare(state, rollout, hyper)
    seen = rollout.obs["obs"].argmax(-1)[:-1]
    expected = PROBABILITIES.log()[seen, rollout.action]
    torch.testing.assert_close(batch["log_prob"].view_as(expected), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(batch["value"].view_as(expected), random_values(mdp)[seen], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(batch["target"], batch["advantage"] + batch["value"], rtol=1e-10, atol=1e-10)
    assert torch.equal(batch["weight"].view_as(expected) > 0, rollout.valid)
