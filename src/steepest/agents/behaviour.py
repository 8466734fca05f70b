"""Another agent as the behaviour: it acts, and its log-probabilities are those that ratios refer to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steepest.agents.acting import Actor
from steepest.agents.agent import Agent
from steepest.agents.stepwise import acting_inputs
from steepest.errors import UsageError
from steepest.types import Obs, Rollout


def read_behaviour(agent: Agent, path: str, read: Callable[[Path], Agent]) -> Agent:
    """Read the agent that behaves in another one's place.

    Raises:    UsageError if there is none, or its observations, actions or memory do not fit
    """
    if not Path(path).is_file():
        raise UsageError(f"behaviour_agent is {path!r}, which is no file; give that of a saved agent")
    other = read(Path(path))
    if other.members != 1 or other.memory_size:
        raise UsageError("behaviour_agent must be a single agent without a recurrent cell; take one with member(i)")
    if (other.obs_spec, other.action_spec) != (agent.obs_spec, agent.action_spec):
        raise UsageError(f"{path} was trained on other observations or actions than these")
    if agent.action_spec.kind == "box" and other.squash != agent.squash:
        raise UsageError(
            f"{path} is an agent of {other.algorithm}, which squashes its actions by {other.squash}, and "
            f"{agent.algorithm} by {agent.squash}: its log-probabilities refer to differently scaled actions. Take an "
            "agent of ppo, trpo or actor_critic."
        )
    return other


def act_as(actor: Actor, members: int, num_envs: int) -> Actor:
    """Return an actor that lets one agent act in the environments of all members."""

    def act(obs: Obs, noise: Tensor | None, mask: Tensor | None, start: Any, memory: Any) -> tuple[Tensor, None]:
        def together(x: Tensor | None) -> Any:
            return None if x is None else x.flatten(0, 1).unsqueeze(0)

        action, _ = actor({k: together(x) for k, x in obs.items()}, together(noise), together(mask), None, None)
        return action.view(members, num_envs, *action.shape[2:]), None

    return act


def scored_by(other: Agent, rollout: Rollout) -> Rollout:
    """Return the rollout (M, T, N) with the log-probabilities that another agent gives its actions."""
    state = {k: v[0] for k, v in other.state.items()}
    inputs = acting_inputs(rollout, time_axis=1)
    with torch.no_grad():
        policy = other.forward(state["params"], state, inputs, with_value=False).distribution
    return rollout._replace(behaviour_log_prob=policy.log_prob(rollout.action))
