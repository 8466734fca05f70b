"""The actor-critic's path from rollout to gradient, on a rollout that holds every trajectory as often as expected.

``gradient`` goes through ``learn``, the one function that an update is; what it differentiates is caught on its way.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, LayeredMDP, expected_rollout, quarters_mdp
from helpers_exact import PROBABILITIES, caught, random_values, tabular
from steepest.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from steepest.errors import UsageError
from steepest.learner.trees import tree_map
from steepest.types import Rollout

ADVANTAGES: dict[str, dict[str, Any]] = {
    "TD error": {"advantage": "n_step", "n_steps": 1},
    "two steps": {"advantage": "n_step", "n_steps": 2},
    "to the end": {"advantage": "n_step", "n_steps": 3},
    "GAE": {"advantage": "gae", "gae_lambda": 0.6},
    "GAE at lambda = 1": {"advantage": "gae", "gae_lambda": 1.0},
}
UNBIASED = {"to the end", "GAE at lambda = 1"}
"""What needs no exact critic: no value but the baseline is in it."""


def make(mdp: LayeredMDP, values: Tensor, **config: Any) -> ActorCritic:
    return tabular(ActorCritic, mdp, values, **{"rollout_steps": 3, "value_coef": 1.0, **config})


def gradient(agent: ActorCritic, rollout: Rollout) -> dict[str, Tensor]:
    """Return what ``cycle`` differentiates."""
    names = ("gamma", "gain_rate", "gae_lambda", "value_coef", "entropy_coef", "learning_rate", "max_gradient_norm")
    hyper = {k: torch.tensor(getattr(agent.config, k), dtype=F64) for k in names}
    state = {k: x[0] for k, x in agent.state.items()}
    return caught(agent, lambda spy: agent.cycle(spy, state, rollout, hyper))


def actor_gradient(mdp: LayeredMDP, values: Tensor, **config: Any) -> Tensor:
    """(S, A) the estimate, summed over steps and averaged over trajectories."""
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    found = gradient(make(mdp, values, gamma=mdp.gamma, **config), rollout)
    return -found["policy_head.weight"].T * int(rollout.valid.sum()) / trajectories


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_the_gradient_is_the_policy_gradient(name: str, gamma: float) -> None:
    """With exact values always; with any where nothing bootstraps; with others it is not, else."""
    mdp = quarters_mdp(0, gamma)
    exact = mdp.gradient(PROBABILITIES.log())
    options = {**ADVANTAGES[name], "state_weighting": "discounted"}
    found = actor_gradient(mdp, mdp.values(PROBABILITIES), **options)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    found = actor_gradient(mdp, random_values(mdp), **options)
    if name in UNBIASED:
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    else:
        assert float((found - exact).norm() / exact.norm()) > 0.005


@pytest.mark.parametrize("name", ADVANTAGES)
def test_states_without_their_discount_climb_a_sum_of_their_own(name: str) -> None:
    mdp = quarters_mdp(0, 0.8)
    found = actor_gradient(mdp, mdp.values(PROBABILITIES), **ADVANTAGES[name])
    visits = mdp.__class__(mdp.transition, mdp.reward, mdp.start, 1.0, mdp.horizon).discounted_visits(PROBABILITIES)
    advantage = mdp.q_values(PROBABILITIES) - mdp.values(PROBABILITIES).unsqueeze(-1)
    expected = visits.unsqueeze(-1) * PROBABILITIES * advantage
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    exact = mdp.gradient(PROBABILITIES.log())
    assert float((found - exact).norm() / exact.norm()) > 0.02


def critic_gradient(mdp: LayeredMDP, values: Tensor, **config: Any) -> Tensor:
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    found = gradient(make(mdp, values, gamma=mdp.gamma, **config), rollout)["value_head.weight"][0]
    return found * int(rollout.valid.sum()) / trajectories


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("critic", ["monte_carlo", "bootstrapped"])
def test_exact_values_are_a_fixed_point_of_either_critic(critic: str, name: str) -> None:
    mdp = quarters_mdp(0, 0.8)
    options = {"critic": critic, **ADVANTAGES[name]}
    found = critic_gradient(mdp, mdp.values(PROBABILITIES), **options)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    assert float(critic_gradient(mdp, random_values(mdp), **options).norm()) > 1e-2


def test_what_either_critic_is_pulled_to() -> None:
    """Monte-Carlo: the policy's own values, whatever the advantage. Bootstrapped from the TD error: one backup."""
    mdp = quarters_mdp(0, 0.8)
    v = random_values(mdp)
    visits = mdp.__class__(mdp.transition, mdp.reward, mdp.start, 1.0, mdp.horizon).discounted_visits(PROBABILITIES)
    for name in ADVANTAGES:
        found = critic_gradient(mdp, v, critic="monte_carlo", **ADVANTAGES[name])
        torch.testing.assert_close(found, visits * (v - mdp.values(PROBABILITIES)), rtol=1e-10, atol=1e-10)
    reward = (PROBABILITIES * (mdp.with_end() * mdp.reward).sum(-1)).sum(-1)
    backup = reward + 0.8 * torch.einsum("sa,sat,t->s", PROBABILITIES, mdp.transition, v)
    found = critic_gradient(mdp, v, **ADVANTAGES["TD error"])
    torch.testing.assert_close(found, visits * (v - backup), rtol=1e-10, atol=1e-10)


