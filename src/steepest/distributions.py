"""Action distributions as plain tuples of tensors: sample, log_prob, entropy, kl.

Every distribution is a NamedTuple, hence a pytree that ``vmap`` and ``compile`` take as it is, and every method is a
pure function of its fields. Randomness is an input: ``sample(noise)`` takes noise of the shape and kind that
``action_noise`` draws from a generator, so nothing compiled ever draws. All leading axes broadcast; quantities are in
nats.

The notes require that a policy never becomes deterministic (section 1). The distributions themselves are exact; the
floors are applied where a network's output becomes a distribution, by ``floored_log_probs`` and ``floored_log_std``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steepest.types import ActionSpec

LOG_2PI = math.log(2.0 * math.pi)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_UNIT_NODES: list[float] = [float(x) for x in (_NODES + 1.0) / 2.0]
_UNIT_WEIGHTS: list[float] = [float(w) for w in _WEIGHTS / 2.0]


def masked_logits(logits: Float[Tensor, "*#batch k"], mask: Bool[Tensor, "*#batch k"]) -> Float[Tensor, "*batch k"]:
    """Logits whose illegal entries have probability exactly zero.

    Equation:  l'_a = l_a where legal, the most negative finite number elsewhere
    Args:      logits (..., k), carries gradient; mask (..., k) True where legal, at least one per row
    Returns:   (..., k). Finite, so that p log p is 0 rather than nan for illegal actions.
    Verified:  tests/unit/test_distributions.py::test_masked_categorical_never_draws_an_illegal_action
    """
    return torch.where(mask, logits, torch.finfo(logits.dtype).min)


def floored_log_probs(
    logits: Float[Tensor, "*#batch k"], floor: float, mask: Bool[Tensor, "*#batch k"] | None = None
) -> Float[Tensor, "*batch k"]:
    """Log-probabilities of the softmax mixed with the uniform distribution, so that none falls below a floor.

    Equation:  p_a = floor + (1 - n floor) softmax(l)_a over the n legal actions, 0 for illegal ones
    Source:    notes 1 ("we require that the parametrized policy never becomes deterministic").
    Args:      logits (..., k), carries gradient; floor probability, 0 <= floor < 1/k; mask True where legal
    Returns:   (..., k) nats
    Raises:    ValueError if floor is not in [0, 1/k)
    Verified:  tests/unit/test_distributions.py::test_probability_floor
    """
    k = logits.shape[-1]
    if not 0.0 <= floor < 1.0 / k:
        raise ValueError(f"the probability floor is {floor}; with {k} actions it must lie in [0, {1.0 / k:.4g})")
    if mask is not None:
        logits = masked_logits(logits, mask)
    log_probs = F.log_softmax(logits, dim=-1)
    if floor == 0.0:
        return log_probs
    if mask is None:
        return torch.log(floor + (1.0 - k * floor) * log_probs.exp())
    legal = mask.sum(-1, keepdim=True).to(logits.dtype)
    mixed = torch.log(floor + (1.0 - legal * floor) * log_probs.exp())
    return masked_logits(mixed, mask)


def floored_log_std(log_std: Float[Tensor, "*batch d"], min_std: float) -> Float[Tensor, "*batch d"]:
    """A smooth lower bound on a standard deviation: never below min_std, and never without a gradient.

    Equation:  std'^2 = std^2 + min_std^2
    Args:      log_std (..., d), carries gradient; min_std > 0 in action units
    Returns:   (..., d) log std'
    Verified:  tests/unit/test_distributions.py::test_std_floor
    """
    if min_std <= 0.0:
        raise ValueError(f"min_std is {min_std}; a policy must keep a positive standard deviation")
    # In logarithms throughout: in float32 std^2 itself overflows from a log_std of 44 on, and its gradient is nan.
    return 0.5 * torch.logaddexp(2.0 * log_std, torch.full_like(log_std, 2.0 * math.log(min_std)))


class Categorical(NamedTuple):
    """One choice among k. Action: int64 (...,). Noise: standard Gumbel (..., k)."""

    log_probs: Float[Tensor, "*batch k"]  # normalised, finite

    def sample(self, noise: Float[Tensor, "*batch k"]) -> Int[Tensor, "*batch"]:
        return (self.log_probs + noise).argmax(-1)

    def mode(self) -> Int[Tensor, "*batch"]:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def fisher_product(self, tangent: Categorical) -> Categorical:
        """The Fisher information of the log-probabilities, diag(p), times a tangent."""
        return Categorical(self.log_probs.exp() * tangent.log_probs)


class Factored(NamedTuple):
    """d independent choices, padded to the largest k. Action: int64 (..., d). Noise: standard Gumbel (..., d, k)."""

    log_probs: Float[Tensor, "*batch d k"]  # normalised per component; padding has probability exactly 0

    def sample(self, noise: Float[Tensor, "*batch d k"]) -> Int[Tensor, "*batch d"]:
        return Categorical(self.log_probs).sample(noise)

    def mode(self) -> Int[Tensor, "*batch d"]:
        return Categorical(self.log_probs).mode()

    def log_prob(self, action: Int[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        return Categorical(self.log_probs).log_prob(action).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return Categorical(self.log_probs).entropy().sum(-1)

    def kl(self, other: Factored) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats."""
        return Categorical(self.log_probs).kl(Categorical(other.log_probs)).sum(-1)

    def fisher_product(self, tangent: Factored) -> Factored:
        """diag(p) times a tangent; the components are independent."""
        return Factored(self.log_probs.exp() * tangent.log_probs)


