"""Finite decision processes solved by linear algebra, in float64: values, visits, gains, gradients, fixed points.

A policy is a row-stochastic float64 tensor ``policy`` (S, A). What is marked *differentiable* carries gradient to it.
Rewards are in reward units, values in reward units (discounted), gamma and probabilities have none.

Absorbing states (every action stays and pays nothing) are where an episode is over: their value is 0, nothing is
decided there. gamma = 1 is allowed, and the discounted functions then ask that the given policy surely terminates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.problems import Problem

F64 = torch.float64
PolicyFunction = Callable[[Tensor], Tensor]
"""From parameters to a policy (S, A), differentiable: for instance ``softmax_policy``."""
Weighting = Literal["stationary", "discounted"]

TOLERANCE = 1e-12
"""How far a sum of probabilities may be from 1, times the number of terms."""

ITERATIONS = 1_000_000
"""Where an iteration that should converge is given up."""

POLICY_ITERATIONS = 1_000
"""The same for policy iteration, which needs a handful."""


# The process


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """A finite Markov decision process.

    Args:      transition (S, A, S) probabilities of the next state; reward (S, A) expected reward units;
               initial (S,) probabilities of the first state; gamma in [0, 1]
    Raises:    UsageError on wrong shapes, numbers that are not finite, rows that are no probabilities, or a bad gamma
    Verified:  tests/exact/test_finite_mdp.py::test_invalid_processes_are_refused
    """

    transition: Tensor
    reward: Tensor
    initial: Tensor
    gamma: float
    name: str = "finite MDP"

    def __post_init__(self) -> None:
        for field in ("transition", "reward", "initial"):
            object.__setattr__(self, field, torch.as_tensor(getattr(self, field), dtype=F64).clone())
        shape = tuple(self.transition.shape)
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise UsageError(
                f"{self.name}: transition has shape {shape}; it must be (states, actions, states), none of them 0."
            )
        for field, expected in (("reward", shape[:2]), ("initial", shape[:1])):
            found = tuple(getattr(self, field).shape)
            if found != expected:
                raise UsageError(
                    f"{self.name}: {field} has shape {found}; with transition {shape} it must be {expected}."
                )
        if not bool(torch.isfinite(self.reward).all()):
            raise UsageError(f"{self.name}: reward has entries that are not finite; every reward must be a number.")
        _check_probabilities(self.transition, f"{self.name}: transition")
        _check_probabilities(self.initial, f"{self.name}: initial")
        if not 0.0 <= self.gamma <= 1.0:
            raise UsageError(f"{self.name}: gamma is {self.gamma}; it must lie in [0, 1].")

    @classmethod
    def from_problem(cls, problem: Problem) -> FiniteMDP:
        """The process of a table of ``steepest.problems``."""
        return cls(
            torch.from_numpy(problem.transition),
            torch.from_numpy(problem.reward),
            torch.from_numpy(problem.initial),
            problem.gamma,
            problem.name,
        )

    @property
    def num_states(self) -> int:
        """S, absorbing states included."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the same in every state."""
        return self.transition.shape[1]

    @property
    def absorbing(self) -> Tensor:
        """(S,) bool: every action stays and pays nothing."""
        stays = torch.diagonal(self.transition, dim1=0, dim2=2).T == 1.0
        return (stays & (self.reward == 0.0)).all(1)

    def with_gamma(self, gamma: float) -> FiniteMDP:
        """The same process under another discount."""
        return replace(self, gamma=gamma)


def _check_probabilities(rows: Tensor, what: str) -> None:
    rows = rows.detach()
    if not bool(torch.isfinite(rows).all()):
        raise UsageError(f"{what} has entries that are not finite; it must hold probabilities.")
    if bool((rows < 0.0).any()):
        where = tuple((rows < 0.0).nonzero()[0].tolist())
        raise UsageError(f"{what} is {float(rows[where]):.6g} at {where}; a probability is never negative.")
    excess = (rows.sum(-1) - 1.0).abs()
    if bool((excess > TOLERANCE * rows.shape[-1]).any()):
        flat = int(excess.argmax())
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape)) if excess.ndim else ()
        total = float(rows.sum(-1)[where])
        raise UsageError(
            f"{what} sums to {total:.15g}{f' at {where}' if where else ''}; probabilities must sum to 1 "
            "(in float64: normalise after converting)."
        )


def _check_policy(mdp: FiniteMDP, policy: Tensor, what: str = "policy") -> None:
    expected = (mdp.num_states, mdp.num_actions)
    if tuple(policy.shape) != expected:
        raise UsageError(
            f"{mdp.name}: {what} has shape {tuple(policy.shape)}; it must be (states, actions) {expected}."
        )
    if policy.dtype != F64:
        raise UsageError(f"{mdp.name}: {what} is {policy.dtype}; exact solutions need torch.float64.")
    _check_probabilities(policy, f"{mdp.name}: {what}")


def softmax_policy(theta: Tensor) -> Tensor:
    """The tabular softmax policy; differentiable.

    Equation:  pi(a|s) = exp(theta[s, a]) / sum_b exp(theta[s, b])
    Verified:  tests/exact/test_finite_mdp.py::test_theorem_gradient_is_the_gradient
    """
    return torch.softmax(theta, -1)


