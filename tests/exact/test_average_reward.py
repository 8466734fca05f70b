"""Average-reward learning against the exact gradient of the gain, on a rollout that holds every short path once.

A path is two steps from the stationary distribution; its weight is its probability. Observations are one-hot, so that
logits and values are tables, and the critic may hold the exact differential values.
"""

from __future__ import annotations

import itertools
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, discrete, to_float64, vector
from steepest.agents.average_reward import VALUE_PIN
from steepest.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.ppo_kl import PPOKL, PPOKLConfig
from steepest.algorithms.trpo import TRPO, TRPOConfig
from steepest.errors import UsageError
from steepest.exact import gains
from steepest.exact import gradients as exact_gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.learner.step import autograd_gradient
from steepest.types import Rollout
from steepest.verification.random_problems import Process, continuing

STEPS = 2
AGENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "actor-critic, GAE": (ActorCritic, {"gae_lambda": 0.7}),
    "actor-critic, one step": (ActorCritic, {"advantage": "n_step", "n_steps": 1}),
    "actor-critic, two steps": (ActorCritic, {"advantage": "n_step", "n_steps": 2}),
    "actor-critic, Monte-Carlo critic": (ActorCritic, {"gae_lambda": 0.7, "critic": "monte_carlo"}),
    "PPO": (PPO, {"gae_lambda": 0.7, "minibatches": 1}),
    "PPO-KL": (PPOKL, {"gae_lambda": 0.7, "minibatches": 1}),
    "TRPO": (TRPO, {"gae_lambda": 0.7, "minibatches": 1}),
}
agents = pytest.mark.parametrize("name", AGENTS)


@cache
def recording(seed: int) -> tuple[Process, Rollout, Tensor]:
    """Every path of two steps, truncated at its end, and its probability in the long run."""
    c = continuing(seed)
    states, actions = range(c.mdp.num_states), range(c.mdp.num_actions)
    rows = torch.tensor(list(itertools.product(states, actions, states, actions, states)))
    state, action = rows[:, 0::2].T, rows[:, 1::2].T
    chance = gains.stationary_distribution(c.mdp, c.policy)[state[0]]
    for t in range(STEPS):
        chance = chance * c.policy[state[t], action[t]] * c.mdp.transition[state[t], action[t], state[t + 1]]
    never = torch.zeros(action.shape, dtype=torch.bool)
    cut = never.clone()
    cut[-1] = True
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(state, c.mdp.num_states).to(F64)},
        action=action,
        reward=c.mdp.reward[state[:-1], action],
        terminated=never,
        truncated=cut,
        valid=~never,
        episode_step=torch.arange(STEPS + 1).unsqueeze(-1).expand(state.shape),
        action_mask=None,
        memory=None,
    )
    assert float(chance.sum()) == pytest.approx(1.0, rel=1e-12)
    return c, rollout, chance


def gradients(name: str, seed: int, value: Tensor, gain: Tensor | float, **config: Any) -> tuple[Tensor, Tensor]:
    """The expected ascent direction per step in logits (S, A), and the critic's descent (S,), with a gain as given."""
    c, rollout, chance = recording(seed)
    kind, options = AGENTS[name]
    settings: dict[str, Any] = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False}
    settings |= {"objective": "average", "rollout_steps": STEPS, "gain_rate": 0.0}
    specs = (vector(c.mdp.num_states), discrete(c.mdp.num_actions))
    agent = to_float64(kind(kind.Config(**(settings | options | config)), *specs))
    parameters = {
        "policy_head.weight": c.theta.T,
        "policy_head.bias": torch.zeros(c.mdp.num_actions, dtype=F64),
        "value_head.weight": value.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    state = {k: x[0] for k, x in agent.state.items()}
    state["params"] = agent.layout.flatten(parameters)
    # After endless rollouts at rate 0 the estimate is what it is.
    if agent.config.objective == "average":
        state |= {"gain": torch.as_tensor(gain, dtype=F64), "gain_rollouts": torch.tensor(torch.inf, dtype=F64)}
    hyper = {k: torch.tensor(getattr(agent.config, k), dtype=F64) for k in ("gamma", "gain_rate", "gae_lambda")}
    numbers = {"clip_epsilon": 0.2, "value_coef": 1.0, "entropy_coef": 0.0}
    hyper |= {k: torch.tensor(x, dtype=F64) for k, x in numbers.items()}
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, hyper)
    batch["weight"] = (chance * len(chance)).expand(STEPS, -1).flatten()
    if isinstance(agent, TRPO):  # an objective and a loss, each with a part of the parameters to itself
        ascent = agent.policy_gradient(autograd_gradient, state, batch, hyper)[0].residual
        descent, _ = autograd_gradient(partial(agent.loss, state=state, batch=batch, hyper=hyper), state["params"])
    else:
        descent, _ = autograd_gradient(partial(agent.loss, state=state, batch=batch, hyper=hyper), state["params"])
        ascent = -descent
    policy, critic = (agent.layout.unflatten(x) for x in (ascent, descent))
    return policy["policy_head.weight"].T, critic["value_head.weight"][0]


