"""The average reward of continuing problems (notes 1.8)."""

from __future__ import annotations

import torch

from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import Process, continuing, weighted_gradient
from steepest.verification.statement import Rows, Sides, jacobian, vanishing

rows = Rows()


@rows.equality("1.8", "lim E[R_t] = sum_s mu(s) sum_a pi r", continuing)
def average_reward(c: Process) -> Sides:
    """The average reward is what a step earns in the long run, wherever it began.

    Equation:  lim_t E[R_t] = sum_s mu(s) sum_a pi(a|s) r(s, a)
    Source:    notes 1.8. The limit at t = 512, from every state.
    """
    late = torch.linalg.matrix_power(mdps.policy_transition(c.mdp, c.policy), 512)
    left = late @ mdps.policy_reward(c.mdp, c.policy)
    return Sides(left, gains.gain(c.mdp, c.policy).expand_as(left))


@rows.equality("1.8", "V(s) = E[sum_t R_t - r(pi)]", continuing)
def differential_values(c: Process) -> Sides:
    """The value beyond the gain is the sum of expected rewards less the gain.

    Equation:  V(s) = E[sum_t (R_t - r(pi)) | s_0 = s], which has mean zero under mu
    Source:    notes 1.8. The sum by doubling, over 2^10 steps.
    """
    step = mdps.policy_transition(c.mdp, c.policy)
    total = mdps.policy_reward(c.mdp, c.policy) - gains.gain(c.mdp, c.policy)
    for _ in range(10):
        total = total + step @ total
        step = step @ step
    return Sides(total, gains.differential_value(c.mdp, c.policy))


@rows.equality("1.8", "E[r - r(pi) + v(s') - v(s)] = 0", continuing)
@rows.control("1.8", "TD error without the gain", continuing, without_the_gain=True)
def differential_error(c: Process, without_the_gain: bool = False) -> Sides:
    """The differential TD error has mean zero in every state.

    Negative control: the TD error of discounted problems at gamma = 1, which leaves the gain in.

    Equation:  E_{a~pi, s'}[r - r(pi) + v(s') - v(s)] = 0
    Source:    notes 1.8, from its definition of G_t. Measured against v.
    """
    v, gain = gains.differential_value(c.mdp, c.policy), gains.gain(c.mdp, c.policy)
    error = c.mdp.reward - (0.0 if without_the_gain else gain) + c.mdp.transition @ v - v.unsqueeze(-1)
    return vanishing((c.policy * error).sum(-1), v)


@rows.equality("1.8", "Theorem 4", continuing)
def theorem_4(c: Process) -> Sides:
    """The policy-gradient theorem of continuing problems; the proof gives an equality.

    Equation:  grad r(pi) = sum_s mu(s) sum_a q(s, a) grad pi(a|s)
    Source:    notes 1.8, Theorem 4.
    """
    return Sides(
        gradients.gain_gradient(c.mdp, softmax_policy, c.theta),
        gradients.gain_policy_gradient(c.mdp, softmax_policy, c.theta),
    )


@rows.equality("1.8", "Theorem 4, its proof, state by state", continuing)
def theorem_4_proof(c: Process) -> Sides:
    """What the proof sums over s: the gradient of the gain, seen from each state by itself.

    Equation:  grad r(pi) = sum_a [grad pi(a|s) q(s, a) + pi(a|s) sum_s' P(s'|s, a) grad v(s')] - grad v(s), every s
    Source:    notes 1.8, the proof of Theorem 4; grad v by automatic differentiation.
    """
    q = gains.differential_action_value(c.mdp, c.policy)
    direct = jacobian(lambda theta: (softmax_policy(theta) * q).sum(-1), c.theta)
    slope = jacobian(lambda theta: gains.differential_value(c.mdp, softmax_policy(theta)), c.theta)
    carried = torch.einsum("st,tbu->sbu", mdps.policy_transition(c.mdp, c.policy), slope)
    left = gradients.gain_gradient(c.mdp, softmax_policy, c.theta)
    return Sides(left.expand_as(slope), direct + carried - slope)


@rows.control("1.8", "Theorem 4 with discounted values", continuing)
def theorem_4_with_discounted_values(c: Process) -> Sides:
    """Negative control: discounted action values in the place of differential ones."""
    mu = gains.stationary_distribution(c.mdp, c.policy)
    return Sides(
        gradients.gain_gradient(c.mdp, softmax_policy, c.theta),
        weighted_gradient(c, mu, mdps.action_value(c.mdp, c.policy)),
    )
