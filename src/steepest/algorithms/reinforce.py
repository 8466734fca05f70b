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

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

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
from steepest.agents.statistics import scale_rewards, state_weights
from steepest.algorithms.configs.reinforce import REINFORCEConfig
from steepest.learner.lifting import Lift
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.numerics import standardize, weighted_mean
from steepest.returns import end_recorded, full_return, reward_to_go, steps_recorded
from steepest.types import Rollout


class REINFORCE(RolloutAgent):
    """REINFORCE over one or several members."""

    algorithm = "reinforce"
    Config = REINFORCEConfig
    config: REINFORCEConfig
    lifts: ClassVar[Mapping[str, Lift]] = {
        "prepare": RolloutAgent.lifts["prepare"],
        "step": Lift("gradient_step", differentiates=True),
        "merge": RolloutAgent.lifts["merge"],
    }
    hyper_fields = ("gamma", "learning_rate", "value_coef", "entropy_coef", "max_gradient_norm")

    @property
    def standardizes(self) -> bool:
        return self.config.normalize_advantage and self.config.baseline == "value"

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Return the return in the form asked for, less the baseline, and the value's target; pure, one member."""
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
        """Return the mean loss of a rollout and its metrics; gradient through ``vector`` alone."""
        advantage, weight = batch["advantage"], batch["weight"]
        if self.standardizes:
            advantage = standardize(advantage, weight)
        elif self.config.normalize_advantage:
            advantage = advantage / (weighted_mean(advantage.square(), weight).sqrt() + 1e-8)
        return score_loss(self.forward(vector, state, batch_inputs(batch)), advantage, batch, hyper)

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on the whole rollout; pure, one member."""
        new, metrics = super().gradient_step(gradient, state, all_sequences(batch), hyper)
        # Where no step counts, Adam's moments would go on moving what nothing was learned about.
        counts = batch["weight"].sum() > 0.0
        return {k: torch.where(counts, x, state[k]) for k, x in new.items()}, metrics

    def improve(self, state: State, rollout: Rollout, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one gradient step of all members."""
        del rollout
        return self.over_members["step"](state, batch, hyper)
