"""Rows as tokens: the chat template, and where responses begin and end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

from steepest.errors import UsageError
from steepest.files.reading import Unusable, half_character, parse_json, texts
from steepest.language.data.examples import Example, Message, Report, RowError
from steepest.language.data.rows import Row, is_list
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
        self.chats = bool(self.tokenizer.chat_template)

    def encode(self, text: str) -> tuple[int, ...]:
        """Text as tokens, with nothing added; RowError for text that is no Unicode."""
        if (said := half_character(text)) is not None:
            raise RowError(f"the text {said}")
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, prompt: Any, *, tools: list[Any] | None = None) -> tuple[int, ...]:
        """A prompt, as text or messages, ready for a response."""
        if isinstance(prompt, str):
            tokens = self.encode(prompt)
            # A text that was rendered before may begin with it.
            tokens = tokens if tokens[:1] == self.bos else (*self.bos, *tokens)
            if not tokens:
                raise RowError("the prompt is empty")
            return tokens
        return self.encode(self.rendered(messages(prompt, "prompt"), answer=True, tools=tools))

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

    def rendered(self, messages: list[Message], *, answer: bool = False, tools: list[Any] | None = None) -> str:
        """Messages as the chat template renders them, ``answer``: up to where the assistant answers."""
        for number, message in enumerate(messages, start=1):
            said = [text for place, text in texts(message) if place != "role"]
            found = next((token for token in self.control if any(token in text for text in said)), None)
            if found is not None:
                raise RowError(f"message {number} holds the control token {found!r} in its text")
        if not self.chats:
            raise UsageError(
                "the data holds messages, but the model's tokenizer has no chat template; give one (chat_template), or "
                "render the conversations to text"
            )
        from jinja2 import TemplateError

        def render(given: list[Any] | None) -> str:
            # The template writes the token of the beginning itself.
            return self.tokenizer.apply_chat_template(
                messages, tools=given, tokenize=False, add_generation_prompt=answer
            )

        try:
            text = render(tools)
            unseen = tools is not None and render(None) == text
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            raise RowError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
        if unseen:
            raise RowError("it offers tools, which the chat template does not render; give another (chat_template)")
        return text

    def conversations(
        self, messages: list[Message], first: int = 0, *, report: Report, tools: list[Any] | None = None
    ) -> list[Example]:
        """A conversation as ``conversation`` has it; one for every turn, where the template rewrites earlier turns.

        Such templates leave out of the history what an answer begins with, as the thoughts of a model that thinks: each
        turn is then learned after the history that the model would have seen.
        """
        try:
            return [self.conversation(messages, first, report=report, tools=tools)]
        except _Rewritten:
            turns = self._turns(messages, first)
            if len(turns) == 1:
                raise
            parts = [self.conversation(messages[: i + 1], i, report=report, tools=tools) for i in turns]
            report.cut += 1
            return parts

    def conversation(
        self,
        messages: list[Message],
        first: int = 0,
        *,
        report: Report | None = None,
        tools: list[Any] | None = None,
    ) -> Example:
        """A conversation whose every assistant turn from message ``first`` on is learned, each with its end token."""
        whole = self.rendered(messages, tools=tools)
        turns = self._turns(messages, first)
        spans: list[tuple[int, int]] = []
        for i in turns:
            prompt = self.rendered(messages[:i], answer=True, tools=tools)
            so_far = self.rendered(messages[: i + 1], tools=tools)
            start = self._prefix(prompt, whole, f"the prompt of message {i + 1}")
            spans.append((start, self._prefix(so_far, whole, f"the conversation up to message {i + 1}")))
            self._check_calls(messages[: i + 1], so_far, tools)
        tokens, places = self._cut(whole, sorted({place for span in spans for place in span}), report)
        mask = [False] * len(tokens)
        for i, span in zip(turns, spans, strict=True):
            before, after = (places[place] for place in span)
            end = next((k for k in range(before, after) if tokens[k] in self.end_tokens), None)
            # After an end token nothing would be generated, so what the template writes there is not learned.
            stop = after if end is None else end + 1
            mask[before:stop] = [True] * (stop - before)
            if end is None and i == len(messages) - 1:
                tokens.append(self.end_token)
                mask.append(True)
        return Example(tuple(tokens), tuple(mask))

    def _turns(self, messages: list[Message], first: int) -> list[int]:
        """The assistant's messages from ``first`` on, which are to be learned."""
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
        if not turns:
            raise RowError("there is no assistant message to learn from")
        for i in turns:
            if i == 0:
                raise RowError("it begins with the assistant; there has to be a message to answer")
            if not messages[i]["content"].strip() and not messages[i].get("tool_calls"):
                raise RowError(f"message {i + 1}, of the assistant, is empty")
        return turns

    def _check_calls(self, messages: list[Message], text: str, tools: list[Any] | None) -> None:
        """RowError where the last message calls tools and the template leaves that out."""
        if messages[-1].get("tool_calls"):
            without = {name: value for name, value in messages[-1].items() if name != "tool_calls"}
            if self.rendered([*messages[:-1], without], tools=tools) == text:
                raise RowError(
                    f"message {len(messages)} calls tools, which the chat template does not render; give one that does "
                    "(chat_template)"
                )

    def _cut(self, text: str, places: list[int], report: Report | None) -> tuple[list[int], dict[int, int]]:
        """A text as tokens, and how many of them lie before each of these places in it.

        Where the tokenizer would merge across a place, the two sides are joined in tokens: what the model answers is
        tokenised alone.
        """
        tokens = list(self.encode(text))
        before = {place: self.encode(text[:place]) for place in places}
        cuts = [place for place in places if tuple(tokens[: len(before[place])]) != before[place]]
        if not cuts:
            return tokens, {place: len(found) for place, found in before.items()}
        parts = [self.encode(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        joined = [token for part in parts for token in part]
        if self.tokenizer.decode(joined) != self.tokenizer.decode(tokens):
            raise RowError(
                "the tokenizer merges where a response begins or ends, and joined in tokens it is another text; give a "
                "chat template that has a control token there"
            )
        if report is not None:
            report.merges += 1
        counts = {0: 0} | dict(zip([*cuts, len(text)], itertools.accumulate(map(len, parts)), strict=True))
        found: dict[int, int] = {}
        for place in places:
            last = max(cut for cut in (0, *cuts) if cut <= place)
            found[place] = counts[last] + len(self.encode(text[last:place]))
        return joined, found

    def answer(
        self,
        prompt: list[Message],
        response: list[Message],
        what: str,
        *,
        report: Report | None = None,
        tools: list[Any] | None = None,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt and one assistant message as its response, both in tokens."""
        if len(response) != 1 or response[0]["role"] != "assistant":
            raise RowError(f"{what} is {len(response)} messages; expected one, of the assistant")
        if not prompt:
            raise RowError(f"{what} has no prompt before it")
        example = self.conversation([*prompt, *response], len(prompt), report=report, tools=tools)
        start = example.response.index(True)
        stop = len(example.response) - example.response[::-1].index(True)
        return example.tokens[:start], example.tokens[start:stop]

    def _prefix(self, part: str, whole: str, what: str) -> int:
        """Length of ``part``, which has to be the beginning of ``whole``."""
        if whole.startswith(part):
            return len(part)
        place = next((k for k, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), len(whole))
        here, there = (repr(text[place : place + 12]) for text in (part, whole))
        raise _Rewritten(
            f"{what} is no prefix of the whole: at character {place + 1} it has {here}, the whole has {there} (the "
            "chat template renders the same messages differently when more follow)"
        )


class _Rewritten(RowError):
    """A chat template renders the same messages differently when more follow."""


def messages(value: Any, what: str) -> list[Message]:
    """A list of messages, checked; parts of text are put together, and no content beside calls of tools is empty text.

    Raises:    RowError for what is no message, or holds something else than text
    Verified:  tests/unit/test_language_data.py::test_content_in_parts_and_calls_of_tools
    """
    if not is_list(value):
        raise RowError(f"{what} is {_a(value)}; expected a list of messages, or strings throughout")
    checked: list[Message] = []
    for number, message in enumerate(cast(Sequence[Any], value), start=1):
        if not isinstance(message, dict) or not isinstance(cast(Message, message).get("role"), str):
            raise RowError(f"message {number} of {what} has no role; expected {{'role': ..., 'content': ...}}")
        one = cast(Message, message)
        if one.get("function_call"):  # before OpenAI's interface had tool_calls
            raise RowError(f"message {number} of {what} has a function_call; expected tool_calls in its place")
        content = one.get("content")
        if is_list(content):
            content = _joined(cast(Sequence[Any], content), f"message {number} of {what}")
        elif content is None and one.get("tool_calls"):
            content = ""
        if not isinstance(content, str):
            raise RowError(f"the content of message {number} of {what} is {_a(content)}; expected text")
        # Columns that a row lacks are None in Parquet.
        checked.append({name: part for name, part in {**one, "content": content}.items() if part is not None})
    return checked


def _joined(parts: Sequence[Any], where: str) -> str:
    """The text of content in parts."""
    texts: list[str] = []
    for part in parts:
        kind = cast(Message, part).get("type") if isinstance(part, dict) else type(part).__name__
        text = cast(Message, part).get("text") if isinstance(part, dict) else part
        if kind not in ("text", "str") or not isinstance(text, str):
            raise RowError(f"the content of {where} has a part of type {kind}; expected text alone")
        texts.append(text)
    return "".join(texts)


def tools_of(row: Row) -> list[Any] | None:
    """The tools that a row offers, for the chat template: a list of descriptions, or JSON of one; None without.

    Verified:  tests/unit/test_language_data.py::test_content_in_parts_and_calls_of_tools
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = parse_json(tools) if tools.strip() else None
        except Unusable as error:
            raise RowError(f"tools is no JSON: {error}") from error
    if tools is not None and not is_list(tools):
        raise RowError(f"tools is {_a(tools)}; expected a list of descriptions of functions")
    return None if tools is None or len(tools) == 0 else list(tools)


def _a(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


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
