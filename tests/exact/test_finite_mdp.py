"""The exact solver against enumeration, second methods, published numbers and numbers done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from steepest import problems
from steepest.errors import RunError, UsageError
from steepest.exact import finite_mdp as exact
from steepest.exact import gains, gradients, offline, optimal
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy

F64 = torch.float64


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-10) -> bool:
    expected = torch.as_tensor(expected, dtype=F64)
    return float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def far(found: Tensor, expected: Tensor, share: float = 1e-3) -> bool:
    return float((found - expected).norm()) > share * float(expected.norm())


def garnet(seed: int, *, states: int = 5, actions: int = 3, gamma: float = 0.9, end: float = 0.0) -> FiniteMDP:
    return FiniteMDP.from_problem(problems.garnet(states, actions, 3, seed, gamma, end))


def logits(mdp: FiniteMDP, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn((mdp.num_states, mdp.num_actions), generator=g, dtype=F64)


def policy_of(mdp: FiniteMDP, seed: int) -> Tensor:
    return softmax_policy(logits(mdp, seed))


def uniform(mdp: FiniteMDP) -> Tensor:
    return torch.full((mdp.num_states, mdp.num_actions), 1.0 / mdp.num_actions, dtype=F64)


def deterministic(mdp: FiniteMDP, actions: tuple[int, ...]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(actions), mdp.num_actions).to(F64)


def absorbing_mdp(seed: int, gamma: float) -> FiniteMDP:
    """Three layers of two states, each step possibly ending the episode; state 6 is the end."""
    g = torch.Generator().manual_seed(seed)
    transition = torch.zeros((7, 2, 7), dtype=F64)
    for layer in range(3):
        ahead = [2 * layer + 2, 2 * layer + 3, 6] if layer < 2 else [6]
        for s in (2 * layer, 2 * layer + 1):
            transition[s][:, ahead] = torch.softmax(torch.randn((2, len(ahead)), generator=g, dtype=F64), -1)
    transition[6, :, 6] = 1.0
    reward = torch.randn((7, 2), generator=g, dtype=F64)
    reward[6] = 0.0
    initial = torch.tensor([0.4, 0.6, 0, 0, 0, 0, 0], dtype=F64)
    return FiniteMDP(transition, reward, initial, gamma, "layers")


def looping_mdp(gamma: float) -> FiniteMDP:
    return garnet(3, states=4, actions=2, gamma=gamma, end=0.2)


def ring(reward: tuple[float, ...] = (1.0, 2.0, 6.0)) -> FiniteMDP:
    """Three states visited in turn: a chain of period 3. The second action waits with 1/2."""
    transition = torch.zeros((3, 2, 3), dtype=F64)
    for s in range(3):
        transition[s, 0, (s + 1) % 3] = 1.0
        transition[s, 1, (s + 1) % 3] = transition[s, 1, s] = 0.5
    return FiniteMDP(transition, torch.tensor([[r, r] for r in reward], dtype=F64), torch.tensor([1.0, 0, 0]), 0.9)


def two_islands() -> FiniteMDP:
    """State 0 chooses an island, 1 or 2, for ever; the islands pay 1 and 3."""
    transition = torch.zeros((3, 2, 3), dtype=F64)
    transition[0, 0, 1] = transition[0, 1, 2] = 1.0
    transition[1, :, 1] = transition[2, :, 2] = 1.0
    reward = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]], dtype=F64)
    return FiniteMDP(transition, reward, torch.tensor([1.0, 0, 0]), 0.9, "islands")


# Published values and second methods


def relative_value_iteration(mdp: FiniteMDP) -> tuple[float, float]:
    """Bounds on the optimal gain, in NumPy: the least and greatest change of an undiscounted backup."""
    p, r = mdp.transition.numpy(), mdp.reward.numpy()
    p = 0.5 * p + 0.5 * np.eye(len(p))[:, None, :]  # lazy: aperiodic, with half the gain
    h = np.zeros(len(p))
    for _ in range(200_000):
        backup = (0.5 * r + p @ h).max(axis=1)
        change = backup - h
        h = backup - backup[0]
        if change.max() - change.min() < 1e-13:
            break
    return 2 * float(change.min()), 2 * float(change.max())


def brute_force_gain(mdp: FiniteMDP) -> float:
    """The best gain of all deterministic policies, by long powers of the lazy chain."""
    best = -np.inf
    p, r = mdp.transition.numpy(), mdp.reward.numpy()
    for actions in itertools.product(range(mdp.num_actions), repeat=mdp.num_states):
        rows = range(mdp.num_states)
        chain = 0.5 * p[rows, actions] + 0.5 * np.eye(mdp.num_states)
        long_run = np.linalg.matrix_power(chain, 2**20)
        best = max(best, float((long_run @ r[rows, actions]).max()))
    return best


def test_optimal_gain_of_riverswim() -> None:
    """Detailed balance by hand, relative value iteration, all 64 policies; swimming right is best. About 0.43."""
    problem = problems.riverswim()
    mdp = FiniteMDP.from_problem(problem)
    found, policy = optimal.optimal_gain(mdp)
    assert float(found) == pytest.approx(problem.published["optimal_gain"].value, abs=1e-10)
    assert float(found) == pytest.approx(3601.5 / 8402.5, abs=1e-10)
    low, high = relative_value_iteration(mdp)
    assert low - 1e-10 <= float(found) <= high + 1e-10
    assert high - low < 1e-10
    assert float(found) == pytest.approx(brute_force_gain(mdp), abs=1e-9)
    assert policy.argmax(1).tolist() == [1] * 6
    assert float(gains.gain(mdp, policy)) == pytest.approx(float(found), abs=1e-12)


def test_optimal_gain_of_the_access_control_queue() -> None:
    """Against relative value iteration. The book states only what a learner had estimated, 2.31; 2.7476 is derived."""
    problem = problems.access_control()
    mdp = FiniteMDP.from_problem(problem)
    found, policy = optimal.optimal_gain(mdp)
    low, high = relative_value_iteration(mdp)
    assert high - low < 1e-10
    assert low - 1e-10 <= float(found) <= high + 1e-10
    assert float(found) == pytest.approx(2.7476, abs=5e-5)
    assert float(found) > problem.published["learned_gain"].value
    accepts = policy.argmax(1).reshape(11, 4)[1:]
    assert bool((accepts.diff(dim=0) >= 0).all()), "whoever is accepted with few free servers is with more"
    assert bool((accepts.diff(dim=1) >= 0).all()), "whoever is accepted for little pay is for more"
    assert accepts[:, 3].all()
    assert not accepts[:, 0].any()


@pytest.mark.parametrize("seed", range(4))
def test_optimal_gain_of_garnets(seed: int) -> None:
    mdp = garnet(seed, states=4, actions=2)
    found, policy = optimal.optimal_gain(mdp)
    assert float(found) == pytest.approx(brute_force_gain(mdp), abs=1e-9)
    low, high = relative_value_iteration(mdp)
    assert low - 1e-9 <= float(found) <= high + 1e-9
    assert policy.sum(1).tolist() == [1.0] * mdp.num_states


def test_optimal_gain_with_several_recurrent_classes() -> None:
    with pytest.raises(UsageError, match=r"depends on the first state \(from 1 to 3\)"):
        optimal.optimal_gain(two_islands())
    # From either state one may stay for ever or cross: the myopic policy has two classes, the optimum one.
    found, policy = optimal.optimal_gain(FiniteMDP.from_problem(problems.two_state()))
    assert float(found) == pytest.approx(1.0, abs=1e-12)
    assert policy.argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize("states", [5, 19])
def test_random_walk_values(states: int) -> None:
    problem = problems.random_walk(states)
    mdp = FiniteMDP.from_problem(problem)
    value = exact.state_value(mdp, uniform(mdp))
    known = [k / 6 for k in range(1, 6)] if states == 5 else [k / 10 for k in range(-9, 10)]
    assert close(value, torch.tensor([*known, 0.0], dtype=F64), 1e-13)
    assert problem.published["values"].value == pytest.approx(known, abs=1e-13)


def test_cliff_walking_optimum() -> None:
    problem = problems.cliff_walking()
    mdp = FiniteMDP.from_problem(problem)
    for solution in (optimal.value_iteration(mdp), optimal.policy_iteration(mdp)):
        assert float(mdp.initial @ solution.value) == problem.published["optimal_objective"].value == -13.0
        assert float(exact.objective(mdp, solution.policy)) == pytest.approx(-13.0, abs=1e-10)
    path = list(exact.trajectories(mdp, optimal.policy_iteration(mdp).policy, 20))
    assert [(p, len(actions), sum(rewards)) for p, _, actions, rewards in path] == [(1.0, 13, -13.0)]


def test_two_states_by_hand() -> None:
    mdp = FiniteMDP.from_problem(problems.two_state(0.5))
    solution = optimal.policy_iteration(mdp)
    assert solution.policy.argmax(1).tolist() == [1, 0]
    assert close(solution.value, torch.tensor([1.0, 2.0]), 1e-13)  # 1 / (1 - 0.5), and half of it one step before
    assert close(solution.action_value, torch.tensor([[0.6, 1.0], [2.0, 0.5]], dtype=F64), 1e-13)


# Enumeration


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_enumeration_equals_the_linear_solves(seed: int, gamma: float) -> None:
    """Objective, visits, values from every first state and action, by the sum over all trajectories."""
    mdp = absorbing_mdp(seed, gamma)
    policy = policy_of(mdp, seed)
    total, objective, visits = 0.0, 0.0, torch.zeros(7, dtype=F64)
    for p, states, actions, rewards in exact.trajectories(mdp, policy, 10):
        assert states[-1] == 6
        assert len(states) == len(actions) + 1 == len(rewards) + 1
        total += p
        objective += p * sum(gamma**t * r for t, r in enumerate(rewards))
        for t, s in enumerate(states[:-1]):
            visits[s] += p * gamma**t
    assert total == pytest.approx(1.0, abs=1e-12)
    assert close(exact.objective(mdp, policy), objective)
    assert close(exact.expected_visits(mdp, policy), visits)
    assert close((visits.unsqueeze(-1) * policy * mdp.reward).sum(), objective)

    for s in range(6):
        start = FiniteMDP(mdp.transition, mdp.reward, torch.eye(7, dtype=F64)[s], gamma)
        found = sum(
            p * sum(gamma**t * r for t, r in enumerate(rewards))
            for p, _, _, rewards in exact.trajectories(start, policy, 10)
        )
        assert close(exact.state_value(mdp, policy)[s], found)
        for a in range(2):
            first = policy.clone()
            first[s] = torch.eye(2, dtype=F64)[a]  # a layer is passed once, so this fixes the first action only
            found = sum(
                p * sum(gamma**t * r for t, r in enumerate(rewards))
                for p, _, _, rewards in exact.trajectories(start, first, 10)
            )
            assert close(exact.action_value(mdp, policy)[s, a], found)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_score_function_gradient_over_all_trajectories(gamma: float) -> None:
    """E[(sum_t gamma^t r_t) (sum_t grad log pi)], exactly, is the gradient of the linear solve."""
    mdp = absorbing_mdp(5, gamma)
    theta = logits(mdp, 5).requires_grad_()
    log_policy = torch.log_softmax(theta, -1)
    surrogate = torch.zeros((), dtype=F64)
    for p, states, actions, rewards in exact.trajectories(mdp, softmax_policy(theta.detach()), 10):
        score = sum(log_policy[s, a] for s, a in zip(states, actions, strict=False))
        surrogate = surrogate + p * sum(gamma**t * r for t, r in enumerate(rewards)) * score
    found = torch.autograd.grad(surrogate, theta)[0]
    assert close(found, gradients.objective_gradient(mdp, softmax_policy, theta))


def test_trajectories_stop_at_the_horizon() -> None:
    mdp = garnet(0, states=3, actions=2)
    policy = policy_of(mdp, 0)
    found = list(exact.trajectories(mdp, policy, 4))
    assert {len(actions) for _, _, actions, _ in found} == {4}
    assert sum(p for p, *_ in found) == pytest.approx(1.0, abs=1e-12)
    ends = torch.zeros(3, dtype=F64)
    for p, states, _, _ in found:
        ends[states[-1]] += p
    chain = exact.policy_transition(mdp, policy)
    assert close(ends, mdp.initial @ torch.linalg.matrix_power(chain, 4))
    assert [k for _, k, _, _ in exact.trajectories(mdp, policy, 0)] == [(2,), (1,), (0,)]
    with pytest.raises(UsageError, match="horizon is -1"):
        exact.trajectories(mdp, policy, -1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.97])
def test_values_solve_their_bellman_equations(gamma: float) -> None:
    mdp = garnet(1, gamma=gamma)
    policy = policy_of(mdp, 1)
    value, q = exact.state_value(mdp, policy), exact.action_value(mdp, policy)
    assert close(value, (policy * q).sum(1), 1e-12)
    steps = mdp.initial.clone()
    total = 0.0
    for t in range(2000):
        total += gamma**t * float(steps @ exact.policy_reward(mdp, policy))
        steps = steps @ exact.policy_transition(mdp, policy)
    assert close(exact.objective(mdp, policy), total)


def test_advantages_have_mean_zero_under_the_policy() -> None:
    mdp = garnet(2)
    policy = policy_of(mdp, 2)
    found = exact.advantage(mdp, policy)
    assert close((policy * found).sum(1), 0.0, 1e-12)
    assert close(found, exact.action_value(mdp, policy) - exact.state_value(mdp, policy).unsqueeze(-1), 1e-12)
    best = optimal.policy_iteration(mdp).policy
    assert float(exact.advantage(mdp, best).max()) < 1e-10


def test_distributions_are_normalised() -> None:
    mdp = looping_mdp(0.8)
    policy = policy_of(mdp, 0)
    visits, eta = exact.discounted_visits(mdp, policy), exact.expected_visits(mdp, policy)
    assert float(visits.sum()) == pytest.approx(5.0, abs=1e-11)
    assert float(exact.state_distribution(mdp, policy).sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(eta[:-1], visits[:-1])
    assert eta[-1] == 0.0 < visits[-1]
    assert float(exact.on_policy_distribution(mdp, policy).sum()) == pytest.approx(1.0, abs=1e-12)
    assert close(eta, mdp.initial + 0.8 * torch.where(mdp.absorbing, 0.0, eta @ exact.policy_transition(mdp, policy)))

    ending = mdp.with_gamma(1.0)  # a step ends the episode with 0.2, whatever is done: five steps on average
    assert float(exact.expected_visits(ending, policy).sum()) == pytest.approx(5.0, abs=1e-11)
    assert exact.discounted_visits(ending, policy)[-1] == 0.0
    with pytest.raises(UsageError, match="gamma is 1; use expected_visits"):
        exact.state_distribution(ending, policy)


# On-policy gradients


@pytest.mark.parametrize("seed", range(6))
def test_theorem_gradient_is_the_gradient(seed: int) -> None:
    """With p^pi as the weight; the normalised mu misses exactly the factor sum eta."""
    for mdp in (garnet(seed), garnet(seed, gamma=0.99), looping_mdp(1.0), absorbing_mdp(seed, 1.0)):
        theta = logits(mdp, seed)
        found = gradients.policy_gradient(mdp, softmax_policy, theta)
        autodiff = gradients.objective_gradient(mdp, softmax_policy, theta)
        assert close(found, autodiff)
        assert float(found.norm()) > 1e-3
        leaf = theta.clone().requires_grad_()
        policy = softmax_policy(leaf)
        weight = exact.on_policy_distribution(mdp, policy) * exact.expected_visits(mdp, policy).sum()
        weighted = (weight.detach().unsqueeze(-1) * policy * exact.action_value(mdp, policy).detach()).sum()
        assert close(torch.autograd.grad(weighted, leaf)[0], autodiff)


def test_gradient_of_the_objective_against_differences() -> None:
    mdp = garnet(4)
    theta = logits(mdp, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: exact.objective(mdp, softmax_policy(x)), theta)
    assert torch.autograd.gradcheck(lambda x: exact.discounted_visits(mdp, softmax_policy(x)), theta)
    assert torch.autograd.gradcheck(lambda x: gains.stationary_distribution(mdp, softmax_policy(x)), theta)
    assert torch.autograd.gradcheck(lambda x: gains.differential_value(mdp, softmax_policy(x)), theta)
    ending = looping_mdp(1.0)
    assert torch.autograd.gradcheck(
        lambda x: exact.objective(ending, softmax_policy(x)), logits(ending, 4).requires_grad_()
    )


@pytest.mark.parametrize("seed", range(3))
def test_fisher_matrix_is_the_curvature_of_the_divergence(seed: int) -> None:
    """The Hessian of sum_s w(s) KL(pi_theta || pi) at pi = pi_theta, either way round; elsewhere it is another."""
    mdp = garnet(seed)
    theta, weight = logits(mdp, seed), exact.state_distribution(mdp, policy_of(mdp, seed))
    fisher = gradients.fisher_matrix(weight, softmax_policy, theta)
    old = softmax_policy(theta)

    def divergence(vector: Tensor, *, swapped: bool) -> Tensor:
        p, q = old, softmax_policy(vector.view_as(theta))
        p, q = (q, p) if swapped else (p, q)
        return weight @ (p * (p.log() - q.log())).sum(-1)

    for swapped in (False, True):
        here, there = (
            torch.autograd.functional.hessian(lambda v, s=swapped: divergence(v, swapped=s), at.flatten())
            for at in (theta, theta + logits(mdp, seed + 1))
        )
        assert close(fisher, here)
        assert far(fisher, there)
    # A constant added to a state's entries changes no probability.
    shift = torch.zeros_like(theta)
    shift[0] = 1.0
    assert float((fisher @ shift.flatten()).abs().max()) < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_no_step_within_the_divergence_climbs_further(seed: int) -> None:
    """Of a thousand random steps of the same quadratic divergence; and a tabular softmax's natural gradient is A."""
    mdp = garnet(seed)
    theta = logits(mdp, seed)
    policy = softmax_policy(theta)
    slope = gradients.objective_gradient(mdp, softmax_policy, theta)
    fisher = gradients.fisher_matrix(exact.discounted_visits(mdp, policy), softmax_policy, theta)
    step = gradients.natural_step(slope, fisher, 0.01).flatten()
    assert float(0.5 * step @ fisher @ step) == pytest.approx(0.01, rel=1e-9)
    g = torch.Generator().manual_seed(seed)
    others = torch.randn((1000, len(step)), generator=g, dtype=torch.float64)
    others *= torch.sqrt(0.02 / torch.einsum("ni,ij,nj->n", others, fisher, others)).unsqueeze(-1)
    assert float((others @ slope.flatten()).max()) < float(step @ slope.flatten())
    a = exact.advantage(mdp, policy)
    direction = step.view_as(theta)
    centred = a - a.mean(-1, keepdim=True)
    assert close(direction / direction.norm(), centred / centred.norm(), 1e-9)