def exact(seed: int) -> tuple[Process, Tensor, Tensor, Tensor]:
    """The process, its gain, its differential values, and the exact gradient of the gain."""
    c = continuing(seed)
    slope = exact_gradients.gain_policy_gradient(c.mdp, softmax_policy, c.theta)
    return c, gains.gain(c.mdp, c.policy), gains.differential_value(c.mdp, c.policy), slope


@agents
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_the_gain(name: str, seed: int) -> None:
    """Theorem 4, with exact values; the constant that they leave open, and an error of the gain, change nothing."""
    _, gain, value, slope = exact(seed)
    for shift, error in ((0.0, 0.0), (3.0, 0.0), (0.0, 0.5)):
        found, _ = gradients(name, seed, value + shift, gain + error)
        torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-12)


@agents
def test_other_values_are_biased(name: str) -> None:
    c, gain, value, slope = exact(0)
    found, _ = gradients(name, 0, value + c.baseline, gain)
    assert float((found - slope).norm() / slope.norm()) > 0.05


@agents
def test_a_discount_kept_is_another_gradient(name: str) -> None:
    """The same agent with the discounted objective, and the very values that are exact without one."""
    _, gain, value, slope = exact(0)
    found, _ = gradients(name, 0, value, gain, objective="discounted", gamma=0.5)
    assert float((found - slope).norm() / slope.norm()) > 0.05


@agents
def test_the_critic_comes_to_rest_at_the_values_of_mean_zero(name: str) -> None:
    """At the differential values nothing pulls but the pin, by its share of their mean over the recording's rows.

    Paths are all in the recording once, so its plain mean is that over states alike; with values whose mean is zero
    there, the critic rests. A constant on top is pulled back, and so is what a wrong gain adds.
    """
    c, gain, value, _ = exact(0)
    mu = gains.stationary_distribution(c.mdp, c.policy)
    centred = value - _row_mean(value)
    _, rest = gradients(name, 0, centred, gain)
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-12)
    _, pulled = gradients(name, 0, centred + 3.0, gain)
    reached = _share_of_states()
    torch.testing.assert_close(pulled, VALUE_PIN * 3.0 * reached, rtol=1e-10, atol=1e-12)
    _, without_gain = gradients(name, 0, centred, 0.0)
    assert float(without_gain.norm()) > 0.1 * float(gain.abs() * mu.norm())


def _row_mean(value: Tensor) -> Tensor:
    _, rollout, _ = recording(0)
    return (rollout.obs["obs"][:-1] @ value).mean()


def _share_of_states() -> Tensor:
    """(S,) the probability of each state among the decided steps: the stationary distribution."""
    c, rollout, chance = recording(0)
    share = torch.einsum("tks,k->s", rollout.obs["obs"][:-1], chance) / STEPS
    torch.testing.assert_close(share, gains.stationary_distribution(c.mdp, c.policy), rtol=1e-10, atol=1e-12)
    return share


@agents
def test_the_gain_is_learnt_and_reported(name: str) -> None:
    """An update moves the estimate by the stated step, and its figure is the estimate."""
    c, rollout, _ = recording(0)
    kind, options = AGENTS[name]
    config = kind.Config(**options, hidden_sizes=(), objective="average", gain_rate=0.25, rollout_steps=STEPS)
    paths = rollout.action.shape[1]
    agent = to_float64(kind(config, vector(c.mdp.num_states), discrete(c.mdp.num_actions), num_envs=paths))
    mean = float(rollout.reward.mean())
    agent.state["gain"][:], agent.state["gain_rollouts"][:] = 2.0, 10.0
    figures = agent.update(_member(rollout), 0.0)
    expected = 2.0 + 0.25 * (mean - 2.0)
    assert float(agent.state["gain"]) == pytest.approx(expected, rel=1e-9)
    assert float(figures["gain"][0]) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UsageError, match=f"has terminated {paths} episodes"):
        agent.update(_member(rollout._replace(terminated=rollout.truncated)), 0.0)


def _member(rollout: Rollout) -> Rollout:
    parts = rollout._asdict()
    obs = {k: x.unsqueeze(0) for k, x in parts.pop("obs").items()}
    return Rollout(obs=obs, **{k: None if x is None else x.unsqueeze(0) for k, x in parts.items()})


@pytest.mark.parametrize("kind", [PPOConfig, PPOKLConfig, TRPOConfig, ActorCriticConfig])
def test_what_needs_a_discount_is_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match='normalize_reward is True; expected False where objective is "average"'):
        kind(objective="average", normalize_reward=True)
    if kind is ActorCriticConfig:
        with pytest.raises(UsageError, match="state_weighting is 'discounted'; expected \"undiscounted\""):
            kind(objective="average", state_weighting="discounted")
