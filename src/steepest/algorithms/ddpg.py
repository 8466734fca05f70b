"""Deep deterministic policy gradient.

Source: notes 1.11, off-policy, with networks for mu and Q; Lillicrap et al. 2016 (https://arxiv.org/abs/1509.02971).

    repeat
      1. play a step with a = mu(s) + noise, an Ornstein-Uhlenbeck process, put it into the replay buffer
                                                                                          numerics.correlated
      2. for a minibatch of the buffer, one step of Adam on the critic's mean of 1/2 (Q(s, a) - y)^2
                                                                                          losses.value_loss
             y = r + gamma (1 - terminated) Q'(s', mu'(s'))                               losses.q_learning_target
      3. one step of Adam on the policy's mean of -Q(s, mu(s))                    losses.deterministic_policy_loss
      4. Q' and mu' move towards Q and mu                                                 agents.replay_updates.track

Differences from the notes: networks, a replay buffer and target networks. grad_theta Q is dropped, as in the notes.
Differences from the paper: no weight decay, no batch normalisation, and actions enter the critic's first layer.
Actions are in units of half their range throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from steepest.agents.agent import Agent, normalization
from steepest.agents.config import PolicyAndCriticConfig
from steepest.agents.replay_updates import Batch, Noise, batch_obs, descend, sample_weight, track, unrolled
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import deterministic_policy_loss, q_learning_target, value_loss
from steepest.networks.config import NetworkFactory, schedule_factor
from steepest.networks.critics import QEnsemble
from steepest.networks.inputs import PolicyInput
from steepest.networks.policies import DeterministicPolicy
from steepest.types import Obs


@dataclass(frozen=True, kw_only=True)
class DDPGConfig(PolicyAndCriticConfig):
    """Deep deterministic policy gradient."""

    learning_rate: float = 1e-4
    """Adam's step size of the policy at the start."""
    critic_learning_rate: float = 1e-3
    """Adam's step size of the critic at the start."""
    target_update_rate: float = 0.001
    """Weight of the new in the moving average that the target networks are."""
    exploration_std: float = 0.38
    """Standard deviation of the noise added while playing, in units of half the action's range; with noise_correlation
    0.85 this is the paper's process (theta 0.15, sigma 0.2)."""
    noise_correlation: float = 0.85
    """What share of that noise stays in the next step: 0 is white, 0.85 the Ornstein-Uhlenbeck process of the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.exploration_std > 0, "exploration_std", self.exploration_std, "a positive number")
        require(0 <= self.noise_correlation < 1, "noise_correlation", self.noise_correlation, "in [0, 1)")


class DDPG(Agent):
    """DDPG over one or several members."""

    algorithm = "ddpg"
    Config = DDPGConfig
    config: DDPGConfig
    regime = "off-policy"
    action_kinds = ("box",)
    bounded = True
    squash = "clip"

    def __init__(self, config: DDPGConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._steps = self.learner.lift(self.gradient_steps, differentiates=True)

    @classmethod
    def planned_work(cls, config: DDPGConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        return config.batch_size, int(max(0, total_steps - config.learning_starts) * config.update_ratio)

    def networks(self, network: NetworkFactory | None) -> dict[str, nn.Module]:
        config, specs = self.config, (self.obs_spec, self.action_spec)
        return {
            "": DeterministicPolicy(config, *specs, network, exploration_std=config.exploration_std),
            "critic/": QEnsemble(config, self.obs_spec, network, critics=1, actions=self.action_spec.dimension),
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
        )

    def update_noise(self, updates: int) -> Noise:
        del updates
        return {}

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
        """One step of the critic, of the policy and of their targets."""
        del noise, with_policy  # nothing here is random, and the policy is never left out
        target = self.target(state, batch)
        loss = partial(self.critic_loss, state=state, batch=batch, target=target)
        slope, (_, metrics) = gradient(loss, state["critic/params"])
        error = metrics.pop("error")
        state, norm = descend(state, "critic/", slope, hyper["critic_learning_rate"], hyper["max_gradient_norm"])
        metrics["critic_gradient_norm"] = norm
        slope, (_, found) = gradient(partial(self.policy_loss, state=state, batch=batch), state["params"])
        state, norm = descend(state, "", slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        metrics |= {**found, "policy_gradient_norm": norm}
        for of, source in (("target/params", "critic/params"), ("target_policy/params", "params")):
            state = track(state, of, source, hyper["target_update_rate"])
        return state, metrics, error

    def target(self, state: State, batch: Batch) -> Tensor:
        """What the critic is pulled to, (B,)."""
        obs = batch_obs(batch, "next_obs/")
        q = self.q(state["target/params"], state, obs, self.policy(state["target_policy/params"], state, obs))[0]
        return q_learning_target(batch["reward"], q, batch["terminated"], batch["discount"])

    def critic_loss(self, vector: Tensor, state: State, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        """The critic's mean loss; gradient through ``vector`` alone."""
        q = self.q(vector, state, batch_obs(batch, "obs/"), batch["action"].clamp(-1.0, 1.0))
        loss = (sample_weight(batch) * value_loss(q, target)).mean(-1).sum()
        return loss, {"critic_loss": loss, "q_mean": q.mean(), "error": (q - target).abs().mean(0)}

    def policy_loss(self, vector: Tensor, state: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """The policy's mean loss; gradient through ``vector`` alone, the critic's fixed."""
        obs = batch_obs(batch, "obs/")
        q = self.q(state["critic/params"], state, obs, self.policy(vector, state, obs))[0]
        loss = deterministic_policy_loss(q).mean()
        return loss, {"policy_loss": loss}

    def policy(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """mu(s) in [-1, 1], (B, D)."""
        inputs = PolicyInput(obs, None, None, None, None)
        return self.forward(vector, state, inputs, with_value=False).distribution.mode()

    def q(self, vector: Tensor, state: State, obs: Obs, action: Tensor) -> Tensor:
        """Q (1, B) of actions in [-1, 1]."""
        return self.calls["critic/"](vector, state, obs, normalization(state), action)
