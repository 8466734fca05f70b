"""Batches of preference pairs, and the log-probabilities of their responses.

Both responses to a prompt are scored in one pass of the model. Where the model allows it the prompt is read once: its
keys and values, with their gradient, serve both responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from steepest.language.data.batching import pad_pairs
from steepest.language.data.examples import Pair
from steepest.language.data.tokens import last_token, position_ids
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.scoring.scoring import row_log_probs, token_log_probs
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


def pair_log_probs(lm: LanguageModel, batch: PreferenceBatch, *, share_prompts: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and of the rejected responses.

    Equation:  log pi(y|x) = sum over the response's tokens of log pi(y_t | x, y_<t)
    Args:      batch on the model's device; share_prompts: read each prompt once, if that is fewer tokens; only for a
               model that ``why_not_shared`` has nothing against
    Returns:   (B,) and (B,) nats, carry gradient
    Verified:  tests/unit/test_shared_prompts.py::test_shared_prompts_change_neither_value_nor_gradient
    """
    if share_prompts:
        shared = share(batch)
        if shared is not None and shared.size < batch.chosen.tokens.numel() + batch.rejected.tokens.numel():
            log_prob = _shared_log_probs(lm, shared).sum(-1)
            return log_prob[0::2], log_prob[1::2]
    log_prob = token_log_probs(lm, joined(batch)).sum(-1)
    return log_prob[: len(batch.chosen.tokens)], log_prob[len(batch.chosen.tokens) :]


class SharedPairs(NamedTuple):
    """B pairs, their prompts once. Rows of the responses alternate: chosen, rejected, chosen, ..."""

    prompt: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P) bool, True at the prompt's tokens
    prompt_position_ids: Tensor  # (B, P) int64
    last: Tensor  # (B,) int64: where the prompt's last token stands
    response: Tensor  # (2B, R) int64, the first token of each at 0
    attention_mask: Tensor  # (2B, R) bool
    response_mask: Tensor  # (2B, R) bool, True at the tokens to be scored
    position_ids: Tensor  # (2B, R) int64

    @property
    def size(self) -> int:
        """Tokens to compute, padding included; after a response's last token there is nothing to predict."""
        return self.prompt.numel() + self.response[:, 1:].numel()


def share(batch: PreferenceBatch) -> SharedPairs | None:
    """Prompts apart from the responses; None where the two sides of a pair do not begin with the same prompt."""
    chosen, rejected = batch
    device = chosen.tokens.device
    start = chosen.response_mask.long().argmax(1)
    width = int(start.max())
    before = torch.arange(width, device=device) < start.unsqueeze(1)
    prompts = [
        (side.tokens[:, :width] * before, side.attended[:, :width] & before, _positions(side)[:, :width] * before)
        for side in batch
    ]
    same = torch.equal(start, rejected.response_mask.long().argmax(1)) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(*prompts, strict=True)
    )
    tokens, mask, positions = prompts[0]
    rows = torch.arange(len(start), device=device)
    if not same or not bool((start > 0).all()) or not bool(mask[rows, start - 1].all()):
        return None
    ends = [last_token(side.attended) for side in batch]
    length = int(torch.stack(ends).sub(start).max()) + 1
    sides: list[tuple[Tensor, ...]] = []
    for side, end in zip(batch, ends, strict=True):
        place = start.unsqueeze(1) + torch.arange(length, device=device)
        inside = place <= end.unsqueeze(1)
        place = place.clamp(max=side.tokens.shape[1] - 1)
        attended, scored = (x.gather(1, place) & inside for x in (side.attended, side.response_mask))
        sides.append((side.tokens.gather(1, place), attended, scored, _positions(side).gather(1, place)))
    responses = [torch.stack(both, 1).flatten(0, 1) for both in zip(*sides, strict=True)]
    return SharedPairs(tokens, mask, positions, start - 1, *responses)


def _positions(batch: TokenBatch) -> Tensor:
    return position_ids(batch.attended) if batch.position_ids is None else batch.position_ids


