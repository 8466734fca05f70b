"""Every formula of the notes against exact solutions: the statements of ``exact.theorems``, and the shipped functions.

A row that names a shipped function goes through that function and would fail if it were wrong; the other side is
exact. ``steepest verify`` prints the table. How a row passes, over N random problems:

    equality            the norm-wise relative error is at most 1e-9 on all
    inequality          it holds on all, up to 1e-9 of rounding; the tightest ratio is reported
    negative control    a known mistake: its error has to exceed 1e-3 on at least 90% of the problems

A figure that is not a number fails the row, of whatever kind.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest import distributions, losses, numerics, returns
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.reinforce import REINFORCE, REINFORCEConfig
from steepest.errors import UsageError
from steepest.exact import finite_mdp as mdps
from steepest.exact import language as languages
from steepest.exact import theorems
from steepest.exact.finite_mdp import softmax_policy
from steepest.exact.theorems import (
    CONTROL_SHARE,
    CONTROL_THRESHOLD,
    HORIZON,
    STATEMENTS,
    TOLERANCE,
    Kind,
    Preferences,
    Process,
    Recording,
    Sides,
    Statement,
    continuing,
    episodic,
    gradient,
    preferences,
    recording,
    relative_error,
    tightness,
    undiscounted_episodic,
)
from steepest.types import ActionSpec, ObsField, ObsSpec, Rollout

F64 = torch.float64


# 1: distributions


class Policies(NamedTuple):
    """Two distributions of one kind, actions, and the weights that make sums over them expectations under the first."""

    p: Any
    q: Any
    action: Tensor
    weight: Tensor
    log_density: Tensor  # of the first, by its definition


def _draw(seed: int, purpose: int) -> Callable[..., Tensor]:
    g = torch.Generator().manual_seed(1_000_003 * purpose + seed)
    return lambda *shape: torch.randn(shape, generator=g, dtype=F64)


def _gauss_hermite(points: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Nodes (n, dimension) and weights (n,): expectations under N(0, I), exact up to degree 2 points - 1."""
    x, w = np.polynomial.hermite_e.hermegauss(points)
    nodes = torch.cartesian_prod(*[torch.tensor(x, dtype=F64)] * dimension)
    weights = torch.cartesian_prod(*[torch.tensor(w / math.sqrt(2.0 * math.pi), dtype=F64)] * dimension)
    return nodes, weights.prod(-1)


def categorical(seed: int) -> Policies:
    """Two distributions over five choices."""
    p, q = torch.log_softmax(_draw(seed, 21)(2, 5), -1)
    return Policies(
        distributions.Categorical(p.expand(5, 5)),
        distributions.Categorical(q.expand(5, 5)),
        torch.arange(5),
        p.exp(),
        p,
    )


def factored(seed: int) -> Policies:
    """Two components, of two and of three choices; the first is padded."""
    draw = _draw(seed, 22)
    tables: list[tuple[Tensor, Tensor, Tensor]] = []
    action = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    for _ in range(2):
        two, three = torch.log_softmax(draw(2), -1), torch.log_softmax(draw(3), -1)
        padded = torch.cat([two, torch.full((1,), torch.finfo(F64).min, dtype=F64)])
        tables.append((torch.stack([padded, three]).expand(6, 2, 3), two, three))
    log_density = tables[0][1][action[:, 0]] + tables[0][2][action[:, 1]]
    p, q = (distributions.Factored(table[0]) for table in tables)
    return Policies(p, q, action, log_density.exp(), log_density)


def bernoulli(seed: int) -> Policies:
    """Three bits."""
    draw = _draw(seed, 23)
    p, q = (torch.log_softmax(draw(3, 2), -1) for _ in range(2))
    action = torch.cartesian_prod(*[torch.arange(2)] * 3)
    log_density = p[torch.arange(3), action].sum(-1)
    first, second = (distributions.Bernoulli(x.expand(8, 3, 2)) for x in (p, q))
    return Policies(first, second, action, log_density.exp(), log_density)


