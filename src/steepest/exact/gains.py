"""Average rewards of finite MDPs: recurrent classes, stationary distributions, gains and differential values."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.finite_mdp import F64, FiniteMDP, policy_reward, policy_transition, reachable, states


def recurrent_classes(transition: Tensor) -> list[list[int]]:
    """The closed communicating classes of a chain (S, S), each a sorted list of states.

    Verified:  tests/exact/test_finite_mdp.py::test_multichains_are_refused
    """
    reach = reachable(transition)
    returns = ~(reach & ~reach.T).any(1)  # whatever is reached leads back
    classes = {tuple((reach[s] & reach[:, s]).nonzero().flatten().tolist()) for s in returns.nonzero().flatten()}
    return [list(c) for c in sorted(classes)]


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
        named = "; ".join(states(c) for c in classes[:6]) + ("; ..." if len(classes) > 6 else "")
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


def cesaro_limit(p: Tensor) -> Tensor:
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
