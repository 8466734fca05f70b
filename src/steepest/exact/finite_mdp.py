"""Finite decision processes solved by linear algebra, in float64: values, visits, gains, gradients, fixed points.

A policy is a row-stochastic float64 tensor ``policy`` (S, A). What is marked *differentiable* carries gradient to it.
Rewards are in reward units, values in reward units (discounted), gamma and probabilities have none.

Absorbing states (every action stays and pays nothing) are where an episode is over: their value is 0, nothing is
decided there. gamma = 1 is allowed, and the discounted functions then ask that the given policy surely terminates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.problems import Problem

F64 = torch.float64
PolicyFunction = Callable[[Tensor], Tensor]
"""From parameters to a policy (S, A), differentiable: for instance ``softmax_policy``."""
Weighting = Literal["stationary", "discounted"]

TOLERANCE = 1e-12
"""How far a sum of probabilities may be from 1, times the number of terms."""


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


def check_policy(mdp: FiniteMDP, policy: Tensor, what: str = "policy") -> None:
    """Raise UsageError unless the policy is a table (S, A) of float64 probabilities."""
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
    check_policy(mdp, policy)
    return torch.einsum("sa,sat->st", policy, mdp.transition)


def policy_reward(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) expected reward of one step under a policy; differentiable.

    Equation:  r_pi[s] = sum_a pi(a|s) r[s, a]
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    check_policy(mdp, policy)
    return (policy * mdp.reward).sum(-1)


# Discounted values and visits


def state_value(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """(S,) discounted values; differentiable.

    Equation:  V = r_pi + gamma P_pi V, and V = 0 where the process is over
    Source:    notes 1.1.
    Raises:    UsageError where gamma = 1 and the policy does not surely terminate
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    return evaluate(mdp, policy, policy_reward(mdp, policy))


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
    return propagate(mdp, policy, mdp.initial)


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


def evaluate(mdp: FiniteMDP, policy: Tensor, reward: Tensor) -> Tensor:
    """(S,) the discounted sum of ``reward`` (S,) until absorption."""
    live = live_states(mdp, policy)
    p = policy_transition(mdp, policy)[live][:, live]
    solved = torch.linalg.solve(torch.eye(len(live), dtype=F64) - mdp.gamma * p, reward[live])
    return torch.zeros(mdp.num_states, dtype=F64).index_put((live,), solved)


def propagate(mdp: FiniteMDP, policy: Tensor, start: Tensor) -> Tensor:
    """(S,) m = start + gamma P_pi^T m, over all states at gamma < 1 and over the live ones at gamma = 1."""
    states = live_states(mdp, policy) if mdp.gamma == 1.0 else torch.arange(mdp.num_states)
    p = policy_transition(mdp, policy)[states][:, states]
    solved = torch.linalg.solve((torch.eye(len(states), dtype=F64) - mdp.gamma * p).T, start[states])
    return torch.zeros(mdp.num_states, dtype=F64).index_put((states,), solved)


def live_states(mdp: FiniteMDP, policy: Tensor) -> Tensor:
    """Indices of the states that are not absorbing; at gamma = 1 each must surely lead to one that is."""
    absorbing = mdp.absorbing
    if mdp.gamma == 1.0:
        reach = reachable(policy_transition(mdp, policy))
        stuck = (~reach[:, absorbing].any(1)).nonzero().flatten().tolist()
        if stuck:
            raise UsageError(
                f"{mdp.name}: gamma is 1, but under this policy the process never ends from {states(stuck)}. "
                "Use gamma < 1, a policy that surely terminates, or the average-reward functions (gain)."
            )
    return (~absorbing).nonzero().flatten()


# Chains


def reachable(transition: Tensor) -> Tensor:
    """(S, S) bool: whether a chain leads from row to column with positive probability, in any number of steps."""
    reach = (transition.detach() > 0.0) | torch.eye(len(transition), dtype=torch.bool)
    while True:
        further = (reach.to(F64) @ reach.to(F64)) > 0.0
        if torch.equal(further, reach):
            return reach
        reach = further


def states(states: list[int]) -> str:
    """Return a list of states in words."""
    shown = ", ".join(map(str, states[:8])) + (", ..." if len(states) > 8 else "")
    return f"state{'s' if len(states) > 1 else ''} {shown}"


def uniform(mdp: FiniteMDP) -> Tensor:
    """Return the policy that takes all actions with the same probability, (S, A)."""
    return torch.full((mdp.num_states, mdp.num_actions), 1.0 / mdp.num_actions, dtype=F64)


# Trajectories


Trajectory = tuple[float, tuple[int, ...], tuple[int, ...], tuple[float, ...]]
"""Its probability, states, actions and expected rewards."""


def trajectories(mdp: FiniteMDP, policy: Tensor, horizon: int) -> Iterator[Trajectory]:
    """Every trajectory of positive probability, up to absorption or to ``horizon`` actions.

    Equation:  P(tau) = initial[s_0] prod_t pi(a_t|s_t) P[s_t, a_t, s_{t+1}]
    Source:    notes 1.1.
    Returns:   (probability, states of length k+1, actions of length k, expected rewards of length k) each
    Raises:    UsageError if horizon < 0
    Verified:  tests/exact/test_finite_mdp.py::test_enumeration_equals_the_linear_solves
    """
    check_policy(mdp, policy)
    if horizon < 0:
        raise UsageError(f"horizon is {horizon}; it must be a number of actions, at least 0.")
    absorbing: list[bool] = mdp.absorbing.tolist()
    pi: list[list[float]] = policy.detach().tolist()
    rewards: list[list[float]] = mdp.reward.tolist()
    outcomes = [
        [[(t, p) for t, p in enumerate(row) if p > 0.0] for row in by_action] for by_action in mdp.transition.tolist()
    ]

    def follow() -> Iterator[Trajectory]:
        open_ends: list[Trajectory] = [(p, (s,), (), ()) for s, p in enumerate(mdp.initial.tolist()) if p > 0.0]
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

    return follow()
