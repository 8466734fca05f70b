"""Off-policy learning from traces: gradient temporal differences, emphatic weightings.

These are directions to add to weights rather than losses: their expectation is (minus half) the gradient of a projected
error that no single sample has, so that there is nothing to differentiate. Everything is per step, over any leading
axes (environments), with the weights' axis last; nothing carries gradient.

``ratio`` is rho_t = pi(a_t|s_t) / beta(a_t|s_t). A ``feature`` is phi(s_t), or the gradient of V(s_t) in the weights of
a network, which is the same thing for a linear V. Where the process ended, the next feature counts as 0; where only
the recording ended, the value of what followed is bootstrapped in full, as in ``returns.lambda_return``.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def eligibility_trace(
    trace: Float[Tensor, "*batch f"],
    feature: Float[Tensor, "*batch f"],
    ratio: Float[Tensor, "*batch"],
    start: Bool[Tensor, "*batch"],
    gamma: float | Tensor,
    trace_decay: float | Tensor,
) -> Float[Tensor, "*batch f"]:
    """The accumulating trace of what past steps have to do with this step's error; begins anew with every episode.

    Equation:  e_t = rho_t (phi_t + gamma lambda (1 - start_t) e_{t-1})
    Source:    Maei 2011; Degris, White & Sutton 2012, Algorithm 1 (with grad log pi for phi: the actor's).
    Args:      trace e_{t-1} (..., F); feature (..., F), times gamma^t where states are weighted by p^beta; ratio (...);
               start (...) bool: the episode's first step; gamma, trace_decay in [0, 1]
    Returns:   (..., F)
    Verified:  tests/exact/test_gradient_td.py::test_traces_equal_the_forward_view,
               tests/exact/test_gradient_td.py::test_episode_ends_cut_traces
    """
    carried = torch.where(start.unsqueeze(-1), torch.zeros_like(trace), trace)
    return ratio.unsqueeze(-1) * (feature + gamma * trace_decay * carried)


def tdc_direction(
    delta: Float[Tensor, "*batch"],
    trace: Float[Tensor, "*batch f"],
    next_feature: Float[Tensor, "*batch f"],
    auxiliary: Float[Tensor, " f"],
    terminated: Bool[Tensor, "*batch"],
    truncated: Bool[Tensor, "*batch"],
    gamma: float | Tensor,
    trace_decay: float | Tensor,
) -> Float[Tensor, "*batch f"]:
    """Return the direction of TD with gradient correction: GTD(lambda), and TDC at lambda = 0.

    Equation:  delta_t e_t - gamma (1 - terminated_t) (1 - lambda_{t+1}) (e_t . w) phi_{t+1},
               lambda_{t+1} = lambda, or 0 where the episode is truncated
    Source:    Maei 2011 (GTD(lambda)); Sutton et al. 2009, Eq. 10 (TDC, where e_t = rho_t phi_t).
               Differences: termination and truncation are explicit.
    Args:      delta (...) from ``returns.td_error``, reward units; trace e_t (..., F); next_feature (..., F);
               auxiliary w (F,), see ``auxiliary_direction``; terminated, truncated (...) bool
    Returns:   (..., F); at the w that ``auxiliary_direction`` settles at, -1/2 grad MSPBE in expectation
    Verified:  tests/exact/test_gradient_td.py::test_expected_directions,
               tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    ended = terminated.to(trace.dtype)
    remaining = 1.0 - trace_decay * (~truncated).to(trace.dtype)
    correction = gamma * (1.0 - ended) * remaining * (trace @ auxiliary)
    return delta.unsqueeze(-1) * trace - correction.unsqueeze(-1) * next_feature


def gtd2_direction(
    trace: Float[Tensor, "*batch f"],
    feature: Float[Tensor, "*batch f"],
    next_feature: Float[Tensor, "*batch f"],
    auxiliary: Float[Tensor, " f"],
    terminated: Bool[Tensor, "*batch"],
    gamma: float | Tensor,
) -> Float[Tensor, "*batch f"]:
    """Return the direction of GTD2; with lambda > 0 in the trace, its extension to lambda-returns.

    Equation:  (phi_t - gamma (1 - terminated_t) phi_{t+1}) (e_t . w)
    Source:    Sutton et al. 2009, Eq. 9, where e_t = rho_t phi_t.
    Args:      as ``tdc_direction``; feature (..., F)
    Returns:   (..., F); at the w that ``auxiliary_direction`` settles at, -1/2 grad MSPBE in expectation
    Verified:  tests/exact/test_gradient_td.py::test_expected_directions,
               tests/exact/test_gradient_td.py::test_directions_are_the_gradient_of_the_projected_error
    """
    discount = gamma * (1.0 - terminated.to(trace.dtype))
    return (trace @ auxiliary).unsqueeze(-1) * (feature - discount.unsqueeze(-1) * next_feature)


def auxiliary_direction(
    delta: Float[Tensor, "*batch"],
    trace: Float[Tensor, "*batch f"],
    feature: Float[Tensor, "*batch f"],
    auxiliary: Float[Tensor, " f"],
) -> Float[Tensor, "*batch f"]:
    """Return the direction of the auxiliary weights: a regression of the traced TD error on the features.

    Equation:  delta_t e_t - (phi_t . w) phi_t;  at rest w = E[phi phi']^-1 E[delta e]
    Source:    Sutton et al. 2009, Eq. 8; Maei 2011.
    Args:      as ``tdc_direction``; feature (..., F)
    Returns:   (..., F)
    Verified:  tests/exact/test_gradient_td.py::test_expected_directions
    """
    return delta.unsqueeze(-1) * trace - (feature @ auxiliary).unsqueeze(-1) * feature


def curvature_direction(
    delta: Float[Tensor, "*batch"],
    projection: Float[Tensor, "*batch"],
    curvature: Float[Tensor, "*batch f"],
    curvature_trace: Float[Tensor, "*batch f"],
) -> Float[Tensor, "*batch f"]:
    """Return what a value function not linear in its weights adds to ``gtd2_direction`` or ``tdc_direction``.

    Equation:  (phi_t . w) H_t w - delta_t c_t,  H_t = grad^2 V(s_t),  c_t the ``eligibility_trace`` of H_t w
    Source:    Bhatnagar et al. 2009 (minus their h, at lambda = 0, where c_t = rho_t H_t w). Differences: with
               the trace of H w it is the gradient for every lambda, while w is held fixed.
    Args:      delta (...) reward units; projection phi_t . w (...); curvature H_t w (..., F), a Hessian-vector product;
               curvature_trace c_t (..., F)
    Returns:   (..., F), 0 for a linear V
    Verified:  tests/exact/test_gradient_td.py::test_directions_of_a_smooth_value_function
    """
    return projection.unsqueeze(-1) * curvature - delta.unsqueeze(-1) * curvature_trace


def followon_trace(
    trace: Float[Tensor, "*batch"],
    previous_ratio: Float[Tensor, "*batch"],
    interest: Float[Tensor, "*batch"],
    start: Bool[Tensor, "*batch"],
    gamma: float | Tensor,
) -> Float[Tensor, "*batch"]:
    """Return the follow-on trace: how much values at earlier states of the episode depend on this one.

    Equation:  F_t = gamma rho_{t-1} (1 - start_t) F_{t-1} + i_t
    Source:    Imani, Graves & White 2018; Sutton, Mahmood & White 2016.
    Args:      trace F_{t-1} (...); previous_ratio rho_{t-1} (...); interest (...): 1 where states count as often as
               they are met (d^beta), gamma^t for the discounted weighting p^beta of the notes; start (...) bool
    Returns:   (...); its sum over the visits to a state has the mean m = (I - gamma P_pi')^-1 i
    Verified:  tests/exact/test_off_pac.py::test_followon_trace_gathers_the_emphasis
    """
    carried = torch.where(start, torch.zeros_like(trace), trace)
    return gamma * previous_ratio * carried + interest


def emphatic_weight(
    followon: Float[Tensor, "*batch"], interest: Float[Tensor, "*batch"], emphasis_decay: float | Tensor
) -> Float[Tensor, "*batch"]:
    """The weight of a step in the off-policy policy gradient, between Off-PAC's and the true one.

    Equation:  M_t = (1 - lambda_a) i_t + lambda_a F_t
    Source:    Imani, Graves & White 2018: lambda_a = 0 is Off-PAC, 1 the true gradient.
    Args:      followon F_t (...); interest i_t (...); emphasis_decay lambda_a in [0, 1]
    Returns:   (...)
    Verified:  tests/exact/test_off_pac.py::test_emphatic_weight_spans_off_pac_and_the_gradient
    """
    return (1.0 - emphasis_decay) * interest + emphasis_decay * followon
