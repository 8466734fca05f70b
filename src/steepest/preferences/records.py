"""What a preference project holds: prompts and responses, clips of episodes, items to compare, and judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from steepest.errors import UsageError, require
from steepest.fields import Checked, Count, Positive, Share
from steepest.preferences.texts import plain_text

Array = NDArray[Any]
Message = dict[str, Any]
Kind = Literal["prefer", "tie", "skip", "rank", "retract"]


MOST_COMPARED = 9
"""Responses or clips of one item: each has a digit as its key."""


class Judgement(NamedTuple):
    """What a labeller said about an item."""

    uuid: str
    item: int
    labeller: str
    kind: Kind
    ranking: tuple[int, ...]  # ids of responses or clips, best first; of a tie both, in any order; of a skip none
    shown: tuple[int, ...]  # ids as they stood, left to right
    repeat: bool  # asked a second time with the sides swapped, to measure consistency
    began: float  # seconds since the epoch
    ended: float


@dataclass(frozen=True)
class Prompt:
    """A prompt: a text, or a list of messages."""

    id: int
    content: str | list[Message]


@dataclass(frozen=True)
class Response:
    """An answer to a prompt, and what gave it."""

    id: int
    prompt: int
    text: str
    source: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """A stretch of T steps of an episode. ``id`` is 0 until the clip is in a project."""

    env: str
    source: str
    episode: int
    observations: Array | Mapping[str, Array]  # (T+1, ...), or such arrays by name
    actions: Array  # (T, ...), as the environment took them
    fps: float
    start: int = 0  # the step of the episode at which the clip begins
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    id: int = 0

    def __post_init__(self) -> None:
        require(self.fps > 0, "fps", self.fps, "a positive number")
        steps = len(self.actions)
        parts = self.observations if isinstance(self.observations, Mapping) else {"observations": self.observations}
        wrong = {name: len(x) for name, x in parts.items() if len(x) != steps + 1}
        if steps < 1 or wrong:
            raise UsageError(
                f"a clip of {steps} actions has observations of lengths {wrong or len(self.observations)}; "
                "expected one observation more than actions"
            )

    @property
    def steps(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Item:
    """Responses to one prompt, or clips, that are to be compared."""

    id: int
    kind: Literal["text", "clip"]
    prompt: int | None
    members: tuple[int, ...]
    selection: str  # why this item is asked: "uniform", or the rule that chose it


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """How a project is labelled."""

    labels_per_item: Count = 1
    """Labellers who judge each item."""
    lease_seconds: Positive = 600.0
    """How long an item waits for the labeller who was given it."""
    repeat_share: Share = 0.05
    """Share of what a labeller sees that was judged by the same labeller before, with the sides swapped."""


class Assignment(NamedTuple):
    """An item as one labeller sees it."""

    id: int
    item: int
    labeller: str
    repeat: bool
    shown: tuple[int, ...]  # ids, left to right


def checked_content(content: object) -> str | list[Message]:
    """Return a prompt that is a text or a list of messages with role and content.

    Raises:    UsageError where it is neither
    Verified:  tests/unit/test_preference_store.py::test_what_is_no_prompt_is_refused
    """
    if isinstance(content, np.ndarray):  # Parquet's lists
        content = content.tolist()
    if not isinstance(content, list):
        text = plain_text(content, "the prompt")
        if not text.strip():
            raise UsageError("the prompt is empty")
        return text
    messages = cast(list[Any], content)
    if not messages:
        raise UsageError("the prompt is an empty list; expected messages with role and content")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(cast(Mapping[str, Any], message)):
            raise UsageError(f"message {number} of the prompt has no role and content")
    return [
        {"role": plain_text(m["role"], "a message's role"), "content": plain_text(m["content"], "a message's content")}
        for m in messages
    ]
