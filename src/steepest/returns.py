"""Returns and advantages from time-major experience: TD errors, GAE, lambda-returns, n-step and whole returns,
V-trace.

All take (T, ...) rewards and flags and (T+1, ...) values in the transition convention of ``types.Rollout``: value[t+1]
belongs to the true observation that followed step t, also where the episode ended there. Bootstrapping is cut by
``terminated`` alone; the recursion is cut by ``terminated`` or ``truncated``; a row with ``valid`` 0 decided nothing
and passes what comes after it through unchanged. Rewards and values share their unit; gamma and lambda have none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.numerics import are_equal, forward_recurrence, reverse_recurrence


def td_error(
    reward: Float[Tensor, "*#shape"],
    value: Float[Tensor, "*#shape"],
    next_value: Float[Tensor, "*#shape"],
    terminated: Bool[Tensor, "*#shape"],
    gamma: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Temporal-difference error, bootstrapping unless the process ended.

    Equation:  delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
    Source:    notes 1.10 (delta^V), with the terminal case that the notes leave out (1.5).
    Args:      reward, value, next_value (...) reward units, all may carry gradient; terminated (...) bool
    Returns:   (...) reward units
    Verified:  tests/unit/test_returns.py::test_td_error_cases
    """
    return reward + gamma * torch.where(terminated, torch.zeros_like(next_value), next_value) - value


