"""Conservative Q-learning: values of actions that the data does not show are pushed down, those that it shows up.

The penalty of a critic is ``weight (E_mu Q - E_beta Q)``: beta took the actions of the data, and mu seeks actions that
the critic values too highly. The choice of mu is the regulariser. Where it is the best response under an entropy or a
KL term, ``E_mu Q`` and its term together are a soft maximum of Q, and the gradient is that of ``E_mu Q`` with mu fixed.

Continuous actions are valued in units of half their range, in [-1, 1]^D. Densities are of these units, whatever the
bounds of the environment; in its own units a log-sum-exp would be larger by the constant sum_i log half_width_i, which
changes no gradient.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.distributions import masked_logits


def soft_maximum(
    q_value: Float[Tensor, "*#batch k"],
    log_prior: Float[Tensor, "*#batch k"] | None = None,
    action_mask: Bool[Tensor, "*#batch k"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Return the soft maximum of the values of all k actions.

    Equation:  CQL(H)    log sum_a exp Q(s, a)                = max_mu E_mu Q + H(mu)
               CQL(rho)  log sum_a rho(a|s) exp Q(s, a)       = max_mu E_mu Q - KL(mu || rho)
    Source:    notes 2.1.2; Kumar et al. 2020, section 3.2 and Appendix A.
    Args:      q_value (..., k) reward units, carries gradient; log_prior (..., k) nats, log rho, or None for CQL(H);
               action_mask True where an action is legal
    Returns:   (...) reward units. Its gradient in Q is the maximising mu, in proportion to rho exp Q.
    Verified:  tests/exact/test_conservative.py::test_the_soft_maximum_is_the_best_response,
               tests/exact/test_conservative.py::test_its_gradient_is_the_maximising_policy
    """
    x = q_value if log_prior is None else q_value + log_prior
    return torch.logsumexp(x if action_mask is None else masked_logits(x, action_mask), -1)


def sampled_soft_maximum(
    q_value: Float[Tensor, "*#batch n"], log_ratio: Float[Tensor, "*#batch n"]
) -> Float[Tensor, "*batch"]:
    """Estimate the soft maximum over continuous actions from n proposals, weighted by importance.

    Equation:  log 1/n sum_i exp(Q(s, a_i) + log_ratio_i),  log_ratio = log prior(a_i|s) - log proposal(a_i|s):
               CQL(H)    -> log integral exp Q(s, a) da        prior 1 on [-1, 1]^D
               CQL(rho)  -> log E_rho exp Q(s, a)              prior rho; 0 where rho itself made the proposals
    Source:    notes 2.1.2; Kumar et al. 2020, Appendix F. Differences: the sum is averaged, and the density of uniform
               proposals is 2^-D of actions in [-1, 1]^D, so that the estimate is of the stated integral.
    Args:      q_value (..., n) reward units, carries gradient; log_ratio (..., n) nats; for proposals of several kinds
               see ``mixture_log_density``
    Returns:   (...) reward units; the mean of its exponential is unbiased
    Verified:  tests/exact/test_conservative.py::test_sampled_soft_maximum_is_the_integral,
               tests/exact/test_conservative.py::test_a_wrong_uniform_density_is_seen
    """
    return torch.logsumexp(q_value + log_ratio, -1) - math.log(q_value.shape[-1])


def mixture_log_density(log_density: Float[Tensor, "kinds *batch"]) -> Float[Tensor, "*batch"]:
    """Return the log-density of proposals that are drawn from several distributions, equally many from each.

    Equation:  log 1/k sum_j p_j(a)
    Source:    Veach & Guibas 1995, the balance heuristic. Kumar et al. 2020 divide each proposal by the density of its
               own kind. That is unbiased too, but has infinite variance for a policy squashed by tanh, whose density
               vanishes at the bounds; the mixture's is at least 1/k of the uniform one's.
    Args:      log_density (k, ...) nats, of every proposal under every one of the k distributions
    Returns:   (...) nats
    Verified:  tests/exact/test_conservative.py::test_sampled_soft_maximum_is_the_integral,
               tests/exact/test_conservative.py::test_densities_of_their_own_have_no_variance_to_speak_of
    """
    return torch.logsumexp(log_density, 0) - math.log(len(log_density))


def uniform_log_density(dimension: int) -> float:
    """Return the log-density of the uniform distribution over [-1, 1]^D.

    Equation:  -D log 2
    Verified:  tests/exact/test_conservative.py::test_sampled_soft_maximum_is_the_integral
    """
    return -dimension * math.log(2.0)


def conservative_gap(
    pushed_down: Float[Tensor, "*#shape"], data_q_value: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Return what a conservative critic minimises beside its error, per unit of the conservative weight.

    Equation:  R = E_mu Q(s, .) - Q(s, a),  a of the data
    Source:    notes 2.1.1, second update, and 2.1.2; Kumar et al. 2020, sections 3.1 and 3.2. Without the second term
               it is the first update.
    Args:      pushed_down (...): a soft maximum, or the mean of Q under any mu with its weights detached; data_q_value
               (...) of the action that was taken; reward units, both carry gradient
    Returns:   (...) reward units; to be multiplied by the weight and added to 1/2 (Q - target)^2
    Verified:  tests/exact/test_conservative.py::test_fixed_points_of_both_bounds,
               tests/exact/test_conservative.py::test_weight_zero_is_the_base
    """
    return pushed_down - data_q_value


def best_response_value(
    q_value: Float[Tensor, "*#batch n"], probability: Float[Tensor, "*#batch n"]
) -> Float[Tensor, "*batch"]:
    """Return the mean of Q under a policy mu that is fixed: the part of any regulariser that carries gradient.

    Equation:  E_mu Q(s, .) = sum_a mu(a|s) Q(s, a), mu detached
    Source:    notes 2.1.2: by the envelope theorem max_mu E_mu Q + R(mu) has this gradient at the maximising mu, so a
               regulariser of one's own is one function from Q to mu.
    Args:      q_value (..., n) reward units, carries gradient; probability (..., n), detached here, sums to 1
    Returns:   (...) reward units
    Verified:  tests/exact/test_conservative.py::test_its_gradient_is_the_maximising_policy
    """
    return (probability.detach() * q_value).sum(-1)


def calibrated_q_value(
    q_value: Float[Tensor, "*#shape"], reference_value: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Return values that a calibrated critic pushes down: none below the value of a reference policy.

    Equation:  max(Q(s, a), V^ref(s)), V^ref by the return from s on of the data
    Source:    Nakamoto et al. 2023 (Cal-QL). Not in the notes.
    Args:      q_value (...) of actions that are not of the data, carries gradient where it is the larger;
               reference_value (...) detached here; reward units
    Returns:   (...) reward units
    Verified:  tests/exact/test_conservative.py::test_calibrated_values_stay_above_the_reference
    """
    return torch.maximum(q_value, reference_value.detach())


def conservative_weight_loss(
    log_weight: Float[Tensor, ""], gap: Float[Tensor, "*shape"], threshold: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Return a loss that raises the conservative weight while the gap exceeds the threshold, and lowers it below.

    Equation:  L = log(weight) (threshold - gap)
    Source:    Kumar et al. 2020, Appendix F (dual gradient descent), with log(weight) in the place of the
               weight: the same fixed point, and steps that do not shrink with the weight.
    Args:      log_weight () carries gradient; gap (...) as ``conservative_gap``, detached here; threshold; reward units
    Returns:   (...) reward units
    Verified:  tests/exact/test_conservative.py::test_the_weight_rises_while_the_gap_exceeds_its_threshold
    """
    return log_weight * (threshold - gap).detach()