def test_undiscounted_weighting_is_not_the_gradient() -> None:
    mdp = absorbing_mdp(0, 0.7)
    theta = logits(mdp, 0)
    true = gradients.objective_gradient(mdp, softmax_policy, theta)
    found = gradients.undiscounted_weighting_gradient(mdp, softmax_policy, theta)
    assert far(found, true, 0.05)
    # By enumeration: each step's score times the discounted return that follows it, without gamma^t.
    leaf = theta.clone().requires_grad_()
    log_policy = torch.log_softmax(leaf, -1)
    surrogate = torch.zeros((), dtype=F64)
    for p, states, actions, rewards in exact.trajectories(mdp, softmax_policy(theta), 10):
        for t, (s, a) in enumerate(zip(states, actions, strict=False)):
            to_go = sum(0.7 ** (k - t) * rewards[k] for k in range(t, len(rewards)))
            surrogate = surrogate + p * to_go * log_policy[s, a]
    assert close(found, torch.autograd.grad(surrogate, leaf)[0])
    # A horizon beyond the end changes nothing, a shorter one does; at gamma = 1 it is the gradient.
    assert close(gradients.undiscounted_weighting_gradient(mdp, softmax_policy, theta, horizon=3), found)
    assert far(gradients.undiscounted_weighting_gradient(mdp, softmax_policy, theta, horizon=2), found)
    ending = mdp.with_gamma(1.0)
    assert close(
        gradients.undiscounted_weighting_gradient(ending, softmax_policy, theta),
        gradients.objective_gradient(ending, softmax_policy, theta),
    )
    with pytest.raises(UsageError, match="never ends"):
        gradients.undiscounted_weighting_gradient(garnet(0), softmax_policy, logits(garnet(0), 0))
    with pytest.raises(UsageError, match="horizon is -1"):
        gradients.undiscounted_weighting_gradient(mdp, softmax_policy, theta, horizon=-1)


