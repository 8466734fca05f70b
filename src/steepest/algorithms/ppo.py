"""Proximal policy optimisation with the clipped objective.

Source: notes 1.10; Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), with GAE (Schulman et al. 2016).

    repeat
      1. play T steps in N environments with pi_old
      2. A_t = sum_l (gamma lambda)^l delta_{t+l},  R_t = A_t + V(s_t)                 returns.generalized_advantage
      3. for every epoch, for every minibatch: one step of Adam on the mean of
             -min(rho A, clip(rho, 1-eps, 1+eps) A)                                    losses.clipped_surrogate_loss
             + c_v 1/2 (V(s) - R)^2                                                    losses.value_loss
             - c_e H(pi(.|s))

Differences from the notes: states are weighted without gamma^t (errata 1.1); the value and entropy terms, which the
notes leave out, are those of the paper's Eq. 9. Details beyond the paper, each switchable: advantages standardised per
minibatch, gradient norm clipped, learning rate and clip range on linear schedules, target-KL stop, clipped value loss,
advantages and targets corrected by V-trace at every epoch after the first (Espeholt et al. 2018).

With ``objective`` "average" (notes 1.8) what is maximised is the average reward per step: TD errors are
r - gain + v(s') - v(s), without a discount, the gain being a running estimate (Ma et al. 2021, Zhang & Ross 2021).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from steepest.agents.rollout_updates import Batch, RolloutAgent, batch_inputs, mean_loss, value_of
from steepest.algorithms.configs.ppo import PPOConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.losses import clipped_surrogate_loss, clipped_value_loss, kl_estimate, value_loss
from steepest.numerics import standardize, weighted_mean
from steepest.types import Rollout


class PPO(RolloutAgent):
    """PPO-clip over one or several members."""

    algorithm = "ppo"
    Config = PPOConfig
    config: PPOConfig
    hyper_fields = (*RolloutAgent.hyper_fields, "clip_epsilon", "target_kl")

    def improve(self, state: State, rollout: Rollout, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take the gradient steps of all members, until a member passes its target KL."""
        state = {**state, "active": torch.ones_like(state["adam_count"])}
        state, metrics = super().improve(state, rollout, batch, hyper)
        del state["active"]
        return state, metrics

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the mean loss of a minibatch and its metrics; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, value, weight = output.distribution, value_of(output), batch["weight"]
        advantage = batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, weight)
        log_prob, old_log_prob = policy.log_prob(batch["action"]), batch["log_prob"]
        surrogate = clipped_surrogate_loss(log_prob, old_log_prob, advantage, hyper["clip_epsilon"])
        if self.config.value_clip is None:
            regression = value_loss(value, batch["target"])
        else:
            regression = clipped_value_loss(value, batch["value"], batch["target"], self.config.value_clip)
        loss, metrics = mean_loss(surrogate, regression, policy.entropy(), weight, hyper)
        ratio = torch.exp(log_prob - old_log_prob)
        clipped = ((ratio - 1.0).abs() > hyper["clip_epsilon"]).to(ratio.dtype)
        metrics["approx_kl"] = weighted_mean(kl_estimate(log_prob, old_log_prob), weight)
        metrics["clip_fraction"] = weighted_mean(clipped, weight)
        return loss, metrics

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on a minibatch, unless the target KL has been passed; pure, one member."""
        slope, (_, metrics) = gradient(partial(self.loss, state=state, batch=batch, hyper=hyper), state["params"])
        # After a target-KL stop the remaining steps change nothing: a mask, since a branch would not compile.
        active = state["active"] * (metrics["approx_kl"] <= 1.5 * hyper["target_kl"]).to(slope.dtype)
        new, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        state = {**state, **{k: torch.where(active > 0, new[k], state[k]) for k in _MOVED}, "active": active}
        return state, {**metrics, "gradient_norm": norm, "steps_taken": active}


_MOVED = ("params", "adam_mean", "adam_square", "adam_count")
