"""Squashed policies and soft values: the networks of soft actor-critic, and the steps of its policy and temperature.

``SoftAgent`` is what agents with a temperature share; an algorithm adds its critics' loss and ``gradient_step``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from steepest.agents.agent import normalization
from steepest.agents.config import SoftConfig, SquashedConfig
from steepest.agents.replay_updates import Batch, Noise, ReplayAgent, batch_obs, descend
from steepest.distributions import Categorical
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_state
from steepest.losses import expected_soft_value, soft_policy_loss, temperature_loss
from steepest.networks.config import NetworkFactory
from steepest.networks.policies import SquashedPolicy, unit_action
from steepest.types import ActionSpec, Obs, ObsSpec


def squashed_policy(
    config: SquashedConfig, obs_spec: ObsSpec, action_spec: ActionSpec, network: NetworkFactory | None
) -> SquashedPolicy:
    """Build a policy whose actions are squashed into their bounds, or mixed with the uniform one where discrete."""
    log_std = (config.min_log_std, config.max_log_std)
    floor = config.min_probability
    return SquashedPolicy(config, obs_spec, action_spec, network, log_std=log_std, min_probability=floor)


def soft_q(
    agent: ReplayAgent, vector: Tensor, state: State, obs: Obs, action: Tensor | None, *dropout: list[Tensor]
) -> Tensor:
    """Return Q (C, B) of actions as the policy draws them, or (C, B, choices) of all discrete ones; pure."""
    unit = None if action is None else unit_action(agent.action_spec, action)
    return agent.calls["critic/"](vector, state, obs, normalization(state), unit, *dropout)


class SoftAgent(ReplayAgent):
    """An agent with a squashed policy, several Q-functions, and a temperature that is given or learned."""

    action_kinds = ("box", "discrete")
    bounded = True
    squash = "tanh"
    targets: ClassVar[Mapping[str, str]] = {"target/": "critic/"}

    @property
    def settings(self) -> SoftConfig:
        """Return the config, as far as it is shared."""
        return cast(SoftConfig, self.config)

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        if self.settings.temperature is None:
            logs = torch.zeros((self.members, 1), device=self.device)
            state |= {f"temperature/{k}": v for k, v in adam_state(logs).items()}
        return state

    @property
    def continuous(self) -> bool:
        return self.action_spec.kind == "box"

    @property
    def target_entropy(self) -> float:
        """Nats; see the config."""
        if self.settings.target_entropy is not None:
            return self.settings.target_entropy
        return -float(self.action_spec.dimension) if self.continuous else 0.5 * math.log(self.action_spec.sizes[0])

    def hyperparameters(self, progress: float) -> Hyper:
        own = self.hyper(temperature=self.settings.temperature or 0.0, target_entropy=self.target_entropy)
        return super().hyperparameters(progress) | own

    def policy_and_temperature_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise
    ) -> tuple[State, Metrics]:
        """Take one step of Adam on the policy's loss and, where it is learned, on the temperature's; pure."""
        temperature = self.temperature(state, hyper)
        loss = partial(self.policy_loss, state=state, batch=batch, noise=noise, hyper=hyper)
        state, metrics = self.policy_step(gradient, state, loss, hyper)
        if self.settings.temperature is None:
            goal = self.entropy_goal(batch, hyper)
            loss = partial(self.temperature_loss, entropy=metrics["entropy"], target_entropy=goal)
            slope, _ = gradient(loss, state["temperature/params"])
            rates = (hyper["learning_rate"], hyper["max_gradient_norm"])
            state, _ = descend(state, "temperature/", slope, *rates)
        return state, {"temperature": temperature, **metrics}

    def policy_loss(
        self, vector: Tensor, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[Tensor, Metrics]:
        """The policy's mean loss and entropy; gradient through ``vector`` alone, the critics' parameters fixed."""
        obs, temperature = batch_obs(batch, "obs/"), self.temperature(state, hyper)
        policy = self.policy(vector, state, obs, batch.get("action_mask"))
        reduce = torch.Tensor.amin if self.settings.policy_q == "min" else torch.Tensor.mean
        if isinstance(policy, Categorical):
            q = reduce(self.q(state["critic/params"], state, obs, None, noise, "policy"), 0)
            loss = -expected_soft_value(q.detach(), policy.log_probs, temperature)
            entropy = policy.entropy()
        else:
            action = policy.sample(noise["action"])
            log_prob = policy.log_prob(action)
            q = reduce(self.q(state["critic/params"], state, obs, action, noise, "policy"), 0)
            loss, entropy = soft_policy_loss(log_prob, q, temperature), -log_prob
        return loss.mean(), {"policy_loss": loss.mean(), "entropy": entropy.mean()}

    def entropy_goal(self, batch: Batch, hyper: Hyper) -> Tensor:
        """The target entropy; the default of discrete actions is of those that are legal, in the mean of the batch."""
        mask = batch.get("action_mask")
        if mask is None or self.settings.target_entropy is not None:
            return hyper["target_entropy"]
        return 0.5 * mask.sum(-1).to(torch.float32).log().mean()

    def temperature_loss(self, vector: Tensor, entropy: Tensor, target_entropy: Tensor) -> tuple[Tensor, Metrics]:
        """The temperature's loss; gradient through its logarithm, ``vector`` (1,)."""
        return temperature_loss(vector.squeeze(-1), entropy, target_entropy), {}

    def temperature(self, state: State, hyper: Hyper) -> Tensor:
        """The temperature as it is now, ()."""
        if self.settings.temperature is not None:
            return hyper["temperature"]
        return state["temperature/params"].exp().squeeze(-1)

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor | None, noise: Noise, use: str) -> Tensor:
        """Return Q (C, B) of actions as the policy draws them, or (C, B, choices) of all discrete ones.

        ``use`` tells the passes of one gradient step apart, "target", "critic" and "policy"; ``noise`` is the step's.
        """
        del noise, use
        return soft_q(self, vector, state, obs, action)