# Average reward


@pytest.mark.parametrize("seed", range(4))
def test_theorem_gradient_of_the_gain(seed: int) -> None:
    for mdp in (garnet(seed), ring(), FiniteMDP.from_problem(problems.riverswim())):
        theta = logits(mdp, seed)
        found = gradients.gain_policy_gradient(mdp, softmax_policy, theta)
        assert close(found, gradients.gain_gradient(mdp, softmax_policy, theta))
        assert float(found.norm()) > 1e-5
        shifted = gains.differential_action_value(mdp, softmax_policy(theta)) + 3.0
        mu = gains.stationary_distribution(mdp, softmax_policy(theta))
        leaf = theta.clone().requires_grad_()
        constant = (mu.unsqueeze(-1) * softmax_policy(leaf) * shifted).sum()
        assert close(torch.autograd.grad(constant, leaf)[0], found)  # the constant that is open does not matter
    with_visits = gradients.policy_gradient(garnet(seed), softmax_policy, logits(garnet(seed), seed))
    assert far(with_visits, gradients.gain_gradient(garnet(seed), softmax_policy, logits(garnet(seed), seed)), 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_gain_is_the_limit_of_the_average_reward(seed: int) -> None:
    mdp = garnet(seed)
    policy = policy_of(mdp, seed)
    far_ahead = torch.linalg.matrix_power(exact.policy_transition(mdp, policy), 2**16)
    assert close(gains.stationary_distribution(mdp, policy).expand(5, 5), far_ahead)
    assert close(gains.gain(mdp, policy), float(mdp.initial @ far_ahead @ exact.policy_reward(mdp, policy)))
    # (1 - gamma) V tends to the gain.
    near_one = exact.state_value(mdp.with_gamma(1.0 - 1e-7), policy)
    assert close(1e-7 * near_one, gains.gain(mdp, policy), 1e-5)


def test_differential_values() -> None:
    mdp = garnet(2)
    policy = policy_of(mdp, 2)
    value, q = gains.differential_value(mdp, policy), gains.differential_action_value(mdp, policy)
    assert float(gains.stationary_distribution(mdp, policy) @ value) == pytest.approx(0.0, abs=1e-12)
    assert close((policy * q).sum(1), value, 1e-12)
    # What a start earns beyond the gain, summed up.
    chain, excess = exact.policy_transition(mdp, policy), exact.policy_reward(mdp, policy) - gains.gain(mdp, policy)
    total, now = torch.zeros(5, dtype=F64), torch.eye(5, dtype=F64)
    for _ in range(3000):
        total, now = total + now @ excess, now @ chain
    assert close(value, total)


def test_periodic_chains_have_cesaro_limits() -> None:
    """P(s_t = s) has no limit on the ring, its average has: a third each. Value and gain by hand."""
    mdp = ring()
    always = deterministic(mdp, (0, 0, 0))
    assert close(gains.stationary_distribution(mdp, always), torch.full((3,), 1 / 3, dtype=F64), 1e-13)
    assert float(gains.gain(mdp, always)) == pytest.approx(3.0, abs=1e-13)
    value = gains.differential_value(mdp, always)
    assert close(value, torch.tensor([-5.0, 1.0, 4.0], dtype=F64) / 3.0, 1e-12)
    assert float(optimal.optimal_gain(mdp)[0]) == pytest.approx(brute_force_gain(mdp), abs=1e-10)
    # Waiting in the last state doubles the time there: (1 + 2 + 6 + 6) / 4.
    assert float(optimal.optimal_gain(mdp)[0]) == pytest.approx(3.75, abs=1e-12)


def test_transient_states_have_no_share() -> None:
    mdp = two_islands()
    left = deterministic(mdp, (0, 0, 0))
    transition = mdp.transition.clone()
    transition[2] = 0.0
    transition[2, :, 0] = 1.0  # the second island now leads back
    found = gains.stationary_distribution(FiniteMDP(transition, mdp.reward, mdp.initial, 0.9), left)
    assert close(found, torch.tensor([0.0, 1.0, 0.0]), 1e-13)


def test_multichains_are_refused() -> None:
    mdp = two_islands()
    policy = uniform(mdp)
    assert gains.recurrent_classes(exact.policy_transition(mdp, policy)) == [[1], [2]]
    for function in (gains.stationary_distribution, gains.gain, gains.differential_value):
        with pytest.raises(UsageError, match=r"islands: .*2 recurrent classes \(state 1; state 2\)"):
            function(mdp, policy)
    assert bool(torch.isfinite(exact.state_value(mdp, policy)).all()), "discounted values need no single class"


# Optima


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_value_and_policy_iteration_agree(gamma: float) -> None:
    for mdp in (garnet(3, gamma=gamma), FiniteMDP.from_problem(problems.access_control(3, gamma=gamma))):
        by_value, by_policy = optimal.value_iteration(mdp), optimal.policy_iteration(mdp)
        assert close(by_value.value, by_policy.value, 1e-11)
        assert torch.equal(by_value.policy, by_policy.policy)
        assert close(by_policy.action_value.amax(1), by_policy.value, 1e-12)
        assert by_policy.iterations < 20 < by_value.iterations
    best = max(
        float(
            exact.objective(
                garnet(3, states=4, actions=2, gamma=gamma), deterministic(garnet(3, states=4, actions=2), a)
            )
        )
        for a in itertools.product(range(2), repeat=4)
    )
    mdp = garnet(3, states=4, actions=2, gamma=gamma)
    assert float(mdp.initial @ optimal.policy_iteration(mdp).value) == pytest.approx(best, abs=1e-10)


def test_iterations_that_cannot_converge_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimal, "ITERATIONS", 100)
    with pytest.raises(RunError, match="value iteration has not converged after 100 iterations"):
        optimal.value_iteration(ring().with_gamma(1.0))
    with pytest.raises(RunError, match="soft Q iteration"):
        optimal.soft_optimal(ring().with_gamma(1.0), 1.0)
    with pytest.raises(UsageError, match="never ends"):
        optimal.policy_iteration(ring().with_gamma(1.0))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_soft_optimum(temperature: float) -> None:
    """A fixed point, equal to its own policy's value, stationary, and better than other policies."""
    for mdp in (garnet(1), looping_mdp(0.9), absorbing_mdp(1, 1.0)):
        found = optimal.soft_optimal(mdp, temperature)
        soft = temperature * torch.logsumexp(found.action_value / temperature, 1)
        assert close(torch.where(mdp.absorbing, 0.0, soft), found.value, 1e-13)
        assert close(found.policy, softmax_policy(found.action_value / temperature), 1e-13)
        assert close(optimal.soft_state_value(mdp, found.policy, temperature), found.value)

        def worth(policy: Tensor, mdp: FiniteMDP = mdp) -> Tensor:
            return mdp.initial @ optimal.soft_state_value(mdp, policy, temperature)

        leaf = found.policy.log().requires_grad_()
        assert float(torch.autograd.grad(worth(softmax_policy(leaf)), leaf)[0].abs().max()) < 1e-10
        for seed in range(5):
            near = softmax_policy(found.policy.log() + 0.1 * logits(mdp, seed))
            assert float(worth(near)) < float(worth(found.policy))
    assert bool((optimal.soft_state_value(mdp, uniform(mdp), temperature)[mdp.absorbing] == 0.0).all())
    certain = deterministic(garnet(1), (0,) * garnet(1).num_states)  # no entropy, and 0 log 0 is 0
    assert close(optimal.soft_state_value(garnet(1), certain, temperature), exact.state_value(garnet(1), certain))


