"""Every distribution against torch.distributions, closed forms and quadrature, in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from helpers import F64, bits, box, discrete
from steepest import distributions
from steepest.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Factored,
    FullGaussian,
    TanhGaussian,
    action_noise,
    floored_log_probs,
    floored_log_std,
    log_tanh_derivative,
    masked_logits,
)
from steepest.types import ActionSpec

RAGGED = (2, 5, 3)
Z = 5.0  # half-width, in standard errors, of every interval below: a false alarm in 2 million


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def padded(parts: list[Tensor]) -> Tensor:
    widest = max(p.shape[-1] for p in parts)
    low = torch.finfo(F64).min
    return torch.stack([F.pad(p.log_softmax(-1), (0, widest - p.shape[-1]), value=low) for p in parts], dim=-2)


def lower_triangular(*shape: int, seed: int) -> Tensor:
    x = rand(*shape, seed=seed)
    return torch.tril(x, -1) + torch.diag_embed(0.3 + x.diagonal(dim1=-2, dim2=-1).exp())


class Case(NamedTuple):
    """A family built from unconstrained parameters, and the same as torch.distributions writes it."""

    parameters: Callable[[int], tuple[Tensor, ...]]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]  # a list of independent parts where there is more than one
    spec: ActionSpec


CASES: dict[str, Case] = {
    "categorical": Case(
        lambda s: (2.0 * rand(7, 4, seed=s),),
        lambda x: Categorical(x.log_softmax(-1)),
        lambda x: [td.Categorical(logits=x)],
        discrete(4),
    ),
    "factored": Case(
        lambda s: tuple(2.0 * rand(7, k, seed=s + i) for i, k in enumerate(RAGGED)),
        lambda *xs: Factored(padded(list(xs))),
        lambda *xs: [td.Categorical(logits=x) for x in xs],
        discrete(*RAGGED),
    ),
    "bernoulli": Case(
        lambda s: (2.0 * rand(7, 3, seed=s),),
        lambda x: Bernoulli(torch.stack([torch.zeros_like(x), x], -1).log_softmax(-1)),
        lambda x: [td.Bernoulli(logits=x[..., i]) for i in range(3)],
        bits(3),
    ),
    "diagonal": Case(
        lambda s: (rand(7, 3, seed=s), 0.5 * rand(7, 3, seed=s + 50)),
        DiagonalGaussian,
        lambda m, s: [td.Independent(td.Normal(m, s.exp()), 1)],
        box(3),
    ),
    "diagonal, one deviation for all": Case(
        lambda s: (rand(7, 3, seed=s), 0.5 * rand(3, seed=s + 50)),
        DiagonalGaussian,
        lambda m, s: [td.Independent(td.Normal(m, s.exp()), 1)],
        box(3),
    ),
    "full": Case(
        lambda s: (rand(7, 3, seed=s), lower_triangular(7, 3, 3, seed=s + 50)),
        FullGaussian,
        lambda m, tril: [td.MultivariateNormal(m, scale_tril=tril)],
        box(3),
    ),
    "full, one covariance for all": Case(
        lambda s: (rand(7, 3, seed=s), lower_triangular(3, 3, seed=s + 50)),
        FullGaussian,
        lambda m, tril: [td.MultivariateNormal(m, scale_tril=tril)],
        box(3),
    ),
    "tanh": Case(
        lambda s: (0.5 * rand(7, 3, seed=s), 0.3 * rand(7, 3, seed=s + 50) - 0.5),
        TanhGaussian,
        lambda m, s: [td.Independent(td.TransformedDistribution(td.Normal(m, s.exp()), td.TanhTransform()), 1)],
        box(3),
    ),
}
NAMES = [*CASES]
DISCRETE = ["categorical", "factored", "bernoulli"]


def build(name: str, seed: int = 0) -> tuple[Any, list[Any], tuple[Tensor, ...]]:
    case = CASES[name]
    parameters = case.parameters(seed)
    return case.ours(*parameters), case.theirs(*parameters), parameters


def draw(name: str, policy: Any, seed: int = 3, repeats: int = 1) -> Tensor:
    noise = action_noise(CASES[name].spec, (repeats, 7), torch.Generator().manual_seed(seed)).double()
    return repeated(policy, repeats).sample(noise)


def repeated(policy: Any, n: int) -> Any:
    """The same distribution with a leading axis; a field that all rows share stays as it is."""
    return type(policy)(*(x.expand(n, *x.shape) if x.shape[0] == 7 else x for x in policy))


def parts_of(name: str, action: Tensor) -> list[Tensor]:
    if name in ("factored", "bernoulli"):
        return list(action.unbind(-1))
    return [action]


# Against torch.distributions


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_equals_torch(name: str) -> None:
    policy, theirs, _ = build(name)
    action = draw(name, policy)[0]
    outside = action.tanh() if name == "tanh" else action  # ours takes the pre-squash action, theirs the squashed one
    pairs = zip(theirs, parts_of(name, outside), strict=True)
    expected = sum(d.log_prob(a.double() if name == "bernoulli" else a) for d, a in pairs)
    torch.testing.assert_close(policy.log_prob(action), expected, rtol=1e-10, atol=1e-10)
    assert policy.log_prob(action).shape == (7,)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "tanh"])
def test_entropy_equals_torch(name: str) -> None:
    policy, theirs, _ = build(name)
    torch.testing.assert_close(policy.entropy(), sum(d.entropy() for d in theirs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_kl_equals_torch(name: str) -> None:
    """KL(self || other): the two orders differ, so a swap fails. For tanh: that of the underlying Gaussians."""
    p, theirs_p, _ = build(name, seed=0)
    q, theirs_q, _ = build(name, seed=20)
    if name == "tanh":
        theirs_p, theirs_q = (CASES["diagonal"].theirs(*x) for x in (p, q))
    expected = sum(td.kl_divergence(a, b) for a, b in zip(theirs_p, theirs_q, strict=True))
    torch.testing.assert_close(p.kl(q), expected, rtol=1e-10, atol=1e-10)
    # A wide tolerance asks for more here: the two orders have to differ by 1 %, so that a swap above could not pass.
    assert not torch.allclose(p.kl(q), q.kl(p), rtol=1e-2)
    torch.testing.assert_close(p.kl(p), torch.zeros(7, dtype=F64), rtol=0, atol=1e-12)


def flat(policy: Any) -> tuple[Tensor, ...]:
    return tuple(policy)


@pytest.mark.parametrize("name", [n for n in NAMES if "for all" not in n])
def test_fisher_product_is_the_curvature_of_the_kl(name: str) -> None:
    """J^T F J v is the Hessian of KL(old || new) times v, by double backward; and that of KL(new || old)."""
    policy, _, parameters = build(name)
    case = CASES[name]
    directions = tuple(rand(*x.shape, seed=i + 5) for i, x in enumerate(parameters))
    if name == "full":
        directions = (directions[0], directions[1].tril())

    def fields(*x: Tensor) -> tuple[Tensor, ...]:
        return flat(case.ours(*x))

    _, tangent = torch.autograd.functional.jvp(fields, parameters, directions)
    _, pull_back = torch.func.vjp(fields, *parameters)
    found = pull_back(flat(policy.fisher_product(type(policy)(*tangent))))
    for swapped in (False, True):

        def divergence(*x: Tensor, swapped: bool = swapped) -> Tensor:
            new = case.ours(*x)
            return (new.kl(policy) if swapped else policy.kl(new)).sum()

        _, expected = torch.autograd.functional.hvp(divergence, parameters, directions)
        if name == "full":  # above the diagonal L has no entries, whatever a function of it makes of them
            expected = (expected[0], expected[1].tril())
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
            assert float(theirs.norm()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_mode_is_the_most_likely(name: str) -> None:
    policy, theirs, _ = build(name)
    mode = policy.mode()
    if name in DISCRETE:
        parts = [d.probs if isinstance(d, td.Categorical) else torch.stack([1 - d.probs, d.probs], -1) for d in theirs]
        expected = torch.stack([p.argmax(-1) for p in parts], -1)
        assert torch.equal(mode, expected.squeeze(-1) if name == "categorical" else expected)
    else:
        assert torch.equal(mode, policy.mean)


# Samples


@pytest.mark.parametrize("name", DISCRETE)
def test_sample_frequencies(name: str) -> None:
    """Each frequency within 5 standard errors of its probability."""
    n = 40_000
    policy, theirs, _ = build(name)
    action = draw(name, policy, repeats=n)
    for d, a in zip(theirs, parts_of(name, action), strict=True):
        probs = d.probs if isinstance(d, td.Categorical) else torch.stack([1 - d.probs, d.probs], -1)
        frequency = F.one_hot(a, probs.shape[-1]).double().mean(0)
        assert ((frequency - probs).abs() <= Z * (probs * (1 - probs) / n).sqrt()).all()


@pytest.mark.parametrize("name", ["diagonal", "diagonal, one deviation for all", "full", "tanh"])
def test_sample_moments(name: str) -> None:
    """Mean and covariance of the (pre-squash) draws within 5 standard errors of the Gaussian's."""
    n = 40_000
    policy, _, _ = build(name)
    action = draw(name, policy, repeats=n)
    if name == "full":
        covariance = policy.scale_tril @ policy.scale_tril.mT
    else:
        covariance = torch.diag_embed((2.0 * policy.log_std).exp().expand(7, 3))
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert ((action.mean(0) - policy.mean).abs() <= Z * (variance / n).sqrt()).all()
    centred = action - policy.mean
    found = torch.einsum("nbi,nbj->bij", centred, centred) / n
    error = ((variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()) / n).sqrt()
    assert ((found - covariance).abs() <= Z * error).all()


