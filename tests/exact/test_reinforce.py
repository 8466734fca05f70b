"""REINFORCE's whole path from rollout to gradient, on a rollout that holds every trajectory as often as expected."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import (
    F64,
    LayeredMDP,
    discrete,
    expected_rollout,
    quarters_mdp,
    synthetic_rollout,
    to_float64,
    vector,
)
from helpers_exact import PROBABILITIES, caught, random_values, tabular
from steepest.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from steepest.algorithms.reinforce import REINFORCE, REINFORCEConfig
from steepest.types import Rollout


def make(mdp: LayeredMDP, values: Tensor, **config: Any) -> REINFORCE:
    return tabular(REINFORCE, mdp, values, **config)


def gradient(agent: REINFORCE, rollout: Rollout, **hyper: float) -> dict[str, Tensor]:
    """What ``gradient_step`` differentiates."""
    values = {"gamma": 1.0, "value_coef": 1.0, "entropy_coef": 0.0, "learning_rate": 0.1, "max_gradient_norm": 1e9}
    tensors = {k: torch.tensor(x, dtype=F64) for k, x in {**values, **hyper}.items()}
    state = {k: x[0] for k, x in agent.state.items()}
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, tensors)
    return caught(agent, lambda spy: agent.gradient_step(spy, state, batch, tensors))


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
    """Every form has the exact gradient for its mean; without gamma^t, the sum that errata 1.1 names, unless it is the
    whole return, which holds gamma^t itself.
    """
    mdp = quarters_mdp(0, gamma)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    values = torch.randn(mdp.states, generator=torch.Generator().manual_seed(5), dtype=F64)
    exact, plain = mdp.gradient(PROBABILITIES.log()), undiscounted_visits_gradient(mdp)
    common = (rollout, trajectories, values, gamma)
    found = policy_gradient(*common, **FORMS[form], state_weighting="discounted")
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    found = policy_gradient(*common, **FORMS[form])
    expected = exact if FORMS[form]["estimator"] == "full_return" else plain
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
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


@pytest.mark.parametrize("weighting", ["discounted", "undiscounted"])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_an_update_from_a_long_episode_in_single_precision(gamma: float, weighting: Any) -> None:
    """2048 steps of one episode, the second rollout of it: no power of gamma overflows, no parameter is lost."""
    config = REINFORCEConfig(
        estimator="full_return",
        baseline="none",
        gamma=gamma,
        state_weighting=weighting,
        rollout_steps=2048,
        normalize_advantage=False,
        hidden_sizes=(4,),
    )
    agent = REINFORCE(config, vector(3), discrete(2))
    rollout = synthetic_rollout(agent, 2048)
    never = torch.zeros_like(rollout.valid)
    for first in (0, 2048):
        step = first + torch.arange(2049).view(1, -1, 1)
        whole = rollout._replace(terminated=never, truncated=never, valid=~never, episode_step=step)
        figures = agent.update(whole, progress=0.0)
        assert all(bool(x.isfinite().all()) for x in agent.state.values())
        assert all(np.isfinite(x).all() for x in figures.values())


CUTS = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
"""The first of three environments ends in its second row, the last in its fourth, the other not at all."""


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("estimator", ["full_return", "reward_to_go"])
def test_a_cut_episode_can_be_dropped(estimator: Any, limit: bool) -> None:
    """Steps whose episode's end was recorded count, by their rewards alone; v is in none of it, nor at a time limit."""
    g = torch.Generator().manual_seed(3)
    gamma, states = 0.75, 5
    state = torch.randint(0, states, (5, 3), generator=g)
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(state, states).to(F64)},
        action=torch.randint(0, 2, (4, 3), generator=g),
        reward=torch.randn((4, 3), generator=g, dtype=F64),
        terminated=CUTS & (not limit),
        truncated=CUTS & limit,
        valid=torch.ones((4, 3), dtype=torch.bool),
        episode_step=torch.zeros((5, 3), dtype=torch.int64),
        action_mask=None,
        memory=None,
    )
    r = rollout.reward
    counted = {(t, 0): (0, 2) for t in (0, 1)} | {(t, 2): (0, 4) for t in range(4)}  # step: its episode's rows
    leaf = torch.randn((states, 2), generator=g, dtype=F64).requires_grad_()
    loss = torch.zeros((), dtype=F64)
    pull = torch.zeros(states, dtype=F64)
    values = torch.randn(states, generator=g, dtype=F64)
    for (t, n), (first, end) in counted.items():
        to_go = sum(gamma ** (k - t) * float(r[k, n]) for k in range(t, end))
        whole = sum(gamma ** (k - first) * float(r[k, n]) for k in range(first, end))
        psi = to_go if estimator == "reward_to_go" else whole
        loss = loss - leaf.log_softmax(-1)[state[t, n], rollout.action[t, n]] * psi / len(counted)
        pull[state[t, n]] += (values[state[t, n]] - to_go) / len(counted)
    (expected,) = torch.autograd.grad(loss, leaf)
    settings = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False, "baseline": "none"}
    config = REINFORCEConfig(**settings, estimator=estimator, at_cut="drop")
    agent = to_float64(REINFORCE(config, vector(states), discrete(2)))
    parameters = {
        "policy_head.weight": leaf.detach().T,
        "policy_head.bias": torch.zeros(2, dtype=F64),
        "value_head.weight": values.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    agent.state["params"] = agent.layout.flatten({k: x.unsqueeze(0) for k, x in parameters.items()})
    found = gradient(agent, rollout, gamma=gamma)
    torch.testing.assert_close(found["policy_head.weight"].T, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["value_head.weight"][0], pull, rtol=1e-10, atol=1e-12)


def test_a_rollout_without_an_end_changes_nothing_where_cuts_are_dropped() -> None:
    """Not by Adam's momentum either, and the figure says how many steps counted."""
    config = REINFORCEConfig(at_cut="drop", rollout_steps=12, hidden_sizes=(5,))
    agent = to_float64(REINFORCE(config, vector(2), discrete(3), num_envs=4))
    rollout = synthetic_rollout(agent, 12, dtype=F64)
    start = agent.state["params"].clone()
    figures = agent.update(rollout, progress=0.0)
    assert 0.0 < float(figures["counted_steps"][0]) < 1.0
    before = {k: x.clone() for k, x in agent.state.items()}
    assert not torch.equal(before["params"], start)
    never = torch.zeros_like(rollout.valid)
    figures = agent.update(rollout._replace(terminated=never, truncated=never), progress=0.0)
    assert float(figures["counted_steps"][0]) == 0.0
    for name, x in before.items():
        assert torch.equal(agent.state[name], x), name


def pair_gradient(agent: REINFORCE, actions: tuple[int, ...], paid: Tensor) -> Tensor:
    """(S, A) ascent per trajectory, from two trajectories of two steps: states 0 and 1, actions as given."""
    action = torch.tensor(actions).view(2, 2).T
    step = torch.arange(3).view(3, 1).expand(3, 2)
    never = torch.zeros((2, 2), dtype=torch.bool)
    end = never.clone()
    end[-1] = True
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(step.clamp(max=1), 2).to(F64)},
        action=action,
        reward=paid[step[:2], action],
        terminated=end,
        truncated=never,
        valid=~never,
        episode_step=step,
        action_mask=None,
        memory=None,
    )
    return -2.0 * gradient(agent, rollout)["policy_head.weight"].T  # the loss is a mean over two steps


