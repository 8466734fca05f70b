"""Off-policy actor-critic: a policy learns from what another one does.

Source: notes 1.6; Degris, White & Sutton 2012 (https://arxiv.org/abs/1205.4839); the emphatic form of Imani, Graves &
White 2018; the critic's correction for networks of Bhatnagar et al. 2009.

    repeat
      1. play T steps in N environments with the behaviour policy beta
      2. for every time step, in order, over the N environments:
             rho   = pi(a|s) / beta(a|s)
             delta = r + gamma (1 - terminated) V(s') - V(s)                              returns.td_error
             F     = gamma rho_before F + i,   M = (1 - lambda_a) i + lambda_a F           losses.followon_trace
             e     = rho (grad V(s) + gamma lambda e)                                      losses.eligibility_trace
             u     = rho (M grad log pi(a|s) + gamma lambda u)
             v     <- v + alpha_v mean[delta e - gamma (1 - lambda) (e . w) grad V(s')]    losses.tdc_direction
             w     <- w + alpha_w mean[delta e - (grad V(s) . w) grad V(s)]                losses.auxiliary_direction
             theta <- theta + alpha mean[delta u]

Linear features (``hidden_sizes=()``, or a network without parameters such as ``TileCoding``) make this GTD(lambda) as
published. Of a network, grad V takes the features' place, and ``losses.curvature_direction`` adds what its curvature
does to the projected error. Interest i is 1 (states as they are met, d^beta) or gamma^t (p^beta, the notes' weighting).

Differences from the notes: the critic, which they only name; both weightings; emphasis, which brings back the term that
they drop. From the papers: N environments share one set of weights, which move by the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]

from steepest.agents.acting import Actor
from steepest.agents.agent import Agent
from steepest.agents.behaviour import act_as, read_behaviour, scored_by
from steepest.agents.replay_updates import batch_obs
from steepest.agents.statistics import scale_rewards
from steepest.agents.stepwise import Batch, StepwiseAgent, acting_inputs, one_input, shortened, step_batch
from steepest.algorithms.configs.off_pac import OffPACConfig
from steepest.distributions import softened
from steepest.errors import UsageError
from steepest.learner.step import Hyper, Metrics, State
from steepest.losses import (
    auxiliary_direction,
    curvature_direction,
    eligibility_trace,
    emphatic_weight,
    followon_trace,
    tdc_direction,
)
from steepest.networks.inputs import PolicyInput
from steepest.returns import td_error
from steepest.types import Obs, Rollout

CRITIC, CURVATURE, ACTOR = "critic_trace", "curvature_trace", "actor_trace"
FOLLOWON, RATIO = "followon", "previous_ratio"


class OffPAC(StepwiseAgent):
    """Off-PAC over one or several members."""

    algorithm = "off_pac"
    Config = OffPACConfig
    learns_from_logs = True
    config: OffPACConfig
    hyper_fields = (*StepwiseAgent.hyper_fields, "trace_decay", "emphasis_decay", "max_ratio")
    per_environment = ("return_carry", CRITIC, CURVATURE, ACTOR, FOLLOWON, RATIO)

    def __init__(self, config: OffPACConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        weights = self.state["params"]
        self.state["auxiliary"] = torch.zeros_like(weights)
        for name in (CRITIC, CURVATURE, ACTOR):
            self.state[name] = weights.new_zeros((self.members, self.num_envs, weights.shape[-1]))
        for name in (FOLLOWON, RATIO):
            self.state[name] = weights.new_zeros((self.members, self.num_envs))
        self.other: Agent | None = None
        self._behave = {fused: self.learner.lift(self.behave, compile=fused) for fused in (False, True)}

    # Behaving

    def read_others(self, read: Callable[[Path], Agent]) -> None:
        if self.config.behaviour_agent is not None:
            self.other = read_behaviour(self, self.config.behaviour_agent, read)

    def behave(
        self, state: State, obs: Obs, noise: Tensor, mask: Tensor | None, start: None, memory: None, hyper: None
    ) -> tuple[Tensor]:
        """Return actions of the softened policy; pure, one member."""
        del start, memory, hyper
        policy = self.forward(state["params"], state, PolicyInput(obs, mask, None, None, None), False).distribution
        return (softened(policy, self.config.behaviour_epsilon).sample(noise),)

    def _behaving(self) -> Agent | None:
        """Return the agent that behaves instead of the softened policy, if there is one."""
        if self.other is None and self.config.behaviour_agent is not None:
            raise UsageError(
                f"behaviour_agent is {self.config.behaviour_agent!r}, which was not read: train in a steepest.Run, or "
                "give read_others(...) what reads it"
            )
        return self.other

    def behaviour(self, *, fused: bool = False) -> Actor:
        other = self._behaving()
        if other is not None:
            return act_as(other.actor(), self.members, self.num_envs)
        state = {k: v for k, v in self.state.items() if k == "params" or k.startswith(("buffers/", "obs_"))}
        lifted = self._behave[fused].bind(state)

        def act(*arguments: Any) -> tuple[Tensor, None]:
            return lifted(*arguments, None)[0], None

        return act

    # Learning

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch]:
        """Return scaled rewards and the behaviour's log-probabilities, by time step (T, N); pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        log_prob = rollout.behaviour_log_prob
        if log_prob is None:
            policy = self.forward(state["params"], state, acting_inputs(rollout), False).distribution
            log_prob = softened(policy, self.config.behaviour_epsilon).log_prob(rollout.action)
        batch = {**step_batch(rollout, reward), "behaviour_log_prob": log_prob}
        return statistics, batch

    def log_prob(self, vector: Tensor, state: State, obs: Obs, action: Tensor, mask: Tensor | None) -> Tensor:
        """Return log pi of one action, a scalar; pure."""
        policy = self.forward(vector, state, one_input(obs, mask), False).distribution
        return policy.log_prob(action.unsqueeze(0)).squeeze(0)

    def time_step(self, state: State, step: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one time step of N environments; return the state and metrics summed; pure, one member."""
        vector, w, gamma, decay = state["params"], state["auxiliary"], hyper["gamma"], hyper["trace_decay"]
        obs, next_obs = batch_obs(step, "obs/"), batch_obs(step, "next_obs/")
        mask = step.get("action_mask")

        def bend(v: Tensor, one: Obs) -> Tensor:
            return grad(self.value)(v, state, one) @ w

        both = {k: torch.cat([x, next_obs[k]]) for k, x in obs.items()}
        features, values = cast(Any, vmap(grad_and_value(self.value), in_dims=(None, None, 0)))(vector, state, both)
        (feature, next_feature), (value, next_value) = features.chunk(2), values.chunk(2)
        curvature = cast(Tensor, vmap(grad(bend), in_dims=(None, 0))(vector, obs))
        axes = (None, None, 0, 0, None if mask is None else 0)
        score, log_prob = cast(Any, vmap(grad_and_value(self.log_prob), in_dims=axes))(
            vector, state, obs, step["action"], mask
        )
        start, terminated, truncated = step["episode_step"] == 0, step["terminated"], step["truncated"]
        ratio = (log_prob - step["behaviour_log_prob"]).exp().clamp(max=hyper["max_ratio"])
        delta = td_error(step["reward"], value, next_value, terminated, gamma)
        if self.config.state_weighting == "discounted":
            interest = gamma ** step["episode_step"].to(delta.dtype)
        else:
            interest = torch.ones_like(delta)
        followon = followon_trace(state[FOLLOWON], state[RATIO], interest, start, gamma)
        weight = emphatic_weight(followon, interest, hyper["emphasis_decay"])
        traces = {
            CRITIC: eligibility_trace(state[CRITIC], feature, ratio, start, gamma, decay),
            CURVATURE: eligibility_trace(state[CURVATURE], curvature, ratio, start, gamma, decay),
            ACTOR: eligibility_trace(state[ACTOR], weight.unsqueeze(-1) * score, ratio, start, gamma, decay),
        }
        critic = tdc_direction(delta, traces[CRITIC], next_feature, w, terminated, truncated, gamma, decay)
        critic = critic + curvature_direction(delta, feature @ w, curvature, traces[CURVATURE])
        auxiliary = auxiliary_direction(delta, traces[CRITIC], feature, w)
        directions = (critic, auxiliary, delta.unsqueeze(-1) * traces[ACTOR])
        counts = step["valid"].to(delta.dtype)
        share = counts / counts.sum().clamp(min=1.0)
        limit = hyper["max_gradient_norm"]
        critic, auxiliary, actor = (shortened(share @ x, limit) for x in directions)
        # What a row that decided nothing leaves in the traces is of no account: an episode begins behind it.
        traces |= {FOLLOWON: followon, RATIO: ratio}
        moved = {
            "params": vector + hyper["value_learning_rate"] * critic + hyper["policy_learning_rate"] * actor,
            "auxiliary": w + hyper["auxiliary_learning_rate"] * auxiliary,
        }
        totals = {
            "decided": counts.sum(),
            "td_error": delta.abs() @ counts,
            "value_mean": value @ counts,
            "ratio_mean": ratio @ counts,
            "emphasis_mean": weight @ counts,
            "gradient_norm": torch.linalg.vector_norm(actor) * counts.sum(),
        }
        return {**state, **traces, **moved}, totals

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        if rollout.behaviour_log_prob is None:
            other = self._behaving()
            rollout = rollout if other is None else scored_by(other, rollout)
        return super().update(rollout, progress)

    def begin_pass(self) -> None:
        for name in (CRITIC, CURVATURE, ACTOR, FOLLOWON):  # parts of the log begin in the middle of an episode
            self.state[name] = torch.zeros_like(self.state[name])
