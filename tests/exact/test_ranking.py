"""Losses of rankings, ties and thumbs against their definitions, written out or listed, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers_tokens import F64, normal, small_language
from steepest.exact import language as exact
from steepest.losses import (
    bradley_terry_loss,
    davidson_preference_loss,
    davidson_tie_loss,
    kto_loss,
    kto_reference_point,
    plackett_luce_loss,
)

LANGUAGE = small_language()
KL_COEF = 0.6


def close(found: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient by central differences."""
    units = torch.eye(at.numel(), dtype=F64).view(-1, *at.shape)
    return torch.stack([function(at + step * u) - function(at - step * u) for u in units]).view(at.shape) / (2 * step)


# Plackett-Luce


def drawn_probability(worth: list[float], order: tuple[int, ...], places: int) -> float:
    """Draw the best in proportion to its worth, take it away, and so on."""
    left, probability = list(order), 1.0
    for best in order[:places]:
        probability *= worth[best] / math.fsum(worth[i] for i in left)
        left.remove(best)
    return probability


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_plackett_luce_sums_to_one(size: int) -> None:
    """Over all orders, each as it is drawn; the best of all wins with the probability of a softmax."""
    score = normal(size, (size,))
    orders = torch.tensor(list(itertools.permutations(range(size))))
    found = torch.exp(-plackett_luce_loss(score[orders]))
    worth = score.exp().tolist()
    expected = [drawn_probability(worth, tuple(order), size) for order in orders.tolist()]
    close(found, torch.tensor(expected, dtype=F64))
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
    first = torch.zeros(size, dtype=F64).index_add(0, orders[:, 0], found)
    close(first, torch.softmax(score, -1))
    # What is read backwards is another model: the worst chosen first.
    backwards = torch.exp(-plackett_luce_loss(score[orders.flip(-1)]))
    assert size == 2 or float((backwards - found).abs().max()) > 1e-3


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    first, second = normal(0, (6,)), normal(1, (6,))
    score = torch.stack([first, second], -1)
    for places in (1, 2, None):
        close(plackett_luce_loss(score, places=places), bradley_terry_loss(first, second))


@pytest.mark.parametrize("places", [1, 2, 3, 4])
def test_partial_rankings_are_sums_over_the_rest(places: int) -> None:
    """The first places are as likely as all whole rankings that begin with them, together."""
    score = normal(7, (4,))
    for top in itertools.permutations(range(4), places):
        rest = [i for i in range(4) if i not in top]
        whole = torch.tensor([[*top, *order] for order in itertools.permutations(rest)])
        expected = torch.exp(-plackett_luce_loss(score[whole])).sum()
        for order in whole:  # in whichever order the rest stands
            close(torch.exp(-plackett_luce_loss(score[order], places=places)), expected)
            counted = plackett_luce_loss(score[order], places=torch.tensor(places))
            close(torch.exp(-counted), expected)


def test_padding_counts_for_nothing() -> None:
    """Rankings of two, three and four in one batch, whatever stands behind them, and without gradient for it."""
    score = normal(3, (3, 5))
    candidates, places = torch.tensor([2, 3, 4]), torch.tensor([2, 1, 3])
    found = plackett_luce_loss(score, places=places, candidates=candidates)
    for i in range(3):
        n, m = int(candidates[i]), int(places[i])
        close(found[i], plackett_luce_loss(score[i, :n], places=m))
    real = torch.arange(5) < candidates.unsqueeze(-1)
    other = torch.where(real, score, 1e6 * torch.ones_like(score))
    close(plackett_luce_loss(other, places=places, candidates=candidates), found)
    gradient = slope(lambda x: plackett_luce_loss(x, places=places, candidates=candidates).sum(), other)
    assert not gradient[~real].any()
    assert gradient[real].any()


@pytest.mark.parametrize("places", [1, 2, 4])
def test_plackett_luce_gradient_against_differences(places: int) -> None:
    score = normal(11, (3, 4))

    def loss(x: Tensor) -> Tensor:
        return (plackett_luce_loss(x, places=places) * torch.tensor([1.0, -2.0, 0.5], dtype=F64)).sum()

    found = slope(loss, score)
    close(found, differences(loss, score), rtol=1e-7)
    close(found.sum(-1), torch.zeros(3, dtype=F64))  # a function of differences
    assert float(found.norm()) > 0.1


def test_scores_of_any_size_give_numbers() -> None:
    """Worths overflow where scores do not."""
    score = torch.tensor([[900.0, 0.0, -900.0], [-900.0, 0.0, 900.0]], dtype=F64)
    close(plackett_luce_loss(score), torch.tensor([0.0, 900.0 + 1800.0], dtype=F64))
    assert bool(slope(lambda x: plackett_luce_loss(x).sum(), score).isfinite().all())


# Davidson


