"""The compatible critic of deterministic policies, on linear-quadratic control (notes 1.11)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steepest.exact import lqr, lqr_gradients
from steepest.losses import compatible
from steepest.verification.random_problems import Control, control
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

_ACTION = "losses.compatible.compatible_action_gradient"
_COMPATIBLE_FEATURE = "losses.compatible.compatible_feature"
_DIRECTION = "losses.compatible.deterministic_policy_direction"


class Visits(NamedTuple):
    """States with weights whose second moment is that of the states the policy visits, and the policy there."""

    state: Tensor  # (n, n)
    weight: Tensor  # (n,)
    mean: Tensor  # (n, m)
    jacobian: Tensor  # (n, m, k) d mu / d theta


def directions_of(c: Control) -> Tensor:
    """(2, m, n) D_i = dK / d theta_i: two directions of six, so that the critic cannot fit grad_a Q everywhere."""
    return torch.stack([c.other, c.feedback])


def visits_of(c: Control) -> Visits:
    """Everything averaged here is quadratic in the state, so that the second moment is all that counts."""
    states = torch.linalg.cholesky(lqr.second_moment(c.problem, c.feedback)).mT
    jacobian = torch.einsum("kmn,jn->jmk", directions_of(c), states)
    return Visits(states, torch.ones(len(states), dtype=F64), states @ c.feedback.mT, jacobian)


@rows.equality("1.11", "E[grad mu grad_a Q], Q exact", control, tested=_DIRECTION)
@rows.equality("1.11", "COPDAC's actor with the fitted compatible critic", control, tested=_ACTION, critic="fitted")
@rows.control("1.11", "a fitted critic of other features", control, tested=_DIRECTION, critic="other features")
def deterministic_actor(c: Control, critic: str = "exact") -> Sides:
    """E_{p^mu}[grad mu grad_a Q] is the gradient with the exact grad_a Q, and with the compatible critic that fits it.

    The left is the expected update of COPDAC's actor. Negative control: a critic as large, fitted as well, whose
    features are not grad mu.
    """
    v = visits_of(c)
    slope = v.state @ lqr_gradients.action_gradient(c.problem, c.feedback).mT
    if critic == "fitted":
        w = lqr_gradients.compatible_weights(c.problem, c.feedback, directions_of(c))
        slope = compatible.compatible_action_gradient(v.jacobian, w)
    elif critic == "other features":
        others = torch.stack([c.other.flip(1), c.feedback.flip(0)])
        features = torch.einsum("kmn,jn->jmk", others, v.state)
        w = torch.linalg.lstsq(features.flatten(0, 1), slope.flatten()).solution
        slope = compatible.compatible_action_gradient(features, w)
    exact = gradient(lambda k: lqr.objective(c.problem, k), c.feedback)
    found = v.weight @ compatible.deterministic_policy_direction(v.jacobian, slope)
    return Sides(found, torch.einsum("kmn,mn->k", directions_of(c), exact))


@rows.equality("1.11", "compatible features: slope J w, 0 at mu(s)", control, tested=_COMPATIBLE_FEATURE)
def compatible_features(c: Control) -> Sides:
    """phi(s, a) . w has the slope J w in the action, and is 0 at a = mu(s)."""
    v, w = visits_of(c), c.problem.initial_mean[:2] + 1.0

    def advantage(action: Tensor) -> Tensor:
        return compatible.compatible_feature(action, v.mean, v.jacobian) @ w

    at = v.mean + 1.0
    left = torch.cat([gradient(lambda a: advantage(a).sum(), at), advantage(v.mean).unsqueeze(-1)], -1)
    slope = torch.einsum("nmk,k->nm", v.jacobian, w)
    return Sides(left, torch.cat([slope, torch.zeros(len(slope), 1, dtype=F64)], -1))
