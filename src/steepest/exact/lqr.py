"""Linear dynamics, quadratic cost and Gaussian noise: every value and every gradient in closed form, in float64.

    x' = A x + B u + w,  w ~ N(0, W),  reward = -(x'Q x + u'R u),  u = K x + e,  e ~ N(0, Sigma)

Sigma = None is the deterministic policy u = K x. K is called ``feedback``, Sigma ``covariance``. Two criteria share all
formulas: with ``gamma`` in [0, 1) the discounted return from x_0 ~ N(initial_mean, initial_covariance); with ``gamma =
None`` the average reward, where values are differential, with mean zero under the stationary distribution.

With temperature > 0 every step also earns temperature times the entropy of the policy (notes 1.7). As in soft
actor-critic, Q does not count the entropy of the action it is given, V does.

All functions are differentiable in K and Sigma, so autodiff is a second route to each gradient stated here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.errors import UsageError

_TOLERANCE = 1e-9  # of symmetry and of semidefiniteness, relative to the largest entry


@dataclass(frozen=True, eq=False)
class LQR:
    """A linear-quadratic-Gaussian control problem.

    Equation:  x' = A x + B u + w,  w ~ N(0, W),  reward = -(x'Q x + u'R u)
    Source:    Anderson & Moore 1990, "Optimal Control: Linear Quadratic Methods".
    Args:      A (n, n); B (n, m); Q (n, n) positive semidefinite; R (m, m) positive definite; W (n, n) positive
               semidefinite; initial_mean (n,), initial_covariance (n, n) of x_0, without effect on the average
               criterion; gamma in [0, 1), or None for the average reward. All tensors float64.
    Raises:    UsageError on wrong shapes, dtypes, entries that are not finite, matrices that are not symmetric or not
               (semi)definite, or gamma out of range
    Verified:  tests/exact/test_lqr.py::test_bad_problems_are_refused
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    W: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor
    gamma: float | None

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.A.shape[0] != self.A.shape[1] or self.A.shape[0] == 0:
            raise UsageError(f"A has shape {tuple(self.A.shape)}; it must be square: (n, n)")
        if self.B.ndim != 2 or self.B.shape[0] != self.n or self.B.shape[1] == 0:
            raise UsageError(
                f"B has shape {tuple(self.B.shape)}; A is ({self.n}, {self.n}), so it must be ({self.n}, m)"
            )
        n, m = self.n, self.m
        _check("A", self.A, (n, n))
        _check("B", self.B, (n, m))
        _check("initial_mean", self.initial_mean, (n,))
        _check_symmetric("Q", self.Q, n, positive=False)
        _check_symmetric("R", self.R, m, positive=True)
        _check_symmetric("W", self.W, n, positive=False)
        _check_symmetric("initial_covariance", self.initial_covariance, n, positive=False)
        if self.gamma is not None and not 0.0 <= self.gamma < 1.0:
            raise UsageError(f"gamma is {self.gamma}; give a number in [0, 1), or None for the average reward")

    @property
    def n(self) -> int:
        """Number of state components."""
        return self.A.shape[0]

    @property
    def m(self) -> int:
        """Number of action components."""
        return self.B.shape[1]

    @property
    def discount(self) -> float:
        """The factor of the next value in the Bellman equation: gamma, or 1 for the average reward."""
        return 1.0 if self.gamma is None else self.gamma

    @property
    def total_weight(self) -> float:
        """Sum of the weights of all steps: 1 / (1 - gamma), or 1 for the average reward."""
        return 1.0 if self.gamma is None else 1.0 / (1.0 - self.gamma)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """z'H z + constant, called with z or with its parts: ``v(x)``, ``q(x, u)``, over any leading axes."""

    matrix: Tensor
    constant: Tensor

    def __call__(self, *parts: Tensor) -> Tensor:
        z = torch.cat(parts, dim=-1)
        return ((z @ self.matrix) * z).sum(-1) + self.constant


