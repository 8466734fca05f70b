"""Preference losses on a language whose responses are all listed, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_tokens import F64, listed, normal, small_language
from steepest import losses
from steepest.exact import language as exact
from steepest.exact import preferences
from steepest.exact.token_batches import TabularLM, everything
from steepest.language.data.tokens import response_log_probs, token_log_probs
from steepest.language.scoring import scoring
from steepest.losses import (
    bradley_terry_loss,
    dpo_loss,
    hinge_dpo_loss,
    implicit_reward,
    ipo_loss,
    length_normalized_dpo_loss,
    preference_metrics,
    robust_dpo_loss,
    score_centring_loss,
    smoothed_dpo_loss,
)

LANGUAGE = small_language()
KL_COEF = 0.6


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=atol)


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reference logits and scores."""
    return (
        normal(seed, LANGUAGE.table_shape),
        normal(seed + 100, LANGUAGE.table_shape),
        normal(seed + 200, LANGUAGE.response_shape),
    )


def log_probs(table: Tensor) -> Tensor:
    """(P, R) by the shipped path: a padded batch of every response, a model's logits, gather and masks."""
    batch = everything(LANGUAGE)
    model = TabularLM(LANGUAGE, table)
    logits = torch.func.functional_call(model, {"table": table}, (batch.tokens, batch.attention_mask))
    return response_log_probs(logits, batch).reshape(LANGUAGE.response_shape)


# Log-probabilities


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("padding", [{"left": 0, "right": 0}, {"left": 2}, {"right": 3}], ids=str)
def test_log_probs_of_padded_responses(seed: int, padding: dict[str, int]) -> None:
    """Gather and masks give log pi(y|x) of every response, wherever the padding is and whatever is said about it."""
    table, _, _ = problem(seed)
    batch = everything(LANGUAGE, **padding)
    logits = TabularLM(LANGUAGE, table)(batch.tokens, batch.attention_mask).detach()
    expected = exact.response_log_probs(LANGUAGE, table)
    close(response_log_probs(logits, batch).reshape(expected.shape), expected)
    tokens = token_log_probs(logits, batch.tokens)
    assert tokens.shape == (len(batch.tokens), batch.tokens.shape[1] - 1)
    each = exact.token_log_probs(LANGUAGE, table).flatten(0, 1)
    mask = LANGUAGE.mask.repeat(len(LANGUAGE.prompts), 1)
    close(tokens[batch.response_mask[:, 1:]], each[mask])
    other = batch._replace(tokens=torch.where(batch.attention_mask, batch.tokens, 2))
    logits = torch.where(batch.attention_mask.unsqueeze(-1), logits, normal(3, logits.shape))
    close(response_log_probs(logits, other).reshape(expected.shape), expected)
    # The gradient too is that of the listed probabilities.
    weight = normal(4, expected.shape)
    found = slope(lambda t: (weight * log_probs(t)).sum(), table)
    close(found, slope(lambda t: (weight * exact.response_log_probs(LANGUAGE, t)).sum(), table))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scoring_gives_the_listed_log_probs(temperature: float) -> None:
    """What the trainers read, at the token that it is about: the same as from all logits, and as listed."""
    table, _, _ = problem(0)
    batch = everything(LANGUAGE)
    found = scoring.token_log_probs(listed(TabularLM(LANGUAGE, table)), batch, temperature=temperature).detach()
    close(found.sum(-1).reshape(LANGUAGE.response_shape), exact.response_log_probs(LANGUAGE, table / temperature))
    logits = TabularLM(LANGUAGE, table)(batch.tokens, batch.attention_mask).detach()
    each = token_log_probs(logits, batch.tokens, temperature)
    close(found[:, 1:][batch.response_mask[:, 1:]], each[batch.response_mask[:, 1:]])
    assert not found[~batch.response_mask].any()


def test_a_mask_made_from_ids_loses_the_end() -> None:
    """Padding has the id of EOS here. Masked by id, the probabilities of all responses no longer sum to 1."""
    table, _, _ = problem(0)
    batch = everything(LANGUAGE)
    logits = TabularLM(LANGUAGE, table)(batch.tokens, batch.attention_mask).detach()
    right = response_log_probs(logits, batch).reshape(LANGUAGE.response_shape)
    by_id = batch._replace(response_mask=batch.response_mask & (batch.tokens != LANGUAGE.eos))
    wrong = response_log_probs(logits, by_id).reshape(LANGUAGE.response_shape)
    close(right.exp().sum(-1), torch.ones(2, dtype=F64))
    assert float((wrong.exp().sum(-1) - 1.0).abs().min()) > 0.5


