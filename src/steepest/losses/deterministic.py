"""Deterministic policy gradients with learned critics: DDPG, TD3, and the target that they share with Q-learning."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.returns import td_error


def deterministic_policy_loss(q_value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A loss whose gradient is minus the deterministic policy gradient.

    Equation:  L = -Q(s, mu_theta(s));  its gradient is -grad mu(s) grad_a Q(s, a) at a = mu(s)
    Source:    notes 1.11, nos. 2, 3 and 8; Silver et al. 2014, Eq. 9; Lillicrap et al. 2016, Eq. 6.
    Args:      q_value (...) reward units, carries gradient through the action alone (the critic's parameters fixed)
    Returns:   (...) reward units
    Verified:  tests/exact/test_deterministic.py::test_policy_gradient_of_an_lqr
    """
    return -q_value


def q_learning_target(
    reward: Float[Tensor, "*#shape"],
    next_q_value: Float[Tensor, "*#shape"],
    terminated: Bool[Tensor, "*#shape"],
    gamma: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Target of a critic of the policy that picks the next action.

    Equation:  r + gamma (1 - terminated) Q(s', a'),  a' = mu(s') (DDPG, TD3) or the greedy action (DQN)
    Source:    notes 1.11, nos. 6 and 9, with the terminal case; Lillicrap et al. 2016, Eq. 5.
    Args:      reward (...), next_q_value (...) of a target network, reward units; gamma in [0, 1], or gamma^m after m
               steps; all detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_deterministic.py::test_the_critic_of_an_lqr_is_a_fixed_point
    """
    return td_error(reward, reward.new_zeros(()), next_q_value, terminated, gamma).detach()


def smoothed_action(
    action: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    noise_std: float | Tensor,
    noise_clip: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """The target policy's action, blurred, so that a critic cannot profit from a narrow peak.

    Equation:  clip(a + clip(std eps, -c, c), -1, 1),  eps ~ N(0, I)
    Source:    Fujimoto et al. 2018, Eq. 14 and Algorithm 1. Not in the notes.
    Args:      action (...) in [-1, 1]; noise (...) standard normal; noise_std, noise_clip > 0, in units of half the
               action's range
    Returns:   (...) in [-1, 1]
    Verified:  tests/exact/test_deterministic.py::test_smoothing_by_cases
    """
    clip = torch.as_tensor(noise_clip, dtype=action.dtype)  # a bare as_tensor would round a number to float32
    blur = torch.minimum(torch.maximum(noise_std * noise, -clip), clip)
    return (action + blur).clamp(-1.0, 1.0)
