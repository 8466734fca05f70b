"""The algorithms' own losses, on a rollout that holds every trajectory once (notes 1.3 to 1.10)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from steepest.algorithms.ppo import PPO
from steepest.algorithms.ppo_kl import PPOKL
from steepest.algorithms.reinforce import REINFORCE
from steepest.exact import finite_mdp as mdps
from steepest.exact.theorems import (
    CONTROL,
    EQUALITY,
    HORIZON,
    Process,
    Sides,
    Statement,
    episodic,
    undiscounted_episodic,
)
from steepest.types import ActionSpec, ObsField, ObsSpec, Rollout
from steepest.verification.distributions import F64
from steepest.verification.policy_gradient import undiscounted_weighting, value_pull
from steepest.verification.trust_region import CLIP

# The algorithms' own losses


Kind = type[PPO] | type[PPOKL] | type[REINFORCE]


@cache
def _agent(kind: Kind, states: int, actions: int) -> PPO | PPOKL | REINFORCE:
    """An agent in float64 without hidden layers: one-hot states in, a table of logits and one of values inside."""
    obs = ObsSpec((ObsField("obs", "vector", (states,), "float32"),), is_dict=False)
    settings: dict[str, Any] = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False}
    if kind is not REINFORCE:
        settings["minibatches"] = 1
    agent = kind(kind.Config(**settings), obs, ActionSpec("discrete", (), "int64", (actions,), (0,)))  # pyright: ignore[reportArgumentType]
    agent.module.double()
    return agent


def agent_gradient(kind: Kind, c: Process, value: Tensor, trace_decay: float) -> tuple[Tensor, Tensor]:
    """The gradients, in logits (S, A) and values (S,), of an agent's loss on its own rollout, in expectation.

    The rollout holds every trajectory once; its weight is its probability. Times the mean length of an episode, since
    the loss is a mean over steps where the theorems have a sum.
    """
    agent = _agent(kind, c.mdp.num_states, c.mdp.num_actions)
    parameters = {
        "policy_head.weight": c.theta.T,
        "policy_head.bias": torch.zeros(c.mdp.num_actions, dtype=F64),
        "value_head.weight": value.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    state = {k: x[0].double() if x.is_floating_point() else x[0] for k, x in agent.state.items()}
    state["params"] = agent.layout.flatten(parameters)
    numbers = {
        "gamma": c.mdp.gamma,
        "gae_lambda": trace_decay,
        "clip_epsilon": CLIP,
        "value_coef": 0.5,
        "entropy_coef": 0.0,
    }
    hyper = {k: torch.tensor(x, dtype=F64) for k, x in numbers.items()}
    paths = c.paths
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(paths.state, c.mdp.num_states).to(F64)},
        action=paths.action,
        reward=paths.reward,
        terminated=paths.terminated,
        truncated=torch.zeros_like(paths.terminated),
        valid=paths.valid,
        episode_step=torch.arange(HORIZON + 1).unsqueeze(-1).expand_as(paths.state),
        action_mask=None,
        memory=None,
    )
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, hyper)
    weight = paths.valid * paths.probability
    batch["weight"] = (weight * len(paths.probability)).flatten()
    leaf = state["params"].clone().requires_grad_()
    loss, _ = agent.loss(leaf, state, batch, hyper)
    slope = agent.layout.unflatten(torch.autograd.grad(loss, leaf)[0])
    length = weight.sum()
    return length * slope["policy_head.weight"].T, length * slope["value_head.weight"][0]


def ppo_with_exact_values(c: Process) -> Sides:
    """PPO's first gradient at gamma = 1, exact values, lambda = 0.7."""
    return Sides(-agent_gradient(PPO, c, mdps.state_value(c.mdp, c.policy), 0.7)[0], c.gradient)


def ppo_with_any_values(c: Process) -> Sides:
    """PPO's first gradient at gamma = 1, lambda = 1, arbitrary values."""
    return Sides(-agent_gradient(PPO, c, c.baseline, 1.0)[0], c.gradient)


def ppo_with_biased_values(c: Process) -> Sides:
    """Negative control: below lambda = 1 inexact values bias the gradient."""
    return Sides(-agent_gradient(PPO, c, c.baseline, 0.7)[0], c.gradient)


def ppo_with_a_discount(c: Process) -> Sides:
    """With a discount PPO climbs the sum with states weighted by plain visits."""
    return Sides(-agent_gradient(PPO, c, mdps.state_value(c.mdp, c.policy), 0.7)[0], undiscounted_weighting(c))


def ppo_critic(c: Process) -> Sides:
    """PPO's critic at lambda = 1 is pulled to V^pi, as hard as states are visited."""
    return Sides(agent_gradient(PPO, c, c.baseline, 1.0)[1], 0.5 * value_pull(c))


def reinforce_with_any_baseline(c: Process) -> Sides:
    """REINFORCE's gradient at gamma = 1, whatever the baseline."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], c.gradient)


def reinforce_with_a_discount(c: Process) -> Sides:
    """With a discount REINFORCE climbs the sum with states weighted by plain visits."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], undiscounted_weighting(c))


def reinforce_is_not_the_discounted_gradient(c: Process) -> Sides:
    """Negative control: which is not the gradient of the discounted objective."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], c.gradient)


def reinforce_critic(c: Process) -> Sides:
    """REINFORCE's baseline is pulled to V^pi, as hard as states are visited."""
    return Sides(agent_gradient(REINFORCE, c, c.baseline, 1.0)[1], 0.5 * value_pull(c))


# The rows

_PPO = "algorithms.ppo.PPO.loss"
_REINFORCE = "algorithms.reinforce.REINFORCE.loss"

ROWS: tuple[Statement, ...] = (
    Statement(
        "1.3", "REINFORCE at gamma = 1", EQUALITY, undiscounted_episodic, reinforce_with_any_baseline, _REINFORCE
    ),
    Statement(
        "1.3", "REINFORCE with a discount: its own sum", EQUALITY, episodic, reinforce_with_a_discount, _REINFORCE
    ),
    Statement(
        "1.3",
        "REINFORCE with a discount: the gradient",
        CONTROL,
        episodic,
        reinforce_is_not_the_discounted_gradient,
        _REINFORCE,
    ),
    Statement("1.4", "REINFORCE's baseline is pulled to V^pi", EQUALITY, episodic, reinforce_critic, _REINFORCE),
    Statement(
        "1.10", "PPO, gamma = 1, V exact, lambda 0.7", EQUALITY, undiscounted_episodic, ppo_with_exact_values, _PPO
    ),
    Statement("1.10", "PPO, gamma = 1, lambda = 1, any V", EQUALITY, undiscounted_episodic, ppo_with_any_values, _PPO),
    Statement(
        "1.10", "PPO, gamma = 1, lambda 0.7, any V", CONTROL, undiscounted_episodic, ppo_with_biased_values, _PPO
    ),
    Statement("1.10", "PPO with a discount: its own sum", EQUALITY, episodic, ppo_with_a_discount, _PPO),
    Statement("1.10", "PPO's critic is pulled to V^pi", EQUALITY, episodic, ppo_critic, _PPO),
)
