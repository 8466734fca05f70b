"""A language whose responses are listed, as the padded token sequences that language models read; and tabular models.

Padding has the id of EOS and is put on either side, and what a model says about anything but a response's prefix is
noise: whoever takes one for the other is found out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.errors import UsageError
from steepest.exact.language import EnumerableLanguage
from steepest.types import TokenBatch


def padded(
    language: EnumerableLanguage, prompt: Tensor, response: Tensor, *, left: int = 1, right: int = 1
) -> TokenBatch:
    """Prompts and responses, given by their numbers, as rows of tokens.

    Args:      prompt (B,), response (B,) int64, numbers in the language's lists; left, right: columns of padding beyond
               what the longest prompt and the longest response need
    Returns:   TokenBatch (B, L), prompts ending and responses beginning in the same columns
    Raises:    UsageError where the two differ in length
    Verified:  tests/exact/test_text.py::test_padded_rows_say_what_was_listed
    """
    if prompt.shape != response.shape or prompt.ndim != 1:
        raise UsageError(f"prompt {tuple(prompt.shape)} and response {tuple(response.shape)}; give a number of each")
    longest = max(len(p) for p in language.prompts)
    start = left + longest
    before = torch.full((len(language.prompts), start), language.eos)
    given = torch.zeros_like(before, dtype=torch.bool)
    for x, tokens in enumerate(language.prompts):
        before[x, start - len(tokens) :] = torch.tensor(tokens, dtype=torch.int64)
        given[x, start - len(tokens) :] = True
    after = torch.full((len(prompt), right), language.eos)
    none = torch.zeros_like(after, dtype=torch.bool)
    tokens = torch.cat([before[prompt], language.tokens[response], after], -1)
    attention = torch.cat([given[prompt], language.mask[response], none], -1)
    chosen = torch.cat([torch.zeros_like(given[prompt]), language.mask[response], none], -1)
    return TokenBatch(tokens, attention, chosen)


def everything(language: EnumerableLanguage, *, left: int = 1, right: int = 1) -> TokenBatch:
    """Every response to every prompt as rows of tokens: P * R of them, prompt by prompt."""
    prompts, responses = language.response_shape
    rows = torch.arange(prompts * responses)
    return padded(language, rows // responses, rows % responses, left=left, right=right)


class TabularLM(nn.Module):
    """A language model that is a table of logits by prompt and prefix.

    It reads what the attention mask leaves of a row, so it gives the same whatever the padding.

    Verified:  tests/exact/test_text.py::test_tabular_models_look_up_the_prefix
    """

    def __init__(self, language: EnumerableLanguage, table: Tensor) -> None:
        """``table`` (P, S, V): logits."""
        super().__init__()
        if any(p != q and q[: len(p)] == p for p in language.prompts for q in language.prompts):
            raise UsageError("a prompt begins with another one; a text would not tell which of the two it answers")
        self.table = nn.Parameter(table.detach().clone())
        self.base = language.vocab_size + 1
        texts = [x + y for x in language.prompts for y in language.prefixes]
        code = torch.tensor([self._code(text) for text in texts])
        self.codes, self.order = code.sort()

    def _code(self, text: tuple[int, ...]) -> int:
        code = 0
        for token in text:
            code = code * self.base + token + 1
        return code

    def cells(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) the number of prompt and prefix, P * S of them, that ends at each position, and whether one does."""
        code = torch.zeros_like(tokens[:, 0])
        codes: list[Tensor] = []
        for t in range(tokens.shape[1]):
            code = torch.where(attention_mask[:, t], code * self.base + tokens[:, t] + 1, code)
            codes.append(code)
        text = torch.stack(codes, -1)
        place = torch.searchsorted(self.codes, text).clamp(max=len(self.codes) - 1)
        known = (self.codes[place] == text) & attention_mask
        return self.order[place], known

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) to logits (B, L, V)."""
        cell, known = self.cells(tokens, attention_mask)
        return self._read(self.table.flatten(0, 1), cell, known)

    def _read(self, table: Tensor, cell: Tensor, known: Tensor) -> Tensor:
        found = table[cell]
        noise = torch.sin(1.0 + torch.arange(found.numel(), dtype=found.dtype).reshape(found.shape))
        return torch.where(known.reshape(known.shape + (1,) * (found.ndim - 2)), found, 9.0 * noise)


class TabularActorCritic(TabularLM):
    """The same with a table of values.

    Verified:  tests/exact/test_text.py::test_tabular_models_look_up_the_prefix
    """

    def __init__(self, language: EnumerableLanguage, table: Tensor, value: Tensor) -> None:
        """``value`` (P, S): of the state in which the next token is chosen."""
        super().__init__(language, table)
        self.value = nn.Parameter(value.detach().clone())

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, L) to logits (B, L, V) and values (B, L)."""
        cell, known = self.cells(tokens, attention_mask)
        return self._read(self.table.flatten(0, 1), cell, known), self._read(self.value.flatten(), cell, known)


def prefix_values(language: EnumerableLanguage, log_prob: Tensor, token_log_prob: Tensor, reward: Tensor) -> Tensor:
    """Expected sum of the rewards from a prefix on, by listing the responses that begin with it.

    Equation:  V(x, prefix) = sum_{y begins with prefix} pi(y|x, prefix) sum_{t >= |prefix|} r_t(x, y)
    Args:      log_prob (P, R) of whole responses, token_log_prob (P, R, L) nats; reward (P, R, L), zero beyond the end
    Returns:   (P, S) reward units, detached
    Verified:  tests/exact/test_text.py::test_prefix_values_are_consistent
    """
    to_go = reward.detach().flip(-1).cumsum(-1).flip(-1)
    before = token_log_prob.detach().cumsum(-1) - token_log_prob.detach()
    weight = torch.exp(log_prob.detach().unsqueeze(-1) - before)  # of what follows the prefix, given it
    found = torch.zeros(language.table_shape[:2], dtype=torch.float64)
    for t in range(language.max_length):
        here = language.mask[:, t]
        found.index_add_(1, language.prefix[here, t], (weight * to_go)[:, here, t])
    return found