def value_function(
    problem: LQR, feedback: Tensor, covariance: Tensor | None = None, *, temperature: float = 0.0
) -> Quadratic:
    """The exact state value of a linear policy.

    Equation:  V(x) = -x'P x + v,  P = Q + K'R K + gamma F'P F,  F = A + B K,
               v = (temperature H(Sigma) - tr(R Sigma) - gamma tr(P (W + B Sigma B'))) / (1 - gamma)
               Average reward: gamma = 1 in P, and v = tr(P M) with M the stationary second moment.
    Source:    Fazel et al. 2018. Differences: reward is minus cost; process noise; entropy.
    Args:      feedback (m, n) and covariance (m, m) or None, both carry gradient; temperature >= 0, reward per nat
    Returns:   V, a function of states (..., n), reward units
    Raises:    UsageError on wrong shapes, an unstable closed loop, or an entropy asked of a singular covariance
    Verified:  tests/exact/test_lqr.py::test_values_are_finite_sums, tests/exact/test_lqr.py::test_bellman_equations
    """
    matrix = _cost_to_go(problem, feedback)
    if problem.gamma is None:
        constant = (matrix * second_moment(problem, feedback, covariance)).sum()
    else:
        constant = problem.total_weight * _noise_reward(problem, matrix, covariance, temperature)
    return Quadratic(-matrix, constant)


def q_function(
    problem: LQR, feedback: Tensor, covariance: Tensor | None = None, *, temperature: float = 0.0
) -> Quadratic:
    """The exact action value of a linear policy.

    Equation:  Q(x, u) = r(x, u) + gamma E[V(x')], a quadratic form in (x, u).
               Average reward: Q(x, u) = r(x, u) - gain + E[V(x')].
    Source:    notes 1.7 and 1.11; Bradtke 1993. Differences: reward is minus cost.
    Args:      as value_function
    Returns:   Q, a function of states (..., n) and actions (..., m), reward units
    Raises:    UsageError as value_function
    Verified:  tests/exact/test_lqr.py::test_values_are_finite_sums, tests/exact/test_lqr.py::test_bellman_equations
    """
    value = value_function(problem, feedback, covariance, temperature=temperature)
    transition = torch.cat((problem.A, problem.B), dim=1)
    cost = torch.block_diag(problem.Q, problem.R)
    matrix = problem.discount * transition.mT @ value.matrix @ transition - cost
    constant = problem.discount * (value.constant + (value.matrix * problem.W).sum())
    if problem.gamma is None:
        constant = constant - objective(problem, feedback, covariance, temperature=temperature)
    return Quadratic(matrix, constant)


def objective(problem: LQR, feedback: Tensor, covariance: Tensor | None = None, *, temperature: float = 0.0) -> Tensor:
    """What the policy earns: E[V(x_0)], or the average reward.

    Equation:  J = E[sum_t gamma^t (r_t + temperature H)] = v - tr(P S_0),  S_0 = E[x_0 x_0']
               Average reward: J = temperature H - tr(R Sigma) - tr(P (W + B Sigma B'))
    Source:    notes 1.7, 1.8 and 1.11; Fazel et al. 2018.
    Args:      as value_function
    Returns:   0-d, reward units, differentiable
    Raises:    UsageError as value_function
    Verified:  tests/exact/test_lqr.py::test_objective_is_the_finite_sum,
               tests/exact/test_lqr.py::test_objective_from_the_visits
    """
    if problem.gamma is None:
        return _noise_reward(problem, _cost_to_go(problem, feedback), covariance, temperature)
    value = value_function(problem, feedback, covariance, temperature=temperature)
    return (value.matrix * _initial_second_moment(problem)).sum() + value.constant


