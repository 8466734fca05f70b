"""A language whose responses can be listed, and tiny recurrent language models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steepest.exact.language import EnumerableLanguage
from steepest.language.models.function_model import as_language_model
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.reference import Reference

F64 = torch.float64


def small_language() -> EnumerableLanguage:
    """Two prompts of different length, 15 responses of up to three tokens out of three. EOS is 0, and so is padding."""
    return EnumerableLanguage(((1,), (2, 1)), (0.3, 0.7), vocab_size=3, eos=0, max_length=3)


def normal(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=F64)


def listed(function: nn.Module) -> LanguageModel:
    """A table over the small language as a language model."""
    return as_language_model(function, vocab_size=3)


def listed_reference(function: nn.Module) -> Reference:
    return Reference(listed(function), adapters_are_fresh=False)


def no_reward(_prompts: object, _completions: object) -> list[float]:
    """Where scores are given, not computed."""
    return []


PLAIN = {"warmup": 0.0, "schedule": "constant", "max_gradient_norm": 1e9, "micro_batch_size": 1_000_000}
"""A trainer without schedule and limits, which takes a batch as a whole."""


class TinyLM(nn.Module):
    """An embedding and a GRU over the attended tokens: hidden states (B, L, D), logits (B, L, V), values (B, L)."""

    def __init__(self, vocab_size: int, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(vocab_size, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, vocab_size)
        self.value_head = nn.Linear(width, 1)
        torch.set_rng_state(state)
        self.width = width

    def hidden(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """Padding leaves the state as it was."""
        h = self.embedding.weight.new_zeros((len(tokens), self.width))
        states: list[Tensor] = []
        for t in range(tokens.shape[1]):
            h = torch.where(attention_mask[:, t, None], self.cell(self.embedding(tokens[:, t]), h), h)
            states.append(h)
        return torch.stack(states, 1)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.hidden(tokens, attention_mask))


class TinyActorCritic(TinyLM):
    """The same, giving (logits, values)."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden = self.hidden(tokens, attention_mask)
        return self.head(hidden), self.value_head(hidden).squeeze(-1)
