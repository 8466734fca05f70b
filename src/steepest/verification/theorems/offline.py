"""Conservative Q-learning (notes 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import offline
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import (
    CONSERVATIVE_WEIGHT,
    Dataset,
    Process,
    continuing,
    dataset,
    datasets,
    normal,
    stream,
    uniform,
)
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()


def _argmin(d: Dataset, q_k: Tensor, penalty: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(S, A) argmin_Q alpha penalty(Q) + 1/2 E_{s,a,s'~D}[(Q(s, a) - r - gamma E_{a'~pi} Q^k(s', a'))^2].

    By one Newton step from zero: the objective is quadratic with a diagonal Hessian, the weights of the dataset. The
    backup is of a single s', as the dataset has it; ``penalty`` is a mean over its states.
    """
    states = 1.0 / d.model.num_states
    weight = states * d.behaviour.unsqueeze(-1) * d.model.transition
    target = d.model.reward.unsqueeze(-1) + d.model.gamma * (d.policy * q_k).sum(-1)

    def loss(q: Tensor) -> Tensor:
        fit = 0.5 * (weight * (q.unsqueeze(-1) - target).square()).sum()
        return fit if penalty is None else fit + CONSERVATIVE_WEIGHT * penalty(states * q)

    return -gradient(loss, torch.zeros_like(q_k)) / weight.sum(-1)


@rows.equality("2.1", "policy evaluation: argmin = B-hat Q", dataset)
def policy_evaluation(d: Dataset) -> Sides:
    """The minimiser of the Bellman error on a dataset is the empirical backup.

    Equation:  argmin_Q E_D[(r + gamma E_{a'~pi}[Q^k(s', a')] - Q(s, a))^2] = B-hat Q^k,  Q^k the third iterate
    Source:    notes 2.1.
    """
    q_k, following = _third_and_fourth(d, offline.conservative_evaluation, weight=0.0)
    return Sides(_argmin(d, q_k), following)


@rows.equality("2.1", "policy improvement under the new policy", continuing)
@rows.control("2.1", "policy improvement under pi^k", continuing, as_printed=True)
def policy_improvement(c: Process, as_printed: bool = False) -> Sides:
    """Policy improvement climbs E_{a~pi}[Q], whose gradient is the score times Q.

    Negative control: with a ~ pi^k, as printed, the score of another policy is weighted by the wrong actions. Taken
    literally, E_{a~pi^k}[Q] does not depend on the new policy at all; this is its score-function estimate.

    Equation:  grad_theta E_{a~pi_theta}[Q(s, a)] = E_{a~pi_theta}[grad log pi_theta(a|s) Q(s, a)]
    Source:    notes 2.1, with the expectation under the policy that is optimised.
    """
    left = gradient(lambda theta: (softmax_policy(theta) * c.function).sum(), c.theta)
    if as_printed:
        return Sides(left, gradient(lambda theta: (c.other * c.function * torch.log_softmax(theta, -1)).sum(), c.theta))
    return Sides(left, c.policy * (c.function - (c.policy * c.function).sum(-1, keepdim=True)))


_EVALUATIONS = (offline.conservative_evaluation, offline.conservative_evaluation_in_expectation)


def _third_and_fourth(
    d: Dataset, evaluation: Callable[..., Tensor], weight: float = CONSERVATIVE_WEIGHT
) -> tuple[Tensor, Tensor]:
    """Two iterates of a conservative evaluation with mu = pi, one after the other."""
    given = (d.model, d.policy, d.behaviour, d.policy, weight)
    return evaluation(*given, iterations=3), evaluation(*given, iterations=4)


@rows.equality("2.1.1", "argmin = B Q - alpha mu/pi_beta", dataset)
@rows.equality("2.1.1", "argmin = B Q - alpha (mu/pi_beta - 1)", dataset, second=True)
def conservative_update(d: Dataset, second: bool = False) -> Sides:
    """The minimiser of either update, with mu = pi, is the backup less its penalty: one iteration.

    Equation:  argmin_Q alpha E_{s~D, a~mu}[Q] + 1/2 E_D[(Q - B Q^k)^2] = B Q^k - alpha mu / pi_beta,
               argmin_Q alpha (E_mu[Q] - E_{pi_beta}[Q]) + 1/2 E_D[(Q - B Q^k)^2] = B Q^k - alpha (mu / pi_beta - 1)
    Source:    notes 2.1.1; Kumar et al. 2020, Eqs. 1 and 2. pi_beta and B are empirical, Q^k the third iterate.
    """
    q_k, following = _third_and_fourth(d, _EVALUATIONS[second])
    weight = d.policy - d.behaviour if second else d.policy
    return Sides(_argmin(d, q_k, lambda q: (weight * q).sum()), following)


