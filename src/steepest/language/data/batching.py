"""From tokenised examples to batches: padding, packing, and an order that is a function of the seed and the step."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import torch

from steepest.errors import UsageError
from steepest.language.data.examples import Example, Pair
from steepest.language.models.language_model import LanguageModel, hidden_states, without_dropout
from steepest.types import PreferenceBatch, TokenBatch

GROUPED_BATCHES = 32
"""So many batches are sorted by length together: enough to save padding, few enough that the order stays random."""


# Batches


def pad(examples: Sequence[Example], pad_token: int, length: int | None = None) -> TokenBatch:
    """Sequences as the rows of a batch, filled up on the right to the longest of them, or to ``length``.

    Verified:  tests/unit/test_language_batching.py::test_padding_does_not_change_what_is_scored
    """
    longest = max(len(e.tokens) for e in examples) if length is None else length
    shape = (len(examples), longest)
    tokens = torch.full(shape, pad_token, dtype=torch.int64)
    attention = torch.zeros(shape, dtype=torch.bool)
    response = torch.zeros(shape, dtype=torch.bool)
    for i, example in enumerate(examples):
        n = len(example.tokens)
        tokens[i, :n] = torch.tensor(example.tokens)
        attention[i, :n] = True
        response[i, :n] = torch.tensor(example.response)
    response[:, 0] = False
    # At padding the positions stand still: they never exceed the longest sequence's.
    position_ids = (attention.cumsum(1) - 1).clamp(min=0)
    return TokenBatch(tokens, attention, response, position_ids)


def pack(rows: Sequence[Sequence[Example]], pad_token: int, length: int) -> TokenBatch:
    """Sequences end to end in rows of ``length``; positions start again at each, which keeps them apart.

    The empty end of a row is a sequence of its own, of which nothing is learned.

    Verified:  tests/unit/test_language_batching.py::test_packed_sequences_do_not_see_each_other
    """
    shape = (len(rows), length)
    tokens = torch.full(shape, pad_token, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    response = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = 0
        for example in row:
            stop = start + len(example.tokens)
            tokens[i, start:stop] = torch.tensor(example.tokens)
            position_ids[i, start:stop] = torch.arange(stop - start)
            response[i, start:stop] = torch.tensor(example.response)
            response[i, start] = False
            start = stop
        position_ids[i, start:] = torch.arange(length - start)
    return TokenBatch(tokens, None, response, position_ids)


def pad_pairs(pairs: Sequence[Pair], pad_token: int) -> PreferenceBatch:
    """Preferences as two batches of one length."""
    sides = [
        [Example((*p.prompt, *answer), (False,) * len(p.prompt) + (True,) * len(answer)) for p, answer in side]
        for side in ([(p, p.chosen) for p in pairs], [(p, p.rejected) for p in pairs])
    ]
    length = max(len(e.tokens) for side in sides for e in side)
    return PreferenceBatch(*(pad(side, pad_token, length) for side in sides))


def responses(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Example]:
    """Prompts and what was answered, as examples whose answers are the actions."""
    return [Example((*p, *a), (False,) * len(p) + (True,) * len(a)) for p, a in zip(prompts, answers, strict=True)]


def check_isolation(lm: LanguageModel) -> None:
    """Try on the model itself that packed sequences do not see each other.

    Whether they are kept apart depends on the architecture and its attention: some ignore where positions restart.

    Raises:    UsageError where they are not
    Verified:  tests/unit/test_language_batching.py::test_a_model_that_leaks_is_refused
    """
    rng = np.random.default_rng(0)
    first, second = (tuple(int(t) for t in rng.integers(0, lm.vocabulary, size=n)) for n in (5, 4))
    mask = (True,) * 5
    batch = pack([[Example(first, mask), Example(second, mask[:4])]], lm.pad_token, 10).to(lm.device)
    alone = pad([Example(second, mask[:4])], lm.pad_token).to(lm.device)
    with torch.no_grad(), without_dropout(lm):
        together, apart = hidden_states(lm, batch)[0, 5:9], hidden_states(lm, alone)[0]
    scale = apart.abs().max().clamp(min=1e-6)
    tolerance = 1e-3 if apart.dtype == torch.float32 else 5e-2
    if bool((together - apart).abs().max() > tolerance * scale):
        raise UsageError(
            f"packing does not work with {type(lm.network).__name__} here: its attention lets packed sequences see "
            "each other. Train with packing off"
        )


# Order


def epoch_order(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, group: bool) -> list[list[int]]:
    """The batches of one epoch, as indices: each index once, the last batch possibly smaller.

    A function of its arguments alone, so that a run resumes at a batch by counting steps. With ``group``, batches hold
    sequences of similar length: shuffled, cut into stretches of 32 batches, sorted within each, and the batches
    shuffled again.

    Verified:  tests/unit/test_language_batching.py::test_every_index_once_an_epoch
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if group:
        stretch = batch_size * GROUPED_BATCHES
        parts = [order[i : i + stretch] for i in range(0, len(order), stretch)]
        size = np.asarray(lengths)
        order = np.concatenate([part[np.argsort(size[part], kind="stable")] for part in parts])
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))] if group else batches


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which sequences share a row of ``capacity`` tokens: best fit, longest first.

    Source:    Johnson 1973: best-fit decreasing needs at most 11/9 of the fewest rows possible, plus 4.
    Raises:    ValueError if a sequence is longer than a row
    Verified:  tests/unit/test_language_batching.py::test_packing_fills_rows
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit into a row of {capacity}")
        place = bisect.bisect_left(free, (length, -1))
        if place == len(free):
            rows.append([index])
            bisect.insort(free, (capacity - length, len(rows) - 1))
        else:
            room, row = free.pop(place)
            rows[row].append(index)
            bisect.insort(free, (room - length, row))
    return rows