def generalized_advantage(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
    gae_lambda: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """Generalised advantage estimate, never across an episode's end.

    Equation:  A_t = delta_t + gamma lambda (1 - done_t) A_{t+1},  done = terminated or truncated, A_T = 0
    Source:    notes 1.10; Schulman et al. 2016, Eq. 16. Differences: explicit termination and truncation; rows that
               decided nothing (valid 0) pass A_{t+1} through.
    Args:      reward (T, ...), value (T+1, ...) reward units; flags (T, ...) bool; gamma, gae_lambda in [0, 1]
    Returns:   (T, ...) reward units; meaningless where valid is 0
    Verified:  tests/exact/test_returns.py::test_gae_equals_the_defining_sum
    """
    _require_one_row_more(reward, value)
    done = terminated | truncated
    delta = td_error(reward, value[:-1], value[1:], terminated, gamma)
    keep = (gamma * gae_lambda) * (~done).to(delta.dtype)
    weight = valid.to(delta.dtype)
    return reverse_recurrence(delta * weight, torch.where(valid, keep, torch.ones_like(keep)))


def lambda_return(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
    trace_decay: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """The lambda-return, target of a critic; 0 gives the one-step target, 1 the Monte-Carlo return.

    Equation:  G_t = r_t + gamma (1 - terminated_t) [ (1 - lambda_t) V(s_{t+1}) + lambda_t G_{t+1} ],
               lambda_t = 0 where the recording stops (truncation, or the last row)
    Source:    Sutton & Barto 2018, Eq. 12.20. G_t = A_t^GAE + V(s_t), which is how it is computed.
    Verified:  tests/exact/test_returns.py::test_lambda_return_recursion
    """
    advantage = generalized_advantage(reward, value, terminated, truncated, valid, gamma, trace_decay)
    return advantage + value[:-1]


def reward_to_go(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """Discounted sum of the rewards from step t to the end of the episode.

    Equation:  G_t = sum_{t'=t}^{T-1} gamma^{t'-t} r_{t'} (+ gamma^{T-t} V(s_T) where only the recording stops)
    Source:    notes 1.3, with the discount; pass zero values for a sum without bootstrap.
    Verified:  tests/exact/test_returns.py::test_reward_to_go_is_the_discounted_sum
    """
    return lambda_return(reward, value, terminated, truncated, valid, gamma, 1.0)


def steps_recorded(
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    dtype: torch.dtype,
) -> Float[Tensor, "t *shape"]:
    """Return how many steps of its episode the recording holds before step t: its step, where the episode began here.

    Verified:  tests/unit/test_returns.py::test_steps_recorded_against_a_loop
    """
    going_on = (~(valid & (terminated | truncated))).to(dtype)
    return _sum_before(valid.to(dtype), going_on)


def end_recorded(
    terminated: Bool[Tensor, "t *shape"], truncated: Bool[Tensor, "t *shape"], valid: Bool[Tensor, "t *shape"]
) -> Bool[Tensor, "t *shape"]:
    """Return whether the recording holds the end of the episode that step t belongs to.

    Returns:   (T, ...) bool; False where valid is 0
    Verified:  tests/unit/test_returns.py::test_end_recorded_against_a_loop
    """
    end = (valid & (terminated | truncated)).long()
    return valid & (end.flip(0).cumsum(0).flip(0) > 0)  # the first end at t or later is that of its own episode


def full_return(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """The return of the whole episode, the same at every step of it.

    Equation:  R(tau) = sum_{t=0}^{T-1} gamma^t r_t (+ gamma^T V(s_T) where only the recording stops)
    Source:    notes 1.2, with the discount. Differences: t counts from where the recording of the episode begins.
               Rewards before it are left out; by causality no action in the recording has changed them, so the mean of
               an estimator stays as it was. Seen from step t it is the past plus gamma^t times the reward-to-go: a sum
               without a power of gamma above 1, which stays accurate however long the episode is.
    Verified:  tests/exact/test_returns.py::test_full_return_is_the_same_at_every_step,
               tests/unit/test_returns.py::test_full_return_of_a_long_episode_in_single_precision
    """
    power = gamma ** steps_recorded(terminated, truncated, valid, reward.dtype)
    going_on = (~(valid & (terminated | truncated))).to(reward.dtype)
    past = _sum_before(power * reward * valid.to(reward.dtype), going_on)
    return past + power * reward_to_go(reward, value, terminated, truncated, valid, gamma)


def _sum_before(x: Float[Tensor, "t *shape"], going_on: Float[Tensor, "t *shape"]) -> Float[Tensor, "t *shape"]:
    """(T, ...) the sum of x over the rows before t, back to the last one after which nothing goes on."""
    none = torch.zeros_like(x[:1])
    return forward_recurrence(
        torch.cat([none, (x * going_on)[:-1]]), torch.cat([none, going_on[:-1]]), torch.zeros_like(x[0])
    )


def n_step_return(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
    n: int,
) -> Float[Tensor, "t *shape"]:
    """Rewards of n steps, then the value; fewer where the episode or the recording ends.

    Equation:  G_t^(n) = r_t + gamma (1 - terminated_t) G_{t+1}^(n-1),  G_t^(0) = V(s_t),
               with V(s_{t+1}) for G_{t+1}^(n-1) where the recording stops (truncation, or the last decided row)
    Source:    notes 1.10 (A^(k) + V), with termination; Sutton & Barto 2018, Eq. 7.1. n counts decided steps.
    Returns:   (T, ...) reward units; meaningless where valid is 0
    Raises:    ValueError if n < 1
    Verified:  tests/exact/test_returns.py::test_n_step_return_is_the_defining_sum,
               tests/unit/test_returns.py::test_n_step_runs_from_td_to_monte_carlo
    """
    return n_step_advantage(reward, value, terminated, truncated, valid, gamma, n) + value[:-1]


def n_step_advantage(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
    n: int,
) -> Float[Tensor, "t *shape"]:
    """Return the advantage of n steps over the value; n = 1 is the TD error.

    Equation:  A_t^(n) = G_t^(n) - V(s_t) = sum_{l<n} gamma^l delta_{t+l} within the episode
    Source:    notes 1.10 (A-hat^(n), with gamma^2 V(s_{t+2}) in A-hat^(2)); Mnih et al. 2016.
    Returns:   (T, ...) reward units; meaningless where valid is 0
    Raises:    ValueError if n < 1, or unless value has one row more than reward
    Verified:  tests/exact/test_returns.py::test_n_step_return_is_the_defining_sum,
               tests/exact/test_returns.py::test_undecided_rows_at_the_end_change_nothing
    """
    _require_one_row_more(reward, value)
    if n < 1:
        raise ValueError(f"n is {n}; an n-step return has at least 1 step")
    if n >= reward.shape[0]:  # no sum is cut short
        return generalized_advantage(reward, value, terminated, truncated, valid, gamma, 1.0)
    carry = gamma * (~(terminated | truncated)).to(reward.dtype)
    delta = td_error(reward, value[:-1], value[1:], terminated, gamma)
    # Decided rows first, in their order, so that n steps are n rows; the others follow, and add nothing.
    count = valid.long().cumsum(0)
    place = torch.where(valid, count, count[-1:] + (~valid).long().cumsum(0)) - 1
    x = torch.zeros_like(delta).scatter(0, place, torch.where(valid, delta, torch.zeros_like(delta)))
    c = torch.zeros_like(delta).scatter(0, place, carry)
    return _sum_of_steps(x, c, n).gather(0, place)


def _sum_of_steps(x: Float[Tensor, "t *shape"], c: Float[Tensor, "t *shape"], n: int) -> Float[Tensor, "t *shape"]:
    """(T, ...) x_t + c_t x_{t+1} + ... + c_t ... c_{t+n-2} x_{t+n-1}, by doubling: log2(n) array operations."""

    def ahead(y: Tensor, steps: int) -> Tensor:
        return torch.cat([y[steps:], torch.zeros_like(y[:steps])])

    total, product, summed = torch.zeros_like(x), torch.ones_like(x), 0  # of the first ``summed`` terms
    width = 1  # terms that x sums up, c multiplies
    while summed < n:
        if n & width:
            total = total + product * ahead(x, summed)
            product = product * ahead(c, summed)
            summed += width
        x, c = x + c * ahead(x, width), c * ahead(c, width)
        width *= 2
    return total


def differential_td_error(
    reward: Float[Tensor, "*#shape"],
    value: Float[Tensor, "*#shape"],
    next_value: Float[Tensor, "*#shape"],
    gain: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Temporal-difference error of a continuing problem: rewards count by what they are above the average.

    Equation:  delta_t = r_t - gain + v(s_{t+1}) - v(s_t)
    Source:    notes 1.8, by its definition of G_t. There is no discount, and nothing terminates.
    Args:      reward, value, next_value (...) reward units, all may carry gradient; gain, reward units per step
    Returns:   (...) reward units
    Verified:  tests/exact/test_returns.py::test_differential_error_has_mean_zero
    """
    return reward - gain + next_value - value


def differential_generalized_advantage(
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gain: float | Tensor,
    gae_lambda: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """Generalised advantage estimate of a continuing problem, never across the end of a recording.

    Equation:  A_t = delta_t + lambda (1 - truncated_t) A_{t+1},  delta_t = r_t - gain + v(s_{t+1}) - v(s_t),  A_T = 0
    Source:    notes 1.8 and 1.10; Ma et al. 2021, Zhang & Ross 2021. It is GAE of rewards less the gain at gamma = 1.
    Args:      reward (T, ...), value (T+1, ...) reward units; truncated, valid (T, ...) bool; gae_lambda in [0, 1]
    Returns:   (T, ...) reward units; meaningless where valid is 0
    Verified:  tests/exact/test_returns.py::test_differential_gae_equals_the_defining_sum,
               tests/unit/test_returns.py::test_differential_gae_is_gae_of_rewards_less_the_gain
    """
    _require_one_row_more(reward, value)
    delta = differential_td_error(reward, value[:-1], value[1:], gain) * valid.to(reward.dtype)
    factor = gae_lambda * (~truncated).to(delta.dtype)
    return reverse_recurrence(delta, torch.where(valid, factor, torch.ones_like(factor)))


def _require_one_row_more(reward: Tensor, value: Tensor) -> None:
    if value.shape[0] != reward.shape[0] + 1:
        raise ValueError(
            f"value has {value.shape[0]} rows for {reward.shape[0]} rewards; it needs one more than rewards"
        )


class VTrace(NamedTuple):
    """V-trace's estimates for every step, in reward units; see ``vtrace``."""

    target: Tensor  # (T, ...) v_t, for the value function
    q_value: Tensor  # (T, ...) q_t, of the action taken
    advantage: Tensor  # (T, ...) rho_t (q_t - V(s_t)), for the policy gradient


def vtrace(
    log_ratio: Float[Tensor, "t *shape"],
    reward: Float[Tensor, "t *shape"],
    value: Float[Tensor, "t_plus_1 *shape"],
    terminated: Bool[Tensor, "t *shape"],
    truncated: Bool[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    gamma: float | Tensor,
    trace_decay: float | Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> VTrace:
    """Value targets and advantages of a policy pi from what another policy mu did.

    Equation:  v_t - V(s_t) = rho_t delta_t + gamma c_t (1 - done_t) (v_{t+1} - V(s_{t+1})),
               rho_t = min(rho_bar, x_t),  c_t = lambda min(c_bar, x_t),  x_t = pi(a_t|s_t) / mu(a_t|s_t);
               q_t = r_t + gamma (1 - terminated_t) [ (1 - lambda_t) V(s_{t+1}) + lambda_t v_{t+1} ],
               lambda_t = 0 where the recording stops;  advantage_t = rho_t (q_t - V(s_t))
    Source:    Espeholt et al. 2018, Eq. 1, Remark 2 (lambda) and section 4.2 (q). Differences: lambda in q too, so
               that with x = 1 the target is the lambda-return and q - V is GAE; explicit termination and truncation;
               rows that decided nothing (valid 0) pass v_{t+1} - V(s_{t+1}) through. The target's fixed point is the
               value of pi_rho(a|s) ~ min(rho_bar mu(a|s), pi(a|s)), which is pi only for a large rho_bar; c_bar trades
               variance for speed and leaves the fixed point where it is.
    Args:      log_ratio (T, ...) nats, log pi - log mu of the action taken; reward (T, ...), value (T+1, ...) reward
               units, V of any policy; flags (T, ...) bool; gamma, trace_decay (lambda) in [0, 1]. All detached by the
               caller: a target is no function of what it is a target for
    Returns:   target, q_value and advantage, each (T, ...) reward units; meaningless where valid is 0
    Raises:    ValueError unless value has one row more than reward, and rho_bar >= c_bar > 0
    Verified:  tests/exact/test_vtrace.py::test_vtrace_equals_the_defining_sum,
               tests/exact/test_vtrace.py::test_the_fixed_point_is_the_clipped_policys_value
    """
    _require_one_row_more(reward, value)
    if not rho_bar >= c_bar > 0.0:
        raise ValueError(f"rho_bar is {rho_bar} and c_bar is {c_bar}; expected rho_bar >= c_bar > 0")
    ratio = torch.exp(log_ratio)
    rho = ratio.clamp(max=rho_bar)
    going_on = (~(terminated | truncated)).to(reward.dtype)
    here, following = value[:-1], value[1:]
    delta = td_error(reward, here, following, terminated, gamma)
    shrink = (gamma * trace_decay) * ratio.clamp(max=c_bar) * going_on
    weighted = torch.where(valid, rho * delta, torch.zeros_like(delta))
    correction = reverse_recurrence(weighted, torch.where(valid, shrink, torch.ones_like(shrink)))
    next_correction = torch.cat([correction[1:], torch.zeros_like(correction[:1])])
    advantage = delta + (gamma * trace_decay) * going_on * next_correction
    return VTrace(here + correction, here + advantage, rho * advantage)


def token_rewards(
    score: Float[Tensor, " *shape"],
    log_prob: Float[Tensor, "t *shape"],
    ref_log_prob: Float[Tensor, "t *shape"],
    valid: Bool[Tensor, "t *shape"],
    last: Bool[Tensor, "t *shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "t *shape"]:
    """The reward of every token of a response: the KL penalty on each, the response's score on the last one.

    Equation:  r_t = -kl_coef (log pi(y_t|x, y_<t) - log ref(y_t|x, y_<t)) + [t is last] r(x, y)
    Source:    notes 2.2.1, r(x, y) = r_phi(x, y) - beta (log pi - log ref), per token; summed over t it is that.
    Args:      score (...) reward units; log_prob, ref_log_prob (T, ...) nats; valid (T, ...) bool, the steps that
               decide a token of the response, last (T, ...) the last of them; kl_coef >= 0. All detached here: the
               gradient of the reward's own log pi has mean zero
    Returns:   (T, ...) reward units, zero where not valid
    Verified:  tests/exact/test_rlhf.py::test_token_rewards_are_the_exact_ones
    """
    penalty = -kl_coef * (log_prob - ref_log_prob).detach()
    reward = penalty + torch.where(last, score.detach().unsqueeze(0), torch.zeros_like(penalty))
    return torch.where(valid, reward, torch.zeros_like(reward))


def scaled_token_rewards(reward: Float[Tensor, "t b"], epsilon: float = 1e-4) -> Float[Tensor, "t b"]:
    """Rewards in units of the deviation of whole responses' rewards, with nothing subtracted.

    Equation:  r_t / (s + epsilon),  s = deviation over the batch of R = sum_t r_t; r_t where all R are equal, to
               rounding
    Source:    Ziegler et al. 2019 and later RLHF code scale rewards without moving their mean. Score and penalty are
               scaled as one, which leaves the optimum where it is; scaling the score alone would change kl_coef, and
               subtracting a mean per token would pay for length.
    Args:      reward (T, B) reward units, of token_rewards, zero where no token is decided; detached here
    Returns:   (T, B) without unit
    Verified:  tests/exact/test_rlhf.py::test_scaling_rewards,
               tests/unit/test_returns.py::test_equal_rewards_have_no_deviation
    """
    reward = reward.detach()
    total = reward.sum(0)
    scaled = reward / (total.var(correction=0).sqrt() + epsilon)
    return torch.where(are_equal(total.amin(), total.amax()), reward, scaled)


def leave_one_out_advantage(reward: Float[Tensor, "*shape group"]) -> Float[Tensor, "*shape group"]:
    """Each sample's reward less the mean of the other samples' of its group: unbiased, without a critic.

    Equation:  A_i = r_i - 1/(k - 1) sum_{j != i} r_j
    Source:    Kool, van Hoof & Welling 2019; Ahmadian et al. 2024 (RLOO), where a group is the responses to a prompt.
    Args:      reward (..., k) reward units, k >= 2 independent samples; detached here
    Returns:   (..., k) reward units
    Raises:    ValueError for groups of one
    Verified:  tests/exact/test_rlhf.py::test_rloo_gradient_over_all_groups
    """
    k = _group_size(reward)
    reward = reward.detach()
    return (reward - reward.mean(-1, keepdim=True)) * (k / (k - 1))


def group_standardized_advantage(
    reward: Float[Tensor, "*shape group"], epsilon: float = 1e-4
) -> Float[Tensor, "*shape group"]:
    """Each sample's reward less its group's mean, over its group's deviation.

    Equation:  A_i = (r_i - m) / (s + epsilon),  s^2 = 1/k sum_i (r_i - m)^2; 0 where all r_i are equal, to rounding
    Source:    Shao et al. 2024 (GRPO), section 4.1.2. Not a policy gradient of the expected reward: groups of small
               deviation count for more (Liu et al. 2025).
    Args:      reward (..., k) reward units, k >= 2 independent samples; detached here
    Returns:   (..., k) without unit
    Raises:    ValueError for groups of one
    Verified:  tests/unit/test_returns.py::test_group_standardized_advantage,
               tests/unit/test_returns.py::test_equal_rewards_have_no_deviation
    """
    _group_size(reward)
    reward = reward.detach()
    centred = reward - reward.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True).sqrt() + epsilon)
    equal = are_equal(reward.amin(-1, keepdim=True), reward.amax(-1, keepdim=True))
    return torch.where(equal, torch.zeros_like(reward), scaled)


def _group_size(reward: Tensor) -> int:
    k = reward.shape[-1]
    if k < 2:
        raise ValueError(f"groups of {k} sample; a group is compared with itself and needs at least 2")
    return k
