"""Q-learning where all actions can be listed: the value of the one taken, and the two targets of DQN.

The error to a target is counted by ``value_loss`` or ``huber_loss``. A mask is True where an action is legal; illegal
actions are never the greedy one.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from steepest.distributions import masked_logits
from steepest.losses.deterministic import q_learning_target


def chosen_q_value(q_value: Float[Tensor, "*#shape k"], action: Int[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """The value of the action that was taken, out of those of all k.

    Equation:  Q(s, a)
    Source:    notes 1.11, nos. 6 and 9, with the actions listed.
    Args:      q_value (..., k) reward units, carries gradient, to the entry that is chosen; action (...) in [0, k),
               may lack leading axes of q_value, such as that of several critics
    Returns:   (...) reward units
    Verified:  tests/exact/test_q_learning.py::test_the_semi_gradient_by_hand
    """
    return q_value.gather(-1, action.expand(q_value.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def dqn_target(
    reward: Float[Tensor, "*#shape"],
    next_q_value: Float[Tensor, "*#shape k"],
    terminated: Bool[Tensor, "*#shape"],
    gamma: float | Tensor,
    action_mask: Bool[Tensor, "*#shape k"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Target of DQN: the next state is worth what the target network's best action is.

    Equation:  r + gamma (1 - terminated) max_a Q'(s', a) over the legal actions
    Source:    Mnih et al. 2015, Algorithm 1; Watkins 1989. Not in the notes.
    Args:      reward (...); next_q_value (..., k) of the target network at the next state; reward units; gamma in
               [0, 1], or gamma^m after m steps; all detached here
    Returns:   (...) reward units. Errors in Q' push it up: a maximum over noise is no noise of mean 0.
    Verified:  tests/exact/test_q_learning.py::test_the_optimum_of_a_finite_mdp_is_a_fixed_point,
               tests/exact/test_q_learning.py::test_a_maximum_over_noise_is_too_high
    """
    return q_learning_target(reward, _legal(next_q_value, action_mask).amax(-1), terminated, gamma)


def double_dqn_target(
    reward: Float[Tensor, "*#shape"],
    next_q_value: Float[Tensor, "*#shape k"],
    online_next_q_value: Float[Tensor, "*#shape k"],
    terminated: Bool[Tensor, "*#shape"],
    gamma: float | Tensor,
    action_mask: Bool[Tensor, "*#shape k"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Target of double DQN: the learning network picks the next action, the target network says what it is worth.

    Equation:  r + gamma (1 - terminated) Q'(s', argmax_a Q(s', a)),  a legal
    Source:    van Hasselt, Guez & Silver 2016, Eq. 4 and "Double DQN". Not in the notes.
    Args:      reward (...); next_q_value (..., k) of the target network and online_next_q_value (..., k) of the
               learning one, at the next state; reward units; gamma in [0, 1], or gamma^m after m steps; all detached
               here
    Returns:   (...) reward units; never above ``dqn_target`` of the same next_q_value
    Verified:  tests/exact/test_q_learning.py::test_the_optimum_of_a_finite_mdp_is_a_fixed_point,
               tests/exact/test_q_learning.py::test_noise_of_its_own_does_not_raise_the_double_target
    """
    greedy = _legal(online_next_q_value, action_mask).argmax(-1)
    return q_learning_target(reward, chosen_q_value(next_q_value, greedy), terminated, gamma)


def _legal(q_value: Tensor, mask: Tensor | None) -> Tensor:
    return q_value if mask is None else masked_logits(q_value, mask)