def _normal_log_density(action: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log N(a; mean, covariance), by dense linear algebra."""
    d = action - mean
    quadratic = (d * torch.linalg.solve(covariance, d.mT).mT).sum(-1)
    return -0.5 * (quadratic + torch.logdet(2.0 * math.pi * covariance))


def diagonal_gaussian(seed: int) -> Policies:
    """Two dimensions; expectations of quadratics by Gauss-Hermite quadrature, which is exact."""
    draw, (nodes, weight) = _draw(seed, 24), _gauss_hermite(4, 2)
    (m, log_s), (m2, log_s2) = ((draw(2), 0.5 * draw(2)) for _ in range(2))
    action = m + log_s.exp() * nodes
    n = len(nodes)
    return Policies(
        distributions.DiagonalGaussian(m.expand(n, 2), log_s.expand(n, 2)),
        distributions.DiagonalGaussian(m2.expand(n, 2), log_s2.expand(n, 2)),
        action,
        weight,
        _normal_log_density(action, m, torch.diag((2.0 * log_s).exp())),
    )


def full_gaussian(seed: int) -> Policies:
    """Two dimensions, correlated."""
    draw, (nodes, weight) = _draw(seed, 25), _gauss_hermite(4, 2)

    def lower() -> Tensor:
        return torch.tril(draw(2, 2), -1) + torch.diag((0.5 * draw(2)).exp())

    (m, tril), (m2, tril2) = ((draw(2), lower()) for _ in range(2))
    action = m + nodes @ tril.mT
    n = len(nodes)
    return Policies(
        distributions.FullGaussian(m.expand(n, 2), tril),
        distributions.FullGaussian(m2.expand(n, 2), tril2),
        action,
        weight,
        _normal_log_density(action, m, tril @ tril.mT),
    )


def log_prob_is_the_density(p: Policies) -> Sides:
    """log_prob against the definition."""
    return Sides(p.p.log_prob(p.action), p.log_density)


def entropy_and_kl_are_expectations(p: Policies) -> Sides:
    """H = -E_p[log p],  KL(p || q) = E_p[log p - log q]: closed forms against sums or quadrature over actions."""
    log_p, log_q = p.p.log_prob(p.action), p.q.log_prob(p.action)
    right = torch.stack([-(p.weight @ log_p), p.weight @ (log_p - log_q)])
    return Sides(torch.stack([p.p.entropy()[0], p.p.kl(p.q)[0]]), right)


def kl_the_wrong_way_round(p: Policies) -> Sides:
    """Negative control: KL(q || p) in the place of KL(p || q)."""
    log_p, log_q = p.p.log_prob(p.action), p.q.log_prob(p.action)
    return Sides(p.q.kl(p.p)[0], p.weight @ (log_p - log_q))


def tanh_density(p: Policies) -> Sides:
    """log pi(tanh u) = log N(u) - sum_i log(1 - tanh(u_i)^2), and the KL is that before the squash."""
    squashed, other = (distributions.TanhGaussian(x.mean, x.log_std) for x in (p.p, p.q))
    expected = p.log_density + 2.0 * torch.log(torch.cosh(p.action)).sum(-1)  # 1 - tanh^2 = 1 / cosh^2
    kl = p.weight @ (squashed.log_prob(p.action) - other.log_prob(p.action))
    left = torch.cat([squashed.log_prob(p.action), squashed.kl(other)[:1]])
    return Sides(left, torch.cat([expected, kl.view(1)]))


def score_has_zero_mean(p: Policies) -> Sides:
    """E_{a~pi}[grad log pi(a)] = 0 for a Gaussian, so that no baseline biases; measured against E|grad log pi|."""

    def mean_log_prob(x: Tensor) -> Tensor:
        policy = distributions.DiagonalGaussian(x[0].expand_as(p.action), x[1].expand_as(p.action))
        return p.weight @ policy.log_prob(p.action)

    found = gradient(mean_log_prob, torch.stack([p.p.mean[0], p.p.log_std[0]]))
    return Sides(found, torch.zeros_like(found), scale=float(torch.exp(-p.p.log_std[0]).norm()))


# 1.2 to 1.6: the score function


def score_gradient(
    c: Process, advantage: Tensor, weight: Tensor | float = 1.0, paths: theorems.Paths | None = None
) -> Tensor:
    """(S, A) what ``score_function_loss`` estimates: minus its expected gradient, over every trajectory (of pi)."""
    paths = paths or c.paths

    def expected_loss(theta: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(theta, -1)[paths.state[:-1]])
        per_step = losses.score_function_loss(policy.log_prob(paths.action), advantage)
        return paths.probability @ (per_step * weight * paths.valid).sum(0)

    return -gradient(expected_loss, c.theta)


def _flags(c: Process) -> tuple[Tensor, Tensor, Tensor]:
    """terminated, truncated, valid."""
    return c.paths.terminated, torch.zeros_like(c.paths.terminated), c.paths.valid


def _to_go(c: Process) -> Tensor:
    """(T, K) the shipped reward-to-go, without bootstrap."""
    nothing = torch.zeros(c.paths.state.shape, dtype=F64)
    return returns.reward_to_go(c.paths.reward, nothing, *_flags(c), c.mdp.gamma)


def _undiscounted_weighting(c: Process) -> Tensor:
    return mdps.undiscounted_weighting_gradient(c.mdp, softmax_policy, c.theta)


def _here(c: Process, by_state: Tensor) -> Tensor:
    """(T, K) a function of the state at every step."""
    return by_state[c.paths.state[:-1]]


def full_return(c: Process) -> Sides:
    """E[(sum_t grad log pi) R(tau)] = grad V."""
    return Sides(score_gradient(c, c.returns.expand_as(c.paths.reward)), c.gradient)


def sum_over_trajectories(c: Process) -> Sides:
    """Negative control: two trajectories summed, as in the box, instead of averaged."""
    return Sides(2.0 * score_gradient(c, c.returns.expand_as(c.paths.reward)), c.gradient)


def reward_to_go(c: Process) -> Sides:
    """E[sum_t gamma^t grad log pi G_t] = grad V."""
    return Sides(score_gradient(c, _to_go(c), c.discounts), c.gradient)


def reward_to_go_of_the_next_step(c: Process) -> Sides:
    """Negative control: rewards counted from t + 1."""
    return Sides(score_gradient(c, _to_go(c) - c.paths.reward, c.discounts), c.gradient)


def undiscounted_states(c: Process) -> Sides:
    """Without gamma^t on the states, the estimator has a mean of its own: plain visits in the theorem's sum."""
    return Sides(score_gradient(c, _to_go(c)), _undiscounted_weighting(c))


def undiscounted_states_are_biased(c: Process) -> Sides:
    """Negative control: that mean is not the gradient of the discounted objective."""
    return Sides(score_gradient(c, _to_go(c)), c.gradient)


def with_baseline(c: Process) -> Sides:
    """E[sum_t gamma^t grad log pi (G_t - b(s_t))] = grad V, b arbitrary."""
    return Sides(score_gradient(c, _to_go(c) - _here(c, c.baseline), c.discounts), c.gradient)


def baseline_inside_the_sum(c: Process) -> Sides:
    """Negative control: sum_{t' >= t} (r_t' - b(s_t')), as printed."""
    b = _here(c, c.baseline) * c.paths.valid
    inside = torch.stack([(c.discounts[: HORIZON - t] * b[t:]).sum(0) for t in range(HORIZON)])
    return Sides(score_gradient(c, _to_go(c) - inside, c.discounts), c.gradient)


def standardised(c: Process) -> Sides:
    """Standardised advantages at gamma = 1: the shift is a baseline, so the gradient is divided and nothing else."""
    weight = c.paths.probability * c.paths.valid * len(c.paths.probability)
    g = _to_go(c)
    mean = (weight * g).sum() / weight.sum()
    deviation = ((weight * (g - mean).square()).sum() / weight.sum()).sqrt()
    return Sides(score_gradient(c, numerics.standardize(g, weight, epsilon=0.0)), c.gradient / deviation)


def exact_advantage(c: Process) -> Sides:
    """E[sum_t gamma^t grad log pi A(s_t, a_t)] = grad V."""
    a = mdps.advantage(c.mdp, c.policy)[c.paths.state[:-1], c.paths.action]
    return Sides(score_gradient(c, a, c.discounts), c.gradient)


def advantage_of_the_next_step(c: Process) -> Sides:
    """Negative control: the advantage at t', a later step than the score's."""
    a = mdps.advantage(c.mdp, c.policy)[c.paths.state[:-1], c.paths.action] * c.paths.valid
    later = torch.cat([a[1:], torch.zeros_like(a[:1])])
    return Sides(score_gradient(c, later, c.discounts), c.gradient)


def _errors(c: Process, value: Tensor) -> Tensor:
    """(T, K) the shipped TD errors for values by state."""
    v = value[c.paths.state]
    return returns.td_error(c.paths.reward, v[:-1], v[1:], c.paths.terminated, c.mdp.gamma)


def td_error_as_advantage(c: Process) -> Sides:
    """E[sum_t gamma^t grad log pi delta_t] = grad V where V is exact."""
    return Sides(score_gradient(c, _errors(c, mdps.state_value(c.mdp, c.policy)), c.discounts), c.gradient)


def _critic_gradient(c: Process, target: Callable[[Tensor], Tensor]) -> Tensor:
    """(S,) the expected gradient of the value loss in tabular values, at the arbitrary baseline."""

    def expected_loss(value: Tensor) -> Tensor:
        per_step = losses.value_loss(value[c.paths.state[:-1]], target(value))
        return c.paths.probability @ (per_step * c.paths.valid).sum(0)

    return gradient(expected_loss, c.baseline)


def _visits(c: Process) -> Tensor:
    return mdps.expected_visits(c.mdp.with_gamma(1.0), c.policy)


def _value_pull(c: Process) -> Tensor:
    """(S,) visits times (v - V^pi)."""
    return _visits(c) * (c.baseline - mdps.state_value(c.mdp, c.policy))


def monte_carlo_critic(c: Process) -> Sides:
    """Regression on the reward-to-go pulls every state to its value, as hard as it is visited."""
    return Sides(_critic_gradient(c, lambda _: _to_go(c)), _value_pull(c))


def _bellman_pull(c: Process) -> Tensor:
    """(S,) visits times (v - (r_pi + gamma P_pi v)), v = 0 where the process is over."""
    v = torch.where(c.mdp.absorbing, 0.0, c.baseline)
    backup = mdps.policy_reward(c.mdp, c.policy) + c.mdp.gamma * mdps.policy_transition(c.mdp, c.policy) @ v
    return _visits(c) * (v - backup)


def bootstrapped_critic(c: Process) -> Sides:
    """Regression on r + gamma (1 - terminated) V(s'), held fixed, pulls every state to its Bellman backup."""
    found = _critic_gradient(c, lambda v: _errors(c, v) + v[c.paths.state[:-1]])
    return Sides(found, _bellman_pull(c))


def bootstrapped_critic_without_gamma(c: Process) -> Sides:
    """Negative control: the target as printed, r + V(s'), without gamma or a terminal case."""
    return Sides(_critic_gradient(c, lambda v: c.paths.reward + v[c.paths.state[1:]]), _bellman_pull(c))


def bootstrapped_critic_past_the_end(c: Process) -> Sides:
    """Negative control: a target that goes on after termination."""
    found = _critic_gradient(c, lambda v: c.paths.reward + c.mdp.gamma * v[c.paths.state[1:]])
    return Sides(found, _bellman_pull(c))


def target_not_held_fixed(c: Process) -> Sides:
    """Negative control: the residual gradient, which differentiates the target too."""

    def expected_loss(value: Tensor) -> Tensor:
        return c.paths.probability @ (0.5 * _errors(c, value).square() * c.paths.valid).sum(0)

    return Sides(gradient(expected_loss, c.baseline), _bellman_pull(c))


def off_policy_actor(c: Process) -> Sides:
    """Off-PAC's actor: E_beta[gamma^t rho grad log pi delta] is the gradient with grad Q dropped, V being exact."""
    return Sides(_off_policy_actor(c, _off_policy_errors(c)), _off_policy_right(c))


def off_policy_actor_with_the_next_reward(c: Process) -> Sides:
    """Negative control: delta_t with r_{t+1}, read in the indices of the other sections as the next step's reward."""
    paths = c.other_paths
    following = torch.cat([paths.reward[1:], torch.zeros_like(paths.reward[:1])])
    return Sides(_off_policy_actor(c, _off_policy_errors(c) - paths.reward + following), _off_policy_right(c))


def _off_policy_errors(c: Process) -> Tensor:
    paths = c.other_paths
    v = mdps.state_value(c.mdp, c.policy)[paths.state]
    return returns.td_error(paths.reward, v[:-1], v[1:], paths.terminated, c.mdp.gamma)


def _off_policy_right(c: Process) -> Tensor:
    return mdps.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted")


def _off_policy_actor(c: Process, delta: Tensor) -> Tensor:
    paths = c.other_paths
    ratio = (c.policy / c.other)[paths.state[:-1], paths.action]
    return score_gradient(c, ratio * delta, c.discounts, paths)


# 1.7: the reparametrised gradient


class SoftActor(NamedTuple):
    """A Gaussian policy in two dimensions, a cubic Q, a temperature, and noise with weights that integrate both."""

    parameters: Tensor  # (2, 2): mean and log standard deviation
    coefficients: Tensor  # (3, 2) of a, a^2 and a^3
    temperature: float
    noise: Tensor
    weight: Tensor

    def q(self, action: Tensor) -> Tensor:
        """(n,) a cubic with a product term."""
        powers = torch.stack([action, action.square(), action**3])
        return (self.coefficients.unsqueeze(1) * powers).sum((0, -1)) + action.prod(-1)


@lru_cache(maxsize=256)
def soft_actor(seed: int) -> SoftActor:
    """Noise from N(0, I) as Gauss-Hermite nodes: exact for polynomials of degree 11."""
    draw = _draw(seed, 26)
    mean_and_log_std = 0.5 * draw(2, 2) - torch.tensor([[0.0], [0.5]], dtype=F64)
    return SoftActor(mean_and_log_std, 0.3 * draw(3, 2), 0.5 + float(draw().abs()), *_gauss_hermite(6, 2))


def soft_actor_gradient(c: SoftActor) -> Sides:
    """grad E[temperature log pi - Q] = E[temperature grad log pi + (temperature grad_a log pi - grad_a Q) grad f]."""
    return Sides(_soft_actor_slope(c), _soft_actor_formula(c, printed=False))


def soft_actor_gradient_as_printed(c: SoftActor) -> Sides:
    """Negative control: the formula as printed begins with grad pi."""
    return Sides(_soft_actor_slope(c), _soft_actor_formula(c, printed=True))


def _soft_actor_slope(c: SoftActor) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        policy = distributions.DiagonalGaussian(x[0].expand_as(c.noise), x[1].expand_as(c.noise))
        action = policy.sample(c.noise)
        return c.weight @ (c.temperature * policy.log_prob(action) - c.q(action))

    return gradient(loss, c.parameters)


def _soft_actor_formula(c: SoftActor, *, printed: bool) -> Tensor:
    mean, std = c.parameters[0], c.parameters[1].exp()
    action = mean + std * c.noise
    by_mean, by_log_std = c.noise / std, c.noise.square() - 1.0  # grad log pi at a fixed action
    if printed:
        density = _density(c.noise, std)
        by_mean, by_log_std = by_mean * density, by_log_std * density
    slope = c.coefficients[0] + 2.0 * c.coefficients[1] * action + 3.0 * c.coefficients[2] * action.square()
    through_action = -c.temperature * c.noise / std - slope - action.flip(-1)
    rows = torch.stack(
        [c.temperature * by_mean + through_action, c.temperature * by_log_std + through_action * std * c.noise]
    )
    return torch.einsum("n,knd->kd", c.weight, rows)


def _density(noise: Tensor, std: Tensor) -> Tensor:
    """(n, 1) the density of N(mean, std^2) at mean + std noise."""
    log_density = -0.5 * noise.square() - torch.log(std) - 0.5 * math.log(2.0 * math.pi)
    return log_density.sum(-1, keepdim=True).exp()


# 1.10: trust regions and advantages


def _expected_clipped_loss(c: Process, theta: Tensor, epsilon: float) -> Tensor:
    """The clipped loss over states as visited and actions of the old policy, times 1 / (1 - gamma)."""
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    log_prob = torch.log_softmax(theta, -1)
    loss = losses.clipped_surrogate_loss(log_prob, c.policy.log(), mdps.advantage(c.mdp, c.policy), epsilon)
    return (weight * loss).sum()


CLIP = 0.2


def clipped_at_the_old_policy(c: Process) -> Sides:
    """At ratio 1 the clipped surrogate has the gradient of the objective."""
    return Sides(-gradient(lambda theta: _expected_clipped_loss(c, theta, CLIP), c.theta), c.gradient)


def clipped_at_a_distance(c: Process) -> Sides:
    """E[min(r A, clip(r, 1 - eps, 1 + eps) A)], by cases: the ratio is capped above where A > 0 and below elsewhere."""
    a = mdps.advantage(c.mdp, c.policy)
    ratio = c.other / c.policy
    by_cases = torch.where(a > 0.0, ratio.clamp(max=1.0 + CLIP), ratio.clamp(min=1.0 - CLIP)) * a
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    return Sides(-_expected_clipped_loss(c, c.other_theta, CLIP), (weight * by_cases).sum())


def clipped_and_not(c: Process) -> Sides:
    """The clipped surrogate promises no more than the surrogate, and away from ratio 1 less (the negative control)."""
    return Sides(-_expected_clipped_loss(c, c.other_theta, CLIP), theorems.surrogate(c, c.other))


def _expected_kl_estimate(c: Process) -> Tensor:
    return (c.policy * losses.kl_estimate(c.other.log(), c.policy.log())).sum(-1)


def kl_estimate(c: Process) -> Sides:
    """E_{a~old}[k3] = KL(old || new)."""
    return Sides(_expected_kl_estimate(c), (c.policy * (c.policy.log() - c.other.log())).sum(-1))


def kl_estimate_the_wrong_way_round(c: Process) -> Sides:
    """Negative control: it estimates KL(new || old)."""
    return Sides(_expected_kl_estimate(c), (c.other * (c.other.log() - c.policy.log())).sum(-1))


def _no_flags(r: Recording) -> tuple[Tensor, Tensor, Tensor]:
    never = torch.zeros_like(r.reward, dtype=torch.bool)
    return never, never, ~never


def _gae(r: Recording, decay: float) -> Tensor:
    return returns.generalized_advantage(r.reward, r.value, *_no_flags(r), r.gamma, decay)


def td_errors_telescope(r: Recording) -> Sides:
    """sum_{l<k} gamma^l delta_{t+l} = A^(k), for every k."""
    never = _no_flags(r)[0]
    delta = returns.td_error(r.reward, r.value[:-1], r.value[1:], never, r.gamma)
    steps = len(r.reward)
    right = torch.stack([theorems.k_step_advantage(r, 0, k) for k in range(1, steps + 1)])
    return Sides((r.gamma ** torch.arange(steps, dtype=F64) * delta).cumsum(0), right)


def gae_is_a_mixture(r: Recording) -> Sides:
    """GAE = (1 - lambda) sum_{k<n} lambda^(k-1) A^(k) + lambda^(n-1) A^(n)."""
    return Sides(_gae(r, r.trace_decay), theorems.weighted_advantages(r))


def gae_is_a_sum(r: Recording) -> Sides:
    """GAE = sum_{l=0}^{T-t-1} (gamma lambda)^l delta_{t+l}."""
    return Sides(_gae(r, r.trace_decay), theorems.summed_errors(r))


def gae_at_lambda_0(r: Recording) -> Sides:
    """lambda = 0 is the TD error."""
    return Sides(_gae(r, 0.0), r.delta)


def gae_at_lambda_1(r: Recording) -> Sides:
    """lambda = 1 is the reward-to-go, bootstrapped at the end, less the value."""
    steps = len(r.reward)
    return Sides(_gae(r, 1.0), torch.stack([theorems.k_step_advantage(r, t, steps - t) for t in range(steps)]))


def gae_with_equal_last_weight(r: Recording) -> Sides:
    """Negative control: a finite mixture whose last weight is (1 - lambda) lambda^(n-1)."""
    return Sides(_gae(r, r.trace_decay), theorems.weighted_advantages(r, last_takes_the_rest=False))


def lambda_return(r: Recording) -> Sides:
    """G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}], G_T = V(s_T), by the recursion itself."""
    found = returns.lambda_return(r.reward, r.value, *_no_flags(r), r.gamma, r.trace_decay)
    following, rows = r.value[-1], list[Tensor]()
    for t in reversed(range(len(r.reward))):
        following = r.reward[t] + r.gamma * ((1.0 - r.trace_decay) * r.value[t + 1] + r.trace_decay * following)
        rows.append(following)
    return Sides(found, torch.stack(rows[::-1]))


class Episodes(NamedTuple):
    """A recording over several episodes: one terminates, one is truncated, the last is cut by the recording's end."""

    recording: Recording
    terminated: Tensor
    truncated: Tensor


@lru_cache(maxsize=256)
def episodes(seed: int) -> Episodes:
    """Ten steps; the first episode terminates after three, the second is truncated after four more."""
    r = recording(seed)
    terminated, truncated = (torch.arange(len(r.reward)) == t for t in (2, 6))
    return Episodes(r, terminated, truncated)


def _episode_sums(e: Episodes) -> Tensor:
    """(T,) sum_l (gamma lambda)^l delta_{t+l} within every episode, each as a recording of its own."""
    r = e.recording
    after_the_end = torch.cat([r.value[:3], torch.zeros(1, dtype=F64)])  # nothing is worth anything after termination
    parts = ((r.reward[:3], after_the_end), (r.reward[3:7], r.value[3:8]), (r.reward[7:], r.value[7:]))
    return torch.cat([theorems.summed_errors(Recording(x, v, r.gamma, r.trace_decay)) for x, v in parts])


def _gae_of_episodes(e: Episodes, terminated: Tensor, truncated: Tensor) -> Tensor:
    r = e.recording
    valid = torch.ones_like(terminated)
    return returns.generalized_advantage(r.reward, r.value, terminated, truncated, valid, r.gamma, r.trace_decay)


def gae_within_episodes(e: Episodes) -> Sides:
    """Never across an episode's end; V = 0 after termination, the true next value at truncation."""
    return Sides(_gae_of_episodes(e, e.terminated, e.truncated), _episode_sums(e))


def gae_across_episodes(e: Episodes) -> Sides:
    """Negative control: the recursion taken across the ends of episodes."""
    never = torch.zeros_like(e.terminated)
    return Sides(_gae_of_episodes(e, never, never), _episode_sums(e))


def truncation_as_termination(e: Episodes) -> Sides:
    """Negative control: a truncated episode treated as if it had ended."""
    never = torch.zeros_like(e.terminated)
    return Sides(_gae_of_episodes(e, e.terminated | e.truncated, never), _episode_sums(e))


# The algorithms' own losses


@cache
def _agent(kind: type[PPO] | type[REINFORCE], states: int, actions: int) -> PPO | REINFORCE:
    """An agent in float64 without hidden layers: one-hot states in, a table of logits and one of values inside."""
    obs = ObsSpec((ObsField("obs", "vector", (states,), "float32"),), is_dict=False)
    settings: dict[str, Any] = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False}
    config = PPOConfig(**settings, minibatches=1) if kind is PPO else REINFORCEConfig(**settings)
    agent = kind(config, obs, ActionSpec("discrete", (), "int64", (actions,), (0,)))  # pyright: ignore[reportArgumentType]
    agent.module.double()
    return agent


