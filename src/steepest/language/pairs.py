"""Batches of preference pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.types import PreferenceBatch, TokenBatch


def joined(batch: PreferenceBatch) -> TokenBatch:
    """Chosen responses above rejected ones, padded on the right to the longer: one forward pass serves both.

    Verified:  tests/unit/test_dpo.py::test_one_pass_equals_two
    """
    length = max(batch.chosen.tokens.shape[1], batch.rejected.tokens.shape[1])

    def fill(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, length - x.shape[1]))  # zeros: outside the masks, whatever token 0 is

    pairs = zip(batch.chosen, batch.rejected, strict=True)
    fields = [None if a is None or b is None else torch.cat([fill(a), fill(b)]) for a, b in pairs]
    return TokenBatch(*fields)  # pyright: ignore[reportArgumentType]
