"""REINFORCE's whole path from rollout to gradient, on a rollout that holds every trajectory as often as expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, LayeredMDP, discrete, expected_rollout, quarters_mdp, to_float64, vector
from steepest.algorithms.reinforce import REINFORCE, REINFORCEConfig
from steepest.errors import UsageError
from steepest.learner import autograd_gradient
from steepest.types import Rollout

PROBABILITIES = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=F64).repeat(3, 1)  # by state


def make(mdp: LayeredMDP, values: Tensor, **config: Any) -> REINFORCE:
    """An agent without hidden layers: its logits are log PROBABILITIES[s], its values those given, both exactly."""
    settings = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False}
    agent = REINFORCE(REINFORCEConfig(**(settings | config)), vector(mdp.states), discrete(2))
    to_float64(agent)
    parameters = {
        "policy_head.weight": PROBABILITIES.log().T,
        "policy_head.bias": torch.zeros(2, dtype=F64),
        "value_head.weight": values.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    agent.state["params"] = agent.layout.flatten({k: x.unsqueeze(0) for k, x in parameters.items()})
    return agent


def gradient(agent: REINFORCE, rollout: Rollout, **hyper: float) -> dict[str, Tensor]:
    """What ``gradient_step`` differentiates: caught on its way to Adam."""
    values = {
        "gamma": 1.0,
        "trace_decay": 1.0,
        "value_coef": 1.0,
        "entropy_coef": 0.0,
        "learning_rate": 0.1,
        "max_gradient_norm": 1e9,
        **hyper,
    }
    tensors = {k: torch.tensor(x, dtype=F64) for k, x in values.items()}
    state = {k: x[0] for k, x in agent.state.items()}
    caught: list[Tensor] = []

    def spy(loss: Any, vector: Tensor) -> Any:
        slope, rest = autograd_gradient(loss, vector)
        caught.append(slope)
        return slope, rest

    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, tensors)
    agent.gradient_step(spy, state, batch, tensors)
    assert len(caught) == 1
    return agent.layout.unflatten(caught[0])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("baseline", ["none", "random", "exact"])
def test_the_gradient_is_the_policy_gradient(seed: int, baseline: str) -> None:
    """Whatever the baseline, at gamma = 1; the mean is over decided steps."""
    mdp = quarters_mdp(seed, 1.0)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    random = torch.randn(mdp.states, generator=torch.Generator().manual_seed(5), dtype=F64)
    values = {"none": torch.zeros_like(random), "random": random, "exact": mdp.values(PROBABILITIES)}[baseline]
    found = gradient(make(mdp, values), rollout)["policy_head.weight"].T
    scale = int(rollout.valid.sum()) / trajectories
    torch.testing.assert_close(-found * scale, mdp.gradient(PROBABILITIES.log()), rtol=1e-10, atol=1e-10)


def test_a_discounted_objective_is_not_what_it_climbs() -> None:
    """Errata 1.1: without gamma^t on the states, the direction is not that of the discounted objective.

    It is the sum over the layers' own objectives: the gradient with every state's visits undiscounted.
    """
    mdp = quarters_mdp(0, 0.8)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    found = gradient(make(mdp, torch.zeros(mdp.states, dtype=F64)), rollout, gamma=0.8)["policy_head.weight"].T
    found = -found * int(rollout.valid.sum()) / trajectories
    exact = mdp.gradient(PROBABILITIES.log())
    assert float((found - exact).norm() / exact.norm()) > 0.02
    weight = mdp.__class__(mdp.transition, mdp.reward, mdp.start, 1.0, mdp.horizon).discounted_visits(PROBABILITIES)
    advantage = mdp.q_values(PROBABILITIES) - mdp.values(PROBABILITIES).unsqueeze(-1)
    torch.testing.assert_close(found, weight.unsqueeze(-1) * PROBABILITIES * advantage, rtol=1e-10, atol=1e-10)


FORMS: dict[str, dict[str, Any]] = {
    "full return (1.2)": {"estimator": "full_return", "baseline": "none"},
    "full return less the average": {"estimator": "full_return", "baseline": "average_return"},
    "full return less v": {"estimator": "full_return", "baseline": "value"},
    "reward-to-go (1.3)": {"estimator": "reward_to_go", "baseline": "none"},
    "reward-to-go less the average": {"estimator": "reward_to_go", "baseline": "average_return"},
    "reward-to-go less v (1.4)": {"estimator": "reward_to_go", "baseline": "value"},
}


def policy_gradient(rollout: Rollout, trajectories: int, values: Tensor, gamma: float, **config: Any) -> Tensor:
    """(S, A) the estimate, summed over steps and averaged over trajectories."""
    found = gradient(make(quarters_mdp(0, gamma), values, **config), rollout, gamma=gamma)
    return -found["policy_head.weight"].T * int(rollout.valid.sum()) / trajectories


def undiscounted_visits_gradient(mdp: LayeredMDP) -> Tensor:
    """What an estimator without gamma^t on the states climbs: plain visits with the discounted advantage."""
    visits = mdp.__class__(mdp.transition, mdp.reward, mdp.start, 1.0, mdp.horizon).discounted_visits(PROBABILITIES)
    advantage = mdp.q_values(PROBABILITIES) - mdp.values(PROBABILITIES).unsqueeze(-1)
    return visits.unsqueeze(-1) * PROBABILITIES * advantage


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("form", FORMS)
def test_discounted_weighting_climbs_the_discounted_objective(form: str, gamma: float) -> None:
    """Every form has the exact gradient for its mean; without gamma^t, the sum that errata 1.1 names."""
    mdp = quarters_mdp(0, gamma)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    values = torch.randn(mdp.states, generator=torch.Generator().manual_seed(5), dtype=F64)
    exact, plain = mdp.gradient(PROBABILITIES.log()), undiscounted_visits_gradient(mdp)
    common = (rollout, trajectories, values, gamma)
    found = policy_gradient(*common, **FORMS[form], state_weighting="discounted")
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    found = policy_gradient(*common, **FORMS[form])
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert (float((plain - exact).norm() / exact.norm()) > 0.02) == (gamma < 1.0)


def test_the_forms_differ_in_variance() -> None:
    """Each step of the notes' development takes some away: the spread of -psi over what is equally likely."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    spread = []
    for form in ("full return (1.2)", "reward-to-go (1.3)", "reward-to-go less v (1.4)"):
        agent = make(mdp, mdp.values(PROBABILITIES), **FORMS[form])
        state = {k: x[0] for k, x in agent.state.items()}
        _, batch, _ = agent.prepare(state, rollout, {"gamma": torch.tensor(1.0, dtype=F64)})
        spread.append(float((batch["weight"] * batch["advantage"].square()).sum()))
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_recording_is_continued_by_exact_values(form: str) -> None:
    """Recordings that stop after two steps, and others that begin there, have together the gradient of whole ones."""
    gamma = 0.8
    mdp = quarters_mdp(0, gamma)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    total = torch.zeros((mdp.states, mdp.actions), dtype=F64)
    for rows in (slice(0, 2), slice(2, 3)):
        after = slice(rows.start, rows.stop + 1)
        part = Rollout(
            obs={"obs": rollout.obs["obs"][after]},
            action=rollout.action[rows],
            reward=rollout.reward[rows],
            terminated=rollout.terminated[rows],
            truncated=rollout.truncated[rows],
            valid=rollout.valid[rows],
            episode_step=rollout.episode_step[after],
            action_mask=None,
            memory=None,
        )
        settings = {**FORMS[form], "state_weighting": "discounted"}
        total += policy_gradient(part, trajectories, mdp.values(PROBABILITIES), gamma, **settings)
    torch.testing.assert_close(total, mdp.gradient(PROBABILITIES.log()), rtol=1e-10, atol=1e-10)