@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("average_return", 0.5), ("value", 1.0)])
def test_an_average_holds_the_episode_that_it_is_taken_from(baseline: Any, share: float) -> None:
    """Over every pair of trajectories (m = 2) the average return leaves 1 - 1/m of the gradient; v leaves all of it."""
    chance = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=F64)
    paid = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)
    settings = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False}
    config = REINFORCEConfig(**settings, estimator="full_return", baseline=baseline)
    agent = to_float64(REINFORCE(config, vector(2), discrete(2)))
    parameters = {
        "policy_head.weight": chance.log().T,
        "policy_head.bias": torch.zeros(2, dtype=F64),
        "value_head.weight": torch.tensor([[0.5, -1.5]], dtype=F64),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    agent.state["params"] = agent.layout.flatten({k: x.unsqueeze(0) for k, x in parameters.items()})
    found = torch.zeros((2, 2), dtype=F64)
    for actions in itertools.product(range(2), repeat=4):
        probability = math.prod(float(chance[i % 2, a]) for i, a in enumerate(actions))
        found += probability * pair_gradient(agent, actions, paid)
    exact = chance * (paid - (chance * paid).sum(-1, keepdim=True))
    torch.testing.assert_close(found, share * exact, rtol=1e-10, atol=1e-12)


def test_normalising_adds_no_baseline() -> None:
    """Less nothing, or less the average: the gradient is divided by one number, and the two stay two."""
    mdp = quarters_mdp(1, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    returns = rollout.reward.flip(0).cumsum(0).flip(0)[rollout.valid]
    found = []
    for baseline in ("none", "average_return"):
        plain, scaled = (
            gradient(make(mdp, random_values(mdp), baseline=baseline, normalize_advantage=on), rollout)
            for on in (False, True)
        )
        psi = returns - (returns.mean() if baseline == "average_return" else 0.0)
        expected = plain["policy_head.weight"] / psi.square().mean().sqrt()
        torch.testing.assert_close(scaled["policy_head.weight"], expected, rtol=1e-6, atol=1e-9)
        found.append(psi)
    assert float(found[0].mean().abs()) > 0.1, "an average to take off"


@pytest.mark.parametrize("normalize", [False, True])
def test_less_the_value_it_is_the_actor_critic(normalize: bool) -> None:
    """Reward-to-go less v is GAE at lambda = 1: the same update, to rounding, whatever the rollout."""
    settings = {"rollout_steps": 12, "hidden_sizes": (5,), "normalize_advantage": normalize}
    updated = []
    for kind, config in ((REINFORCE, REINFORCEConfig), (ActorCritic, ActorCriticConfig)):
        agent = to_float64(kind(config(**settings), vector(2), discrete(3), num_envs=4))
        for seed in (0, 1):
            agent.update(synthetic_rollout(agent, 12, seed=seed, dtype=F64), progress=0.0)
        updated.append(agent.state["params"])
    torch.testing.assert_close(updated[0], updated[1], rtol=1e-9, atol=1e-11)


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
