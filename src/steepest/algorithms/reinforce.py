"""REINFORCE with reward-to-go and a learned baseline.

Source: notes 1.2 to 1.4; Williams 1992.

    repeat
      1. play T steps in N environments with pi_theta
      2. G_t = r_t + gamma r_{t+1} + ...    (to the episode's end; V where the recording stops)    returns.reward_to_go
      3. one step of Adam on the mean of
             -log pi(a|s) (G_t - v_phi(s))                                         losses.score_function_loss
             + c_v 1/2 (v_phi(s) - G_t)^2                                          losses.value_loss
             - c_e H(pi(.|s))

Differences from the notes: the baseline is v_phi(s_t), at the step whose action it judges (errata 1.4); the gradient is
a mean over steps, not a sum over trajectories, which only rescales the step size; states are weighted without gamma^t
(errata 1.1); an episode that the recording cuts is continued by v_phi rather than dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steepest.agent import Agent
from steepest.errors import require
from steepest.learner import Gradient, Hyper, Metrics, State, adam_step, to_host
from steepest.losses import score_function_loss, value_loss
from steepest.networks import PolicyConfig, Schedule, schedule_factor
from steepest.numerics import standardize, weighted_mean
from steepest.on_policy import (
    Batch,
    all_sequences,
    batch_inputs,
    scale_rewards,
    score_rollout,
    sequences_per_rollout,
    training_batch,
    update_observations,
)
from steepest.returns import reward_to_go
from steepest.types import Rollout


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(PolicyConfig):
    """REINFORCE with reward-to-go and a learned baseline."""

    rollout_steps: int = 128
    """Steps that every environment plays between updates (T)."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    gamma: float = 0.99
    """Discount factor."""
    value_coef: float = 0.5
    """Weight of the baseline's loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """The gradient is scaled down to this norm if it is longer."""
    normalize_advantage: bool = True
    """Standardise advantages over the rollout, so that one step size serves rewards of any scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rollout_steps >= 1, "rollout_steps", self.rollout_steps, "at least 1")
        for name in ("learning_rate", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        for name in ("value_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


class REINFORCE(Agent):
    """REINFORCE with reward-to-go and a learned baseline, over one or several members."""

    algorithm = "reinforce"
    Config = REINFORCEConfig
    config: REINFORCEConfig

    def __init__(self, config: REINFORCEConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        sequences_per_rollout(self.num_envs, config.rollout_steps, self.sequence_length, 1)
        # A recurrent policy is unrolled over the whole rollout here: too long a graph to compile.
        self._prepare = self.learner.lift(self.prepare, compile=self.memory_size == 0)
        self._step = self.learner.lift(self.gradient_step, differentiates=True)
        self._merge = self.learner.lift(update_observations, compile=False)

    @classmethod
    def planned_work(cls, config: REINFORCEConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        return rows, total_steps // rows

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Reward-to-go less the baseline, and the baseline's target; pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        forward = partial(self.forward, state["params"], state)
        log_prob, baseline = score_rollout(forward, rollout, self.sequence_length)
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        target = reward_to_go(reward, baseline, *flags, hyper["gamma"])
        advantage = target - baseline[:-1]
        return statistics, *training_batch(rollout, self.sequence_length, log_prob, baseline, advantage, target)

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of a rollout and its health figures; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, value, weight = output.distribution, output.value, batch["weight"]
        assert value is not None
        advantage = batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, weight)
        policy_loss = score_function_loss(policy.log_prob(batch["action"]), advantage)
        regression = value_loss(value, batch["target"])
        entropy = policy.entropy()
        per_step = policy_loss + hyper["value_coef"] * regression - hyper["entropy_coef"] * entropy
        metrics = {
            "policy_loss": weighted_mean(policy_loss, weight),
            "value_loss": weighted_mean(regression, weight),
            "entropy": weighted_mean(entropy, weight),
        }
        return weighted_mean(per_step, weight), metrics

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """One step of Adam on the whole rollout; pure, one member."""
        slope, (_, metrics) = gradient(
            partial(self.loss, state=state, batch=all_sequences(batch), hyper=hyper), state["params"]
        )
        state, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        return state, {**metrics, "gradient_norm": norm}

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        config = self.config
        hyper = self.hyper(
            gamma=config.gamma,
            learning_rate=config.learning_rate * schedule_factor(config.learning_rate_schedule, progress),
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            max_gradient_norm=config.max_gradient_norm,
        )
        statistics, batch, critic = self._prepare(self.state, rollout, hyper)
        state = {**self.state, **statistics}
        state, metrics = self._step(state, batch, hyper)
        self.state = self._merge(state, rollout, hyper)
        return to_host({**metrics, **critic})
