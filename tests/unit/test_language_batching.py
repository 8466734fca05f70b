"""Padding, packing and order: neither changes what is learned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_language import EXAMPLES, tiny
from steepest.errors import UsageError
from steepest.language.data.batching import check_isolation, epoch_order, pack, pack_rows, pad, pad_pairs, responses
from steepest.language.data.examples import Example, Pair
from steepest.language.scoring.scoring import token_log_probs

RNG = np.random.default_rng(0)


def scores(*examples: Example) -> list[torch.Tensor]:
    """Log-probabilities of each example, scored alone."""
    lm = tiny()
    with torch.no_grad():
        return [token_log_probs(lm, pad([e], lm.pad_token))[0] for e in examples]


def test_a_padded_batch_by_hand() -> None:
    batch = pad([Example((5, 6, 7), (False, True, True)), Example((8, 9), (True, True))], 1)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 1]]
    assert batch.response_mask.tolist() == [[False, True, True], [False, True, False]]  # nothing predicts a first token


def test_padding_does_not_change_what_is_scored() -> None:
    lm = tiny()
    for pad_token in (lm.pad_token, lm.end_token, 290):  # masks say what is padding, never ids
        with torch.no_grad():
            together = token_log_probs(lm, pad(EXAMPLES, pad_token))
        for row, alone in zip(together, scores(*EXAMPLES), strict=True):
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert not row[len(alone) :].any()


def test_packed_sequences_do_not_see_each_other() -> None:
    lm = tiny()
    batch = pack([EXAMPLES[:2], EXAMPLES[2:]], lm.pad_token, 16)
    assert batch.attention_mask is None
    assert batch.position_ids.tolist()[0] == [*range(9), *range(5), *range(2)]
    with torch.no_grad():
        packed = token_log_probs(lm, batch)
        # The control: positions as if each row were one sequence.
        leaking = token_log_probs(lm, batch._replace(position_ids=torch.arange(16).expand(2, 16)))
    starts = [(0, 0), (0, 9), (1, 0), (1, 7)]
    for (row, start), alone in zip(starts, scores(*EXAMPLES), strict=True):
        torch.testing.assert_close(packed[row, start : start + len(alone)], alone, rtol=1e-4, atol=1e-5)
    second = scores(EXAMPLES[1])[0]
    assert (leaking[0, 9:14] - second).abs().max() > 0.01
    assert not packed[0, 14:].any()
    check_isolation(lm)


def test_the_first_token_of_a_packed_sequence_is_not_predicted_from_the_one_before() -> None:
    whole = [Example((5, 6, 7), (True,) * 3), Example((8, 9), (True,) * 2)]
    assert pack([whole], 0, 6).response_mask.tolist() == [[False, True, True, False, True, False]]


def test_a_packed_batch_has_the_gradient_of_the_padded_one() -> None:
    gradients = []
    for make in (lambda t: pad(EXAMPLES, t), lambda t: pack([EXAMPLES], t, 24)):
        lm = tiny(scale=1.0)
        token_log_probs(lm, make(lm.pad_token)).sum().backward()
        gradients.append({n: p.grad for n, p in lm.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_a_model_that_leaks_is_refused() -> None:
    lm = tiny()
    forward = lm.backbone.forward
    # An attention that is given a mask of ones instead of restarting positions.
    lm.backbone.forward = lambda **kw: forward(**{**kw, "attention_mask": torch.ones_like(kw["input_ids"])})
    with pytest.raises(UsageError, match="packing does not work"):
        check_isolation(lm)


def test_pairs_have_one_length() -> None:
    pairs = [Pair((5, 6), (7, 8, 9), (7,)), Pair((5,), (6,), (8, 9, 4, 3, 2))]
    batch = pad_pairs(pairs, 0)
    assert batch.chosen.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [5, 6, 0, 0, 0, 0]]
    assert batch.rejected.tokens.tolist() == [[5, 6, 7, 0, 0, 0], [5, 8, 9, 4, 3, 2]]
    assert batch.rejected.response_mask.sum(1).tolist() == [1, 5]
    assert responses([(5, 6)], [(7,)]) == [Example((5, 6, 7), (False, False, True))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=200), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_every_index_once_an_epoch(lengths: list[int], batch_size: int, group: bool, epoch: int) -> None:
    batches = epoch_order(lengths, batch_size, seed=1, epoch=epoch, group=group)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == -(-len(lengths) // batch_size)
    assert batches == epoch_order(lengths, batch_size, seed=1, epoch=epoch, group=group)


def test_order_changes_with_seed_and_epoch_and_grouping_saves_padding() -> None:
    lengths = RNG.integers(2, 200, 2000).tolist()

    def orders(**options: bool | int) -> list[list[int]]:
        return epoch_order(lengths, 8, **{"seed": 0, "epoch": 0, "group": False, **options})

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)

    assert orders() != orders(seed=1)
    assert orders() != orders(epoch=1)
    assert padding(orders(group=True)) < 0.2 * padding(orders())
    # Sorted over the whole epoch, a batch would have one or two lengths, and the same company every time.
    assert 2 < np.mean([max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in orders(group=True)]) < 10
    firsts = [lengths[b[0]] for b in orders(group=True)]
    assert 0.35 < np.mean(np.diff(firsts) > 0) < 0.65  # short ones do not come first, anywhere


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=120))
def test_packing_fills_rows(lengths: list[int]) -> None:
    rows = pack_rows(lengths, 50)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 50 for row in rows)
    assert len(rows) <= 11 / 9 * np.ceil(sum(lengths) / 50) + 4 or len(rows) <= sum(n > 25 for n in lengths) + 4


def test_the_longest_goes_where_it_fits_best() -> None:
    assert pack_rows([7, 5, 3], 10) == [[0, 2], [1]]
    assert pack_rows([3, 5, 7], 10) == [[2, 0], [1]]
    assert pack_rows([5, 5, 10, 1], 10) == [[2], [0, 1], [3]]


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows([3, 60], 50)