def written_out(first: float, second: float, nu: float) -> tuple[float, float, float]:
    """(first wins, second wins, tie), from the worths."""
    a, b = math.exp(first), math.exp(second)
    tie = nu * math.sqrt(a * b)
    return a / (a + b + tie), b / (a + b + tie), tie / (a + b + tie)


@pytest.mark.parametrize("nu", [0.0, 0.3, 2.5])
def test_davidson_by_its_definition(nu: float) -> None:
    first, second = normal(0, (6,)), normal(1, (6,))
    found = [
        torch.exp(-davidson_preference_loss(first, second, nu)),
        torch.exp(-davidson_preference_loss(second, first, nu)),
        torch.exp(-davidson_tie_loss(first, second, nu)),
    ]
    close(torch.stack(found).sum(0), torch.ones(6, dtype=F64))
    for i in range(6):
        for part, expected in zip(found, written_out(float(first[i]), float(second[i]), nu), strict=True):
            assert float(part[i]) == pytest.approx(expected, rel=1e-12)
    close(davidson_tie_loss(first, second, nu), davidson_tie_loss(second, first, nu))
    equal = torch.exp(-davidson_tie_loss(first, first, nu))
    close(equal, torch.full((6,), nu / (2.0 + nu), dtype=F64))
    as_tensor = torch.tensor(nu, dtype=F64)
    close(davidson_preference_loss(first, second, as_tensor), davidson_preference_loss(first, second, nu))


def test_without_ties_davidson_is_bradley_terry() -> None:
    """To the last digit, for scores far apart too, and with a slope in nu where it is 0."""
    first = torch.tensor([0.0, 1.0, -3.0, 45.0, 800.0, -800.0], dtype=F64)
    second = torch.zeros_like(first)
    assert torch.equal(davidson_preference_loss(first, second, 0.0), bradley_terry_loss(first, second))
    assert bool(davidson_tie_loss(first, second, 0.0).isposinf().all())
    nu = torch.zeros((), dtype=F64)
    found = slope(lambda x: davidson_preference_loss(first[:3], second[:3], x).sum(), nu)
    worths = (first[:3] / 2).exp() + (-first[:3] / 2).exp()
    close(found, (1.0 / worths).sum())


@pytest.mark.parametrize("nu", [0.4, 1.7])
def test_the_tie_weight_is_learned(nu: float) -> None:
    """Given what happens on average, scores and nu both come to rest where the truth is, and there alone."""
    score = normal(5, (3,))
    pairs = torch.tensor(list(itertools.combinations(range(3), 2)))
    first, second = score[pairs[:, 0]], score[pairs[:, 1]]
    happens = torch.tensor([written_out(float(a), float(b), nu) for a, b in zip(first, second, strict=True)], dtype=F64)

    def expected_loss(x: Tensor) -> Tensor:
        """Of three scores and the logarithm of nu."""
        a, b, tie_weight = x[pairs[:, 0]], x[pairs[:, 1]], x[3].exp()
        each = (
            davidson_preference_loss(a, b, tie_weight),
            davidson_preference_loss(b, a, tie_weight),
            davidson_tie_loss(a, b, tie_weight),
        )
        return (happens * torch.stack(each, -1)).sum()

    truth = torch.cat([score, torch.tensor([math.log(nu)], dtype=F64)])
    close(slope(expected_loss, truth), torch.zeros(4, dtype=F64))
    for i in range(4):
        beside = truth + 0.1 * torch.eye(4, dtype=F64)[i]
        assert float(expected_loss(beside)) > float(expected_loss(truth)) + 1e-4
        close(slope(expected_loss, beside), differences(expected_loss, beside), rtol=1e-6)


# KTO


def divergence(log_p: Tensor, log_ref: Tensor) -> Tensor:
    """(P,) KL(pi(.|x) || ref(.|x)) over all responses."""
    return (log_p.exp() * (log_p - log_ref)).sum(-1)


