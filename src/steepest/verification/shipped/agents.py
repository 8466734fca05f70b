"""The algorithms' own losses, on a rollout that holds every trajectory once and weighs it by its probability.

A continuing process has no whole trajectories; there the rollout holds every path of two steps that begins in the
stationary distribution. The rows are in ``on_policy``, ``kl_penalty`` and ``trpo``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.algorithms.actor_critic import ActorCritic, ActorCriticConfig
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.ppo_kl import PPOKL, PPOKLConfig
from steepest.algorithms.reinforce import REINFORCE, REINFORCEConfig
from steepest.algorithms.trpo import TRPO, TRPOConfig
from steepest.exact import gains
from steepest.types import ActionSpec, ObsField, ObsSpec, Rollout
from steepest.verification.random_problems import HORIZON, Process
from steepest.verification.shipped.trust_region import CLIP
from steepest.verification.statement import F64

PATH = 2
"""Steps of a path of a continuing process."""

CONFIGS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ppo": (PPO, PPOConfig, {"minibatches": 1}),
    "ppo_kl": (PPOKL, PPOKLConfig, {"minibatches": 1}),
    "reinforce": (REINFORCE, REINFORCEConfig, {}),
    "actor_critic": (ActorCritic, ActorCriticConfig, {}),
    "trpo": (TRPO, TRPOConfig, {"minibatches": 1}),
}


class Experience(NamedTuple):
    """A rollout, and how likely each of its columns is."""

    rollout: Rollout
    probability: Tensor  # (K,)


def episodes(c: Process) -> Experience:
    """Every trajectory of an episodic process."""
    paths = c.paths
    step = torch.arange(HORIZON + 1).unsqueeze(-1).expand_as(paths.state)
    rollout = _rollout(c, paths.state, paths.action, paths.reward, paths.flags, step)
    return Experience(rollout, paths.probability)


def long_run(c: Process) -> Experience:
    """Every path of PATH steps from the stationary distribution of a continuing process, truncated at its end."""
    states, actions = range(c.mdp.num_states), range(c.mdp.num_actions)
    rows = torch.tensor(list(itertools.product(*(states, actions) * PATH, states)))
    state, action = rows[:, 0::2].T, rows[:, 1::2].T
    chance = gains.stationary_distribution(c.mdp, c.policy)[state[0]]
    for t in range(PATH):
        chance = chance * c.policy[state[t], action[t]] * c.mdp.transition[state[t], action[t], state[t + 1]]
    never = torch.zeros(action.shape, dtype=torch.bool)
    cut = torch.cat([never[:-1], ~never[-1:]])
    step = torch.arange(PATH + 1).unsqueeze(-1).expand_as(state)
    reward = c.mdp.reward[state[:-1], action]
    return Experience(_rollout(c, state, action, reward, (never, cut, ~never), step), chance)


def _rollout(
    c: Process, state: Tensor, action: Tensor, reward: Tensor, flags: tuple[Tensor, Tensor, Tensor], step: Tensor
) -> Rollout:
    obs = {"obs": torch.nn.functional.one_hot(state, c.mdp.num_states).to(F64)}
    return Rollout(obs, action, reward, *flags, episode_step=step, action_mask=None, memory=None)


@cache
def tabular_agent(algorithm: str, states: int, actions: int, **options: Any) -> Any:
    """An agent in float64 without hidden layers: one-hot states in, a table of logits and one of values inside."""
    kind, config, needed = CONFIGS[algorithm]
    obs = ObsSpec((ObsField("obs", "vector", (states,), "float32"),), is_dict=False)
    settings = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False, **needed, **options}
    agent = kind(config(**settings), obs, ActionSpec("discrete", (), "int64", (actions,), (0,)))
    agent.module.double()
    return agent


def tables(theta: Tensor, value: Tensor) -> dict[str, Tensor]:
    """The parameters of an agent whose logits are theta (S, A), and whose values (S,)."""
    return {
        "policy_head.weight": theta.T,
        "policy_head.bias": torch.zeros(theta.shape[1], dtype=F64),
        "value_head.weight": value.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }


def differentiated(loss: Callable[[Tensor], tuple[Tensor, Any]], vector: Tensor) -> tuple[Tensor, tuple[Tensor, Any]]:
    """The gradient, and what the function gave."""
    leaf = vector.clone().requires_grad_()
    value, rest = loss(leaf)
    return torch.autograd.grad(value, leaf)[0], (value.detach(), rest)


def _slope(agent: Any, state: dict[str, Tensor], batch: dict[str, Tensor], hyper: dict[str, Tensor]) -> Tensor:
    """The loss's gradient; TRPO has an objective and a loss, each with a part of the parameters to itself."""
    if isinstance(agent, TRPO):
        system, _ = agent.policy_gradient(differentiated, state, batch, hyper)
        pull, _ = differentiated(partial(agent.loss, state=state, batch=batch, hyper=hyper), state["params"])
        return pull - system.residual
    return differentiated(partial(agent.loss, state=state, batch=batch, hyper=hyper), state["params"])[0]


def expected_gradient(
    algorithm: str, c: Process, data: Experience, value: Tensor, gain: Tensor | float = 0.0, **options: Any
) -> tuple[Tensor, Tensor]:
    """The gradients, in logits (S, A) and values (S,), of an agent's loss, summed over the steps of a trajectory.

    Args:      gain: what the agent takes for the average reward, where that is its objective
    """
    agent = tabular_agent(algorithm, c.mdp.num_states, c.mdp.num_actions, **options)
    state = {k: x[0].double() if x.is_floating_point() else x[0] for k, x in agent.state.items()}
    state["params"] = agent.layout.flatten(tables(c.theta, value))
    if "gain" in state:  # after endless rollouts at rate 0, it stays
        state |= {"gain": torch.as_tensor(gain, dtype=F64), "gain_rollouts": torch.tensor(torch.inf, dtype=F64)}
    numbers = {"gain_rate": 0.0, "gae_lambda": 0.7, "clip_epsilon": CLIP, "value_coef": 1.0, "entropy_coef": 0.0}
    numbers |= {"gamma": c.mdp.gamma} | {k: v for k, v in options.items() if k in ("gamma", "gae_lambda")}
    hyper = {k: torch.tensor(x, dtype=F64) for k, x in numbers.items()}
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, data.rollout, hyper)
    weight = data.rollout.valid * data.probability
    batch["weight"] = (weight * len(data.probability)).flatten()
    slope = agent.layout.unflatten(_slope(agent, state, batch, hyper))
    length = weight.sum()  # the loss is a mean over steps
    return length * slope["policy_head.weight"].T, length * slope["value_head.weight"][0]
