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

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor

from steepest.agents.average_reward import gain_of, objective_rewards, pinned_target
from steepest.agents.rollout_updates import (
    Batch,
    RolloutAgent,
    all_sequences,
    batch_inputs,
    score_loss,
    score_rollout,
    to_sequences,
    training_batch,
)
from steepest.agents.statistics import state_weights, update_observations
from steepest.algorithms.configs.actor_critic import ActorCriticConfig
from steepest.learner.lifting import Lift
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.numerics import standardize
from steepest.returns import generalized_advantage, n_step_advantage, reward_to_go
from steepest.types import Rollout


class ActorCritic(RolloutAgent):
    """Synchronous advantage actor-critic over one or several members."""

    algorithm = "actor_critic"
    Config = ActorCriticConfig
    config: ActorCriticConfig
    # One call for everything: a cycle is so short that calls would dominate it.
    lifts: ClassVar[Mapping[str, Lift]] = {"learn": Lift("cycle", differentiates=True, unrolls=True)}

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Return advantages, and the critic's targets; pure, one member."""
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
        """Return the mean loss of a rollout and its metrics; gradient through ``vector`` alone."""
        advantage = batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, batch["weight"])
        return score_loss(self.forward(vector, state, batch_inputs(batch)), advantage, batch, hyper)

    def cycle(self, gradient: Gradient, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on the whole rollout, and merge what was observed; pure, one member."""
        statistics, batch, critic = self.prepare(state, rollout, hyper)
        state, metrics = self.gradient_step(gradient, {**state, **statistics}, all_sequences(batch), hyper)
        return update_observations(state, rollout, hyper), {**metrics, **critic, **gain_of(state)}

    def learn(self, rollout: Rollout, hyper: Hyper) -> tuple[State, Metrics]:
        return self.over_members["learn"](self.state, rollout, hyper)
