"""Proximal policy optimisation with the adaptive KL penalty.

Source: notes 1.10, the first of its two variants; Schulman et al. 2017, section 4 (https://arxiv.org/abs/1707.06347),
with GAE (Schulman et al. 2016).

    repeat
      1. play T steps in N environments with pi_old
      2. A_t = sum_l (gamma lambda)^l delta_{t+l},  R_t = A_t + V(s_t)                 returns.generalized_advantage
      3. for every epoch, for every minibatch: one step of Adam on the mean of
             -rho A + beta KL(pi_old(.|s) || pi(.|s))                                  losses.penalised_surrogate_loss
             + c_v 1/2 (V(s) - R)^2                                                    losses.value_loss
             - c_e H(pi(.|s))
      4. d = mean of KL(pi_old(.|s) || pi(.|s)) over the rollout's states;
         beta <- beta / 2 if d < d_targ / 1.5,  2 beta if d > 1.5 d_targ               losses.adapt_kl_coef

The KL is that of the whole distributions, not an estimate from the actions taken. beta is part of the agent's state,
one for each member, and changes once per rollout, after the last epoch.

Differences from the notes: they print KL(pi || pi_old), which ``kl_direction`` "new_old" takes in steps 3 and 4; states
are weighted without gamma^t (errata 1.1); the value and entropy terms are those of the paper's Eq. 9. Details beyond
the paper, each switchable: advantages standardised per minibatch, gradient norm clipped, learning rate on a linear
schedule, advantages and targets corrected by V-trace at every epoch after the first (Espeholt et al. 2018).

With ``objective`` "average" (notes 1.8) what is maximised is the average reward per step: TD errors are
r - gain + v(s') - v(s), without a discount, the gain being a running estimate (Ma et al. 2021, Zhang & Ross 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from steepest.agents.rollout_updates import (
    Batch,
    RolloutAgent,
    all_sequences,
    batch_distribution,
    batch_inputs,
    distribution_to_batch,
    mean_loss,
    value_of,
)
from steepest.algorithms.configs.ppo_kl import PPOKLConfig
from steepest.distributions import Distribution
from steepest.learner.lifting import Lift
from steepest.learner.step import Hyper, Metrics, State
from steepest.losses import adapt_kl_coef, kl_estimate, penalised_surrogate_loss, value_loss
from steepest.numerics import standardize, weighted_mean
from steepest.types import Rollout


class PPOKL(RolloutAgent):
    """PPO with the adaptive KL penalty, over one or several members."""

    algorithm = "ppo_kl"
    Config = PPOKLConfig
    config: PPOKLConfig
    lifts: ClassVar[Mapping[str, Lift]] = {**RolloutAgent.lifts, "adapt": Lift("adapt")}
    hyper_fields = (*RolloutAgent.hyper_fields, "target_kl")

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        kl_coef = torch.full((self.members,), self.config.kl_coef, device=self.device)
        return {**super()._initial_state(modules), "kl_coef": kl_coef}

    def remember(self, policy: Distribution) -> Batch:
        return distribution_to_batch("old_policy", policy, self.sequence_length)

    def divergence(self, policy: Distribution, batch: Batch) -> Tensor:
        """Return the KL in nats at every step, of the policy that acted and this one, in the configured direction."""
        new = cast(Any, policy)
        old = cast(Any, batch_distribution("old_policy", batch, type(policy)))
        return old.kl(new) if self.config.kl_direction == "old_new" else new.kl(old)

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the mean loss of a minibatch and its metrics; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, weight, advantage = output.distribution, batch["weight"], batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, weight)
        log_prob, old_log_prob = policy.log_prob(batch["action"]), batch["log_prob"]
        kl = self.divergence(policy, batch)
        surrogate = penalised_surrogate_loss(log_prob, old_log_prob, advantage, kl, state["kl_coef"])
        regression = value_loss(value_of(output), batch["target"])
        loss, metrics = mean_loss(surrogate, regression, policy.entropy(), weight, hyper)
        return loss, {**metrics, "approx_kl": weighted_mean(kl_estimate(log_prob, old_log_prob), weight)}

    def adapt(self, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Return the penalty's next coefficient, from how far the update went with this one; pure, one member."""
        whole = all_sequences(batch)
        policy = self.forward(state["params"], state, batch_inputs(whole), with_value=False).distribution
        kl = weighted_mean(self.divergence(policy, whole), whole["weight"])
        kl_coef = adapt_kl_coef(state["kl_coef"], kl, hyper["target_kl"])
        return {"kl_coef": kl_coef}, {"kl": kl, "kl_coef": state["kl_coef"]}

    def improve(self, state: State, rollout: Rollout, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take the gradient steps of all members, then adapt the penalty once."""
        state, metrics = super().improve(state, rollout, batch, hyper)
        adapted, distance = self.over_members["adapt"](state, batch, hyper)
        return {**state, **adapted}, {**metrics, **distance}
