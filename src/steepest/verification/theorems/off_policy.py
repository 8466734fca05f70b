"""The off-policy gradient (notes 1.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients
from steepest.exact.finite_mdp import Weighting, softmax_policy
from steepest.verification.random_problems import HORIZON, Process, continuing, episodic, weighted_gradient
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()


@rows.equality("1.6", "J_beta = sum p^beta V = sum p^beta pi Q", episodic)
def off_policy_objective(c: Process) -> Sides:
    """The off-policy objective in its two forms.

    Equation:  J_beta = sum_s p^beta(s) V^pi(s) = sum_s p^beta(s) sum_a pi(a|s) Q^pi(s, a)
    Source:    notes 1.6. The right side over every trajectory of the behaviour.
    """
    value = (c.policy * mdps.action_value(c.mdp, c.policy)).sum(-1)[c.other_paths.state[:-1]]
    met = c.discounts * c.other_paths.valid * c.other_paths.probability
    return Sides(gradients.off_policy_objective(c.mdp, c.other, c.policy, "discounted"), (met * value).sum())


@rows.equality("1.6", "E_beta[rho grad log pi Q] = sum p^beta grad pi Q", episodic)
def off_policy_gradient(c: Process) -> Sides:
    """The printed expectation under the behaviour is the gradient with grad Q dropped.

    Equation:  E_{s~p^beta, a~beta}[pi/beta grad log pi(a|s) Q^pi(s, a)] = sum_s p^beta(s) sum_a grad pi(a|s) Q^pi(s, a)
    Source:    notes 1.6; Degris, White & Sutton 2012, whose approximation this is. Left over every trajectory of the
               behaviour.
    """
    at = (c.other_paths.state[:-1], c.other_paths.action)
    met = c.discounts * c.other_paths.valid * c.other_paths.probability
    fixed = met * (c.policy / c.other)[at] * mdps.action_value(c.mdp, c.policy)[at]
    left = gradient(lambda theta: (fixed * torch.log_softmax(theta, -1)[at]).sum(), c.theta)
    right = gradients.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted")
    return Sides(left, right)


@rows.control("1.6", "grad Q dropped", continuing)
def off_policy_gradient_is_approximate(c: Process) -> Sides:
    """Negative control: with grad Q dropped it is not the gradient of J_beta."""
    given = (c.mdp, c.other, softmax_policy, c.theta, "discounted")
    return Sides(gradients.off_policy_gradient(*given), gradients.off_policy_gradient_approximate(*given))


@rows.equality("1.6", "emphasis gives the gradient, d^beta", continuing, weighting="stationary")
@rows.equality("1.6", "emphasis gives the gradient, p^beta", continuing, weighting="discounted")
def emphatic_gradient(c: Process, weighting: Weighting) -> Sides:
    """Emphasis brings the dropped term back, with states weighted as they are met in the long run, or as in the notes.

    Equation:  grad J_beta = sum_s m(s) sum_a grad pi(a|s) Q^pi(s, a),  m = (I - gamma P_pi^T)^-1 d^beta (or p^beta)
    Source:    Imani, Graves & White 2018, whose theorem it is, for the objective of notes 1.6.
    """
    given = (c.mdp, c.other, softmax_policy, c.theta, weighting)
    return Sides(gradients.off_policy_gradient(*given), gradients.emphatic_gradient(*given))


def followed_trace(c: Process, *, discounted_interest: bool = True) -> Tensor:
    """(S,) E_beta[sum_t F_t 1(s_t = s)] over every trajectory, F_t = gamma rho_{t-1} F_{t-1} + gamma^t (or + 1)."""
    paths = c.other_paths
    ratio = (c.policy / c.other)[paths.state[:-1], paths.action]
    trace = torch.zeros_like(paths.probability)
    total = torch.zeros(c.mdp.num_states, dtype=F64)
    for t in range(HORIZON):
        carried = c.mdp.gamma * ratio[t - 1] * trace if t > 0 else trace
        trace = carried + (c.mdp.gamma**t if discounted_interest else 1.0)
        total = total.index_add(0, paths.state[t], paths.probability * trace * paths.valid[t])
    return total


@rows.equality("1.6", "emphasis = E_beta[sum_t F_t]", episodic)
def emphasis_is_followed(c: Process) -> Sides:
    """The emphasis is what a trace along the behaviour's trajectories gathers.

    Equation:  m(s) = E_beta[sum_t F_t 1(s_t = s)],  F_t = gamma rho_{t-1} F_{t-1} + gamma^t
    Source:    the follow-on trace of Sutton, Mahmood & White 2016 in Imani, Graves & White 2018, here with the interest
               gamma^t that p^beta asks for; derived by unrolling m = p^beta + gamma P_pi' m.
    """
    m = gradients.emphasis(c.mdp, c.other, c.policy, "discounted")
    return Sides(followed_trace(c), torch.where(c.mdp.absorbing, 0.0, m))


@rows.control("1.6", "emphasis with interest 1 and p^beta", episodic)
def emphasis_with_interest_1(c: Process) -> Sides:
    """Negative control: with p^beta, a trace whose interest is 1 at every step does not give the gradient."""
    trace = followed_trace(c, discounted_interest=False)
    return Sides(
        gradients.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
        weighted_gradient(c, trace, mdps.action_value(c.mdp, c.policy)),
    )
