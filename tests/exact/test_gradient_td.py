"""Gradient-TD critics: expected updates, what they descend, traces, and Baird's counterexample; in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers import F64
from steepest import problems, returns
from steepest.errors import UsageError
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, linear_td
from steepest.losses import (
    auxiliary_direction,
    curvature_direction,
    eligibility_trace,
    gtd2_direction,
    tdc_direction,
)
from steepest.verification.random_problems import Process, continuing, episodic

SEEDS = range(3)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def long_run(c: Process, features: Tensor, trace_decay: float) -> tuple[Tensor, Tensor]:
    """(S, A, S) how often the behaviour makes a transition, and (S, A, F) the mean shipped trace there."""
    d = gains.stationary_distribution(c.mdp, c.other)
    ratio, start = c.policy / c.other, torch.zeros(c.theta.shape, dtype=torch.bool)
    joint = (d.unsqueeze(-1) * c.other).unsqueeze(-1) * c.mdp.transition
    here = features.unsqueeze(1).expand(*c.theta.shape, -1)
    trace = torch.zeros_like(here)
    for _ in range(600):
        carried = torch.einsum("sat,saf->tf", joint, trace) / d.unsqueeze(-1)  # E[e_{t-1} | s_t = s]
        trace = eligibility_trace(carried.unsqueeze(1).expand_as(here), here, ratio, start, c.mdp.gamma, trace_decay)
    return joint, trace


def means(c: Process, phi: Tensor, bend: Tensor, value: Tensor, w: Tensor, trace_decay: float) -> tuple[Tensor, ...]:
    """E of the shipped TDC, GTD2, auxiliary and curvature directions in the long run of the behaviour."""
    joint, trace = long_run(c, phi, trace_decay)
    shape = c.mdp.transition.shape

    def spread(x: Tensor, axis: int) -> Tensor:
        """By state, spread over transitions: axis 0 is where they begin, 2 where they lead."""
        return (x[:, None, None] if axis == 0 else x[None, None]).expand(*shape, *x.shape[1:])

    bent = long_run(c, bend, trace_decay)[1].unsqueeze(2).expand(*shape, -1)
    e, here, following = trace.unsqueeze(2).expand(*shape, -1), spread(phi, 0), spread(phi, 2)
    never, reward = torch.zeros(shape, dtype=torch.bool), c.mdp.reward.unsqueeze(-1).expand(shape)
    delta = returns.td_error(reward, spread(value, 0), spread(value, 2), never, c.mdp.gamma)
    found = (
        tdc_direction(delta, e, following, w, never, never, c.mdp.gamma, trace_decay),
        gtd2_direction(e, here, following, w, never, c.mdp.gamma),
        auxiliary_direction(delta, e, here, w),
        curvature_direction(delta, here @ w, spread(bend, 0), bent),
    )
    return tuple(torch.einsum("sat,satf->f", joint, x) for x in found)


# Exact solutions


@pytest.mark.parametrize("seed", SEEDS)
def test_system_equals_sums_over_steps(seed: int) -> None:
    """A, b and C as the long-run means of traces along the chain of the behaviour, propagated step by step."""
    c, trace_decay = continuing(seed), 0.7
    features, theta = normal(seed, 5, 3), normal(seed + 9, 3)
    d = gains.stationary_distribution(c.mdp, c.other)
    joint, trace = long_run(c, features, trace_decay)
    loss = features[:, None, :] - c.mdp.gamma * features[None, :, :]
    system = linear_td.td_system(c.mdp, c.policy, features, d, trace_decay)
    close(system.A, torch.einsum("sat,saf,stg->fg", joint, trace, loss))
    close(system.b, torch.einsum("sat,saf,sa->f", joint, trace, c.mdp.reward))
    close(system.C, torch.einsum("s,sf,sg->fg", d, features, features))
    close(linear_td.expected_td(system, theta), system.b - system.A @ theta)


@pytest.mark.parametrize("seed", SEEDS)
def test_projected_error_by_its_definition(seed: int) -> None:
    """|Pi (T v - v)|^2 in the norm of the behaviour's states, Pi the projection onto the features."""
    c = continuing(seed)
    features, theta = normal(seed, 5, 3), normal(seed + 9, 3)
    d = gains.stationary_distribution(c.mdp, c.other)
    v = features @ theta
    error = mdps.policy_reward(c.mdp, c.policy) + c.mdp.gamma * mdps.policy_transition(c.mdp, c.policy) @ v - v
    root = d.sqrt().unsqueeze(-1)
    projected = torch.linalg.lstsq(root * features, (root.squeeze(-1) * error).unsqueeze(-1)).solution.squeeze(-1)
    system = linear_td.td_system(c.mdp, c.policy, features, d)
    close(linear_td.projected_bellman_error(system, theta), d @ (features @ projected).square())
    at_rest = linear_td.fixed_point(system)
    assert float(linear_td.projected_bellman_error(system, at_rest)) < 1e-20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_fixed_points(seed: int, trace_decay: float) -> None:
    """With a feature per state it is V^pi for every lambda and weighting; on fewer, lambda = 1 projects V^pi."""
    c = continuing(seed)
    value = mdps.state_value(c.mdp, c.policy)
    d = gains.stationary_distribution(c.mdp, c.other)
    for visits in (d, mdps.discounted_visits(c.mdp, c.other)):
        full = linear_td.td_system(c.mdp, c.policy, torch.eye(5, dtype=F64), visits, trace_decay)
        close(linear_td.fixed_point(full), value)
    features = normal(seed, 5, 2)
    system = linear_td.td_system(c.mdp, c.policy, features, d, trace_decay)
    projection = torch.linalg.solve(features.T @ d.diag() @ features, features.T @ (d * value))
    distance = float((linear_td.fixed_point(system) - projection).norm() / projection.norm())
    assert distance < 1e-9 if trace_decay == 1.0 else distance > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_no_first_step_of_a_settled_critic_moves(seed: int) -> None:
    """At the TD fixed point with w = 0, all expected updates are at rest; a step away, TDC is no semi-gradient."""
    c = continuing(seed)
    d = gains.stationary_distribution(c.mdp, c.other)
    system = linear_td.td_system(c.mdp, c.policy, normal(seed, 5, 3), d, 0.4)
    theta, zero = linear_td.fixed_point(system), torch.zeros(3, dtype=F64)
    for found in (
        linear_td.expected_td(system, theta),
        linear_td.expected_tdc(system, theta, zero),
        linear_td.expected_gtd2(system, zero),
        linear_td.expected_auxiliary(system, theta, zero),
    ):
        assert float(found.abs().max()) < 1e-10