def agent_gradient(
    kind: type[PPO] | type[REINFORCE], c: Process, value: Tensor, trace_decay: float
) -> tuple[Tensor, Tensor]:
    """The gradients, in logits (S, A) and values (S,), of an agent's loss on its own rollout, in expectation.

    The rollout holds every trajectory once; its weight is its probability. Times the mean length of an episode, since
    the loss is a mean over steps where the theorems have a sum.
    """
    agent = _agent(kind, c.mdp.num_states, c.mdp.num_actions)
    parameters = {
        "policy_head.weight": c.theta.T,
        "policy_head.bias": torch.zeros(c.mdp.num_actions, dtype=F64),
        "value_head.weight": value.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    state = {k: x[0].double() if x.is_floating_point() else x[0] for k, x in agent.state.items()}
    state["params"] = agent.layout.flatten(parameters)
    numbers = {
        "gamma": c.mdp.gamma,
        "gae_lambda": trace_decay,
        "clip_epsilon": CLIP,
        "value_coef": 0.5,
        "entropy_coef": 0.0,
    }
    hyper = {k: torch.tensor(x, dtype=F64) for k, x in numbers.items()}
    paths = c.paths
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(paths.state, c.mdp.num_states).to(F64)},
        action=paths.action,
        reward=paths.reward,
        terminated=paths.terminated,
        truncated=torch.zeros_like(paths.terminated),
        valid=paths.valid,
        episode_step=torch.arange(HORIZON + 1).unsqueeze(-1).expand_as(paths.state),
        action_mask=None,
        memory=None,
    )
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, hyper)
    weight = paths.valid * paths.probability
    batch["weight"] = (weight * len(paths.probability)).flatten()
    leaf = state["params"].clone().requires_grad_()
    loss, _ = agent.loss(leaf, state, batch, hyper)
    slope = agent.layout.unflatten(torch.autograd.grad(loss, leaf)[0])
    length = weight.sum()
    return length * slope["policy_head.weight"].T, length * slope["value_head.weight"][0]


