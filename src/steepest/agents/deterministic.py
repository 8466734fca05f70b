"""Deterministic policies and their critics: what DDPG and TD3 share.

All functions see one member of an agent whose policy is mu, "", and whose critics are "critic/". Actions are in units
of half their range, [-1, 1].
"""

from __future__ import annotations

from torch import Tensor

from steepest.agents.agent import normalization
from steepest.agents.replay_updates import Batch, ReplayAgent, batch_obs, regress
from steepest.learner.step import Metrics, State
from steepest.losses import deterministic_policy_loss
from steepest.types import Obs


def mean_action(agent: ReplayAgent, vector: Tensor, state: State, obs: Obs) -> Tensor:
    """Return mu(s) (B, D) of a policy with the parameters ``vector``."""
    return agent.policy(vector, state, obs).mode()


def q_values(agent: ReplayAgent, vector: Tensor, state: State, obs: Obs, action: Tensor) -> Tensor:
    """Return Q (C, B) of critics with the parameters ``vector``."""
    return agent.calls["critic/"](vector, state, obs, normalization(state), action)


def critic_loss(
    vector: Tensor, agent: ReplayAgent, state: State, batch: Batch, target: Tensor
) -> tuple[Tensor, Metrics]:
    """Return the sum over critics of their mean losses; gradient through ``vector`` alone."""
    q = q_values(agent, vector, state, batch_obs(batch, "obs/"), batch["action"].clamp(-1.0, 1.0))
    return regress(q, target, batch)


def policy_loss(vector: Tensor, agent: ReplayAgent, state: State, batch: Batch) -> tuple[Tensor, Metrics]:
    """Return the policy's mean loss by the first critic; gradient through ``vector`` alone, the critic's fixed."""
    obs = batch_obs(batch, "obs/")
    q = q_values(agent, state["critic/params"], state, obs, mean_action(agent, vector, state, obs))[0]
    loss = deterministic_policy_loss(q).mean()
    return loss, {"policy_loss": loss}
