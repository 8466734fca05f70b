"""The score function and the critics, in expectation over every trajectory (notes 1.2 to 1.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steepest import distributions, losses, numerics, returns
from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification import random_problems
from steepest.verification.random_problems import HORIZON, Process, episodic, undiscounted_episodic
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

# 1.2 to 1.6: the score function


def score_gradient(
    c: Process, advantage: Tensor, weight: Tensor | float = 1.0, paths: random_problems.Paths | None = None
) -> Tensor:
    """(S, A) what ``score_function_loss`` estimates: minus its expected gradient, over every trajectory (of pi)."""
    paths = paths or c.paths

    def expected_loss(theta: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(theta, -1)[paths.state[:-1]])
        per_step = losses.score_function_loss(policy.log_prob(paths.action), advantage)
        return paths.probability @ (per_step * weight * paths.valid).sum(0)

    return -gradient(expected_loss, c.theta)


def _to_go(c: Process) -> Tensor:
    """(T, K) the shipped reward-to-go, without bootstrap."""
    nothing = torch.zeros(c.paths.state.shape, dtype=F64)
    return returns.reward_to_go(c.paths.reward, nothing, *c.paths.flags, c.mdp.gamma)


def undiscounted_weighting(c: Process) -> Tensor:
    """(S, A) what an estimator that leaves gamma^t out has for its mean."""
    return gradients.undiscounted_weighting_gradient(c.mdp, softmax_policy, c.theta)


@rows.equality("1.2", "full return", episodic, tested="losses.score_function_loss")
def full_return(c: Process) -> Sides:
    """E[(sum_t grad log pi) R(tau)] = grad V."""
    return Sides(score_gradient(c, c.returns.expand_as(c.paths.reward)), c.gradient)


@rows.equality("1.2", "mean over two trajectories", episodic, tested="losses.score_function_loss", divisor=2.0)
@rows.control("1.2", "trajectories summed, not averaged", episodic, tested="losses.score_function_loss", divisor=1.0)
def mean_over_trajectories(c: Process, divisor: float) -> Sides:
    """E[1/m sum_i (sum_t grad log pi) R(tau_i)] = grad V, m = 2; over every pair of two independent trajectories.

    Negative control: trajectories summed, as in the box, so that the step grows with their number.
    """

    def expected_loss(theta: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(theta, -1)[c.paths.state[:-1]])
        per_step = losses.score_function_loss(policy.log_prob(c.paths.action), c.returns.expand_as(c.paths.reward))
        each = (per_step * c.paths.valid).sum(0)
        pairs = (each.unsqueeze(0) + each.unsqueeze(1)) / divisor
        return c.paths.probability @ pairs @ c.paths.probability

    return Sides(-gradient(expected_loss, c.theta), c.gradient)


rows.equality("1.2", "gamma = 1", undiscounted_episodic, tested="losses.score_function_loss")(full_return)


@rows.equality("1.3", "reward-to-go with gamma^t", episodic, tested="returns.reward_to_go")
@rows.equality("1.3", "reward-to-go at gamma = 1", undiscounted_episodic, tested="returns.reward_to_go")
@rows.control("1.3", "rewards from t + 1", episodic, tested="returns.reward_to_go", from_the_next=True)
def reward_to_go(c: Process, from_the_next: bool = False) -> Sides:
    """E[sum_t gamma^t grad log pi G_t] = grad V. Negative control: rewards counted from t + 1."""
    to_go = _to_go(c) - c.paths.reward if from_the_next else _to_go(c)
    return Sides(score_gradient(c, to_go, c.discounts), c.gradient)


@rows.equality("1.3", "states without gamma^t: their own sum", episodic, tested="losses.score_function_loss")
@rows.control("1.3", "states without gamma^t: the gradient", episodic, tested="losses.score_function_loss", true=True)
def undiscounted_states(c: Process, true: bool = False) -> Sides:
    """Without gamma^t on the states, the estimator has a mean of its own: plain visits in the theorem's sum.

    Negative control: that mean is not the true gradient of the discounted objective.
    """
    return Sides(score_gradient(c, _to_go(c)), c.gradient if true else undiscounted_weighting(c))


@rows.equality("1.4", "baseline b(s_t), arbitrary", episodic, tested="losses.score_function_loss")
@rows.control("1.4", "baseline b(s_t') inside the sum", episodic, tested="losses.score_function_loss", inside=True)
def with_baseline(c: Process, inside: bool = False) -> Sides:
    """E[sum_t gamma^t grad log pi (G_t - b(s_t))] = grad V, b arbitrary.

    Negative control: sum_{t' >= t} (r_t' - b(s_t')), as printed.
    """
    b = c.baseline[c.paths.state[:-1]]
    if inside:
        b = b * c.paths.valid
        b = torch.stack([(c.discounts[: HORIZON - t] * b[t:]).sum(0) for t in range(HORIZON)])
    return Sides(score_gradient(c, _to_go(c) - b, c.discounts), c.gradient)


@rows.equality("1.5", "advantage of step t", episodic, tested="losses.score_function_loss")
@rows.control("1.5", "advantage of a later step t'", episodic, tested="losses.score_function_loss", later=True)
def exact_advantage(c: Process, later: bool = False) -> Sides:
    """E[sum_t gamma^t grad log pi A(s_t, a_t)] = grad V.

    Negative control: the advantage at t', a later step than the score's.
    """
    a = mdps.advantage(c.mdp, c.policy)[c.paths.state[:-1], c.paths.action] * c.paths.valid
    advantage = torch.cat([a[1:], torch.zeros_like(a[:1])]) if later else a
    return Sides(score_gradient(c, advantage, c.discounts), c.gradient)


def td_errors(c: Process, value: Tensor, paths: random_problems.Paths | None = None) -> Tensor:
    """(T, K) the shipped TD errors for values by state, along the trajectories of pi unless others are given."""
    paths = paths or c.paths
    v = value[paths.state]
    return returns.td_error(paths.reward, v[:-1], v[1:], paths.terminated, c.mdp.gamma)


@rows.equality("1.5", "TD error as advantage, V exact", episodic, tested="returns.td_error")
def td_error_as_advantage(c: Process) -> Sides:
    """E[sum_t gamma^t grad log pi delta_t] = grad V where V is exact."""
    return Sides(score_gradient(c, td_errors(c, mdps.state_value(c.mdp, c.policy)), c.discounts), c.gradient)


@rows.equality("1.5", "standardised advantages", undiscounted_episodic, tested="numerics.standardize")
def standardised(c: Process) -> Sides:
    """Standardised advantages at gamma = 1: the shift is a baseline, so the gradient is divided and nothing else."""
    weight = c.paths.probability * c.paths.valid * len(c.paths.probability)
    g = _to_go(c)
    mean = (weight * g).sum() / weight.sum()
    deviation = ((weight * (g - mean).square()).sum() / weight.sum()).sqrt()
    return Sides(score_gradient(c, numerics.standardize(g, weight, epsilon=0.0)), c.gradient / deviation)


def _critic_gradient(c: Process, target: Callable[[Tensor], Tensor]) -> Tensor:
    """(S,) the expected gradient of the value loss in tabular values, at the arbitrary baseline."""

    def expected_loss(value: Tensor) -> Tensor:
        per_step = losses.value_loss(value[c.paths.state[:-1]], target(value))
        return c.paths.probability @ (per_step * c.paths.valid).sum(0)

    return gradient(expected_loss, c.baseline)


def _visits(c: Process) -> Tensor:
    return mdps.expected_visits(c.mdp.with_gamma(1.0), c.policy)


def value_pull(c: Process) -> Tensor:
    """(S,) visits times (v - V^pi)."""
    return _visits(c) * (c.baseline - mdps.state_value(c.mdp, c.policy))


@rows.equality("1.5", "Monte-Carlo critic", episodic, tested="losses.value_loss")
def monte_carlo_critic(c: Process) -> Sides:
    """Regression on the reward-to-go pulls every state to its value, as hard as it is visited."""
    return Sides(_critic_gradient(c, lambda _: _to_go(c)), value_pull(c))


def bellman_pull(c: Process) -> Tensor:
    """(S,) visits times (v - (r_pi + gamma P_pi v)), v = 0 where the process is over."""
    v = torch.where(c.mdp.absorbing, 0.0, c.baseline)
    backup = mdps.policy_reward(c.mdp, c.policy) + c.mdp.gamma * mdps.policy_transition(c.mdp, c.policy) @ v
    return _visits(c) * (v - backup)


@rows.equality("1.5", "bootstrapped critic, target fixed", episodic, tested="losses.value_loss")
def bootstrapped_critic(c: Process) -> Sides:
    """Regression on r + gamma (1 - terminated) V(s'), held fixed, pulls every state to its Bellman backup."""
    found = _critic_gradient(c, lambda v: td_errors(c, v) + v[c.paths.state[:-1]])
    return Sides(found, bellman_pull(c))


@rows.control("1.5", "target without gamma", episodic, tested="losses.value_loss", discounted=False)
@rows.control("1.5", "target past the end", episodic, tested="losses.value_loss", discounted=True)
def without_a_terminal_case(c: Process, discounted: bool) -> Sides:
    """Negative controls: the target as printed, r + V(s'), without gamma; and one that goes on after termination."""
    gamma = c.mdp.gamma if discounted else 1.0
    return Sides(_critic_gradient(c, lambda v: c.paths.reward + gamma * v[c.paths.state[1:]]), bellman_pull(c))


@rows.control("1.5", "target not held fixed", episodic, tested="returns.td_error")
def target_not_held_fixed(c: Process) -> Sides:
    """Negative control: the residual gradient, which differentiates the target too."""

    def expected_loss(value: Tensor) -> Tensor:
        return c.paths.probability @ (0.5 * td_errors(c, value).square() * c.paths.valid).sum(0)

    return Sides(gradient(expected_loss, c.baseline), bellman_pull(c))


@rows.equality("1.6", "Off-PAC's actor, V exact", episodic, tested="returns.td_error")
@rows.control("1.6", "reward of the next step", episodic, tested="returns.td_error", next_reward=True)
def off_policy_actor(c: Process, next_reward: bool = False) -> Sides:
    """Off-PAC's actor: E_beta[gamma^t rho grad log pi delta] is the gradient with grad Q dropped, V being exact.

    Negative control: delta_t with r_{t+1}, read in the indices of the other sections as the next step's reward.
    """
    paths = c.other_paths
    delta = td_errors(c, mdps.state_value(c.mdp, c.policy), paths)
    if next_reward:
        delta = delta - paths.reward + torch.cat([paths.reward[1:], torch.zeros_like(paths.reward[:1])])
    ratio = (c.policy / c.other)[paths.state[:-1], paths.action]
    right = gradients.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted")
    return Sides(score_gradient(c, ratio * delta, c.discounts, paths), right)