def ppo_with_exact_values(c: Process) -> Sides:
    """PPO's first gradient at gamma = 1, exact values, lambda = 0.7."""
    return Sides(-agent_gradient(PPO, c, mdps.state_value(c.mdp, c.policy), 0.7)[0], c.gradient)


def ppo_with_any_values(c: Process) -> Sides:
    """PPO's first gradient at gamma = 1, lambda = 1, arbitrary values."""
    return Sides(-agent_gradient(PPO, c, c.baseline, 1.0)[0], c.gradient)


def ppo_with_biased_values(c: Process) -> Sides:
    """Negative control: below lambda = 1 inexact values bias the gradient."""
    return Sides(-agent_gradient(PPO, c, c.baseline, 0.7)[0], c.gradient)


def ppo_with_a_discount(c: Process) -> Sides:
    """With a discount PPO climbs the sum with states weighted by plain visits."""
    return Sides(-agent_gradient(PPO, c, mdps.state_value(c.mdp, c.policy), 0.7)[0], _undiscounted_weighting(c))


def ppo_critic(c: Process) -> Sides:
    """PPO's critic at lambda = 1 is pulled to V^pi, as hard as states are visited."""
    return Sides(agent_gradient(PPO, c, c.baseline, 1.0)[1], 0.5 * _value_pull(c))