@pytest.mark.parametrize(("desirable_weight", "undesirable_weight"), [(1.0, 1.0), (1.33, 0.5), (0.0, 2.0)])
def test_kto_by_its_definition(desirable_weight: float, undesirable_weight: float) -> None:
    """Every response of a listed language, with a thumb up and with a thumb down, in plain numbers."""
    log_p = exact.response_log_probs(LANGUAGE, normal(0, LANGUAGE.table_shape))
    log_ref = exact.response_log_probs(LANGUAGE, normal(1, LANGUAGE.table_shape))
    kl = divergence(log_p, log_ref)
    for up in (True, False):
        thumbs = torch.full(log_p.shape, up)
        found = kto_loss(log_p, log_ref, thumbs, kl.unsqueeze(-1), KL_COEF, desirable_weight, undesirable_weight)
        for x, y in itertools.product(range(log_p.shape[0]), range(log_p.shape[1])):
            reward, z = float(log_p[x, y]) - float(log_ref[x, y]), float(kl[x])
            if up:
                value = desirable_weight / (1.0 + math.exp(-KL_COEF * (reward - z)))
                expected = desirable_weight - value
            else:
                value = undesirable_weight / (1.0 + math.exp(-KL_COEF * (z - reward)))
                expected = undesirable_weight - value
            assert float(found[x, y]) == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_kto_gradient_over_all_responses() -> None:
    """-lambda beta sigma'(beta (r - z)) grad log pi for a thumb up, + for one down, with z a number beside it."""
    table, thumbs = normal(2, LANGUAGE.table_shape), normal(3, LANGUAGE.response_shape) > 0.0
    log_ref = exact.response_log_probs(LANGUAGE, normal(4, LANGUAGE.table_shape))
    weights = (1.2, 0.7)

    def loss(t: Tensor, kl_of: Tensor) -> Tensor:
        log_p = exact.response_log_probs(LANGUAGE, t)
        kl = divergence(exact.response_log_probs(LANGUAGE, kl_of), log_ref)
        return kto_loss(log_p, log_ref, thumbs, kl.unsqueeze(-1), KL_COEF, *weights).sum()

    log_p = exact.response_log_probs(LANGUAGE, table)
    gain = KL_COEF * (log_p - log_ref - divergence(log_p, log_ref).unsqueeze(-1))
    steepness = torch.sigmoid(gain) * (1.0 - torch.sigmoid(gain))
    factor = KL_COEF * steepness * torch.where(thumbs, *torch.tensor([-weights[0], weights[1]], dtype=F64))
    expected = slope(lambda t: (factor * exact.response_log_probs(LANGUAGE, t)).sum(), table)
    close(slope(lambda t: loss(t, table), table), expected)
    close(slope(lambda t: loss(t, t), table), expected)  # no gradient through the reference point
    close(slope(lambda t: loss(t, table), table), differences(lambda t: loss(t, table), table), rtol=1e-6)
    # Through it, the gradient would be another one.
    through = differences(lambda t: loss(t, t), table)
    assert float((through - expected).norm()) > 1e-2 * float(expected.norm())


def test_kto_at_the_reference() -> None:
    """Half of each weight, whichever thumb; and thumbs pull the log-probability up and down."""
    log_p = -3.0 * normal(6, (5,)).abs()
    zero, up = torch.zeros(5, dtype=F64), torch.tensor([True, True, False, False, True])
    found = kto_loss(log_p, log_p, up, zero, KL_COEF, 2.0, 3.0)
    close(found, torch.where(up, 1.0, 1.5).to(F64))
    pull = slope(lambda x: kto_loss(x, log_p, up, zero, KL_COEF).sum(), log_p)
    assert bool((pull[up] < 0.0).all())
    assert bool((pull[~up] > 0.0).all())


def test_kto_gradient_reaches_the_policy_alone() -> None:
    three = [normal(i, (4,)).requires_grad_() for i in range(3)]
    thumbs = torch.tensor([True, False, True, False])
    loss = kto_loss(three[0], three[1], thumbs, three[2], KL_COEF).sum()
    found = torch.autograd.grad(loss, three, allow_unused=True)
    assert found[0] is not None
    assert found[1:] == (None, None)
    assert not kto_reference_point(three[0], three[1]).requires_grad


def test_the_reference_point_by_hand() -> None:
    log_p = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -2.0, -3.0]], dtype=F64)
    log_ref = torch.tensor([[-2.0, -2.0, -4.5], [-0.5, -1.0, -3.0]], dtype=F64)
    close(kto_reference_point(log_p, log_ref), torch.tensor([0.5, 0.0], dtype=F64))  # (1 + 0 + 0.5) / 3; below 0
    # Drawn from the policy itself, it is the divergence: here by every response in its proportion.
    p = torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()
    ref = torch.tensor([0.25, 0.25, 0.5], dtype=F64).log()
    drawn = torch.tensor([0, 0, 1, 2])
    close(kto_reference_point(p[drawn], ref[drawn]), (p.exp() * (p - ref)).sum())


# What cannot be


def test_bad_arguments_are_refused() -> None:
    score = normal(0, (4,))
    for places, candidates in ((0, None), (5, None), (3, 2), (1, 5), (-1, 3)):
        with pytest.raises(ValueError, match="places"):
            plackett_luce_loss(score, places=places, candidates=candidates)
    for function in (davidson_preference_loss, davidson_tie_loss):
        with pytest.raises(ValueError, match=r"tie_weight is -0\.1"):
            function(score, score, -0.1)
    up = torch.ones(4, dtype=torch.bool)
    for kl_coef in (0.0, -1.0):
        with pytest.raises(ValueError, match="kl_coef"):
            kto_loss(score, score, up, score, kl_coef)
    for weights in ((-1.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="undesirable_weight"):
            kto_loss(score, score, up, score, KL_COEF, *weights)