def test_a_full_return_needs_a_discount_to_divide_by() -> None:
    with pytest.raises(UsageError, match=r"gamma is 0\.0; expected above 0 where estimator"):
        REINFORCEConfig(estimator="full_return", gamma=0.0)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_baseline_comes_to_rest_at_the_value(gamma: float) -> None:
    mdp = quarters_mdp(0, gamma)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    found = gradient(make(mdp, mdp.values(PROBABILITIES)), rollout, gamma=gamma)["value_head.weight"]
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    off = gradient(make(mdp, torch.zeros(mdp.states, dtype=F64)), rollout, gamma=gamma)["value_head.weight"]
    assert float(off.norm()) > 1e-2


def test_the_entropy_bonus_pushes_towards_entropy() -> None:
    """- c_e H in the loss: its part of the gradient is -c_e times that of the mean entropy over decided steps."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    agent = make(mdp, mdp.values(PROBABILITIES))
    with_bonus, without = (gradient(agent, rollout, entropy_coef=c)["policy_head.weight"].T for c in (0.3, 0.0))
    leaf = PROBABILITIES.log().requires_grad_()
    visits = (rollout.obs["obs"][:-1] * rollout.valid.unsqueeze(-1)).sum((0, 1)) / rollout.valid.sum()
    entropy = -(leaf.softmax(-1) * leaf.log_softmax(-1)).sum(-1)
    (slope,) = torch.autograd.grad((visits * entropy).sum(), leaf)
    torch.testing.assert_close(with_bonus - without, -0.3 * slope, rtol=1e-9, atol=1e-12)


def test_update_is_one_adam_step_on_that_gradient() -> None:
    """From zero moments Adam moves every parameter by learning_rate g / (|g| + epsilon), g being clipped."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    values = torch.randn(mdp.states, generator=torch.Generator().manual_seed(5), dtype=F64)  # so that lambda matters
    agent = make(mdp, values, learning_rate=0.01, gamma=1.0, max_gradient_norm=0.01)
    slope = agent.layout.flatten(gradient(agent, rollout, value_coef=0.5))
    before = agent.state["params"][0].clone()
    figures = agent.update(Rollout(*[_member(x) for x in rollout]), progress=0.0)
    clipped = slope * min(1.0, 0.01 / float(slope.norm()))
    expected = before - 0.01 * clipped / (clipped.abs() + 1e-5)
    # The hyper-parameters are float32 tensors: 0.01 itself is off by 2e-8.
    torch.testing.assert_close(agent.state["params"][0], expected, rtol=1e-6, atol=1e-8)
    assert float(figures["gradient_norm"][0]) == pytest.approx(float(slope.norm()), rel=1e-6)


def _member(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: v.unsqueeze(0) for k, v in x.items()}
    return None if x is None else x.unsqueeze(0)
