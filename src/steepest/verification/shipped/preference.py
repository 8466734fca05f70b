"""Reward models and direct preference optimisation (notes 2.2.1 and 2.2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steepest import losses
from steepest.exact import language as languages
from steepest.exact import preferences as exact_preferences
from steepest.verification.random_problems import Preferences, preferences
from steepest.verification.statement import Rows, Sides, gradient, loss, vanishing

rows = Rows()


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(P, R, 1) and (P, 1, R): the first and the second response of every pair."""
    return x.unsqueeze(-1), x.unsqueeze(-2)


def _drawn_mean(p: Preferences, per_pair: Tensor) -> Tensor:
    """The mean of (P, R, R) over prompts, and over pairs drawn from the reference."""
    weight = exact_preferences.pair_weights(p.log_reference)
    return languages.prompt_mean(p.language, (weight * per_pair).sum((-2, -1)))


def _value_and_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return torch.cat([function(at).reshape(1), gradient(function, at).flatten()])


@rows.equality("2.2.1", "L_R over all pairs, value and gradient", preferences, tested="losses.bradley_terry_loss")
def reward_loss(p: Preferences) -> Sides:
    """Over all pairs, as they are drawn and labelled, the Bradley-Terry loss and its gradient are the population's."""
    preference = exact_preferences.preference_probs(p.score)
    model = torch.sin(5.0 * p.score)

    def shipped(score: Tensor) -> Tensor:
        first, second = _pairs(score)
        won, lost = losses.bradley_terry_loss(first, second), losses.bradley_terry_loss(second, first)
        return _drawn_mean(p, preference * won + (1.0 - preference) * lost)

    def exact(score: Tensor) -> Tensor:
        return exact_preferences.preference_loss(
            p.language, score, preference, exact_preferences.pair_weights(p.log_reference)
        )

    return Sides(_value_and_slope(shipped, model), _value_and_slope(exact, model))


@rows.equality("2.2.1", "L_R of r + f(x)", preferences, tested="losses.bradley_terry_loss")
def reward_loss_invariant(p: Preferences) -> Sides:
    """A function of the prompt added to the reward changes no loss."""
    one, other = (losses.bradley_terry_loss(*_pairs(r)) for r in (p.score + p.shift, p.score))
    return Sides(one, other)


PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _over_pairs(p: Preferences, pair_loss: PairLoss, preference: Tensor) -> Callable[[Tensor], Tensor]:
    """The expectation of a loss over pairs and labels, as a function of the policy's table."""

    def expected(table: Tensor) -> Tensor:
        first, second = _pairs(languages.response_log_probs(p.language, table))
        ref_first, ref_second = _pairs(p.log_reference)
        won = pair_loss(first, second, ref_first, ref_second)
        lost = pair_loss(second, first, ref_second, ref_first)
        return _drawn_mean(p, preference * won + (1.0 - preference) * lost)

    return expected


def _population(p: Preferences) -> Callable[[Tensor], Tensor]:
    preference = exact_preferences.preference_probs(p.score)

    def exact(table: Tensor) -> Tensor:
        log_prob = languages.response_log_probs(p.language, table)
        return exact_preferences.dpo_loss(p.language, log_prob, p.log_reference, preference, p.kl_coef)

    return exact


def _dpo(p: Preferences, *, exchanged: bool = False, reference: float = 1.0) -> Callable[[Tensor], Tensor]:
    preference = exact_preferences.preference_probs(p.score)
    return _over_pairs(
        p,
        lambda a, b, c, d: losses.dpo_loss(a, b, reference * c, reference * d, p.kl_coef),
        1.0 - preference if exchanged else preference,
    )


@rows.equality("2.2.2", "L_DPO over all pairs, value and gradient", preferences, tested="losses.dpo_loss")
def dpo_over_pairs(p: Preferences) -> Sides:
    """Over all pairs, as they are drawn and labelled, the DPO loss and its gradient are the population's."""
    return Sides(_value_and_slope(_dpo(p), p.logits), _value_and_slope(_population(p), p.logits))


@rows.control("2.2.2", "L_DPO, chosen and rejected exchanged", preferences, tested="losses.dpo_loss", exchanged=True)
@rows.control("2.2.2", "L_DPO without the reference", preferences, tested="losses.dpo_loss", reference=0.0)
def wrong_dpo(p: Preferences, **mistake: Any) -> Sides:
    """Negative controls: chosen and rejected exchanged; log-probabilities taken for log-ratios."""
    return Sides(gradient(_dpo(p, **mistake), p.logits), gradient(_population(p), p.logits))


