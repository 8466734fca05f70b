"""A small tokenizer and tiny random models, made once per process."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.language.data.examples import Example
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.scratch import tiny_llama, train_tokenizer

ADJECTIVES = ("great", "dull", "wonderful", "terrible", "moving", "boring", "clever", "slow")
NOUNS = ("movie", "film", "story", "actor", "plot", "scene", "ending")
CORPUS = [
    f"This {noun} was {one} and the {other} is {two}. I have seen it, and it's not {two}!"
    for (noun, other), (one, two) in itertools.product(
        itertools.permutations(NOUNS[:5], 2), itertools.permutations(ADJECTIVES[:5], 2)
    )
]


@functools.cache
def tokenizer() -> Any:
    return train_tokenizer(CORPUS, 320)


@functools.cache
def chat_tokenizer() -> Any:
    return train_tokenizer(CORPUS, 320, chat=True)


def tiny(*, chat: bool = False, seed: int = 0, scale: float = 5.0, **options: Any) -> LanguageModel:
    """A Llama of two layers; its weights scaled up, so that it has opinions and attention matters."""
    lm = tiny_llama(
        chat_tokenizer() if chat else tokenizer(), **{"layers": 2, "width": 32, "heads": 2, "context": 128, **options},
        seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    return lm


def demonstrations(count: int = 40) -> list[dict[str, str]]:
    """Prompts whose completion follows from them."""
    pairs = itertools.islice(itertools.cycle(itertools.product(NOUNS, ADJECTIVES)), count)
    return [{"prompt": f"This {noun} was {word}.", "completion": f" I have seen the {noun}."} for noun, word in pairs]


_RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(tuple(int(t) for t in _RNG.integers(258, 320, n)), (False,) * 2 + (True,) * (n - 2)) for n in (9, 5, 7, 3)
]
"""Four short sequences of two prompt tokens each."""


def preferences(count: int = 24) -> list[dict[str, str]]:
    """Pairs of which the chosen response names the prompt's noun, and the rejected one is of another length."""
    return [{**row, "chosen": row["completion"], "rejected": " It was dull."} for row in demonstrations(count)]


def shout(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward: the share of characters that are an e."""
    return [text.count("e") / (1 + len(text)) for text in completions]


def slopes(made: Any) -> dict[str, Tensor]:
    """The gradient of a trainer's first batch, by parameter."""
    made.gradient(made.micro_batches(0))
    return {n: p.grad.clone() for n, p in made.named.items() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-4) -> None:
    """Equal up to float32 rounding, relative to the largest component of each tensor."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=rtol, atol=rtol * float(one[name].abs().max()))
