"""Padded token sequences as episodes: which log-probabilities are those of the response, and where it ends.

A model reads (tokens, attention_mask) and gives logits (B, L, V); those at position i are about token i + 1. The
functions of logits here give L - 1 figures for L tokens. The trainers have theirs from ``language.scoring``, which
computes the same at the response's tokens alone, and puts it at the token that it is about (B, L).
"""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.distributions import Categorical
from steepest.errors import UsageError
from steepest.types import TokenBatch


def check_tokens(batch: TokenBatch) -> None:
    """Refuse a batch whose masks cannot be meant.

    Raises:    UsageError for shapes or types that differ from TokenBatch's, a row without a response, a response that
               is not attended to, or one that begins at position 0, where no logits precede it
    Verified:  tests/unit/test_tokens.py::test_bad_batches_are_refused
    """
    tokens, attention, response = batch.tokens, batch.attended, batch.response_mask
    if tokens.ndim != 2 or attention.shape != tokens.shape or response.shape != tokens.shape:
        raise UsageError(
            f"tokens {tuple(tokens.shape)}, attention_mask {tuple(attention.shape)} and response_mask "
            f"{tuple(response.shape)}; all three must be (sequences, tokens)"
        )
    if tokens.dtype != torch.int64 or attention.dtype != torch.bool or response.dtype != torch.bool:
        raise UsageError(
            f"tokens are {tokens.dtype}, the masks {attention.dtype} and {response.dtype}; "
            "they must be torch.int64 and torch.bool"
        )
    if not bool(response.any(-1).all()):
        raise UsageError("a row has no token in response_mask; every response has at least one, its EOS")
    if bool((response & ~attention).any()):
        raise UsageError("response_mask has tokens that attention_mask leaves out")
    if bool(response[:, 0].any()):
        raise UsageError(
            "a response begins at position 0, and a first token has no logits before it; put a beginning-of-text token "
            "in front"
        )


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count attended tokens only, so that padding on the left moves nothing.

    Equation:  p_i = max(0, sum_{j <= i} attention_mask_j - 1)
    Args:      attention_mask (B, L) bool
    Returns:   (B, L) int64
    Verified:  tests/unit/test_tokens.py::test_positions_and_last_tokens
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def last_token(attention_mask: Tensor) -> Tensor:
    """Index of every row's last real token, by the mask: an id that is also the padding's is no evidence.

    Args:      attention_mask (B, L) bool
    Returns:   (B,) int64
    Verified:  tests/unit/test_tokens.py::test_positions_and_last_tokens
    """
    index = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return (index * attention_mask).argmax(-1)


def last_steps(valid: Tensor) -> Tensor:
    """The step of every sequence that decides its last token. It ends the episode, EOS or not.

    Args:      valid (..., T) bool
    Returns:   (..., T) bool, True once in a row that has any valid step
    Verified:  tests/unit/test_tokens.py::test_positions_and_last_tokens
    """
    return valid & (valid.long().flip(-1).cumsum(-1).flip(-1) == 1)


def float32_at_least(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are: in bfloat16 a log-softmax is off by up to a tenth of a nat."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def selected_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token of each distribution.

    Equation:  log pi(y) = z[y] - logsumexp(z)
    Args:      logits z (..., V), carries gradient; tokens (...) int64
    Returns:   (...) nats
    Verified:  tests/exact/test_preference.py::test_log_probs_of_padded_responses
    """
    # Without a log-softmax of the whole vocabulary, which would be kept for the gradient.
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_log_probs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token but the first, given those before it.

    Equation:  log pi(y_{i+1} | y_{<=i}) = z_i[y_{i+1}] - logsumexp(z_i),  z = logits / temperature
    Source:    notes 2.2.1. Computed in float32 at least: in bfloat16 a log-softmax is off by up to a tenth of a nat.
    Args:      logits (B, L, V), carries gradient; tokens (B, L) int64; temperature that tokens were drawn at, > 0
    Returns:   (B, L - 1) nats: entry i belongs to token i + 1
    Verified:  tests/exact/test_preference.py::test_log_probs_of_padded_responses
    """
    return selected_log_probs(float32_at_least(logits[:, :-1]) / temperature, tokens[:, 1:])


def response_log_probs(logits: Tensor, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """Log-probability of every whole response given its prompt.

    Equation:  log pi(y | x) = sum over the response's tokens, EOS included, of log pi(y_t | x, y_<t)
    Source:    notes 2.2.1 and 2.2.2. A sum, never a mean.
    Args:      logits (B, L, V), carries gradient; temperature as token_log_probs
    Returns:   (B,) nats
    Verified:  tests/exact/test_preference.py::test_log_probs_of_padded_responses
    """
    log_prob = token_log_probs(logits, batch.tokens, temperature)
    return torch.where(batch.response_mask[:, 1:], log_prob, torch.zeros_like(log_prob)).sum(-1)


def token_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between the next-token distributions after every token but the last, over the whole vocabulary.

    Equation:  KL_i = sum_v pi(v | y_{<=i}) (log pi(v | y_{<=i}) - log ref(v | y_{<=i}))
    Source:    the chain rule: summed over the steps of responses drawn from pi it is an unbiased estimate of the KL of
               whole responses, usually of less variance than k1. As a loss it leaves out that tokens decide what
               follows.
    Args:      logits, ref_logits (B, L, V), both carry gradient; temperature as token_log_probs
    Returns:   (B, L - 1) nats, never negative
    Verified:  tests/exact/test_rlhf.py::test_kl_of_the_whole_vocabulary
    """
    new, ref = ((float32_at_least(x[:, :-1]) / temperature).log_softmax(-1) for x in (logits, ref_logits))
    return Categorical(new).kl(Categorical(ref))
