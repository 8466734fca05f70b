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
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steepest.errors import UsageError
from steepest.language.data.examples import Example, Pair, Prompt, Report, RowError
from steepest.language.data.rendering import Renderer, messages
from steepest.language.data.rows import read_rows
from steepest.language.models.language_model import LanguageModel

T = TypeVar("T")

SHOWN_ERRORS = 3


def read_prompts(source: Any) -> list[dict[str, Any]]:
    """The rows of a dataset of prompts as they are, each with its prompt: a text, or a list of messages."""
    rows, _, _ = _open(source, (("prompt",),), "prompt")
    lacking = next((number for number, row in enumerate(rows, start=1) if "prompt" not in row), None)
    if lacking is not None:
        raise UsageError(f"row {lacking} of the dataset {_name(source)} has no prompt")
    return rows


def fingerprint(rows: Iterable[Sequence[Any]]) -> str:
    """A hash of tokenised data, by which a resumed run knows that it has the same."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        for part in row:
            digest.update(np.asarray(part, dtype=np.int64).tobytes())
            digest.update(b"|")
    return digest.hexdigest()


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
            whole = renderer.conversation(messages(row["messages"], "messages"))
        elif columns == ("text",):
            whole = renderer.text(row["text"])
        elif isinstance(row["prompt"], str):
            prompt, response = renderer.plain(row["prompt"], row["completion"], report)
            whole = Example((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))
        else:
            prompt = messages(row["prompt"], "prompt")
            completion = messages(row["completion"], "completion")
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
            chosen_turns, rejected_turns = (messages(row[name], name) for name in ("chosen", "rejected"))
            if columns == ("chosen", "rejected"):
                turns = chosen_turns[:-1]
                if rejected_turns[:-1] != turns:
                    raise RowError("chosen and rejected differ before their last message: they answer no common prompt")
                chosen_turns, rejected_turns = chosen_turns[-1:], rejected_turns[-1:]
            else:
                turns = messages(row["prompt"], "prompt")
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
    unknown = [name for name in present if name not in known]
    close = [(name, difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)) for name in unknown]
    hints = [f"{name!r} is close to {near[0]!r}" for name, near in close if near]
    raise UsageError(
        f"the dataset {_name(source)} has the columns {', '.join(present)}; expected {expected}"
        + (f" ({'; '.join(hints)})" if hints else "")
    )


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