def policy_transition(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S, S) transition probabilities of the chain under a policy; differentiable.

    Equation:  P_pi[s, s'] = sum_a pi(a|s) P[s, a, s']
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    _check_policy(mdp, policy)
    return torch.einsum("sa,sat->st", policy, mdp.transition)


def policy_reward(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) expected reward of one step under a policy; differentiable.

    Equation:  r_pi[s] = sum_a pi(a|s) r[s, a]
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    _check_policy(mdp, policy)
    return (policy * mdp.reward).sum(-1)


# Discounted values and visits


def state_value(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) discounted values; differentiable.

    Equation:  V = r_pi + gamma P_pi V, and V = 0 where the process is over
    Source:    notes 1.1.
    Raises:    UsageError where gamma = 1 and the policy does not surely terminate
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    return _evaluate(mdp, policy, policy_reward(mdp, policy))


def action_value(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S, A) discounted action values; differentiable.

    Equation:  Q[s, a] = r[s, a] + gamma sum_s' P[s, a, s'] V[s']
    Source:    notes 1.1.
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    return mdp.reward + mdp.gamma * mdp.transition @ state_value(mdp, policy)


def advantage(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S, A) how much better an action is than the policy; differentiable.

    Equation:  A[s, a] = Q[s, a] - V[s]
    Source:    notes 1.9.
    Verified:  tests/exact/test_finite_mdp.py::test_advantages_have_mean_zero_under_the_policy
    """
    value = state_value(mdp, policy)
    return mdp.reward + mdp.gamma * mdp.transition @ value - value.unsqueeze(-1)


def objective(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """Expected discounted return from the first state, a scalar; differentiable.

    Equation:  J = sum_s initial[s] V[s]
    Source:    notes 1.1.
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    return mdp.initial @ state_value(mdp, policy)


def discounted_visits(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) p^pi, the expected discounted number of visits; differentiable.

    Equation:  p[s] = sum_t gamma^t P(s_t = s)
    Source:    notes 1.1 (p^pi). At gamma < 1 over all states, so that it sums to 1 / (1 - gamma); at gamma = 1 the
               entries of absorbing states, where the sum diverges, are 0.
    Raises:    UsageError where gamma = 1 and the policy does not surely terminate
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    return _propagate(mdp, policy, mdp.initial)


def state_distribution(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) d^pi, the normalised discounted state distribution, absorbing states included; differentiable.

    Equation:  d[s] = (1 - gamma) sum_t gamma^t P(s_t = s)
    Source:    notes 1.9.
    Raises:    UsageError at gamma = 1, where it is not defined
    Verified:  tests/exact/test_finite_mdp.py::test_distributions_are_normalised
    """
    if mdp.gamma == 1.0:
        raise UsageError(
            f"{mdp.name}: the discounted state distribution needs gamma < 1, but gamma is 1; "
            "use expected_visits or on_policy_distribution."
        )
    return (1.0 - mdp.gamma) * discounted_visits(mdp, policy)


def expected_visits(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) eta, the visits p^pi of the states in which something is decided, 0 elsewhere; differentiable.

    Equation:  eta[s] = initial[s] + gamma sum_s' eta[s'] P_pi[s', s]
    Source:    notes 1.1, where eta contains gamma: it is p^pi, and at gamma = 1 the expected number of visits.
    Verified:  tests/exact/test_finite_mdp.py::test_distributions_are_normalised
    """
    return torch.where(mdp.absorbing, 0.0, discounted_visits(mdp, policy))


def on_policy_distribution(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) mu, the share of the (discounted) steps that is spent in a state; differentiable.

    Equation:  mu[s] = eta[s] / sum_s' eta[s']
    Source:    notes 1.1.
    Verified:  tests/exact/test_finite_mdp.py::test_distributions_are_normalised
    """
    visits = expected_visits(mdp, policy)
    return visits / visits.sum()


def _evaluate(mdp: FiniteMDP, policy: Tensor, reward: Tensor) -> Tensor:
    """(S,) the discounted sum of ``reward`` (S,) until absorption."""
    live = _live_states(mdp, policy)
    p = policy_transition(mdp, policy)[live][:, live]
    solved = torch.linalg.solve(torch.eye(len(live), dtype=F64) - mdp.gamma * p, reward[live])
    return torch.zeros(mdp.num_states, dtype=F64).index_put((live,), solved)


def _propagate(mdp: FiniteMDP, policy: Tensor, start: Tensor) -> Tensor:
    """(S,) m = start + gamma P_pi^T m, over all states at gamma < 1 and over the live ones at gamma = 1."""
    states = _live_states(mdp, policy) if mdp.gamma == 1.0 else torch.arange(mdp.num_states)
    p = policy_transition(mdp, policy)[states][:, states]
    solved = torch.linalg.solve((torch.eye(len(states), dtype=F64) - mdp.gamma * p).T, start[states])
    return torch.zeros(mdp.num_states, dtype=F64).index_put((states,), solved)


def _live_states(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """Indices of the states that are not absorbing; at gamma = 1 each must surely lead to one that is."""
    absorbing = mdp.absorbing
    if mdp.gamma == 1.0:
        reach = _reachable(policy_transition(mdp, policy))
        stuck = (~reach[:, absorbing].any(1)).nonzero().flatten().tolist()
        if stuck:
            raise UsageError(
                f"{mdp.name}: gamma is 1, but under this policy the process never ends from {_states(stuck)}. "
                "Use gamma < 1, a policy that surely terminates, or the average-reward functions (gain)."
            )
    return (~absorbing).nonzero().flatten()


# Chains


def _reachable(transition: Tensor) -> Tensor:
    """(S, S) bool: whether a chain leads from row to column with positive probability, in any number of steps."""
    reach = (transition.detach() > 0.0) | torch.eye(len(transition), dtype=torch.bool)
    while True:
        further = (reach.to(F64) @ reach.to(F64)) > 0.0
        if torch.equal(further, reach):
            return reach
        reach = further


def recurrent_classes(transition: Tensor) -> list[list[int]]:
    """The closed communicating classes of a chain (S, S), each a sorted list of states.

    Verified:  tests/exact/test_finite_mdp.py::test_multichains_are_refused
    """
    reach = _reachable(transition)
    returns = ~(reach & ~reach.T).any(1)  # whatever is reached leads back
    classes = {tuple((reach[s] & reach[:, s]).nonzero().flatten().tolist()) for s in returns.nonzero().flatten()}
    return [list(c) for c in sorted(classes)]


def _states(states: list[int]) -> str:
    shown = ", ".join(map(str, states[:8])) + (", ..." if len(states) > 8 else "")
    return f"state{'s' if len(states) > 1 else ''} {shown}"


# Average reward


def stationary_distribution(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) the share of time spent in each state in the long run, whatever the first one; differentiable.

    Equation:  mu = P_pi^T mu, sum_s mu[s] = 1: the Cesaro limit of P(s_t = s), which exists for periodic chains too
    Source:    notes 1.8.
    Raises:    UsageError naming the recurrent classes, if there is more than one
    Verified:  tests/exact/test_finite_mdp.py::test_periodic_chains_have_cesaro_limits
    """
    p = policy_transition(mdp, policy)
    classes = recurrent_classes(p)
    if len(classes) > 1:
        named = "; ".join(_states(c) for c in classes[:6]) + ("; ..." if len(classes) > 6 else "")
        raise UsageError(
            f"{mdp.name}: under this policy there are {len(classes)} recurrent classes ({named}), so the average "
            "depends on where the process starts. A single recurrent class is needed: give every action some chance."
        )
    return _stationary(p)


