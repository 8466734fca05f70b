"""Off-policy evaluation with features, solved by linear algebra in float64: fixed points, projected errors, updates.

A value function is v = features @ weights; ``features`` (S, F), those of absorbing states counting as 0. ``visits``
(S,) is how often each state is met: ``finite_mdp.behaviour_weighting`` (d^beta or p^beta), or the expected visits of
an episode. Everything is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.finite_mdp import FiniteMDP, policy_reward, policy_transition

F64 = torch.float64


class TDSystem(NamedTuple):
    """What TD(lambda) with linear features solves in the long run: E[delta e] = b - A theta."""

    A: Tensor  # (F, F) E[e (phi - gamma phi')']
    b: Tensor  # (F,) E[r e], reward units
    C: Tensor  # (F, F) E[phi phi']


def td_system(mdp: FiniteMDP, policy: Tensor, features: Tensor, visits: Tensor, trace_decay: float = 0.0) -> TDSystem:
    """The expected traces, errors and features of off-policy TD(lambda).

    Equation:  A = Phi' D (I - gamma lambda P_pi)^-1 (I - gamma P_pi) Phi,  b = Phi' D (I - gamma lambda P_pi)^-1 r_pi,
               C = Phi' D Phi,  D = diag(visits)
    Source:    Maei 2011; Tsitsiklis & Van Roy 1997.
    Raises:    UsageError on wrong shapes
    Verified:  tests/exact/test_gradient_td.py::test_system_equals_sums_over_steps
    """
    phi = _live_features(mdp, features)
    traced = phi.T @ _check_visits(mdp, visits).diag() @ _lambda_operator(mdp, policy, trace_decay)
    loss = phi - mdp.gamma * policy_transition(mdp, policy) @ phi
    return TDSystem(traced @ loss, traced @ policy_reward(mdp, policy), phi.T @ visits.diag() @ phi)


def fixed_point(system: TDSystem) -> Tensor:
    """(F,) the weights at which the expected update of TD(lambda), TDC and GTD2 is 0: the smallest, if there are many.

    Equation:  A theta = b
    Source:    Sutton et al. 2009.
    Verified:  tests/exact/test_gradient_td.py::test_fixed_points
    """
    return torch.linalg.pinv(system.A) @ system.b


def expected_td(system: TDSystem, weights: Tensor) -> Tensor:
    """(F,) E[delta e], where semi-gradient TD(lambda) moves.

    Verified:  tests/exact/test_gradient_td.py::test_system_equals_sums_over_steps
    """
    return system.b - system.A @ weights


def expected_tdc(system: TDSystem, weights: Tensor, auxiliary: Tensor) -> Tensor:
    """(F,) where TDC moves in expectation, GTD(lambda) for lambda > 0.

    Equation:  E[delta e] - gamma (1 - lambda) E[phi' e'] w = b - A theta - (C - A') w
    Source:    Sutton et al. 2009, Eq. 10; Maei 2011.
    Verified:  tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    return expected_td(system, weights) - (system.C - system.A.T) @ auxiliary


def expected_gtd2(system: TDSystem, auxiliary: Tensor) -> Tensor:
    """(F,) where GTD2 moves in expectation.

    Equation:  E[(phi - gamma phi') e'] w = A' w
    Source:    Sutton et al. 2009, Eq. 9.
    Verified:  tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    return system.A.T @ auxiliary


def expected_auxiliary(system: TDSystem, weights: Tensor, auxiliary: Tensor) -> Tensor:
    """(F,) where the auxiliary weights of both move in expectation.

    Equation:  b - A theta - C w
    Source:    Sutton et al. 2009, Eq. 8.
    Verified:  tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    return expected_td(system, weights) - system.C @ auxiliary


def settled_auxiliary(system: TDSystem, weights: Tensor) -> Tensor:
    """(F,) the auxiliary weights that no longer move: the smallest, if there are many.

    Equation:  C w = b - A theta
    Verified:  tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    return torch.linalg.pinv(system.C, hermitian=True) @ expected_td(system, weights)


def projected_bellman_error(system: TDSystem, weights: Tensor) -> Tensor:
    """MSPBE, a scalar in reward units squared; its root is the RMSPBE.

    Equation:  |Pi (T^lambda v - v)|^2_D = E[delta e]' C^-1 E[delta e]
    Source:    Sutton et al. 2009.
    Verified:  tests/exact/test_gradient_td.py::test_projected_error_by_its_definition
    """
    return expected_td(system, weights) @ settled_auxiliary(system, weights)


def smooth_projected_bellman_error(
    mdp: FiniteMDP,
    policy: Tensor,
    value_function: Callable[[Tensor], Tensor],
    weights: Tensor,
    visits: Tensor,
    trace_decay: float = 0.0,
) -> Tensor:
    """MSPBE of a value function that is smooth in its weights: projected onto its tangent space. Differentiable.

    Equation:  E[delta e]' C^-1 E[delta e] with phi(s) = grad V(s), everything at the same weights
    Source:    Bhatnagar et al. 2009.
    Args:      value_function: from weights (F,) to values (S,), differentiable twice; visits (S,)
    Verified:  tests/exact/test_gradient_td.py::test_directions_of_a_smooth_value_function
    """
    phi = torch.autograd.functional.jacobian(value_function, weights, create_graph=True)
    phi = _live_features(mdp, phi)
    value = torch.where(mdp.absorbing, 0.0, value_function(weights))
    delta = policy_reward(mdp, policy) + mdp.gamma * policy_transition(mdp, policy) @ value - value
    weighted = phi.T @ _check_visits(mdp, visits).diag()
    error = weighted @ _lambda_operator(mdp, policy, trace_decay) @ delta
    return error @ torch.linalg.solve(weighted @ phi, error)


def lambda_action_advantage(mdp: FiniteMDP, policy: Tensor, value: Tensor, trace_decay: float) -> Tensor:
    """(S, A) the expected lambda-return from an action on, less the value: what a traced TD error sums to.

    Equation:  r(s, a) + gamma sum_s' P(s'|s, a) (v(s') + lambda x(s')) - v(s),
               x = (I - gamma lambda P_pi)^-1 (r_pi + gamma P_pi v - v)
    Source:    Degris, White & Sutton 2012, the forward view of their actor.
    Args:      value (S,) any, counted as 0 where the process is over; trace_decay in [0, 1]
    Verified:  tests/exact/test_off_pac.py::test_lambda_action_advantage_spans_td_and_monte_carlo
    """
    v = torch.where(mdp.absorbing, 0.0, value)
    error = policy_reward(mdp, policy) + mdp.gamma * policy_transition(mdp, policy) @ v - v
    later = _lambda_operator(mdp, policy, trace_decay) @ error
    return mdp.reward + mdp.gamma * mdp.transition @ (v + trace_decay * later) - v.unsqueeze(-1)


def _lambda_operator(mdp: FiniteMDP, policy: Tensor, trace_decay: float) -> Tensor:
    """(S, S) (I - gamma lambda P_pi)^-1, over the states in which something is decided."""
    if not 0.0 <= trace_decay <= 1.0:
        raise UsageError(f"{mdp.name}: trace_decay is {trace_decay}; it must lie in [0, 1].")
    live = (~mdp.absorbing).to(F64)
    p = live.unsqueeze(-1) * policy_transition(mdp, policy) * live
    return torch.linalg.inv(torch.eye(mdp.num_states, dtype=F64) - mdp.gamma * trace_decay * p)


def _live_features(mdp: FiniteMDP, features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) != mdp.num_states:
        raise UsageError(
            f"{mdp.name}: features have shape {tuple(features.shape)}; they must be "
            f"({mdp.num_states} states, features)."
        )
    return torch.where(mdp.absorbing.unsqueeze(-1), 0.0, features)


def _check_visits(mdp: FiniteMDP, visits: Tensor) -> Tensor:
    if tuple(visits.shape) != (mdp.num_states,):
        raise UsageError(f"{mdp.name}: visits have shape {tuple(visits.shape)}; they must be ({mdp.num_states},).")
    return visits