def second_moment(problem: LQR, feedback: Tensor, covariance: Tensor | None = None) -> Tensor:
    """The second moment of the states visited: discounted and improper, or stationary.

    Equation:  M = sum_t gamma^t E[x_t x_t'] = S_0 + gamma/(1 - gamma) (W + B Sigma B') + gamma F M F'
               Average reward: M = W + B Sigma B' + F M F'
    Source:    notes 1.11, p^pi, with the sum from t = 0. (1 - gamma) M belongs to the normalised d^pi.
    Args:      as value_function
    Returns:   (n, n), differentiable
    Raises:    UsageError as value_function
    Verified:  tests/exact/test_lqr.py::test_second_moment_is_the_finite_sum
    """
    noise = problem.W + problem.B @ _covariance(problem, covariance) @ problem.B.mT
    if problem.gamma is None:
        source = noise
    else:
        source = _initial_second_moment(problem) + problem.gamma * problem.total_weight * noise
    return _visits(problem, feedback, source)


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
    return -2.0 * _greedy_residual(problem, _cost_to_go(problem, feedback), feedback)


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
    by_covariance = -_curvature(problem, _cost_to_go(problem, feedback))
    if _temperature(temperature) > 0.0:
        _entropy(problem, covariance)  # refuses a singular covariance
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
    _require_discount(problem)
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
    _require_discount(problem)
    start = second_moment(problem, behaviour_feedback, behaviour_covariance)
    noise = problem.discount * problem.total_weight**2 * problem.W
    return action_gradient(problem, feedback) @ _visits(problem, feedback, start + noise)


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
    _require_discount(problem)
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
    _check("directions", directions, (directions.shape[0], problem.m, problem.n))
    moment = second_moment(problem, feedback)
    gram = torch.einsum("iab,bc,jac->ij", directions, moment, directions)
    if int(torch.linalg.matrix_rank(gram, hermitian=True)) < len(directions):
        raise UsageError(f"the {len(directions)} directions are linearly dependent; leave out the redundant ones")
    slope = torch.einsum("iab,ab->i", directions, action_gradient(problem, feedback) @ moment)
    return torch.linalg.solve(gram, slope)


def riccati(problem: LQR, *, max_iterations: int = 100_000) -> Tensor:
    """The cost-to-go matrix of the optimal policy, by value iteration from zero, then policy iteration.

    Equation:  P = Q + gamma A'P A - gamma^2 A'P B (R + gamma B'P B)^-1 B'P A
    Source:    Anderson & Moore 1990.
    Returns:   (n, n): the optimal value is -x'P x + constant
    Raises:    UsageError if the iteration does not settle, as where no K stabilises the system, or settles on an
               unstable loop, as where an unstable mode costs nothing
    Verified:  tests/exact/test_lqr.py::test_optimal_feedback
    """
    matrix = torch.zeros_like(problem.Q)
    for _ in range(max_iterations):
        feedback = _greedy(problem, matrix)
        loop = problem.A + problem.B @ feedback
        # The cost of the greedy policy, rather than a difference of two large terms: never negative.
        update = problem.Q + feedback.mT @ problem.R @ feedback + problem.discount * loop.mT @ matrix @ loop
        change, scale = float((update - matrix).abs().max()), float(update.abs().max())
        matrix = update
        if not math.isfinite(scale):
            break
        if change <= 1e-10 * scale:
            for _ in range(3):  # policy iteration, which converges quadratically from here
                matrix = _cost_to_go(problem, _greedy(problem, matrix))
            return 0.5 * (matrix + matrix.mT)
    raise UsageError(
        f"the Riccati equation did not settle in {max_iterations} iterations; no feedback seems to stabilise "
        "sqrt(gamma) (A, B): make A less unstable, B stronger, or gamma smaller"
    )


