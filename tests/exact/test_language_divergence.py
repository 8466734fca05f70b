"""The KL of sampled responses by the whole vocabulary, against the list of all responses, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers_tokens import listed, normal, small_language
from steepest.exact import language as exact
from steepest.exact.token_batches import TabularLM, everything
from steepest.language.models.function_model import as_language_model
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring import scoring
from steepest.language.scoring.scoring import token_divergences

LANGUAGE = small_language()
SHAPE = LANGUAGE.response_shape


def tables(seed: int) -> tuple[Tensor, Tensor]:
    return normal(seed, LANGUAGE.table_shape), normal(seed + 100, LANGUAGE.table_shape)


def model(table: Tensor) -> LanguageModel:
    return listed(TabularLM(LANGUAGE, table))


def mean(table: Tensor, values: Tensor) -> Tensor:
    """E_x E_{y ~ pi} of a figure of every response."""
    probability = exact.response_log_probs(LANGUAGE, table).exp()
    return (LANGUAGE.prompt_weight[:, None] * probability * values.reshape(SHAPE)).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_means_are_the_kl_of_whole_responses(temperature: float) -> None:
    table, other = tables(0)
    found = token_divergences(model(table), model(other), everything(LANGUAGE), temperature=temperature)
    pi, ref = table / temperature, other / temperature
    logs = [exact.response_log_probs(LANGUAGE, t) for t in (pi, ref)]
    expected = exact.prompt_mean(LANGUAGE, exact.kl_divergence(*logs))
    sums = [x.sum(-1) for x in found]
    for values in sums:
        torch.testing.assert_close(mean(pi, values), expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(sums[1].reshape(SHAPE), logs[0] - logs[1], rtol=1e-10, atol=1e-12)
    assert float(sums[1].min()) < 0.0 <= float(found.kl.min())
    variances = [mean(pi, (x - expected).square()) for x in sums]
    assert variances[0] < 0.8 * variances[1]
    # Controls: the KL at another temperature, and the mean over samples of the other policy.
    wrong = token_divergences(model(table), model(other), everything(LANGUAGE), temperature=2.0)
    for value in (mean(pi, wrong.kl.sum(-1)), mean(ref, sums[0])):
        assert float((value - expected).abs()) > 0.05 * float(expected)


def test_only_tokens_of_responses_count_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table, other = tables(1)
    batch = everything(LANGUAGE)
    whole = token_divergences(model(table), model(other), batch)
    assert not whole.kl[~batch.response_mask].any()
    assert not whole.k1[~batch.response_mask].any()
    assert bool((whole.kl[batch.response_mask] > 0).all())
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 4 * LANGUAGE.vocab_size)
    for x, y in zip(token_divergences(model(table), model(other), batch), whole, strict=True):
        assert torch.equal(x, y)


def test_a_policy_is_at_no_distance_from_itself() -> None:
    table, _ = tables(2)
    assert not any(x.any() for x in token_divergences(model(table), model(table), everything(LANGUAGE)))


def test_other_numbers_of_logits_are_refused() -> None:
    table, _ = tables(3)
    more = as_language_model(TabularLM(LANGUAGE, table), vocab_size=4)
    with pytest.raises(ValueError, match="over 3 and 4 tokens"):
        token_divergences(model(table), more, everything(LANGUAGE))