def test_soft_optimum_grows_into_the_optimum() -> None:
    mdp = garnet(1)
    hard = optimal.policy_iteration(mdp)
    assert close(optimal.soft_optimal(mdp, 1e-4).value, hard.value, 1e-3)
    assert torch.equal(optimal.soft_optimal(mdp, 1e-4).policy.argmax(1), hard.policy.argmax(1))
    with pytest.raises(UsageError, match="temperature is 0"):
        optimal.soft_optimal(mdp, 0.0)


# Off-policy gradients


@pytest.mark.parametrize("weighting", ["stationary", "discounted"])
@pytest.mark.parametrize("seed", range(3))
def test_off_policy_gradients(seed: int, weighting: exact.Weighting) -> None:
    """Emphasis brings back what dropping grad Q loses. Interest 1 in every state is another objective's."""
    mdp = garnet(seed)
    theta, behaviour = logits(mdp, seed), policy_of(mdp, seed + 100)
    true = gradients.off_policy_gradient(mdp, behaviour, softmax_policy, theta, weighting)
    weight = gradients.behaviour_weighting(mdp, behaviour, weighting)
    assert float(weight.sum()) == pytest.approx(1.0 if weighting == "stationary" else 10.0, abs=1e-10)
    value = exact.state_value(mdp, softmax_policy(theta))
    assert close(
        gradients.off_policy_objective(mdp, behaviour, softmax_policy(theta), weighting), float(weight @ value)
    )

    approximate = gradients.off_policy_gradient_approximate(mdp, behaviour, softmax_policy, theta, weighting)
    assert far(approximate, true, 0.05)
    assert close(gradients.emphatic_gradient(mdp, behaviour, softmax_policy, theta, weighting), true)
    ones = torch.ones(mdp.num_states, dtype=F64)
    wrong = gradients.emphatic_gradient(mdp, behaviour, softmax_policy, theta, weighting, interest=ones)
    assert far(wrong / wrong.norm(), true / true.norm(), 0.01)
    with pytest.raises(UsageError, match=r"interest has shape \(1,\)"):
        gradients.emphasis(mdp, behaviour, softmax_policy(theta), weighting, interest=ones[:1])
    m = gradients.emphasis(mdp, behaviour, softmax_policy(theta), weighting)
    assert close(m, weight + 0.9 * exact.policy_transition(mdp, softmax_policy(theta)).T @ m)
    # What is dropped is grad Q: the approximation is the gradient at Q held fixed, in its own product rule.
    leaf = theta.clone().requires_grad_()
    policy = softmax_policy(leaf)
    q = exact.action_value(mdp, policy)
    dropped = torch.autograd.grad((weight.unsqueeze(-1) * policy.detach() * q).sum(), leaf)[0]
    assert close(approximate + dropped, true)


