"""Linear-quadratic control: every closed form against finite sums, quadrature, autodiff and the Bellman equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from steepest.errors import UsageError
from steepest.exact.lqr import (
    LQR,
    objective,
    optimal_feedback,
    q_function,
    random_lqr,
    riccati,
    second_moment,
    soft_optimal_policy,
    value_function,
)
from steepest.exact.lqr_gradients import (
    action_gradient,
    compatible_weights,
    deterministic_policy_gradient,
    off_policy_gradient,
    off_policy_objective,
    off_policy_semi_gradient,
    policy_gradient,
)

F64 = torch.float64
STEPS = 600  # 0.9^600 is 1e-28
SIZES = [(1, 1, 0), (3, 2, 1), (2, 3, 2)]
GAMMAS = [0.9, None]


def close(found: Tensor | float, expected: Tensor | float, rtol: float = 1e-10) -> None:
    """Equal up to rtol of the largest entry."""
    expected = torch.as_tensor(expected, dtype=F64).detach()
    found = torch.as_tensor(found, dtype=F64).detach()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=rtol * max(1e-3, float(expected.abs().max())))


def differ(found: Tensor | float, expected: Tensor | float, by: float = 1e-3) -> None:
    """Visibly not equal: the negative controls."""
    found, expected = torch.as_tensor(found).detach(), torch.as_tensor(expected).detach()
    assert float((found - expected).abs().max()) > by * float(expected.abs().max())


def policy(problem: LQR, seed: int) -> tuple[Tensor, Tensor]:
    """A stabilising K that is not optimal, and a full covariance."""
    generator = torch.Generator().manual_seed(100 + seed)
    noise = torch.randn((problem.m, problem.n), generator=generator, dtype=F64)
    root = torch.randn((problem.m, problem.m), generator=generator, dtype=F64)
    feedback = optimal_feedback(problem) + 0.1 * noise / problem.B.norm()
    return feedback, 0.2 * root @ root.T + 0.1 * torch.eye(problem.m, dtype=F64)


def nodes(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Points (k, d) and weights (k,) that integrate polynomials up to degree 5 under a Gaussian exactly."""
    points, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0.0).sqrt()
    grid = torch.tensor(list(product(points, repeat=len(mean))), dtype=F64)
    mass = torch.tensor([math.prod(w) for w in product(weights, repeat=len(mean))], dtype=F64)
    return mean + grid @ root.T, mass


