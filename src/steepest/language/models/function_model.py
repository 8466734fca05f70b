"""Any function of tokens as a LanguageModel: what is exact about small tables is tried through the same trainers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from steepest.language.models.language_model import LanguageModel


class TokenNetwork(nn.Module):
    """A module (tokens, attention_mask) -> logits, or (logits, hidden states), with the face of a Hugging Face model.

    One that gives logits alone has them for hidden states too.
    """

    def __init__(self, function: nn.Module, vocab_size: int) -> None:
        super().__init__()
        self.function = function
        text = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=None)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        output: Any = self.function(input_ids, attention_mask)
        logits, hidden = output if isinstance(output, tuple) else (output, output)
        hidden = hidden.unsqueeze(-1) if hidden.ndim == 2 else hidden
        return SimpleNamespace(logits=logits, last_hidden_state=hidden, hidden_states=(hidden,))

    @property
    def base_model(self) -> nn.Module:
        """Itself: it gives hidden states and logits at once."""
        return self

    def get_output_embeddings(self) -> None:
        """There is no head to be told from the rest."""


def as_language_model(function: nn.Module, *, vocab_size: int, end_token: int = 0) -> LanguageModel:
    """A LanguageModel of any module (tokens, attention_mask) -> logits; trainers take it, generation does not.

    Args:      function: (B, L) int64 and (B, L) bool to logits (B, L, V), or to logits and hidden states
               (B, L, D) or (B, L)
    Verified:  tests/exact/test_preference.py::test_scoring_gives_the_listed_log_probs
    """
    return LanguageModel(TokenNetwork(function, vocab_size), None, (end_token,))