def test_temperature_and_precision() -> None:
    table, _, _ = problem(0)
    batch = everything(LANGUAGE)
    logits = TabularLM(LANGUAGE, table)(batch.tokens, batch.attention_mask).detach()
    expected = exact.response_log_probs(LANGUAGE, table / 0.7)
    close(response_log_probs(logits, batch, 0.7).reshape(expected.shape), expected)
    half = token_log_probs(logits.bfloat16(), batch.tokens)
    assert half.dtype == torch.float32
    same = token_log_probs(logits.bfloat16().double(), batch.tokens)
    torch.testing.assert_close(half.double(), same, rtol=1e-5, atol=1e-5)


# Reward models


def all_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(P, R, 1) and (P, 1, R)."""
    return x.unsqueeze(-1), x.unsqueeze(-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_reward_losses_over_all_pairs(seed: int) -> None:
    """Averaged over all pairs as they are drawn and labelled, the loss and its gradient are the population's."""
    _, reference, score = problem(seed)
    weight = preferences.pair_weights(exact.response_log_probs(LANGUAGE, reference))
    preference = preferences.preference_probs(score)

    def expected_loss(r: Tensor) -> Tensor:
        first, second = all_pairs(r)
        both = preference * bradley_terry_loss(first, second) + (1.0 - preference) * bradley_terry_loss(second, first)
        return exact.prompt_mean(LANGUAGE, (weight * both).sum((-2, -1)))

    def population(r: Tensor) -> Tensor:
        return preferences.preference_loss(LANGUAGE, r, preference, weight)

    model = normal(seed + 300, score.shape)
    close(expected_loss(model), population(model))
    close(slope(expected_loss, model), slope(population, model))
    close(slope(expected_loss, score + normal(9, (2, 1))), torch.zeros_like(score))
    swapped = (weight * bradley_terry_loss(*reversed(all_pairs(model))) * preference).sum()
    assert float((swapped - (weight * bradley_terry_loss(*all_pairs(model)) * preference).sum()).abs()) > 1e-2


def test_bradley_terry_by_hand() -> None:
    r = torch.tensor([2.0, -1.0, 0.0, 800.0, -800.0], dtype=F64)
    zero = torch.zeros_like(r)
    expected = torch.tensor([math.log1p(math.exp(-2)), 1 + math.log1p(math.exp(-1)), math.log(2), 0, 800], dtype=F64)
    close(bradley_terry_loss(r, zero), expected)
    close(bradley_terry_loss(r + 3.0, zero + 3.0), expected)


