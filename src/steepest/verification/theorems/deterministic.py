"""Deterministic policy gradients (notes 1.11)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import lqr, lqr_gradients
from steepest.verification.random_problems import Control, Process, continuing, control, normal, stream
from steepest.verification.statement import F64, Rows, Sides, gradient, vanishing

rows = Rows()


@rows.equality("1.11", "J = sum p^pi pi r", continuing)
@rows.control("1.11", "J with p^pi from t = 1", continuing, from_step_1=True)
def objective_over_visits(c: Process, from_step_1: bool = False) -> Sides:
    """The objective is an integral of rewards over p^pi, whose sum starts at t = 0.

    Negative control: p^pi as printed, sum_{t>=1} gamma^(t-1) P(s_t = s), leaves the first state out.

    Equation:  J(pi) = sum_s p^pi(s) sum_a pi(a|s) r(s, a),  p^pi(s) = sum_{t>=0} gamma^t P(s_t = s)
    Source:    notes 1.11.
    """
    visits = mdps.discounted_visits(c.mdp, c.policy)
    if from_step_1:
        visits = (visits - c.mdp.initial) / c.mdp.gamma
    return Sides(mdps.objective(c.mdp, c.policy), visits @ mdps.policy_reward(c.mdp, c.policy))


@rows.equality("1.11", "J = integral of p^mu r(s, mu(s)), LQR", control)
def control_objective_over_visits(c: Control) -> Sides:
    """The same for continuous states and actions, the integral of a quadratic reward being a trace.

    Equation:  J(mu) = integral of p^mu(s) r(s, mu(s)) ds = -tr((Q + K'R K) M)
    Source:    notes 1.11.
    """
    cost = c.problem.Q + c.feedback.mT @ c.problem.R @ c.feedback
    moment = lqr.second_moment(c.problem, c.feedback)
    return Sides(lqr.objective(c.problem, c.feedback), -(cost * moment).sum())


@rows.equality("1.11", "deterministic policy gradient theorem, LQR", control)
def deterministic_policy_gradient(c: Control) -> Sides:
    """The deterministic policy gradient theorem.

    Equation:  grad J = integral of p^mu(s) grad_theta mu(s) grad_a Q^mu(s, a) at a = mu(s)
    Source:    notes 1.11, Eq. 1; Silver et al. 2014, Theorem 1. Left by differentiating the objective's closed form.
    """
    left = gradient(lambda k: lqr.objective(c.problem, k), c.feedback)
    return Sides(left, lqr_gradients.deterministic_policy_gradient(c.problem, c.feedback))


@rows.equality("1.11", "grad Q(s, mu(s)) = grad mu grad_a Q", control)
def chain_rule(c: Control) -> Sides:
    """Moving a policy along Q is moving its action along grad_a Q; at one state, Q held fixed.

    Equation:  grad_theta Q^k(s, mu_theta(s)) = grad_theta mu_theta(s) grad_a Q^k(s, a) at a = mu_theta(s)
    Source:    notes 1.11. Left by automatic differentiation, right with the closed form of grad_a Q.
    """
    q, state = lqr.q_function(c.problem, c.feedback), c.problem.initial_mean
    left = gradient(lambda k: q(state, k @ state), c.feedback)
    return Sides(left, torch.outer(lqr_gradients.action_gradient(c.problem, c.feedback) @ state, state))


@rows.equality("1.11", "E[delta] = 0 at Q^mu, any action", control)
@rows.control("1.11", "the same with the behaviour's next action", control, behaviours=True)
def critic_error(c: Control, behaviours: bool = False) -> Sides:
    """At Q^mu the critics' error has mean zero, whatever action was taken: on-policy, and off-policy with a' = mu(s').

    Negative control: off-policy with the behaviour's next action, where the on-policy algorithm has a_{t+1}.

    Equation:  E_{s'}[r(s, a) + gamma Q^mu(s', mu(s')) - Q^mu(s, a)] = 0 for every s and a
    Source:    notes 1.11, both algorithms; on-policy a_{t+1} is mu(s_{t+1}). Measured against Q^mu, at 64 states and
               actions drawn at random.
    """
    q, following = lqr.q_function(c.problem, c.feedback), c.other if behaviours else c.feedback
    g = stream(0, 8)
    state, action = normal(g, 64, c.problem.n), normal(g, 64, c.problem.m)
    reward = -((state @ c.problem.Q * state).sum(-1) + (action @ c.problem.R * action).sum(-1))
    after = state @ c.problem.A.mT + action @ c.problem.B.mT
    lift = torch.cat([torch.eye(c.problem.n, dtype=F64), following])
    noise = (lift.mT @ q.matrix @ lift * c.problem.W).sum()  # what the process noise adds to the mean of a quadratic
    error = reward + c.problem.discount * (q(after, after @ following.mT) + noise) - q(state, action)
    return vanishing(error, q.matrix)


@rows.equality("1.11", "J_pi = integral of p^pi V = of p^pi Q", control)
def off_policy_deterministic_objective(c: Control) -> Sides:
    """The off-policy objective in its two forms; the quadratic Q over p^pi is a trace and a constant.

    Equation:  J_pi(mu) = integral of p^pi(s) V^mu(s) ds = integral of p^pi(s) Q^mu(s, mu(s)) ds
    Source:    notes 1.11.
    """
    q = lqr.q_function(c.problem, c.feedback)
    lift = torch.cat([torch.eye(c.problem.n, dtype=F64), c.feedback])  # (s, mu(s)) from s
    moment = lqr.second_moment(c.problem, c.other)
    right = (lift.mT @ q.matrix @ lift * moment).sum() + c.problem.total_weight * q.constant
    return Sides(lqr_gradients.off_policy_objective(c.problem, c.feedback, c.other), right)


@rows.equality("1.11", "off-policy update = grad mu grad_a Q", control)
def off_policy_deterministic_gradient(c: Control) -> Sides:
    """The off-policy update is the gradient through the action alone, Q held fixed.

    Equation:  integral of p^pi(s) grad_theta mu(s) grad_a Q^mu(s, a) at a = mu(s), grad_theta Q^mu dropped
    Source:    notes 1.11; Silver et al. 2014, Eq. 15.
    """
    q = lqr.q_function(c.problem, c.feedback)
    moment = lqr.second_moment(c.problem, c.other)

    def through_the_action(k: Tensor) -> Tensor:
        lift = torch.cat([torch.eye(c.problem.n, dtype=F64), k])
        return (lift.mT @ q.matrix.detach() @ lift * moment).sum()

    return Sides(
        gradient(through_the_action, c.feedback), lqr_gradients.off_policy_semi_gradient(c.problem, c.feedback, c.other)
    )


@rows.equality("1.11", "off-policy, the whole gradient", control)
@rows.control("1.11", "off-policy, grad Q dropped", control, dropped=True)
def off_policy_deterministic_whole_gradient(c: Control, dropped: bool = False) -> Sides:
    """What brings the dropped term back: states weighted as mu meets them from where the other policy is.

    Negative control: with grad_theta Q dropped it is not the gradient of J_pi.

    Equation:  grad J_pi(mu) = integral of m(s) grad_theta mu(s) grad_a Q^mu(s, a) at a = mu(s),
               m = sum_t gamma^t P(s_t = s; s_0 ~ p^pi, mu)
    Source:    derived as the emphatic gradient of 1.6. Left by differentiating the objective's closed form.
    """
    left = gradient(lambda k: lqr_gradients.off_policy_objective(c.problem, k, c.other), c.feedback)
    right = lqr_gradients.off_policy_semi_gradient if dropped else lqr_gradients.off_policy_gradient
    return Sides(left, right(c.problem, c.feedback, c.other))


@rows.control("1.11", "off-policy, grad mu Q without grad_a", control)
def off_policy_deterministic_middle_form(c: Control) -> Sides:
    """Negative control: the middle form as printed, grad mu times Q itself, lacks grad_a; at one state."""
    q, state = lqr.q_function(c.problem, c.feedback), c.problem.initial_mean
    slope = gradient(lambda action: q(state, action), c.feedback @ state).unsqueeze(-1) * state
    return Sides(slope, q(state, c.feedback @ state) * state.expand_as(slope))


@rows.equality("1.11", "compatible critic gives the gradient", control)
@rows.control("1.11", "compatible critic of other states", control, other_states=True)
def compatible_critic(c: Control, other_states: bool = False) -> Sides:
    """With the compatible critic that fits grad_a Q best, the actor's gradient is exact, though the fit is not.

    Negative control: the same critic fitted over the states of another policy.

    Equation:  grad_theta_i J = E_{s~p^mu}[grad_theta_i mu(s)' grad_a Q^w(s, a)],  grad_a Q^w = grad_theta mu(s)' w
    Source:    notes 1.11; Silver et al. 2014, Theorem 3. Two directions D_i = dK/dtheta_i of six.
    """
    directions = torch.stack([c.other, c.feedback])
    if other_states:
        moment = lqr.second_moment(c.problem, c.other)
        gram = torch.einsum("iab,bc,jac->ij", directions, moment, directions)
        slope = torch.einsum("iab,ab->i", directions, lqr_gradients.action_gradient(c.problem, c.feedback) @ moment)
        w = torch.linalg.solve(gram, slope)
    else:
        w = lqr_gradients.compatible_weights(c.problem, c.feedback, directions)
    left = torch.einsum("iab,ab->i", directions, gradient(lambda k: lqr.objective(c.problem, k), c.feedback))
    fitted = torch.einsum("jab,j->ab", directions, w)
    return Sides(left, torch.einsum("iab,ab->i", directions, fitted @ lqr.second_moment(c.problem, c.feedback)))
