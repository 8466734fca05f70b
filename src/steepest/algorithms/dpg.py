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

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value, jacrev, vmap  # pyright: ignore[reportUnknownVariableType]

from steepest.agents.agent import Agent
from steepest.agents.statistics import scale_rewards, update_observations
from steepest.agents.stepwise import Batch, add_figures, mean_figures, observations, one_input, shortened, step_batch
from steepest.errors import require
from steepest.learner.step import Hyper, Metrics, State
from steepest.learner.trees import to_host
from steepest.losses import (
    auxiliary_direction,
    compatible_action_gradient,
    compatible_feature,
    deterministic_policy_direction,
    tdc_direction,
)
from steepest.networks.config import PolicyConfig, Schedule, schedule_factor
from steepest.returns import td_error
from steepest.types import Obs, Rollout


@dataclass(frozen=True, kw_only=True)
class DPGConfig(PolicyConfig):
    """Deterministic policy gradient with a compatible critic."""

    rollout_steps: int = 16
    """Steps that every environment plays before the weights follow, one time step after the other (T)."""
    steps_per_call: int = 2
    """Time steps fused into one call; more of them take longer to compile."""
    critic: Literal["sarsa", "q_learning", "gradient_q"] = "q_learning"
    """On-policy; off-policy (COPDAC-Q); off-policy with the correction of gradient TD (COPDAC-GQ)."""
    policy_learning_rate: float = 0.01
    """Step size of the policy (alpha)."""
    value_learning_rate: float = 0.05
    """Step size of the state value V (alpha_v)."""
    advantage_learning_rate: float = 0.05
    """Step size of the compatible weights (alpha_w)."""
    auxiliary_learning_rate: float = 0.05
    """Step size of the auxiliary weights of "gradient_q"."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" takes all of them to 0 over the run."""
    gamma: float = 0.99
    """Discount factor."""
    initial_std: float = 0.3
    """Standard deviation of the exploring behaviour around mu; it is not learned."""
    max_gradient_norm: float = 1.0
    """Each direction is scaled down to this norm if it is longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rollout_steps", "steps_per_call"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            self.rollout_steps % self.steps_per_call == 0,
            "steps_per_call",
            self.steps_per_call,
            f"a divisor of rollout_steps ({self.rollout_steps})",
        )
        for name in ("policy", "value", "advantage", "auxiliary"):
            value = getattr(self, f"{name}_learning_rate")
            require(value > 0, f"{name}_learning_rate", value, "a positive number")
        require(self.max_gradient_norm > 0, "max_gradient_norm", self.max_gradient_norm, "a positive number")
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(self.recurrent == "none", "recurrent", self.recurrent, '"none": the compatible critic has no memory')


class DPG(Agent):
    """COPDAC over one or several members."""

    algorithm = "dpg"
    Config = DPGConfig
    action_kinds = ("box",)
    config: DPGConfig

    def __init__(self, config: DPGConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        weights = self.state["params"]
        self.state["advantage"] = torch.zeros_like(weights)
        self.state["auxiliary"] = torch.zeros_like(torch.cat([weights, weights], dim=-1))
        self._prepare = self.learner.lift(self.prepare)
        self._steps = self.learner.lift(self.time_steps)
        self._merge = self.learner.lift(update_observations, compile=False)

    @classmethod
    def planned_work(cls, config: DPGConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        return num_envs, total_steps // num_envs

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch]:
        """Scaled rewards and what follows every step, by time step (T, N); pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        batch = step_batch(rollout, reward)
        # The last action stands in for the one after the rollout. Behind an episode's end nothing is decided.
        batch["next_action"] = torch.cat([rollout.action[1:], rollout.action[-1:]])
        batch["continues"] = torch.cat([rollout.valid[1:], torch.zeros_like(rollout.valid[-1:])])
        return statistics, batch

    def mean(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """mu (D,) of one observation, before the action meets its bounds; pure."""
        return self.forward(vector, state, one_input(obs), False).distribution.mode().squeeze(0)

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """V of one observation, a scalar; pure."""
        return cast(Tensor, self.forward(vector, state, one_input(obs)).value).squeeze(0)

    def time_step(self, state: State, step: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Everything of one time step over the environments (N), and its figures summed; pure, one member."""
        vector, w, gamma = state["params"], state["advantage"], hyper["gamma"]
        obs, next_obs = observations(step, "obs/"), observations(step, "next_obs/")
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

    def time_steps(self, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Several time steps in order, unrolled so that they cost one call; pure, one member."""
        totals: Metrics = {}
        for t in range(batch["reward"].shape[0]):
            state, figures = self.time_step(state, {k: x[t] for k, x in batch.items()}, hyper)
            totals = add_figures(totals, figures)
        return state, totals

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        config = self.config
        factor = schedule_factor(config.learning_rate_schedule, progress)
        rates = ("policy", "value", "advantage", "auxiliary")
        hyper = self.hyper(
            gamma=config.gamma,
            max_gradient_norm=config.max_gradient_norm,
            **{f"{name}_learning_rate": getattr(config, f"{name}_learning_rate") * factor for name in rates},
        )
        statistics, batch = self._prepare(self.state, rollout, hyper)
        state = {**self.state, **statistics}
        totals: Metrics = {}
        for first in range(0, batch["reward"].shape[1], config.steps_per_call):
            chunk = {k: x[:, first : first + config.steps_per_call] for k, x in batch.items()}
            state, figures = self._steps(state, chunk, hyper)
            totals = add_figures(totals, figures)
        self.state = self._merge(state, rollout, hyper)
        return to_host(mean_figures(totals))