def test_centring_by_hand() -> None:
    a, b = torch.tensor([1.0, -2.0, 3.0], dtype=F64), torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    close(score_centring_loss(a, b), torch.tensor([2.25, 0.0, 16.0], dtype=F64))
    # The shift that preferences leave open goes to where the mean score is 0, and the differences stay.
    shift = torch.zeros((), dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(score_centring_loss(a + shift, b + shift).mean(), shift)
    assert float(g) == pytest.approx(4.0 * float((a + b).mean()))


# DPO


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_over_all_pairs(seed: int) -> None:
    """Averaged over all pairs, value and gradient are those of the exact population loss; so with soft labels."""
    table, reference, score = problem(seed)
    ref = exact.response_log_probs(LANGUAGE, reference)
    weight, preference = preferences.pair_weights(ref), preferences.preference_probs(score)

    def sampled(t: Tensor) -> Tensor:
        first, second = all_pairs(log_probs(t))
        ref_first, ref_second = all_pairs(ref)
        one = dpo_loss(first, second, ref_first, ref_second, KL_COEF)
        other = dpo_loss(second, first, ref_second, ref_first, KL_COEF)
        per_pair = preference * one + (1.0 - preference) * other
        return exact.prompt_mean(LANGUAGE, (weight * per_pair).sum((-2, -1)))

    def soft(t: Tensor) -> Tensor:
        first, second = all_pairs(log_probs(t))
        per_pair = smoothed_dpo_loss(first, second, *all_pairs(ref), KL_COEF, 1.0 - preference)
        return exact.prompt_mean(LANGUAGE, (weight * per_pair).sum((-2, -1)))

    def population(t: Tensor) -> Tensor:
        return preferences.dpo_loss(LANGUAGE, exact.response_log_probs(LANGUAGE, t), ref, preference, KL_COEF)

    for function in (sampled, soft):
        close(function(table), population(table))
        close(slope(function, table), slope(population, table))
    optimum = exact.policy_logits(LANGUAGE, exact.optimal_log_probs(ref, score, KL_COEF))
    close(slope(sampled, optimum), torch.zeros_like(table))
    assert float(slope(sampled, reference).norm()) > 1e-2


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_reaches_the_rlhf_optimum(seed: int) -> None:
    """Descending the population loss from the reference, token by token, ends at ref exp(r / beta) / Z."""
    _, reference, score = problem(seed)
    ref = exact.response_log_probs(LANGUAGE, reference)
    weight, preference = preferences.pair_weights(ref), preferences.preference_probs(score)
    optimum = exact.optimal_log_probs(ref, score, KL_COEF)
    table = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [table], max_iter=400, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        per_pair = smoothed_dpo_loss(*all_pairs(log_probs(table)), *all_pairs(ref), KL_COEF, 1.0 - preference)
        value = exact.prompt_mean(LANGUAGE, (weight * per_pair).sum((-2, -1)))
        value.backward()
        return value

    def distance() -> float:
        return float(exact.kl_divergence(exact.response_log_probs(LANGUAGE, table.detach()), optimum).max())

    assert distance() > 0.1
    optimizer.step(loss)
    assert distance() < 1e-9


def test_implicit_reward_of_the_optimum() -> None:
    """It is the reward but for a function of the prompt: all differences between responses agree."""
    _, reference, score = problem(2)
    ref = exact.response_log_probs(LANGUAGE, reference)
    found = implicit_reward(exact.optimal_log_probs(ref, score, KL_COEF), ref, KL_COEF)
    close(found - found[:, :1], score - score[:, :1])
    close(found + KL_COEF * exact.log_partition(ref, score, KL_COEF)[:, None], score)
    assert float((found - score).abs().max()) > 0.1


def test_a_reward_of_the_prompt_alone_changes_nothing() -> None:
    """r(x, y) + f(x): the same preferences, optimum, margins and losses."""
    _, reference, score = problem(3)
    ref = exact.response_log_probs(LANGUAGE, reference)
    shifted = score + torch.tensor([[2.0], [-5.0]], dtype=F64)
    close(bradley_terry_loss(*all_pairs(shifted)), bradley_terry_loss(*all_pairs(score)))
    one, other = (exact.optimal_log_probs(ref, r, KL_COEF) for r in (score, shifted))
    close(other, one)
    close(implicit_reward(other, ref, KL_COEF), implicit_reward(one, ref, KL_COEF))


ARGUMENTS = ("chosen", "rejected", "ref chosen", "ref rejected")
FOUR_LOSSES = [dpo_loss, ipo_loss, hinge_dpo_loss]
EPS_LOSSES = [smoothed_dpo_loss, robust_dpo_loss]


def pair(seed: int = 0, n: int = 6) -> list[Tensor]:
    return [-3.0 * normal(seed + i, (n,)).abs() for i in range(4)]


def test_variants_by_hand() -> None:
    chosen, rejected, ref_chosen, ref_rejected = pair()
    for i in range(6):
        w, o, rw, ro = (float(x[i]) for x in (chosen, rejected, ref_chosen, ref_rejected))
        h = (w - rw) - (o - ro)
        up, down = math.log1p(math.exp(-KL_COEF * h)), math.log1p(math.exp(KL_COEF * h))
        each: dict[Any, float] = {
            dpo_loss: up,
            ipo_loss: (h - 1 / (2 * KL_COEF)) ** 2,
            hinge_dpo_loss: max(0.0, 1 - KL_COEF * h),
        }
        arguments = [x[i] for x in (chosen, rejected, ref_chosen, ref_rejected)]
        for function, expected in each.items():
            assert float(function(*arguments, KL_COEF)) == pytest.approx(expected, rel=1e-12)
        for eps in (0.0, 0.2, 0.45):
            smooth = (1 - eps) * up + eps * down
            robust = ((1 - eps) * up - eps * down) / (1 - 2 * eps)
            assert float(smoothed_dpo_loss(*arguments, KL_COEF, eps)) == pytest.approx(smooth, rel=1e-12)
            assert float(robust_dpo_loss(*arguments, KL_COEF, eps)) == pytest.approx(robust, rel=1e-11)
        per_token = KL_COEF * ((w - rw) / 3 - (o - ro) / 5)
        lengths = (torch.tensor(3.0, dtype=F64), torch.tensor(5.0, dtype=F64))
        found = length_normalized_dpo_loss(*arguments, *lengths, KL_COEF)
        assert float(found) == pytest.approx(math.log1p(math.exp(-per_token)), rel=1e-12)


def test_no_smoothing_and_length_one_are_plain_dpo() -> None:
    four = pair(1)
    one = torch.ones(6, dtype=F64)
    expected = dpo_loss(*four, KL_COEF)
    for found in (
        smoothed_dpo_loss(*four, KL_COEF, 0.0),
        robust_dpo_loss(*four, KL_COEF, 0.0),
        length_normalized_dpo_loss(*four, one, one, KL_COEF),
        dpo_loss(*four, torch.tensor(KL_COEF, dtype=F64)),
    ):
        close(found, expected)


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_robust_loss_is_unbiased(eps: float) -> None:
    """Over labels flipped with that probability it is DPO on the true labels; plain and smoothed losses are not."""
    w, o, rw, ro = pair(2)
    true = dpo_loss(w, o, rw, ro, KL_COEF)

    def over_flips(function: Callable[..., Tensor], *more: float) -> Tensor:
        straight, flipped = function(w, o, rw, ro, KL_COEF, *more), function(o, w, ro, rw, KL_COEF, *more)
        return (1 - eps) * straight + eps * flipped

    close(over_flips(robust_dpo_loss, eps), true)
    for wrong in (over_flips(dpo_loss), over_flips(smoothed_dpo_loss, eps)):
        assert float((wrong - true).abs().max()) > 1e-2


def test_ipo_optimum() -> None:
    """With labels drawn at probability p, the best margin of a pair is (2p - 1) / (2 beta), finite even for p = 1."""
    for p in (0.5, 0.7, 1.0):
        best = torch.tensor((2 * p - 1) / (2 * KL_COEF), dtype=F64)
        zero = torch.zeros((), dtype=F64)

        def expected_loss(h: Tensor, p: float = p, zero: Tensor = zero) -> Tensor:
            return p * ipo_loss(h, zero, zero, zero, KL_COEF) + (1 - p) * ipo_loss(zero, h, zero, zero, KL_COEF)

        assert float(slope(expected_loss, best)) == pytest.approx(0.0, abs=1e-12)
        assert abs(float(slope(expected_loss, best + 0.1))) > 0.1


def test_at_the_reference() -> None:
    """At step 0 the loss is ln 2, the margin 0, and the accuracy 0, since no pair is ordered."""
    chosen, rejected, _, _ = pair(3)
    same = (chosen, rejected, chosen, rejected)
    for function in (dpo_loss, *(lambda *a, f=f: f(*a, 0.3) for f in [smoothed_dpo_loss])):
        close(function(*same, KL_COEF), torch.full((6,), math.log(2.0), dtype=F64))
    metrics = preference_metrics(*same, KL_COEF)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert not metrics[name].any(), name
    batch = everything(LANGUAGE)
    table, _, _ = problem(0)
    one, other = (response_log_probs(TabularLM(LANGUAGE, table)(*batch[:2]).float(), batch) for _ in range(2))
    loss = dpo_loss(one[:5], one[5:10], other[:5], other[5:10], KL_COEF)
    torch.testing.assert_close(loss, torch.full((5,), math.log(2.0)), rtol=1e-7, atol=0)


def test_metrics_by_hand() -> None:
    numbers = torch.tensor([[-2.0, -5.0, -3.0], [-4.0, -4.0, -3.0], [-3.0, -3.0, -2.0], [-3.0, -6.0, -2.0]], dtype=F64)
    four = [x.clone().requires_grad_() for x in numbers]
    found = preference_metrics(*four, 0.5)
    expected = {
        "rewards/chosen": [0.5, -1.0, -0.5],
        "rewards/rejected": [-0.5, 1.0, -0.5],
        "rewards/margins": [1.0, -2.0, 0.0],
        "rewards/accuracies": [1.0, 0.0, 0.0],  # a tie is not right
        "logps/chosen": [-2.0, -5.0, -3.0],
        "logps/rejected": [-4.0, -4.0, -3.0],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        close(found[name], torch.tensor(values, dtype=F64))
        assert not found[name].requires_grad


@pytest.mark.parametrize("function", [*FOUR_LOSSES, *EPS_LOSSES], ids=lambda f: f.__name__)
def test_gradient_reaches_the_policy_alone(function: Callable[..., Tensor]) -> None:
    four = [x.requires_grad_() for x in pair(4)]
    more = (0.2,) if function in EPS_LOSSES else ()
    found = torch.autograd.grad(function(*four, KL_COEF, *more).sum(), four, allow_unused=True)
    assert found[0] is not None
    assert found[1] is not None
    close(found[0], -found[1])  # a function of the margin
    assert found[2] is None
    assert found[3] is None


def test_bad_arguments_are_refused() -> None:
    four = pair(5)
    for function in FOUR_LOSSES:
        for kl_coef in (0.0, -1.0):
            with pytest.raises(ValueError, match="kl_coef"):
                function(*four, kl_coef)
    for function in EPS_LOSSES:
        for eps in (-0.1, 0.5, 1.0):
            with pytest.raises(ValueError, match="flip_probability"):
                function(*four, KL_COEF, eps)
    with pytest.raises(ValueError, match="kl_coef"):
        losses.preference_metrics(*four, 0.0)