@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_minus_the_mean_log_prob(name: str) -> None:
    """Sampling, density and entropy belong to one another: within 5 standard errors."""
    n = 40_000
    policy, _, _ = build(name)
    action = draw(name, policy, repeats=n)
    log_prob = repeated(policy, n).log_prob(action)
    error = log_prob.std(0) / math.sqrt(n)
    assert ((-log_prob.mean(0) - policy.entropy()).abs() <= Z * error).all()


@pytest.mark.parametrize(
    ("spec", "shape"), [(discrete(4), (6, 4)), (discrete(*RAGGED), (6, 3, 5)), (bits(2), (6, 2, 2))]
)
def test_action_noise_is_gumbel(spec: ActionSpec, shape: tuple[int, ...]) -> None:
    assert action_noise(spec, (6,), torch.Generator().manual_seed(0)).shape == shape
    noise = action_noise(spec, (50_000,), torch.Generator().manual_seed(0)).double().flatten()
    n = len(noise)
    assert abs(float(noise.mean()) - 0.5772156649) < Z * math.pi / math.sqrt(6 * n)
    below = float((noise <= 1.0).double().mean())
    p = math.exp(-math.exp(-1.0))
    assert abs(below - p) < Z * math.sqrt(p * (1 - p) / n)


def test_action_noise_is_standard_normal_and_seeded() -> None:
    first, again, other = (action_noise(box(2), (50_000,), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.mean())) < Z / math.sqrt(1e5)
    assert abs(float(first.var()) - 1.0) < Z * math.sqrt(2 / 1e5)


