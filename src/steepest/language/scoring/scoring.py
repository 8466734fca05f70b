"""Log-probabilities of responses, token by token, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from steepest.distributions import Categorical
from steepest.language.data.tokens import float32_at_least
from steepest.language.models.language_model import LanguageModel, hidden_states, without_dropout
from steepest.learner.onednn import as_computed
from steepest.losses import k1_estimate
from steepest.types import TokenBatch

CHUNK_ELEMENTS = 2**24
"""So many logits are held at once (64 MB in float32): more rows than that are done in chunks."""


def token_log_probs(lm: LanguageModel, batch: TokenBatch, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-probability of every response token, given all before it in its sequence.

    Equation:  log pi(y_t | x, y_<t) = z_{y_t} / T - log sum_v exp(z_v / T)
    Source:    notes 2.2: a token is an action. With T != 1, of the policy at that temperature.
    Args:      batch on the model's device; temperature T > 0
    Returns:   (B, L) nats at the token itself, 0 where ``response_mask`` is 0; carries gradient. In float32, whatever
               the autocast; weights in bfloat16 round the logits themselves, by up to some hundredths of a nat.
    Verified:  tests/unit/test_language_scoring.py::test_log_probs_are_those_of_the_model,
               tests/unit/test_language_scoring.py::test_chunks_change_neither_value_nor_gradient
    """
    return _score(lm, batch, _read(lm, batch, hidden_too=False), temperature)


