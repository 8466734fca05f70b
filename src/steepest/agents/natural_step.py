"""The natural step: the gradient through the inverse Fisher matrix, as long as a trust region lets it be.

All functions are pure and see one member. ``policy`` maps a parameter vector to distributions over a batch's states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vjp  # pyright: ignore[reportUnknownVariableType]

from steepest.distributions import Distribution
from steepest.learner.step import Hyper, Metrics, State
from steepest.learner.trees import tree_map
from steepest.numerics import ConjugateGradient, LineSearch, conjugate_gradient_step, line_search_start

MOST_ITERATIONS_PER_CALL = 5
"""The forward pass is shared by the products of a call; more of them take longer to compile than they save."""


def calls_of(iterations: int) -> list[int]:
    """Split iterations into as few calls as can be, equally long but for the last: equal ones share a graph."""
    most = math.ceil(iterations / math.ceil(iterations / MOST_ITERATIONS_PER_CALL))
    full, rest = divmod(iterations, most)
    return [most] * full + ([rest] if rest else [])


def fisher_product(
    policy: Callable[[Tensor], Distribution], vector: Tensor, weight: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return v -> F v, F the Hessian of mean KL(pi_old || pi) at pi_old, without ever forming F.

    Equation:  F v = mean over states of J^T F_pi J v,  J = d(pi's fields)/d theta, F_pi their Fisher information
    Source:    Schulman et al. 2015, appendix C. J v by differentiating u -> J^T u, which is linear in u: one
               forward pass serves all products.
    Args:      vector (P,), at which pi is pi_old; weight (S,) of the states
    Verified:  tests/exact/test_trpo.py::test_fisher_vector_product_is_the_dense_fisher_matrix,
               tests/exact/test_trpo.py::test_fisher_vector_product_is_the_hessian_of_the_kl
    """
    differentiate = cast(Any, vjp)
    old, pull_back = differentiate(policy, vector)
    _, transpose = differentiate(lambda u: pull_back(u)[0], tree_map(torch.zeros_like, old))
    share = weight / weight.sum().clamp(min=1.0)

    def product(v: Tensor) -> Tensor:
        bent = old.fisher_product(transpose(v)[0])
        return pull_back(tree_map(lambda x: x * share.view(-1, *([1] * (x.ndim - 1))), bent))[0]

    return product


def solve(
    system: ConjugateGradient, fisher: Callable[[Tensor], Tensor], damping: Tensor, iterations: int
) -> ConjugateGradient:
    """Take so many more conjugate-gradient iterations on (F + damping I) x = g.

    Verified:  tests/exact/test_trpo.py::test_iterations_may_be_split_over_any_calls
    """
    for _ in range(iterations):
        system = conjugate_gradient_step(lambda v: fisher(v) + damping * v, system)
    return system


def natural_step(
    system: ConjugateGradient, slope: Tensor, state: State, hyper: Hyper
) -> tuple[Tensor, LineSearch, Metrics]:
    """Return the step that the quadratic model lets go to the edge of the trust region, and the search at its start.

    Equation:  sqrt(2 delta / x.(F + damping I)x) x
    Source:    Schulman et al. 2015, appendix C. The product is g less the residual, which is at hand.
    Args:      system: the solution x so far; slope: g (P,); hyper["max_kl"]: delta in nats
    Verified:  tests/exact/test_trpo.py::test_the_step_is_the_exact_natural_step
    """
    curvature = (system.solution * (slope - system.residual)).sum()
    length = torch.where(curvature > 0.0, torch.sqrt(2.0 * hyper["max_kl"] / curvature.clamp(min=1e-30)), 0.0)
    step = length * system.solution
    residual = torch.linalg.vector_norm(system.residual) / torch.linalg.vector_norm(slope).clamp(min=1e-30)
    metrics = {"cg_residual": residual, "step_norm": torch.linalg.vector_norm(step)}
    return step, line_search_start(state["params"]), metrics


def every_nth_step(batch: dict[str, Tensor], steps: int, every: int) -> dict[str, Tensor]:
    """Return every so many-th of the rollout's steps (members, steps * envs, ...): neighbours tell much the same."""
    return {k: x.unflatten(1, (steps, -1))[:, ::every].flatten(1, 2) for k, x in batch.items()}


def search_metrics(search: LineSearch) -> Metrics:
    """Return what a line search came to, for the log."""
    return {
        "surrogate_improvement": search.improvement,
        "kl": search.divergence,
        "accepted": search.accepted,
        "line_search_steps": search.trials,
    }
