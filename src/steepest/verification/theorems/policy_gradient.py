"""The policy-gradient theorem and its notation (notes 1, 1.1, 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients, lqr, lqr_gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import (
    Control,
    Process,
    continuing,
    control,
    episodic,
    undiscounted_episodic,
    weighted_gradient,
)
from steepest.verification.statement import F64, Rows, Sides, gradient, vanishing

rows = Rows()

# 1, 1.1: notation, the policy-gradient theorem


@rows.equality("1", "p^pi(s) = sum_k gamma^k P(s_0 -> s, k)", continuing)
def discounted_visits(c: Process) -> Sides:
    """The improper discounted state distribution is the sum that defines it.

    Equation:  p^pi(s) = sum_k gamma^k P(s_0 -> s, k)
    Source:    notes 1 (Notation). The sum by doubling: terms 0 .. 2^12 - 1.
    """
    step = c.mdp.gamma * mdps.policy_transition(c.mdp, c.policy).T
    total = c.mdp.initial
    for _ in range(12):
        total = total + step @ total
        step = step @ step
    return Sides(total, mdps.discounted_visits(c.mdp, c.policy))


@rows.equality("1", "d^pi = (1 - gamma) p^pi, sums to 1 with the absorbing state", episodic)
def state_distribution(c: Process) -> Sides:
    """d^pi is p^pi times 1 - gamma, and with the absorbing state it sums to 1.

    Equation:  d^pi(s) = (1 - gamma) sum_t gamma^t P(s_0 -> s, t),  sum_s d^pi(s) = 1
    Source:    notes 1 (Notation), 1.9.
    """
    d = mdps.state_distribution(c.mdp, c.policy)
    expected = (1.0 - c.mdp.gamma) * discounted_visits(c).left
    return Sides(torch.cat([d, d.sum().view(1)]), torch.cat([expected, torch.ones(1, dtype=F64)]))


@rows.control("1", "d^pi without the absorbing state", episodic)
def state_distribution_without_the_end(c: Process) -> Sides:
    """Negative control: d^pi over the states in which something is decided does not sum to 1."""
    d = mdps.state_distribution(c.mdp, c.policy)
    return Sides(d[~c.mdp.absorbing].sum(), torch.ones((), dtype=F64))


@rows.equality("1.1", "V(s) = sum_a pi(a|s) Q(s, a)", continuing)
def value_over_actions(c: Process) -> Sides:
    """A state is worth what its actions are worth.

    Equation:  V(s, theta) = sum_a pi(a|s) Q(s, a; theta)
    Source:    notes 1.1.
    """
    return Sides(mdps.state_value(c.mdp, c.policy), (c.policy * mdps.action_value(c.mdp, c.policy)).sum(-1))


@rows.equality("1.1", "V = sum_tau P(tau) R(tau)", episodic)
def value_over_trajectories(c: Process) -> Sides:
    """The objective is the mean return over every trajectory.

    Equation:  V(theta) = sum_tau P_theta(tau) R(tau)
    Source:    notes 1.1.
    """
    return Sides(mdps.objective(c.mdp, c.policy), c.paths.probability @ c.returns)


def _scores(c: Process) -> Tensor:
    """(T, K, S, A) grad log pi(a_t|s_t) of a softmax policy in closed form; 0 after the end."""
    s, a = c.paths.state[:-1], c.paths.action
    by_state = torch.nn.functional.one_hot(s, c.mdp.num_states).to(F64)
    chosen = torch.nn.functional.one_hot(a, c.mdp.num_actions).to(F64)
    score = by_state.unsqueeze(-1) * (chosen - c.policy[s]).unsqueeze(-2)
    return score * c.paths.valid[..., None, None]


@rows.equality("1.1", "Lemma 1: grad V = sum_tau R P grad log P", episodic)
def lemma_1(c: Process) -> Sides:
    """The gradient of the objective is an expectation of returns times scores of trajectories.

    Equation:  grad V(theta) = sum_tau R(tau) P_theta(tau) grad log P_theta(tau)
    Source:    notes 1.1, Lemma 1.
    """
    weight = c.paths.probability * c.returns
    return Sides(c.gradient, gradient(lambda theta: weight @ c.log_probability(theta), c.theta))


@rows.equality("1.1", "Lemma 2: grad log P(tau) = sum_t grad log pi", episodic)
@rows.control("1.1", "Lemma 2 with grad pi for grad log pi", episodic, logarithm=False)
@rows.control("1.1", "Lemma 2 with steps from 1", episodic, first=1)
def lemma_2(c: Process, logarithm: bool = True, first: int = 0) -> Sides:
    """The score of a trajectory is the sum of its actions' scores; checked for every trajectory.

    Negative controls: gradients of probabilities summed; and indices 1..T, which lose the first action's score.

    Equation:  grad log P_theta(tau) = sum_{t=0}^{T-1} grad log pi(a_t|s_t)
    Source:    notes 1.1, Lemma 2. The proof's own slip, a second line without the sign of the gradient on the sum, adds
               numbers to a vector: there is nothing to compute.
    """
    scores = _scores(c)
    if not logarithm:
        scores = c.policy[c.paths.state[:-1], c.paths.action][..., None, None] * scores
    return Sides(c.trajectory_scores, scores[first:].sum(0))


@rows.equality("1.1", "grad V = E[(sum_t grad log pi) (sum_t gamma^t r)]", episodic)
def likelihood_ratio_gradient(c: Process) -> Sides:
    """Lemmas 1 and 2 together: the update rule.

    Equation:  grad V = E_tau[(sum_t grad log pi(a_t|s_t)) (sum_t gamma^t r(s_t, a_t))]
    Source:    notes 1.1.
    """
    return Sides(c.gradient, torch.einsum("k,tksa->sa", c.paths.probability * c.returns, _scores(c)))


def _counted_visits(c: Process) -> Tensor:
    """(S,) eta(s): the (discounted) steps decided in s, counted over every trajectory."""
    here = torch.nn.functional.one_hot(c.paths.state[:-1], c.mdp.num_states).to(F64)
    weight = c.discounts * c.paths.valid * c.paths.probability
    return torch.einsum("tk,tks->s", weight, here)


@rows.equality("1.1", "recursion of eta", episodic)
def eta_recursion(c: Process) -> Sides:
    """The visits of an episode, counted over every trajectory, solve their recursion.

    Equation:  eta(s) = mu_0(s) + sum_s' eta(s') sum_a gamma pi(a|s') p(s|s', a), s not absorbing
    Source:    notes 1.1.
    """
    eta = _counted_visits(c)
    arriving = c.mdp.initial + c.mdp.gamma * eta @ mdps.policy_transition(c.mdp, c.policy)
    return Sides(eta, torch.where(c.mdp.absorbing, 0.0, arriving))


@rows.equality("1.1", "eta = p^pi", episodic)
@rows.equality("1.1", "eta counts visits at gamma = 1", undiscounted_episodic)
def eta_is_discounted_visits(c: Process) -> Sides:
    """eta as printed contains gamma, so it is p^pi; with gamma = 1 it counts visits.

    Equation:  eta(s) = p^pi(s), s not absorbing
    Source:    notes 1.1.
    """
    return Sides(_counted_visits(c), mdps.expected_visits(c.mdp, c.policy))


@rows.equality("1.1", "Theorem 3, p^pi", continuing)
@rows.equality("1.1", "Theorem 3 at gamma = 1", undiscounted_episodic)
def theorem_3(c: Process) -> Sides:
    """The policy-gradient theorem, with p^pi an equality.

    Equation:  grad V = sum_s p^pi(s) sum_a grad pi(a|s) q(s, a)
    Source:    notes 1.1, Theorem 3.
    """
    return Sides(c.gradient, gradients.policy_gradient(c.mdp, softmax_policy, c.theta))


@rows.equality("1.1", "Theorem 3 as an expectation of scores", continuing)
def theorem_3_as_expectation(c: Process) -> Sides:
    """The same as an expectation of scores, the softmax's in closed form.

    Equation:  grad V = E_{s~p^pi, a~pi}[grad log pi(a|s) q(s, a)]; for a softmax, p^pi(s) pi(a|s) A(s, a)
    Source:    notes 1.1, Theorem 3.
    """
    visits = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1)
    return Sides(c.gradient, visits * c.policy * mdps.advantage(c.mdp, c.policy))


@rows.equality("1.1", "Theorem 3 for a Gaussian policy, LQR", control)
def theorem_3_of_a_gaussian(c: Control) -> Sides:
    """The same for continuous states and actions: a Gaussian policy of a linear-quadratic problem, in both parameters.

    Equation:  dJ/dK = G M,  dJ/dSigma = -(R + gamma B'P B) / (1 - gamma) for u ~ N(K x, Sigma), here Sigma = R^-1
    Source:    notes 1.1, Theorem 3, in closed form. Left by differentiating the objective's closed form.
    """
    covariance = torch.linalg.inv(c.problem.R)
    covariance = 0.5 * (covariance + covariance.mT)
    by_feedback = gradient(lambda k: lqr.objective(c.problem, k, covariance), c.feedback)
    # Entries of Sigma are not free: the derivative along (X + X') / 2 is the symmetric part of what is stated.
    by_covariance = gradient(lambda x: lqr.objective(c.problem, c.feedback, 0.5 * (x + x.mT)), covariance)
    right = lqr_gradients.policy_gradient(c.problem, c.feedback, covariance)
    return Sides(torch.cat([by_feedback, by_covariance], -1), torch.cat(right, -1))


def _theorem_3_under_mu(c: Process, q: Tensor) -> Tensor:
    return weighted_gradient(c, mdps.on_policy_distribution(c.mdp, c.policy), q)


@rows.equality("1.1", "Theorem 3, the constant of proportionality", episodic)
@rows.control("1.1", "Theorem 3 without the constant", episodic, constant=False)
def theorem_3_constant(c: Process, constant: bool = True) -> Sides:
    """What "proportional to" hides: the constant is the expected (discounted) length of an episode.

    Negative control: "proportional to" read as an equality.

    Equation:  grad V = (sum_s' eta(s')) sum_s mu(s) sum_a q(s, a) grad pi(a|s)
    Source:    notes 1.1, Theorem 3. The length is counted over every trajectory.
    """
    right = _theorem_3_under_mu(c, mdps.action_value(c.mdp, c.policy))
    return Sides(c.gradient, _counted_visits(c).sum() * right if constant else right)


@rows.control("1.1", "Theorem 3, states weighted without gamma^t", episodic)
def theorem_3_undiscounted_states(c: Process) -> Sides:
    """Negative control: states weighted without gamma^t do not give the gradient of the discounted objective."""
    return Sides(c.gradient, gradients.undiscounted_weighting_gradient(c.mdp, softmax_policy, c.theta))


@rows.equality("1.4", "E[b(s) grad log pi] = 0", continuing)
@rows.control("1.4", "a baseline that sees the action", continuing, sees_the_action=True)
def baseline_has_zero_mean(c: Process, sees_the_action: bool = False) -> Sides:
    """A function of the state alone adds nothing to the gradient. Negative control: a function of the action too.

    Equation:  E_{s~p^pi, a~pi}[b(s) grad log pi(a|s)] = sum_s p^pi(s) b(s) grad sum_a pi(a|s) = 0
    Source:    notes 1.4. Measured against the gradient.
    """
    baseline = c.function if sees_the_action else c.baseline.unsqueeze(-1)
    return vanishing(weighted_gradient(c, mdps.discounted_visits(c.mdp, c.policy), baseline), c.gradient)


@rows.equality("1.4", "Theorem 3 with a baseline", episodic)
def theorem_3_with_baseline(c: Process) -> Sides:
    """The policy-gradient theorem less a baseline.

    Equation:  grad V = (sum_s' eta(s')) sum_s mu(s) sum_a (q(s, a) - b(s)) grad pi(a|s)
    Source:    notes 1.4.
    """
    q = mdps.action_value(c.mdp, c.policy) - c.baseline.unsqueeze(-1)
    return Sides(c.gradient, _counted_visits(c).sum() * _theorem_3_under_mu(c, q))