def optimal_feedback(problem: LQR) -> Tensor:
    """The K that maximises the objective, whatever the noise, the initial state, the covariance and the temperature.

    Equation:  K = -gamma (R + gamma B'P B)^-1 B'P A, P from riccati
    Source:    Anderson & Moore 1990.
    Returns:   (m, n)
    Raises:    UsageError as riccati
    Verified:  tests/exact/test_lqr.py::test_optimal_feedback
    """
    return _greedy(problem, riccati(problem))


def soft_optimal_policy(problem: LQR, temperature: float, *, diagonal: bool = False) -> tuple[Tensor, Tensor]:
    """The policy that maximises reward plus temperature times entropy: Gaussian, pi(u|x) ~ exp(Q(x, u) / temperature).

    Equation:  u ~ N(K x, temperature/2 (R + gamma B'P B)^-1), K the optimal feedback, P from riccati
               Best diagonal covariance: temperature/2 over the diagonal of R + gamma B'P B, and the same K.
    Source:    notes 1.7; Haarnoja et al. 2017, Theorem 1.
    Args:      temperature > 0, reward per nat; diagonal: the best among diagonal covariances
    Returns:   K (m, n) and Sigma (m, m)
    Raises:    UsageError as optimal_feedback, or if temperature <= 0
    Verified:  tests/exact/test_lqr.py::test_soft_optimal_policy,
               tests/exact/test_lqr.py::test_soft_optimal_policy_is_boltzmann
    """
    if _temperature(temperature) == 0.0:
        raise UsageError("temperature is 0: the optimal policy is then deterministic; use optimal_feedback")
    feedback = optimal_feedback(problem)
    curvature = _curvature(problem, riccati(problem))
    if diagonal:
        return feedback, torch.diag(0.5 * temperature / torch.diagonal(curvature))
    inverse = torch.linalg.inv(curvature)
    return feedback, 0.25 * temperature * (inverse + inverse.mT)


def random_lqr(n: int, m: int, seed: int, *, gamma: float | None = 0.9) -> LQR:
    """A well-conditioned random problem whose open loop is stable, so K = 0 is admissible.

    Args:      n state components, m action components; seed; gamma in [0, 1), or None for the average reward
    Returns:   the problem: A with spectral radius 0.8, every other matrix full
    Raises:    UsageError on sizes < 1 or gamma out of range
    Verified:  tests/exact/test_lqr.py::test_random_problems
    """
    if n < 1 or m < 1:
        raise UsageError(f"n is {n} and m is {m}; a problem needs at least one state and one action component")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def positive(size: int, scale: float) -> Tensor:
        root = normal(size, size)
        return scale * (root @ root.mT / size + 0.5 * torch.eye(size, dtype=torch.float64))

    dynamics = normal(n, n)
    return LQR(
        A=0.8 * dynamics / _spectral_radius(dynamics),
        B=normal(n, m),
        Q=positive(n, 1.0),
        R=positive(m, 1.0),
        W=positive(n, 0.1),
        initial_mean=normal(n),
        initial_covariance=positive(n, 0.5),
        gamma=gamma,
    )


def _lyapunov(loop: Tensor, source: Tensor) -> Tensor:
    """X = source + loop X loop', through vec(loop X loop') = (loop kron loop) vec(X)."""
    n = len(loop)
    system = torch.eye(n * n, dtype=loop.dtype) - torch.kron(loop, loop)
    return torch.linalg.solve(system, source.reshape(n * n)).reshape(n, n)


def _visits(problem: LQR, feedback: Tensor, source: Tensor) -> Tensor:
    return _lyapunov(math.sqrt(problem.discount) * _closed_loop(problem, feedback), source)


def _cost_to_go(problem: LQR, feedback: Tensor) -> Tensor:
    loop = _closed_loop(problem, feedback)
    cost = problem.Q + feedback.mT @ problem.R @ feedback
    return _lyapunov(math.sqrt(problem.discount) * loop.mT, cost)


def _curvature(problem: LQR, matrix: Tensor) -> Tensor:
    """R + gamma B'P B: minus half the second derivative of Q in the action."""
    return problem.R + problem.discount * problem.B.mT @ matrix @ problem.B


