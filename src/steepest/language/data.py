"""Datasets in the formats that people have, as tokens: demonstrations, preferences, prompts.

| for | columns |
|---|---|
| SFT | ``prompt``, ``completion``; or ``messages``; or ``text`` |
| preferences | ``prompt``, ``chosen``, ``rejected``; or these two, conversations equal but for their end |
| prompts | ``prompt`` |

Text columns hold strings, or lists of messages (``{"role": ..., "content": ...}``), which the model's chat template
renders. A prompt is always tokenised alone, as it is when the model answers it; a response begins after it, in tokens.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from steepest.errors import UsageError
from steepest.language.models import LanguageModel
from steepest.language.reading import read_rows

Message = dict[str, Any]
T = TypeVar("T")

SHOWN_ERRORS = 3


class Example(NamedTuple):
    """One sequence, and which of its tokens are to be learned."""

    tokens: tuple[int, ...]
    response: tuple[bool, ...]


class Pair(NamedTuple):
    """A prompt and two responses to it, the first of them preferred."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


class Prompt(NamedTuple):
    """A prompt ready for a response, and the row of the data that it is from."""

    tokens: tuple[int, ...]
    row: dict[str, Any]


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
        if self.bad:
            out.append(f"  {len(self.bad):,} left out as unusable, such as {self.bad[0]}")
        if self.ignored:
            out.append(f"  columns not used: {', '.join(self.ignored)}")
        return out


def read_prompts(source: Any) -> list[dict[str, Any]]:
    """The rows of a dataset of prompts as they are, each with its prompt: a text, or a list of messages."""
    rows, _, _ = _open(source, (("prompt",),), "prompt")
    lacking = next((number for number, row in enumerate(rows, start=1) if "prompt" not in row), None)
    if lacking is not None:
        raise UsageError(f"row {lacking} of the dataset {_name(source)} has no prompt")
    return rows


class RowError(Exception):
    """One row cannot be used; says why."""


