"""Soft actor-critic with a value network, as the notes have it, for continuous and discrete actions.

Source: notes 1.7; Haarnoja et al. 2018a (https://arxiv.org/abs/1801.01290). `sac` is its successor, without the value
network and with a learned temperature.

    repeat
      1. play a step with a ~ pi, put it into the replay buffer
      2. for a minibatch of the buffer, with a ~ pi(.|s) drawn anew, one step of Adam each on the means of
             1/2 (V(s) - (min_i Q_i(s, a) - temperature log pi(a|s)))^2          losses.value_loss, soft_value_target
             1/2 (Q_i(s, a_t) - (r + gamma (1 - terminated) V'(s')))^2           losses.value_loss, soft_q_target
             temperature log pi(a|s) - min_i Q_i(s, a), with gradient through a  losses.soft_policy_loss
         all three at the parameters before the step
      3. V' <- (1 - rate) V' + rate V                                            agents.replay_updates.track

Differences from the notes: a temperature (1 there; the paper scales rewards by its inverse); the minimum of two
Q-functions, as in the paper; the terminal case. Actions, their log-probabilities and critics' inputs are as in `sac`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, chosen, descend, regress
from steepest.agents.soft import soft_q, squashed_policy
from steepest.algorithms.configs.sac_v import SACVConfig
from steepest.distributions import Categorical
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import expected_soft_value, soft_policy_loss, soft_q_target, soft_value_target, value_loss
from steepest.networks.config import NetworkFactory
from steepest.networks.critics import QEnsemble, action_critics
from steepest.networks.inputs import PolicyInput
from steepest.types import Obs


class SACV(ReplayAgent):
    """Soft actor-critic with a value network, over one or several members."""

    algorithm = "sac_v"
    Config = SACVConfig
    config: SACVConfig
    action_kinds = ("box", "discrete")
    bounded = True
    squash = "tanh"
    targets: ClassVar[Mapping[str, str]] = {"target/": "value/"}
    hyper_fields = (*ReplayAgent.hyper_fields, "temperature")

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        given = (self.config, self.obs_spec, self.action_spec, network)
        return {
            "": squashed_policy(*given),
            "critic/": action_critics(*given, critics=self.config.num_critics),
            "value/": QEnsemble(self.config, self.obs_spec, network, critics=1),
        }

    @property
    def continuous(self) -> bool:
        return self.action_spec.kind == "box"

    def update_noise(self, updates: int) -> Noise:
        return self.action_noise(updates, "action") if self.continuous else {}  # all choices are summed over

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """One step of policy, value network and critics, all from the same parameters; then of the target."""
        del with_policy  # it is never left out
        shared = {"state": state, "batch": batch, "hyper": hyper}
        policy_slope, (_, found) = gradient(partial(self.policy_loss, noise=noise, **shared), state["params"])
        soft_value = found.pop("soft_value")
        value_slope, (_, more) = gradient(partial(self.value_loss, target=soft_value, **shared), state["value/params"])
        critic_slope, (_, metrics) = gradient(partial(self.critic_loss, **shared), state["critic/params"])
        error = metrics.pop("error")
        metrics |= {**found, **more}
        slopes = {"": policy_slope, "value/": value_slope, "critic/": critic_slope}
        for prefix, slope in slopes.items():
            rate = hyper["critic_learning_rate" if prefix else "learning_rate"]
            state, norm = descend(state, prefix, slope, rate, hyper["max_gradient_norm"])
            metrics[f"{prefix.rstrip('/') or 'policy'}_gradient_norm"] = norm
        return self.track(state, hyper), metrics, error

    def policy_loss(
        self, vector: Tensor, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[Tensor, Metrics]:
        """The policy's mean loss and entropy, and soft values (B,) of the same draws; gradient through ``vector``."""
        obs, temperature = batch_obs(batch, "obs/"), hyper["temperature"]
        inputs = PolicyInput(obs, batch.get("action_mask"), None, None, None)
        policy = self.forward(vector, state, inputs, with_value=False).distribution
        if isinstance(policy, Categorical):
            q = soft_q(self, state["critic/params"], state, obs, None).amin(0)
            value = expected_soft_value(q.detach(), policy.log_probs, temperature)
            loss, entropy, soft_value = -value, policy.entropy(), value.detach()
        else:
            action = policy.sample(noise["action"])
            log_prob = policy.log_prob(action)
            q = soft_q(self, state["critic/params"], state, obs, action).amin(0)
            loss, entropy = soft_policy_loss(log_prob, q, temperature), -log_prob
            soft_value = soft_value_target(q, log_prob, temperature)
        return loss.mean(), {"policy_loss": loss.mean(), "entropy": entropy.mean(), "soft_value": soft_value}

    def value_loss(
        self, vector: Tensor, state: State, batch: Batch, hyper: Hyper, target: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The value network's mean loss; gradient through ``vector`` alone."""
        del hyper
        loss = value_loss(self.value(vector, state, batch_obs(batch, "obs/")), target).mean()
        return loss, {"value_loss": loss}

    def critic_loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The sum over critics of their mean losses; gradient through ``vector`` alone."""
        del hyper
        next_value = self.value(state["target/params"], state, batch_obs(batch, "next_obs/"))
        target = soft_q_target(batch["reward"], next_value, batch["terminated"], batch["discount"])
        q = soft_q(self, vector, state, batch_obs(batch, "obs/"), batch["action"] if self.continuous else None)
        return regress(q if self.continuous else chosen(q, batch["action"]), target, batch)

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """V (B,)."""
        return self.calls["value/"](vector, state, obs, normalization(state), None)[0]
