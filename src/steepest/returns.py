"""Returns and advantages from time-major experience: TD errors, GAE, lambda-returns, n-step returns.

All take (T, ...) rewards and flags and (T+1, ...) values in the transition convention of ``types.Rollout``: value[t+1]
belongs to the true observation that followed step t, also where the episode ended there. Bootstrapping is cut by
``terminated`` alone; the recursion is cut by ``terminated`` or ``truncated``; a row with ``valid`` 0 decided nothing
and passes what comes after it through unchanged. Rewards and values share their unit; gamma and lambda have none.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.numerics import reverse_recurrence


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
    if value.shape[0] != reward.shape[0] + 1:
        raise ValueError(
            f"value has {value.shape[0]} rows for {reward.shape[0]} rewards; it needs one more than rewards"
        )
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

    Equation:  r_t / (s + epsilon),  s = deviation over the batch of R = sum_t r_t
    Source:    Ziegler et al. 2019 and later RLHF code scale rewards without moving their mean. Score and penalty are
               scaled as one, which leaves the optimum where it is; scaling the score alone would change kl_coef, and
               subtracting a mean per token would pay for length.
    Args:      reward (T, B) reward units, of token_rewards, zero where no token is decided; detached here
    Returns:   (T, B) without unit
    Verified:  tests/exact/test_rlhf.py::test_scaling_rewards
    """
    reward = reward.detach()
    return reward / (reward.sum(0).var(correction=0).sqrt() + epsilon)


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

    Equation:  A_i = (r_i - m) / (s + epsilon),  s^2 = 1/k sum_i (r_i - m)^2
    Source:    Shao et al. 2024 (GRPO), section 4.1.2. Not a policy gradient of the expected reward: groups of small
               deviation count for more (Liu et al. 2025). epsilon is far above the rounding of equal rewards.
    Args:      reward (..., k) reward units, k >= 2 independent samples; detached here
    Returns:   (..., k) without unit
    Raises:    ValueError for groups of one
    Verified:  tests/unit/test_returns.py::test_group_standardized_advantage
    """
    _group_size(reward)
    centred = reward.detach() - reward.detach().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + epsilon)


def _group_size(reward: Tensor) -> int:
    k = reward.shape[-1]
    if k < 2:
        raise ValueError(f"groups of {k} sample; a group is compared with itself and needs at least 2")
    return k