def reinforce_with_any_baseline(c: Process) -> Sides:
    """REINFORCE's gradient at gamma = 1, whatever the baseline."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], c.gradient)


def reinforce_with_a_discount(c: Process) -> Sides:
    """With a discount REINFORCE climbs the sum with states weighted by plain visits."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], _undiscounted_weighting(c))


def reinforce_is_not_the_discounted_gradient(c: Process) -> Sides:
    """Negative control: which is not the gradient of the discounted objective."""
    return Sides(-agent_gradient(REINFORCE, c, c.baseline, 1.0)[0], c.gradient)


def reinforce_critic(c: Process) -> Sides:
    """REINFORCE's baseline is pulled to V^pi, as hard as states are visited."""
    return Sides(agent_gradient(REINFORCE, c, c.baseline, 1.0)[1], 0.5 * _value_pull(c))


# 2.2.1: the score function of language models


def rlhf_score_function(p: Preferences) -> Sides:
    """The same loss with the shaped reward, over every response, has the gradient of the RLHF objective."""
    return Sides(_rlhf_slope(p, p.kl_coef), _rlhf_gradient(p))


def rlhf_without_the_penalty(p: Preferences) -> Sides:
    """Negative control: the score alone as reward."""
    return Sides(_rlhf_slope(p, 0.0), _rlhf_gradient(p))


