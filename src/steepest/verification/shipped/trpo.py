"""TRPO's own update, on a batch that holds every state and action once (notes 1.10)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steepest import losses, numerics
from steepest.agents import natural_step as shipped
from steepest.algorithms.trpo import TRPO
from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import Process, continuing
from steepest.verification.shipped.agents import differentiated, tables, tabular_agent
from steepest.verification.statement import F64, Rows, Sides, gradient
from steepest.verification.theorems import trust_region

rows = Rows()

MAX_KL = 0.01
"""Nats: the usual trust region."""

WIDE_KL = 0.1
"""Nats: so far that the quadratic model is wrong by some per cent, on many problems to the wrong side."""

ITERATIONS = 20
"""Twice the rank of the Fisher matrix, for what rounding leaves over."""


class Setting(NamedTuple):
    """An agent that is the process's policy, and its states and actions as often as they are met, d^pi(s) pi(a|s)."""

    agent: TRPO
    state: dict[str, Tensor]
    batch: dict[str, Tensor]
    hyper: dict[str, Tensor]


def setting(c: Process, theta: Tensor, max_kl: float = MAX_KL, *, checked: bool = False) -> Setting:
    """The agent with logits theta; batch and advantages are those of the process's policy."""
    states, actions = c.theta.shape
    agent: TRPO = tabular_agent("trpo", states, actions)
    weight = mdps.state_distribution(c.mdp, c.policy).unsqueeze(-1) * c.policy
    batch = {
        "obs/obs": torch.eye(states, dtype=F64).repeat_interleave(actions, 0),
        "action": torch.arange(actions).repeat(states),
        "log_prob": c.policy.log().flatten(),
        "old_policy/log_probs": c.policy.log().repeat_interleave(actions, 0),
        "advantage": mdps.advantage(c.mdp, c.policy).flatten(),
        "weight": 10.0 * weight.flatten(),  # a mean divides by the sum of the weights, but by no less than 1
    }
    numbers = {
        "max_kl": max_kl,
        "cg_damping": 0.0,
        "backtrack": 0.8,
        "least_improvement": 0.0 if checked else -torch.inf,
        "kl_limit": max_kl if checked else torch.inf,
    }
    hyper = {k: torch.tensor(x, dtype=F64) for k, x in numbers.items()}
    return Setting(agent, {"params": agent.layout.flatten(tables(theta, c.baseline))}, batch, hyper)


def logits(at: Setting, vector: Tensor) -> Tensor:
    """(S, A) the table of log-probabilities that a parameter vector stands for."""
    parameters = at.agent.layout.unflatten(vector)
    return torch.log_softmax(parameters["policy_head.weight"].T + parameters["policy_head.bias"], -1)


def step(at: Setting) -> Tensor:
    """The agent's step: gradient, conjugate gradients, scale."""
    system, _ = at.agent.policy_gradient(differentiated, at.state, at.batch, at.hyper)
    slope = system.residual
    system = at.agent.solve(system, at.state, at.batch, at.hyper, ITERATIONS)
    return shipped.natural_step(system, slope, at.state, at.hyper)[0]


def updated(at: Setting, trials: int = 20) -> Tensor:
    """The parameter vector after the step and its search."""
    return searched(at, step(at), trials)


def searched(at: Setting, direction: Tensor, trials: int = 40) -> Tensor:
    """The parameter vector after a search along any direction."""
    search = numerics.line_search_start(at.state["params"])
    for _ in range(trials):
        search = at.agent.search(search, direction, at.state, at.batch, at.hyper)
    return search.point


def _exact_step(c: Process, max_kl: float = MAX_KL) -> Tensor:
    """(S, A) the exact natural step in logits, from the gradient by automatic differentiation."""
    weight = mdps.state_distribution(c.mdp, c.policy)
    return gradients.natural_step(c.gradient, gradients.fisher_matrix(weight, softmax_policy, c.theta), max_kl)