@rows.equality("2.1.1", "both fixed points by iteration", dataset)
def conservative_fixed_points(d: Dataset) -> Sides:
    """Iterating either update arrives where the linear solve says.

    Equation:  Q <- B Q - alpha mu / pi_beta,  Q <- B Q - alpha (mu / pi_beta - 1), 500 times from zero
    Source:    notes 2.1.1.
    """
    given = (d.model, d.policy, d.behaviour, d.policy, CONSERVATIVE_WEIGHT)
    iterated = [f(*given, iterations=500) for f in _EVALUATIONS]
    return Sides(torch.stack(iterated), torch.stack([f(*given) for f in _EVALUATIONS]))


@rows.equality("2.1.1", "Q-hat - Q = (I - gamma P)^-1 [error - penalty]", dataset)
def conservative_gap(d: Dataset) -> Sides:
    """What both theorems follow from: how far either evaluation is from the truth, to the last term.

    Equation:  Q-hat_alpha - Q^pi = (I - gamma P-hat^pi)^-1 [(B-hat - B) Q^pi - alpha mu / pi_beta], mu = pi;
               with mu / pi_beta - 1 for the second update
    Source:    notes 2.1.1; derived: Q-hat = B-hat Q-hat - penalty and Q^pi = B Q^pi, subtracted.
    """
    q = mdps.action_value(d.process.mdp, d.policy)
    ratio = d.policy / d.behaviour
    found = [f(d.model, d.policy, d.behaviour, d.policy, CONSERVATIVE_WEIGHT) - q for f in _EVALUATIONS]
    expected: list[Tensor] = []
    for penalty in (ratio, ratio - 1.0):
        total = x = d.sampling_error - CONSERVATIVE_WEIGHT * penalty
        for _ in range(600):  # the inverse by its series
            total = x + d.model.gamma * d.model.transition @ (d.policy * total).sum(-1)
        expected.append(total)
    return Sides(torch.stack(found), torch.stack(expected))


def pointwise_threshold(d: Dataset) -> float:
    """An alpha for which the first bound holds: max over (s, a) of |(B-hat - B) Q^pi| pi_beta / mu, with mu = pi."""
    return float((d.sampling_error.abs() * d.behaviour / d.policy).max())


def expectation_threshold(d: Dataset) -> float:
    """An alpha for which the second bound holds: max over s of |E_pi[(B-hat - B) Q^pi]| / E_pi[pi/pi_beta - 1]."""
    error = (d.policy * d.sampling_error).sum(-1).abs()
    return float((error / (d.policy * (d.policy / d.behaviour - 1.0)).sum(-1)).max())


@rows.inequality("2.1.1", "Q-hat <= Q at the threshold", dataset)
@rows.inequality("2.1.1", "E_pi[Q-hat] <= V at the threshold", dataset, in_expectation=True)
def conservative_bound(d: Dataset, in_expectation: bool = False) -> Sides:
    """From the threshold on, the penalty takes off at least what sampling error put on, at every state and action.

    In expectation the same for the mean under the policy, at every state.

    Equation:  Q-hat_0 - Q^pi <= Q-hat_0 - Q-hat_alpha, which is Q-hat_alpha <= Q^pi;
               V-hat_0 - V^pi <= V-hat_0 - V-hat_alpha, which is E_pi[Q-hat_alpha] <= V^pi
    Source:    notes 2.1.1; Kumar et al. 2020, Theorems 3.1 and 3.2, mu = pi, with the realised sampling error.
    """
    alpha = expectation_threshold(d) if in_expectation else pointwise_threshold(d)
    true = (mdps.state_value if in_expectation else mdps.action_value)(d.process.mdp, d.policy)
    found = [_EVALUATIONS[in_expectation](d.model, d.policy, d.behaviour, d.policy, w) for w in (0.0, alpha)]
    free, bound = [(d.policy * q).sum(-1) for q in found] if in_expectation else found
    return Sides(free - true, free - bound)


@rows.control("2.1.1", "B-hat Q <= Q with alpha = 0", dataset)
def unpenalised_is_no_bound(d: Dataset) -> Sides:
    """Negative control: without a penalty sampling error overestimates; Q = max(Q, B-hat Q) says that it never does."""
    q = mdps.action_value(d.process.mdp, d.policy)
    return Sides(q, torch.maximum(q, q + d.sampling_error))


@rows.control("2.1.1", "second update bounds pointwise", continuing)
def expectation_bound_is_not_pointwise(c: Process) -> Sides:
    """Negative control: the second update bounds the mean only; Q = max(Q, Q-hat) would bound every action value.

    Shown without sampling error, for a policy near the behaviour: what it takes less often is overestimated.
    """
    policy = softmax_policy(c.other_theta + 0.02 * c.function)
    q = mdps.action_value(c.mdp, policy)
    found = offline.conservative_evaluation_in_expectation(c.mdp, policy, c.other, policy, 10.0)
    return Sides(q, torch.maximum(q, found))