def test_absorbing_states_have_no_features() -> None:
    c = episodic(0)
    visits = mdps.expected_visits(c.mdp.with_gamma(1.0), c.other)
    features = normal(0, c.mdp.num_states, 2)
    changed = torch.where(c.mdp.absorbing.unsqueeze(-1), 100.0, features)
    one, other = (linear_td.td_system(c.mdp, c.policy, x, visits, 0.5) for x in (features, changed))
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_bad_arguments_are_refused() -> None:
    c = continuing(0)
    d, x = gains.stationary_distribution(c.mdp, c.other), normal(0, 5, 2)
    with pytest.raises(UsageError, match=r"features have shape \(4, 2\)"):
        linear_td.td_system(c.mdp, c.policy, x[:4], d)
    with pytest.raises(UsageError, match=r"visits have shape \(4,\)"):
        linear_td.td_system(c.mdp, c.policy, x, d[:4])
    with pytest.raises(UsageError, match=r"trace_decay is 1\.5"):
        linear_td.td_system(c.mdp, c.policy, x, d, 1.5)


# The shipped directions, in expectation


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trace_decay", [0.0, 0.7])
def test_expected_directions(seed: int, trace_decay: float) -> None:
    """In the long run, at any weights and any auxiliary ones: what the system of TD says."""
    c, phi, theta, w = continuing(seed), normal(seed, 5, 3), normal(seed + 9, 3), normal(seed + 5, 3)
    d = gains.stationary_distribution(c.mdp, c.other)
    system = linear_td.td_system(c.mdp, c.policy, phi, d, trace_decay)
    tdc, gtd2, auxiliary, bend = means(c, phi, torch.zeros_like(phi), phi @ theta, w, trace_decay)
    close(tdc, linear_td.expected_tdc(system, theta, w))
    close(gtd2, linear_td.expected_gtd2(system, w))
    close(auxiliary, linear_td.expected_auxiliary(system, theta, w))
    assert not bool(bend.any())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trace_decay", [0.0, 0.7])
