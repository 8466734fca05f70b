"""Off-PAC, its emphatic form, and the gradient-TD critic, in expectation over what the behaviour does (notes 1.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import returns
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, gradients, linear_td
from steepest.exact.finite_mdp import softmax_policy
from steepest.losses import gradient_td
from steepest.verification.random_problems import HORIZON, Process, continuing, episodic, weighted_gradient
from steepest.verification.shipped.policy_gradient import td_errors
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

_TRACE = "losses.gradient_td.eligibility_trace"
_FOLLOWON = "losses.gradient_td.followon_trace"
_TDC, _GTD2 = "losses.gradient_td.tdc_direction", "losses.gradient_td.gtd2_direction"
_CURVATURE = "losses.gradient_td.curvature_direction"

TRACE_DECAY = 0.7
EMPHASIS_DECAY = 0.6


class Step(NamedTuple):
    """One time step of every trajectory of the behaviour (K,)."""

    t: int
    state: Tensor
    action: Tensor
    next_state: Tensor
    ratio: Tensor
    start: Tensor
    terminated: Tensor
    truncated: Tensor
    weight: Tensor  # the probability of the trajectory, 0 after its end


def steps_of(c: Process) -> Iterator[Step]:
    """The steps of all trajectories of the behaviour, in order; none is truncated."""
    paths = c.other_paths
    ratio = (c.policy / c.other)[paths.state[:-1], paths.action]
    none = torch.zeros_like(paths.terminated[0])
    for t in range(HORIZON):
        yield Step(
            t,
            paths.state[t],
            paths.action[t],
            paths.state[t + 1],
            ratio[t],
            torch.full_like(none, t == 0),
            paths.terminated[t],
            none,
            paths.probability * paths.valid[t],
        )


# The actor


def actor(
    c: Process,
    emphasis_decay: float,
    *,
    value: Tensor | None = None,
    discounted_interest: bool = True,
    ratio_inside: bool = True,
) -> Tensor:
    """(S, A) the expected sum of the updates of Off-PAC's actor with traces, states weighted by gamma^t; V exact."""
    states, actions = c.theta.shape
    taken = torch.eye(states * actions, dtype=F64).view(states, actions, states, actions)
    expected = torch.eye(states, dtype=F64).unsqueeze(-1) * c.policy.unsqueeze(1)
    score = taken - expected.unsqueeze(1)  # (S, A, S, A) grad log pi(a|s) of the softmax policy
    delta = td_errors(c, mdps.state_value(c.mdp, c.policy) if value is None else value, c.other_paths)
    count = c.other_paths.probability
    trace, followon = torch.zeros(len(count), c.theta.numel(), dtype=F64), torch.zeros_like(count)
    previous, total = torch.ones_like(count), torch.zeros(c.theta.numel(), dtype=F64)
    for step in steps_of(c):
        discount = torch.full_like(count, c.mdp.gamma**step.t)
        interest = discount if discounted_interest else torch.ones_like(count)
        followon = gradient_td.followon_trace(followon, previous, interest, step.start, c.mdp.gamma)
        weight = gradient_td.emphatic_weight(followon, interest, emphasis_decay)
        weighted = weight.unsqueeze(-1) * score[step.state, step.action].flatten(1)
        inside = step.ratio if ratio_inside else torch.ones_like(step.ratio)
        trace = gradient_td.eligibility_trace(trace, weighted, inside, step.start, c.mdp.gamma, TRACE_DECAY)
        outside = 1.0 if ratio_inside else step.ratio
        total = total + (step.weight * outside * delta[step.t]) @ trace
        previous = step.ratio
    return total.view_as(c.theta)


def _true_gradient(c: Process) -> Tensor:
    return gradients.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted")


def _approximate_gradient(c: Process) -> Tensor:
    return gradients.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted")


@rows.equality("1.6", "actor's trace = lambda-returns, any V", episodic, tested=_TRACE)
@rows.control("1.6", "ratio outside the trace", episodic, tested=_TRACE, ratio_inside=False)
def traced_actor(c: Process, ratio_inside: bool = True) -> Sides:
    """E_beta[sum_t delta_t e_t], rho inside the trace, is the forward view by lambda-returns, whatever V.

    The forward view is sum_s p^beta(s) sum_a grad pi(a|s) (lambda-return after a - V(s)). Negative control: the trace
    gathers bare scores, and only the last step's ratio counts.
    """
    advantage = linear_td.lambda_action_advantage(c.mdp, c.policy, c.baseline, TRACE_DECAY)
    right = weighted_gradient(c, mdps.expected_visits(c.mdp, c.other), advantage)
    return Sides(actor(c, 0.0, value=c.baseline, ratio_inside=ratio_inside), right)


@rows.equality("1.6", "Off-PAC with traces, V exact: grad Q dropped", episodic, tested=_TRACE)
@rows.control("1.6", "Off-PAC with traces: grad J_beta", episodic, tested=_TRACE, true=True)
def off_pac(c: Process, true: bool = False) -> Sides:
    """Off-PAC's expected update with exact values is the off-policy gradient with grad Q dropped, for every lambda.

    Negative control: which is not the true gradient of J_beta.
    """
    return Sides(actor(c, 0.0), _true_gradient(c) if true else _approximate_gradient(c))


