"""Sampling responses: batched, with a cache of keys and values, and the same whatever the batch is cut into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from steepest.errors import RunError, UsageError
from steepest.fields import Checked, Count, NonNegative, PositiveShare, Whole
from steepest.files.space import require_space
from steepest.language.models.language_model import LanguageModel, without_dropout
from steepest.language.scoring.scoring import logits_of


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How responses are drawn."""

    max_new_tokens: Count = 128
    """Longest response, its end token included."""
    temperature: NonNegative = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: Whole = 0
    """Draw among this many most probable tokens; 0: among all. Biases ratios: what is drawn is not the policy."""
    top_p: PositiveShare = 1.0
    """Draw among the most probable tokens that together have this probability. Biases ratios, as top_k does."""


class Response(NamedTuple):
    """What a model answered."""

    tokens: tuple[int, ...]  # with its end token, if it ended
    # Nats, under the whole policy at the temperature (1 where that is 0), without top-k or top-p:
    log_probs: tuple[float, ...]
    ended: bool  # by an end token, not by max_new_tokens


def response_text(lm: LanguageModel, response: Response) -> str:
    """A response as text, without its end token."""
    return lm.tokenizer.decode(list(response.tokens[:-1] if response.ended else response.tokens))


def draw_uniforms(count: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The randomness of ``count`` responses: (count, max_new_tokens), float64 in [0, 1).

    Drawn for a whole batch at once, so that a response does not depend on which others it is generated with.

    Raises:    UsageError where they do not fit into memory
    Verified:  tests/unit/test_space.py::test_what_an_option_asks_for_is_compared_before_it_is_taken
    """
    require_space(
        8 * count * sampling.max_new_tokens,
        f"the random numbers of {count:,} responses of {sampling.max_new_tokens:,} tokens",
        "give a smaller max_new_tokens, or fewer prompts",
    )
    return torch.rand((count, sampling.max_new_tokens), generator=generator, dtype=torch.float64)


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    uniforms: Tensor,
    *,
    micro_batch_size: int = 64,
    on_token: Callable[[int], None] | None = None,
) -> list[Response]:
    """Sample one response to every prompt; ends at any of the model's end tokens.

    Equation:  y_t = min {v: F_t(v) > u_t},  F_t the cumulative distribution of softmax(z_t / T), u_t uniform
    Args:      prompts as tokens; uniforms (prompts, max_new_tokens) as ``draw_uniforms`` gives them; on_token is called
               with each token of a single prompt's response
    Returns:   one Response per prompt, in their order
    Raises:    UsageError on an empty prompt, one that with max_new_tokens exceeds the model's context, or a model that
               does not go on from a cache; RunError where its logits are not numbers
    Verified:  tests/unit/test_language_generation.py::test_generation_and_scoring_agree,
               tests/unit/test_language_generation.py::test_samples_follow_the_policy,
               tests/unit/test_language_generation.py::test_samples_do_not_depend_on_the_micro_batches
    """
    longest = max((len(p) for p in prompts), default=0)
    if any(len(p) == 0 for p in prompts):
        raise UsageError("a prompt is empty; there is nothing to answer")
    if lm.context is not None and longest >= lm.context:
        raise UsageError(f"a prompt of {longest} tokens fills the model's context of {lm.context}; shorten it")
    if lm.context is not None and longest + sampling.max_new_tokens > lm.context:
        raise UsageError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the model's context of "
            f"{lm.context}; ask for fewer new tokens"
        )
    if uniforms.shape != (len(prompts), sampling.max_new_tokens):
        expected = (len(prompts), sampling.max_new_tokens)
        raise ValueError(f"uniforms have the shape {tuple(uniforms.shape)}; expected {expected}")
    if not lm.remembers:
        raise UsageError(
            f"{type(lm.network).__name__} cannot be sampled from here: it does not go on from a cache of what it has "
            "read, and would draw every token from the last one alone"
        )
    out: list[Response | None] = [None] * len(prompts)
    # Prompts of similar length share a micro-batch; each keeps its own uniforms.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    with without_dropout(lm):
        for start in range(0, len(order), micro_batch_size):
            rows = order[start : start + micro_batch_size]
            answers = _generate(lm, [prompts[i] for i in rows], sampling, uniforms[rows], on_token)
            for i, answer in zip(rows, answers, strict=True):
                out[i] = answer
    return cast(list[Response], out)


def _generate(
    lm: LanguageModel,
    prompts: list[Sequence[int]],
    sampling: Sampling,
    uniforms: Tensor,
    on_token: Callable[[int], None] | None,
) -> list[Response]:
    """One micro-batch. Prompts are padded on the left, so that all responses begin at one place."""
    from transformers import DynamicCache

    device = lm.device
    width = max(len(p) for p in prompts)
    tokens = torch.full((len(prompts), width), lm.pad_token, dtype=torch.int64, device=device)
    mask = torch.zeros((len(prompts), width), dtype=torch.bool, device=device)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        mask[i, width - len(prompt) :] = True
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=lm.network.config)
    uniforms = uniforms.to(device)
    ends = torch.tensor(lm.end_tokens, device=device)
    row = torch.arange(len(prompts), device=device)  # which prompt each row of the batch belongs to
    drawn: list[list[int]] = [[] for _ in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for step in range(sampling.max_new_tokens):
        logits = _next_logits(lm, tokens, mask, position_ids, cache)
        choice, log_prob = _choose(logits, sampling, uniforms[row, step])
        alive = ~torch.isin(choice, ends)
        for i, token, value, goes_on in zip(
            row.tolist(), choice.tolist(), log_prob.tolist(), alive.tolist(), strict=True
        ):
            drawn[i].append(token)
            log_probs[i].append(value)
            ended[i] = not goes_on
            if on_token is not None and len(prompts) == 1:
                on_token(token)
        if not bool(alive.any()):
            break
        position_ids = position_ids[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
        tokens = choice.unsqueeze(1)
        if not bool(alive.all()):
            keep = alive.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            row, tokens, mask, position_ids = row[keep], tokens[keep], mask[keep], position_ids[keep]
    return [Response(tuple(t), tuple(p), e) for t, p, e in zip(drawn, log_probs, ended, strict=True)]


def _next_logits(lm: LanguageModel, tokens: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
    """The logits (B, V) of what follows tokens that follow what the cache holds, in float32 at least."""
    read = {"input_ids": tokens, "attention_mask": mask, "position_ids": position_ids, "past_key_values": cache}
    if lm.splits:
        hidden = cast(Any, lm.backbone)(**read, use_cache=True).last_hidden_state[:, -1]
        return logits_of(lm)(hidden)
    return lm.network(**read, use_cache=True, logits_to_keep=1).logits[:, -1].float()


def _choose(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens by inversion of the cumulative distribution, and their log-probabilities under the whole policy."""
    log_pi = torch.log_softmax(logits / (sampling.temperature or 1.0), dim=-1)
    if bool(torch.isnan(log_pi).any()):
        raise RunError("the model's logits are not finite: its weights are damaged, or training has diverged")
    if sampling.temperature == 0:
        choice = log_pi.argmax(-1)
    else:
        # In float64: a sum of many float32 probabilities would be off by more than rare tokens have.
        cumulative = _restrict(log_pi.double().exp(), sampling).cumsum(-1)
        total = cumulative[:, -1:]
        # u < 1, yet its product may round up to the total, which no token exceeds.
        level = torch.minimum(uniform.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
        choice = torch.searchsorted(cumulative, level, right=True).squeeze(1)
    return choice, log_pi.gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def _restrict(probability: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with those outside of the top k, or of the nucleus, set to 0."""
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return probability
    ordered, index = probability.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1.0:
        # The first token whose mass reaches top_p still belongs to it.
        keep &= ordered.cumsum(-1) - ordered < sampling.top_p
    return torch.zeros_like(probability).scatter(-1, index, ordered * keep)