def _stationary(p: Tensor) -> Tensor:
    # mu^T (I - P + 1 1^T) = 1^T; the matrix is regular exactly if there is one recurrent class.
    one = torch.ones(len(p), dtype=F64)
    return torch.linalg.solve((torch.eye(len(p), dtype=F64) - p + 1.0).T, one)


def gain(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """The average reward per step, a scalar; differentiable. gamma plays no part.

    Equation:  r(pi) = sum_s mu[s] r_pi[s]
    Source:    notes 1.8, where it is called V(theta).
    Raises:    UsageError if there is more than one recurrent class
    Verified:  tests/exact/test_finite_mdp.py::test_gain_is_the_limit_of_the_average_reward
    """
    return stationary_distribution(mdp, policy) @ policy_reward(mdp, policy)


def differential_value(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) what a start is worth beyond the gain, with mean zero under the stationary distribution; differentiable.

    Equation:  v = r_pi - gain + P_pi v, sum_s mu[s] v[s] = 0
    Source:    notes 1.8; the constant that the equation leaves open is fixed by the mean.
    Raises:    UsageError if there is more than one recurrent class
    Verified:  tests/exact/test_finite_mdp.py::test_differential_values
    """
    mu = stationary_distribution(mdp, policy)
    p, r = policy_transition(mdp, policy), policy_reward(mdp, policy)
    # (I - P + 1 mu^T) v = r - gain; multiplied by mu^T it says mu^T v = 0.
    return torch.linalg.solve(torch.eye(len(p), dtype=F64) - p + mu, r - mu @ r)


def differential_action_value(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S, A) differential action values; differentiable.

    Equation:  q[s, a] = r[s, a] - gain + sum_s' P[s, a, s'] v[s']
    Source:    notes 1.8.
    Verified:  tests/exact/test_finite_mdp.py::test_differential_values
    """
    return mdp.reward - gain(mdp, policy) + mdp.transition @ differential_value(mdp, policy)


# Optima


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimum: policy (S, A), value (S,), action_value (S, A), and how many iterations it took."""

    policy: Tensor
    value: Tensor
    action_value: Tensor
    iterations: int


def value_iteration(mdp: FiniteMDP, tolerance: float = 1e-12) -> Solution:
    """The optimal values to within ``tolerance`` (reward units) or rounding, by iterating Bellman's operator.

    Equation:  V <- max_a r[., a] + gamma P[., a] V, until gamma / (1 - gamma) |change| <= tolerance;
               at gamma = 1 until |change| <= tolerance, which there bounds no error
    Raises:    RunError if it does not converge: at gamma = 1, where going on for ever pays
    Verified:  tests/exact/test_finite_mdp.py::test_value_and_policy_iteration_agree
    """
    scale = mdp.gamma / (1.0 - mdp.gamma) if mdp.gamma < 1.0 else 1.0
    value = torch.zeros(mdp.num_states, dtype=F64)
    for iteration in range(1, ITERATIONS + 1):
        q = mdp.reward + mdp.gamma * mdp.transition @ value
        change = float((q.amax(1) - value).abs().max())
        value = q.amax(1)
        if scale * change <= tolerance or change <= _rounding(value):
            q = mdp.reward + mdp.gamma * mdp.transition @ value
            return Solution(_greedy(q), value, q, iteration)
    raise _diverged(mdp, "value iteration", ITERATIONS)


def policy_iteration(mdp: FiniteMDP) -> Solution:
    """The optimal policy, by exact evaluation and greedy improvement from the uniform policy.

    Equation:  pi <- argmax_a Q^pi, changed only where it is strictly better
    Raises:    UsageError where gamma = 1 and a policy met on the way does not surely terminate
    Verified:  tests/exact/test_finite_mdp.py::test_value_and_policy_iteration_agree
    """
    policy = _greedy(action_value(mdp, _uniform(mdp)))
    for iteration in range(1, POLICY_ITERATIONS + 1):
        value, q = state_value(mdp, policy), action_value(mdp, policy)
        better = q.amax(1) > value + 16 * _rounding(value)
        if not bool(better.any()):
            return Solution(policy, value, q, iteration)
        policy = torch.where(better.unsqueeze(-1), _greedy(q), policy)
    raise _diverged(mdp, "policy iteration", POLICY_ITERATIONS)


def optimal_gain(mdp: FiniteMDP) -> tuple[Tensor, Tensor]:
    """The best average reward per step, and a deterministic policy (S, A) that reaches it from every state.

    Equation:  Howard's policy iteration for multichain processes: improve P g, then r + P h among its maximisers, with
               g = P* r_pi, h = (I - P_pi + P*)^-1 (I - P*) r_pi, P* the Cesaro limit of P_pi's powers
    Source:    Puterman 1994, Section 9.2.
    Raises:    UsageError if the best gain depends on the first state
    Verified:  tests/exact/test_finite_mdp.py::test_optimal_gain_of_riverswim
    """
    policy = _greedy(mdp.reward)
    for _ in range(POLICY_ITERATIONS):
        p, r = policy_transition(mdp, policy), policy_reward(mdp, policy)
        limit = _cesaro_limit(p)
        g = limit @ r
        h = torch.linalg.solve(torch.eye(len(p), dtype=F64) - p + limit, r - g)
        slack = 64 * _rounding(torch.cat([r, g, h]))
        next_gain = mdp.transition @ g
        better = next_gain.amax(1) > g + slack
        if bool(better.any()):
            policy = torch.where(better.unsqueeze(-1), _greedy(next_gain), policy)
            continue
        q = mdp.reward + mdp.transition @ h
        allowed = torch.where(next_gain >= next_gain.amax(1, keepdim=True) - slack, q, -torch.inf)
        better = allowed.amax(1) > g + h + slack
        if not bool(better.any()):
            if float(g.max() - g.min()) > 1e3 * slack:
                raise UsageError(
                    f"{mdp.name}: the best average reward depends on the first state (from {float(g.min()):.6g} to "
                    f"{float(g.max()):.6g}), so it is not one number."
                )
            return g.mean(), policy
        policy = torch.where(better.unsqueeze(-1), _greedy(allowed), policy)
    raise _diverged(mdp, "policy iteration for the gain", POLICY_ITERATIONS)


def soft_state_value(mdp: FiniteMDP, policy: Tensor, temperature: float) -> Tensor:
    """(S,) discounted values with an entropy bonus at every decision; differentiable where policy > 0.

    Equation:  V[s] = E sum_t gamma^t (r_t + temperature H(pi(.|s_t))), with no bonus where the process is over
    Source:    notes 1.7.
    Verified:  tests/exact/test_finite_mdp.py::test_soft_optimum
    """
    entropy = torch.special.entr(policy).sum(-1)  # -p log p, which is 0 at 0
    return _evaluate(mdp, policy, policy_reward(mdp, policy) + temperature * entropy)


def soft_optimal(mdp: FiniteMDP, temperature: float) -> Solution:
    """The maximum-entropy optimum, by soft Q iteration to machine precision.

    Equation:  Q = r + gamma P V, V[s] = temperature log sum_a exp(Q[s, a] / temperature), V = 0 where it is over;
               pi = softmax(Q / temperature)
    Source:    notes 1.7; Haarnoja et al. 2017, Theorem 2. Maximises E sum_t gamma^t (r_t + temperature H(pi(.|s_t))).
    Raises:    UsageError unless temperature > 0; RunError if it does not converge (gamma = 1, where the entropy of
               going on for ever pays)
    Verified:  tests/exact/test_finite_mdp.py::test_soft_optimum
    """
    if not temperature > 0.0:
        raise UsageError(f"{mdp.name}: temperature is {temperature}; it must be above 0 (0 is value_iteration).")
    absorbing = mdp.absorbing
    value = torch.zeros(mdp.num_states, dtype=F64)
    for iteration in range(1, ITERATIONS + 1):
        q = mdp.reward + mdp.gamma * mdp.transition @ value
        soft = temperature * torch.logsumexp(q / temperature, 1)
        soft = torch.where(absorbing, 0.0, soft)
        change = float((soft - value).abs().max())
        value = soft
        if change <= _rounding(value):
            q = mdp.reward + mdp.gamma * mdp.transition @ value
            return Solution(torch.softmax(q / temperature, 1), value, q, iteration)
    raise _diverged(mdp, "soft Q iteration", ITERATIONS)


def _uniform(mdp: FiniteMDP) -> Tensor:
    return torch.full((mdp.num_states, mdp.num_actions), 1.0 / mdp.num_actions, dtype=F64)


def _greedy(q: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).to(F64)


def _rounding(value: Tensor) -> float:
    """A few units in the last place of the largest entry."""
    return 4 * torch.finfo(F64).eps * max(1.0, float(value.detach().abs().max()))


def _diverged(mdp: FiniteMDP, what: str, iterations: int) -> RunError:
    return RunError(f"{mdp.name}: {what} has not converged after {iterations} iterations (gamma is {mdp.gamma}).")


def _cesaro_limit(p: Tensor) -> Tensor:
    """(S, S) lim 1/n sum_k P^k, for any number of recurrent classes."""
    size = len(p)
    limit = torch.zeros_like(p)
    classes = recurrent_classes(p)
    recurrent = sorted(s for c in classes for s in c)
    transient = torch.tensor([s for s in range(size) if s not in set(recurrent)], dtype=torch.int64)
    for members in classes:
        c = torch.tensor(members)
        mu = torch.zeros(size, dtype=F64)
        mu[c] = _stationary(p[c][:, c])
        ends_here = torch.zeros(size, dtype=F64)
        ends_here[c] = 1.0
        if len(transient):
            inside = torch.eye(len(transient), dtype=F64) - p[transient][:, transient]
            ends_here[transient] = torch.linalg.solve(inside, p[transient][:, c].sum(1))
        limit += torch.outer(ends_here, mu)
    return limit


# Trajectories


def trajectories(
    mdp: FiniteMDP, policy: Tensor, horizon: int
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...], tuple[float, ...]]]:
    """Every trajectory of positive probability, up to absorption or to ``horizon`` actions.

    Equation:  P(tau) = initial[s_0] prod_t pi(a_t|s_t) P[s_t, a_t, s_{t+1}]
    Source:    notes 1.1.
    Returns:   (probability, states of length k+1, actions of length k, expected rewards of length k) each
    Raises:    UsageError if horizon < 0
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    _check_policy(mdp, policy)
    if horizon < 0:
        raise UsageError(f"horizon is {horizon}; it must be a number of actions, at least 0.")
    absorbing: list[bool] = mdp.absorbing.tolist()
    pi: list[list[float]] = policy.detach().tolist()
    rewards: list[list[float]] = mdp.reward.tolist()
    outcomes = [
        [[(t, p) for t, p in enumerate(row) if p > 0.0] for row in by_action] for by_action in mdp.transition.tolist()
    ]
    return _follow(mdp.initial.tolist(), absorbing, pi, rewards, outcomes, horizon)


def _follow(
    initial: list[float],
    absorbing: list[bool],
    pi: list[list[float]],
    rewards: list[list[float]],
    outcomes: list[list[list[tuple[int, float]]]],
    horizon: int,
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...], tuple[float, ...]]]:
    open_ends: list[tuple[float, tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = [
        (p, (s,), (), ()) for s, p in enumerate(initial) if p > 0.0
    ]
    while open_ends:
        probability, states, actions, earned = open_ends.pop()
        s = states[-1]
        if absorbing[s] or len(actions) == horizon:
            yield probability, states, actions, earned
            continue
        for a, chance in enumerate(pi[s]):
            if chance > 0.0:
                for to, p in outcomes[s][a]:
                    step = (probability * chance * p, (*states, to), (*actions, a), (*earned, rewards[s][a]))
                    open_ends.append(step)


# On-policy gradients


def policy_gradient(mdp: FiniteMDP, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """The gradient of the objective by the policy-gradient theorem; shape of theta.

    Equation:  grad J = sum_s p^pi[s] sum_a grad pi(a|s) Q[s, a], with p^pi and Q held fixed
    Source:    notes 1.1, Theorem 3, with p^pi, for which it is an equality.
    Verified:  tests/exact/test_finite_mdp.py::test_theorem_gradient_is_the_gradient
    """
    policy = policy_fn(theta.detach())
    return _weighted_gradient(discounted_visits(mdp, policy), action_value(mdp, policy), policy_fn, theta)


def objective_gradient(mdp: FiniteMDP, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """The gradient of the objective, by automatic differentiation through the linear solve; shape of theta.

    Equation:  grad J = grad (initial . (I - gamma P_pi)^-1 r_pi)
    Verified:  tests/exact/test_finite_mdp.py::test_theorem_gradient_is_the_gradient
    """
    return _gradient(lambda policy: objective(mdp, policy), policy_fn, theta)


def undiscounted_weighting_gradient(
    mdp: FiniteMDP, policy_fn: PolicyFunction, theta: Tensor, horizon: int | None = None
) -> Tensor:
    """What estimators follow that drop gamma^t: states weighted by plain visits. Not a gradient at gamma < 1.

    Equation:  sum_{t < horizon} sum_s P(s_t = s) sum_a grad pi(a|s) Q[s, a], Q discounted; horizon None: until the end
    Source:    Nota & Thomas 2020; the default of every common implementation.
    Raises:    UsageError if horizon < 0, or without one if the policy does not surely terminate
    Verified:  tests/exact/test_finite_mdp.py::test_undiscounted_weighting_is_not_the_gradient
    """
    policy = policy_fn(theta.detach())
    if horizon is None:
        visits = expected_visits(mdp.with_gamma(1.0), policy)
    elif horizon < 0:
        raise UsageError(f"horizon is {horizon}; it must be a number of steps, at least 0, or None.")
    else:
        p, now, visits = policy_transition(mdp, policy), mdp.initial, torch.zeros(mdp.num_states, dtype=F64)
        for _ in range(horizon):
            visits = visits + now
            now = now @ p
        visits = torch.where(mdp.absorbing, 0.0, visits)
    return _weighted_gradient(visits, action_value(mdp, policy), policy_fn, theta)


def gain_gradient(mdp: FiniteMDP, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """The gradient of the average reward, by automatic differentiation through the stationary distribution.

    Verified:  tests/exact/test_finite_mdp.py::test_theorem_gradient_of_the_gain
    """
    return _gradient(lambda policy: gain(mdp, policy), policy_fn, theta)


def gain_policy_gradient(mdp: FiniteMDP, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """The gradient of the average reward by its theorem; shape of theta.

    Equation:  grad r(pi) = sum_s mu[s] sum_a grad pi(a|s) q[s, a], q the differential action value, held fixed
    Source:    notes 1.8, Theorem 4, whose proof gives an equality.
    Raises:    UsageError if there is more than one recurrent class
    Verified:  tests/exact/test_finite_mdp.py::test_theorem_gradient_of_the_gain
    """
    policy = policy_fn(theta.detach())
    q = differential_action_value(mdp, policy)
    return _weighted_gradient(stationary_distribution(mdp, policy), q, policy_fn, theta)


def fisher_matrix(weight: Tensor, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """The Fisher information of a policy over weighted states, (P, P) for the P entries of theta, score by score.

    Equation:  F = sum_s weight[s] sum_a pi(a|s) grad log pi(a|s) grad log pi(a|s)^T
    Source:    Kakade 2001. Singular for a softmax, which does not know a constant added to a state's entries.
    Verified:  tests/exact/test_finite_mdp.py::test_fisher_matrix_is_the_curvature_of_the_divergence
    """
    leaf = theta.detach().clone().requires_grad_()
    log_policy = policy_fn(leaf).log()
    scores = [torch.autograd.grad(x, leaf, retain_graph=True)[0].flatten() for x in log_policy.flatten()]
    probability = (weight.unsqueeze(-1) * log_policy.detach().exp()).flatten()
    score = torch.stack(scores)
    return score.T @ (probability.unsqueeze(-1) * score)


def natural_step(slope: Tensor, fisher: Tensor, max_kl: float) -> Tensor:
    """The step that climbs a slope furthest where its divergence is max_kl by the quadratic model; shape of slope.

    Equation:  sqrt(2 max_kl / g.F^+ g) F^+ g = argmax g.x subject to 1/2 x.F x <= max_kl, of least norm
    Source:    Kakade 2001; Schulman et al. 2015, appendix C.
    Args:      slope g, any shape, in the range of F; fisher (P, P); max_kl nats
    Verified:  tests/exact/test_finite_mdp.py::test_no_step_within_the_divergence_climbs_further
    """
    direction = torch.linalg.pinv(fisher, hermitian=True) @ slope.flatten()
    return (direction * torch.sqrt(2.0 * max_kl / (slope.flatten() @ direction))).view_as(slope)


def _gradient(scalar: Callable[[Tensor], Tensor], policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    leaf = theta.detach().clone().requires_grad_()
    return torch.autograd.grad(scalar(policy_fn(leaf)), leaf)[0]


def _weighted_gradient(weight: Tensor, q: Tensor, policy_fn: PolicyFunction, theta: Tensor) -> Tensor:
    """sum_s weight[s] sum_a grad pi(a|s) q[s, a]."""
    fixed = (weight.unsqueeze(-1) * q).detach()
    return _gradient(lambda policy: (policy * fixed).sum(), policy_fn, theta)


# Off-policy gradients


def behaviour_weighting(mdp: FiniteMDP, behaviour: Tensor, weighting: Weighting = "stationary") -> Tensor:
    """(S,) how often the behaviour policy is in a state.

    Equation:  "stationary": d^beta, its stationary distribution; "discounted": p^beta = sum_t gamma^t P_beta(s_t = s)
    Source:    notes 1.6 (p^beta); Degris, White & Sutton 2012 and Imani, Graves & White 2018 (d^beta).
    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    if weighting == "stationary":
        return stationary_distribution(mdp, behaviour)
    if weighting == "discounted":
        return discounted_visits(mdp, behaviour)
    raise UsageError(f"weighting is {weighting!r}; it must be 'stationary' or 'discounted'.")


def off_policy_objective(
    mdp: FiniteMDP, behaviour: Tensor, policy: Tensor, weighting: Weighting = "stationary"
) -> Tensor:
    """What the policy is worth where the behaviour goes, a scalar; differentiable in policy.

    Equation:  J_beta = sum_s d^beta[s] V^pi[s], or p^beta for "discounted"
    Source:    notes 1.6.
    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    return behaviour_weighting(mdp, behaviour, weighting).detach() @ state_value(mdp, policy)


def off_policy_gradient(
    mdp: FiniteMDP, behaviour: Tensor, policy_fn: PolicyFunction, theta: Tensor, weighting: Weighting = "stationary"
) -> Tensor:
    """The true gradient of the off-policy objective, by automatic differentiation; shape of theta.

    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    return _gradient(lambda policy: off_policy_objective(mdp, behaviour, policy, weighting), policy_fn, theta)


def off_policy_gradient_approximate(
    mdp: FiniteMDP, behaviour: Tensor, policy_fn: PolicyFunction, theta: Tensor, weighting: Weighting = "stationary"
) -> Tensor:
    """The off-policy gradient of the notes and of Off-PAC, which drops grad Q; shape of theta.

    Equation:  sum_s d^beta[s] sum_a grad pi(a|s) Q[s, a], or p^beta for "discounted"
    Source:    notes 1.6; Degris, White & Sutton 2012, whose approximation it is. It is not the gradient of J_beta.
    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    weight = behaviour_weighting(mdp, behaviour, weighting)
    return _weighted_gradient(weight, action_value(mdp, policy_fn(theta.detach())), policy_fn, theta)


def emphasis(
    mdp: FiniteMDP,
    behaviour: Tensor,
    policy: Tensor,
    weighting: Weighting = "stationary",
    interest: Tensor | None = None,
) -> Tensor:
    """(S,) the emphatic weighting of states, with which the dropped term comes back.

    Equation:  m = (I - gamma P_pi^T)^-1 i,  i = d^beta (or p^beta for "discounted") unless ``interest`` (S,) is given
    Source:    Imani, Graves & White 2018. i already contains the behaviour's weighting: per-state interest 1
               with states met as often as under d^beta, or met at time t with weight gamma^t.
    Raises:    UsageError on an interest of another shape
    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    if interest is None:
        interest = behaviour_weighting(mdp, behaviour, weighting)
    elif tuple(interest.shape) != (mdp.num_states,):
        raise UsageError(f"{mdp.name}: interest has shape {tuple(interest.shape)}; it must be ({mdp.num_states},).")
    return _propagate(mdp, policy, interest)


def emphatic_gradient(
    mdp: FiniteMDP,
    behaviour: Tensor,
    policy_fn: PolicyFunction,
    theta: Tensor,
    weighting: Weighting = "stationary",
    interest: Tensor | None = None,
) -> Tensor:
    """The off-policy gradient by its theorem: states weighted by their emphasis; shape of theta.

    Equation:  grad J_beta = sum_s m[s] sum_a grad pi(a|s) Q[s, a], with m and Q held fixed
    Source:    Imani, Graves & White 2018, whose theorem it is; derived from V^pi = r_pi + gamma P_pi V^pi, so that
               grad V^pi = (I - gamma P_pi)^-1 sum_a grad pi(a|.) Q(., a), weighted by i.
    Verified:  tests/exact/test_finite_mdp.py::test_off_policy_gradients
    """
    policy = policy_fn(theta.detach())
    weight = emphasis(mdp, behaviour, policy, weighting, interest)
    return _weighted_gradient(weight, action_value(mdp, policy), policy_fn, theta)


# Conservative evaluation


def conservative_evaluation(
    mdp: FiniteMDP, policy: Tensor, behaviour: Tensor, mu: Tensor, weight: float, iterations: int | None = None
) -> Tensor:
    """(S, A) conservative action values that bound those of ``policy`` from below, state by state and action by action.

    Equation:  Q <- B^pi Q - weight mu / behaviour, iterated from 0, or its fixed point (iterations None)
    Source:    notes 2.1.1, first update; Kumar et al. 2020, Eq. 1 and Theorem 3.1. Nothing is penalised where the
               process is over.
    Args:      mdp: the true process or the empirical one; policy, behaviour, mu (S, A); weight in reward units
    Raises:    UsageError where mu chooses what behaviour never does; ValueError unless 0 <= weight < infinity
    Verified:  tests/exact/test_finite_mdp.py::test_conservative_iterations_reach_their_fixed_points,
               tests/exact/test_finite_mdp.py::test_conservative_weights_are_not_negative
    """
    _check_weight(mdp, weight)
    return _conservative(mdp, policy, weight * _density_ratio(mdp, mu, behaviour), iterations)


def conservative_evaluation_in_expectation(
    mdp: FiniteMDP, policy: Tensor, behaviour: Tensor, mu: Tensor, weight: float, iterations: int | None = None
) -> Tensor:
    """(S, A) less conservative action values, whose mean under ``policy`` bounds its value from below for mu = policy.

    Equation:  Q <- B^pi Q - weight (mu / behaviour - 1), iterated from 0, or its fixed point (iterations None)
    Source:    notes 2.1.1, second update; Kumar et al. 2020, Eq. 2 and Theorem 3.2.
    Args:      as for ``conservative_evaluation``
    Raises:    UsageError where mu chooses what behaviour never does; ValueError unless 0 <= weight < infinity
    Verified:  tests/exact/test_finite_mdp.py::test_conservative_iterations_reach_their_fixed_points,
               tests/exact/test_finite_mdp.py::test_conservative_weights_are_not_negative
    """
    _check_weight(mdp, weight)
    return _conservative(mdp, policy, weight * (_density_ratio(mdp, mu, behaviour) - 1.0), iterations)


def _check_weight(mdp: FiniteMDP, weight: float) -> None:
    if not 0.0 <= weight < math.inf:
        raise ValueError(
            f"{mdp.name}: weight is {weight}; it must be a number >= 0, since a negative one raises the values that it "
            "should bound (0 is no penalty)."
        )


def _conservative(mdp: FiniteMDP, policy: Tensor, penalty: Tensor, iterations: int | None) -> Tensor:
    reward = mdp.reward - torch.where(mdp.absorbing.unsqueeze(-1), 0.0, penalty)
    if iterations is None:
        value = _evaluate(mdp, policy, (policy * reward).sum(-1))
        return reward + mdp.gamma * mdp.transition @ value
    q = torch.zeros_like(reward)
    for _ in range(iterations):
        q = reward + mdp.gamma * mdp.transition @ (policy * q).sum(-1)
    return q


def _density_ratio(mdp: FiniteMDP, mu: Tensor, behaviour: Tensor) -> Tensor:
    _check_policy(mdp, mu, "mu")
    _check_policy(mdp, behaviour, "behaviour")
    missing = ((behaviour == 0.0) & (mu > 0.0) & ~mdp.absorbing.unsqueeze(-1)).nonzero().tolist()
    if missing:
        raise UsageError(
            f"{mdp.name}: the behaviour never takes action {missing[0][1]} in state {missing[0][0]}, but mu does, so "
            "the penalty mu / behaviour is infinite; give the behaviour full support."
        )
    return torch.where(behaviour > 0.0, mu / torch.where(behaviour > 0.0, behaviour, 1.0), 0.0)


def transition_counts(mdp: FiniteMDP, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """(S, A, S) how often each transition occurs in a dataset of int64 ``state``, ``action``, ``next_state`` (N,).

    Raises:    UsageError on different lengths, or states and actions that the process does not have
    Verified:  tests/exact/test_finite_mdp.py::test_empirical_model
    """
    size = len(state)
    for what, index, bound in (
        ("state", state, mdp.num_states),
        ("action", action, mdp.num_actions),
        ("next_state", next_state, mdp.num_states),
    ):
        if tuple(index.shape) != (size,):
            raise UsageError(f"{mdp.name}: {what} has shape {tuple(index.shape)}; all three must have shape ({size},).")
        if size and not 0 <= int(index.min()) <= int(index.max()) < bound:
            raise UsageError(
                f"{mdp.name}: {what} goes from {int(index.min())} to {int(index.max())}; "
                f"it must lie in 0 to {bound - 1}."
            )
    counts = torch.zeros_like(mdp.transition)
    return counts.index_put((state, action, next_state), torch.ones(size, dtype=F64), accumulate=True)


def empirical_model(mdp: FiniteMDP, counts: Tensor, reward: Tensor | None = None) -> tuple[FiniteMDP, Tensor]:
    """The process that a dataset suggests, and the behaviour policy (S, A) that it suggests.

    Equation:  P^[s, a, s'] = N(s, a, s') / N(s, a),  beta^(a|s) = N(s, a) / N(s)
    Source:    notes 2.1.1; Kumar et al. 2020, Section 3.1.
    Args:      counts (S, A, S); reward (S, A) mean observed rewards, or None where rewards are known.
               Absorbing states need no data: they and their reward of 0 are kept, with a uniform behaviour.
    Raises:    UsageError if some action of another state never occurs: the model knows nothing of it
    Verified:  tests/exact/test_finite_mdp.py::test_empirical_model
    """
    if counts.shape != mdp.transition.shape or bool((counts < 0).any()):
        raise UsageError(
            f"{mdp.name}: counts have shape {tuple(counts.shape)}; they must be numbers of transitions, at least 0, of "
            f"shape {tuple(mdp.transition.shape)}."
        )
    if reward is not None and reward.shape != mdp.reward.shape:
        raise UsageError(
            f"{mdp.name}: reward has shape {tuple(reward.shape)}; it must be (states, actions) "
            f"{tuple(mdp.reward.shape)}."
        )
    absorbing = mdp.absorbing
    visits = counts.to(F64).sum(-1)
    missing = ((visits == 0.0) & ~absorbing.unsqueeze(-1)).nonzero().tolist()
    if missing:
        raise UsageError(
            f"{mdp.name}: action {missing[0][1]} never occurs in state {missing[0][0]} ({len(missing)} such pairs); an "
            "empirical model needs every action of every state at least once."
        )
    keep = absorbing[:, None, None]
    transition = torch.where(keep, mdp.transition, counts.to(F64) / visits.clamp(min=1.0).unsqueeze(-1))
    behaviour = torch.where(
        absorbing.unsqueeze(-1), _uniform(mdp), visits / visits.sum(-1, keepdim=True).clamp(min=1.0)
    )
    model = replace(
        mdp,
        transition=transition,
        reward=mdp.reward if reward is None else torch.where(absorbing.unsqueeze(-1), mdp.reward, reward),
        name=f"empirical model of {mdp.name}",
    )
    return model, behaviour