def _rlhf_gradient(p: Preferences) -> Tensor:
    return languages.rlhf_gradient(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)


def _rlhf_slope(p: Preferences, kl_coef: float) -> Tensor:
    """(P, S, V) minus the expected gradient of the score-function loss, tokens scored by the shipped Categorical."""
    language = p.language
    shaped = p.score - kl_coef * (p.log_policy - p.log_reference)
    weight = language.prompt_weight.unsqueeze(-1) * p.log_policy.exp()

    def expected_loss(logits: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(logits, -1)[:, language.prefix])
        token = policy.log_prob(language.tokens.expand(len(language.prompts), -1, -1))
        log_prob = (token * language.mask).sum(-1)
        return (weight * losses.score_function_loss(log_prob, shaped)).sum()

    return -gradient(expected_loss, p.logits)


# The table

_E: Kind = "equality"
_I: Kind = "inequality"
_N: Kind = "negative control"
_SCORE = "losses.score_function_loss"
_VALUE = "losses.value_loss"
_CLIPPED = "losses.clipped_surrogate_loss"
_GAE = "returns.generalized_advantage"
_TD = "returns.td_error"
_PPO = "algorithms.ppo.PPO.loss"
_REINFORCE = "algorithms.reinforce.REINFORCE.loss"


def _distribution_rows(name: str, problem: Callable[[int], Policies]) -> tuple[Statement, ...]:
    tested = f"distributions.{name}"
    expectations = f"{name}: H = -E[log p], KL = E[log p - log q]"
    return (
        Statement("1", f"{name}: log_prob is the log-density", _E, problem, log_prob_is_the_density, tested),
        Statement("1", expectations, _E, problem, entropy_and_kl_are_expectations, tested),
        Statement("1", f"{name}: KL(q||p) for KL(p||q)", _N, problem, kl_the_wrong_way_round, tested),
    )


