"""Deterministic policy gradient with a compatible critic (COPDAC).

Source: notes 1.11; Silver et al. 2014 (https://proceedings.mlr.press/v32/silver14.html), Sections 4.1 to 4.3.

    Q^w(s, a) = phi(s, a) . w + V(s),   J = d mu / d theta,
    phi(s, a) = J' (a - mu(s))                                                   losses.compatible_feature

    repeat
      1. play T steps in N environments, a = mu(s) + noise
      2. for every time step, in order, over the N environments:
             delta = r + gamma (1 - terminated) Q^w(s', a') - Q^w(s, a)                   returns.td_error
             w     <- w + alpha_w mean[delta phi(s, a)]
             v     <- v + alpha_v mean[delta grad V(s)]
             theta <- theta + alpha mean[J' J w]                              losses.deterministic_policy_direction

a' is the action that was taken next for the on-policy critic (``critic="sarsa"``), mu(s') for COPDAC-Q
(``"q_learning"``) and COPDAC-GQ (``"gradient_q"``), which adds the correction of gradient TD to w and v.

Differences from the paper: N environments share one set of weights; J and grad V may be those of networks; where no
action follows (truncation, the rollout's end) SARSA takes mu(s'); the correction's auxiliary weights regress on all
features of Q^w, as gradient-Q asks (Maei & Sutton 2010), where the paper's regress on phi(s, a) alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad_and_value, jacrev, vmap  # pyright: ignore[reportUnknownVariableType]

from steepest.agents.replay_updates import batch_obs
from steepest.agents.statistics import scale_rewards
from steepest.agents.stepwise import Batch, StepwiseAgent, one_input, shortened, step_batch
from steepest.algorithms.configs.dpg import DPGConfig
from steepest.learner.step import Hyper, Metrics, State
from steepest.losses import (
    auxiliary_direction,
    compatible_action_gradient,
    compatible_feature,
    deterministic_policy_direction,
    tdc_direction,
)
from steepest.returns import td_error
from steepest.types import Obs, Rollout


class DPG(StepwiseAgent):
    """COPDAC over one or several members."""

    algorithm = "dpg"
    Config = DPGConfig
    action_kinds = ("box",)
    config: DPGConfig
    hyper_fields = (*StepwiseAgent.hyper_fields, "advantage_learning_rate")

    def __init__(self, config: DPGConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        weights = self.state["params"]
        self.state["advantage"] = torch.zeros_like(weights)
        self.state["auxiliary"] = torch.zeros_like(torch.cat([weights, weights], dim=-1))

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch]:
        """Return scaled rewards and what follows every step, by time step (T, N); pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        batch = step_batch(rollout, reward)
        # The last action stands in for the one after the rollout. Behind an episode's end nothing is decided.
        batch["next_action"] = torch.cat([rollout.action[1:], rollout.action[-1:]])
        batch["continues"] = torch.cat([rollout.valid[1:], torch.zeros_like(rollout.valid[-1:])])
        return statistics, batch

    def mean(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """Return mu (D,) of one observation, before the action meets its bounds; pure."""
        return self.forward(vector, state, one_input(obs), False).distribution.mode().squeeze(0)

    def time_step(self, state: State, step: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one time step of N environments; return the state and metrics summed; pure, one member."""
        vector, w, gamma = state["params"], state["advantage"], hyper["gamma"]
        obs, next_obs = batch_obs(step, "obs/"), batch_obs(step, "next_obs/")
        both = {k: torch.cat([x, next_obs[k]]) for k, x in obs.items()}
        axes = (None, None, 0)
        slopes, values = cast(Any, vmap(grad_and_value(self.value), in_dims=axes))(vector, state, both)
        (slope, next_slope), (value, next_value) = slopes.chunk(2), values.chunk(2)
        jacobian = cast(Tensor, vmap(jacrev(self.mean), in_dims=axes)(vector, state, obs))
        mean = vmap(self.mean, in_dims=axes)(vector, state, obs)
        feature = compatible_feature(step["action"], mean, jacobian)
        if self.config.critic == "sarsa":
            next_jacobian = cast(Tensor, vmap(jacrev(self.mean), in_dims=axes)(vector, state, next_obs))
            next_mean = vmap(self.mean, in_dims=axes)(vector, state, next_obs)
            next_feature = compatible_feature(step["next_action"], next_mean, next_jacobian)
            next_value = next_value + torch.where(step["continues"], next_feature @ w, torch.zeros_like(next_value))
        q = feature @ w + value
        delta = td_error(step["reward"], q, next_value, step["terminated"], gamma)
        features = torch.cat([feature, slope], dim=-1)  # of Q^w: its gradient in (w, v)
        direction, auxiliary = delta.unsqueeze(-1) * features, torch.zeros_like(features)
        if self.config.critic == "gradient_q":
            u, flags = state["auxiliary"], (step["terminated"], step["truncated"])
            next_features = torch.cat([torch.zeros_like(feature), next_slope], dim=-1)  # mu(s') has no advantage
            direction = tdc_direction(delta, features, next_features, u, *flags, gamma, 0.0)
            auxiliary = auxiliary_direction(delta, features, features, u)
        actor = deterministic_policy_direction(jacobian, compatible_action_gradient(jacobian, w))
        counts = step["valid"].to(delta.dtype)
        share, limit = counts / counts.sum().clamp(min=1.0), hyper["max_gradient_norm"]
        by_advantage, by_value = (share @ direction).chunk(2)
        actor = share @ actor
        moved = {
            "params": vector
            + hyper["value_learning_rate"] * shortened(by_value, limit)
            + hyper["policy_learning_rate"] * shortened(actor, limit),
            "advantage": w + hyper["advantage_learning_rate"] * shortened(by_advantage, limit),
            "auxiliary": state["auxiliary"] + hyper["auxiliary_learning_rate"] * shortened(share @ auxiliary, limit),
        }
        totals = {
            "decided": counts.sum(),
            "td_error": delta.abs() @ counts,
            "value_mean": value @ counts,
            "gradient_norm": torch.linalg.vector_norm(actor) * counts.sum(),
        }
        return {**state, **moved}, totals