@rows.inequality("2.1.1", "the threshold falls with the data", datasets)
def threshold_falls_with_data(pair: tuple[Dataset, Dataset]) -> Sides:
    """With more data a smaller alpha is enough for the pointwise bound.

    Equation:  alpha(20,000 transitions of every state) <= alpha(60)
    Source:    notes 2.1.1 (Note). The second bound's alpha also depends on how near pi is to the empirical pi_beta.
    """
    small, large = pair
    return Sides(
        torch.tensor(pointwise_threshold(large), dtype=F64), torch.tensor(pointwise_threshold(small), dtype=F64)
    )


@rows.equality("2.1.2", "CQL(H): max = alpha log-sum-exp", continuing)
def entropy_regulariser(c: Process) -> Sides:
    """CQL(H): the inner maximum over mu, with R scaled by alpha like the rest, is a log-sum-exp.

    Equation:  max_mu alpha (E_mu[Q] + H(mu)) = alpha log sum_a exp Q(s, a), attained at mu = softmax(Q)
    Source:    notes 2.1.2; Kumar et al. 2020, Eq. 4.
    """
    mu = torch.softmax(c.function, -1)
    attained = CONSERVATIVE_WEIGHT * (mu * (c.function - mu.log())).sum(-1)
    return Sides(attained, CONSERVATIVE_WEIGHT * torch.logsumexp(c.function, -1))


@rows.inequality("2.1.2", "CQL(H): no other mu is better", continuing)
def entropy_regulariser_is_a_maximum(c: Process) -> Sides:
    """No other mu reaches it.

    Equation:  exp(E_mu[Q] + H(mu)) <= sum_a exp Q(s, a) for mu = pi, and mu = softmax(Q + theta / 10) near
    Source:    notes 2.1.2. Exponentials make both sides positive.
    """
    mu = torch.stack([c.policy, torch.softmax(c.function + 0.1 * c.theta, -1)])
    left = (mu * (c.function - mu.log())).sum(-1).exp()
    return Sides(left, c.function.exp().sum(-1).expand_as(left))


@rows.control("2.1.2", "CQL(H) with R outside alpha", continuing)
def entropy_regulariser_outside(c: Process) -> Sides:
    """Negative control: with R outside alpha, as printed, the maximum is another: log sum_a exp(alpha Q)."""
    mu = torch.softmax(CONSERVATIVE_WEIGHT * c.function, -1)
    attained = (mu * (CONSERVATIVE_WEIGHT * c.function - mu.log())).sum(-1)
    return Sides(attained, CONSERVATIVE_WEIGHT * torch.logsumexp(c.function, -1))


@rows.equality("2.1.2", "CQL(rho): max = log E_rho exp Q", continuing)
def divergence_regulariser(c: Process, alike: bool = False) -> Sides:
    """CQL(rho): with a divergence from rho in the place of the entropy, the maximum is log E_rho exp Q.

    Negative control: every action counted alike, which is the log-sum-exp of CQL(H) less log |A|.

    Equation:  max_mu E_mu[Q] - KL(mu || rho) = log E_{a~rho}[exp Q(s, a)], attained at mu = rho exp Q / E_rho exp Q
    Source:    notes 2.1.2; Kumar et al. 2020, Appendix A.
    """
    log_rho = c.policy.log()
    mu = torch.softmax(log_rho + c.function, -1)
    best = torch.logsumexp(log_rho + c.function, -1)
    if alike:
        best = torch.logsumexp(c.function, -1) - math.log(c.mdp.num_actions)
    return Sides((mu * (c.function - mu.log() + log_rho)).sum(-1), best)


@rows.inequality("2.1.2", "CQL(rho): no other mu is better", continuing)
def divergence_regulariser_is_a_maximum(c: Process) -> Sides:
    """No other mu reaches it.

    Equation:  exp(E_mu[Q] - KL(mu || rho)) <= E_rho[exp Q(s, a)] for mu = pi', and mu ~ rho exp(Q + theta' / 10) near;
               rho = pi
    Source:    notes 2.1.2. Exponentials make both sides positive.
    """
    rho = c.policy
    mu = torch.stack([c.other, torch.softmax(rho.log() + c.function + 0.1 * c.other_theta, -1)])
    left = (mu * (c.function - mu.log() + rho.log())).sum(-1).exp()
    return Sides(left, (rho * c.function.exp()).sum(-1).expand_as(left))


rows.control("2.1.2", "CQL(rho): every action alike", continuing, alike=True)(divergence_regulariser)