def token_log_probs_and_values(
    lm: LanguageModel, batch: TokenBatch, value_head: nn.Module, *, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities as from ``token_log_probs``, and the value of the state that each token is decided in.

    One forward pass. The value at token i is what the head says of the hidden state at token i - 1, which has seen the
    tokens before i and not i itself.

    Args:      value_head: hidden states (B, L, D) to (B, L, 1)
    Returns:   (B, L) nats, 0 where ``response_mask`` is 0, and (B, L) in reward units; both carry gradient
    Verified:  tests/unit/test_language_scoring.py::test_values_are_those_of_the_state_before_the_token
    """
    rows = _read(lm, batch, hidden_too=True)
    assert rows.hidden is not None
    kinds = [p.dtype for p in value_head.parameters()]
    with torch.autocast(lm.device.type, enabled=False):
        value = value_head(rows.hidden.to(kinds[0]) if kinds else rows.hidden).squeeze(-1)
    log_prob = _score(lm, batch, rows, temperature)
    return log_prob, nn.functional.pad(value[:, :-1], (1, 0)).to(log_prob.dtype)


class _Rows(NamedTuple):
    """What the logits are made of, by position: hidden states where the head is applied later, else the logits."""

    states: Tensor  # (B, L, D or V)
    to_logits: Callable[[Tensor], Tensor]
    hidden: Tensor | None  # (B, L, D), where it was asked for


def _read(lm: LanguageModel, batch: TokenBatch, *, hidden_too: bool) -> _Rows:
    """One forward pass of the model."""
    if lm.splits:
        hidden = hidden_states(lm, batch)
        return _Rows(hidden, logits_of(lm), hidden)
    output = lm.network(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        output_hidden_states=hidden_too,
    )
    return _Rows(output.logits, float32_at_least, output.hidden_states[-1] if hidden_too else None)


def _score(lm: LanguageModel, batch: TokenBatch, read: _Rows, temperature: float | Tensor) -> Tensor:
    """(B, L) log-probabilities of every response token; the head is applied where they are needed alone."""
    wanted = batch.response_mask[:, 1:]
    targets = batch.tokens[:, 1:][wanted]
    scored = _in_chunks(lm, read.states[:, :-1][wanted], targets, read.to_logits, temperature)
    out = scored.new_zeros(batch.tokens.shape)
    place = torch.nn.functional.pad(wanted, (1, 0)).nonzero(as_tuple=True)
    return out.index_put(place, scored)


def row_log_probs(lm: LanguageModel, states: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token after each of some hidden states, of a model that splits.

    Args:      states (rows, D), carries gradient; tokens (rows,) int64
    Returns:   (rows,) nats, in float32 at least
    Verified:  tests/unit/test_shared_prompts.py::test_shared_prompts_change_neither_value_nor_gradient
    """
    return _in_chunks(lm, states, tokens, logits_of(lm), 1.0)


def _in_chunks(
    lm: LanguageModel, rows: Tensor, targets: Tensor, to_logits: Callable[[Tensor], Tensor], temperature: float | Tensor
) -> Tensor:
    """(rows,) log-probabilities of one token after each row, of which there are (rows, D or V)."""

    def log_probs(rows: Tensor, targets: Tensor) -> Tensor:
        logits = to_logits(rows)
        logits = logits if isinstance(temperature, float) and temperature == 1.0 else logits / temperature
        # Its gradient is one pass over the log-softmax, which is kept in place of the logits.
        return -cross_entropy(logits, targets, reduction="none")

    size = max(1, CHUNK_ELEMENTS // lm.vocabulary)
    if len(rows) <= size:
        return log_probs(rows, targets)
    # Each chunk's logits are computed again in the backward pass, rather than kept for it.
    parts = zip(rows.split(size), targets.split(size), strict=True)
    return torch.cat(
        [cast(Tensor, checkpoint(log_probs, r, t, use_reentrant=False, context_fn=as_computed)) for r, t in parts]
    )


def logits_of(lm: LanguageModel) -> Callable[[Tensor], Tensor]:
    """The head of a model that splits, with logits in float32 at least.

    Outside of autocast, and in the precision that its own weights have.
    """
    head = lm.head
    dtype = next(head.parameters()).dtype
    kind = lm.device.type

    def apply(hidden: Tensor) -> Tensor:
        with torch.autocast(kind, enabled=False):
            return float32_at_least(head(hidden.to(dtype)))

    return apply


class TokenDivergences(NamedTuple):
    """How far a policy is from another one at the tokens of responses; 0 at every other token."""

    kl: Tensor  # (B, L) nats, over the whole vocabulary: never negative
    k1: Tensor  # (B, L) nats, of the token alone


@torch.no_grad()
def token_divergences(
    lm: LanguageModel, ref: LanguageModel, batch: TokenBatch, *, temperature: float = 1.0
) -> TokenDivergences:
    """The KL of one policy from another at every response token, and k1; without gradient and without dropout.

    Equation:  KL_t = sum_v pi(v | x, y_<t) (log pi(v | x, y_<t) - log ref(v | x, y_<t)),
               k1_t = log pi(y_t | x, y_<t) - log ref(y_t | x, y_<t)
    Source:    the chain rule: over responses drawn from pi, the sums over t of both have the mean KL(pi || ref) of
               whole responses; that of KL_t usually varies less.
    Args:      lm, ref: models of one vocabulary, on one device; batch of responses of lm
    Returns:   (B, L) each, in float32 at least
    Raises:    ValueError where the models have different numbers of logits
    Verified:  tests/exact/test_language_divergence.py::test_means_are_the_kl_of_whole_responses
    """
    if lm.vocabulary != ref.vocabulary:
        raise ValueError(f"there is no KL between distributions over {lm.vocabulary} and {ref.vocabulary} tokens")
    answered = batch.response_mask[:, 1:]
    with without_dropout(lm), without_dropout(ref):
        reads = [_read(of, batch, hidden_too=False) for of in (lm, ref)]
        rows = [read.states[:, :-1][answered] for read in reads]
        size = max(1, CHUNK_ELEMENTS // lm.vocabulary)
        parts: list[Tensor] = []
        for *states, target in zip(
            *(x.split(size) for x in rows), batch.tokens[:, 1:][answered].split(size), strict=True
        ):
            logits = [read.to_logits(x) / temperature for read, x in zip(reads, states, strict=True)]
            new, old = (Categorical(x.log_softmax(-1)) for x in logits)
            parts.append(torch.stack([new.kl(old), k1_estimate(new.log_prob(target), old.log_prob(target))], -1))
    scored = torch.cat(parts)
    out = scored.new_zeros((*batch.tokens.shape, 2))
    out[torch.nn.functional.pad(answered, (1, 0))] = scored
    return TokenDivergences(out[..., 0], out[..., 1])
