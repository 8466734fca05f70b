"""Talk with a language model, line after line."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from steepest.api.language import draw_responses, refuse_system
from steepest.errors import UsageError
from steepest.language.data.examples import Message
from steepest.language.data.rendering import Renderer
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.generation import Sampling, response_text
from steepest.seeding import stream_seed


def converse(
    lm: LanguageModel,
    sampling: Sampling,
    *,
    seed: int,
    raw: bool,
    system: str | None,
    show: Callable[[str], None],
    read: Callable[[str], str] = input,
) -> None:
    """Answer line after line until there is no more: with a chat template as one conversation, else each by itself.

    Control tokens that an answer holds are no part of the conversation, which could not be rendered with them.

    Args:      show takes pieces of answers as they come; read gives a line, EOFError at the end
    Raises:    UsageError for ``system`` where there is no chat template
    """
    refuse_system(lm, raw, system)
    chat, left_out = bool(lm.tokenizer.chat_template) and not raw, False
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number in itertools.count():
        try:
            line = read("> ")
        except EOFError:
            show("\n")
            return
        if not line.strip():
            continue
        asked: str | list[Message] = [*turns, {"role": "user", "content": line}] if chat else line
        stream = _Stream(lm, show)
        try:
            drawn = draw_responses(lm, [asked], sampling, seed=stream_seed(seed, f"turn {number}"), on_token=stream)
        except UsageError as error:  # too long by now, or a control token in the line: the conversation stands
            show(f"{error}\n")
            continue
        show("\n")
        if chat:
            said = response_text(lm, drawn[0])
            kept = Renderer(lm).without_control(said)
            if kept != said and not left_out:
                left_out = True
                show("(control tokens in answers are left out of the conversation)\n")
            turns += [{"role": "user", "content": line}, {"role": "assistant", "content": kept}]


class _Stream:
    """Shows a response while it is drawn, in whole characters."""

    def __init__(self, lm: LanguageModel, show: Callable[[str], None]) -> None:
        self.lm = lm
        self.show = show
        self.tokens: list[int] = []
        self.shown = ""

    def __call__(self, token: int) -> None:
        if token not in self.lm.end_tokens:
            self.tokens.append(token)
            text = self.lm.tokenizer.decode(self.tokens)
            if not text.endswith("\ufffd"):  # the bytes of a character may be several tokens
                self.show(text[len(self.shown) :])
                self.shown = text
