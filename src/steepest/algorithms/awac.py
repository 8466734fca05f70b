"""Advantage-weighted actor-critic: a critic of the policy itself, and a policy that prefers the better actions of data.

Source: Nair et al. 2020 (https://arxiv.org/abs/2006.09359); the policy's step is advantage-weighted regression, Peng et
al. 2019 (https://arxiv.org/abs/1910.00177). Not in the notes, whose offline chapter (2.1) it belongs to.

    repeat
      for a minibatch of the data, or of data and replay, one step of Adam each
      1. on every critic's mean of 1/2 (Q_i(s, a) - (r + gamma (1 - terminated) min_i Q'_i(s', a')))^2,  a' ~ pi(.|s')
                                                                         losses.value_loss, losses.q_learning_target
      2. on the policy's mean of -w log pi(a|s),  w = exp((min_i Q_i(s, a) - V(s)) / temperature),
             V(s) = min_i Q_i(s, a''), a'' ~ pi(.|s)                losses.advantage_weight, losses.score_function_loss
      3. Q' <- (1 - rate) Q' + rate Q                                                   agents.replay_updates.track

With discrete actions both expectations over the policy are sums. Differences from the paper: weights are clipped at
max_weight instead of being normalised over a minibatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from steepest.agents.likelihood import LikelihoodAgent
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, regress
from steepest.algorithms.configs.awac import AWACConfig
from steepest.distributions import Categorical
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import advantage_weight, q_learning_target
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import action_critics
from steepest.types import Obs


class AWAC(LikelihoodAgent):
    """Advantage-weighted actor-critic over one or several members."""

    algorithm = "awac"
    Config = AWACConfig
    config: AWACConfig
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/"}
    hyper_fields = (*ReplayAgent.hyper_fields, "temperature", "max_weight")

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, given = self.config, (self.config, self.obs_spec, self.action_spec, network)
        critics = action_critics(*given, critics=config.num_critics, layer_norm=config.layer_norm)
        return {**super().networks(network), "critic/": critics}

    def update_noise(self, updates: int) -> Noise:
        return self.action_noise(updates, "action", "next_action") if self.continuous else {}  # choices are summed over

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the critics and the policy, then of the targets; pure, one member."""
        del with_policy  # it is never left out
        next_obs, mask = batch_obs(batch, "next_obs/"), batch.get("next_action_mask")
        following = self.policy_value("target/params", state, next_obs, mask, noise.get("next_action"))
        target = q_learning_target(batch["reward"], following, batch["terminated"], batch["discount"])
        loss = partial(self.critic_loss, state=state, batch=batch, target=target)
        state, metrics, error = self.critic_step(gradient, state, loss, hyper)

        obs, mask = batch_obs(batch, "obs/"), batch.get("action_mask")
        value = self.policy_value("critic/params", state, obs, mask, noise.get("action"))
        advantage = self.data_q(state["critic/params"], state, batch).amin(0) - value
        weight = advantage_weight(advantage, hyper["temperature"], hyper["max_weight"])
        loss = partial(self.likelihood_loss, state=state, batch=batch, weight=weight)
        state, found = self.policy_step(gradient, state, loss, hyper)
        metrics |= {**found, "advantage": advantage.mean(), "weight": weight.mean()}
        return self.track(state, hyper), metrics, error

    def policy_value(self, critic: str, state: State, obs: Obs, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return the policy's value (B,) by the least critic: of one draw, or the mean over discrete actions."""
        policy = self.policy(state["params"], state, obs, mask)
        if isinstance(policy, Categorical):
            return (policy.log_probs.exp() * self.q(state[critic], state, obs, None).amin(0)).sum(-1)
        assert noise is not None
        return self.q(state[critic], state, obs, policy.sample(noise)).amin(0)

    def critic_loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        """Return the sum over critics of their mean losses; gradient through ``vector`` alone."""
        return regress(self.data_q(vector, state, batch), target, batch)
