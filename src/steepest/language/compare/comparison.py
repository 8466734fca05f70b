"""Two language models on the same prompts and the same random numbers, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from steepest.errors import UsageError
from steepest.language.compare.intervals import (
    Interval,
    WinRate,
    distinct_n,
    equally_long,
    mean_interval,
    share_interval,
    win_rate,
)
from steepest.language.data.batching import pad, responses
from steepest.language.data.examples import Prompt
from steepest.language.data.rendering import Renderer
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.generation import Response, Sampling, draw_uniforms, generate, response_text
from steepest.language.scoring.scoring import token_divergences
from steepest.language.training.reward_model import RewardModel
from steepest.language.training.rewards import TextReward, make_scorer

Render = Callable[[LanguageModel], list[Prompt]]
"""The prompts as a model reads them."""


@dataclass(frozen=True)
class Divergence:
    """The KL of whole responses from a policy to another one, estimated on the policy's own samples; nats."""

    kl: Interval
    """By the whole vocabulary at every step, summed along the samples."""
    k1: Interval
    """By the samples' own probabilities: log pi(y|x) - log ref(y|x)."""


@dataclass(frozen=True)
class Answer:
    """One sample."""

    text: str
    tokens: int
    """Its end token included."""
    ended: bool
    """By an end token, not by the limit."""
    reward: float | None


@dataclass(frozen=True)
class Side:
    """One of two models, and what it answered."""

    model: str
    answers: tuple[Answer, ...]
    reward: Interval | None
    to_other: Divergence | None
    to_reference: Divergence | None
    tokens: Interval
    characters: Interval
    ended: Interval
    """Share that ended by an end token."""
    distinct_1: float
    """Share of different ones among the words of all answers; of the two to a prompt, the longer is cut for it to as
    many words as the shorter."""
    distinct_2: float
    """The same of pairs of neighbouring words."""


@dataclass(frozen=True)
class Comparison:
    """What ``steepest.compare`` found; every interval is one of 95 %."""

    prompts: tuple[Any, ...]
    a: Side
    b: Side
    judge: str | None
    reference: str | None
    win_rate: WinRate | None
    """Of a over b, by the judge's rewards of the answers to each prompt."""
    reward_difference: Interval | None
    """Mean over prompts of the reward of a less that of b."""
    seed: int
    sampling: Sampling
    notes: tuple[str, ...]
    """What could not be measured, and why."""


class Contestant(NamedTuple):
    """A model, its name, and the prompts as it reads them."""

    name: str
    lm: LanguageModel
    prompts: list[Prompt]


def compare_models(
    a: tuple[str, LanguageModel],
    b: tuple[str, LanguageModel],
    render: Render,
    sampling: Sampling,
    *,
    judge: tuple[str, RewardModel | TextReward] | None,
    reference: tuple[str, LanguageModel] | None,
    seed: int,
    generator: torch.Generator,
    micro_batch_size: int,
    note: Callable[[str], None],
) -> Comparison:
    """Draw an answer of both models to every prompt, from the same uniforms, and measure them.

    Args:      a, b, judge, reference with their names; seed that the generator was made of
    Raises:    UsageError where a KL from the reference is asked for that does not exist
    Verified:  tests/unit/test_comparison.py::test_figures_are_those_of_the_answers
    """
    sides = [Contestant(*model, render(model[1])) for model in (a, b)]
    third = None if reference is None else Contestant(*reference, render(reference[1]))
    if third is not None:
        for side in sides:
            if (why := why_no_divergence(side, third, sampling)) is not None:
                raise UsageError(f"there is no KL from the reference: {why}")
    uniforms = draw_uniforms(len(sides[0].prompts), sampling, generator)
    drawn: list[list[Response]] = []
    for side in sides:
        note(f"drawing {len(side.prompts):,} answers of {side.name}")
        tokens = [prompt.tokens for prompt in side.prompts]
        drawn.append(generate(side.lm, tokens, sampling, uniforms, micro_batch_size=micro_batch_size))
    rewards = None if judge is None else judged(judge[1], sides, drawn, render, micro_batch_size)
    why = why_no_divergence(sides[0], sides[1], sampling)

    def divergence(i: int, other: Contestant | None) -> Divergence | None:
        if other is None:
            return None
        return divergence_of(sides[i], other, drawn[i], sampling.temperature, micro_batch_size)

    if third is not None or why is None:
        note("scoring the answers under the other models")
    texts = [[response_text(side.lm, r) for r in answers] for side, answers in zip(sides, drawn, strict=True)]
    cut = equally_long(*texts)

    def answered(i: int) -> Side:
        """What one model answered; the two are compared at the length of ``cut``."""
        own = [None] * len(drawn[i]) if rewards is None else rewards[i]
        return Side(
            model=sides[i].name,
            answers=tuple(
                Answer(text, len(response.tokens), response.ended, reward)
                for text, response, reward in zip(texts[i], drawn[i], own, strict=True)
            ),
            reward=None if rewards is None else mean_interval(rewards[i]),
            to_other=None if why is not None else divergence(i, sides[1 - i]),
            to_reference=divergence(i, third),
            tokens=mean_interval([len(response.tokens) for response in drawn[i]]),
            characters=mean_interval([len(text) for text in texts[i]]),
            ended=share_interval(sum(response.ended for response in drawn[i]), len(drawn[i])),
            distinct_1=distinct_n(cut[i], 1),
            distinct_2=distinct_n(cut[i], 2),
        )

    return Comparison(
        prompts=tuple(prompt.row["prompt"] for prompt in sides[0].prompts),
        a=answered(0),
        b=answered(1),
        judge=None if judge is None else judge[0],
        reference=None if reference is None else reference[0],
        win_rate=None if rewards is None else win_rate(*rewards),
        reward_difference=(None if rewards is None else mean_interval([x - y for x, y in zip(*rewards, strict=True)])),
        seed=seed,
        sampling=sampling,
        notes=() if why is None else (f"no KL between the models: {why}",),
    )