def marginals(
    problem: LQR, feedback: Tensor, covariance: Tensor | None, mean: Tensor, spread: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and covariance of x_0, x_1, ..., one step of the dynamics at a time."""
    noise = problem.W if covariance is None else problem.W + problem.B @ covariance @ problem.B.T
    for _ in range(STEPS):
        yield mean, spread
        mean = problem.A @ mean + problem.B @ (feedback @ mean)
        half = problem.A @ spread + problem.B @ feedback @ spread
        spread = half @ problem.A.T + half @ feedback.T @ problem.B.T + noise


def visits(problem: LQR, feedback: Tensor, covariance: Tensor | None) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Weight, mean and covariance of every step's state; for the average reward the stationary one."""
    steps = marginals(problem, feedback, covariance, problem.initial_mean, problem.initial_covariance)
    if problem.gamma is None:
        for last in steps:
            mean, spread = last
        yield 1.0, mean, spread
    else:
        for t, (mean, spread) in enumerate(steps):
            yield problem.gamma**t, mean, spread


def state_nodes(problem: LQR, feedback: Tensor, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All the visited states as points and weights."""
    parts = [(weight, *nodes(mean, spread)) for weight, mean, spread in visits(problem, feedback, covariance)]
    return torch.cat([x for _, x, _ in parts]), torch.cat([weight * mass for weight, _, mass in parts])


def expected_reward(problem: LQR, feedback: Tensor, covariance: Tensor | None, mean: Tensor, spread: Tensor) -> float:
    action = feedback @ mean
    action_spread = feedback @ spread @ feedback.T
    if covariance is not None:
        action_spread = action_spread + covariance
    cost = mean @ problem.Q @ mean + torch.trace(problem.Q @ spread)
    return -float(cost + action @ problem.R @ action + torch.trace(problem.R @ action_spread))


def entropy(covariance: Tensor) -> float:
    return float(MultivariateNormal(torch.zeros(len(covariance), dtype=F64), covariance).entropy())


def summed(
    problem: LQR, feedback: Tensor, covariance: Tensor | None, bonus: float, mean: Tensor, spread: Tensor
) -> float:
    """sum_t gamma^t (E r_t + bonus), or sum_t (E r_t - lim E r_t)."""
    rewards = [
        expected_reward(problem, feedback, covariance, *step)
        for step in marginals(problem, feedback, covariance, mean, spread)
    ]
    if problem.gamma is None:
        return sum(r - rewards[-1] for r in rewards)
    return sum(problem.gamma**t * (r + bonus) for t, r in enumerate(rewards))


def reward(problem: LQR, x: Tensor, u: Tensor) -> Tensor:
    return -((x @ problem.Q) * x).sum(-1) - ((u @ problem.R) * u).sum(-1)


@pytest.mark.parametrize("gamma", [*GAMMAS, 0.0])
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
@pytest.mark.parametrize("temperature", [None, 0.0, 0.3])
def test_values_are_finite_sums(n: int, m: int, seed: int, gamma: float | None, temperature: float | None) -> None:
    """temperature None: the deterministic policy."""
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, covariance = policy(problem, seed)
    sigma = None if temperature is None else covariance
    temperature = temperature or 0.0
    bonus = temperature * entropy(covariance)
    value = value_function(problem, feedback, sigma, temperature=temperature)
    q_value = q_function(problem, feedback, sigma, temperature=temperature)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        x, u = (torch.randn(k, generator=generator, dtype=F64) for k in (n, m))
        close(value(x), summed(problem, feedback, sigma, bonus, x, torch.zeros_like(problem.W)))
        after = summed(problem, feedback, sigma, bonus, problem.A @ x + problem.B @ u, problem.W)
        now = float(reward(problem, x, u))
        if gamma is None:
            rewards = [
                expected_reward(problem, feedback, sigma, *v) for v in marginals(problem, feedback, sigma, x, problem.W)
            ]
            close(q_value(x, u), now - (rewards[-1] + bonus) + after)
        else:
            close(q_value(x, u), now + gamma * after)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_bellman_equations(n: int, m: int, seed: int, gamma: float | None) -> None:
    """V = E[Q - temperature log pi] and Q = r - gain + gamma E[V'], by quadrature; the mean of V is zero if average."""
    problem, temperature = random_lqr(n, m, seed, gamma=gamma), 0.3
    feedback, covariance = policy(problem, seed)
    value = value_function(problem, feedback, covariance, temperature=temperature)
    q_value = q_function(problem, feedback, covariance, temperature=temperature)
    gain = objective(problem, feedback, covariance, temperature=temperature) if gamma is None else 0.0
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    u, mass = nodes(feedback @ x, covariance)
    close(mass @ q_value(x.expand(len(u), n), u) + temperature * entropy(covariance), value(x))
    for action in u:
        following, chance = nodes(problem.A @ x + problem.B @ action, problem.W)
        target = reward(problem, x, action) - gain + problem.discount * (chance @ value(following))
        close(q_value(x, action), target)
    if gamma is None:
        states, mass = state_nodes(problem, feedback, covariance)
        close(mass @ value(states), 0.0, rtol=1e-8)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_objective_is_the_finite_sum(n: int, m: int, seed: int, gamma: float | None) -> None:
    problem, temperature = random_lqr(n, m, seed, gamma=gamma), 0.3
    feedback, covariance = policy(problem, seed)
    for sigma, bonus in ((None, 0.0), (covariance, temperature * entropy(covariance))):
        total = sum(
            weight * (expected_reward(problem, feedback, sigma, mean, spread) + bonus)
            for weight, mean, spread in visits(problem, feedback, sigma)
        )
        close(objective(problem, feedback, sigma, temperature=temperature if bonus else 0.0), total)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_objective_from_the_visits(n: int, m: int, seed: int, gamma: float | None) -> None:
    """J = integral of p^pi r, with p^pi summed from t = 0; from t = 1, as printed, it is another number."""
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, covariance = policy(problem, seed)
    moment = second_moment(problem, feedback, covariance)
    cost = problem.Q + feedback.T @ problem.R @ feedback
    noise = problem.total_weight * torch.trace(problem.R @ covariance)
    close(-torch.trace(cost @ moment) - noise, objective(problem, feedback, covariance))
    if gamma is not None:
        first = problem.initial_covariance + torch.outer(problem.initial_mean, problem.initial_mean)
        differ(-torch.trace(cost @ (moment - first)) - noise, objective(problem, feedback, covariance))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_second_moment_is_the_finite_sum(n: int, m: int, seed: int, gamma: float | None) -> None:
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, covariance = policy(problem, seed)
    for sigma in (None, covariance):
        total = torch.zeros_like(problem.A)
        for weight, mean, spread in visits(problem, feedback, sigma):
            total = total + weight * (spread + torch.outer(mean, mean))
        close(second_moment(problem, feedback, sigma), total)


def slopes(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_gradient_is_the_derivative(n: int, m: int, seed: int, gamma: float | None) -> None:
    """Autodiff through the Lyapunov solve, and central differences of the objective along one direction."""
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, covariance = policy(problem, seed)
    (slope,) = slopes(lambda k: objective(problem, k), feedback)
    close(deterministic_policy_gradient(problem, feedback), slope)
    for temperature in (0.0, 0.3):

        def soft(k: Tensor, s: Tensor, temperature: float = temperature) -> Tensor:
            return objective(problem, k, 0.5 * (s + s.T), temperature=temperature)

        found = policy_gradient(problem, feedback, covariance, temperature=temperature)
        for mine, theirs in zip(found, slopes(soft, feedback, covariance), strict=True):
            close(mine, theirs)
        step = 1e-4
        for sign_k, sign_s in ((1.0, 0.0), (0.0, 1.0)):
            dk, ds = sign_k * torch.ones_like(feedback), sign_s * torch.eye(m, dtype=F64)
            ahead, behind = (soft(feedback + t * dk, covariance + t * ds) for t in (step, -step))
            # Central differences: their own error is of order step^2.
            close((ahead - behind) / (2 * step), (found[0] * dk).sum() + (found[1] * ds).sum(), rtol=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_gradient_is_the_finite_sum_of_action_gradients(n: int, m: int, seed: int, gamma: float | None) -> None:
    """The deterministic policy gradient theorem, state by state, with grad_a Q by autodiff."""
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, _ = policy(problem, seed)
    q_value = q_function(problem, feedback)
    x, weight = state_nodes(problem, feedback)
    action = (x @ feedback.T).requires_grad_()
    (slope,) = torch.autograd.grad(q_value(x, action).sum(), action)
    close(x @ action_gradient(problem, feedback).T, slope)
    close(torch.einsum("i,ia,ib->ab", weight, slope, x), deterministic_policy_gradient(problem, feedback))
    # grad_a Q belongs at a = K x: at another action, such as one with noise on it, the sum is another.
    shifted = action.detach() + 0.3
    (wrong,) = torch.autograd.grad(q_value(x, shifted.requires_grad_()).sum(), shifted)
    if gamma is not None:
        differ(torch.einsum("i,ia,ib->ab", weight, wrong, x), deterministic_policy_gradient(problem, feedback))


def score_sum(
    problem: LQR, feedback: Tensor, covariance: Tensor, x: Tensor, weight: Tensor, critic: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """sum_x weight(x) E_u[grad log pi(u|x) critic(x, u)], the scores by autodiff of the density."""
    noise, chance = nodes(torch.zeros(problem.m, dtype=F64), covariance)
    states = x.repeat_interleave(len(noise), 0)
    actions = states @ feedback.T + noise.repeat(len(x), 1)
    mass = (weight[:, None] * chance).reshape(-1)
    estimate = mass * critic(states, actions).detach()

    def surrogate(k: Tensor, s: Tensor) -> Tensor:
        density = MultivariateNormal(states @ k.T, 0.5 * (s + s.T), validate_args=False)
        return (estimate * density.log_prob(actions)).sum()

    by_feedback, by_covariance = slopes(surrogate, feedback, covariance)
    return by_feedback, by_covariance


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), [(1, 1, 0), (2, 2, 1)])
def test_gradient_is_the_finite_sum_of_scores(n: int, m: int, seed: int, gamma: float | None) -> None:
    """The policy gradient theorem, with Q and with the advantage; without gamma^t it is not the gradient."""
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, covariance = policy(problem, seed)
    q_value, value = q_function(problem, feedback, covariance), value_function(problem, feedback, covariance)
    x, weight = state_nodes(problem, feedback, covariance)
    exact = policy_gradient(problem, feedback, covariance)
    for critic in (q_value, lambda s, a: q_value(s, a) - value(s)):
        for mine, theirs in zip(score_sum(problem, feedback, covariance, x, weight, critic), exact, strict=True):
            close(mine, theirs)
    if gamma is not None:
        undiscounted = torch.cat([nodes(mean, spread)[1] for _, mean, spread in visits(problem, feedback, covariance)])
        undiscounted = undiscounted * problem.total_weight / STEPS  # the same total weight
        differ(score_sum(problem, feedback, covariance, x, undiscounted, q_value)[0], exact[0])


@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_off_policy_gradients(n: int, m: int, seed: int) -> None:
    """The true one is the derivative; the one in use drops grad Q and is not."""
    problem = random_lqr(n, m, seed)
    feedback, covariance = policy(problem, seed)
    behaviour = torch.zeros_like(feedback)
    x, weight = state_nodes(problem, behaviour, covariance)
    value, q_value = value_function(problem, feedback), q_function(problem, feedback)
    close(off_policy_objective(problem, feedback, behaviour, covariance), weight @ value(x))
    close(weight @ q_value(x, x @ feedback.T), weight @ value(x))
    (slope,) = slopes(lambda k: off_policy_objective(problem, k, behaviour, covariance), feedback)
    close(off_policy_gradient(problem, feedback, behaviour, covariance), slope)
    (dropped,) = slopes(lambda k: weight @ q_value(x, x @ k.T), feedback)
    semi = off_policy_semi_gradient(problem, feedback, behaviour, covariance)
    close(semi, dropped)
    differ(semi, slope)
    close(off_policy_semi_gradient(problem, feedback, feedback), deterministic_policy_gradient(problem, feedback))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_compatible_critic_gives_the_exact_gradient(seed: int, gamma: float | None) -> None:
    """With 2 parameters for 6 entries of K the critic is wrong about grad_a Q, and the gradient is still exact."""
    problem = random_lqr(3, 2, seed, gamma=gamma)
    feedback, _ = policy(problem, seed)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn((2, 2, 3), generator=generator, dtype=F64)
    (exact,) = slopes(
        lambda theta: objective(problem, feedback + torch.einsum("i,iab->ab", theta, directions)),
        torch.zeros(2, dtype=F64),
    )
    q_value, value = q_function(problem, feedback), value_function(problem, feedback)

    def critic(w: Tensor, x: Tensor, a: Tensor) -> Tensor:
        features = torch.einsum("iab,sb->sai", directions, x)
        return ((a - x @ feedback.T) * (features @ w)).sum(-1) + value(x)

    def actor_gradient(w: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        action = (x @ feedback.T).requires_grad_()
        (slope,) = torch.autograd.grad(critic(w, x, action).sum(), action)
        return torch.einsum("s,iab,sb,sa->i", weight, directions, x, slope)

    def regression(x: Tensor, weight: Tensor) -> Tensor:
        action = (x @ feedback.T).requires_grad_()
        (slope,) = torch.autograd.grad(q_value(x, action).sum(), action)
        rows = torch.einsum("iab,sb->sai", directions, x) * weight.sqrt()[:, None, None]
        return torch.linalg.lstsq(rows.reshape(-1, 2), (slope * weight.sqrt()[:, None]).reshape(-1)).solution

    x, weight = state_nodes(problem, feedback)
    w = compatible_weights(problem, feedback, directions)
    close(regression(x, weight), w, rtol=1e-9)
    close(actor_gradient(w, x, weight), exact)

    action = (x @ feedback.T).requires_grad_()
    error = torch.autograd.grad((critic(w, x, action) - q_value(x, action)).sum(), action)[0]
    assert float(weight @ error.square().sum(-1)) > 1e-3

    # Regressed on other states, or on Q rather than grad_a Q under an off-centre behaviour, it is no longer exact.
    elsewhere = nodes(torch.ones(3, dtype=F64), problem.W)
    differ(actor_gradient(regression(*elsewhere), x, weight), exact)
    behaviour = x @ feedback.T + 0.5 + 0.3 * x[:, :1]
    rows = torch.einsum("iab,sb,sa->si", directions, x, behaviour - x @ feedback.T)
    target = q_value(x, behaviour) - value(x)
    scale = weight.sqrt()
    by_value = torch.linalg.lstsq(rows * scale[:, None], target * scale).solution
    differ(actor_gradient(by_value, x, weight), exact)

    # All entries of K free: no error is left, and the weights are grad_a Q itself.
    every = torch.eye(6, dtype=F64).reshape(6, 2, 3)
    close(compatible_weights(problem, feedback, every).reshape(2, 3), action_gradient(problem, feedback), rtol=1e-9)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_optimal_feedback(n: int, m: int, seed: int, gamma: float | None) -> None:
    problem = random_lqr(n, m, seed, gamma=gamma)
    feedback, matrix = optimal_feedback(problem), riccati(problem)
    drift = problem.discount * problem.B.T @ matrix @ problem.A
    curvature = problem.R + problem.discount * problem.B.T @ matrix @ problem.B
    residual = problem.Q + problem.discount * problem.A.T @ matrix @ problem.A
    close(residual - drift.T @ torch.linalg.inv(curvature) @ drift, matrix, rtol=1e-12)
    close(-value_function(problem, feedback).matrix, matrix)
    (slope,) = slopes(lambda k: objective(problem, k), feedback)
    scale = float(policy_gradient(problem, 0.0 * feedback, problem.R)[0].abs().max())
    assert float(slope.abs().max()) < 1e-10 * scale
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        other = feedback + 0.05 * torch.randn(feedback.shape, generator=generator, dtype=F64)
        assert float(objective(problem, other)) < float(objective(problem, feedback))
    noisier = replace(problem, W=3.0 * problem.W, initial_mean=problem.initial_mean + 1.0)
    assert torch.equal(optimal_feedback(noisier), feedback)
    if n == m == 1:  # the positive root of the scalar equation
        a, b, q, r = (float(t) for t in (problem.A, problem.B, problem.Q, problem.R))
        g = problem.discount
        half = (r - g * a * a * r - g * b * b * q) / (2.0 * g * b * b)
        close(matrix, torch.tensor([[-half + math.sqrt(half * half + q * r / (g * b * b))]], dtype=F64))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_soft_optimal_policy(n: int, m: int, seed: int, gamma: float | None) -> None:
    """Stationary in K and Sigma, better than its neighbours; without the factor 1/2 it is not."""
    problem, temperature = random_lqr(n, m, seed, gamma=gamma), 0.4
    feedback, covariance = soft_optimal_policy(problem, temperature)
    close(feedback, optimal_feedback(problem))

    def soft(k: Tensor, s: Tensor) -> Tensor:
        return objective(problem, k, 0.5 * (s + s.T), temperature=temperature)

    by_feedback, by_covariance = slopes(soft, feedback, covariance)
    for slope in (by_feedback, by_covariance):
        assert float(slope.abs().max()) < 1e-8
    assert float(slopes(soft, feedback, 2.0 * covariance)[1].abs().max()) > 0.1
    best = float(soft(feedback, covariance))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        root = torch.eye(m, dtype=F64) + 0.1 * torch.randn((m, m), generator=generator, dtype=F64)
        shifted = feedback + 0.05 * torch.randn(feedback.shape, generator=generator, dtype=F64)
        assert float(soft(shifted, covariance)) < best
        assert float(soft(feedback, root @ covariance @ root.T)) < best

    same, diagonal = soft_optimal_policy(problem, temperature, diagonal=True)
    close(same, feedback)
    (by_log_std,) = slopes(lambda v: soft(feedback, torch.diag(torch.exp(2.0 * v))), diagonal.diag().log() / 2.0)
    assert float(by_log_std.abs().max()) < 1e-8
    assert float(soft(feedback, diagonal)) <= best + 1e-12
    if m > 1:  # the diagonal of the full optimum is not the best diagonal
        assert float(soft(feedback, torch.diag(covariance.diag()))) < float(soft(feedback, diagonal)) - 1e-6

    # Temperature is the unit of reward: temperature 1 with the reward divided by it is the same problem.
    scaled = replace(problem, Q=problem.Q / temperature, R=problem.R / temperature)
    for mine, theirs in zip(soft_optimal_policy(scaled, 1.0), (feedback, covariance), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize(("n", "m", "seed"), SIZES)
def test_soft_optimal_policy_is_boltzmann(n: int, m: int, seed: int, gamma: float | None) -> None:
    """temperature log pi = Q - V at every action, and V = temperature log of the integral of exp(Q / temperature)."""
    problem, temperature = random_lqr(n, m, seed, gamma=gamma), 0.4
    feedback, covariance = soft_optimal_policy(problem, temperature)
    q_value = q_function(problem, feedback, covariance, temperature=temperature)
    value = value_function(problem, feedback, covariance, temperature=temperature)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((7, n), generator=generator, dtype=F64)
    u = torch.randn((7, m), generator=generator, dtype=F64)
    log_prob = MultivariateNormal(x @ feedback.T, covariance).log_prob(u)
    close(temperature * log_prob, q_value(x, u) - value(x))
    differ(log_prob, q_value(x, u) - value(x))  # the temperature is not optional
    if m == 1:
        grid = torch.linspace(-10.0, 10.0, 20001, dtype=F64) * covariance.sqrt().squeeze() + feedback @ x[0]
        exponent = q_value(x[0].expand(len(grid), n), grid[:, None]) / temperature
        close(temperature * torch.log(torch.trapezoid(exponent.exp(), grid)), value(x[0]))


def test_random_problems() -> None:
    one, two, other = random_lqr(3, 2, 0), random_lqr(3, 2, 0), random_lqr(3, 2, 1)
    assert torch.equal(one.A, two.A)
    assert not torch.equal(one.A, other.A)
    assert one.gamma == 0.9
    assert random_lqr(1, 1, 0, gamma=None).gamma is None
    close(float(torch.linalg.eigvals(one.A).abs().max()), 0.8)
    for n, m in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least one"):
            random_lqr(n, m, 0)


EYE = torch.eye(2, dtype=F64)
BAD = [
    ({"A": torch.zeros(2, 3, dtype=F64)}, "A has shape"),
    ({"B": torch.zeros(3, 2, dtype=F64)}, "B has shape"),
    ({"Q": torch.zeros(3, 3, dtype=F64)}, "Q has shape"),
    ({"initial_mean": torch.zeros(3, dtype=F64)}, "initial_mean has shape"),
    ({"A": EYE.float()}, "float32"),
    ({"B": EYE * math.nan}, "not finite"),
    ({"R": torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64)}, "R is not symmetric"),
    ({"R": torch.diag(torch.tensor([1.0, 0.0], dtype=F64))}, "R must be positive definite"),
    ({"Q": torch.diag(torch.tensor([1.0, -1.0], dtype=F64))}, "Q must be positive semidefinite"),
    ({"W": -EYE}, "W must be positive semidefinite"),
    ({"initial_covariance": -EYE}, "initial_covariance must be positive semidefinite"),
    ({"gamma": 1.0}, "gamma is 1.0"),
    ({"gamma": -0.1}, "gamma is -0.1"),
    ({"gamma": math.nan}, "gamma is nan"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_problems_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(random_lqr(2, 2, 0), **change)


def test_bad_policies_are_refused() -> None:
    problem = random_lqr(2, 2, 0)
    feedback, covariance = policy(problem, 0)
    with pytest.raises(UsageError, match="feedback has shape"):
        objective(problem, feedback[:1])
    with pytest.raises(UsageError, match="covariance is not symmetric"):
        objective(problem, feedback, covariance + torch.triu(EYE.new_ones(2, 2), 1))
    with pytest.raises(UsageError, match="covariance must be positive semidefinite"):
        objective(problem, feedback, -covariance)
    with pytest.raises(UsageError, match="singular"):
        objective(problem, feedback, temperature=0.1)
    with pytest.raises(UsageError, match="temperature is -1"):
        objective(problem, feedback, covariance, temperature=-1.0)
    with pytest.raises(UsageError, match="temperature is 0"):
        soft_optimal_policy(problem, 0.0)
    with pytest.raises(UsageError, match="directions has shape"):
        compatible_weights(problem, feedback, feedback)
    with pytest.raises(UsageError, match="linearly dependent"):
        compatible_weights(problem, feedback, torch.stack((feedback, 2.0 * feedback)))
    average = replace(problem, gamma=None)
    for function in (off_policy_objective, off_policy_gradient, off_policy_semi_gradient):
        with pytest.raises(UsageError, match="discounted"):
            function(average, feedback, feedback)


def test_unstable_loops_are_refused() -> None:
    """sqrt(gamma) rho < 1 is enough if discounted; the average reward needs rho < 1."""
    growth = 1.04  # 0.9 * 1.04^2 = 0.973
    problem = replace(random_lqr(2, 2, 0), A=growth * EYE)
    zero = torch.zeros(2, 2, dtype=F64)
    assert math.isfinite(float(objective(problem, zero)))
    for unstable in (replace(problem, A=1.06 * EYE), replace(problem, gamma=None)):
        for call in (objective, second_moment, deterministic_policy_gradient, value_function, q_function):
            with pytest.raises(UsageError, match="unstable"):
                call(unstable, zero)
        optimal_feedback(unstable)
    with pytest.raises(UsageError, match="no feedback seems to stabilise"):
        optimal_feedback(replace(problem, A=2.0 * EYE, B=zero))
    with pytest.raises(UsageError, match="unstable"):
        optimal_feedback(replace(problem, A=2.0 * EYE, Q=zero))