def test_standardised_advantages_rescale_and_shift() -> None:
    """The shift is a constant baseline, so the policy gradient is only divided."""
    mdp = quarters_mdp(1, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    values = mdp.values(PROBABILITIES)
    plain, scaled = (
        gradient(make(mdp, values, gamma=1.0, normalize_advantage=on), rollout)["policy_head.weight"]
        for on in (False, True)
    )
    returns = rollout.reward.flip(0).cumsum(0).flip(0)
    advantage = (returns - rollout.obs["obs"][:-1] @ values)[rollout.valid]
    torch.testing.assert_close(scaled * advantage.std(correction=0), plain, rtol=1e-6, atol=1e-9)


def test_the_entropy_bonus_pushes_towards_entropy() -> None:
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    values = mdp.values(PROBABILITIES)
    with_bonus, without = (
        gradient(make(mdp, values, entropy_coef=c), rollout)["policy_head.weight"].T for c in (0.3, 0.0)
    )
    leaf = PROBABILITIES.log().requires_grad_()
    visits = (rollout.obs["obs"][:-1] * rollout.valid.unsqueeze(-1)).sum((0, 1)) / rollout.valid.sum()
    entropy = -(leaf.softmax(-1) * leaf.log_softmax(-1)).sum(-1)
    (slope,) = torch.autograd.grad((visits * entropy).sum(), leaf)
    torch.testing.assert_close(with_bonus - without, -0.3 * slope, rtol=1e-9, atol=1e-12)


def test_update_is_one_adam_step_on_that_gradient() -> None:
    """From zero moments Adam moves every parameter by learning_rate g / (|g| + epsilon), g being clipped."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    options = {"learning_rate": 0.01, "gamma": 1.0, "max_gradient_norm": 0.01, "value_coef": 0.5, "gae_lambda": 0.5}
    agent = make(mdp, random_values(mdp), **options)
    slope = agent.layout.flatten(gradient(agent, rollout))
    before = agent.state["params"][0].clone()
    figures = agent.update(tree_map(lambda x: x.unsqueeze(0), rollout), progress=0.0)
    clipped = slope * min(1.0, 0.01 / float(slope.norm()))
    expected = before - 0.01 * clipped / (clipped.abs() + 1e-5)
    # The hyper-parameters are float32 tensors: 0.01 itself is off by 2e-8.
    torch.testing.assert_close(agent.state["params"][0], expected, rtol=1e-6, atol=1e-8)
    assert float(figures["gradient_norm"][0]) == pytest.approx(float(slope.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 5}, 'n_steps is 5; expected None where advantage is "gae"'),
        ({"advantage": "n_step"}, "n_steps is None; expected at least 1"),
        ({"advantage": "n_step", "n_steps": 0}, "n_steps is 0; expected at least 1"),
        ({"advantage": "n_step", "n_steps": 2, "gae_lambda": 0.9}, "gae_lambda is 0.9; expected left alone"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ActorCriticConfig(**options)
