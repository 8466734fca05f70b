"""REINFORCE in the three forms that the notes develop, each one line from the next.

Source: notes 1.2 to 1.4; Williams 1992.

    repeat
      1. play T steps in N environments with pi_theta
      2. psi_t, how good what followed was, in one of three forms:
             1.2  R(tau) = sum_{t'=0} gamma^t' r_{t'}     the whole episode's return      returns.full_return
             1.3  G_t = sum_{t'=t} gamma^{t'-t} r_{t'}    what an action can change       returns.reward_to_go
             1.4  either less b(s_t)                      b = 0, the mean of psi, or v_phi(s_t)
      3. one step of Adam on the mean of
             -w_t log pi(a_t|s_t) psi_t,  w_t = 1 or gamma^t                              losses.score_function_loss
             + c_v 1/2 (v_phi(s_t) - G_t)^2                                               losses.value_loss
             - c_e H(pi(.|s_t))

Differences from the notes: the baseline is b(s_t), at the step whose action it judges (errata 1.4); the gradient is a
mean over steps, not over trajectories, which only rescales the step size; by default reward-to-go goes without gamma^t,
as practically everybody has it, which is not the gradient of the discounted objective (errata 1.1). R(tau) holds
gamma^t already. Reward-to-go less v_phi is the actor-critic with GAE at lambda = 1, to the last step.

A recording cuts episodes. Where it stops, v_phi stands for what would have followed, so v_phi is learned in every form,
or (``at_cut`` "drop") the steps of a cut episode do not count; where it begins within an episode, the rewards before it
are left out of R(tau), which no action in it has changed. Whole episodes need neither, and there every form is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.rollout_updates import (
    Batch,
    StateWeighting,
    all_sequences,
    batch_inputs,
    score_rollout,
    sequences_per_rollout,
    state_weights,
    to_sequences,
    training_batch,
)
from steepest.agents.statistics import scale_rewards, update_observations
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.learner.trees import to_host
from steepest.losses import score_function_loss, value_loss
from steepest.networks.config import PolicyConfig, Schedule, schedule_factor
from steepest.numerics import standardize, weighted_mean
from steepest.returns import end_recorded, full_return, reward_to_go, steps_recorded
from steepest.types import Rollout


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(PolicyConfig):
    """REINFORCE; by default with reward-to-go and a learned baseline."""

    estimator: Literal["full_return", "reward_to_go"] = "reward_to_go"
    """What multiplies the score of an action: its episode's whole return, or the rewards from the action on."""
    baseline: Literal["none", "average_return", "value"] = "value"
    """What is subtracted from it: nothing, its average over the rollout's steps, or the value function."""
    at_cut: Literal["bootstrap", "drop"] = "bootstrap"
    """What becomes of an episode that the rollout or a time limit cuts: "bootstrap" lets the value function stand for
    what would have followed; "drop" takes nothing from it: an episode ends with its time limit, and steps whose
    episode's end is not in the rollout do not count. A rollout without an end then changes nothing."""
    state_weighting: StateWeighting = "undiscounted"
    """Weigh step t alike with all others, or by gamma^t, for the gradient of the discounted objective itself. The whole
    return holds gamma^t already; of it, "discounted" weighs by the step that the recording began at."""
    rollout_steps: int = 128
    """Steps that every environment plays between updates (T)."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    gamma: float = 0.99
    """Discount factor."""
    value_coef: float = 0.5
    """Weight of the value function's loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """The gradient is scaled down to this norm if it is longer."""
    normalize_advantage: bool = True
    """Scale psi over the rollout, so that one step size serves rewards of any scale: standardised where the baseline is
    the value function, elsewhere only divided, by its root mean square, so as to add no baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rollout_steps >= 1, "rollout_steps", self.rollout_steps, "at least 1")
        for name in ("learning_rate", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        for name in ("value_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


class REINFORCE(Agent):
    """REINFORCE over one or several members."""

    algorithm = "reinforce"
    Config = REINFORCEConfig
    config: REINFORCEConfig

    def __init__(self, config: REINFORCEConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        standardizes = config.normalize_advantage and config.baseline == "value"
        sequences_per_rollout(self.num_envs, config.rollout_steps, self.sequence_length, 1, standardizes=standardizes)
        # A recurrent policy is unrolled over the whole rollout here: too long a graph to compile.
        self._prepare = self.learner.lift(self.prepare, compile=self.memory_size == 0)
        self._step = self.learner.lift(self.gradient_step, differentiates=True)
        self._merge = self.learner.lift(update_observations, compile=False)

    @classmethod
    def planned_work(cls, config: REINFORCEConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        return rows, total_steps // rows

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """The return in the form asked for, less the baseline, and the value function's target; pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        forward = partial(self.forward, state["params"], state)
        log_prob, value = score_rollout(forward, rollout, self.sequence_length)
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        counted, following, dropped = rollout, value, {}
        if self.config.at_cut == "drop":
            counted, following = rollout._replace(valid=end_recorded(*flags)), torch.zeros_like(value)
            dropped = {"counted_steps": weighted_mean(counted.valid.to(value.dtype), rollout.valid.to(value.dtype))}
        target = psi = reward_to_go(reward, following, *flags, hyper["gamma"])
        since = torch.zeros_like(psi)  # steps from where psi's discount is counted
        if self.config.estimator == "full_return":
            psi = full_return(reward, following, *flags, hyper["gamma"])
            since = steps_recorded(*flags, psi.dtype)
        if self.config.baseline == "average_return":
            psi = psi - weighted_mean(psi, counted.valid.to(psi.dtype))
        elif self.config.baseline == "value":
            psi = psi - hyper["gamma"] ** since * value[:-1]
        batch, metrics = training_batch(counted, self.sequence_length, log_prob, value, psi, target)
        if self.config.state_weighting == "discounted":
            weights = state_weights(rollout.episode_step[:-1] - since, hyper["gamma"])
            batch["state_weight"] = to_sequences(weights, self.sequence_length)
        return statistics, batch, {**metrics, **dropped}

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of a rollout and its health figures; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, value, weight = output.distribution, output.value, batch["weight"]
        assert value is not None
        advantage = batch["advantage"]
        if self.config.normalize_advantage and self.config.baseline == "value":
            advantage = standardize(advantage, weight)
        elif self.config.normalize_advantage:
            advantage = advantage / (weighted_mean(advantage.square(), weight).sqrt() + 1e-8)
        policy_loss = score_function_loss(policy.log_prob(batch["action"]), advantage)
        if self.config.state_weighting == "discounted":
            policy_loss = batch["state_weight"] * policy_loss
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
        new, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        # Where no step counts, Adam's moments would go on moving what nothing was learned about.
        counts = batch["weight"].sum() > 0.0
        return {k: torch.where(counts, x, state[k]) for k, x in new.items()}, {**metrics, "gradient_norm": norm}

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