def fingerprint(rows: Iterable[Sequence[Any]]) -> str:
    """A hash of tokenised data, by which a resumed run knows that it has the same."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        for part in row:
            digest.update(np.asarray(part, dtype=np.int64).tobytes())
            digest.update(b"|")
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Datasets
# ---------------------------------------------------------------------------------------------------------------------


def load_sft(
    lm: LanguageModel, source: Any, *, max_length: int | None = None, drop_bad_rows: bool = False
) -> tuple[list[Example], Report]:
    """Demonstrations as tokens, with every token of every response marked.

    Of ``messages`` every assistant turn is learned, of ``prompt`` and ``completion`` the completion, of ``text``
    everything. A response ends with an end token, unless it was cut at ``max_length``.

    Args:      source: a .jsonl, .json or .parquet file, a folder of such files or of ``datasets``, the id of a dataset
               on the Hugging Face hub, a ``datasets.Dataset``, or a list of dicts; max_length: tokens of a sequence, by
               default the model's context; drop_bad_rows: count unusable rows instead of refusing the dataset
    Raises:    UsageError on columns of no known format, and on rows that are empty, malformed, or whose rendered prompt
               is no token prefix of the whole, naming the first of them
    Verified:  tests/unit/test_language_data.py::test_every_assistant_turn_is_learned,
               tests/unit/test_language_data.py::test_a_boundary_that_would_merge_is_joined_in_tokens
    """
    formats = (("messages",), ("prompt", "completion"), ("text",))
    rows, columns, report = _open(source, formats, "prompt and completion, or messages, or text")
    renderer = Renderer(lm)
    limit = _limit(lm, max_length)

    def example(row: dict[str, Any]) -> Example | None:
        if columns == ("messages",):
            whole = renderer.conversation(_messages(row["messages"], "messages"))
        elif columns == ("text",):
            whole = renderer.text(row["text"])
        elif isinstance(row["prompt"], str):
            prompt, response = renderer.plain(row["prompt"], row["completion"], report)
            whole = Example((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))
        else:
            prompt = _messages(row["prompt"], "prompt")
            completion = _messages(row["completion"], "completion")
            whole = renderer.conversation([*prompt, *completion], first=len(prompt))
        if len(whole.tokens) > limit:
            lost = any(whole.response[limit:])  # not only what a template writes after the last end token
            whole = Example(whole.tokens[:limit], whole.response[:limit])
            if not any(whole.response):
                report.long_prompts += 1
                return None
            report.truncated += lost
        return whole

    return _convert(rows, example, report, drop_bad_rows), report


def load_preferences(
    lm: LanguageModel, source: Any, *, max_length: int | None = None, drop_bad_rows: bool = False
) -> tuple[list[Pair], Report]:
    """Preferences as tokens; arguments and errors as for ``load_sft``, and two equal responses are an error too.

    Verified:  tests/unit/test_language_data.py::test_preferences_in_both_formats
    """
    formats = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))
    rows, columns, report = _open(source, formats, "prompt, chosen and rejected; or chosen and rejected conversations")
    renderer = Renderer(lm)
    limit = _limit(lm, max_length)

    def pair(row: dict[str, Any]) -> Pair | None:
        if columns == ("prompt", "chosen", "rejected") and isinstance(row["prompt"], str):
            merges = report.merges
            prompt, chosen = renderer.plain(row["prompt"], row["chosen"], report)
            same, rejected = renderer.plain(row["prompt"], row["rejected"], report)
            report.merges = min(report.merges, merges + 1)  # it counts rows
            if same != prompt:
                raise RowError("the prompt is tokenised differently before the two responses")
        else:
            chosen_turns, rejected_turns = (_messages(row[name], name) for name in ("chosen", "rejected"))
            if columns == ("chosen", "rejected"):
                turns = chosen_turns[:-1]
                if rejected_turns[:-1] != turns:
                    raise RowError("chosen and rejected differ before their last message: they answer no common prompt")
                chosen_turns, rejected_turns = chosen_turns[-1:], rejected_turns[-1:]
            else:
                turns = _messages(row["prompt"], "prompt")
            prompt, chosen = renderer.answer(turns, chosen_turns, "chosen")
            _, rejected = renderer.answer(turns, rejected_turns, "rejected")
        if chosen == rejected:
            raise RowError("chosen and rejected are the same")
        room = limit - len(prompt)
        if room < 1 or chosen[:room] == rejected[:room]:
            report.long_prompts += 1
            return None
        report.truncated += len(chosen) > room or len(rejected) > room
        return Pair(prompt, chosen[:room], rejected[:room])

    return _convert(rows, pair, report, drop_bad_rows), report


def load_prompts(
    lm: LanguageModel, source: Any, *, max_length: int | None = None, new_tokens: int = 0, drop_bad_rows: bool = False
) -> tuple[list[Prompt], Report]:
    """Prompts as tokens, each with its row; arguments and errors as for ``load_sft``.

    ``new_tokens`` of ``max_length`` are kept for the response.

    Verified:  tests/unit/test_language_data.py::test_prompts_leave_room_for_responses
    """
    rows, _, report = _open(source, (("prompt",),), "prompt")
    report.ignored = ()  # a reward may look at them
    report.new_tokens = new_tokens
    renderer = Renderer(lm)
    limit = _limit(lm, max_length) - new_tokens

    def prompt(row: dict[str, Any]) -> Prompt | None:
        tokens = renderer.prompt(row["prompt"])
        if len(tokens) > limit:
            report.long_prompts += 1
            return None
        return Prompt(tokens, row)

    return _convert(rows, prompt, report, drop_bad_rows), report


def _open(
    source: Any, formats: Sequence[tuple[str, ...]], expected: str
) -> tuple[list[dict[str, Any]], tuple[str, ...], Report]:
    """Rows, the format that their columns have, and a fresh report."""
    rows = read_rows(source)
    if not rows:
        raise UsageError(f"the dataset {_name(source)} is empty")
    present = list(rows[0])
    for columns in formats:
        if set(columns) <= set(present):
            unused = tuple(name for name in present if name not in columns)
            return rows, columns, Report(rows=len(rows), ignored=unused)
    known = {name for columns in formats for name in columns}
    hints = [f"{name!r} is close to {near[0]!r}" for name in present if (near := _near(name, known))]
    raise UsageError(
        f"the dataset {_name(source)} has the columns {', '.join(present)}; expected {expected}"
        + (f" ({'; '.join(hints)})" if hints else "")
    )


def _near(name: str, known: set[str]) -> list[str]:
    return [] if name in known else difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"({type(source).__name__})"


def _limit(lm: LanguageModel, max_length: int | None) -> int:
    context = lm.context
    if max_length is None:
        return context if context is not None else 2**31
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}; expected at least 2: a prompt and a response")
    if context is not None and max_length > context:
        raise UsageError(f"max_length is {max_length}, but the model's context is {context} tokens")
    return max_length


def _convert(
    rows: list[dict[str, Any]], convert: Callable[[dict[str, Any]], T | None], report: Report, drop_bad_rows: bool
) -> list[T]:
    out: list[T] = []
    for number, row in enumerate(rows, start=1):
        try:
            converted = convert(row)
        except RowError as error:
            report.bad.append(f"row {number}: {error}")
            continue
        except KeyError as error:
            report.bad.append(f"row {number}: it has no {error}")
            continue
        if converted is not None:
            out.append(converted)
    if report.bad and not drop_bad_rows:
        shown = "; ".join(report.bad[:SHOWN_ERRORS])
        more = f"; and {len(report.bad) - SHOWN_ERRORS} more" if len(report.bad) > SHOWN_ERRORS else ""
        raise UsageError(f"{len(report.bad)} of {len(rows)} rows cannot be used: {shown}{more}. Mend them, or leave "
                         "them out with drop_bad_rows")  # fmt: skip
    if not out:
        raise UsageError("no row of the dataset can be used: " + "; ".join(x.strip() for x in report.lines()[1:]))
    report.used = len(out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Text to tokens
# ---------------------------------------------------------------------------------------------------------------------


class Renderer:
    """Turns prompts and responses, as text or as messages, into tokens."""

    def __init__(self, lm: LanguageModel) -> None:
        self.tokenizer = lm.tokenizer
        self.end_tokens = frozenset(lm.end_tokens)
        self.end_token = lm.end_token
        bos = self.tokenizer.bos_token_id
        encoded = cast(list[int], self.tokenizer("a")["input_ids"])
        self.bos: tuple[int, ...] = (int(bos),) if bos is not None and encoded[:1] == [bos] else ()
        added = self.tokenizer.added_tokens_decoder.values()
        self.control = tuple(token.content for token in added if token.special)

    def encode(self, text: str) -> tuple[int, ...]:
        """Text as tokens, with nothing added."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, prompt: Any) -> tuple[int, ...]:
        """A prompt, as text or messages, ready for a response."""
        if isinstance(prompt, str):
            tokens = self.encode(prompt)
            # A text that was rendered before may begin with it.
            tokens = tokens if tokens[:1] == self.bos else (*self.bos, *tokens)
            if not tokens:
                raise RowError("the prompt is empty")
            return tokens
        return self.template(_messages(prompt, "prompt"), answer=True)

    def plain(self, prompt: Any, completion: Any, report: Report) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt and its response, both text, joined in tokens; counts where the tokenizer would merge them."""
        if not isinstance(prompt, str) or not isinstance(completion, str):
            kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
            raise RowError(f"prompt and response are {kinds}; expected two strings, or two lists of messages")
        if not completion.strip():
            raise RowError("the response is empty")
        first = self.prompt(prompt)
        joined = self.encode(prompt + completion)
        joined = joined if joined[:1] == self.bos else (*self.bos, *joined)
        if joined[: len(first)] == first:
            response = joined[len(first) :]
        else:
            report.merges += 1
            response = self.encode(completion)
            if self.tokenizer.decode([*first, *response]) != self.tokenizer.decode(list(joined)):
                raise RowError(
                    f"the tokenizer merges the prompt's end {prompt[-12:]!r} with the response's beginning "
                    f"{completion[:12]!r}, and joined in tokens they are another text; move the boundary"
                )
        return first, self.ended(response)

    def text(self, text: Any) -> Example:
        """A text of which everything is learned, but not the beginning-of-sequence token."""
        if not isinstance(text, str) or not text.strip():
            raise RowError("the text is empty" if isinstance(text, str) else f"text is a {type(text).__name__}")
        tokens = self.encode(text)
        tokens = self.ended(tokens[len(self.bos) :] if self.bos and tokens[:1] == self.bos else tokens)
        # Nothing comes before the first token to predict it from, unless there is a token of the beginning.
        mask = (False,) + (True,) * len(tokens) if self.bos else (False,) + (True,) * (len(tokens) - 1)
        return Example((*self.bos, *tokens), mask)

    def ended(self, response: tuple[int, ...]) -> tuple[int, ...]:
        """A response with its end token, which may be nowhere but at its end."""
        for place, token in enumerate(response[:-1]):
            if token in self.end_tokens:
                raise RowError(
                    f"the response holds the end token {self.tokenizer.decode([token])!r} at its token {place + 1} of "
                    f"{len(response)}"
                )
        return response if response[-1] in self.end_tokens else (*response, self.end_token)

    def without_control(self, text: str) -> str:
        """Text with nothing in it that is spelled like a control token."""
        while (found := next((token for token in self.control if token in text), None)) is not None:
            text = text.replace(found, "")
        return text

    def template(self, messages: list[Message], *, answer: bool = False) -> tuple[int, ...]:
        """Messages as the chat template renders them, ``answer``: up to where the assistant answers."""
        for number, message in enumerate(messages, start=1):
            found = next((token for token in self.control if token in message["content"]), None)
            if found is not None:
                raise RowError(f"message {number} holds the control token {found!r} in its text")
        if not self.tokenizer.chat_template:
            raise UsageError(
                "the data holds messages, but the model's tokenizer has no chat template; give one (chat_template), or "
                "render the conversations to text"
            )
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except (TemplateError, TypeError, ValueError) as error:
            raise RowError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
        # The template writes the token of the beginning itself.
        return self.encode(text)

    def conversation(self, messages: list[Message], first: int = 0) -> Example:
        """A conversation whose every assistant turn from message ``first`` on is learned, each with its end token."""
        tokens = list(self.template(messages))
        mask = [False] * len(tokens)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
        if not turns:
            raise RowError("there is no assistant message to learn from")
        for i in turns:
            if i == 0:
                raise RowError("it begins with the assistant; there has to be a message to answer")
            if not messages[i]["content"].strip():
                raise RowError(f"message {i + 1}, of the assistant, is empty")
            before = self._prefix(self.template(messages[:i], answer=True), tokens, f"the prompt of message {i + 1}")
            after = self._prefix(self.template(messages[: i + 1]), tokens, f"the conversation up to message {i + 1}")
            end = next((k for k in range(before, after) if tokens[k] in self.end_tokens), None)
            # After an end token nothing would be generated, so what the template writes there is not learned.
            stop = after if end is None else end + 1
            mask[before:stop] = [True] * (stop - before)
            if end is None and i == len(messages) - 1:
                tokens.append(self.end_token)
                mask.append(True)
        return Example(tuple(tokens), tuple(mask))

    def answer(
        self, prompt: list[Message], response: list[Message], what: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt and one assistant message as its response, both in tokens."""
        if len(response) != 1 or response[0]["role"] != "assistant":
            raise RowError(f"{what} is {len(response)} messages; expected one, of the assistant")
        if not prompt:
            raise RowError(f"{what} has no prompt before it")
        example = self.conversation([*prompt, *response], first=len(prompt))
        start = example.response.index(True)
        stop = len(example.response) - example.response[::-1].index(True)
        return example.tokens[:start], example.tokens[start:stop]

    def _prefix(self, part: tuple[int, ...], whole: list[int], what: str) -> int:
        """Length of ``part``, which has to be the beginning of ``whole``."""
        if tuple(whole[: len(part)]) == part:
            return len(part)
        place = next(
            (k for k, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole))
        )
        there, here = (self.tokenizer.decode(list(x[place : place + 3])) for x in (whole, part))
        same_text = self.tokenizer.decode(whole).startswith(self.tokenizer.decode(list(part)))
        why = (
            "the tokenizer merges across that boundary; a chat template should not end its prompt in a space"
            if same_text
            else "the chat template renders the same messages differently when more follow"
        )
        raise RowError(
            f"{what} is no token prefix of the whole: at token {place + 1} it has {here!r}, the whole has {there!r} "
            f"({why})"
        )


