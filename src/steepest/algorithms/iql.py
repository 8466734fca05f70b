"""Implicit Q-learning: the best of what the data shows, without ever asking for the value of another action.

Source: Kostrikov, Nair & Levine 2022 (https://arxiv.org/abs/2110.06169). Not in the notes, whose offline chapter (2.1)
it belongs to.

    repeat
      for a minibatch of the data, one step of Adam each
      1. on the value function's expectile of min_i Q'_i(s, a)                                    losses.expectile_loss
      2. on the policy's mean of -w log pi(a|s),  w = exp((min_i Q'_i(s, a) - V(s)) / temperature)
                                                          losses.advantage_weight, losses.score_function_loss
      3. on every critic's mean of 1/2 (Q_i(s, a) - (r + gamma (1 - terminated) V(s')))^2
                                                              losses.value_loss, losses.q_learning_target
      4. Q' <- (1 - rate) Q' + rate Q                                                   agents.replay_updates.track

Differences from the paper: the expectile's loss has a factor of 1/2, which Adam does not see. ``temperature`` is the
inverse of its beta: 1/3 for locomotion, 1/10 for AntMaze. Discrete actions use the same equations, with Q of the action
that was taken read from those of all. The policy is a Gaussian that is not squashed, as in the authors' code: with a
density of squashed actions the result differs much, since data is full of actions at their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.likelihood import LikelihoodAgent
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, descend, regress, sample_weight
from steepest.algorithms.configs.iql import IQLConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import advantage_weight, expectile_loss, q_learning_target
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble, action_critics
from steepest.types import Obs


class IQL(LikelihoodAgent):
    """Implicit Q-learning over one or several members."""

    algorithm = "iql"
    Config = IQLConfig
    config: IQLConfig
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/"}
    hyper_fields = (*ReplayAgent.hyper_fields, "expectile", "temperature", "max_weight")

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, given = self.config, (self.config, self.obs_spec, self.action_spec, network)
        critics = action_critics(*given, critics=config.num_critics, layer_norm=config.layer_norm)
        value = QEnsemble(config, self.obs_spec, network, critics=1)
        return {**super().networks(network), "critic/": critics, "value/": value}

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """Take one step of the value function, the policy and the critics, then of the targets; pure, one member."""
        del noise, with_policy  # nothing here is random, and the policy is never left out
        q = self.data_q(state["target/params"], state, batch).amin(0)
        loss = partial(self.value_loss, state=state, batch=batch, target=q, hyper=hyper)
        slope, (_, metrics) = gradient(loss, state["value/params"])
        rates = (hyper["critic_learning_rate"], hyper["max_gradient_norm"])
        state, metrics["value_gradient_norm"] = descend(state, "value/", slope, *rates)

        advantage = q - self.value(state["value/params"], state, batch_obs(batch, "obs/"))
        weight = advantage_weight(advantage, hyper["temperature"], hyper["max_weight"])
        loss = partial(self.likelihood_loss, state=state, batch=batch, weight=weight)
        state, found = self.policy_step(gradient, state, loss, hyper)
        metrics |= {**found, "advantage": advantage.mean(), "weight": weight.mean()}

        loss = partial(self.critic_loss, state=state, batch=batch)
        state, found, error = self.critic_step(gradient, state, loss, hyper)
        return self.track(state, hyper), {**metrics, **found}, error

    def value_loss(
        self, vector: Tensor, state: State, batch: Batch, target: Tensor, hyper: Hyper
    ) -> tuple[Tensor, Metrics]:
        """Return the value function's mean loss; gradient through ``vector`` alone."""
        value = self.value(vector, state, batch_obs(batch, "obs/"))
        loss = (sample_weight(batch) * expectile_loss(value, target, hyper["expectile"])).mean()
        return loss, {"value_loss": loss, "value_mean": value.mean()}

    def critic_loss(self, vector: Tensor, state: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the sum over critics of their mean losses; gradient through ``vector`` alone."""
        next_value = self.value(state["value/params"], state, batch_obs(batch, "next_obs/"))
        target = q_learning_target(batch["reward"], next_value, batch["terminated"], batch["discount"])
        return regress(self.data_q(vector, state, batch), target, batch)

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """Return V (B,)."""
        return self.calls["value/"](vector, state, obs, normalization(state), None)[0]
