"""Conservative evaluation and models estimated from data, in finite MDPs."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.finite_mdp import F64, FiniteMDP, check_policy, evaluate, uniform

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
        value = evaluate(mdp, policy, (policy * reward).sum(-1))
        return reward + mdp.gamma * mdp.transition @ value
    q = torch.zeros_like(reward)
    for _ in range(iterations):
        q = reward + mdp.gamma * mdp.transition @ (policy * q).sum(-1)
    return q


def _density_ratio(mdp: FiniteMDP, mu: Tensor, behaviour: Tensor) -> Tensor:
    check_policy(mdp, mu, "mu")
    check_policy(mdp, behaviour, "behaviour")
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
    behaviour = torch.where(absorbing.unsqueeze(-1), uniform(mdp), visits / visits.sum(-1, keepdim=True).clamp(min=1.0))
    model = replace(
        mdp,
        transition=transition,
        reward=mdp.reward if reward is None else torch.where(absorbing.unsqueeze(-1), mdp.reward, reward),
        name=f"empirical model of {mdp.name}",
    )
    return model, behaviour
