"""DPO's updates on a language whose responses are all listed, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers_tokens import F64, normal, small_language
from steepest.exact import language as exact
from steepest.exact.text import TabularLM, padded
from steepest.language.dpo import DPO, DPOConfig, reference_log_probs
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
    p = exact.preference_probs(score)[x, y[:, 0], y[:, 1]]
    first = torch.rand(n, generator=generator, dtype=F64) < p
    chosen, rejected = torch.where(first, y[:, 0], y[:, 1]), torch.where(first, y[:, 1], y[:, 0])
    return PreferenceBatch(padded(LANGUAGE, x, chosen), padded(LANGUAGE, x, rejected)), x, chosen, rejected


@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_updates_descend_the_population_loss(microbatch_size: int | None) -> None:
    """One update is a step of Adam on the mean over pairs, computed here from the listed log-probabilities."""
    reference, score = normal(100, LANGUAGE.table_shape), normal(200, LANGUAGE.response_shape)
    table = reference + 0.3 * normal(0, LANGUAGE.table_shape)
    batch, x, chosen, rejected = labelled(reference, score, 12, torch.Generator().manual_seed(0))
    policy = TabularLM(LANGUAGE, table)
    config = DPOConfig(kl_coef=KL_COEF, learning_rate=0.01, microbatch_size=microbatch_size, max_gradient_norm=1e9)
    trainer = DPO(config, policy)
    ref = exact.response_log_probs(LANGUAGE, reference)
    refs = reference_log_probs(TabularLM(LANGUAGE, reference), batch)
    torch.testing.assert_close(refs, (ref[x, chosen], ref[x, rejected]), rtol=1e-12, atol=1e-12)
    leaf = table.clone().requires_grad_()
    log_ratio = exact.response_log_probs(LANGUAGE, leaf) - ref
    margin = KL_COEF * (log_ratio[x, chosen] - log_ratio[x, rejected])
    loss = torch.log1p(torch.exp(-margin)).mean()
    (g,) = torch.autograd.grad(loss, leaf)
    found = trainer.update(batch, refs)
    torch.testing.assert_close(policy.table.detach(), table - 0.01 * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-9)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    assert found["rewards/margins"] == pytest.approx(float(margin.detach().mean()), rel=1e-10)
    assert found["rewards/accuracies"] == pytest.approx(float((margin > 0).double().mean()))
    assert found["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-10)


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
        policy = TabularLM(LANGUAGE, reference)
        trainer = DPO(DPOConfig(kl_coef=KL_COEF, learning_rate=0.1, learning_rate_schedule="linear"), policy)
        refs = reference_log_probs(TabularLM(LANGUAGE, reference), batch)
        for k in range(100):
            trainer.update(batch, refs, progress=k / 100)
        log_prob = exact.response_log_probs(LANGUAGE, policy.table.detach())
        return float(exact.prompt_mean(LANGUAGE, exact.kl_divergence(log_prob, optimum)))

    few, many = error(100), error(5_000)
    start = float(exact.prompt_mean(LANGUAGE, exact.kl_divergence(ref, optimum)))
    assert many < 0.1 * min(few, start)
