"""Listed responses as padded rows of tokens, and tabular models that read them."""

from __future__ import annotations

import pytest
import torch

from helpers_tokens import F64, normal, small_language
from steepest.errors import UsageError
from steepest.exact import language as exact
from steepest.exact.token_batches import TabularActorCritic, TabularLM, everything, padded, prefix_values

LANGUAGE = small_language()


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 0), (0, 3), (1, 1)])
def test_padded_rows_say_what_was_listed(left: int, right: int) -> None:
    prompts, responses = LANGUAGE.response_shape
    batch = everything(LANGUAGE, left=left, right=right)
    assert batch.tokens.shape == (prompts * responses, left + 2 + LANGUAGE.max_length + right)
    for i in range(len(batch.tokens)):
        x, y = LANGUAGE.prompts[i // responses], LANGUAGE.response(i % responses)
        assert tuple(batch.tokens[i, batch.attention_mask[i]].tolist()) == x + y
        assert tuple(batch.tokens[i, batch.response_mask[i]].tolist()) == y
        assert batch.tokens[i, ~batch.attention_mask[i]].eq(LANGUAGE.eos).all()
        assert batch.response_mask[i].nonzero()[0] == left + 2
    some = padded(LANGUAGE, torch.tensor([1, 0, 1]), torch.tensor([3, 3, 0]))
    assert some.tokens[some.response_mask].tolist() == [*LANGUAGE.response(3) * 2, *LANGUAGE.response(0)]
    with pytest.raises(UsageError):
        padded(LANGUAGE, torch.tensor([0]), torch.tensor([0, 1]))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 3)])
def test_tabular_models_look_up_the_prefix(left: int, right: int) -> None:
    table, value = normal(0, LANGUAGE.table_shape), normal(1, LANGUAGE.table_shape[:2])
    batch = everything(LANGUAGE, left=left, right=right)
    logits, values = TabularActorCritic(LANGUAGE, table, value)(*batch[:2])
    assert torch.equal(TabularLM(LANGUAGE, table)(*batch[:2]), logits)
    responses = LANGUAGE.response_shape[1]
    for i in range(len(batch.tokens)):
        x, y = i // responses, i % responses
        for t in range(len(LANGUAGE.response(y))):
            place, row = left + 2 + t - 1, int(LANGUAGE.prefix[y, t])
            assert torch.equal(logits[i, place], table[x, row])
            assert torch.equal(values[i, place], value[x, row])
    nested = exact.EnumerableLanguage(((1,), (1, 2)), (0.5, 0.5), vocab_size=3, eos=0, max_length=2)
    with pytest.raises(UsageError, match="begins with another"):
        TabularLM(nested, torch.zeros(nested.table_shape, dtype=F64))


def test_prefix_values_are_consistent() -> None:
    """V(prefix) = sum over the next token of pi (r + V(longer prefix)), and V() is the expected total."""
    table, score = normal(0, LANGUAGE.table_shape), normal(2, LANGUAGE.response_shape)
    reward = exact.shaped_token_rewards(LANGUAGE, table, normal(3, table.shape), score, 0.7)
    log_prob, token = exact.response_log_probs(LANGUAGE, table), exact.token_log_probs(LANGUAGE, table)
    value = prefix_values(LANGUAGE, log_prob, token, reward)
    torch.testing.assert_close(value[:, 0], (log_prob.exp() * reward.sum(-1)).sum(-1), rtol=1e-12, atol=1e-12)
    policy = torch.softmax(table, -1)
    for s, prefix in enumerate(LANGUAGE.prefixes):
        expected = torch.zeros(2, dtype=F64)
        for token_id in range(LANGUAGE.vocab_size):
            longer = (*prefix, token_id)
            y = next(i for i in range(len(LANGUAGE.tokens)) if LANGUAGE.response(i)[: len(longer)] == longer)
            following = value[:, LANGUAGE.prefixes.index(longer)] if longer in LANGUAGE.prefixes else 0.0
            expected = expected + policy[:, s, token_id] * (reward[:, y, len(prefix)] + following)
        torch.testing.assert_close(value[:, s], expected, rtol=1e-10, atol=1e-12)
