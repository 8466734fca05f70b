"""DPO's updates on a language whose responses are all listed, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_tokens import F64, PLAIN, listed, listed_reference, normal, small_language
from steepest.exact import language as exact
from steepest.exact import preferences
from steepest.exact.token_batches import TabularLM, padded
from steepest.language.training.dpo import DPO, DPOConfig, ScoredPairs
from steepest.types import PreferenceBatch

LANGUAGE = small_language()
KL_COEF = 0.6


def labelled(
    reference: Tensor, score: Tensor, n: int, generator: torch.Generator
) -> tuple[PreferenceBatch, Tensor, Tensor, Tensor]:
    """n pairs drawn from the reference and labelled by Bradley-Terry; prompts, chosen and rejected by number."""
    x = torch.multinomial(LANGUAGE.prompt_weight, n, replacement=True, generator=generator)
    y = torch.multinomial(
        exact.response_log_probs(LANGUAGE, reference).exp()[x], 2, replacement=True, generator=generator
    )
    p = preferences.preference_probs(score)[x, y[:, 0], y[:, 1]]
    first = torch.rand(n, generator=generator, dtype=F64) < p
    chosen, rejected = torch.where(first, y[:, 0], y[:, 1]), torch.where(first, y[:, 1], y[:, 0])
    return PreferenceBatch(padded(LANGUAGE, x, chosen), padded(LANGUAGE, x, rejected)), x, chosen, rejected


def dpo(table: Tensor, reference: Tensor, **config: Any) -> DPO:
    settings = DPOConfig(**{"kl_coef": KL_COEF, **PLAIN, **config})
    ref = listed_reference(TabularLM(LANGUAGE, reference))
    return DPO(listed(TabularLM(LANGUAGE, table)), settings, (), reference=ref)


def scored(trainer: DPO, batch: PreferenceBatch) -> ScoredPairs:
    return ScoredPairs(batch, trainer.reference_log_probs(batch))


@pytest.mark.parametrize("parts", [1, 3])
def test_updates_descend_the_population_loss(parts: int) -> None:
    """One update is a step of AdamW on the mean over pairs, computed here from the listed log-probabilities."""
    reference, score = normal(100, LANGUAGE.table_shape), normal(200, LANGUAGE.response_shape)
    table = reference + 0.3 * normal(0, LANGUAGE.table_shape)
    batch, x, chosen, rejected = labelled(reference, score, 13, torch.Generator().manual_seed(0))
    trainer = dpo(table, reference, learning_rate=0.01)
    ref = exact.response_log_probs(LANGUAGE, reference)
    refs = trainer.reference_log_probs(batch)
    torch.testing.assert_close(refs, (ref[x, chosen], ref[x, rejected]), rtol=1e-12, atol=1e-12)
    leaf = table.clone().requires_grad_()
    log_ratio = exact.response_log_probs(LANGUAGE, leaf) - ref
    margin = KL_COEF * (log_ratio[x, chosen] - log_ratio[x, rejected])
    loss = torch.log1p(torch.exp(-margin)).mean()
    (g,) = torch.autograd.grad(loss, leaf)
    cut = torch.arange(13).tensor_split(parts)  # 5, 4 and 4 pairs: a mean of means would be another
    some = [ScoredPairs(PreferenceBatch(*(s.rows(i) for s in batch)), (refs[0][i], refs[1][i])) for i in cut]
    found, count = trainer.descend(some)
    assert count == 13
    moved = trainer.named["function.table"].detach()
    torch.testing.assert_close(moved, table - 0.01 * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-9)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    assert found["rewards/margins"] == pytest.approx(float(margin.detach().mean()), rel=1e-10)
    assert found["rewards/accuracies"] == pytest.approx(float((margin > 0).double().mean()))
    assert found["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-10)
    log_ratio = log_ratio.detach()
    assert found["kl"] == pytest.approx(-0.5 * float((log_ratio[x, chosen] + log_ratio[x, rejected]).mean()))


def test_the_sft_term_is_the_mean_loss_per_token_of_the_chosen() -> None:
    reference, score = normal(100, LANGUAGE.table_shape), normal(200, LANGUAGE.response_shape)
    table = reference + 0.3 * normal(0, LANGUAGE.table_shape)
    batch, x, chosen, _ = labelled(reference, score, 13, torch.Generator().manual_seed(0))
    plain, both = (dpo(table, reference, sft_coef=c) for c in (0.0, 0.7))
    (one, _), (other, figures) = (t.losses(scored(t, batch)) for t in (plain, both))
    per_token = -exact.response_log_probs(LANGUAGE, table)[x, chosen] / LANGUAGE.mask.sum(-1)[chosen]
    torch.testing.assert_close(other - one, 0.7 * per_token, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(figures["preference_loss"], one.detach(), rtol=1e-12, atol=0)


def test_sampled_pairs_approach_the_optimum() -> None:
    """Trained on pairs, the policy comes near pi*, the nearer the more pairs there are.

    The error of a maximum-likelihood estimate falls as 1 / n; from 100 pairs to 5000 by a factor of 50 on average,
    and by a factor of 10 here to be safe from chance.
    """
    reference, score = normal(100, LANGUAGE.table_shape), normal(200, LANGUAGE.response_shape)
    ref = exact.response_log_probs(LANGUAGE, reference)
    optimum = exact.optimal_log_probs(ref, score, KL_COEF)

    def error(n: int) -> float:
        batch, *_ = labelled(reference, score, n, torch.Generator().manual_seed(1))
        trainer = dpo(reference, reference, learning_rate=0.1, schedule="linear", epochs=100)
        pairs = scored(trainer, batch)
        for _ in range(100):
            trainer.advance(*trainer.descend([pairs]))
        assert trainer.done
        log_prob = exact.response_log_probs(LANGUAGE, trainer.named["function.table"].detach())
        return float(exact.prompt_mean(LANGUAGE, exact.kl_divergence(log_prob, optimum)))

    few, many = error(100), error(5_000)
    start = float(exact.prompt_mean(LANGUAGE, exact.kl_divergence(ref, optimum)))
    assert many < 0.1 * min(few, start)