def _shared_log_probs(lm: LanguageModel, pairs: SharedPairs) -> Tensor:
    """(2B, R) nats, 0 where not scored: a pass over the prompts fills a cache, and one over the responses reads it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=lm.network.config)
    prompt = cast(Any, lm.backbone)(
        input_ids=pairs.prompt,
        attention_mask=pairs.prompt_mask,
        position_ids=pairs.prompt_position_ids,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    first = prompt[torch.arange(len(prompt), device=prompt.device), pairs.last]  # decides the response's first token
    states = first.repeat_interleave(2, 0).unsqueeze(1)
    if pairs.response.shape[1] > 1:
        cache.batch_repeat_interleave(2)
        seen = torch.cat([pairs.prompt_mask.repeat_interleave(2, 0), pairs.attention_mask[:, :-1]], 1)
        rest = cast(Any, lm.backbone)(
            input_ids=pairs.response[:, :-1],
            attention_mask=seen,
            position_ids=pairs.position_ids[:, :-1],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states = torch.cat([states, rest], 1)
    place = pairs.response_mask.flatten().nonzero().squeeze(1)
    token_log_prob = row_log_probs(lm, states.flatten(0, 1).index_select(0, place), pairs.response.flatten()[place])
    each = token_log_prob.new_zeros(pairs.response.numel()).index_copy(0, place, token_log_prob)
    return each.view_as(pairs.response)


def why_not_shared(lm: LanguageModel, pairs: Sequence[Pair] = ()) -> str | None:
    """Why the model has to read a prompt once for each response; None where once will do.

    Whether a model continues from a cache as it reads a whole sequence depends on its architecture, and with some on
    how long the sequence is, or how far its prompt was padded. So it is tried both ways, without dropout and without
    autocast: every token's log-probability, on two short pairs and on those given; and the gradient that the prompt
    gets, on the short ones. Nothing is drawn.

    Args:      pairs: of those to be scored the longest, and others that are unlike it
    Verified:  tests/unit/test_shared_prompts.py::test_models_that_cannot_share_say_why,
               tests/unit/test_shared_prompts.py::test_models_that_cannot_share_long_pairs_are_found_out
    """
    if not lm.splits:
        return "its logits are not just its head applied to hidden states"
    if any(getattr(module, "gradient_checkpointing", False) for module in lm.model.modules()):
        return "gradient checkpointing keeps no cache"
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=lm.network.config).layers):
        return "some of its layers keep only a part of what they have read"
    rng = np.random.default_rng(0)
    draws = [
        [tuple(int(t) for t in rng.integers(0, lm.vocabulary, size=n)) for n in row] for row in ((6, 3, 2), (1, 1, 4))
    ]
    short = [Pair(*row) for row in draws]
    try:
        with without_dropout(lm), torch.autocast(lm.device.type, enabled=False):
            if not _reads_alike(lm, short) or (pairs and not _reads_alike(lm, pairs)):
                return "it reads a response after a cached prompt differently"
            if not _learns_alike(lm, short):
                return "what it learns of a response does not reach the cached prompt"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its code runs into that was not made for it
        return f"it cannot go on from a cached prompt ({type(error).__name__})"
    return None


def _is_exact(lm: LanguageModel) -> bool:
    return next(lm.model.parameters()).dtype in (torch.float32, torch.float64)


@torch.no_grad()
def _reads_alike(lm: LanguageModel, pairs: Sequence[Pair]) -> bool:
    """Whether every token has one log-probability on both paths."""
    batch = pad_pairs(pairs, lm.pad_token).to(lm.device)
    whole, shared = joined(batch), share(batch)
    if shared is None:
        return True
    apart = token_log_probs(lm, whole)[whole.response_mask]
    each = _shared_log_probs(lm, shared)
    together = torch.cat([each[side::2][shared.response_mask[side::2]] for side in (0, 1)])
    rtol, atol = (1e-4, 1e-3) if _is_exact(lm) else (5e-2, 0.2)
    return torch.allclose(together, apart, rtol=rtol, atol=atol)


@torch.enable_grad()
def _learns_alike(lm: LanguageModel, pairs: Sequence[Pair]) -> bool:
    """Whether the prompts' embeddings get one gradient on both paths."""
    batch = pad_pairs(pairs, lm.pad_token).to(lm.device)
    whole, shared = joined(batch), share(batch)
    assert shared is not None
    embedded: list[Tensor] = []
    hook = lm.network.get_input_embeddings().register_forward_hook(
        lambda _module, _given, out: embedded.append(out if out.requires_grad else out.requires_grad_())
    )
    try:
        slopes: list[Tensor] = []
        for log_prob in (lambda: token_log_probs(lm, whole), lambda: _shared_log_probs(lm, shared)):
            embedded.clear()
            total = log_prob().sum()
            slopes.append(torch.autograd.grad(total, embedded[0])[0])
    finally:
        hook.remove()
    count, width = shared.prompt.shape
    once = (slopes[0][:count, :width] + slopes[0][count:, :width])[shared.prompt_mask].float()
    together = slopes[1][shared.prompt_mask].float()
    tolerance = 1e-3 if _is_exact(lm) else 0.2
    return bool((together - once).abs().max() <= tolerance * once.abs().max())