SHIPPED: tuple[Statement, ...] = (
    *_distribution_rows("Categorical", categorical),
    *_distribution_rows("Factored", factored),
    *_distribution_rows("Bernoulli", bernoulli),
    *_distribution_rows("DiagonalGaussian", diagonal_gaussian),
    *_distribution_rows("FullGaussian", full_gaussian),
    Statement("1", "TanhGaussian: density and KL", _E, diagonal_gaussian, tanh_density, "distributions.TanhGaussian"),
    Statement("1.2", "full return", _E, episodic, full_return, _SCORE),
    Statement("1.2", "trajectories summed, not averaged", _N, episodic, sum_over_trajectories, _SCORE),
    Statement("1.2", "gamma = 1", _E, undiscounted_episodic, full_return, _SCORE),
    Statement("1.3", "reward-to-go with gamma^t", _E, episodic, reward_to_go, "returns.reward_to_go"),
    Statement("1.3", "reward-to-go at gamma = 1", _E, undiscounted_episodic, reward_to_go, "returns.reward_to_go"),
    Statement("1.3", "rewards from t + 1", _N, episodic, reward_to_go_of_the_next_step, "returns.reward_to_go"),
    Statement("1.3", "states without gamma^t: their own sum", _E, episodic, undiscounted_states, _SCORE),
    Statement("1.3", "states without gamma^t: the gradient", _N, episodic, undiscounted_states_are_biased, _SCORE),
    Statement("1.3", "REINFORCE at gamma = 1", _E, undiscounted_episodic, reinforce_with_any_baseline, _REINFORCE),
    Statement("1.3", "REINFORCE with a discount: its own sum", _E, episodic, reinforce_with_a_discount, _REINFORCE),
    Statement(
        "1.3",
        "REINFORCE with a discount: the gradient",
        _N,
        episodic,
        reinforce_is_not_the_discounted_gradient,
        _REINFORCE,
    ),
    Statement(
        "1.4",
        "E[grad log pi] = 0, Gaussian",
        _E,
        diagonal_gaussian,
        score_has_zero_mean,
        "distributions.DiagonalGaussian",
    ),
    Statement("1.4", "baseline b(s_t), arbitrary", _E, episodic, with_baseline, _SCORE),
    Statement("1.4", "baseline b(s_t') inside the sum", _N, episodic, baseline_inside_the_sum, _SCORE),
    Statement("1.4", "REINFORCE's baseline is pulled to V^pi", _E, episodic, reinforce_critic, _REINFORCE),
    Statement("1.5", "advantage of step t", _E, episodic, exact_advantage, _SCORE),
    Statement("1.5", "advantage of a later step t'", _N, episodic, advantage_of_the_next_step, _SCORE),
    Statement("1.5", "TD error as advantage, V exact", _E, episodic, td_error_as_advantage, _TD),
    Statement("1.5", "standardised advantages", _E, undiscounted_episodic, standardised, "numerics.standardize"),
    Statement("1.5", "Monte-Carlo critic", _E, episodic, monte_carlo_critic, _VALUE),
    Statement("1.5", "bootstrapped critic, target fixed", _E, episodic, bootstrapped_critic, _VALUE),
    Statement("1.5", "target without gamma", _N, episodic, bootstrapped_critic_without_gamma, _VALUE),
    Statement("1.5", "target past the end", _N, episodic, bootstrapped_critic_past_the_end, _VALUE),
    Statement("1.5", "target not held fixed", _N, episodic, target_not_held_fixed, _TD),
    Statement("1.6", "Off-PAC's actor, V exact", _E, episodic, off_policy_actor, _TD),
    Statement("1.6", "reward of the next step", _N, episodic, off_policy_actor_with_the_next_reward, _TD),
    Statement(
        "1.7", "reparametrised gradient", _E, soft_actor, soft_actor_gradient, "distributions.DiagonalGaussian.sample"
    ),
    Statement(
        "1.7",
        "the same with grad pi for grad log pi",
        _N,
        soft_actor,
        soft_actor_gradient_as_printed,
        "distributions.DiagonalGaussian.sample",
    ),
    Statement("1.10", "clipped surrogate at ratio 1: grad V", _E, continuing, clipped_at_the_old_policy, _CLIPPED),
    Statement("1.10", "clipped surrogate by cases", _E, continuing, clipped_at_a_distance, _CLIPPED),
    Statement("1.10", "clipped surrogate <= surrogate", _I, continuing, clipped_and_not, _CLIPPED),
    Statement("1.10", "clipped surrogate = surrogate", _N, continuing, clipped_and_not, _CLIPPED),
    Statement("1.10", "E_old[k3] = KL(old||new)", _E, continuing, kl_estimate, "losses.kl_estimate"),
    Statement(
        "1.10", "E_old[k3] = KL(new||old)", _N, continuing, kl_estimate_the_wrong_way_round, "losses.kl_estimate"
    ),
    Statement("1.10", "TD errors telescope, every k", _E, recording, td_errors_telescope, _TD),
    Statement("1.10", "GAE = mixture of A^(k)", _E, recording, gae_is_a_mixture, _GAE),
    Statement("1.10", "GAE = sum of TD errors", _E, recording, gae_is_a_sum, _GAE),
    Statement("1.10", "GAE, lambda = 0: TD error", _E, recording, gae_at_lambda_0, _GAE),
    Statement("1.10", "GAE, lambda = 1: Monte Carlo", _E, recording, gae_at_lambda_1, _GAE),
    Statement("1.10", "GAE, equal last weight", _N, recording, gae_with_equal_last_weight, _GAE),
    Statement("1.10", "GAE within episodes", _E, episodes, gae_within_episodes, _GAE),
    Statement("1.10", "GAE across episodes", _N, episodes, gae_across_episodes, _GAE),
    Statement("1.10", "truncation as termination", _N, episodes, truncation_as_termination, _GAE),
    Statement("1.10", "lambda-return by its recursion", _E, recording, lambda_return, "returns.lambda_return"),
    Statement("1.10", "PPO, gamma = 1, V exact, lambda 0.7", _E, undiscounted_episodic, ppo_with_exact_values, _PPO),
    Statement("1.10", "PPO, gamma = 1, lambda = 1, any V", _E, undiscounted_episodic, ppo_with_any_values, _PPO),
    Statement("1.10", "PPO, gamma = 1, lambda 0.7, any V", _N, undiscounted_episodic, ppo_with_biased_values, _PPO),
    Statement("1.10", "PPO with a discount: its own sum", _E, episodic, ppo_with_a_discount, _PPO),
    Statement("1.10", "PPO's critic is pulled to V^pi", _E, episodic, ppo_critic, _PPO),
    Statement("2.2.1", "RLHF by the score function", _E, preferences, rlhf_score_function, _SCORE),
    Statement("2.2.1", "RLHF without the KL term", _N, preferences, rlhf_without_the_penalty, _SCORE),
)
"""Every statement that goes through a shipped function."""


