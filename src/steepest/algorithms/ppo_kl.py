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

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.agents.agent import Agent
from steepest.agents.average_reward import Objective, initial_gain, refuse_termination
from steepest.agents.rollout_updates import (
    Batch,
    all_sequences,
    batch_distribution,
    batch_inputs,
    corrected_batch,
    distribution_to_batch,
    each_minibatch,
    gae_and_target,
    members_indices,
    replay_rollout,
    run_epochs,
    sequences_per_rollout,
    training_batch,
)
from steepest.agents.statistics import update_observations
from steepest.distributions import Distribution
from steepest.errors import require
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.learner.trees import to_host
from steepest.losses import adapt_kl_coef, kl_estimate, penalised_surrogate_loss, value_loss
from steepest.networks.config import PolicyConfig, Schedule, schedule_factor
from steepest.numerics import standardize, weighted_mean
from steepest.types import Rollout


@dataclass(frozen=True, kw_only=True)
class PPOKLConfig(PolicyConfig):
    """Proximal policy optimisation with the adaptive KL penalty."""

    rollout_steps: int = 128
    """Steps that every environment plays between updates (T)."""
    epochs: int = 4
    """Passes over a rollout. More reuse samples better and strain the old policy's data more."""
    minibatches: int = 4
    """Gradient steps per epoch."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    objective: Objective = "discounted"
    """What is maximised: the discounted return, or the average reward per step of a problem that never terminates."""
    gamma: float = 0.99
    """Discount factor. Not used where the objective is the average reward."""
    gain_rate: float = 0.1
    """Weight of a new rollout in the running average reward. Used only where that is the objective."""
    gae_lambda: float = 0.95
    """GAE's trade of bias (0) against variance (1)."""
    target_kl: float = 0.01
    """How far one update should move the policy, in nats (d_targ). The best of the three that the paper tried."""
    kl_coef: float = 1.0
    """Weight of the penalty at the start (beta). Of little consequence, since it adapts within a few updates."""
    kl_direction: Literal["old_new", "new_old"] = "old_new"
    """KL(pi_old || pi_new) as in the paper, or KL(pi_new || pi_old) as printed in the notes."""
    value_coef: float = 0.5
    """Weight of the value loss; matters where policy and value function share a torso or the gradient is clipped."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """The gradient is scaled down to this norm if it is longer."""
    normalize_advantage: bool = True
    """Standardise advantages in every minibatch, so that one ``kl_coef`` serves rewards of any scale."""
    off_policy_correction: Literal["none", "vtrace"] = "none"
    """Whether every epoch after the first begins with advantages and targets anew, by V-trace."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rollout_steps", "epochs", "minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "target_kl", "kl_coef", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("gamma", "gain_rate", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("value_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        allowed = self.objective == "discounted" or not self.normalize_reward  # what scales is a discounted return
        require(allowed, "normalize_reward", self.normalize_reward, 'False where objective is "average"')


