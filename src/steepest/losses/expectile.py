"""Implicit Q-learning: a value function that tends to the best action of the data without asking for others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def expectile_loss(
    value: Float[Tensor, "*#shape"], target: Float[Tensor, "*#shape"], expectile: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Return half the squared error to a fixed target, where the value falls short of it counted more.

    Equation:  L = |tau - 1(u < 0)| u^2 / 2,  u = target - V(s)
    Source:    Kostrikov et al. 2022 (IQL), section 4.2; Newey & Powell 1987. Not in the notes.
    Args:      value (...) carries gradient; target (...) Q(s, a) of actions of the data, detached here; expectile tau
               in (0, 1): 1/2 is half of ``value_loss``, and the minimiser tends to the largest target as tau to 1
    Returns:   (...) reward units squared
    Verified:  tests/exact/test_expectile.py::test_the_minimiser_is_the_expectile,
               tests/exact/test_expectile.py::test_the_expectile_tends_to_the_maximum
    """
    error = target.detach() - value
    return (expectile - (error < 0.0).to(error.dtype)).abs() * 0.5 * error.square()


def advantage_weight(
    advantage: Float[Tensor, "*shape"], temperature: float | Tensor, max_weight: float | Tensor
) -> Float[Tensor, "*shape"]:
    """Return the weight of an action of the data in a policy that stays close to the data.

    Equation:  w = min(exp(A(s, a) / temperature), max_weight);  a policy that maximises E_beta w log pi is the
               projection of beta exp(A / temperature) / Z, which maximises E_pi A - temperature KL(pi || beta)
    Source:    Peng et al. 2019 (AWR); Nair et al. 2020 (AWAC); Kostrikov et al. 2022 (IQL), section 4.3.
               Not in the notes. Differences: none; Z is left out, as in all three.
    Args:      advantage (...) reward units; temperature > 0 reward units per nat; max_weight; all detached here
    Returns:   (...) to be multiplied by -log pi(a|s), as ``score_function_loss`` does
    Verified:  tests/exact/test_expectile.py::test_weights_project_onto_the_regularised_optimum,
               tests/exact/test_expectile.py::test_weights_are_clipped_without_overflow
    """
    limit = torch.as_tensor(max_weight, dtype=advantage.dtype, device=advantage.device)
    # The exponent is clipped too: exp overflows from 88 on in float32, and the limit is reached long before.
    return torch.minimum((advantage / temperature).clamp(max=80.0).exp(), limit).detach()
