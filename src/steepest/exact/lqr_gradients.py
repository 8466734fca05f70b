"""Exact policy gradients of linear-quadratic problems."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.checks import check_tensor
from steepest.exact.lqr import (
    LQR,
    action_curvature,
    checked_temperature,
    cost_to_go,
    gaussian_entropy,
    greedy_residual,
    require_discount,
    second_moment,
    second_moment_from,
    value_function,
)


def action_gradient(problem: LQR, feedback: Tensor) -> Tensor:
    """G such that grad_a Q(x, a) at a = K x is G x.

    Equation:  G = -2 ((R + gamma B'P B) K + gamma B'P A)
    Source:    notes 1.11; Fazel et al. 2018, whose E_K is G/2 (there u = -K x, and the objective is a cost). The same
               for every covariance.
    Args:      feedback (m, n)
    Returns:   (m, n)
    Raises:    UsageError on a wrong shape or an unstable closed loop
    Verified:  tests/exact/test_lqr.py::test_gradient_is_the_finite_sum_of_action_gradients
    """
    return -2.0 * greedy_residual(problem, cost_to_go(problem, feedback), feedback)


def deterministic_policy_gradient(problem: LQR, feedback: Tensor) -> Tensor:
    """The exact gradient of the objective of u = K x.

    Equation:  dJ/dK = sum_t gamma^t E[grad_a Q(x_t, a) at a = K x_t  x_t'] = G M
    Source:    notes 1.11, Eq. 1; Silver et al. 2014, Theorem 1.
    Args:      feedback (m, n)
    Returns:   (m, n)
    Raises:    UsageError on a wrong shape or an unstable closed loop
    Verified:  tests/exact/test_lqr.py::test_gradient_is_the_derivative,
               tests/exact/test_lqr.py::test_gradient_is_the_finite_sum_of_action_gradients
    """
    return action_gradient(problem, feedback) @ second_moment(problem, feedback)


def policy_gradient(
    problem: LQR, feedback: Tensor, covariance: Tensor, *, temperature: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The exact gradient of the objective of the Gaussian policy, with respect to K and to Sigma.

    Equation:  dJ/dK = G M,  dJ/dSigma = (temperature/2 Sigma^-1 - (R + gamma B'P B)) / (1 - gamma)
               Average reward: without the division.
    Source:    notes 1.1, Theorem 3, in closed form.
    Args:      feedback (m, n); covariance (m, m); temperature >= 0, reward per nat
    Returns:   (m, n) and (m, m), the latter as if all entries of Sigma were free: dJ = sum_ij (dJ/dSigma)_ij dSigma_ij
    Raises:    UsageError as value_function
    Verified:  tests/exact/test_lqr.py::test_gradient_is_the_derivative,
               tests/exact/test_lqr.py::test_gradient_is_the_finite_sum_of_scores
    """
    by_feedback = action_gradient(problem, feedback) @ second_moment(problem, feedback, covariance)
    by_covariance = -action_curvature(problem, cost_to_go(problem, feedback))
    if checked_temperature(temperature) > 0.0:
        gaussian_entropy(problem, covariance)  # refuses a singular covariance
        by_covariance = by_covariance + 0.5 * temperature * torch.linalg.inv(covariance)
    return by_feedback, problem.total_weight * by_covariance


def off_policy_objective(
    problem: LQR, feedback: Tensor, behaviour_feedback: Tensor, behaviour_covariance: Tensor | None = None
) -> Tensor:
    """The value of u = K x, averaged over the states that another policy visits.

    Equation:  J_beta(K) = integral of p^beta(x) V^K(x),  p^beta = sum_t gamma^t P(x_t = x; beta)
    Source:    notes 1.11, off-policy.
    Args:      feedback (m, n), carries gradient; behaviour_feedback (m, n); behaviour_covariance (m, m) or None
    Returns:   0-d, reward units
    Raises:    UsageError on wrong shapes, an unstable closed loop of either policy, or an average-reward problem
    Verified:  tests/exact/test_lqr.py::test_off_policy_gradients
    """
    require_discount(problem)
    value = value_function(problem, feedback)
    moment = second_moment(problem, behaviour_feedback, behaviour_covariance)
    return (value.matrix * moment).sum() + problem.total_weight * value.constant


def off_policy_gradient(
    problem: LQR, feedback: Tensor, behaviour_feedback: Tensor, behaviour_covariance: Tensor | None = None
) -> Tensor:
    """The true gradient of off_policy_objective: the critic's own dependence on K included.

    Equation:  dJ_beta/dK = G sum_t gamma^t E[x_t x_t'] with x_0 ~ p^beta and u_t = K x_t
    Source:    notes 1.11; Imani et al. 2018 (emphatic weightings, here in closed form).
    Args:      as off_policy_objective
    Returns:   (m, n)
    Raises:    UsageError as off_policy_objective
    Verified:  tests/exact/test_lqr.py::test_off_policy_gradients
    """
    require_discount(problem)
    start = second_moment(problem, behaviour_feedback, behaviour_covariance)
    noise = problem.discount * problem.total_weight**2 * problem.W
    return action_gradient(problem, feedback) @ second_moment_from(problem, feedback, start + noise)


def off_policy_semi_gradient(
    problem: LQR, feedback: Tensor, behaviour_feedback: Tensor, behaviour_covariance: Tensor | None = None
) -> Tensor:
    """The off-policy gradient as it is used: the critic's dependence on K dropped.

    Equation:  integral of p^beta(x) grad_a Q^K(x, a) at a = K x  x' = G M_beta
    Source:    notes 1.11; Silver et al. 2014, Eq. 15. It is not the gradient of off_policy_objective.
    Args:      as off_policy_objective
    Returns:   (m, n)
    Raises:    UsageError as off_policy_objective
    Verified:  tests/exact/test_lqr.py::test_off_policy_gradients
    """
    require_discount(problem)
    return action_gradient(problem, feedback) @ second_moment(problem, behaviour_feedback, behaviour_covariance)


def compatible_weights(problem: LQR, feedback: Tensor, directions: Tensor) -> Tensor:
    """The compatible critic's weights that minimise its error of grad_a Q, for which the actor's gradient is exact.

    Equation:  Q^w(x, a) = (a - K x)' grad_theta mu(x)' w + V(x),  grad_theta mu(x)' w = sum_i w_i D_i x,
               w = argmin sum_t gamma^t E |sum_i w_i D_i x_t - G x_t|^2
               and then dJ/dtheta_i = sum_j <D_i M, D_j> w_j, even where the error is not zero.
    Source:    notes 1.11; Silver et al. 2014, Theorem 3. The minimiser is over the states of the policy itself.
    Args:      feedback (m, n); directions (k, m, n), D_i = dK/dtheta_i, linearly independent
    Returns:   (k,)
    Raises:    UsageError on wrong shapes, dependent directions, or an unstable closed loop
    Verified:  tests/exact/test_lqr.py::test_compatible_critic_gives_the_exact_gradient
    """
    if directions.ndim != 3 or len(directions) == 0:
        raise UsageError(f"directions has shape {tuple(directions.shape)}; it must be (k, {problem.m}, {problem.n})")
    check_tensor("directions", directions, (directions.shape[0], problem.m, problem.n))
    moment = second_moment(problem, feedback)
    gram = torch.einsum("iab,bc,jac->ij", directions, moment, directions)
    if int(torch.linalg.matrix_rank(gram, hermitian=True)) < len(directions):
        raise UsageError(f"the {len(directions)} directions are linearly dependent; leave out the redundant ones")
    slope = torch.einsum("iab,ab->i", directions, action_gradient(problem, feedback) @ moment)
    return torch.linalg.solve(gram, slope)
