"""Off-policy evaluation: what a target policy is worth, estimated from episodes of a behaviour policy.

Arrays are (..., E, T): E episodes of at most T steps, all starting at step 0, with ``valid`` False behind an episode's
last step. What stands in padded steps does not matter, NaN included. Log-probabilities are of the *logged* actions, in
nats; for continuous actions log-densities of the same variable. Where step T-1 or any other last step only ended the
recording (truncation), ``with_final_value`` adds the value of what was cut off; otherwise a last step is a termination.

Every estimator returns ``Contributions``: what each episode contributes to a sum of ratios. ``estimate`` adds them up,
and ``intervals`` resamples them, the same for all estimators.

Symbols: L the length of an episode, rho_t = pi(a_t|s_t) / beta(a_t|s_t), w_t = rho_0 ... rho_t, and w_t = w_{L-1} for
t >= L: what has ended keeps its weight, since nothing is decided there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Contributions(NamedTuple):
    """What every episode adds to the K ratios whose sum is the estimate.

    Estimators that are a mean over episodes have K = 1 and a denominator of 1: the numerator is the episode's estimate.
    """

    numerator: Float[Tensor, "*batch e k"]  # reward units
    denominator: Float[Tensor, "*batch e k"]


def estimate(contributions: Contributions, counts: Float[Tensor, "b e"] | None = None) -> Float[Tensor, "..."]:
    """Return the estimate from all episodes, or one for every row of counts.

    Equation:  sum_k (sum_i c_i numerator_ik) / (sum_i c_i denominator_ik),  c_i = 1 without counts
    Args:      contributions of E episodes; counts (B, E), how often each episode counts: B data sets drawn from these
    Returns:   (...) reward units, or (..., B) with counts; NaN where no episode that counts has a weight
    Verified:  tests/exact/test_off_policy_evaluation.py::test_counts_are_copies_of_episodes
    """
    numerator, denominator = totals(contributions, counts)
    found = (numerator / denominator).sum(-1)
    return found.squeeze(-1) if counts is None else found


def totals(
    contributions: Contributions, counts: Float[Tensor, "b e"] | None = None
) -> tuple[Float[Tensor, "... b k"], Float[Tensor, "... b k"]]:
    """Return the sums over episodes of numerators and denominators, (..., B, K) each; B = 1 without counts.

    Verified:  tests/exact/test_off_policy_evaluation.py::test_counts_are_copies_of_episodes
    """
    numerator, denominator = contributions
    if counts is None:
        counts = numerator.new_ones((1, numerator.shape[-2]))
    return counts @ numerator, counts @ denominator


def log_weights(
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
) -> Float[Tensor, "*batch e t"]:
    """Return the logarithm of the importance weight up to and with every step.

    Equation:  log w_t = sum_{k<=t} log pi(a_k|s_k) - log beta(a_k|s_k),  constant behind the episode's end
    Source:    Precup, Sutton & Singh 2000.
    Returns:   (..., E, T) nats; -inf from the first action on that the target policy never takes
    Raises:    ValueError where valid is not True up to an episode's end and False behind it, where the behaviour's
               log-probability of a logged action is not finite, or where the target's is NaN or +inf
    Verified:  tests/exact/test_off_policy_evaluation.py::test_weights_have_mean_one
    """
    return _log_ratios(log_prob_target, log_prob_behaviour, valid).cumsum(-1)


def _log_ratios(log_prob_target: Tensor, log_prob_behaviour: Tensor, valid: Tensor) -> Tensor:
    """(..., E, T) log rho_t, 0 behind the end."""
    if not bool(valid[..., 0].all()) or bool((valid[..., 1:] & ~valid[..., :-1]).any()):
        raise ValueError(
            "valid must be True from an episode's first step to its last one and False behind it; an episode is empty, "
            "or goes on after an invalid step. Give every episode a row of its own, padded at its end."
        )
    if not bool(torch.isfinite(log_prob_behaviour)[valid].all()):
        raise ValueError(
            "log_prob_behaviour is not finite at a valid step; the behaviour policy took every logged action, so each "
            "has a log-probability. Record it when acting."
        )
    if not bool((log_prob_target < torch.inf)[valid].all()):  # false for NaN too
        raise ValueError(
            "log_prob_target is NaN or +inf at a valid step; it must be a number, or -inf for an action never taken."
        )
    return torch.where(valid, log_prob_target - log_prob_behaviour, 0.0)


def effective_sample_size(log_weight: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch"]:
    """Return how many episodes of the target policy the weighted episodes are worth.

    Equation:  (sum_i w_i)^2 / sum_i w_i^2, between 1 and E
    Source:    Kong 1992; Owen 2013, Section 9.3.
    Args:      log_weight (..., E) nats, such as ``log_weights(...)[..., -1]``
    Returns:   (...) episodes; 0 where all weights are 0
    Verified:  tests/exact/test_off_policy_evaluation.py::test_effective_sample_size
    """
    weight = _scaled(log_weight, -1)
    return weight.sum(-1).square() / weight.square().sum(-1).clamp(min=torch.finfo(weight.dtype).tiny)


def _scaled(log_weight: Tensor, dim: int) -> Tensor:
    """Weights over the largest along an axis: exp of a long sum would overflow, and ratios do not see the scale."""
    largest = log_weight.amax(dim, keepdim=True)
    return (log_weight - torch.where(largest == -torch.inf, 0.0, largest)).exp()


def with_final_value(
    reward: Float[Tensor, "*batch e t"],
    final_value: Float[Tensor, "*batch e"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Float[Tensor, "*batch e t"]:
    """Return the rewards with the value of the observation at which the recording stopped added to the last one.

    Equation:  r_{L-1} + gamma V(s_L)
    Source:    the estimators' recursions at t = L, with V for what was not recorded.
    Args:      final_value (..., E), the target policy's value of s_L where the episode was truncated, 0 where it
               terminated
    Returns:   (..., E, T) reward units, for every estimator of this file
    Verified:  tests/exact/test_off_policy_evaluation.py::test_truncated_episodes_with_their_final_value
    """
    last = valid & ~torch.cat([valid[..., 1:], torch.zeros_like(valid[..., :1])], -1)
    return torch.where(last, reward + gamma * final_value.unsqueeze(-1), reward)


def trajectory_importance(
    reward: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Weight every return by the ratio of the trajectory's probabilities.

    Equation:  V^ = 1/E sum_i w_{L-1} sum_t gamma^t r_t
    Source:    Precup, Sutton & Singh 2000. Unbiased where beta takes every action that pi takes.
    Args:      reward (..., E, T) reward units; log-probabilities (..., E, T) nats; gamma in [0, 1]
    Returns:   Contributions with K = 1
    Raises:    ValueError as ``log_weights``, or unless gamma lies in [0, 1]
    Verified:  tests/exact/test_off_policy_evaluation.py::test_estimators_are_unbiased
    """
    weight = log_weights(log_prob_target, log_prob_behaviour, valid)[..., -1:].exp()
    return _mean_of(weight * discounted(reward, valid, gamma).sum(-1, keepdim=True))


