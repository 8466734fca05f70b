"""The maximum-entropy optimum (notes 1.7)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.exact import lqr, optimal
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import (
    SOFT_TEMPERATURE,
    Control,
    Process,
    continuing,
    control,
    episodic,
    normal,
    stream,
)
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()


@rows.equality("1.7", "V = E[Q - temperature log pi]", continuing)
@rows.control("1.7", "V without the temperature", continuing, temperature=1.0)
def soft_value(c: Process, temperature: float = SOFT_TEMPERATURE) -> Sides:
    """At the soft optimum the value is the expected action value plus temperature times the entropy.

    Negative control: the printed form, which has no temperature.

    Equation:  V(s) = E_{a~pi}[Q(s, a) - temperature log pi(a|s)],  pi = softmax(Q / temperature)
    Source:    notes 1.7, where the temperature is 1 and hidden in the reward scale.
    """
    s = c.soft
    return Sides(s.value, (s.policy * (s.action_value - temperature * s.policy.log())).sum(-1))


@rows.equality("1.7", "Q = r + gamma E[V]", continuing)
@rows.equality("1.7", "Q = r + gamma E[V] up to termination", episodic)
@rows.control("1.7", "Q = r + gamma E[V] past the end", episodic, past_the_end=True)
def soft_bellman(c: Process, past_the_end: bool = False) -> Sides:
    """The target of the soft Q-function, at its fixed point, with V = 0 where the process ended.

    Negative control: a target that goes on after termination, where only the entropy of acting at random is left.

    Equation:  Q(s, a) = r(s, a) + gamma E_{s'}[V(s')],  V the soft value of the policy, from a linear solve
    Source:    notes 1.7.
    """
    s, gamma = c.soft, c.mdp.gamma
    value = optimal.soft_state_value(c.mdp, s.policy, SOFT_TEMPERATURE)
    if past_the_end:
        value = torch.where(c.mdp.absorbing, SOFT_TEMPERATURE * math.log(c.mdp.num_actions) / (1.0 - gamma), value)
    backup = c.mdp.reward + gamma * c.mdp.transition @ value
    return Sides(s.action_value, torch.where(c.mdp.absorbing.unsqueeze(-1), 0.0, backup))


@rows.equality("1.7", "gradient of the value loss", continuing)
def soft_value_gradient(c: Process) -> Sides:
    """The sampled gradient of the value loss has the right mean.

    Equation:  grad J_V = E_{a~pi}[V(s) - Q(s, a) + temperature log pi(a|s)] for a tabular V
    Source:    notes 1.7, with the temperature.
    """
    target = (c.policy * (c.function - SOFT_TEMPERATURE * c.policy.log())).sum(-1)
    left = gradient(lambda v: 0.5 * (v - target).square().sum(), c.baseline)
    errors = c.baseline.unsqueeze(-1) - c.function + SOFT_TEMPERATURE * c.policy.log()
    return Sides(left, (c.policy * errors).sum(-1))


@rows.equality("1.7", "gradient of the Q-function's loss", continuing)
def soft_q_gradient(c: Process) -> Sides:
    """The sampled gradient of the Q-function's loss, which sees one next state, has the right mean.

    Equation:  grad J_Q = E_{s'}[Q(s, a) - r(s, a) - gamma V(s')] for a tabular Q, V(s') held fixed
    Source:    notes 1.7.
    """
    target = c.mdp.reward + c.mdp.gamma * c.mdp.transition @ c.baseline
    left = gradient(lambda q: 0.5 * (q - target).square().sum(), c.function)
    errors = (c.function - c.mdp.reward).unsqueeze(-1) - c.mdp.gamma * c.baseline
    return Sides(left, (c.mdp.transition * errors).sum(-1))


@rows.inequality("1.7", "no policy beats the soft optimum", continuing)
def soft_improvement(c: Process) -> Sides:
    """No policy is worth more than the soft optimum, entropy counted: neither a random one nor one nearby.

    Equation:  exp V^pi(s) <= exp V*(s)
    Source:    notes 1.7. Exponentials make both sides positive.
    """
    nearby = torch.softmax(c.soft.policy.log() + 0.1 * c.function, -1)
    found = torch.stack([optimal.soft_state_value(c.mdp, p, SOFT_TEMPERATURE) for p in (c.policy, nearby)])
    return Sides(found.exp(), c.soft.value.exp().expand_as(found))


@rows.equality("1.7", "soft optimum ~ exp(Q / temperature), LQR", control)
def soft_optimum_is_boltzmann(c: Control) -> Sides:
    """With continuous actions the soft optimum is the Boltzmann policy of its own Q, here Gaussian.

    Equation:  pi(a|s) ~ exp(Q(s, a) / temperature): for Q(x, u) with matrix H, K = -H_uu^-1 H_ux and
               Sigma = -temperature/2 H_uu^-1; and the gradient of the objective in K vanishes there
    Source:    notes 1.7; Haarnoja et al. 2017. The gradient is measured against K.
    """
    feedback, covariance = lqr.soft_optimal_policy(c.problem, SOFT_TEMPERATURE)
    n = c.problem.n
    matrix = lqr.q_function(c.problem, feedback, covariance, temperature=SOFT_TEMPERATURE).matrix
    h_ux, h_uu = matrix[n:, :n], matrix[n:, n:]
    greedy, spread = -torch.linalg.solve(h_uu, h_ux), -0.5 * SOFT_TEMPERATURE * torch.linalg.inv(h_uu)
    slope = gradient(lambda k: lqr.objective(c.problem, k, covariance, temperature=SOFT_TEMPERATURE), feedback)
    left = torch.cat([feedback, covariance, slope], -1)
    return Sides(left, torch.cat([greedy, spread, torch.zeros_like(slope)], -1))


@rows.equality("1.7", "J_pi is smallest at softmax(Q / temperature)", continuing)
def soft_actor_loss(c: Process) -> Sides:
    """The actor's loss is smallest at the Boltzmann policy, which reaches minus the soft maximum; Q held fixed.

    Equation:  min_pi E_{a~pi}[temperature log pi(a|s) - Q(s, a)] = -temperature log sum_a exp(Q(s, a) / temperature),
               at pi = softmax(Q / temperature), where its gradient vanishes
    Source:    notes 1.7, J_pi, with the temperature. The gradient is measured against Q.
    """

    def loss(theta: Tensor) -> Tensor:
        pi = softmax_policy(theta)
        return (pi * (SOFT_TEMPERATURE * pi.log() - c.function)).sum(-1)

    best = c.function / SOFT_TEMPERATURE
    slope = gradient(lambda theta: loss(theta).sum(), best)
    least = -SOFT_TEMPERATURE * torch.logsumexp(best, -1)
    return Sides(torch.cat([loss(best), slope.flatten()]), torch.cat([least, torch.zeros(slope.numel(), dtype=F64)]))


class NoisyValues(NamedTuple):
    """Action values, the errors of a critic, equally likely and with mean zero, and a policy."""

    q: Tensor  # (S, A)
    error: Tensor  # (n, S, A)
    policy: Tensor  # (S, A)

    @property
    def smaller(self) -> Tensor:
        """(S, A) E[min(Q_1, Q_2)] of two independent critics, over every pair of errors."""
        found = self.q + self.error
        return torch.minimum(found.unsqueeze(0), found.unsqueeze(1)).mean((0, 1))


@lru_cache(maxsize=256)
def noisy_values(seed: int) -> NoisyValues:
    """Five states, three actions, eight possible errors of every action value."""
    g = stream(seed, 9)
    error = normal(g, 8, 5, 3)
    return NoisyValues(normal(g, 5, 3), error - error.mean(0), torch.softmax(normal(g, 5, 3), -1))


@rows.inequality("1.7", "one noisy Q: its soft maximum is too high", noisy_values)
def soft_maximum_overestimates(c: NoisyValues) -> Sides:
    """Why two critics are kept: acting on one whose errors have mean zero overestimates.

    Equation:  exp(temperature log sum_a exp(Q / temperature)) <= exp(E[temperature log sum_a exp(Q-hat / temperature)])
    Source:    notes 1.7, by Jensen. Exponentials make both sides positive.
    """
    exact, found = (SOFT_TEMPERATURE * torch.logsumexp(q / SOFT_TEMPERATURE, -1) for q in (c.q, c.q + c.error))
    return Sides(exact.exp(), found.mean(0).exp())


@rows.equality("1.7", "E[min(Q1, Q2)] = Q - E|Q1 - Q2|/2", noisy_values)
def minimum_of_two(c: NoisyValues) -> Sides:
    """What the minimum of two independent critics takes off: half of how far they disagree.

    Equation:  E[min(Q_1, Q_2)] = Q - E|Q_1 - Q_2| / 2 for errors of mean zero
    Source:    the minimum of Haarnoja et al. 2018; min(x, y) = (x + y) / 2 - |x - y| / 2. The disagreement from the
               sorted errors e_(1) <= ... <= e_(n): sum_k (2k - n - 1) e_(k) = 1/2 sum_{i, j} |e_i - e_j|.
    """
    n = len(c.error)
    weight = 2.0 * torch.arange(1, n + 1, dtype=F64) - n - 1.0
    disagreement = 2.0 * torch.einsum("n,nsa->sa", weight, c.error.sort(0).values) / n**2
    return Sides(c.smaller, c.q - 0.5 * disagreement)


@rows.inequality("1.7", "E_pi[min(Q1, Q2)] <= E_pi[Q]", noisy_values)
def minimum_of_two_underestimates(c: NoisyValues) -> Sides:
    """A target from the minimum of two is never above the true one, whatever the policy.

    Equation:  exp E_{a~pi}[E min(Q_1, Q_2)] <= exp E_{a~pi}[Q]
    Source:    notes 1.7, with the minimum of two.
    """
    return Sides((c.policy * c.smaller).sum(-1).exp(), (c.policy * c.q).sum(-1).exp())


@rows.control("1.7", "E[min(Q1, Q2)] = Q", noisy_values)
def minimum_of_two_is_biased(c: NoisyValues) -> Sides:
    """Negative control: the minimum of two unbiased critics taken for another unbiased one."""
    return Sides(c.smaller, c.q)
