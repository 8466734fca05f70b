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
from steepest.exact.checks import check_tensor

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
        check_tensor("A", self.A, (n, n))
        check_tensor("B", self.B, (n, m))
        check_tensor("initial_mean", self.initial_mean, (n,))
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
    matrix = cost_to_go(problem, feedback)
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
        return _noise_reward(problem, cost_to_go(problem, feedback), covariance, temperature)
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
    return second_moment_from(problem, feedback, source)


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
                matrix = cost_to_go(problem, _greedy(problem, matrix))
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
    if checked_temperature(temperature) == 0.0:
        raise UsageError("temperature is 0: the optimal policy is then deterministic; use optimal_feedback")
    feedback = optimal_feedback(problem)
    curvature = action_curvature(problem, riccati(problem))
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


def second_moment_from(problem: LQR, feedback: Tensor, source: Tensor) -> Tensor:
    """Return the discounted second moment of the states that a source of them leads to."""
    return _lyapunov(math.sqrt(problem.discount) * _closed_loop(problem, feedback), source)


def cost_to_go(problem: LQR, feedback: Tensor) -> Tensor:
    """Return P, the quadratic cost of u = K x from a state on."""
    loop = _closed_loop(problem, feedback)
    cost = problem.Q + feedback.mT @ problem.R @ feedback
    return _lyapunov(math.sqrt(problem.discount) * loop.mT, cost)


def action_curvature(problem: LQR, matrix: Tensor) -> Tensor:
    """R + gamma B'P B: minus half the second derivative of Q in the action."""
    return problem.R + problem.discount * problem.B.mT @ matrix @ problem.B


def greedy_residual(problem: LQR, matrix: Tensor, feedback: Tensor) -> Tensor:
    """Return what a greedy feedback makes zero: (R + gamma B'P B) K + gamma B'P A."""
    return action_curvature(problem, matrix) @ feedback + problem.discount * problem.B.mT @ matrix @ problem.A


def _greedy(problem: LQR, matrix: Tensor) -> Tensor:
    drift = problem.discount * problem.B.mT @ matrix @ problem.A
    return -torch.linalg.solve(action_curvature(problem, matrix), drift)


def _noise_reward(problem: LQR, matrix: Tensor, covariance: Tensor | None, temperature: float) -> Tensor:
    """What each step's noise adds to the objective: its cost now and later, and the entropy."""
    sigma = _covariance(problem, covariance)
    reward = -(problem.discount * (matrix * problem.W).sum() + (action_curvature(problem, matrix) * sigma).sum())
    if checked_temperature(temperature) > 0.0:
        reward = reward + temperature * gaussian_entropy(problem, covariance)
    return reward


def gaussian_entropy(problem: LQR, covariance: Tensor | None) -> Tensor:
    """Return the entropy of a Gaussian policy in nats; UsageError where its covariance is singular."""
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
    check_tensor("feedback", feedback, (problem.m, problem.n))
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


def checked_temperature(temperature: float) -> float:
    """Return the temperature; UsageError unless it is a finite number >= 0."""
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise UsageError(f"temperature is {temperature}; it must be a finite number >= 0")
    return temperature


def require_discount(problem: LQR) -> None:
    """Raise UsageError unless the problem is discounted."""
    if problem.gamma is None:
        raise UsageError("the off-policy objective is defined for discounted problems; give the problem a gamma")


def _check_symmetric(name: str, tensor: Tensor, size: int, *, positive: bool) -> None:
    check_tensor(name, tensor, (size, size))
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
