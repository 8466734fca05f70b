"""Log-probabilities against the model's own logits, and against themselves in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_language import EXAMPLES, tiny
from steepest.language.data.batching import pad
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring import scoring
from steepest.language.scoring.scoring import token_log_probs


def by_hand(lm: LanguageModel, temperature: float) -> Tensor:
    """One sequence, one token at a time."""
    log_prob = torch.zeros(4, 9)
    for i, example in enumerate(EXAMPLES):
        for t in range(1, len(example.tokens)):
            if example.response[t]:
                with torch.no_grad():
                    logits = lm.network(input_ids=torch.tensor([example.tokens[:t]])).logits[0, -1]
                log_pi = torch.log_softmax(logits.double() / temperature, 0)
                log_prob[i, t] = log_pi[example.tokens[t]]
    return log_prob


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_model(temperature: float) -> None:
    lm = tiny()
    batch = pad(EXAMPLES, lm.pad_token)
    expected = by_hand(lm, temperature)
    with torch.no_grad():
        scored = token_log_probs(lm, batch, temperature=temperature)
        shifted = token_log_probs(lm, batch._replace(tokens=batch.tokens.roll(1, 1)), temperature=temperature)
    # float32 through two layers; the model's own normalisation is in float32 always
    torch.testing.assert_close(scored, expected, rtol=1e-4, atol=2e-5)
    assert expected[0, 2:].min() < -1  # it has opinions
    assert (shifted - expected).abs().max() > 0.1


@pytest.mark.parametrize("splits", [True, False])
def test_chunks_change_neither_value_nor_gradient(splits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[tuple[Tensor, dict[str, Any]]] = []
    for elements in (2**24, 320 * 3):  # all at once; three rows at a time
        monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", elements)
        lm = tiny(scale=1.0)
        lm.__dict__["splits"] = splits
        seen: list[int] = []
        lm.head.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape[0]))
        log_prob = token_log_probs(lm, pad(EXAMPLES, lm.pad_token))
        log_prob.sum().backward()
        if splits:
            assert max(seen) == (3 if elements < 2**24 else 16)
        results.append((log_prob.detach(), {n: p.grad for n, p in lm.model.named_parameters()}))
    (one, slope), (other, chunked) = results
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    for name in slope:
        torch.testing.assert_close(chunked[name], slope[name], rtol=1e-4, atol=1e-5)


def test_logits_are_float32_under_autocast() -> None:
    lm = tiny()
    batch = pad(EXAMPLES, lm.pad_token)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scored = token_log_probs(lm, batch)
    assert scored.dtype == torch.float32
    whole = token_log_probs(lm, batch)
    assert 0 < (scored - whole).abs().max() < 1.0  # the layers were in bfloat16 all the same


@pytest.mark.parametrize("splits", [True, False])
def test_values_are_those_of_the_state_before_the_token(splits: bool) -> None:
    """Read where the token's logits are: a change of the token itself, or of a later one, changes no value."""
    lm = tiny()
    lm.__dict__["splits"] = splits
    head = torch.nn.Linear(32, 1)
    batch = pad(EXAMPLES, lm.pad_token)
    log_prob, value = scoring.token_log_probs_and_values(lm, batch, head)
    torch.testing.assert_close(log_prob, token_log_probs(lm, batch))
    for i, example in enumerate(EXAMPLES):
        for t in range(1, len(example.tokens)):
            hidden = lm.network.base_model(input_ids=torch.tensor([example.tokens[:t]])).last_hidden_state[0, -1]
            torch.testing.assert_close(value[i, t], head(hidden).squeeze(), rtol=1e-4, atol=1e-5)
    changed = batch._replace(tokens=batch.tokens.clone())
    changed.tokens[0, 4] += 1
    other = scoring.token_log_probs_and_values(lm, changed, head)[1]
    torch.testing.assert_close(other[0, :5], value[0, :5])
    assert float((other[0, 5] - value[0, 5]).abs().detach()) > 1e-3