# The surrogate


def _expected_surrogate(c: Process, theta: Tensor) -> Tensor:
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    log_prob = torch.log_softmax(theta, -1)
    return (weight * losses.surrogate_objective(log_prob, c.policy.log(), mdps.advantage(c.mdp, c.policy))).sum()


@rows.equality("1.10", "E[rho A]/(1 - gamma) = L(pi')", continuing, tested="losses.surrogate_objective")
def surrogate(c: Process) -> Sides:
    """E_{s~d^pi, a~pi}[rho A] / (1 - gamma) = L_pi(pi')."""
    return Sides(_expected_surrogate(c, c.other_theta), trust_region.surrogate(c, c.other))


@rows.equality("1.10", "grad E[rho A] at pi' = pi: grad V", continuing, tested="losses.surrogate_objective")
@rows.control(
    "1.10", "grad E[rho A] elsewhere: grad V", continuing, tested="losses.surrogate_objective", elsewhere=True
)
def surrogate_slope(c: Process, elsewhere: bool = False) -> Sides:
    """Its gradient at the old policy is that of the objective. Negative control: elsewhere it is not."""
    theta = c.other_theta if elsewhere else c.theta
    right = gradients.objective_gradient(c.mdp, softmax_policy, theta)
    return Sides(gradient(lambda x: _expected_surrogate(c, x), theta), right)


# The Fisher matrix


def _any_vector(c: Process, at: Setting) -> Tensor:
    """A parameter vector that has nothing to do with the gradient."""
    v = torch.zeros_like(at.state["params"])
    parts = at.agent.layout.unflatten(v)
    parts["policy_head.weight"].copy_(c.function.T)
    parts["policy_head.bias"].copy_(c.other_theta[0])
    return v


@rows.equality("1.10", "Fisher-vector product = dense Fisher matrix", continuing, tested="algorithms.trpo.TRPO.fisher")
@rows.control("1.10", "Fisher matrix of another policy", continuing, tested="algorithms.trpo.TRPO.fisher", another=True)
def fisher_vector_product(c: Process, another: bool = False) -> Sides:
    """F v = sum_s d^pi(s) sum_a pi grad log pi grad log pi^T v: the rows of the table (S, A), then the bias.

    Negative control: at pi', the curvature of KL(pi' || .), which is another than that at pi.
    """
    at = setting(c, c.other_theta if another else c.theta)
    found = at.agent.layout.unflatten(at.agent.fisher(at.state, at.batch)(_any_vector(c, at)))
    fisher = gradients.fisher_matrix(mdps.state_distribution(c.mdp, c.policy), softmax_policy, c.theta)
    dense = (fisher @ (c.function + c.other_theta[0]).flatten()).view_as(c.theta)
    left = torch.cat([found["policy_head.weight"].T, found["policy_head.bias"].unsqueeze(0)])
    return Sides(left, torch.cat([dense, dense.sum(0, keepdim=True)]))


# The step


@rows.equality("1.10", "TRPO's full step = exact natural step", continuing, tested="agents.natural_step.natural_step")
def natural_step(c: Process) -> Sides:
    """The full step is the exact natural step, in log-probabilities: the Fisher matrix is singular, in logits."""
    at = setting(c, c.theta)
    return Sides(logits(at, updated(at, 1)), torch.log_softmax(c.theta + _exact_step(c), -1))