class PPOKL(Agent):
    """PPO with the adaptive KL penalty, over one or several members."""

    algorithm = "ppo_kl"
    Config = PPOKLConfig
    config: PPOKLConfig

    def __init__(self, config: PPOKLConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.sequences = sequences_per_rollout(
            self.num_envs,
            config.rollout_steps,
            self.sequence_length,
            config.minibatches,
            standardizes=config.normalize_advantage,
        )
        if config.objective == "average":
            self.state |= initial_gain(self.members, self.device)
        # A recurrent policy is unrolled over the whole rollout here: too long a graph to compile.
        self._prepare = self.learner.lift(self.prepare, compile=self.memory_size == 0)
        self._steps = self.learner.lift(self.gradient_steps, differentiates=True)
        self._correct = self.learner.lift(self.correct, compile=self.memory_size == 0)
        self._adapt = self.learner.lift(self.adapt)
        self._merge = self.learner.lift(update_observations, compile=False)

    def _initial_state(self, modules: list[dict[str, nn.Module]]) -> State:
        kl_coef = torch.full((self.members,), self.config.kl_coef, device=self.device)
        return {**super()._initial_state(modules), "kl_coef": kl_coef}

    @classmethod
    def planned_work(cls, config: PPOKLConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        return rows // config.minibatches, total_steps // rows * config.epochs * config.minibatches

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Advantages, value targets, old values and old distributions of a rollout; pure, one member."""
        forward = partial(self.forward, state["params"], state)
        old_policy, value = replay_rollout(forward, rollout, self.sequence_length)
        log_prob = old_policy.log_prob(rollout.action)
        statistics, advantage, target = gae_and_target(state, rollout, value, hyper)
        batch, critic = training_batch(rollout, self.sequence_length, log_prob, value, advantage, target)
        return statistics, {**batch, **distribution_to_batch("old_policy", old_policy, self.sequence_length)}, critic

    def divergence(self, policy: Distribution, batch: Batch) -> Tensor:
        """KL in nats at every step, between the policy that acted and this one, in the configured direction."""
        new = cast(Any, policy)
        old = cast(Any, batch_distribution("old_policy", batch, type(policy)))
        return old.kl(new) if self.config.kl_direction == "old_new" else new.kl(old)

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """The mean loss of a minibatch and its health figures; gradient through ``vector`` alone."""
        output = self.forward(vector, state, batch_inputs(batch))
        policy, value, weight = output.distribution, output.value, batch["weight"]
        assert value is not None
        advantage = batch["advantage"]
        if self.config.normalize_advantage:
            advantage = standardize(advantage, weight)
        log_prob, old_log_prob = policy.log_prob(batch["action"]), batch["log_prob"]
        kl = self.divergence(policy, batch)
        surrogate = penalised_surrogate_loss(log_prob, old_log_prob, advantage, kl, state["kl_coef"])
        regression = value_loss(value, batch["target"])
        entropy = policy.entropy()
        per_step = surrogate + hyper["value_coef"] * regression - hyper["entropy_coef"] * entropy
        metrics = {
            "policy_loss": weighted_mean(surrogate, weight),
            "value_loss": weighted_mean(regression, weight),
            "entropy": weighted_mean(entropy, weight),
            "approx_kl": weighted_mean(kl_estimate(log_prob, old_log_prob), weight),
        }
        return weighted_mean(per_step, weight), metrics

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """One step of Adam on a minibatch; pure, one member."""
        slope, (_, metrics) = gradient(partial(self.loss, state=state, batch=batch, hyper=hyper), state["params"])
        state, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        return state, {**metrics, "gradient_norm": norm}

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, indices: Tensor, hyper: Hyper
    ) -> tuple[State, Metrics]:
        """One step of Adam for each row of indices (K, B); pure, one member."""
        return each_minibatch(partial(self.gradient_step, gradient, hyper=hyper), state, batch, indices)

    def correct(self, state: State, rollout: Rollout, old_log_prob: Tensor, hyper: Hyper) -> Batch:
        """Advantages and value targets for the policy as it is now; pure, one member."""
        forward = partial(self.forward, state["params"], state)
        return corrected_batch(forward, state, rollout, old_log_prob, self.sequence_length, hyper)

    def adapt(self, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """The penalty's next coefficient, from how far the update went with this one; pure, one member."""
        whole = all_sequences(batch)
        policy = self.forward(state["params"], state, batch_inputs(whole), with_value=False).distribution
        kl = weighted_mean(self.divergence(policy, whole), whole["weight"])
        kl_coef = adapt_kl_coef(state["kl_coef"], kl, hyper["target_kl"])
        return {"kl_coef": kl_coef}, {"kl": kl, "kl_coef": state["kl_coef"]}

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        config = self.config
        if config.objective == "average":
            refuse_termination(rollout)
        hyper = self.hyper(
            gamma=config.gamma,
            gain_rate=config.gain_rate,
            gae_lambda=config.gae_lambda,
            learning_rate=config.learning_rate * schedule_factor(config.learning_rate_schedule, progress),
            target_kl=config.target_kl,
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
            max_gradient_norm=config.max_gradient_norm,
        )
        statistics, batch, critic = self._prepare(self.state, rollout, hyper)
        state = {**self.state, **statistics}
        indices = members_indices(self.sequences, config.minibatches, config.epochs, self.generators).to(self.device)

        def correct(state: State) -> Batch:
            return self._correct(state, rollout, batch["log_prob"], hyper)

        epochs = indices.chunk(config.epochs, dim=1) if config.off_policy_correction == "vtrace" else (indices,)
        state, metrics = run_epochs(self._steps, state, batch, epochs, hyper, correct)
        adapted, distance = self._adapt(state, batch, hyper)
        self.state = self._merge({**state, **adapted}, rollout, hyper)
        gain = {"gain": state["gain"]} if "gain" in state else {}
        return to_host({**metrics, **distance, **critic, **gain})
