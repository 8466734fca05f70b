"""Layouts of data that people have, one line each: the columns, and how such a row becomes one of ours.

Ours are, for SFT, ``messages``, or ``prompt`` and ``completion``, or ``text``; for preferences ``prompt``, ``chosen``
and ``rejected``, all texts or all lists of messages. Which layout a dataset has, its columns say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from steepest.language.data.examples import Message, RowError
from steepest.language.data.rows import Row, is_list

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""Turns within a text, as in Anthropic's hh-rlhf."""
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Roles of ShareGPT's layout, as ours."""


class Layout(NamedTuple):
    """A layout: its columns, a function of a row and of whether the model has a chat template, and optional columns."""

    columns: tuple[str, ...]
    convert: Callable[[Row, bool], Row]
    optional: tuple[str, ...] = ("tools",)


def as_it_is(row: Row, chat: bool) -> Row:
    """Return a row that is one of ours."""
    del chat
    return row


def completion(row: Row, chat: bool) -> Row:
    """A prompt and its completion; where that is messages, a text before them is the user's."""
    del chat
    if isinstance(row["prompt"], str) and is_list(row["completion"]):
        return {**row, "prompt": [{"role": "user", "content": row["prompt"]}]}
    return row


def sharegpt(row: Row, chat: bool) -> Row:
    """ShareGPT: ``conversations`` of ``{"from": "human", "value": ...}``, or of messages as ours."""
    del chat
    turns: list[Any] = list(row["conversations"]) if is_list(row["conversations"]) else row["conversations"]
    if is_list(turns) and all(isinstance(turn, dict) and "from" in turn for turn in turns):
        unknown = next((turn["from"] for turn in turns if turn["from"] not in _ROLES), None)
        if unknown is not None:
            raise RowError(f"a turn is from {unknown!r}; expected {', '.join(_ROLES)}")
        turns = [{"role": _ROLES[turn["from"]], "content": turn.get("value")} for turn in turns]
    return {**row, "messages": turns}


def alpaca(row: Row, chat: bool) -> Row:
    """Alpaca: ``instruction``, ``input`` that may be empty, ``output``; a conversation of one question."""
    del chat
    asked, more, output = row["instruction"], row.get("input") or "", row["output"]
    if not all(isinstance(text, str) for text in (asked, more, output)):
        raise RowError("instruction, input and output are not all texts")
    question = f"{asked}\n\n{more}" if more else asked
    return {**row, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": output}]}


def prompted_pair(row: Row, chat: bool) -> Row:
    """A prompt and two responses, or beside it two whole conversations that hold it (UltraFeedback)."""
    del chat
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if not (is_list(chosen) and is_list(rejected)):
        return row
    turns = cast(list[Message], [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    sides = [list(cast(Sequence[Any], side)) for side in (chosen, rejected)]
    if all(side and _role(side[0]) != "assistant" for side in sides):
        before = _common(*sides)
        held = _holds(before, prompt) if isinstance(prompt, str) else before[: len(turns)] == list(turns)
        if not held:
            raise RowError("the prompt is not in the conversations chosen and rejected")
        turns, sides = before, [side[-1:] for side in sides]
    return {**row, "prompt": turns, "chosen": sides[0], "rejected": sides[1]}


def whole_pair(row: Row, chat: bool) -> Row:
    """Two conversations that differ in their last message: lists of messages, or texts of turns (hh-rlhf)."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if ASSISTANT not in chosen or ASSISTANT not in rejected:
            raise RowError(
                f"chosen and rejected are texts without a prompt; expected a column prompt beside them, or turns "
                f"in them such as {HUMAN + ' ...' + ASSISTANT + ' ...'!r}, or two lists of messages"
            )
        if not chat:
            (prompt, one), (other, two) = _last_turn(chosen), _last_turn(rejected)
            if prompt != other:
                raise RowError("chosen and rejected differ before their last turn: they answer no common prompt")
            return {**row, "prompt": prompt, "chosen": one, "rejected": two}
        chosen, rejected = _turns(chosen), _turns(rejected)
    if not is_list(chosen) or not is_list(rejected):
        kinds = f"{type(chosen).__name__} and {type(rejected).__name__}"
        raise RowError(f"chosen and rejected are {kinds}; expected two lists of messages, or two texts of turns")
    sides = [list(cast(Sequence[Any], side)) for side in (chosen, rejected)]
    return {**row, "prompt": _common(*sides), "chosen": sides[0][-1:], "rejected": sides[1][-1:]}


SFT = (
    Layout(("messages",), as_it_is),
    Layout(("prompt", "completion"), completion),
    Layout(("conversations",), sharegpt),
    Layout(("instruction", "output"), alpaca, ("input",)),
    Layout(("text",), as_it_is, ()),
)
PREFERENCES = (
    Layout(("prompt", "chosen", "rejected"), prompted_pair),
    Layout(("chosen", "rejected"), whole_pair),
)
PROMPTS = (Layout(("prompt",), as_it_is),)


def _role(message: Any) -> Any:
    return cast(dict[str, Any], message).get("role") if isinstance(message, dict) else None


def _holds(turns: list[Any], prompt: str) -> bool:
    """Return whether a text is the content of one of the messages."""
    contents = [cast(dict[str, Any], turn).get("content") for turn in turns if isinstance(turn, dict)]
    return any(isinstance(content, str) and content.strip() == prompt.strip() for content in contents)


def _common(one: list[Any], other: list[Any]) -> list[Any]:
    """The messages before the last one, which both conversations must have in common."""
    if one[:-1] != other[:-1]:
        raise RowError("chosen and rejected differ before their last message: they answer no common prompt")
    return one[:-1]


def _last_turn(text: str) -> tuple[str, str]:
    """A text up to where the assistant's last turn begins, and that turn."""
    start = text.rindex(ASSISTANT) + len(ASSISTANT)
    return text[:start], text[start:]


def _turns(text: str) -> list[Message]:
    """A text of turns as messages."""
    first, *parts = re.split(f"({HUMAN}|{ASSISTANT})", text)
    if first.strip():
        raise RowError(f"a text of turns begins with {first[:20]!r}; expected {HUMAN!r}")
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    return [{"role": roles[mark], "content": said.strip()} for mark, said in zip(parts[::2], parts[1::2], strict=True)]