def _stationary_actor(c: Process, emphasis_decay: float) -> Tensor:
    """(S, A) the mean update in the long run of a process that never ends, interest 1, V exact, no actor trace.

    The follow-on trace enters by its mean in every state, from the exact solution, and is carried over one step.
    """
    d = gains.stationary_distribution(c.mdp, c.other)
    before = gradients.emphasis(c.mdp, c.other, c.policy, "stationary") / d
    ratio = c.policy / c.other
    shape = c.mdp.transition.shape
    one, never = torch.ones(shape, dtype=F64), torch.zeros(shape, dtype=torch.bool)
    followon = gradient_td.followon_trace(
        before[:, None, None].expand(shape), ratio.unsqueeze(-1).expand(shape), one, never, c.mdp.gamma
    )
    probability = (d.unsqueeze(-1) * c.other).unsqueeze(-1) * c.mdp.transition
    mean = (probability * followon).sum((0, 1)) / d
    weight = gradient_td.emphatic_weight(mean, torch.ones_like(mean), emphasis_decay)
    value = mdps.state_value(c.mdp, c.policy)
    reward, here, following = c.mdp.reward.unsqueeze(-1), value[:, None, None], value[None, None, :]
    delta = returns.td_error(reward.expand(shape), here.expand(shape), following.expand(shape), never, c.mdp.gamma)
    fixed = (probability * weight[:, None, None] * ratio.unsqueeze(-1) * delta).sum(-1)
    return gradient(lambda theta: (fixed * torch.log_softmax(theta, -1)).sum(), c.theta)


@rows.equality("1.6", "Off-PAC, V exact, d^beta", continuing, tested="losses.gradient_td.emphatic_weight")
def stationary_off_pac(c: Process) -> Sides:
    """Off-PAC in the long run: lambda_a = 0, d^beta."""
    right = gradients.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "stationary")
    return Sides(_stationary_actor(c, 0.0), right)


@rows.equality("1.6", "emphatic actor: grad J_beta, p^beta", episodic, tested=_FOLLOWON)
@rows.control("1.6", "emphatic actor, interest 1, p^beta", episodic, tested=_FOLLOWON, discounted=False)
def emphatic_actor(c: Process, discounted: bool = True) -> Sides:
    """The emphatic update with exact values, interest gamma^t and lambda_a = 1 is the gradient of J_beta, p^beta.

    Negative control: interest 1 at every step, with p^beta.
    """
    return Sides(actor(c, 1.0, discounted_interest=discounted), _true_gradient(c))


@rows.equality("1.6", "emphatic actor: grad J_beta, d^beta", continuing, tested=_FOLLOWON)
def stationary_emphatic_actor(c: Process) -> Sides:
    """The same in the long run: interest 1, d^beta."""
    right = gradients.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "stationary")
    return Sides(_stationary_actor(c, 1.0), right)


@rows.equality("1.6", "emphatic actor, lambda_a 0.6: a mixture", episodic, tested="losses.gradient_td.emphatic_weight")
def emphatic_actor_in_between(c: Process) -> Sides:
    """At lambda_a in between, the two gradients are mixed."""
    mixed = (1.0 - EMPHASIS_DECAY) * _approximate_gradient(c) + EMPHASIS_DECAY * _true_gradient(c)
    return Sides(actor(c, EMPHASIS_DECAY), mixed)


# The critic


class Directions(NamedTuple):
    """The expected sums over an episode of where the critics move."""

    tdc: Tensor
    gtd2: Tensor
    auxiliary: Tensor
    curvature: Tensor


def features_of(c: Process) -> Tensor:
    """(S, 3) features, as arbitrary as anything."""
    return torch.cat([c.function, c.baseline.unsqueeze(-1)], -1)


def weights_of(c: Process) -> Tensor:
    """(3,) weights of the value function."""
    return c.other_theta.flatten()[:3]


def linear(c: Process) -> Callable[[Tensor], Tensor]:
    """Values (S,) from weights."""
    return lambda weights: features_of(c) @ weights


def smooth(c: Process) -> Callable[[Tensor], Tensor]:
    """Values (S,) that are not linear in their weights."""
    x = features_of(c)
    return lambda weights: torch.tanh(x[:, :2] @ weights[:2]) * weights[2] + torch.sin(x[:, 2] * weights[1])


