"""The networks of soft actor-critic in both of its forms."""

from __future__ import annotations

from torch import Tensor

from steepest.agents.agent import normalization
from steepest.agents.config import SquashedConfig
from steepest.agents.replay_updates import ReplayAgent
from steepest.learner.step import State
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble
from steepest.networks.policies import SquashedPolicy, unit_action
from steepest.types import ActionSpec, Obs, ObsSpec


def squashed_policy(
    config: SquashedConfig, obs_spec: ObsSpec, action_spec: ActionSpec, network: NetworkFactory | None
) -> SquashedPolicy:
    """Build a policy whose actions are squashed into their bounds, or mixed with the uniform one where discrete."""
    log_std = (config.min_log_std, config.max_log_std)
    floor = config.min_probability
    return SquashedPolicy(config, obs_spec, action_spec, network, log_std=log_std, min_probability=floor)


def soft_critics(
    config: SquashedConfig,
    obs_spec: ObsSpec,
    action_spec: ActionSpec,
    network: NetworkFactory | None,
    *,
    layer_norm: bool = False,
    dropout: float = 0.0,
) -> QEnsemble:
    """Build the Q-functions: of an action in a box, or of all discrete choices."""
    continuous = action_spec.kind == "box"
    return QEnsemble(
        config,
        obs_spec,
        network,
        critics=config.num_critics,
        actions=action_spec.dimension if continuous else 0,
        choices=None if continuous else action_spec.sizes[0],
        layer_norm=layer_norm,
        dropout=dropout,
    )


def soft_q(
    agent: ReplayAgent, vector: Tensor, state: State, obs: Obs, action: Tensor | None, *dropout: list[Tensor]
) -> Tensor:
    """Return Q (C, B) of actions as the policy draws them, or (C, B, choices) of all discrete ones; pure."""
    unit = None if action is None else unit_action(agent.action_spec, action)
    return agent.calls["critic/"](vector, state, obs, normalization(state), unit, *dropout)