# Gradients and transforms


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    case = CASES[name]
    policy, _, parameters = build(name)
    other = CASES[name].ours(*case.parameters(20))
    action = draw(name, policy)[0]
    leaves = [p.clone().requires_grad_() for p in parameters]
    torch.autograd.gradcheck(lambda *x: case.ours(*x).log_prob(action), leaves)
    torch.autograd.gradcheck(lambda *x: case.ours(*x).entropy(), leaves)
    torch.autograd.gradcheck(lambda *x: case.ours(*x).kl(other), leaves)
    if name not in DISCRETE:
        torch.autograd.gradcheck(lambda *x: case.ours(*x).sample(torch.ones_like(action)), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_equals_a_loop(name: str) -> None:
    case = CASES[name]
    members = [case.parameters(s) for s in (0, 20, 40)]
    stacked = tuple(torch.stack(x) for x in zip(*members, strict=True))
    noise = action_noise(case.spec, (3, 7), torch.Generator().manual_seed(0)).double()
    other = case.ours(*case.parameters(60))

    def figures(n: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        policy = case.ours(*parameters)
        action = policy.sample(n)
        return action, policy.log_prob(action), policy.entropy(), policy.kl(other), policy.mode()

    together = vmap(figures)(noise, *stacked)
    for m, parameters in enumerate(members):
        for got, expected in zip(together, figures(noise[m], *parameters), strict=True):
            torch.testing.assert_close(got[m], expected, rtol=1e-12, atol=1e-12)


# The squashed Gaussian


def test_log_tanh_derivative() -> None:
    u = torch.linspace(-8.0, 8.0, 401, dtype=F64)
    # 1 - tanh^2 written as sech^2, which float64 holds to the last digit here
    torch.testing.assert_close(log_tanh_derivative(u), -2.0 * torch.log(torch.cosh(u)), rtol=1e-12, atol=1e-13)
    far = torch.tensor([-1e4, -50.0, 50.0, 1e4], dtype=torch.float32, requires_grad=True)
    value = log_tanh_derivative(far)
    torch.testing.assert_close(value, 2.0 * math.log(2.0) - 2.0 * far.abs(), rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), far)
    assert torch.equal(slope, -2.0 * far.sign())


def test_tanh_density_integrates_to_one() -> None:
    a = torch.linspace(-1.0, 1.0, 200_001, dtype=F64)[1:-1]
    policy = TanhGaussian(torch.full((len(a), 1), 0.3, dtype=F64), torch.full((len(a), 1), -0.7, dtype=F64))
    density = policy.log_prob(torch.atanh(a).unsqueeze(-1)).exp()
    assert float(torch.trapezoid(density, a)) == pytest.approx(1.0, abs=1e-8)


MOMENTS = [(mean, std) for mean in (0.0, 0.7, -2.0, 6.0, -20.0) for std in (0.01, 0.3, 1.0, 3.0, 5.0, 7.4, 30.0)]


def standard_normal() -> tuple[Tensor, Tensor]:
    """Points, and their weights in a mean under N(0, 1), by a trapezoid rule so fine that kinks do not matter."""
    z = torch.linspace(-12.0, 12.0, 400_001, dtype=F64)
    return z, torch.exp(-0.5 * z.square()) * (24.0 / 400_000 / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("mean", "std"), MOMENTS)
def test_tanh_entropy_against_quadrature(mean: float, std: float) -> None:
    """Of the Gaussian, in closed form, and what the squashing takes away."""
    z, weight = standard_normal()
    u = (mean + std * z).abs()
    lost = 2.0 * (math.log(2.0) - u - torch.log1p(torch.exp(-2.0 * u)))
    exact = 2.0 * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(std) + float((weight * lost).sum()))
    policy = TanhGaussian(torch.full((1, 2), mean, dtype=F64), torch.full((1, 2), math.log(std), dtype=F64))
    assert float(policy.entropy()) == pytest.approx(exact, abs=3e-8)
    single = TanhGaussian(policy.mean.float(), policy.log_std.float())
    assert float(single.entropy()) == pytest.approx(exact, abs=3e-6 * (1.0 + abs(exact)))


