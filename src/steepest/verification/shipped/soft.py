"""The reparametrised gradient of soft actor-critic (notes 1.7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import distributions
from steepest.verification.shipped.distributions import gauss_hermite, normal_draws
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

_SAMPLE = "distributions.DiagonalGaussian.sample"


class SoftActor(NamedTuple):
    """A Gaussian policy in two dimensions, a cubic Q, a temperature, and noise with weights that integrate both."""

    parameters: Tensor  # (2, 2): mean and log standard deviation
    coefficients: Tensor  # (3, 2) of a, a^2 and a^3
    temperature: float
    noise: Tensor
    weight: Tensor

    def q(self, action: Tensor) -> Tensor:
        """(n,) a cubic with a product term."""
        powers = torch.stack([action, action.square(), action**3])
        return (self.coefficients.unsqueeze(1) * powers).sum((0, -1)) + action.prod(-1)


@lru_cache(maxsize=256)
def soft_actor(seed: int) -> SoftActor:
    """Noise from N(0, I) as Gauss-Hermite nodes: exact for polynomials of degree 11."""
    draw = normal_draws(seed, 26)
    mean_and_log_std = 0.5 * draw(2, 2) - torch.tensor([[0.0], [0.5]], dtype=F64)
    return SoftActor(mean_and_log_std, 0.3 * draw(3, 2), 0.5 + float(draw().abs()), *gauss_hermite(6, 2))


@rows.equality("1.7", "reparametrised gradient", soft_actor, tested=_SAMPLE, printed=False)
@rows.control("1.7", "the same with grad pi for grad log pi", soft_actor, tested=_SAMPLE, printed=True)
def soft_actor_gradient(c: SoftActor, printed: bool) -> Sides:
    """grad E[temperature log pi - Q] = E[temperature grad log pi + (temperature grad_a log pi - grad_a Q) grad f].

    Negative control: the formula as printed begins with grad pi.
    """
    found = sampled_gradient(c, lambda log_prob, q: c.temperature * log_prob - q)
    return Sides(found, soft_actor_formula(c, printed=printed))


def sampled_gradient(c: SoftActor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(2, 2) the gradient of the mean of a loss of log-probabilities and action values, through the actions."""

    def mean(x: Tensor) -> Tensor:
        policy = distributions.DiagonalGaussian(x[0].expand_as(c.noise), x[1].expand_as(c.noise))
        action = policy.sample(c.noise)
        return c.weight @ loss(policy.log_prob(action), c.q(action))

    return gradient(mean, c.parameters)


def soft_actor_formula(c: SoftActor, *, printed: bool) -> Tensor:
    """The gradient by the notes' formula, or as it is printed there; (2, 2) as the parameters."""
    mean, std = c.parameters[0], c.parameters[1].exp()
    action = mean + std * c.noise
    by_mean, by_log_std = c.noise / std, c.noise.square() - 1.0  # grad log pi at a fixed action
    if printed:
        log_density = -0.5 * c.noise.square() - torch.log(std) - 0.5 * math.log(2.0 * math.pi)
        density = log_density.sum(-1, keepdim=True).exp()
        by_mean, by_log_std = by_mean * density, by_log_std * density
    slope = c.coefficients[0] + 2.0 * c.coefficients[1] * action + 3.0 * c.coefficients[2] * action.square()
    through_action = -c.temperature * c.noise / std - slope - action.flip(-1)
    rows = torch.stack(
        [c.temperature * by_mean + through_action, c.temperature * by_log_std + through_action * std * c.noise]
    )
    return torch.einsum("n,knd->kd", c.weight, rows)
