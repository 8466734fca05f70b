"""Optimal policies of finite MDPs: discounted, of the average reward, and soft."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.exact.finite_mdp import (
    F64,
    FiniteMDP,
    action_value,
    evaluate,
    policy_reward,
    policy_transition,
    state_value,
    uniform,
)
from steepest.exact.gains import cesaro_limit

ITERATIONS = 1_000_000
"""Where an iteration that should converge is given up."""

POLICY_ITERATIONS = 1_000
"""The same for policy iteration, which needs a handful."""


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
    policy = _greedy(action_value(mdp, uniform(mdp)))
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
        limit = cesaro_limit(p)
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
    return evaluate(mdp, policy, policy_reward(mdp, policy) + temperature * entropy)


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


def _greedy(q: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).to(F64)


def _rounding(value: Tensor) -> float:
    """A few units in the last place of the largest entry."""
    return 4 * torch.finfo(F64).eps * max(1.0, float(value.detach().abs().max()))


def _diverged(mdp: FiniteMDP, what: str, iterations: int) -> RunError:
    return RunError(f"{mdp.name}: {what} has not converged after {iterations} iterations (gamma is {mdp.gamma}).")
