"""Masks, positions and ends of padded token sequences."""

from __future__ import annotations

import pytest
import torch

from steepest.errors import UsageError
from steepest.language.data.tokens import check_tokens, last_steps, last_token, position_ids
from steepest.types import TokenBatch

T, F = True, False


def test_positions_and_last_tokens() -> None:
    attention = torch.tensor([[F, F, T, T, T], [T, T, T, F, F], [T, T, T, T, T], [F, T, F, T, F]])
    assert position_ids(attention).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 1, 2, 3, 4], [0, 0, 0, 1, 1]]
    assert last_token(attention).tolist() == [4, 2, 4, 3]
    assert last_steps(attention).tolist() == [
        [F, F, F, F, T],
        [F, F, T, F, F],
        [F, F, F, F, T],
        [F, F, F, T, F],
    ]
    assert not last_steps(torch.zeros(2, 3, dtype=torch.bool)).any()


GOOD = TokenBatch(
    torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0]]),
    torch.tensor([[F, T, T, T], [T, T, T, F]]),
    torch.tensor([[F, F, T, T], [F, T, T, F]]),
)


def test_bad_batches_are_refused() -> None:
    check_tokens(GOOD)
    bad = {
        "must be \\(sequences, tokens\\)": GOOD._replace(attention_mask=GOOD.attention_mask[:, :3]),
        "must be torch.int64": GOOD._replace(tokens=GOOD.tokens.int()),
        "and torch.bool": GOOD._replace(response_mask=GOOD.response_mask.long()),
        "no token in response_mask": GOOD._replace(response_mask=torch.tensor([[F, F, T, T], [F, F, F, F]])),
        "attention_mask leaves out": GOOD._replace(response_mask=torch.tensor([[F, F, T, T], [F, T, T, T]])),
        "begins at position 0": GOOD._replace(response_mask=torch.tensor([[F, F, T, T], [T, T, T, F]])),
    }
    for message, batch in bad.items():
        with pytest.raises(UsageError, match=message):
            check_tokens(batch)