# Running


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one row came out."""

    section: str
    statement: str
    kind: Kind
    tested: str
    """The shipped function that the row goes through, or "exact"."""
    seeds: int
    """Random problems."""
    passed: bool
    figure: float
    """Equality: the worst error. Inequality: the tightest ratio. Negative control: the smallest error. NaN: none."""
    share: float
    """The share of the problems on which the row came out as it should."""
    message: str = ""
    """What went wrong, if it is not the figure."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; a figure that is no number becomes None."""
        data = dataclasses.asdict(self)
        return {**data, "figure": self.figure if math.isfinite(self.figure) else None}


def _order(section: str) -> tuple[int, ...]:
    return tuple(int(part) for part in section.split("."))


def statements(section: str | None = None) -> list[Statement]:
    """All rows, or those of a section of the notes and its subsections, in the notes' order.

    Raises:    UsageError if no row belongs to the section
    """
    rows = sorted((*STATEMENTS, *SHIPPED), key=lambda s: _order(s.section))
    if section is None:
        return rows
    chosen = [s for s in rows if f"{s.section}.".startswith(f"{section}.")]
    if not chosen:
        known = ", ".join(dict.fromkeys(s.section for s in rows))
        raise UsageError(f"no statement of section {section!r} is verified; the sections are {known}")
    return chosen


def check(statement: Statement, seeds: int) -> Result:
    """One row over ``seeds`` random problems; whatever it raises is a failure of the row, not of the run."""
    measure = tightness if statement.kind == "inequality" else relative_error
    message = ""
    figures: list[float] = []
    try:
        figures = [measure(statement.at(seed)) for seed in range(seeds)]
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    good = [_as_it_should(statement.kind, x) for x in figures]
    share = sum(good) / seeds
    needed = CONTROL_SHARE if statement.kind == "negative control" else 1.0
    worst = min if statement.kind == "negative control" else max
    figure = math.nan if not figures or any(math.isnan(x) for x in figures) else worst(figures)
    return Result(
        section=statement.section,
        statement=statement.claim,
        kind=statement.kind,
        tested=statement.tested,
        seeds=seeds,
        passed=not message and not math.isnan(figure) and share >= needed,
        figure=figure,
        share=share,
        message=message,
    )


def _as_it_should(kind: Kind, figure: float) -> bool:
    if kind == "equality":
        return figure <= TOLERANCE
    if kind == "inequality":
        return figure <= 1.0 + TOLERANCE
    return figure > CONTROL_THRESHOLD


def results(section: str | None = None, *, seeds: int = 100) -> Iterator[Result]:
    """The rows one by one, as ``verify``."""
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; expected at least 1")
    rows = statements(section)
    return (check(row, seeds) for row in rows)


def verify(section: str | None = None, *, seeds: int = 100) -> list[Result]:
    """Check every statement of the notes, and the shipped functions, on random problems against exact solutions.

    Args:      section: of the notes, such as "1.9", with its subsections; None is all; seeds: random problems per row
    Returns:   one Result per row; all should have passed
    Raises:    UsageError if no row belongs to the section, or seeds < 1
    Verified:  tests/unit/test_verify.py::test_everything_passes,
               tests/unit/test_verify.py::test_a_broken_function_fails_its_rows
    """
    return list(results(section, seeds=seeds))


def _outcome(r: Result) -> str:
    """The figure of a row in a few words."""
    if r.message:
        return r.message
    if r.kind == "equality":
        return f"error {r.figure:.1e}"
    if r.kind == "inequality":
        return f"ratio {r.figure:.3f}"
    return f"off by {r.figure:.1e} or more" if r.share == 1.0 else f"off on {r.share:.0%} of the problems"


def _verdict(r: Result) -> str:
    """A negative control is wrong on purpose: what passes is that it shows."""
    return "FAIL" if not r.passed else "rejected" if r.kind == "negative control" else "pass"


_LEGEND = (
    "error: the worst norm-wise relative error of an equality, at most 1e-9; ratio: the tightest left/right of an\n"
    "inequality, at most 1; off by: the smallest error of a negative control (a known mistake), which is rejected if\n"
    "it is off by more than 1e-3 on at least 90% of the problems."
)


def show(rows: Iterator[Result]) -> list[Result]:
    """Print the rows and what they come to: a table on a terminal, plain lines as they are found anywhere else."""
    began = time.monotonic()
    found = _show_table(rows) if sys.stdout.isatty() else _show_lines(rows)
    failed = sum(not r.passed for r in found)
    print(_LEGEND)
    print(
        f"{len(found)} statements on {found[0].seeds} random problems each: {len(found) - failed} as they should be, "
        f"{failed} failed, {time.monotonic() - began:.1f} s"
    )
    return found


def _show_lines(rows: Iterator[Result]) -> list[Result]:
    found: list[Result] = []
    for r in rows:
        found.append(r)
        print(f"{r.section:<6} {_verdict(r):<8} {r.statement:<61} {_outcome(r):<28} {r.tested}", flush=True)
    return found


def _show_table(rows: Iterator[Result]) -> list[Result]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, found = Console(), list[Result]()
    with console.status("verifying ...") as status:
        for r in rows:
            found.append(r)
            status.update(f"verifying {r.section} ... {len(found)} done, {sum(not x.passed for x in found)} failed")
    table = Table("section", "statement", "result", "figure", "tested")
    styles = {"FAIL": "bold red", "rejected": "yellow", "pass": "green"}
    for i, r in enumerate(found):
        last = i + 1 == len(found) or found[i + 1].section != r.section
        verdict = _verdict(r)
        cells = (r.section, r.statement, Text(verdict, style=styles[verdict]), _outcome(r), r.tested)
        table.add_row(*(Text(x) if isinstance(x, str) else x for x in cells), end_section=last)
    console.print(table)
    return found