@rows.control("1.10", "natural step = gradient step", continuing, tested="algorithms.trpo.TRPO.solve", plain=True)
@rows.control("1.10", "step length without its root", continuing, tested="agents.natural_step.natural_step")
def wrong_step(c: Process, plain: bool = False) -> Sides:
    """Negative controls: 2 delta / x.F x instead of its root; the gradient itself, as long by the quadratic model."""
    g = c.gradient.flatten()
    fisher = gradients.fisher_matrix(mdps.state_distribution(c.mdp, c.policy), softmax_policy, c.theta)
    if plain:
        wrong = (g * torch.sqrt(2.0 * MAX_KL / (g @ fisher @ g))).view_as(c.theta)
    else:
        unit = _exact_step(c, 0.5)  # of length 1 in the Fisher metric: sqrt(1 / g.F^+ g) F^+ g
        wrong = unit * 2.0 * MAX_KL / torch.sqrt(g @ torch.linalg.pinv(fisher, hermitian=True) @ g)
    at = setting(c, c.theta)
    return Sides(logits(at, updated(at, 1)) - c.policy.log(), torch.log_softmax(c.theta + wrong, -1) - c.policy.log())


# The search


@rows.inequality("1.10", "KL(old||new) <= delta, searched", continuing, tested="algorithms.trpo.TRPO.search")
def divergence_after_the_search(c: Process) -> Sides:
    """KL(pi_old || pi) <= delta after the search, however wrong the quadratic model is."""
    at = setting(c, c.theta, WIDE_KL, checked=True)
    kl = (c.policy * (c.policy.log() - logits(at, updated(at)))).sum(-1)
    return Sides(mdps.state_distribution(c.mdp, c.policy) @ kl, torch.tensor(WIDE_KL, dtype=F64))


@rows.inequality("1.10", "L(new) >= 0, searched", continuing, tested="algorithms.trpo.TRPO.search")
def improvement_after_the_search(c: Process) -> Sides:
    """L_pi(pi) = 0 <= L_pi(pi_new) after a search both ways along any line, one of which leads down at first.

    Shifted by 1, as a ratio needs a right side that is not 0.
    """
    at = setting(c, c.theta, WIDE_KL, checked=True)
    line = _any_vector(c, at)
    gains = torch.stack([trust_region.surrogate(c, logits(at, searched(at, way * line)).exp()) for way in (1.0, -1.0)])
    return Sides(torch.ones_like(gains), 1.0 + gains)


def _checked(c: Process, **limits: float) -> Setting:
    """A search within the trust region, or within other limits."""
    at = setting(c, c.theta, checked=True)
    return at._replace(hyper=at.hyper | {k: torch.tensor(x, dtype=F64) for k, x in limits.items()})


@rows.equality("1.10", "a step downhill is refused", continuing, tested="algorithms.trpo.TRPO.search")
def downhill_search(c: Process) -> Sides:
    """Backwards along the natural step every trial lowers L, within the trust region too: the policy stays.

    Here the step is that of the advantages, and tilting a policy against them lowers their mean at any length.
    """
    at = _checked(c)
    return Sides(logits(at, searched(at, -step(at))), c.policy.log())


@rows.control("1.10", "a step downhill, by its KL alone", continuing, tested="algorithms.trpo.TRPO.search")
def downhill_within_the_trust_region(c: Process) -> Sides:
    """Negative control: by its KL alone a trial on the way back would have been taken."""
    at, unchecked = _checked(c), _checked(c, least_improvement=-torch.inf)
    return Sides(logits(at, searched(unchecked, -step(at))), logits(at, searched(at, -step(at))))


FAILING = {"kl_limit": -1.0}
"""No trial is acceptable: a divergence below zero is asked for."""


@rows.equality("1.10", "a failed search changes nothing", continuing, tested="algorithms.trpo.TRPO.search")
def failed_search(c: Process) -> Sides:
    """A failed search leaves the policy as it was."""
    at = _checked(c, **FAILING)
    return Sides(logits(at, updated(at)), c.policy.log())


@rows.control("1.10", "a failed search left at its last trial", continuing, tested="algorithms.trpo.TRPO.search")
def failed_search_without_restoring(c: Process) -> Sides:
    """Negative control: the last trial, kept although it was refused."""
    at = _checked(c, **FAILING)
    last = at.state["params"] + 0.8**4 * step(at)
    return Sides(logits(at, last), logits(at, updated(at, 5)))
