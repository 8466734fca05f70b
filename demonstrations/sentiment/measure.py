"""What a policy is measured by: scores of both classifiers, KL from where it began, length and variety."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demonstrations.sentiment.classifier import Classifier
from demonstrations.sentiment.settings import RESPONSE_TOKENS
from steepest.api.language import response_text
from steepest.language import LanguageModel, RewardModel, generate
from steepest.language.data.batching import pad, responses
from steepest.language.data.tokens import token_kl, token_log_probs
from steepest.language.models.language_model import without_dropout
from steepest.language.scoring.generation import Response, Sampling, draw_uniforms
from steepest.seeding import stream_seed
from steepest.types import TokenBatch

ROWS = 32
"""Sequences at once: their logits, of both models, are 32 MB each."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as texts and tokens."""

    texts: list[str]
    tokens: list[tuple[int, ...]]

    def repeated(self, times: int) -> Prompts:
        """Each of them several times, one after the other."""
        texts = [text for text in self.texts for _ in range(times)]
        return Prompts(texts, [tokens for tokens in self.tokens for _ in range(times)])


def tokenized(lm: LanguageModel, texts: Sequence[str]) -> Prompts:
    """Texts with their tokens."""
    return Prompts(list(texts), [tuple(lm.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts])


def draw(lm: LanguageModel, prompts: Prompts, *, seed: int, stream: str) -> list[Response]:
    """A response to every prompt, drawn from the whole policy."""
    sampling = Sampling(max_new_tokens=RESPONSE_TOKENS)
    generator = torch.Generator().manual_seed(stream_seed(seed, stream))
    uniforms = draw_uniforms(len(prompts.tokens), sampling, generator)
    return generate(lm, prompts.tokens, sampling, uniforms, micro_batch_size=128)


def whole_texts(lm: LanguageModel, prompts: Prompts, drawn: Sequence[Response]) -> list[str]:
    """Prompts with their responses."""
    return [prompt + response_text(lm, r) for prompt, r in zip(prompts.texts, drawn, strict=True)]


def batches(lm: LanguageModel, prompts: Prompts, drawn: Sequence[Response]) -> list[TokenBatch]:
    """Prompts and responses, in parts that fit memory."""
    examples = responses(prompts.tokens, [r.tokens for r in drawn])
    return [pad(examples[i : i + ROWS], lm.pad_token) for i in range(0, len(examples), ROWS)]


@torch.no_grad()
def sequence_kl(policy: LanguageModel, reference: LanguageModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Two estimates of KL(policy || reference) from each response that the policy drew: the steps' KLs summed, and k1.

    Equation:  sum_t KL(pi(.|x, y_<t) || ref(.|x, y_<t));   k1 = log pi(y|x) - log ref(y|x)
    Verified:  tests/unit/test_demonstrations.py::test_sequence_kl_is_the_one_of_all_responses
    """
    with without_dropout(policy), without_dropout(reference):
        new, old = (logits(lm, batch) for lm in (policy, reference))
    steps = batch.response_mask[:, 1:]
    k1 = token_log_probs(new, batch.tokens) - token_log_probs(old, batch.tokens)
    return (token_kl(new, old) * steps).sum(-1), (k1 * steps).sum(-1)


def logits(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """(B, L, V)"""
    return lm.network(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits


def distinct(drawn: Sequence[Response], n: int) -> float:
    """Share of different ones among all stretches of n tokens in all responses.

    Verified:  tests/unit/test_demonstrations.py::test_distinct_stretches_by_hand
    """
    found = [r.tokens[i : i + n] for r in drawn for i in range(len(r.tokens) - n + 1)]
    return len(set(found)) / max(1, len(found))


@torch.no_grad()
def model_scores(model: RewardModel, prompts: Prompts, drawn: Sequence[Response]) -> Tensor:
    """Scores of a reward model (responses,)."""
    return torch.cat([model.scores(batch) for batch in batches(model.lm, prompts, drawn)])


@dataclass(frozen=True)
class Judges:
    """The classifier that is the truth, and one that nothing was trained on."""

    truth: Classifier
    second: Classifier


def measure(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Prompts,
    judges: Judges,
    *,
    seed: int,
    reward_model: RewardModel | None = None,
    shown: int = 0,
) -> dict[str, Any]:
    """Means over one response to each prompt, with their standard errors; and the first responses as text."""
    drawn = draw(policy, prompts, seed=seed, stream="measured responses")
    texts = whole_texts(policy, prompts, drawn)
    parts = [sequence_kl(policy, reference, batch) for batch in batches(policy, prompts, drawn)]
    kl, k1 = (torch.cat(part) for part in zip(*parts, strict=True))
    figures = {
        "reward": judges.truth.scores(texts),
        "second_judge": judges.second.scores(texts),
        "kl": kl,
        "kl_k1": k1,
        "length": torch.tensor([float(len(r.tokens)) for r in drawn]),
        "ended": torch.tensor([float(r.ended) for r in drawn]),
    }
    if reward_model is not None:
        figures["learned_reward"] = model_scores(reward_model, prompts, drawn)
    out: dict[str, Any] = {name: float(x.mean()) for name, x in figures.items()}
    out["standard_error"] = {name: float(x.std() / math.sqrt(len(x))) for name, x in figures.items()}
    out |= {"distinct_1": distinct(drawn, 1), "distinct_2": distinct(drawn, 2)}
    if shown:
        out["samples"] = [
            {"prompt": p, "response": t[len(p) :], "reward": float(r)}
            for p, t, r in zip(prompts.texts[:shown], texts, figures["reward"], strict=False)
        ]
    return out


def best_of_n(score: Tensor, value: Tensor, n: int) -> float:
    """What the response with the highest score among n is worth, over all ways to choose n of those drawn.

    Equation:  mean over prompts of sum_i C(i, n - 1) / C(N, n) value_(i), (i) the response with i lower scores
    Args:      score and value (prompts, N) of the same responses; 1 <= n <= N
    Verified:  tests/unit/test_demonstrations.py::test_best_of_n_is_the_mean_over_all_choices
    """
    count = score.shape[1]
    weight = torch.tensor([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)], dtype=torch.float64)
    ordered = value.double().gather(1, score.argsort(1))
    return float((ordered * weight).sum(1).mean())
