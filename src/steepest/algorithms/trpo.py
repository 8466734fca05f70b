"""Trust-region policy optimisation, and natural policy gradient as its step without a search.

Source: notes 1.10; Schulman et al. 2015 (https://arxiv.org/abs/1502.05477), with GAE (Schulman et al. 2016).

    repeat
      1. play T steps in N environments with pi_old
      2. A_t = sum_l (gamma lambda)^l delta_{t+l},  R_t = A_t + V(s_t)                 returns.generalized_advantage
      3. g = grad of L(theta) = mean of rho A, at theta_old                            losses.surrogate_objective
      4. (F + damping I) x = g,  F = Hessian of mean KL(pi_old || pi_theta)            numerics.conjugate_gradient_step
         by products F v = J^T F_pi J v with J the derivative of pi's parameters                  TRPO.fisher
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
r - gain + v(s') - v(s), without a discount, the gain being a running estimate (Ma et al. 2021, Zhang & Ross 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vjp  # pyright: ignore[reportUnknownVariableType]

from steepest.agents.agent import Agent, normalization
from steepest.agents.average_reward import Objective, initial_gain, refuse_termination
from steepest.agents.rollout_updates import (
    Batch,
    batch_distribution,
    batch_inputs,
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
from steepest.learner.functional import FunctionalModule
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.learner.trees import to_host, tree_map
from steepest.losses import surrogate_objective, value_loss
from steepest.networks.actor_critic import ActorCritic
from steepest.networks.config import PolicyConfig
from steepest.numerics import (
    ConjugateGradient,
    LineSearch,
    conjugate_gradient_start,
    conjugate_gradient_step,
    line_search_start,
    line_search_step,
    standardize,
    weighted_mean,
)
from steepest.types import Rollout

MOST_ITERATIONS_PER_CALL = 5
"""The forward pass is shared by the products of a call; more of them take longer to compile than they save."""


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(PolicyConfig):
    """Trust-region policy optimisation."""

    rollout_steps: int = 256
    """Steps that every environment plays between updates (T). One step is taken on each, so longer than PPO's."""
    objective: Objective = "discounted"
    """What is maximised: the discounted return, or the average reward per step of a problem that never terminates."""
    gamma: float = 0.99
    """Discount factor. Not used where the objective is the average reward."""
    gain_rate: float = 0.1
    """Weight of a new rollout in the running average reward. Used only where that is the objective."""
    gae_lambda: float = 0.95
    """GAE's trade of bias (0) against variance (1)."""
    max_kl: float = 0.01
    """Mean KL(pi_old || pi) in nats that an update may reach (delta)."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations, one Fisher-vector product each. Fewer stay nearer to the plain gradient."""
    cg_damping: float = 0.1
    """Added to the Fisher matrix's diagonal: what the rollout says nothing of moves less."""
    fisher_subsample: int = 1
    """The Fisher matrix is estimated from every so many-th step of the rollout; the gradient from all."""
    line_search_steps: int = 10
    """Step lengths tried before the policy stays as it is; 0: the full step, unchecked (natural policy gradient)."""
    line_search_backtrack: float = 0.8
    """Each trial's step is this much shorter than the one before."""
    epochs: int = 10
    """Passes of the value function over a rollout."""
    minibatches: int = 16
    """Gradient steps of the value function per epoch."""
    learning_rate: float = 1e-3
    """Adam's step size for the value function."""
    normalize_advantage: bool = True
    """Standardise advantages over the rollout. The step does not depend on their scale, only on the shift."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rollout_steps", "cg_iterations", "fisher_subsample", "epochs", "minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_kl", "learning_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("cg_damping", "line_search_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        for name in ("gamma", "gain_rate", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        backtrack = self.line_search_backtrack
        require(0 < backtrack < 1, "line_search_backtrack", backtrack, "between 0 and 1")
        allowed = self.objective == "discounted" or not self.normalize_reward  # what scales is a discounted return
        require(allowed, "normalize_reward", self.normalize_reward, 'False where objective is "average"')
        require(not self.shared_torso, "shared_torso", True, "false: TRPO moves the policy alone")
        require(self.recurrent == "none", "recurrent", self.recurrent, '"none": TRPO has no recurrent policies')


class TRPO(Agent):
    """TRPO over one or several members."""

    algorithm = "trpo"
    Config = TRPOConfig
    config: TRPOConfig

    def __init__(self, config: TRPOConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Advantages are standardised over the rollout; its minibatches are the critic's.
        sequences_per_rollout(self.num_envs, config.rollout_steps, 0, 1, standardizes=config.normalize_advantage)
        self.sequences = sequences_per_rollout(
            self.num_envs, config.rollout_steps, 0, config.minibatches, standardizes=False
        )
        if config.objective == "average":
            self.state |= initial_gain(self.members, self.device)
        self.value = FunctionalModule(self.module, self.layout, function=cast(ActorCritic, self.module).value)
        self._prepare = self.learner.lift(self.prepare)
        self._policy_gradient = self.learner.lift(self.policy_gradient, differentiates=True)
        # As few calls as can be, equally long but for the last, so that the others share a graph.
        per_call = math.ceil(config.cg_iterations / math.ceil(config.cg_iterations / MOST_ITERATIONS_PER_CALL))
        self.full_calls, rest = divmod(config.cg_iterations, per_call)
        self._solve = self.learner.lift(partial(self.solve, iterations=per_call))
        self._solve_rest = self.learner.lift(partial(self.solve, iterations=rest)) if rest else None
        self._scale = self.learner.lift(self.scale, compile=False)
        self._search = self.learner.lift(self.search)
        self._value_steps = self.learner.lift(self.value_steps, differentiates=True)
        self._merge = self.learner.lift(update_observations, compile=False)

    @classmethod
    def planned_work(cls, config: TRPOConfig, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        steps = config.epochs * config.minibatches + config.cg_iterations
        return rows // config.minibatches, total_steps // rows * steps

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Advantages, value targets, old values and old distributions of a rollout; pure, one member."""
        old_policy, value = replay_rollout(partial(self.forward, state["params"], state), rollout, 0)
        log_prob = old_policy.log_prob(rollout.action)
        statistics, advantage, target = gae_and_target(state, rollout, value, hyper)
        batch, metrics = training_batch(rollout, 0, log_prob, value, advantage, target)
        if self.config.normalize_advantage:
            batch["advantage"] = standardize(batch["advantage"], batch["weight"])
        return statistics, {**batch, **distribution_to_batch("old_policy", old_policy, 0)}, metrics

    def policy(self, vector: Tensor, state: State, batch: Batch) -> Distribution:
        """The policy at the batch's states; independent of the value function's part of ``vector``."""
        return self.forward(vector, state, batch_inputs(batch), with_value=False).distribution

    def policy_gradient(
        self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper
    ) -> tuple[ConjugateGradient, Metrics]:
        """The surrogate's gradient at the old policy, as the right side of the linear system; pure, one member."""
        del hyper

        def surrogate(vector: Tensor) -> tuple[Tensor, Metrics]:
            policy, weight = self.policy(vector, state, batch), batch["weight"]
            objective = surrogate_objective(policy.log_prob(batch["action"]), batch["log_prob"], batch["advantage"])
            return weighted_mean(objective, weight), {"entropy": weighted_mean(policy.entropy(), weight)}

        slope, (_, metrics) = gradient(surrogate, state["params"])
        return conjugate_gradient_start(slope), {**metrics, "gradient_norm": torch.linalg.vector_norm(slope)}

    def fisher(self, state: State, batch: Batch) -> Callable[[Tensor], Tensor]:
        """v -> F v, F the Hessian of mean KL(pi_old || pi) at pi_old, without ever forming F; pure, one member.

        Equation:  F v = mean over states of J^T F_pi J v,  J = d(pi's fields)/d theta, F_pi their Fisher information
        Source:    Schulman et al. 2015, appendix C. J v by differentiating u -> J^T u, which is linear in u: one
                   forward pass serves all products.
        Verified:  tests/exact/test_trpo.py::test_fisher_vector_product_is_the_dense_fisher_matrix,
                   tests/exact/test_trpo.py::test_fisher_vector_product_is_the_hessian_of_the_kl
        """
        differentiate = cast(Any, vjp)
        old, pull_back = differentiate(lambda vector: self.policy(vector, state, batch), state["params"])
        _, transpose = differentiate(lambda u: pull_back(u)[0], tree_map(torch.zeros_like, old))
        share = batch["weight"] / batch["weight"].sum().clamp(min=1.0)

        def product(v: Tensor) -> Tensor:
            bent = old.fisher_product(transpose(v)[0])
            return pull_back(tree_map(lambda x: x * share.view(-1, *([1] * (x.ndim - 1))), bent))[0]

        return product

    def solve(
        self, system: ConjugateGradient, state: State, batch: Batch, hyper: Hyper, iterations: int
    ) -> ConjugateGradient:
        """So many more conjugate-gradient iterations on (F + damping I) x = g; pure, one member.

        Verified:  tests/exact/test_trpo.py::test_iterations_may_be_split_over_any_calls
        """
        fisher = self.fisher(state, batch)
        for _ in range(iterations):
            system = conjugate_gradient_step(lambda v: fisher(v) + hyper["cg_damping"] * v, system)
        return system

    def scale(
        self, system: ConjugateGradient, slope: Tensor, state: State, hyper: Hyper
    ) -> tuple[Tensor, LineSearch, Metrics]:
        """The step that the quadratic model lets go to the edge of the trust region; pure, one member.

        Equation:  sqrt(2 delta / x.(F + damping I)x) x
        Source:    Schulman et al. 2015, appendix C. The product is g less the residual, which is at hand.
        Verified:  tests/exact/test_trpo.py::test_the_step_is_the_exact_natural_step
        """
        curvature = (system.solution * (slope - system.residual)).sum()
        length = torch.where(curvature > 0.0, torch.sqrt(2.0 * hyper["max_kl"] / curvature.clamp(min=1e-30)), 0.0)
        step = length * system.solution
        residual = torch.linalg.vector_norm(system.residual) / torch.linalg.vector_norm(slope).clamp(min=1e-30)
        metrics = {"cg_residual": residual, "step_norm": torch.linalg.vector_norm(step)}
        return step, line_search_start(state["params"]), metrics

    def search(self, search: LineSearch, step: Tensor, state: State, batch: Batch, hyper: Hyper) -> LineSearch:
        """One trial along the step, on the whole rollout; pure, one member."""
        weight = batch["weight"]

        def measure(vector: Tensor) -> tuple[Tensor, Tensor]:
            new = self.policy(vector, state, batch)
            objective = surrogate_objective(new.log_prob(batch["action"]), batch["log_prob"], batch["advantage"])
            divergence = cast(Any, batch_distribution("old_policy", batch, type(new))).kl(new)
            return weighted_mean(objective - batch["advantage"], weight), weighted_mean(divergence, weight)

        bounds = (hyper["backtrack"], hyper["least_improvement"], hyper["kl_limit"])
        return line_search_step(measure, state["params"], step, search, *bounds)

    def critic_loss(self, vector: Tensor, state: State, batch: Batch) -> tuple[Tensor, Metrics]:
        """The value function's mean loss on a minibatch, and no figures; gradient through ``vector`` alone."""
        value = self.value(vector, state, batch_inputs(batch), normalization(state))
        return weighted_mean(value_loss(value, batch["target"]), batch["weight"]), {}

    def value_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """One step of Adam on the value function; pure, one member."""
        slope, (loss, _) = gradient(partial(self.critic_loss, state=state, batch=batch), state["params"])
        state, _ = adam_step(state, slope, hyper["learning_rate"], hyper["unlimited"])
        return state, {"value_loss": loss}

    def value_steps(
        self, gradient: Gradient, state: State, batch: Batch, indices: Tensor, hyper: Hyper
    ) -> tuple[State, Metrics]:
        """Such a step for each row of indices (K, B); pure, one member."""
        return each_minibatch(partial(self.value_step, gradient, hyper=hyper), state, batch, indices)

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        config = self.config
        if config.objective == "average":
            refuse_termination(rollout)
        checked = config.line_search_steps > 0
        unlimited = float("inf")
        hyper = self.hyper(
            gamma=config.gamma,
            gain_rate=config.gain_rate,
            gae_lambda=config.gae_lambda,
            max_kl=config.max_kl,
            cg_damping=config.cg_damping,
            backtrack=config.line_search_backtrack,
            least_improvement=0.0 if checked else -unlimited,
            kl_limit=config.max_kl if checked else unlimited,
            learning_rate=config.learning_rate,
            unlimited=unlimited,
        )
        statistics, batch, critic = self._prepare(self.state, rollout, hyper)
        state = {**self.state, **statistics}
        system, figures = self._policy_gradient(state, batch, hyper)
        slope = system.residual
        thinned = {k: self._thinned(x) for k, x in batch.items()}
        for _ in range(self.full_calls):
            system = self._solve(system, state, thinned, hyper)
        if self._solve_rest is not None:
            system = self._solve_rest(system, state, thinned, hyper)
        step, search, solved = self._scale(system, slope, state, hyper)
        for _ in range(max(config.line_search_steps, 1)):
            search = self._search(search, step, state, batch, hyper)
            if bool((search.accepted > 0).all()):  # further trials would change nothing
                break
        state["params"] = search.point
        indices = members_indices(self.sequences, config.minibatches, config.epochs, self.generators).to(self.device)
        state, fitted = run_epochs(self._value_steps, state, batch, (indices,), hyper)
        self.state = self._merge(state, rollout, hyper)
        found = {
            "surrogate_improvement": search.improvement,
            "kl": search.divergence,
            "accepted": search.accepted,
            "line_search_steps": search.trials,
        }
        gain = {"gain": state["gain"]} if "gain" in state else {}
        return to_host({**figures, **solved, **found, **fitted, **critic, **gain})

    def _thinned(self, x: Tensor) -> Tensor:
        """Every so many-th step of the rollout, of all environments: neighbouring steps tell much the same."""
        steps = x.unflatten(1, (self.config.rollout_steps, self.num_envs))
        return steps[:, :: self.config.fisher_subsample].flatten(1, 2)