def directions(c: Process, value_function: Callable[[Tensor], Tensor], auxiliary: Tensor) -> Directions:
    """What the shipped functions add up to, over every trajectory of the behaviour."""
    weights = weights_of(c)
    phi = torch.autograd.functional.jacobian(value_function, weights)
    curved = torch.func.jacrev(torch.func.jacrev(value_function))(weights) @ auxiliary
    delta = td_errors(c, value_function(weights), c.other_paths)
    trace = torch.zeros(len(c.other_paths.probability), len(weights), dtype=F64)
    curved_trace = torch.zeros_like(trace)
    sums = [torch.zeros_like(weights) for _ in Directions._fields]
    for step in steps_of(c):
        here, following, error = phi[step.state], phi[step.next_state], delta[step.t]
        bend = curved[step.state]
        how = (step.ratio, step.start, c.mdp.gamma, TRACE_DECAY)
        trace = gradient_td.eligibility_trace(trace, here, *how)
        curved_trace = gradient_td.eligibility_trace(curved_trace, bend, *how)
        ends = (step.terminated, step.truncated, c.mdp.gamma, TRACE_DECAY)
        found = (
            gradient_td.tdc_direction(error, trace, following, auxiliary, *ends),
            gradient_td.gtd2_direction(trace, here, following, auxiliary, step.terminated, c.mdp.gamma),
            gradient_td.auxiliary_direction(error, trace, here, auxiliary),
            gradient_td.curvature_direction(error, here @ auxiliary, bend, curved_trace),
        )
        sums = [total + step.weight @ x for total, x in zip(sums, found, strict=True)]
    return Directions(*sums)


def system_of(c: Process) -> linear_td.TDSystem:
    """The exact expectations, over the states as the behaviour meets them in an episode."""
    return linear_td.td_system(c.mdp, c.policy, features_of(c), _visits(c), TRACE_DECAY)


def _visits(c: Process) -> Tensor:
    return mdps.expected_visits(c.mdp.with_gamma(1.0), c.other)


_AUXILIARY = "losses.gradient_td.auxiliary_direction"


@rows.equality("1.6", "TDC(lambda), expected", episodic, tested=_TDC, method="tdc")
@rows.equality("1.6", "GTD2(lambda), expected", episodic, tested=_GTD2, method="gtd2")
@rows.equality("1.6", "auxiliary weights, expected", episodic, tested=_AUXILIARY, method="auxiliary")
def expected_direction(c: Process, method: str) -> Sides:
    """E[sum_t (delta e - gamma (1 - lambda) (e . w) phi')] = b - A theta - (C - A') w, any w.

    For GTD2 E[sum_t (phi - gamma phi') (e . w)] = A' w; for w E[sum_t (delta e - (phi . w) phi)] = b - A theta - C w.
    """
    system, w = system_of(c), c.theta.flatten()[:3]
    exact = {
        "tdc": linear_td.expected_tdc(system, weights_of(c), w),
        "gtd2": linear_td.expected_gtd2(system, w),
        "auxiliary": linear_td.expected_auxiliary(system, weights_of(c), w),
    }
    return Sides(getattr(directions(c, linear(c), w), method), exact[method])


@rows.equality("1.6", "TDC(lambda) = -1/2 grad MSPBE", episodic, tested=_TDC, method="tdc")
@rows.equality("1.6", "GTD2(lambda) = -1/2 grad MSPBE", episodic, tested=_GTD2, method="gtd2")
@rows.control("1.6", "semi-gradient TD(lambda)", episodic, tested=_TDC, method="tdc", corrected=False)
def descends(c: Process, method: str, corrected: bool = True) -> Sides:
    """At the settled w, TDC(lambda) and GTD2(lambda) are -1/2 grad MSPBE.

    Negative control: without its correction TDC is semi-gradient TD(lambda), which follows no gradient.
    """
    system, weights = system_of(c), weights_of(c)
    w = linear_td.settled_auxiliary(system, weights) if corrected else torch.zeros(3, dtype=F64)
    right = -0.5 * gradient(lambda x: linear_td.projected_bellman_error(system, x), weights)
    return Sides(getattr(directions(c, linear(c), w), method), right)


@rows.equality("1.6", "GTD2, V not linear", episodic, tested=_CURVATURE, method="gtd2")
@rows.equality("1.6", "TDC, V not linear", episodic, tested=_CURVATURE, method="tdc")
@rows.control("1.6", "GTD2, V not linear, no curvature", episodic, tested=_GTD2, method="gtd2", curved=False)
def smooth_descends(c: Process, method: str, curved: bool = True) -> Sides:
    """With the curvature's part, GTD2 and TDC of a value function that is not linear are -1/2 grad MSPBE.

    Negative control: without the curvature's part.
    """
    phi = torch.autograd.functional.jacobian(smooth(c), weights_of(c))
    phi = torch.where(c.mdp.absorbing.unsqueeze(-1), 0.0, phi)
    unsettled = directions(c, smooth(c), torch.zeros(3, dtype=F64)).auxiliary
    found = directions(c, smooth(c), torch.linalg.solve(phi.T @ _visits(c).diag() @ phi, unsettled))
    slope = getattr(found, method)

    def error(x: Tensor) -> Tensor:
        return linear_td.smooth_projected_bellman_error(c.mdp, c.policy, smooth(c), x, _visits(c), TRACE_DECAY)

    return Sides(slope + found.curvature if curved else slope, -0.5 * gradient(error, weights_of(c)))