def _greedy_residual(problem: LQR, matrix: Tensor, feedback: Tensor) -> Tensor:
    return _curvature(problem, matrix) @ feedback + problem.discount * problem.B.mT @ matrix @ problem.A


def _greedy(problem: LQR, matrix: Tensor) -> Tensor:
    drift = problem.discount * problem.B.mT @ matrix @ problem.A
    return -torch.linalg.solve(_curvature(problem, matrix), drift)


def _noise_reward(problem: LQR, matrix: Tensor, covariance: Tensor | None, temperature: float) -> Tensor:
    """What each step's noise adds to the objective: its cost now and later, and the entropy."""
    sigma = _covariance(problem, covariance)
    reward = -(problem.discount * (matrix * problem.W).sum() + (_curvature(problem, matrix) * sigma).sum())
    if _temperature(temperature) > 0.0:
        reward = reward + temperature * _entropy(problem, covariance)
    return reward


def _entropy(problem: LQR, covariance: Tensor | None) -> Tensor:
    sigma = _covariance(problem, covariance)
    if float(torch.linalg.eigvalsh(sigma.detach()).min()) <= 0.0:
        raise UsageError("the covariance is singular, so the entropy is minus infinity; use temperature 0")
    return 0.5 * (problem.m * math.log(2.0 * math.pi * math.e) + torch.logdet(sigma))


def _initial_second_moment(problem: LQR) -> Tensor:
    return problem.initial_covariance + torch.outer(problem.initial_mean, problem.initial_mean)


def _covariance(problem: LQR, covariance: Tensor | None) -> Tensor:
    if covariance is None:
        return torch.zeros_like(problem.R)
    _check_symmetric("covariance", covariance, problem.m, positive=False)
    return covariance


def _closed_loop(problem: LQR, feedback: Tensor) -> Tensor:
    _check("feedback", feedback, (problem.m, problem.n))
    loop = problem.A + problem.B @ feedback
    radius = _spectral_radius(loop.detach())
    if math.sqrt(problem.discount) * radius >= 1.0:
        bound = "1" if problem.gamma is None else f"1/sqrt(gamma) = {1.0 / math.sqrt(problem.gamma):.6g}"
        raise UsageError(
            f"the closed loop A + B K is unstable: its spectral radius is {radius:.6g}, and the objective is finite "
            f"only below {bound}; give a stabilising feedback, such as optimal_feedback(problem)"
        )
    return loop


def _spectral_radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


def _temperature(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise UsageError(f"temperature is {temperature}; it must be a finite number >= 0")
    return temperature


def _require_discount(problem: LQR) -> None:
    if problem.gamma is None:
        raise UsageError("the off-policy objective is defined for discounted problems; give the problem a gamma")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UsageError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.dtype != torch.float64:
        raise UsageError(f"{name} has dtype {tensor.dtype}; exact solutions are computed in torch.float64: convert it")
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise UsageError(f"{name} has entries that are not finite")


def _check_symmetric(name: str, tensor: Tensor, size: int, *, positive: bool) -> None:
    _check(name, tensor, (size, size))
    matrix = tensor.detach()
    scale = float(matrix.abs().max())
    gap = float((matrix - matrix.mT).abs().max())
    if gap > _TOLERANCE * scale:
        raise UsageError(f"{name} is not symmetric (entries differ by up to {gap:.3g}); use ({name} + {name}.T) / 2")
    smallest = float(torch.linalg.eigvalsh(matrix).min())
    if positive and smallest <= 0.0:
        raise UsageError(f"{name} must be positive definite; its smallest eigenvalue is {smallest:.6g}")
    if not positive and smallest < -_TOLERANCE * scale:
        raise UsageError(f"{name} must be positive semidefinite; its smallest eigenvalue is {smallest:.6g}")