def why_no_divergence(one: Contestant, other: Contestant, sampling: Sampling) -> str | None:
    """Why the KL between two policies cannot be estimated on their samples; None if it can."""
    if sampling.temperature == 0:
        return "at temperature 0 the answers are no samples of the policy"
    if sampling.top_k or sampling.top_p < 1.0:
        return "with top_k or top_p the answers are no samples of the policy"
    if one.lm.tokenizer.get_vocab() != other.lm.tokenizer.get_vocab():
        return f"{one.name} and {other.name} have different tokenizers, so their responses are not of one kind"
    if one.lm.vocabulary != other.lm.vocabulary:
        return f"{one.name} has {one.lm.vocabulary} logits, {other.name} {other.lm.vocabulary}"
    if any(p.tokens != q.tokens for p, q in zip(one.prompts, other.prompts, strict=True)):
        return f"{one.name} and {other.name} read the prompts as different tokens (their chat templates differ)"
    return None


def divergence_of(
    side: Contestant, other: Contestant, drawn: Sequence[Response], temperature: float, micro_batch_size: int
) -> Divergence:
    """The KL from a policy to another one, on the policy's own samples."""
    examples = responses([p.tokens for p in side.prompts], [r.tokens for r in drawn])
    longest = max(len(e.tokens) for e in examples)
    if other.lm.context is not None and longest > other.lm.context:
        raise UsageError(
            f"an answer of {side.name} has {longest} tokens, prompt included; the context of {other.name} is "
            f"{other.lm.context}"
        )
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].tokens), i))
    kl, k1 = [0.0] * len(examples), [0.0] * len(examples)
    for start in range(0, len(order), micro_batch_size):
        rows = order[start : start + micro_batch_size]
        batch = pad([examples[i] for i in rows], side.lm.pad_token).to(side.lm.device)
        found = token_divergences(side.lm, other.lm, batch, temperature=temperature)
        sums = (x.double().sum(-1).tolist() for x in found)
        for i, whole, alone in zip(rows, *sums, strict=True):
            kl[i], k1[i] = whole, alone
    return Divergence(mean_interval(kl), mean_interval(k1))


def judged(
    judge: RewardModel | TextReward,
    sides: Sequence[Contestant],
    drawn: Sequence[Sequence[Response]],
    render: Render,
    micro_batch_size: int,
) -> list[list[float]]:
    """The judge's rewards of every answer of each model.

    A reward model reads the models' own tokens if these are its own too. Otherwise it reads all texts anew.
    """
    scores: list[list[float]] = []
    foreign = isinstance(judge, RewardModel) and any(
        side.lm.tokenizer.get_vocab() != judge.lm.tokenizer.get_vocab() for side in sides
    )
    for side, answers in zip(sides, drawn, strict=True):
        if isinstance(judge, RewardModel) and foreign:
            scorer = make_scorer(judge.lm, judge, micro_batch_size=micro_batch_size)
            read = Renderer(judge.lm)
            retold = [
                Response(
                    (*read.encode(response_text(side.lm, r)), *((judge.lm.end_token,) if r.ended else ())), (), r.ended
                )
                for r in answers
            ]
            scores.append(scorer(render(judge.lm), retold).tolist())
        else:
            scorer = make_scorer(side.lm, judge, micro_batch_size=micro_batch_size)
            scores.append(scorer(side.prompts, answers).tolist())
    return scores