def test_unknown_weighting_is_refused() -> None:
    mdp = garnet(0)
    with pytest.raises(UsageError, match="'stationary' or 'discounted'"):
        gradients.behaviour_weighting(mdp, uniform(mdp), "uniform")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("interest", "right"),
    [(lambda t: 0.8**t, True), (lambda t: 1.0, False)],
    ids=["gamma^t", "1"],
)
def test_followon_trace_over_all_behaviour_trajectories(interest: Callable[[int], float], right: bool) -> None:
    """F_t = gamma rho_{t-1} F_{t-1} + gamma^t gives the gradient of sum_s p^beta V; + 1 does not."""
    gamma = 0.8
    mdp = absorbing_mdp(2, gamma)
    theta, behaviour = logits(mdp, 2), policy_of(mdp, 102)
    policy = softmax_policy(theta)
    q = exact.action_value(mdp, policy)
    leaf = theta.clone().requires_grad_()
    log_policy = torch.log_softmax(leaf, -1)
    surrogate = torch.zeros((), dtype=F64)
    for p, states, actions, _ in exact.trajectories(mdp, behaviour, 10):
        trace = rho = 0.0
        for t, (s, a) in enumerate(zip(states, actions, strict=False)):
            trace = gamma * rho * trace + interest(t)
            rho = float(policy[s, a] / behaviour[s, a])
            surrogate = surrogate + p * trace * rho * q[s, a] * log_policy[s, a]
    found = torch.autograd.grad(surrogate, leaf)[0]
    true = gradients.off_policy_gradient(mdp, behaviour, softmax_policy, theta, "discounted")
    if right:
        assert close(found, true)
    else:
        assert far(found / found.norm(), true / true.norm(), 0.005)
        assert far(found, true, 0.01)