def _messages(value: Any, what: str) -> list[Message]:
    """A list of messages, checked."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        kind = type(value).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise RowError(f"{what} is {article} {kind}; expected a list of messages, or strings throughout")
    messages = [cast(Message, m) for m in cast(Sequence[Any], value)]
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RowError(f"message {number} of {what} has no role; expected {{'role': ..., 'content': ...}}")
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise RowError(f"the content of message {number} of {what} is a {kind}; expected text")
    return messages


# ---------------------------------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------------------------------


def show_example(lm: LanguageModel, example: Example) -> str:
    """Tokens with their loss mask, a line per stretch: ``learned`` tokens and those that are only read.

    Tokens are separated by a bar, and characters that would not show are escaped.
    """
    lines: list[str] = []
    start = 0
    for stop in range(1, len(example.tokens) + 1):
        if stop == len(example.tokens) or example.response[stop] != example.response[start]:
            pieces = [lm.tokenizer.decode([token]) for token in example.tokens[start:stop]]
            shown = "|".join(piece.encode("unicode_escape").decode("ascii") if not piece.isprintable() else piece
                             for piece in pieces)  # fmt: skip
            lines.append(f"{'learned' if example.response[start] else 'read':9}{shown}")
            start = stop
    return "\n".join(lines)