def weighted_trajectory_importance(
    reward: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Average the returns with the trajectories' ratios as weights (self-normalised).

    Equation:  V^ = sum_i w_{L-1} (sum_t gamma^t r_t) / sum_i w_{L-1}
    Source:    Precup, Sutton & Singh 2000. Biased by O(1/E): one episode alone gives the behaviour's value;
               consistent. It never leaves the range of the returns.
    Args:      as ``trajectory_importance``
    Returns:   Contributions with K = 1
    Raises:    ValueError as ``trajectory_importance``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_bias_of_the_weighted_forms,
               tests/exact/test_off_policy_evaluation.py::test_weighted_forms_are_consistent
    """
    weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid)[..., -1:], -2)
    return Contributions(weight * discounted(reward, valid, gamma).sum(-1, keepdim=True), weight)


def per_decision_importance(
    reward: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Weight every reward by the ratios of the actions up to it, since later ones did not cause it.

    Equation:  V^ = 1/E sum_i sum_t gamma^t w_t r_t
    Source:    Precup, Sutton & Singh 2000. Unbiased where beta takes every action that pi takes.
    Args:      as ``trajectory_importance``
    Returns:   Contributions with K = 1
    Raises:    ValueError as ``trajectory_importance``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_estimators_are_unbiased,
               tests/exact/test_off_policy_evaluation.py::test_variances_by_recursion
    """
    weight = log_weights(log_prob_target, log_prob_behaviour, valid).exp()
    return _mean_of((weight * discounted(reward, valid, gamma)).sum(-1, keepdim=True))


def weighted_per_decision_importance(
    reward: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Average the rewards of every step with the weights up to it (self-normalised at each step).

    Equation:  V^ = sum_t gamma^t (sum_i w_t r_t) / sum_i w_t
    Source:    Thomas 2015 (CWPDIS). Every episode counts in every denominator, also those that have
               ended: E[w_t] = 1 holds over all of them. Biased by O(1/E), consistent.
    Args:      as ``trajectory_importance``
    Returns:   Contributions with K = T
    Raises:    ValueError as ``trajectory_importance``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_bias_of_the_weighted_forms,
               tests/exact/test_off_policy_evaluation.py::test_weighted_forms_are_consistent
    """
    weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid), -2)
    return Contributions(weight * discounted(reward, valid, gamma), weight)


def direct_method(initial_value: Float[Tensor, "*batch e"]) -> Contributions:
    """Average what a model of the target policy says of the first states.

    Equation:  V^ = 1/E sum_i V(s_0)
    Source:    Jiang & Li 2016. As biased as the model; its intervals do not contain the model's error.
    Args:      initial_value (..., E) = E_{a~pi} Q(s_0, a), over the policy's distribution, not its mode
    Returns:   Contributions with K = 1
    Verified:  tests/exact/test_off_policy_evaluation.py::test_estimators_are_unbiased
    """
    return _mean_of(initial_value.unsqueeze(-1))


def doubly_robust(
    reward: Float[Tensor, "*batch e t"],
    q_value: Float[Tensor, "*batch e t"],
    value: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Correct a model's value by the weighted errors of its Q, from the last step backwards.

    Equation:  D_t = V(s_t) + rho_t (r_t + gamma D_{t+1} - Q(s_t, a_t)),  D_L = 0;  V^ = 1/E sum_i D_0
    Source:    Jiang & Li 2016. Unbiased for every Q with V(s) = E_{a~pi} Q(s, a), if Q does not come from the same
               episodes; of all Q the exact one gives the least variance. Q = V = 0 is ``per_decision_importance``.
    Args:      q_value (..., E, T) of the logged actions; value (..., E, T) = E_{a~pi} Q(s_t, a), over the policy's
               distribution, not its mode; the rest as ``trajectory_importance``
    Returns:   Contributions with K = 1
    Raises:    ValueError as ``trajectory_importance``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_estimators_are_unbiased,
               tests/exact/test_off_policy_evaluation.py::test_variances_by_recursion,
               tests/exact/test_off_policy_evaluation.py::test_doubly_robust_without_noise_has_no_variance
    """
    _check_gamma(gamma)
    ratio = _log_ratios(log_prob_target, log_prob_behaviour, valid).exp()
    rest = torch.zeros_like(reward[..., 0])
    for t in reversed(range(reward.shape[-1])):
        error = reward[..., t] + gamma * rest - q_value[..., t]
        rest = torch.where(valid[..., t], value[..., t] + ratio[..., t] * error, 0.0)
    return _mean_of(rest.unsqueeze(-1))


def weighted_doubly_robust(
    reward: Float[Tensor, "*batch e t"],
    q_value: Float[Tensor, "*batch e t"],
    value: Float[Tensor, "*batch e t"],
    log_prob_target: Float[Tensor, "*batch e t"],
    log_prob_behaviour: Float[Tensor, "*batch e t"],
    valid: Bool[Tensor, "*batch e t"],
    gamma: float,
) -> Contributions:
    """Correct a model's value by the errors of its Q, averaged at every step with the weights up to it.

    Equation:  V^ = 1/E sum_i V(s_0) + sum_t gamma^t sum_i w_t (r_t + gamma V(s_{t+1}) - Q(s_t, a_t)) / sum_i w_t,
               V(s_L) = 0
    Source:    Thomas & Brunskill 2016, its terms gathered by weight. With 1/E for 1 / sum_i w_t it is
               ``doubly_robust``, forwards. Biased by O(1/E), consistent.
    Args:      as ``doubly_robust``
    Returns:   Contributions with K = T + 1
    Raises:    ValueError as ``trajectory_importance``
    Verified:  tests/exact/test_off_policy_evaluation.py::test_bias_of_the_weighted_forms,
               tests/exact/test_off_policy_evaluation.py::test_doubly_robust_forwards
    """
    weight = _scaled(log_weights(log_prob_target, log_prob_behaviour, valid), -2)
    beyond = torch.zeros_like(value[..., :1])
    following = torch.cat([torch.where(valid, value, 0.0)[..., 1:], beyond], -1)
    errors = weight * discounted(reward + gamma * following - q_value, valid, gamma)
    first = value[..., :1]
    return Contributions(torch.cat([first, errors], -1), torch.cat([torch.ones_like(first), weight], -1))


def discounted(
    x: Float[Tensor, "*batch e t"], valid: Bool[Tensor, "*batch e t"], gamma: float
) -> Float[Tensor, "*batch e t"]:
    """Return gamma^t x_t, 0 behind an episode's end.

    Raises:    ValueError unless gamma lies in [0, 1]
    Verified:  tests/exact/test_off_policy_evaluation.py::test_target_is_behaviour
    """
    _check_gamma(gamma)
    power = gamma ** torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return power * torch.where(valid, x, 0.0)


def _mean_of(per_episode: Float[Tensor, "*batch e 1"]) -> Contributions:
    return Contributions(per_episode, torch.ones_like(per_episode))


def _check_gamma(gamma: float) -> None:
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}; it must lie in [0, 1]")