# Conservative evaluation


@pytest.mark.parametrize("evaluate", [offline.conservative_evaluation, offline.conservative_evaluation_in_expectation])
@pytest.mark.parametrize("make", [lambda: garnet(0), lambda: looping_mdp(0.9), lambda: absorbing_mdp(0, 1.0)])
def test_conservative_iterations_reach_their_fixed_points(
    evaluate: Callable[..., Tensor], make: Callable[[], FiniteMDP]
) -> None:
    mdp = make()
    policy, behaviour, mu = policy_of(mdp, 0), policy_of(mdp, 1), policy_of(mdp, 2)
    solved = evaluate(mdp, policy, behaviour, mu, 0.5)
    assert close(evaluate(mdp, policy, behaviour, mu, 0.5, iterations=400), solved)
    assert far(evaluate(mdp, policy, behaviour, mu, 0.5, iterations=2), solved)
    # The defining equation, written out, where something is decided.
    offset = 0.0 if evaluate is offline.conservative_evaluation else 1.0
    backup = mdp.reward + mdp.gamma * mdp.transition @ (policy * solved).sum(1) - 0.5 * (mu / behaviour - offset)
    live = ~mdp.absorbing
    assert close(solved[live], backup[live])
    assert bool((solved[~live] == 0.0).all())
    assert close(evaluate(mdp, policy, behaviour, mu, 0.0), exact.action_value(mdp, policy))


