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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]

from steepest.agents.agent import Actor, Agent
from steepest.agents.statistics import scale_rewards, update_observations
from steepest.agents.stepwise import (
    Batch,
    acting_inputs,
    add_figures,
    mean_figures,
    observations,
    one_input,
    shortened,
    step_batch,
)
from steepest.distributions import softened
from steepest.errors import UsageError, require
from steepest.experience.logs import LoggedExperience, logged_rollouts
from steepest.learner.step import Hyper, Metrics, State
from steepest.learner.trees import to_host
from steepest.losses import (
    auxiliary_direction,
    curvature_direction,
    eligibility_trace,
    emphatic_weight,
    followon_trace,
    tdc_direction,
)
from steepest.networks.config import PolicyConfig, Schedule, schedule_factor
from steepest.networks.inputs import PolicyInput
from steepest.returns import td_error
from steepest.types import Obs, Rollout

CRITIC, CURVATURE, ACTOR = "critic_trace", "curvature_trace", "actor_trace"
FOLLOWON, RATIO = "followon", "previous_ratio"


@dataclass(frozen=True, kw_only=True)
class OffPACConfig(PolicyConfig):
    """Off-policy actor-critic."""

    rollout_steps: int = 16
    """Steps that every environment plays before the weights follow, one time step after the other (T)."""
    steps_per_call: int = 2
    """Time steps fused into one call; more of them take longer to compile."""
    policy_learning_rate: float = 0.1
    """Step size of the policy (alpha)."""
    value_learning_rate: float = 0.1
    """Step size of the value function (alpha_v); the policy's should not be much larger."""
    auxiliary_learning_rate: float = 0.05
    """Step size of the critic's auxiliary weights (alpha_w); 0 is semi-gradient TD(lambda), which may diverge."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" takes all three to 0 over the run."""
    gamma: float = 0.99
    """Discount factor."""
    trace_decay: float = 0.4
    """lambda of the critic's and the actor's traces."""
    emphasis_decay: float = 0.0
    """lambda_a: 0 is Off-PAC; 1 follows the true off-policy gradient, with more variance."""
    state_weighting: Literal["undiscounted", "discounted"] = "undiscounted"
    """States count as often as the behaviour meets them, or by gamma^t within an episode."""
    behaviour_epsilon: float = 0.5
    """The behaviour is the policy mixed with the uniform one in this share: 1 is uniform. Of a Gaussian policy it has
    1 + epsilon times the standard deviation."""
    behaviour_agent: str | None = None
    """The file of a saved agent that behaves instead."""
    max_ratio: float = 10.0
    """Importance ratios are cut off here, which trades bias for variance; the published algorithm has no bound."""
    max_gradient_norm: float = 1.0
    """Each of the three directions is scaled down to this norm if it is longer."""

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
        for name in ("policy_learning_rate", "value_learning_rate", "max_ratio", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.auxiliary_learning_rate >= 0, "auxiliary_learning_rate", self.auxiliary_learning_rate, ">= 0")
        for name in ("gamma", "trace_decay", "emphasis_decay", "behaviour_epsilon"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        require(self.recurrent == "none", "recurrent", self.recurrent, '"none": traces need a policy without memory')


class OffPAC(Agent):
    """Off-PAC over one or several members."""

    algorithm = "off_pac"
    Config = OffPACConfig
    config: OffPACConfig
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
        self._prepare = self.learner.lift(self.prepare)
        self._steps = self.learner.lift(self.time_steps)
        self._merge = self.learner.lift(update_observations, compile=False)

    @classmethod
    def planned_work(cls, config: OffPACConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        return num_envs, total_steps // num_envs

    # Behaving

    def read_others(self, read: Callable[[Path], Agent]) -> None:
        path = self.config.behaviour_agent
        if path is None:
            return
        if not Path(path).is_file():
            raise UsageError(f"behaviour_agent is {path!r}, which is no file; give that of a saved agent")
        other = read(Path(path))
        if other.members != 1 or other.memory_size:
            raise UsageError("behaviour_agent must be a single agent without a recurrent cell; take one with member(i)")
        if (other.obs_spec, other.action_spec) != (self.obs_spec, self.action_spec):
            raise UsageError(f"{path} was trained on other observations or actions than these")
        if self.action_spec.kind == "box" and other.squash != self.squash:
            raise UsageError(
                f"{path} is an agent of {other.algorithm}, which squashes its actions by {other.squash}, and "
                f"{self.algorithm} by {self.squash}: its probabilities would be of other numbers. Take an agent of "
                "ppo, trpo or actor_critic."
            )
        self.other = other

    def behave(
        self, state: State, obs: Obs, noise: Tensor, mask: Tensor | None, start: None, memory: None, hyper: None
    ) -> tuple[Tensor]:
        """Actions of the softened policy; pure, one member."""
        del start, memory, hyper
        policy = self.forward(state["params"], state, PolicyInput(obs, mask, None, None, None), False).distribution
        return (softened(policy, self.config.behaviour_epsilon).sample(noise),)

    def _behaving(self) -> Agent | None:
        """Who behaves instead of the softened policy, if anybody is to."""
        if self.other is None and self.config.behaviour_agent is not None:
            raise UsageError(
                f"behaviour_agent is {self.config.behaviour_agent!r}, which was not read: train in a steepest.Run, or "
                "give read_others(...) what reads it"
            )
        return self.other

    def behaviour(self, *, fused: bool = False) -> Actor:
        other = self._behaving()
        if other is not None:
            return self._act_as(other.actor())
        state = {k: v for k, v in self.state.items() if k == "params" or k.startswith(("buffers/", "obs_"))}
        lifted = self._behave[fused].bind(state)

        def act(*arguments: Any) -> tuple[Tensor, None]:
            return lifted(*arguments, None)[0], None

        return act

    def _act_as(self, actor: Actor) -> Actor:
        """One agent in the environments of all members."""

        def act(obs: Obs, noise: Tensor | None, mask: Tensor | None, start: Any, memory: Any) -> tuple[Tensor, None]:
            def together(x: Tensor | None) -> Any:
                return None if x is None else x.flatten(0, 1).unsqueeze(0)

            action, _ = actor({k: together(x) for k, x in obs.items()}, together(noise), together(mask), None, None)
            return action.view(self.members, self.num_envs, *action.shape[2:]), None

        return act

    def _scored_by_other(self, other: Agent, rollout: Rollout) -> Rollout:
        state = {k: v[0] for k, v in other.state.items()}
        inputs = acting_inputs(rollout, time_axis=1)
        with torch.no_grad():
            policy = other.forward(state["params"], state, inputs, with_value=False).distribution
        return rollout._replace(behaviour_log_prob=policy.log_prob(rollout.action))

    # Learning

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch]:
        """Scaled rewards and the behaviour's log-probabilities, by time step (T, N); pure, one member."""
        statistics, reward = scale_rewards(state, rollout, hyper["gamma"])
        log_prob = rollout.behaviour_log_prob
        if log_prob is None:
            policy = self.forward(state["params"], state, acting_inputs(rollout), False).distribution
            log_prob = softened(policy, self.config.behaviour_epsilon).log_prob(rollout.action)
        batch = {**step_batch(rollout, reward), "behaviour_log_prob": log_prob}
        return statistics, batch

    def value(self, vector: Tensor, state: State, obs: Obs) -> Tensor:
        """V of one observation, a scalar; pure."""
        value = self.forward(vector, state, one_input(obs)).value
        return cast(Tensor, value).squeeze(0)

    def log_prob(self, vector: Tensor, state: State, obs: Obs, action: Tensor, mask: Tensor | None) -> Tensor:
        """log pi of one action, a scalar; pure."""
        policy = self.forward(vector, state, one_input(obs, mask), False).distribution
        return policy.log_prob(action.unsqueeze(0)).squeeze(0)

    def time_step(self, state: State, step: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Everything of one time step over the environments (N), and its figures summed; pure, one member."""
        vector, w, gamma, decay = state["params"], state["auxiliary"], hyper["gamma"], hyper["trace_decay"]
        obs, next_obs = observations(step, "obs/"), observations(step, "next_obs/")
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
        hyper = self.hyper(
            gamma=config.gamma,
            trace_decay=config.trace_decay,
            emphasis_decay=config.emphasis_decay,
            policy_learning_rate=config.policy_learning_rate * factor,
            value_learning_rate=config.value_learning_rate * factor,
            auxiliary_learning_rate=config.auxiliary_learning_rate * factor,
            max_ratio=config.max_ratio,
            max_gradient_norm=config.max_gradient_norm,
        )
        if rollout.behaviour_log_prob is None:
            other = self._behaving()
            rollout = rollout if other is None else self._scored_by_other(other, rollout)
        statistics, batch = self._prepare(self.state, rollout, hyper)
        state = {**self.state, **statistics}
        totals: Metrics = {}
        for first in range(0, batch["reward"].shape[1], config.steps_per_call):
            chunk = {k: x[:, first : first + config.steps_per_call] for k, x in batch.items()}
            state, figures = self._steps(state, chunk, hyper)
            totals = add_figures(totals, figures)
        self.state = self._merge(state, rollout, hyper)
        return to_host(mean_figures(totals))

    def fit(self, data: LoggedExperience, passes: int = 1) -> list[dict[str, NDArray[np.float64]]]:
        """Learn from a log instead of an environment: every rollout's figures, pass after pass.

        Raises:    UsageError for a population, for what ``logged_rollouts`` refuses, or passes < 1
        Verified:  tests/integration/test_off_pac_logged.py::test_learns_from_a_log
        """
        if self.members != 1:
            raise UsageError(f"this agent holds {self.members} members; a log is for one")
        if passes < 1:
            raise UsageError(f"passes is {passes}; expected at least 1")
        rollouts = list(logged_rollouts(data, self.num_envs, self.config.rollout_steps))
        figures: list[dict[str, NDArray[np.float64]]] = []
        for i in range(passes):
            for name in (CRITIC, CURVATURE, ACTOR, FOLLOWON):  # parts of the log begin in the middle of an episode
                self.state[name] = torch.zeros_like(self.state[name])
            figures += [self.update(rollout, i / passes) for rollout in rollouts]
        return figures
