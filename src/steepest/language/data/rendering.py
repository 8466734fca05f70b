"""Rows as tokens: the chat template, and where responses begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from steepest.errors import UsageError
from steepest.language.data.examples import Example, Message, Report, RowError
from steepest.language.models.language_model import LanguageModel

# Text to tokens


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
        return self.template(messages(prompt, "prompt"), answer=True)

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


def messages(value: Any, what: str) -> list[Message]:
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


# Showing


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