@pytest.mark.parametrize("seed", range(3))
def test_conservative_bounds_without_sampling_error(seed: int) -> None:
    """With the true model any positive weight bounds: pointwise, and with the second form only in expectation."""
    mdp = garnet(seed)
    policy, behaviour = policy_of(mdp, seed), policy_of(mdp, seed + 50)
    q, value = exact.action_value(mdp, policy), exact.state_value(mdp, policy)
    pointwise = offline.conservative_evaluation(mdp, policy, behaviour, policy, 0.3)
    assert bool((pointwise < q).all())
    inside = offline.conservative_evaluation_in_expectation(mdp, policy, behaviour, policy, 0.3)
    assert bool(((policy * inside).sum(1) < value).all())
    assert bool((inside > pointwise).all()), "the second bound is tighter"


@pytest.mark.parametrize("weight", [-1e-9, -math.inf, math.inf, math.nan])
def test_conservative_weights_are_not_negative(weight: float) -> None:
    mdp = FiniteMDP.from_problem(problems.two_state())
    policy = torch.full((2, 2), 0.5, dtype=F64)
    for evaluation in (offline.conservative_evaluation, offline.conservative_evaluation_in_expectation):
        free = evaluation(mdp, policy, policy, policy, 0.0)
        torch.testing.assert_close(free, exact.action_value(mdp, policy), rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match=r"weight is .*; it must be a number >= 0"):
            evaluation(mdp, policy, policy, policy, weight)


def test_conservative_penalty_needs_support() -> None:
    mdp = garnet(0)
    with pytest.raises(UsageError, match="never takes action 1 in state 0"):
        offline.conservative_evaluation(mdp, uniform(mdp), deterministic(mdp, (0,) * 5), uniform(mdp), 1.0)


def test_empirical_model() -> None:
    mdp = looping_mdp(0.9)
    counts = torch.zeros((5, 2, 5), dtype=F64)
    counts[:4, :, 0], counts[:4, 1, 4] = 3, 1
    counts[:4, 0, 1] = 1
    model, behaviour = offline.empirical_model(mdp, counts)
    assert torch.equal(model.transition[0, 0], torch.tensor([0.75, 0.25, 0, 0, 0], dtype=F64))
    assert torch.equal(model.transition[0, 1], torch.tensor([0.75, 0, 0, 0, 0.25], dtype=F64))
    assert torch.equal(behaviour, uniform(mdp))
    assert torch.equal(model.reward, mdp.reward)
    assert torch.equal(model.absorbing, mdp.absorbing)
    observed = mdp.reward + 1.0
    model = offline.empirical_model(mdp, counts, observed)[0]
    assert torch.equal(model.reward[:4], observed[:4])
    assert torch.equal(model.absorbing, mdp.absorbing), "the end pays nothing, whatever was recorded there"
    with pytest.raises(UsageError, match=r"reward has shape \(5, 1\)"):
        offline.empirical_model(mdp, counts, observed[:, :1])

    # Counted from a list of transitions; and exact where the counts are the probabilities.
    where = counts.nonzero()
    listed = where.repeat_interleave(counts[tuple(where.T)].to(torch.int64), 0)
    assert torch.equal(offline.transition_counts(mdp, *listed.T), counts)
    state, action, following = listed.T
    with pytest.raises(UsageError, match=r"state goes from -1 to 2; it must lie in 0 to 4"):
        offline.transition_counts(mdp, state - 1, action, following)
    with pytest.raises(UsageError, match=r"action goes from 0 to 2; it must lie in 0 to 1"):
        offline.transition_counts(mdp, state, 2 * action, following)
    with pytest.raises(UsageError, match=r"action has shape \(1,\)"):
        offline.transition_counts(mdp, state, action[:1], following)
    policy = policy_of(mdp, 0)
    visits = 1e6 * policy.unsqueeze(-1) * mdp.transition
    model, behaviour = offline.empirical_model(mdp, visits)
    assert close(model.transition, mdp.transition, 1e-12)
    assert close(behaviour[:4], policy[:4], 1e-12)

    counts[2, 1] = 0
    with pytest.raises(UsageError, match="action 1 never occurs in state 2"):
        offline.empirical_model(mdp, counts)
    with pytest.raises(UsageError, match=r"counts have shape \(5, 2\)"):
        offline.empirical_model(mdp, counts.sum(-1))


