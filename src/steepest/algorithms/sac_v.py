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

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steepest.agents.agent import Agent, normalization
from steepest.agents.config import PolicyAndCriticConfig
from steepest.agents.replay_updates import Batch, Noise, batch_obs, descend, sample_weight, track, unrolled
from steepest.distributions import Categorical, action_noise
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import expected_soft_value, soft_policy_loss, soft_q_target, soft_value_target, value_loss
from steepest.networks.config import NetworkFactory, schedule_factor
from steepest.networks.critics import QEnsemble
from steepest.networks.inputs import PolicyInput
from steepest.networks.policies import SquashedPolicy, unit_action
from steepest.types import Obs


@dataclass(frozen=True, kw_only=True)
class SACVConfig(PolicyAndCriticConfig):
    """Soft actor-critic with a value network."""

    temperature: float = 0.2
    """Reward that a nat of entropy is worth; the inverse of the paper's reward scale."""
    num_critics: int = 2
    """Q-functions, of which the least counts; 1 is the notes' form."""
    min_log_std: float = -5.0
    """The policy's log standard deviation, before tanh, is clipped from below here."""
    max_log_std: float = 2.0
    """And from above here."""
    min_probability: float = 1e-6
    """No legal discrete action's probability falls below this: the policy is mixed with the uniform one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")
        require(self.num_critics >= 1, "num_critics", self.num_critics, "at least 1")
        require(0 <= self.min_probability < 0.5, "min_probability", self.min_probability, "in [0, 0.5)")
        require(self.min_log_std < self.max_log_std, "min_log_std", self.min_log_std, "below max_log_std")


class SACV(Agent):
    """Soft actor-critic with a value network, over one or several members."""

    algorithm = "sac_v"
    Config = SACVConfig
    config: SACVConfig
    regime = "off-policy"
    action_kinds = ("box", "discrete")
    bounded = True
    squash = "tanh"
    noise_correlation = 0.0

    def __init__(self, config: SACVConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._steps = self.learner.lift(self.gradient_steps, differentiates=True)

    @classmethod
    def planned_work(cls, config: SACVConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = config.batch_size * config.num_critics
        return rows, int(max(0, total_steps - config.learning_starts) * config.update_ratio)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs = self.config, (self.obs_spec, self.action_spec)
        log_std = (config.min_log_std, config.max_log_std)
        actions = self.action_spec.dimension if self.continuous else 0
        choices = None if self.continuous else self.action_spec.sizes[0]
        critics = config.num_critics
        return {
            "": SquashedPolicy(config, *specs, network, log_std=log_std, min_probability=config.min_probability),
            "critic/": QEnsemble(config, self.obs_spec, network, critics=critics, actions=actions, choices=choices),
            "value/": QEnsemble(config, self.obs_spec, network, critics=1),
        }

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        state["target/params"] = state["value/params"].clone()
        self.layouts["target/"] = self.layouts["value/"]
        return state

    @property
    def continuous(self) -> bool:
        return self.action_spec.kind == "box"

    # What the loop asks for

    def hyperparameters(self, progress: float) -> Hyper:
        config = self.config
        factor = schedule_factor(config.learning_rate_schedule, progress)
        return self.hyper(
            learning_rate=config.learning_rate * factor,
            critic_learning_rate=config.critic_learning_rate * factor,
            max_gradient_norm=config.max_gradient_norm or math.inf,
            target_update_rate=config.target_update_rate,
            temperature=config.temperature,
        )

    def update_noise(self, updates: int) -> Noise:
        if not self.continuous:
            return {}  # all choices are summed over
        leading = (updates, self.config.batch_size)
        drawn = [action_noise(self.action_spec, leading, g) for g in self.generators]
        return {"action": torch.stack(drawn).to(self.device)}

    def update(self, batch: Batch, noise: Noise, hyper: Hyper) -> tuple[Metrics, Tensor]:
        self.state, metrics, errors = self._steps(self.state, batch, noise, hyper)
        return metrics, errors

    # The update: pure, one member

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[State, Metrics, Tensor]:
        """The gradient steps of one call, on minibatches (K, B, ...)."""
        return unrolled(partial(self.gradient_step, gradient, hyper), state, batch, noise, 1)

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
        return track(state, "target/params", "value/params", hyper["target_update_rate"]), metrics, error

    def policy_loss(
        self, vector: Tensor, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[Tensor, Metrics]:
        """The policy's mean loss and entropy, and soft values (B,) of the same draws; gradient through ``vector``."""
        obs, temperature = batch_obs(batch, "obs/"), hyper["temperature"]
        inputs = PolicyInput(obs, batch.get("action_mask"), None, None, None)
        policy = self.forward(vector, state, inputs, with_value=False).distribution
        if isinstance(policy, Categorical):
            q = self.q(state["critic/params"], state, obs, None).amin(0)
            value = expected_soft_value(q.detach(), policy.log_probs, temperature)
            loss, entropy, soft_value = -value, policy.entropy(), value.detach()
        else:
            action = policy.sample(noise["action"])
            log_prob = policy.log_prob(action)
            q = self.q(state["critic/params"], state, obs, action).amin(0)
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
        action = batch["action"]
        q = self.q(vector, state, batch_obs(batch, "obs/"), action if self.continuous else None)
        if not self.continuous:
            q = q.gather(-1, action.expand(len(q), -1).unsqueeze(-1)).squeeze(-1)
        loss = (sample_weight(batch) * value_loss(q, target)).mean(-1).sum()
        return loss, {"critic_loss": loss, "q_mean": q.mean(), "error": (q - target).abs().mean(0)}

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor | None) -> Tensor:
        """Q (C, B) of actions as the policy draws them, or (C, B, choices) of all discrete ones."""
        unit = None if action is None else unit_action(self.action_spec, action)
        return self.calls["critic/"](vector, state, obs, normalization(state), unit)

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """V (B,)."""
        return self.calls["value/"](vector, state, obs, normalization(state), None)[0]
