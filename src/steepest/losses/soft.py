"""Maximum-entropy reinforcement learning: soft values, the policy that they improve, and the temperature between them.

``temperature`` is reward per nat. Log-probabilities of squashed actions are densities of actions in [-1, 1]; in the
environment's own units log pi would be smaller by the constant sum_i log half_width_i, which moves an entropy target by
as much and changes nothing else.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steepest.returns import td_error


def soft_value_target(
    q_value: Float[Tensor, "*#shape"], log_prob: Float[Tensor, "*#shape"], temperature: float | Tensor
) -> Float[Tensor, "*shape"]:
    """A sample of the soft value of a state, from an action that the policy drew there.

    Equation:  Q(s, a) - temperature log pi(a|s),  a ~ pi(.|s);  its mean over actions is V(s)
    Source:    notes 1.7, no. 1; Haarnoja et al. 2018a, Eq. 3. Differences: the temperature, 1 in the notes.
    Args:      q_value (...) reward units; log_prob (...) nats; temperature >= 0; all detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_soft.py::test_v_network_gradient_as_printed
    """
    temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    return (q_value - temperature * log_prob).detach()


def expected_soft_value(
    q_value: Float[Tensor, "*#batch k"], log_probs: Float[Tensor, "*#batch k"], temperature: float | Tensor
) -> Float[Tensor, "*batch"]:
    """The soft value of a state where all k actions can be summed over.

    Equation:  V(s) = sum_a pi(a|s) (Q(s, a) - temperature log pi(a|s))
    Source:    notes 1.7, no. 1, the expectation itself; Christodoulou 2019, Eq. 10.
    Args:      q_value (..., k) reward units; log_probs (..., k) nats, any finite number that exp takes to 0 where an
               action is illegal; both carry gradient; temperature >= 0
    Returns:   (...) reward units. Minus this, with q_value detached, is the policy's loss.
    Verified:  tests/exact/test_soft.py::test_soft_optimum_of_a_finite_mdp_is_a_fixed_point,
               tests/exact/test_soft.py::test_policy_loss_is_least_at_the_boltzmann_policy,
               tests/exact/test_soft.py::test_an_illegal_action_counts_for_nothing
    """
    probability = log_probs.exp()
    # The least number there is, times a temperature above 1, is infinite, and 0 of that no number.
    known = torch.where(probability > 0, log_probs, torch.zeros_like(log_probs))
    return (probability * (q_value - temperature * known)).sum(-1)


def soft_q_target(
    reward: Float[Tensor, "*#shape"],
    next_value: Float[Tensor, "*#shape"],
    terminated: Bool[Tensor, "*#shape"],
    gamma: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Target of a soft Q-function: what was paid, and the soft value of what followed unless the process ended.

    Equation:  r + gamma (1 - terminated) V(s')
    Source:    notes 1.7, no. 3, with the terminal case; Haarnoja et al. 2018a, Eq. 2.
    Args:      reward (...); next_value (...) soft value of the next state, from a target network:
               ``soft_value_target``, ``expected_soft_value`` or a V-network; reward units; gamma in [0, 1], or gamma^m
               after m steps; all detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_soft.py::test_soft_optimum_of_a_finite_mdp_is_a_fixed_point,
               tests/exact/test_soft.py::test_q_network_gradient_as_printed
    """
    return td_error(reward, reward.new_zeros(()), next_value, terminated, gamma).detach()


def soft_policy_loss(
    log_prob: Float[Tensor, "*#shape"], q_value: Float[Tensor, "*#shape"], temperature: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Return a reparametrised policy's loss: the KL from the Boltzmann distribution of Q, up to a constant.

    Equation:  L = temperature log pi(f(eps; s)|s) - Q(s, f(eps; s))
    Source:    notes 1.7, nos. 5 and 6; Haarnoja et al. 2018a, Eqs. 12 and 13. Differences: the temperature.
    Args:      log_prob (...) nats and q_value (...) reward units, both carry gradient, also through the action that
               they are of; temperature >= 0, detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_soft.py::test_policy_gradient_as_printed
    """
    temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    return temperature * log_prob - q_value


def temperature_loss(
    log_temperature: Float[Tensor, ""], entropy: Float[Tensor, "*shape"], target_entropy: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Moves the temperature until the policy's entropy meets its target.

    Equation:  L = log(temperature) (H - target),  H = -log pi(a|s) or the entropy itself
    Source:    Haarnoja et al. 2018b, Eq. 18, with log(temperature) in the place of the temperature, as its authors'
               code has it: the same fixed point, and steps that do not shrink with the temperature. Not in the notes.
    Args:      log_temperature () carries gradient; entropy (...) nats, detached here; target_entropy nats
    Returns:   (...) nats
    Verified:  tests/exact/test_soft.py::test_temperature_rises_where_entropy_is_too_low
    """
    return log_temperature * (entropy - target_entropy).detach()
