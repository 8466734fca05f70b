"""On-policy actor-critic: one gradient step per short rollout of many environments (what is known as A2C).

Source: notes 1.5, and 1.8 for the average reward; Mnih et al. 2016 (https://arxiv.org/abs/1602.01783), synchronous.

    repeat
      1. play T steps in N environments with pi_theta
      2. A_t, how much better an action was than V expects
             GAE, A_t = sum_l (gamma lambda)^l delta_{t+l}                        returns.generalized_advantage
             or n steps, A_t = sum_{l<n} gamma^l delta_{t+l}                      returns.n_step_advantage
         y_t, what V is fitted to
             bootstrapped, A_t + V(s_t)
             or Monte-Carlo, r_t + gamma r_{t+1} + ...                            returns.reward_to_go
      3. one step of Adam on the mean of
             -w_t log pi(a_t|s_t) A_t,  w_t = 1 or gamma^t                        losses.score_function_loss
             + c_v 1/2 (V(s_t) - y_t)^2                                           losses.value_loss
             - c_e H(pi(.|s_t))

With ``objective`` "average" every r is r - gain, gamma is 1, and the gain is a running estimate (Ma et al. 2021).

Differences from the notes: the advantage is that of step t, and targets are discounted and stop at termination (errata
1.5); by default states are weighted without gamma^t (errata 1.1). From the paper: environments step together instead of
in threads of their own, and Adam takes the place of RMSprop, as one optimiser for the whole library.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.average_reward import Objective, initial_gain, objective_rewards, pinned_target, refuse_termination
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
from steepest.agents.statistics import update_observations
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.learner.trees import to_host
from steepest.losses import score_function_loss, value_loss
from steepest.networks.config import PolicyConfig, Schedule, schedule_factor
from steepest.numerics import standardize, weighted_mean
from steepest.returns import generalized_advantage, n_step_advantage, reward_to_go
from steepest.types import Rollout


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(PolicyConfig):
    """On-policy actor-critic (A2C)."""

    rollout_steps: int = 16
    """Steps that every environment plays between updates (T). Short, so that a policy is soon improved; as long as a
    recurrent policy's sequences."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    objective: Objective = "discounted"
    """What is maximised: the discounted return, or the average reward per step of a problem that never terminates."""
    gamma: float = 0.99
    """Discount factor. Not used where the objective is the average reward."""
    gain_rate: float = 0.01
    """Weight of a new rollout in the running average reward, used only where that is the objective; 0 weighs all
    rollouts so far alike."""
    advantage: Literal["gae", "n_step"] = "gae"
    """How advantages are estimated: an exponential mean over all numbers of steps, or one number of steps."""
    gae_lambda: float = 1.0
    """GAE's trade of bias (0) against variance (1); 1 counts the rewards to the rollout's end, as A2C does. Of no use
    where advantage is "n_step", and refused there."""
    n_steps: int | None = None
    """Rewards in an n-step advantage; 1 is the TD error. Not the length of a rollout, which is rollout_steps. Asked for
    where advantage is "n_step", and refused elsewhere."""
    critic: Literal["bootstrapped", "monte_carlo"] = "bootstrapped"
    """What the value function is fitted to: the target of the advantage, or the rewards to the end of the episode (or
    of the rollout, where V goes on)."""
    state_weighting: StateWeighting = "undiscounted"
    """Weigh step t alike with all others, or by gamma^t, for the gradient of the discounted objective itself."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """The gradient is scaled down to this norm if it is longer."""
    normalize_advantage: bool = False
    """Standardise advantages over the rollout. A short rollout's deviation is a rough figure, hence not by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rollout_steps >= 1, "rollout_steps", self.rollout_steps, "at least 1")
        if self.advantage == "n_step":
            known = self.n_steps is not None and self.n_steps >= 1
            require(known, "n_steps", self.n_steps, 'at least 1 where advantage is "n_step"')
            require(self.gae_lambda == 1.0, "gae_lambda", self.gae_lambda, 'left alone where advantage is "n_step"')
        else:
            wish = 'None where advantage is "gae"; rollout_steps is the length of a rollout'
            require(self.n_steps is None, "n_steps", self.n_steps, wish)
        for name in ("learning_rate", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("gamma", "gain_rate", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("value_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        if self.objective == "average":  # which has no discount, and no discounted return to scale by
            require(not self.normalize_reward, "normalize_reward", True, 'False where objective is "average"')
            known = self.state_weighting == "undiscounted"
            require(known, "state_weighting", self.state_weighting, '"undiscounted" where objective is "average"')


class ActorCritic(Agent):
    """Synchronous advantage actor-critic over one or several members."""

    algorithm = "actor_critic"
    Config = ActorCriticConfig
    config: ActorCriticConfig

    def __init__(self, config: ActorCriticConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        sequences_per_rollout(
            self.num_envs, config.rollout_steps, self.sequence_length, 1, standardizes=config.normalize_advantage
        )
        if config.objective == "average":
            self.state |= initial_gain(self.members, self.device)
        # One call for everything: a cycle is so short that calls would dominate it. A recurrent policy is unrolled over
        # the whole rollout here: too long a graph to compile.
        self._learn = self.learner.lift(self.learn, differentiates=True, compile=self.memory_size == 0)

    @classmethod
    def planned_work(cls, config: ActorCriticConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        return rows, total_steps // rows

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Advantages, and the critic's targets; pure, one member."""
        config = self.config
        forward = partial(self.forward, state["params"], state)
        log_prob, value = score_rollout(forward, rollout, self.sequence_length)
        statistics, reward, gamma = objective_rewards(state, rollout, hyper)
        flags = (rollout.terminated, rollout.truncated, rollout.valid)
        if config.n_steps is not None:
            advantage = n_step_advantage(reward, value, *flags, gamma, config.n_steps)
        else:
            advantage = generalized_advantage(reward, value, *flags, gamma, hyper["gae_lambda"])
        target = advantage + value[:-1]
        if config.critic == "monte_carlo":
            target = reward_to_go(reward, value, *flags, gamma)
        if config.objective == "average":
            target = pinned_target(target, value[:-1], rollout.valid)
        batch, metrics = training_batch(rollout, self.sequence_length, log_prob, value, advantage, target)
        if config.state_weighting == "discounted":
            batch["state_weight"] = to_sequences(state_weights(rollout.episode_step[:-1], gamma), self.sequence_length)
        return statistics, batch, metrics

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of a rollout and its health figures; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, value, weight = output.distribution, output.value, batch["weight"]
        assert value is not None
        advantage = batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, weight)
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

    def learn(self, gradient: Gradient, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Metrics]:
        """One step of Adam on the whole rollout, and the statistics of what was seen; pure, one member."""
        statistics, batch, critic = self.prepare(state, rollout, hyper)
        state = {**state, **statistics}
        loss = partial(self.loss, state=state, batch=all_sequences(batch), hyper=hyper)
        slope, (_, metrics) = gradient(loss, state["params"])
        state, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        gain = {"gain": state["gain"]} if "gain" in state else {}
        return update_observations(state, rollout, hyper), {**metrics, "gradient_norm": norm, **critic, **gain}

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        config = self.config
        if config.objective == "average":
            refuse_termination(rollout)
        hyper = self.hyper(
            gamma=config.gamma,
            gain_rate=config.gain_rate,
            gae_lambda=config.gae_lambda,
            learning_rate=config.learning_rate * schedule_factor(config.learning_rate_schedule, progress),
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            max_gradient_norm=config.max_gradient_norm,
        )
        self.state, metrics = self._learn(self.state, rollout, hyper)
        return to_host(metrics)
