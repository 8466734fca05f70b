"""Twin delayed deep deterministic policy gradient.

Source: notes 1.11, off-policy, with networks for mu and Q; Fujimoto et al. 2018 (https://arxiv.org/abs/1802.09477).

    repeat
      1. play a step with a = mu(s) + exploration_std eps, put it into the replay buffer
      2. for a minibatch of the buffer, one step of Adam on both critics' means of 1/2 (Q_i(s, a) - y)^2
                                                                                          losses.value_loss
             a' = clip(mu'(s') + clip(target_noise eps, -c, c), -1, 1)                    losses.smoothed_action
             y = r + gamma (1 - terminated) min_i Q'_i(s', a')                            losses.q_learning_target
      3. every policy_delay-th time, one step of Adam on the policy's mean of -Q_1(s, mu(s))
                                                                                  losses.deterministic_policy_loss
         and mu', Q' move towards mu, Q                                                   agents.replay_updates.track

Differences from the notes, all the paper's: two critics and their minimum, smoothed target actions, slower policy and
targets. grad_theta Q is dropped, as in the notes. Actions are in units of half their range throughout.
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
from steepest.distributions import action_noise
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import deterministic_policy_loss, q_learning_target, smoothed_action, value_loss
from steepest.networks.config import NetworkFactory, schedule_factor
from steepest.networks.critics import QEnsemble, subset_minimum
from steepest.networks.inputs import PolicyInput
from steepest.networks.policies import DeterministicPolicy
from steepest.types import Obs


@dataclass(frozen=True, kw_only=True)
class TD3Config(PolicyAndCriticConfig):
    """Twin delayed deep deterministic policy gradient."""

    learning_rate: float = 1e-3
    """Adam's step size of the policy at the start."""
    critic_learning_rate: float = 1e-3
    """Adam's step size of the critics at the start."""
    updates_per_call: int = 2
    """Gradient steps fused into one call, from one set of samples; a multiple of policy_delay."""
    exploration_std: float = 0.1
    """Standard deviation of the noise added while playing, in units of half the action's range."""
    noise_correlation: float = 0.0
    """What share of that noise stays in the next step: 0 is white, 0.85 the usual Ornstein-Uhlenbeck process."""
    target_noise: float = 0.2
    """Standard deviation of the noise that smooths target actions."""
    target_noise_clip: float = 0.5
    """No target action moves further than this."""
    policy_delay: int = 2
    """Gradient steps of the critics per step of the policy and of the targets; divides updates_per_call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration_std", "target_noise_clip"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.target_noise >= 0, "target_noise", self.target_noise, "zero or more")
        require(0 <= self.noise_correlation < 1, "noise_correlation", self.noise_correlation, "in [0, 1)")
        require(self.policy_delay >= 1, "policy_delay", self.policy_delay, "at least 1")
        require(
            self.updates_per_call % self.policy_delay == 0,
            "updates_per_call",
            self.updates_per_call,
            f"a multiple of policy_delay ({self.policy_delay})",
        )


class TD3(Agent):
    """TD3 over one or several members."""

    algorithm = "td3"
    Config = TD3Config
    config: TD3Config
    regime = "off-policy"
    action_kinds = ("box",)
    bounded = True
    squash = "clip"

    def __init__(self, config: TD3Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._steps = self.learner.lift(self.gradient_steps, differentiates=True)

    @classmethod
    def planned_work(cls, config: TD3Config, total_steps: int, num_envs: int) -> tuple[int, int]:
        return 2 * config.batch_size, int(max(0, total_steps - config.learning_starts) * config.update_ratio)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs = self.config, (self.obs_spec, self.action_spec)
        return {
            "": DeterministicPolicy(config, *specs, network, exploration_std=config.exploration_std),
            "critic/": QEnsemble(config, self.obs_spec, network, critics=2, actions=self.action_spec.dimension),
        }

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        state = super()._initial_state(modules)
        for target, source in (("target/", "critic/"), ("target_policy/", "")):
            state[f"{target}params"] = state[f"{source}params"].clone()
            self.layouts[target] = self.layouts[source]
        return state

    # What the loop asks for

    @property
    def noise_correlation(self) -> float:
        return self.config.noise_correlation

    def hyperparameters(self, progress: float) -> Hyper:
        config = self.config
        factor = schedule_factor(config.learning_rate_schedule, progress)
        return self.hyper(
            learning_rate=config.learning_rate * factor,
            critic_learning_rate=config.critic_learning_rate * factor,
            max_gradient_norm=config.max_gradient_norm or math.inf,
            target_update_rate=config.target_update_rate,
            target_noise=config.target_noise,
            target_noise_clip=config.target_noise_clip,
        )

    def update_noise(self, updates: int) -> Noise:
        leading = (updates, self.config.batch_size)
        drawn = [action_noise(self.action_spec, leading, g) for g in self.generators]
        return {"next_action": torch.stack(drawn).to(self.device)}

    def update(self, batch: Batch, noise: Noise, hyper: Hyper) -> tuple[Metrics, Tensor]:
        self.state, metrics, errors = self._steps(self.state, batch, noise, hyper)
        return metrics, errors

    # The update: pure, one member

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, noise: Noise, hyper: Hyper
    ) -> tuple[State, Metrics, Tensor]:
        """The gradient steps of one call, on minibatches (K, B, ...)."""
        return unrolled(partial(self.gradient_step, gradient, hyper), state, batch, noise, self.config.policy_delay)

    def gradient_step(
        self, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, noise: Noise, with_policy: bool
    ) -> tuple[State, Metrics, Tensor]:
        """One step of the critics and, if it is due, of the policy and the targets."""
        target = self.target(state, batch, noise, hyper)
        loss = partial(self.critic_loss, state=state, batch=batch, target=target)
        slope, (_, metrics) = gradient(loss, state["critic/params"])
        error = metrics.pop("error")
        state, norm = descend(state, "critic/", slope, hyper["critic_learning_rate"], hyper["max_gradient_norm"])
        metrics["critic_gradient_norm"] = norm
        if with_policy:
            slope, (_, found) = gradient(partial(self.policy_loss, state=state, batch=batch), state["params"])
            state, norm = descend(state, "", slope, hyper["learning_rate"], hyper["max_gradient_norm"])
            metrics |= {**found, "policy_gradient_norm": norm}
            state = track(state, "target/params", "critic/params", hyper["target_update_rate"])
            state = track(state, "target_policy/params", "params", hyper["target_update_rate"])
        return state, metrics, error

    def target(self, state: State, batch: Batch, noise: Noise, hyper: Hyper) -> Tensor:
        """What the critics are pulled to, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        action = self.policy(state["target_policy/params"], state, obs)
        action = smoothed_action(action, noise["next_action"], hyper["target_noise"], hyper["target_noise_clip"])
        q = subset_minimum(self.q(state["target/params"], state, obs, action), None)
        return q_learning_target(batch["reward"], q, batch["terminated"], batch["discount"])

    def critic_loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        """The sum over critics of their mean losses; gradient through ``vector`` alone."""
        q = self.q(vector, state, batch_obs(batch, "obs/"), batch["action"].clamp(-1.0, 1.0))
        loss = (sample_weight(batch) * value_loss(q, target)).mean(-1).sum()
        return loss, {"critic_loss": loss, "q_mean": q.mean(), "error": (q - target).abs().mean(0)}

    def policy_loss(self, vector: Tensor, state: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """The policy's mean loss by the first critic; gradient through ``vector`` alone, the critic's fixed."""
        obs = batch_obs(batch, "obs/")
        q = self.q(state["critic/params"], state, obs, self.policy(vector, state, obs))[0]
        loss = deterministic_policy_loss(q).mean()
        return loss, {"policy_loss": loss}

    def policy(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """mu(s) in [-1, 1], (B, D)."""
        inputs = PolicyInput(obs, None, None, None, None)
        return self.forward(vector, state, inputs, with_value=False).distribution.mode()

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor) -> Tensor:
        """Q (2, B) of actions in [-1, 1]."""
        return self.calls["critic/"](vector, state, obs, normalization(state), action)
