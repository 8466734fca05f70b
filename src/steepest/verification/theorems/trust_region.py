"""TRPO's bound, PPO's penalty and generalised advantages (notes 1.10)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy
from steepest.verification.random_problems import Process, Recording, continuing, recording, stream, uniform
from steepest.verification.statement import F64, Rows, Sides, gradient, vanishing
from steepest.verification.theorems.performance_difference import difference

rows = Rows()


def surrogate(c: Process, new: Tensor) -> Tensor:
    """L_pi(pi') = 1/(1 - gamma) E_{s~d^pi, a~pi}[pi'/pi A^pi], for pi = ``c.policy``; differentiable in ``new``."""
    d = mdps.state_distribution(c.mdp, c.policy).unsqueeze(-1)
    return (d * c.policy * (new / c.policy) * mdps.advantage(c.mdp, c.policy)).sum() / (1.0 - c.mdp.gamma)


@rows.equality("1.10", "V' - V = E_{d'} E_pi[ratio A]/(1 - gamma)", continuing)
def surrogate_identity(c: Process) -> Sides:
    """The step that TRPO's derivation takes exactly: actions reweighted, states still those of pi'.

    Equation:  V_pi' - V_pi = 1/(1 - gamma) E_{s~d^pi'} E_{a~pi}[pi'(a|s)/pi(a|s) A^pi(s, a)]
    Source:    notes 1.10.
    """
    d = mdps.state_distribution(c.mdp, c.other).unsqueeze(-1)
    ratio = c.other / c.policy
    right = (d * c.policy * ratio * mdps.advantage(c.mdp, c.policy)).sum() / (1.0 - c.mdp.gamma)
    return Sides(-difference(c), right)


@rows.equality("1.10", "L(pi) = 0, grad L(pi) = grad V", continuing)
def surrogate_to_first_order(c: Process) -> Sides:
    """The surrogate has the objective's gradient at the old policy, where it is zero.

    Equation:  L_pi(pi) = 0,  grad L_pi(pi') at pi' = pi  =  grad V
    Source:    notes 1.10.
    """
    slope = gradient(lambda theta: surrogate(c, softmax_policy(theta)), c.theta)
    at_old = surrogate(c, c.policy).view(1)
    return Sides(torch.cat([slope.flatten(), at_old]), torch.cat([c.gradient.flatten(), torch.zeros(1, dtype=F64)]))


@rows.control("1.10", "V' - V = L", continuing)
def surrogate_is_not_the_difference(c: Process) -> Sides:
    """Negative control: away from the old policy the surrogate is an approximation."""
    return Sides(-difference(c), surrogate(c, c.other))


def _policy_kl(p: Tensor, q: Tensor) -> Tensor:
    """(S,) KL(p || q) in nats."""
    return (p * (p.log() - q.log())).sum(-1)


def trpo_constant(c: Process) -> float:
    """C = sqrt(2) gamma eps / (1 - gamma)^2,  eps = max_s |E_{a~pi'} A^pi(s, a)|."""
    eps = float((c.other * mdps.advantage(c.mdp, c.policy)).sum(-1).abs().max())
    return math.sqrt(2.0) * c.mdp.gamma * eps / (1.0 - c.mdp.gamma) ** 2


@rows.inequality("1.10", "|V' - V - L| <= C sqrt(E KL)", continuing)
def trpo_bound(c: Process) -> Sides:
    """How far the surrogate may be off; a theorem, not a condition.

    Equation:  |V_pi' - V_pi - L_pi(pi')| <= C sqrt(E_{s~d^pi} KL(pi || pi')),  C = sqrt(2) gamma eps / (1 - gamma)^2
    Source:    notes 1.10; Achiam et al. 2017, Corollary 1, by Pinsker and Jensen.
    """
    kl = mdps.state_distribution(c.mdp, c.policy) @ _policy_kl(c.policy, c.other)
    return Sides((-difference(c) - surrogate(c, c.other)).abs(), trpo_constant(c) * kl.sqrt())


@rows.inequality("1.10", "|V' - V - L| <= sqrt(2) C E D_TV", continuing)
def total_variation_bound(c: Process) -> Sides:
    """The bound before Pinsker and Jensen.

    Equation:  |V_pi' - V_pi - L_pi(pi')| <= 2 gamma eps / (1 - gamma)^2 E_{s~d^pi} D_TV(pi' || pi)
    Source:    Achiam et al. 2017, Corollary 1; also from Theorem 6, ||d^pi' - d^pi||_1 <= 2 gamma / (1 - gamma)
               E_{d^pi} D_TV and |E_{a~pi'} A^pi| <= eps.
    """
    distance = 0.5 * (c.other - c.policy).abs().sum(-1)
    mean = mdps.state_distribution(c.mdp, c.policy) @ distance
    return Sides((-difference(c) - surrogate(c, c.other)).abs(), math.sqrt(2.0) * trpo_constant(c) * mean)


TILT = 1e-4
"""How far the second policy of ``attaining`` leans where its advantages are largest: nothing beside what it visits."""


@lru_cache(maxsize=256)
def attaining(seed: int) -> Process:
    """Three states on which no smaller constant would do: the first leads to two others, which last for ever.

    Only the first choice changes which states are visited, by 2 gamma delta in all. In the other two the new policy
    leans by TILT towards what there pays x, and what pays -x, so that its advantages there are eps and -eps.
    """
    g = stream(seed, 10)
    gamma, delta, eps = uniform(g, 0.05, 0.9), uniform(g, 0.1, 0.4), uniform(g, 0.5, 2.0)
    transition = torch.zeros((3, 2, 3), dtype=F64)
    transition[0, 0, 1] = transition[0, 1, 2] = 1.0
    transition[1, :, 1] = transition[2, :, 2] = 1.0
    x = eps / (2.0 * TILT)
    reward = torch.tensor([[0.0, 0.0], [x, -x], [-x, x]], dtype=F64)
    mdp = FiniteMDP(transition, reward, torch.tensor([1.0, 0.0, 0.0], dtype=F64), gamma)
    first = torch.tensor([0.5 + delta, 0.5 + TILT, 0.5 + TILT], dtype=F64)
    theta = torch.zeros((3, 2), dtype=F64)
    return Process(mdp, theta, torch.stack([first, 1.0 - first], -1).log(), theta, theta[:, 0])


rows.inequality("1.10", "|V' - V - L| <= C sqrt(E KL), near its bound", attaining)(trpo_bound)


@rows.equality("1.10", "sqrt(2) C E D_TV is attained", attaining)
def bound_is_attained(c: Process) -> Sides:
    """On ``attaining`` the bound in total variation is reached: its constant could not be smaller.

    Equation:  |V_pi' - V_pi - L_pi(pi')| = 2 gamma eps / (1 - gamma)^2 E_{s~d^pi} D_TV(pi' || pi) / k,
               k = 1 + gamma TILT / ((1 - gamma) delta), which is as near to 1 as TILT is small
    Source:    derived: ||d^pi' - d^pi||_1 = 2 gamma delta, half where the advantage is eps, half where it is -eps, and
               E D_TV = (1 - gamma) delta + gamma TILT.
    """
    sides = total_variation_bound(c)
    delta = float(c.other[0, 0]) - 0.5
    return Sides(sides.left, sides.right / (1.0 + c.mdp.gamma * TILT / ((1.0 - c.mdp.gamma) * delta)))


@rows.control("1.10", "|V' - V - L| <= (1 - gamma) sqrt(2) C E D_TV", attaining)
def bound_with_one_horizon(c: Process) -> Sides:
    """Negative control: 1/(1 - gamma) once, where the constant has it twice; left = min(left, bound) would say so."""
    sides = total_variation_bound(c)
    return Sides(sides.left, torch.minimum(sides.left, (1.0 - c.mdp.gamma) * sides.right))


KL_WEIGHT = 2.0
"""The beta of PPO's penalty, reward units per nat."""


def _penalised(c: Process, theta: Tensor, *, printed: bool) -> Tensor:
    """PPO's objective with its penalty, times 1 / (1 - gamma): KL(pi' || pi) as printed, or KL(pi || pi')."""
    new = softmax_policy(theta)
    kl = _policy_kl(new, c.policy) if printed else _policy_kl(c.policy, new)
    return surrogate(c, new) - KL_WEIGHT * mdps.discounted_visits(c.mdp, c.policy) @ kl


TRUST_REGION = 0.01
"""Nats: how far the step of ``shared_step`` goes, as TRPO's authors chose it."""


class SharedStep(NamedTuple):
    """A process whose states share one probability p of action 1, and a step from one p to another."""

    mdp: FiniteMDP
    old: Tensor
    new: Tensor


@lru_cache(maxsize=256)
def shared_step(seed: int) -> SharedStep:
    """Action 1 earns 1 and leads to where it costs 3 to 5; p starts just below the best and goes on by 0.01 nat.

    V = p - gamma cost p^2, so the best p is 1 / (2 gamma cost). The surrogate is linear in p and sees only that V still
    rises; 0.01 is the usual trust region.
    """
    g = stream(seed, 7)
    transition = torch.zeros((3, 2, 3), dtype=F64)
    transition[0, 1, 1] = 1.0
    transition[0, 0, 2] = transition[1, 0, 2] = transition[1, 1, 2] = 1.0
    transition[2, :, 2] = 1.0
    cost, gamma = uniform(g, 3.0, 5.0), uniform(g, 0.8, 0.99)
    reward = torch.tensor([[0.0, 1.0], [0.0, -cost], [0.0, 0.0]], dtype=F64)
    mdp = FiniteMDP(transition, reward, torch.tensor([1.0, 0.0, 0.0], dtype=F64), gamma)

    def policy(p: float) -> Tensor:
        return torch.tensor([[1.0 - p, p]] * 3, dtype=F64)

    first = 0.95 / (2.0 * gamma * cost)
    low, high = first, 0.5
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = float(_policy_kl(policy(first), policy(middle))[0]) <= TRUST_REGION
        low, high = (middle, high) if inside else (low, middle)
    return SharedStep(mdp, policy(first), policy(low))


@rows.inequality("1.10", "L <= V' - V + C sqrt(E KL), a natural step", continuing)
def improvement_bound(c: Process) -> Sides:
    """What is guaranteed: a short step along the natural gradient gains the surrogate, less at most the bound.

    Equation:  L_pi(pi') <= V_pi' - V_pi + C sqrt(E_{s~d^pi} KL(pi || pi')),  pi' = softmax(theta + A^pi / 10)
    Source:    notes 1.10; Kakade 2001 for the natural gradient of a tabular softmax, which is A^pi up to a factor.
    """
    step = replace(c, other_theta=c.theta + 0.1 * mdps.advantage(c.mdp, c.policy))
    return Sides(surrogate(step, step.other), trpo_bound(step).right - difference(step))


@rows.equality("1.10", "PPO's KL penalty: grad V at the old policy", continuing)
def penalised_surrogate_to_first_order(c: Process) -> Sides:
    """PPO's penalty costs nothing to first order, whichever way round its divergence is taken.

    Equation:  grad E_{s~d^pi, a~pi}[pi'/pi A^pi - beta KL] / (1 - gamma) = grad V at pi' = pi,
               KL(pi || pi') as in Schulman et al. 2017, and KL(pi' || pi) as printed
    Source:    notes 1.10.
    """
    slopes = [gradient(lambda theta, p=p: _penalised(c, theta, printed=p), c.theta) for p in (False, True)]
    return Sides(torch.stack(slopes), torch.stack([c.gradient, c.gradient]))


@rows.control("1.10", "L > 0 and KL <= 0.01 mean improvement", shared_step)
def improvement_is_not_guaranteed(c: SharedStep) -> Sides:
    """Negative control: a step that the surrogate likes, within the trust region, improves the policy.

    Equation:  L_pi(pi') > 0  =>  V_pi' = max(V_pi', V_pi), which is what "V_pi' >= V_pi" says as an equality
    Source:    notes 1.10: a fixed delta guarantees nothing.
    """
    liked = (mdps.discounted_visits(c.mdp, c.old).unsqueeze(-1) * c.new * mdps.advantage(c.mdp, c.old)).sum()
    before, after = mdps.objective(c.mdp, c.old), mdps.objective(c.mdp, c.new)
    return Sides(after, torch.maximum(after, before) if float(liked) > 0.0 else after)


@rows.equality("1.10", "KL(pi'||pi): maximum at pi exp(A/beta)/Z", continuing)
def printed_penalty_maximum(c: Process) -> Sides:
    """Where the penalty as printed leads: to pi exp(A / beta) / Z, at which its objective has no slope left.

    Equation:  max_pi' E_{s~d^pi}[E_{a~pi'} A^pi - beta KL(pi' || pi)] = E_{s~d^pi}[beta log Z(s)],
               at pi'(a|s) = pi(a|s) exp(A^pi(s, a) / beta) / Z(s); both over 1 - gamma
    Source:    notes 1.10; derived as Lemma 7 of the notes, state by state. The slope is measured against the gradient.
    """
    a = mdps.advantage(c.mdp, c.policy)
    theta = c.theta + a / KL_WEIGHT
    slope = gradient(lambda x: _penalised(c, x, printed=True), theta)
    log_z = torch.log((c.policy * torch.exp(a / KL_WEIGHT)).sum(-1))
    best = KL_WEIGHT * (mdps.discounted_visits(c.mdp, c.policy) @ log_z)
    left = torch.cat([slope.flatten(), _penalised(c, theta, printed=True).view(1)])
    right = torch.cat([torch.zeros(slope.numel(), dtype=F64), best.view(1)])
    return Sides(left, right, scale=float(c.gradient.norm()))


@rows.control("1.10", "KL(pi||pi'): maximum at pi exp(A/beta)/Z", continuing)
def kl_directions(c: Process) -> Sides:
    """Negative control: the maximum of the printed penalty, KL(pi' || pi), taken for that of KL(pi || pi').

    Measured against the gradient of the objective, which both have at the old policy.
    """
    theta = c.theta + mdps.advantage(c.mdp, c.policy) / KL_WEIGHT
    return vanishing(gradient(lambda x: _penalised(c, x, printed=False), theta), c.gradient)


def k_step_advantage(r: Recording, t: int, k: int) -> Tensor:
    """A_t^(k) = sum_{l<k} gamma^l r_{t+l} + gamma^k V(s_{t+k}) - V(s_t), a scalar."""
    weight = r.gamma ** torch.arange(k, dtype=F64)
    return weight @ r.reward[t : t + k] + r.gamma**k * r.value[t + k] - r.value[t]


@rows.equality("1.10", "A^(k) = sum_l gamma^l delta, every k", recording)
def k_step_telescopes(r: Recording) -> Sides:
    """The k-step advantage is a discounted sum of TD errors; for every k.

    Equation:  sum_{l<k} gamma^l r_{t+l} + gamma^k V(s_{t+k}) - V(s_t) = sum_{l<k} gamma^l delta_{t+l}
    Source:    notes 1.10.
    """
    steps = len(r.reward)
    weighted = r.gamma ** torch.arange(steps, dtype=F64) * r.delta
    return Sides(torch.stack([k_step_advantage(r, 0, k) for k in range(1, steps + 1)]), weighted.cumsum(0))


@rows.equality("1.10", "A^(inf) = sum_l gamma^l delta", recording)
def unlimited_advantage(r: Recording) -> Sides:
    """The advantage of unlimited length needs no value but its own: the recording, followed by states worth nothing.

    Equation:  A^(inf) = sum_l gamma^l r_{t+l} - V(s_t) = sum_l gamma^l delta_{t+l};  for every t
    Source:    notes 1.10.
    """
    ending = r._replace(value=torch.cat([r.value[:-1], torch.zeros(1, dtype=F64)]))
    steps = len(r.reward)
    weight = r.gamma ** torch.arange(steps, dtype=F64)
    left = [weight[: steps - t] @ r.reward[t:] - r.value[t] for t in range(steps)]
    right = [weight[: steps - t] @ ending.delta[t:] for t in range(steps)]
    return Sides(torch.stack(left), torch.stack(right))


@rows.control("1.10", "A^(2) with gamma V(s_{t+2})", recording)
def two_step_advantage_as_printed(r: Recording) -> Sides:
    """Negative control: A^(2) with gamma V(s_{t+2}), which should be gamma^2 V(s_{t+2})."""
    printed = r.reward[0] + r.gamma * r.reward[1] + r.gamma * r.value[2] - r.value[0]
    return Sides(printed, r.delta[0] + r.gamma * r.delta[1])


def weighted_advantages(r: Recording, *, last_takes_the_rest: bool = True) -> Tensor:
    """(T,) (1 - lambda) sum_k lambda^(k-1) A_t^(k) up to the end, whose last weight is lambda^(n-1), n = T - t."""
    steps, decay = len(r.reward), r.trace_decay
    rows: list[Tensor] = []
    for t in range(steps):
        n = steps - t
        weights = [(1.0 - decay) * decay ** (k - 1) for k in range(1, n + 1)]
        if last_takes_the_rest:
            weights[-1] = decay ** (n - 1)
        rows.append(torch.stack([w * k_step_advantage(r, t, k) for k, w in enumerate(weights, start=1)]).sum())
    return torch.stack(rows)


def summed_errors(r: Recording) -> Tensor:
    """(T,) sum_{l=0}^{T-t-1} (gamma lambda)^l delta_{t+l}."""
    weight = (r.gamma * r.trace_decay) ** torch.arange(len(r.reward), dtype=F64)
    return torch.stack([weight[: len(r.reward) - t] @ r.delta[t:] for t in range(len(r.reward))])


@rows.equality("1.10", "GAE, its two forms, finite", recording)
def gae_two_forms(r: Recording, last_takes_the_rest: bool = True) -> Sides:
    """GAE is a mixture of k-step advantages and a sum of TD errors; finite, at every step.

    Negative control: a finite mixture whose last weight is (1 - lambda) lambda^(n-1) like the others.

    Equation:  (1 - lambda) sum_{k=1}^{n-1} lambda^(k-1) A^(k) + lambda^(n-1) A^(n) = sum_{l<n} (gamma lambda)^l delta_l
    Source:    notes 1.10, with the last weight that a finite mixture needs.
    """
    return Sides(weighted_advantages(r, last_takes_the_rest=last_takes_the_rest), summed_errors(r))


@rows.equality("1.10", "GAE, its two forms, infinite", recording)
def gae_infinite(r: Recording) -> Sides:
    """The same for an infinite trajectory: this one, followed by states of value 0 that pay nothing.

    Equation:  (1 - lambda) (A^(1) + lambda A^(2) + lambda^2 A^(3) + ...) = sum_l (gamma lambda)^l delta_l
    Source:    notes 1.10. 800 terms, of which the last weighs less than 1e-17.
    """
    terms = torch.arange(800, dtype=F64)
    tail = torch.zeros(800 - len(r.reward), dtype=F64)
    ending = Recording(r.reward, torch.cat([r.value[:-1], torch.zeros(1, dtype=F64)]), r.gamma, r.trace_decay)
    delta = torch.cat([ending.delta, tail])
    k_step = (r.gamma**terms * delta).cumsum(0)
    left = (1.0 - r.trace_decay) * (r.trace_decay**terms) @ k_step
    return Sides(left, ((r.gamma * r.trace_decay) ** terms) @ delta)


rows.control("1.10", "GAE, last weight (1 - lambda) lambda^(n-1)", recording, last_takes_the_rest=False)(gae_two_forms)


@rows.control("1.10", "GAE, second line as printed", recording)
def gae_second_line_as_printed(r: Recording) -> Sides:
    """Negative control: the second line as printed, with gamma^2 delta_{t+2} in the term of lambda^1."""
    extra = (1.0 - r.trace_decay) * r.trace_decay * r.gamma**2 * r.delta[2]
    return Sides(weighted_advantages(r)[0] + extra, summed_errors(r)[0])