@rows.equality("2.2.2", "L_DPO is at rest at pi*", preferences, tested="losses.dpo_loss")
def dpo_at_rest(p: Preferences) -> Sides:
    """pi* of Lemma 7 is where DPO comes to rest."""
    optimum = languages.policy_logits(p.language, p.log_optimum)
    return vanishing(gradient(_dpo(p), optimum), gradient(_dpo(p), p.logits))


@rows.equality("2.2.2", "L_DPO = ln 2 at the reference", preferences, tested="losses.dpo_loss")
def dpo_at_the_reference(p: Preferences) -> Sides:
    """Where the policy is the reference every pair's loss is ln 2."""
    found = losses.dpo_loss(*_pairs(p.log_reference), *_pairs(p.log_reference), p.kl_coef)
    return Sides(found, torch.full_like(found, math.log(2.0)))


@rows.equality("2.2.2", "margins of pi* = differences of r + f(x)", preferences, tested="losses.preference_metrics")
def dpo_margins(p: Preferences) -> Sides:
    """At pi* the margins that are reported are the differences of the true reward, whatever f(x) is added to it."""
    metrics = losses.preference_metrics(*_pairs(p.log_optimum), *_pairs(p.log_reference), p.kl_coef)
    first, second = _pairs(p.score + p.shift)
    return Sides(metrics["rewards/margins"], first - second)


@rows.equality("2.2.2", "smoothed DPO with soft labels", preferences, tested="losses.smoothed_dpo_loss")
def soft_labels(p: Preferences) -> Sides:
    """Smoothing by 1 - p(y1 > y2|x) of each pair is DPO on soft labels."""
    eps = 1.0 - exact_preferences.preference_probs(p.score)

    def soft(table: Tensor) -> Tensor:
        four = (*_pairs(languages.response_log_probs(p.language, table)), *_pairs(p.log_reference))
        return _drawn_mean(p, losses.smoothed_dpo_loss(*four, p.kl_coef, eps))

    return Sides(_value_and_slope(soft, p.logits), _value_and_slope(_population(p), p.logits))


_FLIPS = 0.2


@rows.equality("2.2.2", "robust DPO undoes flipped labels", preferences, **loss("robust_dpo_loss"))
@rows.control("2.2.2", "smoothed DPO undoes flipped labels", preferences, **loss("smoothed_dpo_loss"))
def labels_flipped(p: Preferences, name: str) -> Sides:
    """The robust loss undoes wrong labels, a fifth of all, on average. Negative control: the smoothed does not."""
    preference = exact_preferences.preference_probs(p.score)
    observed = (1.0 - _FLIPS) * preference + _FLIPS * (1.0 - preference)
    function = getattr(losses, name)
    found = gradient(_over_pairs(p, lambda a, b, c, d: function(a, b, c, d, p.kl_coef, _FLIPS), observed), p.logits)
    return Sides(found, gradient(_population(p), p.logits))


@rows.equality("2.2.2", "IPO is at rest at (2p - 1)/(2 beta)", preferences, tested="losses.ipo_loss")
def ipo_at_rest(p: Preferences) -> Sides:
    """A pair labelled with probability p is at rest for IPO where its margin is (2p - 1) / (2 beta)."""
    preference = exact_preferences.preference_probs(p.score)
    best = (2.0 * preference - 1.0) / (2.0 * p.kl_coef)

    def expected(h: Tensor) -> Tensor:
        zero = torch.zeros_like(h)
        won = losses.ipo_loss(h, zero, zero, zero, p.kl_coef)
        return (preference * won + (1.0 - preference) * losses.ipo_loss(zero, h, zero, zero, p.kl_coef)).sum()

    return vanishing(gradient(expected, best), gradient(expected, torch.zeros_like(best)))


@rows.equality("2.2.2", "r = implicit reward + beta log Z", preferences, tested="losses.implicit_reward")
def implicit_reward(p: Preferences) -> Sides:
    """The implicit reward of pi*, plus beta log Z(x), is the reward."""
    found = losses.implicit_reward(p.log_optimum, p.log_reference, p.kl_coef)
    return Sides(found + p.kl_coef * p.partition.log().unsqueeze(-1), p.score)