class Bernoulli(NamedTuple):
    """d independent bits. Action: int64 (..., d) of 0 and 1. Noise: standard Gumbel (..., d, 2)."""

    log_probs: Float[Tensor, "*batch d 2"]  # [log P(0), log P(1)]

    def sample(self, noise: Float[Tensor, "*batch d 2"]) -> Int[Tensor, "*batch d"]:
        return Categorical(self.log_probs).sample(noise)

    def mode(self) -> Int[Tensor, "*batch d"]:
        return Categorical(self.log_probs).mode()

    def log_prob(self, action: Int[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        return Categorical(self.log_probs).log_prob(action).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return Categorical(self.log_probs).entropy().sum(-1)

    def kl(self, other: Bernoulli) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats."""
        return Categorical(self.log_probs).kl(Categorical(other.log_probs)).sum(-1)

    def fisher_product(self, tangent: Bernoulli) -> Bernoulli:
        """diag(p) times a tangent; the components are independent."""
        return Bernoulli(self.log_probs.exp() * tangent.log_probs)


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(std^2)). Action: float (..., d). Noise: standard normal (..., d)."""

    mean: Float[Tensor, "*batch d"]
    log_std: Float[Tensor, "*#batch d"]

    def sample(self, noise: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Float[Tensor, "*batch d"]:
        return self.mean

    def log_prob(self, action: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * LOG_2PI).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return (self.log_std.expand_as(self.mean) + 0.5 * (1.0 + LOG_2PI)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * torch.exp(-other.log_std)
        return (0.5 * (torch.exp(2.0 * log_ratio) + z.square() - 1.0) - log_ratio).sum(-1)

    def fisher_product(self, tangent: DiagonalGaussian) -> DiagonalGaussian:
        """1 / std^2 times the mean's tangent, 2 times that of log std."""
        return DiagonalGaussian(tangent.mean * torch.exp(-2.0 * self.log_std), 2.0 * tangent.log_std)


class FullGaussian(NamedTuple):
    """N(mean, L L^T) with lower-triangular L. Action: float (..., d). Noise: standard normal (..., d)."""

    mean: Float[Tensor, "*batch d"]
    scale_tril: Float[Tensor, "*#batch d d"]

    def _whiten(self, difference: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        tril = self.scale_tril.expand(*difference.shape, difference.shape[-1])
        return torch.linalg.solve_triangular(tril, difference.unsqueeze(-1), upper=False).squeeze(-1)

    def _log_det(self) -> Float[Tensor, "*#batch"]:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def sample(self, noise: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.mean + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def mode(self) -> Float[Tensor, "*batch d"]:
        return self.mean

    def log_prob(self, action: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        d = self.mean.shape[-1]
        return -0.5 * self._whiten(action - self.mean).square().sum(-1) - self._log_det() - 0.5 * d * LOG_2PI

    def entropy(self) -> Float[Tensor, "*batch"]:
        d = self.mean.shape[-1]
        return (self._log_det() + 0.5 * d * (1.0 + LOG_2PI)).expand(self.mean.shape[:-1])

    def kl(self, other: FullGaussian) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats."""
        d = self.mean.shape[-1]
        ratio = torch.linalg.solve_triangular(other.scale_tril, self.scale_tril, upper=False)
        trace = ratio.square().sum((-2, -1))
        mahalanobis = other._whiten(self.mean - other.mean).square().sum(-1)
        return 0.5 * (trace + mahalanobis - d) + other._log_det() - self._log_det()

    def fisher_product(self, tangent: FullGaussian) -> FullGaussian:
        """Sigma^-1 times the mean's tangent; L^-T (M + diag M) for that of L, where M = L^-1 dL."""
        solve, upper = torch.linalg.solve_triangular, self.scale_tril.mT
        mean = solve(upper, self._whiten(tangent.mean).unsqueeze(-1), upper=True).squeeze(-1)
        m = solve(self.scale_tril, tangent.scale_tril, upper=False)
        m = m + torch.diag_embed(m.diagonal(dim1=-2, dim2=-1))
        return FullGaussian(mean, solve(upper, m, upper=True).tril())


class TanhGaussian(NamedTuple):
    """a = tanh(u), u ~ N(mean, diag(std^2)): a density on (-1, 1)^d.

    Its actions are passed around as the pre-squash u: u -> tanh(u) loses nothing when applied once, at the
    environment, while recovering u from a rounded tanh(u) is hopeless near the bounds. ``log_prob(u)`` is
    nevertheless the log-density of tanh(u). Ratios and KL equal those of the underlying Gaussian, since a bijection
    changes neither.
    """

    mean: Float[Tensor, "*batch d"]
    log_std: Float[Tensor, "*#batch d"]

    @property
    def base(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.log_std)

    def sample(self, noise: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.base.sample(noise)

    def mode(self) -> Float[Tensor, "*batch d"]:
        """tanh^-1 of the median, which is what deterministic acting uses."""
        return self.mean

    def log_prob(self, action: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """log N(u) - sum_i log(1 - tanh(u_i)^2), at the pre-squash u."""
        return self.base.log_prob(action) - log_tanh_derivative(action).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """H(u) + E[log(1 - tanh(u)^2)], without noise; see ``expected_log_tanh_derivative``."""
        return self.base.entropy() + expected_log_tanh_derivative(self.mean, self.log_std.exp()).sum(-1)

    def kl(self, other: TanhGaussian) -> Float[Tensor, "*batch"]:
        """KL(self || other) in nats, that of the underlying Gaussians."""
        return self.base.kl(other.base)

    def fisher_product(self, tangent: TanhGaussian) -> TanhGaussian:
        """That of the underlying Gaussian: a bijection changes no information."""
        return TanhGaussian(*self.base.fisher_product(tangent.base))


Distribution = Categorical | Factored | Bernoulli | DiagonalGaussian | FullGaussian | TanhGaussian
"""``fisher_product(u)`` is F u with F = E[score score^T] in the fields, which share their leading axes; u is a change
that leaves them a distribution (log-probabilities stay normalised). With J the derivative of the fields in some
parameters, J^T F J is the Hessian of KL(old || new) in the new one's parameters where the two are the same.
"""


def softened(policy: Distribution, epsilon: float) -> Distribution:
    """A policy that explores more than the given one, with full support wherever an action is legal.

    Equation:  (1 - epsilon) pi + epsilon / n over the n legal choices of every discrete component;
               N(mean, ((1 + epsilon) std)^2) for a Gaussian policy
    Source:    the epsilon-soft behaviour of Degris, White & Sutton 2012. Differences: a Gaussian, which has full
               support already, is widened.
    Args:      policy, carries gradient; epsilon in [0, 1], where 1 is uniform over discrete choices
    Returns:   a distribution of the same kind
    Raises:    ValueError if epsilon is not in [0, 1]
    Verified:  tests/unit/test_softened.py::test_discrete_policies_are_mixed_with_the_uniform_one
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon is {epsilon}; it must lie in [0, 1]")
    if isinstance(policy, (DiagonalGaussian, TanhGaussian)):
        return type(policy)(policy.mean, policy.log_std + math.log1p(epsilon))
    if isinstance(policy, FullGaussian):
        return FullGaussian(policy.mean, policy.scale_tril * (1.0 + epsilon))
    log_probs = policy.log_probs
    impossible = torch.finfo(log_probs.dtype).min
    legal = log_probs > 0.5 * impossible
    uniform = legal.to(log_probs.dtype) / legal.sum(-1, keepdim=True)
    mixed = (1.0 - epsilon) * log_probs.exp() + epsilon * uniform
    return type(policy)(torch.where(legal, torch.log(torch.where(legal, mixed, 1.0)), impossible))


def epsilon_greedy(
    q_value: Float[Tensor, "*#batch k"],
    epsilon: float | Tensor,
    mask: Bool[Tensor, "*#batch k"] | None = None,
) -> Categorical:
    """The action of the highest value, or with probability epsilon any legal one.

    Equation:  p_a = (1 - epsilon) 1[a = argmax Q] + epsilon / n over the n legal actions, 0 for illegal ones
    Source:    Watkins 1989; Mnih et al. 2015, Algorithm 1. Differences: 1 - epsilon is at least 1e-6, so that the mode
               is the greedy action also while everything is tried alike.
    Args:      q_value (..., k), detached here; epsilon in [0, 1], one number; mask True where legal
    Returns:   a policy over the k actions; of equal values the first is the greedy one
    Verified:  tests/unit/test_softened.py::test_epsilon_greedy_by_hand
    """
    q_value = q_value.detach() if mask is None else masked_logits(q_value.detach(), mask)
    choices = torch.arange(q_value.shape[-1], device=q_value.device)
    # Compared rather than F.one_hot, which looks at the values and so cannot be traced.
    greedy = (q_value.argmax(-1, keepdim=True) == choices).to(q_value.dtype)
    legal = torch.ones_like(q_value) if mask is None else mask.to(q_value.dtype)
    share = torch.as_tensor(epsilon, dtype=q_value.dtype, device=q_value.device).clamp(max=1.0 - 1e-6)
    probability = (1.0 - share) * greedy + share * legal / legal.sum(-1, keepdim=True)
    possible = probability > 0.0
    logs = torch.log(torch.where(possible, probability, 1.0))
    return Categorical(torch.where(possible, logs, torch.finfo(logs.dtype).min))


def log_tanh_derivative(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - tanh(u)^2), stable for every u.

    Equation:  2 (log 2 - u - softplus(-2u))
    Verified:  tests/unit/test_distributions.py::test_log_tanh_derivative
    """
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


def expected_log_tanh_derivative(
    mean: Float[Tensor, "*batch d"], std: Float[Tensor, "*#batch d"]
) -> Float[Tensor, "*batch d"]:
    """E[log(1 - tanh(u)^2)] for u ~ N(mean, std^2), to 1e-8 for every mean and deviation.

    Equation:  2 log 2 - 2 E|u| - 2 E[log(1 + exp(-2|u|))]: the first expectation in closed form; the second over |u|,
               where it is smooth, by 32 Gauss-Legendre nodes between the ends of what counts of the density, 7
               deviations from the mean, and of the logarithm, 16
    Args:      mean (..., d), std (..., d) positive, both carry gradient
    Returns:   (..., d) nats, negative
    Verified:  tests/unit/test_distributions.py::test_tanh_entropy_against_quadrature,
               tests/unit/test_distributions.py::test_the_gradient_of_the_tanh_entropy
    """
    z = mean / std
    distance = mean * torch.erf(z / math.sqrt(2.0)) + std * math.sqrt(2.0 / math.pi) * (-0.5 * z.square()).exp()
    nodes = torch.tensor(_UNIT_NODES, dtype=mean.dtype, device=mean.device)
    weights = torch.tensor(_UNIT_WEIGHTS, dtype=mean.dtype, device=mean.device)
    low = (mean.abs() - 7.0 * std).clamp(min=0.0)
    width = ((mean.abs() + 7.0 * std).clamp(max=16.0) - low).clamp(min=0.0)
    x = low.unsqueeze(-1) + width.unsqueeze(-1) * nodes
    m, s = mean.unsqueeze(-1), std.unsqueeze(-1)
    density = (-0.5 * ((x - m) / s).square()).exp() + (-0.5 * ((x + m) / s).square()).exp()
    rest = (F.softplus(-2.0 * x) * density * weights).sum(-1) * width / (std * math.sqrt(2.0 * math.pi))
    return 2.0 * (math.log(2.0) - distance - rest)


def action_noise(spec: ActionSpec, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise of the kind that ``sample`` takes for this action space, from the run's generator.

    Args:      leading: batch axes; generator: its device is the noise's device
    Returns:   standard Gumbel (*leading, k), (*leading, d, k) or (*leading, d, 2) for discrete spaces,
               standard normal (*leading, d) for boxes; float32
    """
    device = generator.device
    if spec.kind == "box":
        return torch.randn((*leading, spec.dimension), generator=generator, device=device)
    if spec.kind == "discrete":
        shape = (*leading, spec.sizes[0])
    else:
        shape = (*leading, len(spec.sizes), max(spec.sizes))
    return -torch.empty(shape, device=device).exponential_(generator=generator).log_()