class Box(NamedTuple):
    """Actions in a box, a linear Q there, and two proposals: the uniform one, and one that prefers the lower bounds."""

    low: Tensor  # (d,)
    high: Tensor  # (d,)
    slope: Tensor  # (d,) of Q
    constant: float

    @property
    def width(self) -> Tensor:
        """(d,) of the box."""
        return self.high - self.low

    def q(self, action: Tensor) -> Tensor:
        """(n,) Q of actions (n, d)."""
        return self.constant + action @ self.slope


@lru_cache(maxsize=256)
def box(seed: int) -> Box:
    """Two dimensions, each half as wide as [-1, 1] to three times as wide, off centre."""
    g = stream(seed, 11)
    low = normal(g, 2)
    width = torch.tensor([uniform(g, 1.0, 6.0) for _ in range(2)], dtype=F64)
    return Box(low, low + width, normal(g, 2), uniform(g, -1.0, 1.0))


def _proposals(b: Box) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Actions (n, d) and their log-densities (n,) for both proposals, and the weight (n,) of a node.

    Nodes of Gauss-Legendre quadrature in [0, 1]^d are the noise u that actions are made from: low + width u is uniform,
    low + width u^2 has the density 1 / (2 sqrt(width (a - low))).
    """
    x, w = np.polynomial.legendre.leggauss(24)
    node, weight = torch.tensor(0.5 * (x + 1.0), dtype=F64), torch.tensor(0.5 * w, dtype=F64)
    u = torch.cartesian_prod(node, node)
    uniformly, lower = b.low + b.width * u, b.low + b.width * u.square()
    by_lower = -torch.log(2.0 * torch.sqrt(b.width * (lower - b.low))).sum(-1)
    by_uniform = -b.width.log().sum().expand(len(u))
    return (uniformly, by_uniform), (lower, by_lower), torch.cartesian_prod(weight, weight).prod(-1)


@rows.equality("2.1.2", "log int exp Q da = log E[exp(Q) / q]", box)
@rows.control("2.1.2", "log int exp Q da, density 0.5^d", box, mistake="another box")
@rows.control("2.1.2", "log int exp Q da, summed over proposals", box, mistake="summed")
@rows.control("2.1.2", "log int exp Q da, without densities", box, mistake="no densities")
def sampled_log_sum_exp(b: Box, mistake: str = "") -> Sides:
    """With continuous actions the log-sum-exp is an integral, which weighted samples estimate, averaged.

    Negative controls: the uniform density of [-1, 1]^d, 0.5^d, in a box of another size; both proposals' weighted
    samples added up, without the division by N; samples taken as if they were all the actions.

    Equation:  log integral of exp Q(s, a) da = log E[1/N sum_i exp(Q(s, a_i)) / q_i(a_i)],  a_i ~ q_i
    Source:    notes 2.1.2 for continuous actions; derived: each term has the mean integral of q_i exp(Q) / q_i.
               Kumar et al. 2020 draw from the uniform and from the learned policy.
    """
    (first, first_log_density), (second, second_log_density), weight = _proposals(b)
    if mistake == "another box":
        first_log_density = torch.full_like(first_log_density, len(b.low) * math.log(0.5))
    elif mistake == "summed":
        weight = 2.0 * weight
    elif mistake == "no densities":
        first_log_density = second_log_density = torch.zeros_like(weight)
    proposals = ((first, first_log_density), (second, second_log_density))
    parts = [(weight * torch.exp(b.q(action) - log_density)).sum() for action, log_density in proposals]
    integrals = (torch.exp(b.slope * b.high) - torch.exp(b.slope * b.low)) / b.slope  # of each component alone
    return Sides(b.constant + integrals.log().sum(), torch.stack(parts).mean().log())


@rows.equality("2.1.2", "CQL(rho): weighted average, weights fixed", continuing)
@rows.control("2.1.2", "CQL(rho): weights not fixed", continuing, fixed=False)
def weighted_average_gradient(c: Process, fixed: bool = True) -> Sides:
    """The exponentially weighted average of CQL(rho) has the gradient of log E_rho exp Q, its weights held fixed.

    Negative control: differentiating the weights too gives another gradient.

    Equation:  grad_Q log E_rho[exp Q] = grad_Q E_rho[w Q],  w = exp Q / E_rho[exp Q] held fixed
    Source:    notes 2.1.2; Kumar et al. 2020, Appendix A.
    """

    def average(q: Tensor) -> Tensor:
        weight = torch.softmax(c.policy.log() + q, -1)
        return ((weight.detach() if fixed else weight) * q).sum()

    left = gradient(lambda q: torch.logsumexp(c.policy.log() + q, -1).sum(), c.function)
    return Sides(left, gradient(average, c.function))
