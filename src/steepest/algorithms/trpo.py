"""Trust-region policy optimisation, and natural policy gradient as its step without a search.

Source: notes 1.10; Schulman et al. 2015 (https://arxiv.org/abs/1502.05477), with GAE (Schulman et al. 2016).

    repeat
      1. play T steps in N environments with pi_old
      2. A_t = sum_l (gamma lambda)^l delta_{t+l},  R_t = A_t + V(s_t)                 returns.generalized_advantage
      3. g = grad of L(theta) = mean of rho A, at theta_old                            losses.surrogate_objective
      4. (F + damping I) x = g,  F = Hessian of mean KL(pi_old || pi_theta)            agents.natural_step.solve
         by products F v = J^T F_pi J v with J the derivative of pi's parameters   agents.natural_step.fisher_product
      5. theta = theta_old + b^j sqrt(2 delta / x.(F + damping I)x) x for the first j with
         L(theta) > L(theta_old) and mean KL(pi_old || pi_theta) <= delta;
         theta_old, to the last bit, if there is none                                  numerics.line_search_step
      6. for every epoch, for every minibatch: one step of Adam on 1/2 (V(s) - R)^2    losses.value_loss

Differences from the notes: the monotonic improvement that they promise for any step with KL <= delta is not guaranteed
(errata 1.10), hence the search and the restoring; states are weighted without gamma^t (errata 1.1). Beyond the paper:
damping, standardised advantages. With ``line_search_steps`` 0 the full step is taken unchecked: natural policy gradient
(Kakade 2001) with the step size normalised as in 5.

Policy and value function may not share a torso: the natural step is the policy's alone, and what fits the values
afterwards would move the policy out of its trust region. The two never meet: pi does not depend on the value function's
part of the parameter vector, so g, F v and with them the step are zero there, and so is Adam's in the policy's part.

With ``objective`` "average" (notes 1.8) what is maximised is the average reward per step: TD errors are
r - gain + v(s') - v(s), without a discount, the gain being a running estimate (Ma et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, linalg

from steepest.agents import natural_step
from steepest.agents.agent import normalization
from steepest.agents.rollout_updates import (
    Batch,
    RolloutAgent,
    batch_distribution,
    batch_inputs,
    distribution_to_batch,
    run_epochs,
    sequences_per_rollout,
)
from steepest.algorithms.configs.trpo import TRPOConfig
from steepest.distributions import Distribution
from steepest.learner.functional import FunctionalModule
from steepest.learner.lifting import Lift
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.losses import surrogate_objective, value_loss
from steepest.networks.actor_critic import ActorCritic
from steepest.numerics import (
    ConjugateGradient,
    LineSearch,
    conjugate_gradient_start,
    line_search_step,
    standardize,
    weighted_mean,
)
from steepest.types import Rollout


class TRPO(RolloutAgent):
    """TRPO over one or several members."""

    algorithm = "trpo"
    Config = TRPOConfig
    config: TRPOConfig
    lifts: ClassVar[Mapping[str, Lift]] = {
        "prepare": Lift("prepare"),
        "policy_gradient": Lift("policy_gradient", differentiates=True),
        "scale": Lift(natural_step.natural_step, compiles=False),
        "search": Lift("search"),
        "value_steps": Lift("gradient_steps", differentiates=True),
        "merge": RolloutAgent.lifts["merge"],
    }  # and "solve", for every number of iterations
    hyper_fields = ("gamma", "gain_rate", "gae_lambda", "max_kl", "cg_damping", "learning_rate")

    def __init__(self, config: TRPOConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        sequences_per_rollout(self.num_envs, config.rollout_steps, 0, 1, standardizes=config.normalize_advantage)
        self.value = FunctionalModule(self.module, self.layout, function=cast(ActorCritic, self.module).value)
        self.iterations = natural_step.calls_of(config.cg_iterations)
        for name, count in zip(("solve", "solve_rest"), dict.fromkeys(self.iterations), strict=False):
            self.over_members[name] = self.learner.lift(partial(self.solve, iterations=count))

    @property
    def standardizes(self) -> bool:
        return False  # not over minibatches, which are the critic's

    @classmethod
    def planned_work(cls, config: TRPOConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows, steps = super().planned_work(config, total_steps, num_envs)
        return rows, steps + total_steps // (num_envs * config.rollout_steps) * config.cg_iterations

    def hyperparameters(self, progress: float) -> Hyper:
        checked = self.config.line_search_steps > 0
        bounds = (0.0, self.population.value("max_kl", progress)) if checked else (-math.inf, math.inf)
        search = dict(zip(("least_improvement", "kl_limit"), bounds, strict=True))
        own = self.hyper(backtrack=self.config.line_search_backtrack, unlimited=math.inf, **search)
        return super().hyperparameters(progress) | own

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Return advantages, value targets, old values and old distributions of a rollout; pure, one member."""
        statistics, batch, metrics = super().prepare(state, rollout, hyper)
        if self.config.normalize_advantage:
            batch["advantage"] = standardize(batch["advantage"], batch["weight"])
        return statistics, batch, metrics

    def remember(self, policy: Distribution) -> Batch:
        return distribution_to_batch("old_policy", policy, 0)

    def policy(self, vector: Tensor, state: State, batch: Batch) -> Distribution:
        """Return the policy at the batch's states; independent of the value function's part of ``vector``."""
        return self.forward(vector, state, batch_inputs(batch), with_value=False).distribution

    def policy_gradient(
        self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper
    ) -> tuple[ConjugateGradient, Metrics]:
        """Return the surrogate's gradient at the old policy, as the linear system's right side; pure, one member."""
        del hyper

        def surrogate(vector: Tensor) -> tuple[Tensor, Metrics]:
            policy, weight = self.policy(vector, state, batch), batch["weight"]
            objective = surrogate_objective(policy.log_prob(batch["action"]), batch["log_prob"], batch["advantage"])
            return weighted_mean(objective, weight), {"entropy": weighted_mean(policy.entropy(), weight)}

        slope, (_, metrics) = gradient(surrogate, state["params"])
        return conjugate_gradient_start(slope), {**metrics, "gradient_norm": linalg.vector_norm(slope)}

    def fisher(self, state: State, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return v -> F v at the policy in the state; see ``agents.natural_step.fisher_product``."""
        return natural_step.fisher_product(
            partial(self.policy, state=state, batch=batch), state["params"], batch["weight"]
        )

    def solve(
        self, system: ConjugateGradient, state: State, batch: Batch, hyper: Hyper, iterations: int
    ) -> ConjugateGradient:
        """Come closer to the solution of (F + damping I) x = g; pure, one member."""
        return natural_step.solve(system, self.fisher(state, batch), hyper["cg_damping"], iterations)

    def search(self, search: LineSearch, step: Tensor, state: State, batch: Batch, hyper: Hyper) -> LineSearch:
        """Try one step length, on the whole rollout; pure, one member."""
        weight = batch["weight"]

        def measure(vector: Tensor) -> tuple[Tensor, Tensor]:
            new = self.policy(vector, state, batch)
            objective = surrogate_objective(new.log_prob(batch["action"]), batch["log_prob"], batch["advantage"])
            divergence = cast(Any, batch_distribution("old_policy", batch, type(new))).kl(new)
            return weighted_mean(objective - batch["advantage"], weight), weighted_mean(divergence, weight)

        bounds = (hyper["backtrack"], hyper["least_improvement"], hyper["kl_limit"])
        return line_search_step(measure, state["params"], step, search, *bounds)

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the value function's mean loss on a minibatch; gradient through ``vector`` alone."""
        del hyper
        value = self.value(vector, state, batch_inputs(batch), normalization(state))
        loss = weighted_mean(value_loss(value, batch["target"]), batch["weight"])
        return loss, {"value_loss": loss}

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on the value function; pure, one member."""
        slope, (_, metrics) = gradient(partial(self.loss, state=state, batch=batch, hyper=hyper), state["params"])
        state, _ = adam_step(state, slope, hyper["learning_rate"], hyper["unlimited"])
        return state, metrics

    def improve(self, state: State, rollout: Rollout, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take the natural step as far as the search lets it go, then fit the value function."""
        system, metrics = self.over_members["policy_gradient"](state, batch, hyper)
        slope = system.residual
        thinned = natural_step.every_nth_step(batch, self.config.rollout_steps, self.config.fisher_subsample)
        for count in self.iterations:
            name = "solve" if count == self.iterations[0] else "solve_rest"
            system = self.over_members[name](system, state, thinned, hyper)
        step, search, solved = self.over_members["scale"](system, slope, state, hyper)
        for _ in range(max(self.config.line_search_steps, 1)):
            search = self.over_members["search"](search, step, state, batch, hyper)
            if bool((search.accepted > 0).all()):  # further trials would change nothing
                break
        state = {**state, "params": search.point}
        state, fitted = run_epochs(self.over_members["value_steps"], state, batch, (self.draw_indices(),), hyper)
        return state, {**metrics, **solved, **natural_step.search_metrics(search), **fitted}