def test_directions_are_the_gradient_of_the_projected_error(seed: int, trace_decay: float) -> None:
    """At settled auxiliary weights both are -1/2 grad MSPBE; without its correction TDC is not."""
    c, phi, theta = continuing(seed), normal(seed, 5, 3), normal(seed + 9, 3)
    d = gains.stationary_distribution(c.mdp, c.other)
    system = linear_td.td_system(c.mdp, c.policy, phi, d, trace_decay)
    leaf = theta.clone().requires_grad_()
    wanted = -0.5 * torch.autograd.grad(linear_td.projected_bellman_error(system, leaf), leaf)[0]
    flat = torch.zeros_like(phi)
    w = linear_td.settled_auxiliary(system, theta)
    tdc, gtd2, auxiliary, _ = means(c, phi, flat, phi @ theta, w, trace_decay)
    close(tdc, wanted)
    close(gtd2, wanted)
    close(auxiliary, torch.zeros_like(w))
    semi_gradient = means(c, phi, flat, phi @ theta, 0.0 * w, trace_decay)[0]
    assert float((semi_gradient - wanted).norm() / wanted.norm()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trace_decay", [0.0, 0.7])
def test_directions_of_a_smooth_value_function(seed: int, trace_decay: float) -> None:
    """With the curvature's part, and not without, both are -1/2 grad MSPBE of a V that is not linear."""
    c, x, theta = continuing(seed), normal(seed, 5, 3), normal(seed + 9, 3)
    d = gains.stationary_distribution(c.mdp, c.other)

    def value(weights: Tensor) -> Tensor:
        return torch.tanh(x[:, :2] @ weights[:2]) * weights[2] + torch.sin(x[:, 2] * weights[1])

    leaf = theta.clone().requires_grad_()
    error = linear_td.smooth_projected_bellman_error(c.mdp, c.policy, value, leaf, d, trace_decay)
    wanted = -0.5 * torch.autograd.grad(error, leaf)[0]
    phi = torch.func.jacrev(value)(theta)
    hessian = torch.func.jacrev(torch.func.jacrev(value))(theta)
    zero = torch.zeros(3, dtype=F64)
    w = torch.linalg.solve(phi.T @ d.diag() @ phi, means(c, phi, hessian @ zero, value(theta), zero, trace_decay)[2])
    tdc, gtd2, _, bend = means(c, phi, hessian @ w, value(theta), w, trace_decay)
    close(tdc + bend, wanted)
    close(gtd2 + bend, wanted)
    assert float((gtd2 - wanted).norm() / wanted.norm()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_curvature_at_lambda_0_is_the_published_one(seed: int) -> None:
    """Bhatnagar et al. 2009: -h = -(rho delta - phi . w) grad^2 V w."""
    delta, projection, ratio = normal(seed, 4), normal(seed + 1, 4), normal(seed + 2, 4).exp()
    curvature = normal(seed + 3, 4, 3)
    found = curvature_direction(delta, projection, curvature, ratio.unsqueeze(-1) * curvature)
    close(found, -(ratio * delta - projection).unsqueeze(-1) * curvature)


# Episodes that end, and recordings that end


def recordings(seed: int, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Every sequence of ``length`` steps in two states with a third, terminal one, cut there: probability, states,
    ratios, rewards, terminated and truncated."""
    g = torch.Generator().manual_seed(seed)
    transition = torch.rand(2, 2, 3, generator=g, dtype=F64) + 0.1
    transition = transition / transition.sum(-1, keepdim=True)
    policy, behaviour = (torch.softmax(normal(seed + i, 2, 2), -1) for i in (1, 2))
    reward = normal(seed + 3, 2, 2)
    for steps in itertools.product(itertools.product(range(2), range(3)), repeat=length):
        states, chance, ratios, rewards, ended = [0], torch.ones((), dtype=F64), [], [], []
        for action, following in steps:
            s = states[-1]
            if s == 2:
                break
            chance = chance * behaviour[s, action] * transition[s, action, following]
            ratios.append(policy[s, action] / behaviour[s, action])
            rewards.append(reward[s, action])
            states.append(following)
            ended.append(following == 2)
        else:
            cut = [False] * (length - 1) + [not ended[-1]]
            yield (chance, torch.tensor(states), torch.stack(ratios), torch.stack(rewards), torch.tensor(ended),
                   torch.tensor(cut))  # fmt: skip


@pytest.mark.parametrize("trace_decay", [0.0, 0.6, 1.0])
def test_directions_descend_where_recordings_end(trace_decay: float) -> None:
    """-1/2 grad of E[delta e]' C^-1 E[delta e] by automatic differentiation, episodes terminating or cut."""
    gamma, length = 0.9, 3
    phi = normal(5, 3, 2)  # what the terminal state has must not matter
    theta = normal(6, 2).requires_grad_()
    paths = [p for n in range(1, length + 1) for p in recordings(0, n) if n == length or p[4][-1]]
    assert float(sum(p[0] for p in paths)) == pytest.approx(1.0, abs=1e-12)

    def deltas(rewards: Tensor, states: Tensor, ended: Tensor) -> Tensor:
        x = phi[states]
        return returns.td_error(rewards, x[:-1] @ theta, x[1:] @ theta, ended, gamma)

    def traces(states: Tensor, ratios: Tensor) -> list[Tensor]:
        found, e = [], torch.zeros(2, dtype=F64)
        for t, rho in enumerate(ratios):
            e = eligibility_trace(e, phi[states[t]], rho, torch.tensor(t == 0), gamma, trace_decay)
            found.append(e)
        return found

    error, moment = torch.zeros(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    for chance, states, ratios, rewards, ended, _ in paths:
        for t, e in enumerate(traces(states, ratios)):
            error = error + chance * deltas(rewards, states, ended)[t] * e
            moment = moment + chance * torch.outer(phi[states[t]], phi[states[t]])
    w = torch.linalg.solve(moment, error)
    wanted = -0.5 * torch.autograd.grad(error @ w, theta)[0]
    w = w.detach()
    sums = [torch.zeros(2, dtype=F64) for _ in range(3)]
    for chance, states, ratios, rewards, ended, cut in paths:
        delta = deltas(rewards, states, ended).detach()
        for t, e in enumerate(traces(states, ratios)):
            here, following = phi[states[t]], phi[states[t + 1]]
            found = (
                tdc_direction(delta[t], e, following, w, ended[t], cut[t], gamma, trace_decay),
                gtd2_direction(e, here, following, w, ended[t], gamma),
                auxiliary_direction(delta[t], e, here, w),
            )
            sums = [total + chance * x for total, x in zip(sums, found, strict=True)]
    close(sums[0], wanted)
    close(sums[1], wanted)
    close(sums[2], torch.zeros(2, dtype=F64))


@pytest.mark.parametrize("trace_decay", [0.0, 0.6, 1.0])
def test_traces_equal_the_forward_view(trace_decay: float) -> None:
    """On-policy, sum_t delta_t e_t = sum_t phi_t (G_t - V_t) on every trajectory, G the shipped lambda-return."""
    phi, theta, gamma = torch.cat([normal(5, 2, 2), torch.zeros(1, 2, dtype=F64)]), normal(6, 2), 0.9
    for _, states, _, rewards, ended, cut in recordings(1, 4):
        value = phi[states] @ theta
        delta = returns.td_error(rewards, value[:-1], value[1:], ended, gamma)
        e, backward = torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64)
        for t in range(len(rewards)):
            one, start = torch.ones((), dtype=F64), torch.tensor(t == 0)
            e = eligibility_trace(e, phi[states[t]], one, start, gamma, trace_decay)
            backward = backward + delta[t] * e
        flags = (ended, cut, torch.ones_like(ended))
        target = returns.lambda_return(rewards, value, *flags, gamma, trace_decay)
        close(backward, (target - value[:-1]) @ phi[states[:-1]])


def test_episode_ends_cut_traces() -> None:
    """What came before an episode's first step has no part in it, whichever environment of the batch it is."""
    old, feature, ratio = normal(0, 3, 2), normal(1, 3, 2), normal(2, 3).exp()
    start = torch.tensor([False, True, False])
    found = eligibility_trace(old, feature, ratio, start, 0.9, 0.5)
    close(found[1], ratio[1] * feature[1])
    close(found[2], ratio[2] * (feature[2] + 0.45 * old[2]))
    infinite = torch.where(start.unsqueeze(-1), torch.inf, old)
    assert torch.equal(eligibility_trace(infinite, feature, ratio, start, 0.9, 0.5), found)


# Baird's counterexample


def baird_run(method: str, steps: int) -> tuple[float, float, float]:
    """Expected updates at lambda = 0 over every transition: final RMSPBE, largest weight ever, largest at the end."""
    problem = problems.baird()
    mdp = mdps.FiniteMDP.from_problem(problem)
    behaviour, features = torch.tensor(problem.behaviour), torch.tensor(problem.features)
    policy = torch.tensor([[0.0, 1.0]], dtype=F64).repeat(7, 1)
    visits = gains.stationary_distribution(mdp, behaviour)
    joint = (visits.unsqueeze(-1) * behaviour).unsqueeze(-1) * mdp.transition
    state, action, following = joint.nonzero().unbind(1)
    weight, phi, next_phi = joint[state, action, following], features[state], features[following]
    ratio = (policy / behaviour)[state, action]
    no, start = torch.zeros(len(state), dtype=torch.bool), torch.ones(len(state), dtype=torch.bool)
    trace = eligibility_trace(torch.zeros_like(phi), phi, ratio, start, mdp.gamma, 0.0)
    theta = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0], dtype=F64)
    w, largest = torch.zeros(8, dtype=F64), 0.0
    for _ in range(steps):
        delta = returns.td_error(torch.zeros_like(ratio), phi @ theta, next_phi @ theta, no, mdp.gamma)
        if method == "GTD2":
            step = gtd2_direction(trace, phi, next_phi, w, no, mdp.gamma)
        else:
            step = tdc_direction(delta, trace, next_phi, w, no, no, mdp.gamma, 0.0)
        if method != "TD(0)":
            w = w + 0.1 * weight @ auxiliary_direction(delta, trace, phi, w)
        theta = theta + 0.01 * weight @ step
        largest = max(largest, float(theta.abs().max()))
    error = linear_td.projected_bellman_error(linear_td.td_system(mdp, policy, features, visits), theta)
    return float(error.clamp(min=0.0).sqrt()), largest, float(theta.abs().max())


@pytest.mark.parametrize("method", ["TDC", "GTD2"])
def test_gradient_td_converges_on_baird(method: str) -> None:
    error, largest, _ = baird_run(method, 1000)
    assert error < 0.01
    assert largest < 10.5  # they begin at 10


def test_semi_gradient_td_diverges_on_baird() -> None:
    error, _, last = baird_run("TD(0)", 6000)
    assert error > 1e6
    assert last > 1e6
