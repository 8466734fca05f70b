"""Policies that raise the likelihood of actions of the data: their network, and their weighted loss."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.config import StochasticPolicyConfig
from steepest.agents.replay_updates import Batch, ReplayAgent, batch_obs, chosen
from steepest.learner.step import Metrics, State
from steepest.losses import score_function_loss
from steepest.networks.config import NetworkFactory
from steepest.networks.policies import BoundedPolicy
from steepest.types import ActionSpec, Obs, ObsSpec


class LikelihoodAgent(ReplayAgent):
    """An agent whose policy is a Gaussian with bounded mean, or a categorical one; an algorithm adds its steps."""

    action_kinds = ("box", "discrete")
    bounded = True
    squash = "clip"

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        return {"": data_policy(cast(StochasticPolicyConfig, self.config), self.obs_spec, self.action_spec, network)}

    @property
    def continuous(self) -> bool:
        return self.action_spec.kind == "box"

    def likelihood_loss(self, vector: Tensor, state: State, batch: Batch, weight: Tensor) -> tuple[Tensor, Metrics]:
        """Return the mean of -weight log pi(a|s), a of the data; gradient through ``vector`` alone."""
        policy = self.policy(vector, state, batch_obs(batch, "obs/"), batch.get("action_mask"))
        log_prob = policy.log_prob(batch["action"])
        loss = score_function_loss(log_prob, weight).mean()
        return loss, {"policy_loss": loss, "data_log_prob": log_prob.mean(), "entropy": policy.entropy().mean()}

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor | None) -> Tensor:
        """Return Q (C, B) of actions in [-1, 1], or (C, B, choices) of all discrete ones."""
        unit = None if action is None else action.clamp(-1.0, 1.0)
        return self.calls["critic/"](vector, state, obs, normalization(state), unit)

    def data_q(self, vector: Tensor, state: State, batch: Batch) -> Tensor:
        """Return Q (C, B) of the actions of the data."""
        obs, action = batch_obs(batch, "obs/"), batch["action"]
        if self.continuous:
            return self.q(vector, state, obs, action)
        return chosen(self.q(vector, state, obs, None), action)


def data_policy(
    config: StochasticPolicyConfig, obs_spec: ObsSpec, action_spec: ActionSpec, network: NetworkFactory | None
) -> BoundedPolicy:
    """Build a policy that can be fitted to actions of data."""
    log_std = (config.min_log_std, config.max_log_std)
    return BoundedPolicy(
        config, obs_spec, action_spec, network, log_std=log_std, min_probability=config.min_probability
    )


def no_error(batch: Batch) -> Tensor:
    """Return TD errors (B,) of a step that has none."""
    return torch.zeros_like(batch["reward"])
