"""What trainers learn from: sequences, pairs and prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Message = dict[str, Any]


class Example(NamedTuple):
    """One sequence, and which of its tokens are to be learned."""

    tokens: tuple[int, ...]
    response: tuple[bool, ...]


class Pair(NamedTuple):
    """A prompt and two responses to it, the first of them preferred."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Prompt(NamedTuple):
    """A prompt ready for a response, and the row of the data that it is from."""

    tokens: tuple[int, ...]
    row: dict[str, Any]


class RowError(Exception):
    """One row cannot be used; says why."""


@dataclass
class Report:
    """What became of a dataset's rows."""

    rows: int = 0
    used: int = 0
    truncated: int = 0
    """Rows whose response was cut at max_length; it has no end token then."""
    long_prompts: int = 0
    """Rows left out because their prompt alone fills max_length, or leaves too little of it for a response."""
    new_tokens: int = 0
    """Tokens of max_length that are kept for a response, where responses are drawn."""
    merges: int = 0
    """Rows where the tokenizer, given prompt and response as one text, would merge across their boundary."""
    repeated: int = 0
    """Rows of a file that have a column twice; the last one counts."""
    cut: int = 0
    """Conversations cut into a sequence for every turn, since the template rewrites earlier ones."""
    bad: list[str] = field(default_factory=list[str])
    """Rows left out because they cannot be used, and why."""
    ignored: tuple[str, ...] = ()
    """Columns that mean nothing here."""

    def lines(self, name: str = "data") -> list[str]:
        """The report for a reader: one line per thing worth knowing."""
        out = [f"{name}: {self.used:,} of {self.rows:,} rows"]
        if self.truncated:
            out.append(f"  {self.truncated:,} truncated at max_length: their responses have no end token")
        if self.long_prompts:
            kept = f"leaves less than max_new_tokens ({self.new_tokens}) of" if self.new_tokens else "alone fills"
            out.append(f"  {self.long_prompts:,} left out: the prompt {kept} max_length")
        if self.merges:
            out.append(f"  {self.merges:,} joined in tokens where the tokenizer would have merged prompt and response")
        if self.cut:
            out.append(
                f"  {self.cut:,} cut into a sequence for every turn, since the chat template rewrites earlier ones"
            )
        if self.repeated:
            out.append(f"  {self.repeated:,} have a column twice, of which the last is read")
        if self.bad:
            out.append(f"  {len(self.bad):,} left out as unusable, such as {self.bad[0]}")
        if self.ignored:
            out.append(f"  columns not used: {', '.join(self.ignored)}")
        return out