@pytest.mark.parametrize(("mean", "std"), MOMENTS)
def test_the_gradient_of_the_tanh_entropy(mean: float, std: float) -> None:
    """In the mean, E[-2 tanh u]; in the logarithm of the deviation, 1 + std E[-2 z tanh u]."""
    z, weight = standard_normal()
    slope = -2.0 * torch.tanh(mean + std * z) * weight
    policy = TanhGaussian(
        torch.full((1, 1), mean, dtype=F64, requires_grad=True),
        torch.full((1, 1), math.log(std), dtype=F64, requires_grad=True),
    )
    by_mean, by_log_std = torch.autograd.grad(policy.entropy().sum(), [policy.mean, policy.log_std])
    assert float(by_mean) == pytest.approx(float(slope.sum()), abs=3e-8)
    assert float(by_log_std) == pytest.approx(1.0 + std * float((z * slope).sum()), abs=3e-8 * (1.0 + std))


# Masks


def mask_rows() -> Tensor:
    return torch.tensor([[True, False, True, True], [False, False, False, True], [True, True, True, True]])


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_categorical_never_draws_an_illegal_action(floor: float, dtype: torch.dtype, scale: float) -> None:
    mask = mask_rows()
    logits = (scale * rand(3, 4, seed=1)).to(dtype)
    logits[~mask] = 50.0 * scale  # the illegal ones would win
    policy = Categorical(floored_log_probs(logits, floor, mask))
    assert (policy.log_probs.exp()[~mask] == 0.0).all()
    torch.testing.assert_close(policy.log_probs.exp().sum(-1), torch.ones(3, dtype=dtype), rtol=1e-6, atol=0)
    if scale == 1.0 and floor != 0.1:
        n = 333_334
        noise = action_noise(discrete(4), (n, 3), torch.Generator().manual_seed(2)).to(dtype)
        drawn = Categorical(policy.log_probs.expand(n, 3, 4)).sample(noise)
        assert mask.expand(n, 3, 4).gather(-1, drawn.unsqueeze(-1)).all()
    assert mask.gather(-1, policy.mode().unsqueeze(-1)).all()


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_masked_log_prob_entropy_and_kl_equal_torch_on_the_legal_actions(floor: float) -> None:
    mask, logits, others = mask_rows(), rand(3, 4, seed=1), rand(3, 4, seed=2)
    p, q = (Categorical(floored_log_probs(x, floor, mask)) for x in (logits, others))
    for row in range(3):
        legal = mask[row]
        n = int(legal.sum())
        a, b = (td.Categorical(probs=floor + (1 - n * floor) * x[row][legal].softmax(-1)) for x in (logits, others))
        torch.testing.assert_close(p.log_probs[row][legal], a.logits, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(p.entropy()[row], a.entropy(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(p.kl(q)[row], td.kl_divergence(a, b), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_gradients_are_finite(floor: float, dtype: torch.dtype, scale: float) -> None:
    mask = mask_rows()
    logits = (scale * rand(3, 4, seed=1)).to(dtype).requires_grad_()
    p = Categorical(floored_log_probs(logits, floor, mask))
    q = Categorical(floored_log_probs((scale * rand(3, 4, seed=2)).to(dtype), floor, mask))
    for figure in (p.entropy(), p.kl(q), q.kl(p), p.log_prob(torch.tensor([0, 3, 1]))):
        assert figure.isfinite().all()
        (slope,) = torch.autograd.grad(figure.sum(), logits, retain_graph=True)
        assert slope.isfinite().all()
        assert (slope[~mask] == 0.0).all()
    if scale == 1.0 and dtype == F64:
        torch.autograd.gradcheck(lambda x: Categorical(floored_log_probs(x, floor, mask)).entropy(), logits)


def test_ragged_padding_is_never_drawn() -> None:
    policy, _, _ = build("factored")
    for i, k in enumerate(RAGGED):
        assert (policy.log_probs[:, i, k:].exp() == 0.0).all()
    action = draw("factored", policy, repeats=50_000)  # 350,000 draws a component
    assert (action < torch.tensor(RAGGED)).all()


# Floors


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.1])
def test_probability_floor(floor: float, dtype: torch.dtype, masked: bool) -> None:
    """Never below the floor, exactly at it in the limit, the uniform mixture everywhere; no NaN at logits of 1e4."""
    tolerance = 1e-10 if dtype == F64 else 1e-5
    mask = torch.tensor([True, True, False, True]) if masked else None
    legal = torch.ones(4, dtype=torch.bool) if mask is None else mask
    n = int(legal.sum())
    extreme = torch.tensor([1e4, -1e4, 0.0, -1e4], dtype=dtype, requires_grad=True)
    log_probs = floored_log_probs(extreme, floor, mask)
    limit = torch.tensor([1 - (n - 1) * floor, floor, floor if not masked else 0.0, floor], dtype=dtype)
    torch.testing.assert_close(log_probs.exp(), limit, rtol=tolerance, atol=0)
    for figure in (log_probs[legal].sum(), Categorical(log_probs).entropy()):
        (slope,) = torch.autograd.grad(figure, extreme, retain_graph=True)
        assert slope.isfinite().all()
    logits = rand(50, 4, seed=0).to(dtype) * 5.0
    probs = floored_log_probs(logits, floor, None if mask is None else mask.expand(50, 4)).exp()
    inside = logits if mask is None else masked_logits(logits, mask)
    expected = torch.where(legal, floor + (1 - n * floor) * inside.softmax(-1), 0.0)
    torch.testing.assert_close(probs, expected.to(dtype), rtol=tolerance, atol=0)
    assert (probs[:, legal] >= floor * (1 - tolerance)).all()


@pytest.mark.parametrize("gap", [10.0, 40.0, 80.0])
def test_probability_floor_keeps_a_gradient(gap: float) -> None:
    """The pull on a floored action is tiny but not zero, as long as float32 holds exp(-gap) at all."""
    logits = torch.tensor([gap, 0.0], dtype=torch.float32, requires_grad=True)
    (slope,) = torch.autograd.grad(floored_log_probs(logits, 1e-6)[1], logits)
    assert slope.isfinite().all()
    assert slope[1] > 0 > slope[0]


@pytest.mark.parametrize("floor", [-0.1, 0.25, 0.5])
def test_probability_floor_must_leave_room(floor: float) -> None:
    with pytest.raises(ValueError, match=r"with 4 actions it must lie in \[0, 0.25\)"):
        floored_log_probs(torch.zeros(4), floor)


@pytest.mark.parametrize("min_std", [1e-3, 0.1, 1.0])
def test_std_floor(min_std: float) -> None:
    log_std = torch.linspace(-12.0, 12.0, 49, dtype=F64, requires_grad=True)
    floored = floored_log_std(log_std, min_std)
    expected = (torch.exp(log_std).square() + min_std**2).sqrt().log()
    torch.testing.assert_close(floored, expected, rtol=1e-10, atol=1e-10)
    assert (floored.exp() >= min_std).all()
    (slope,) = torch.autograd.grad(floored.sum(), log_std)
    assert (slope > 0.0).all()
    torch.autograd.gradcheck(lambda x: floored_log_std(x, min_std), log_std)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_std_floor_at_the_ends(dtype: torch.dtype) -> None:
    """No overflow and no NaN, however far the parameter has gone; a pull back up from exp(-40) in float32."""
    log_std = torch.tensor([-1e4, -40.0, 60.0, 1e4], dtype=dtype, requires_grad=True)
    floored = floored_log_std(log_std, 1e-3)
    limit = torch.tensor([math.log(1e-3), math.log(1e-3), 60.0, 1e4], dtype=dtype)
    torch.testing.assert_close(floored, limit, rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(floored.sum(), log_std)
    assert slope.isfinite().all()
    assert slope[1] > 0
    torch.testing.assert_close(slope[2:], torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("min_std", [0.0, -1.0])
def test_std_floor_must_be_positive(min_std: float) -> None:
    with pytest.raises(ValueError, match="must keep a positive standard deviation"):
        floored_log_std(torch.zeros(2), min_std)


# Shapes are enforced in this run


def enforced() -> bool:
    return hasattr(floored_log_std, "__wrapped__")


WRONG_SHAPES: dict[str, Callable[[], Any]] = {
    "action of another batch": lambda: Categorical(torch.zeros(3, 4)).log_prob(torch.zeros(2, dtype=torch.int64)),
    "float action": lambda: Categorical(torch.zeros(3, 4)).log_prob(torch.zeros(3)),
    "noise of another width": lambda: Categorical(torch.zeros(3, 4)).sample(torch.zeros(3, 1)),
    "extra axis": lambda: DiagonalGaussian(torch.zeros(3, 2), torch.zeros(2)).log_prob(torch.zeros(3, 3, 2)),
    "another dimension": lambda: FullGaussian(torch.zeros(3, 2), torch.eye(2)).log_prob(torch.zeros(3, 1)),
    "integer mask": lambda: masked_logits(torch.zeros(3), torch.ones(3, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_a_wrong_shape_raises(name: str) -> None:
    if not enforced():
        pytest.skip("STEEPEST_TYPECHECK=0")
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG_SHAPES[name]()


def test_every_annotation_is_understood() -> None:
    """jaxtyping takes an annotation that it cannot evaluate for Any, silently."""
    from steepest import numerics, returns
    from steepest.losses import policy_gradient, trust_region, value

    for module in (distributions, numerics, returns, policy_gradient, trust_region, value):
        functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        methods = [f for c in classes for f in vars(c).values() if inspect.isfunction(f)]
        for function in [*functions, *(m for m in methods if m.__module__ == module.__name__)]:
            inspect.get_annotations(inspect.unwrap(function), eval_str=True)