# What is refused


def changed(field: str, value: object) -> Callable[[], object]:
    def build() -> FiniteMDP:
        parts: dict[str, object] = {
            "transition": torch.full((2, 2, 2), 0.5, dtype=F64),
            "reward": torch.zeros((2, 2), dtype=F64),
            "initial": torch.tensor([1.0, 0.0], dtype=F64),
            "gamma": 0.9,
        }
        return FiniteMDP(**{**parts, field: value})  # pyright: ignore[reportArgumentType]

    return build


def entry(value: float) -> Tensor:
    transition = torch.full((2, 2, 2), 0.5, dtype=F64)
    transition[1, 0, 0], transition[1, 0, 1] = value, 1.0 - value
    return transition


def short_row() -> Tensor:
    transition = torch.full((2, 2, 2), 0.5, dtype=F64)
    transition[1, 0, 0] = 0.5 - 1e-9
    return transition


INVALID: dict[str, tuple[Callable[[], object], str]] = {
    "row sum": (changed("transition", short_row()), r"transition sums to 0\.99999999\d* at \(1, 0\)"),
    "negative": (changed("transition", entry(-0.5)), r"transition is -0\.5 at \(1, 0, 0\); a probability is never"),
    "not a number": (changed("transition", entry(float("nan"))), "transition has entries that are not finite"),
    "shape of transition": (changed("transition", torch.ones((2, 2))), r"transition has shape \(2, 2\)"),
    "not square": (changed("transition", torch.full((2, 2, 3), 1 / 3)), r"transition has shape \(2, 2, 3\)"),
    "empty": (changed("transition", torch.ones((2, 0, 2))), "none of them 0"),
    "shape of reward": (changed("reward", torch.zeros((2, 3))), r"reward has shape \(2, 3\).*must be \(2, 2\)"),
    "infinite reward": (changed("reward", torch.full((2, 2), torch.inf)), "reward has entries that are not finite"),
    "shape of initial": (changed("initial", torch.ones(3) / 3), r"initial has shape \(3,\).*must be \(2,\)"),
    "initial sum": (changed("initial", torch.tensor([0.5, 0.4])), "initial sums to 0.9"),
    "gamma above 1": (changed("gamma", 1.01), r"gamma is 1\.01; it must lie in \[0, 1\]"),
    "gamma below 0": (changed("gamma", -0.1), r"gamma is -0\.1"),
    "gamma not a number": (changed("gamma", float("nan")), "gamma is nan"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_processes_are_refused(case: str) -> None:
    build, message = INVALID[case]
    with pytest.raises(UsageError, match=message):
        build()
    assert changed("gamma", 1.0)() is not None, "the same process without the fault"


def test_invalid_policies_are_refused() -> None:
    mdp = garnet(0)
    good = uniform(mdp)
    for policy, message in (
        (good[:4], r"policy has shape \(4, 3\); it must be \(states, actions\) \(5, 3\)"),
        (good.float(), "exact solutions need torch.float64"),
        (good * 0.99, r"policy sums to 0\.99 at \(0,\)"),
        (good + torch.tensor([0.5, -0.5, 0.0]), "a probability is never negative"),
    ):
        for function in (exact.state_value, exact.discounted_visits, gains.gain, exact.policy_transition):
            with pytest.raises(UsageError, match=message):
                function(mdp, policy)


def test_gamma_one_needs_certain_termination() -> None:
    """Whether it surely ends depends on the policy, and on the graph alone."""
    mdp = FiniteMDP.from_problem(problems.cliff_walking())
    up = deterministic(mdp, (0,) * 48)
    for function in (exact.state_value, exact.discounted_visits, exact.objective):
        with pytest.raises(
            UsageError, match=r"gamma is 1, but under this policy the process never ends from states 0, 1"
        ):
            function(mdp, up)
        function(mdp, uniform(mdp))
        function(mdp, 0.999 * up + 0.001 * uniform(mdp))
    assert bool(torch.isfinite(exact.state_value(mdp.with_gamma(0.99), up)).all())
    with pytest.raises(UsageError, match="never ends"):
        exact.objective(garnet(0, gamma=1.0), uniform(garnet(0)))


def test_a_process_keeps_its_own_numbers() -> None:
    transition = torch.full((2, 2, 2), 0.5, dtype=F64)
    mdp = FiniteMDP(transition, torch.zeros((2, 2)), torch.tensor([1.0, 0.0]), 0.9)
    transition[0, 0, 0] = 7.0
    assert mdp.transition[0, 0, 0] == 0.5
    assert mdp.reward.dtype == F64
    problem = problems.two_state()
    mdp = FiniteMDP.from_problem(problem)
    problem.reward[0, 0] = 7.0
    assert mdp.reward[0, 0] == 0.1
