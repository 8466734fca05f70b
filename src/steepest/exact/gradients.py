"""Exact policy gradients of finite MDPs, on-policy and off-policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.exact.finite_mdp import (
    F64,
    FiniteMDP,
    PolicyFunction,
    Weighting,
    action_value,
    discounted_visits,
    expected_visits,
    objective,
    policy_transition,
    propagate,
    state_value,
)
from steepest.exact.gains import differential_action_value, gain, stationary_distribution

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
    return propagate(mdp, policy, interest)


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
