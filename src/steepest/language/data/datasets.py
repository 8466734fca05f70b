"""Datasets in the formats that people have, as tokens: demonstrations, preferences, prompts.

| for | columns |
|---|---|
| SFT | ``prompt``, ``completion``; or ``messages``; or ``text`` |
| preferences | ``prompt``, ``chosen``, ``rejected``; or these two, conversations equal but for their end |
| prompts | ``prompt`` |

and those that ``layouts`` knows besides. Text columns hold strings, or lists of messages (``{"role": ..., "content":
...}``), which the model's chat template renders. A prompt is always tokenised alone, as when the model answers it; a
response begins after it, in tokens.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steepest.errors import UsageError
from steepest.language.data.examples import Example, Pair, Prompt, Report, RowError
from steepest.language.data.layouts import PREFERENCES, PROMPTS, SFT, Layout
from steepest.language.data.rendering import Renderer, messages, tools_of
from steepest.language.data.rows import Columns, Row, Table, named_columns, read_table
from steepest.language.models.language_model import LanguageModel

T = TypeVar("T")

SHOWN_ERRORS = 3


def read_prompts(source: Any) -> list[dict[str, Any]]:
    """The rows of a dataset of prompts as they are, each with its prompt: a text, or a list of messages."""
    table, _, _ = _open(source, PROMPTS, "prompt", ())
    lacking = next((number for number, row in enumerate(table.rows, start=1) if "prompt" not in row), None)
    if lacking is not None:
        raise UsageError(f"row {lacking} of the dataset {_name(source)} has no prompt")
    return table.rows


def fingerprint(rows: Iterable[Sequence[Any]]) -> str:
    """A hash of tokenised data, by which a resumed run knows that it has the same."""
    digest = hashlib.blake2b(digest_size=12)
    for row in rows:
        for part in row:
            digest.update(np.asarray(part, dtype=np.int64).tobytes())
            digest.update(b"|")
    return digest.hexdigest()


def load_sft(
    lm: LanguageModel,
    source: Any,
    *,
    max_length: int | None = None,
    drop_bad_rows: bool = False,
    columns: Columns = (),
) -> tuple[list[Example], Report]:
    """Demonstrations as tokens, with every token of every response marked.

    Of ``messages`` every assistant turn is learned, of ``prompt`` and ``completion`` the completion, of ``text``
    everything. A response ends with an end token, unless it was cut at ``max_length``.

    Args:      source: a .jsonl, .json or .parquet file, a folder of such files or of ``datasets``, the id of a dataset
               on the Hugging Face hub, a ``datasets.Dataset``, or a list of dicts; max_length: tokens of a sequence, by
               default the model's context; drop_bad_rows: count unusable rows instead of refusing the dataset; columns:
               where the data has other names, such as "prompt=question"
    Raises:    UsageError on columns of no known format, and on rows that are empty, malformed, or whose rendered prompt
               is no token prefix of the whole, naming the first of them
    Verified:  tests/unit/test_language_data.py::test_every_assistant_turn_is_learned,
               tests/unit/test_language_data.py::test_a_boundary_that_would_merge_is_joined_in_tokens
    """
    table, layout, report = _open(source, SFT, "prompt and completion, or messages, or text", columns)
    renderer = Renderer(lm)
    limit = _limit(lm, max_length)

    def examples(row: Row) -> list[Example]:
        row = layout.convert(row, renderer.chats)
        tools = tools_of(row)
        if layout.columns == ("text",):
            wholes = [renderer.text(row["text"])]
        elif "completion" not in layout.columns:
            wholes = renderer.conversations(messages(row["messages"], "messages"), report=report, tools=tools)
        elif isinstance(row["prompt"], str):
            prompt, response = renderer.plain(row["prompt"], row["completion"], report)
            wholes = [Example((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))]
        else:
            prompt = messages(row["prompt"], "prompt")
            completion = messages(row["completion"], "completion")
            wholes = renderer.conversations([*prompt, *completion], len(prompt), report=report, tools=tools)
        return [fitting for whole in wholes if (fitting := cut(whole)) is not None]

    def cut(whole: Example) -> Example | None:
        if len(whole.tokens) > limit:
            lost = any(whole.response[limit:])  # not only what a template writes after the last end token
            whole = Example(whole.tokens[:limit], whole.response[:limit])
            if not any(whole.response):
                report.long_prompts += 1
                return None
            report.truncated += lost
        return whole

    return _convert(table, examples, report, drop_bad_rows), report


def load_preferences(
    lm: LanguageModel,
    source: Any,
    *,
    max_length: int | None = None,
    drop_bad_rows: bool = False,
    columns: Columns = (),
) -> tuple[list[Pair], Report]:
    """Preferences as tokens; arguments and errors as for ``load_sft``, and two equal responses are an error too.

    Verified:  tests/unit/test_language_data.py::test_preferences_in_both_formats
    """
    expected = "prompt, chosen and rejected; or chosen and rejected conversations"
    table, layout, report = _open(source, PREFERENCES, expected, columns)
    renderer = Renderer(lm)
    limit = _limit(lm, max_length)

    def pairs(row: Row) -> list[Pair]:
        row = layout.convert(row, renderer.chats)
        merges = report.merges
        if isinstance(row["prompt"], str):
            prompt, chosen = renderer.plain(row["prompt"], row["chosen"], report)
            same, rejected = renderer.plain(row["prompt"], row["rejected"], report)
            if same != prompt:
                raise RowError("the prompt is tokenised differently before the two responses")
        else:
            turns, tools = messages(row["prompt"], "prompt"), tools_of(row)
            (prompt, chosen), (_, rejected) = (
                renderer.answer(turns, messages(row[name], name), name, report=report, tools=tools)
                for name in ("chosen", "rejected")
            )
        report.merges = min(report.merges, merges + 1)  # it counts rows
        if chosen == rejected:
            raise RowError("chosen and rejected are the same")
        room = limit - len(prompt)
        if room < 1 or chosen[:room] == rejected[:room]:
            report.long_prompts += 1
            return []
        report.truncated += len(chosen) > room or len(rejected) > room
        return [Pair(prompt, chosen[:room], rejected[:room])]

    return _convert(table, pairs, report, drop_bad_rows), report


def load_prompts(
    lm: LanguageModel,
    source: Any,
    *,
    max_length: int | None = None,
    new_tokens: int = 0,
    drop_bad_rows: bool = False,
    columns: Columns = (),
) -> tuple[list[Prompt], Report]:
    """Prompts as tokens, each with its row; arguments and errors as for ``load_sft``.

    ``new_tokens`` of ``max_length`` are kept for the response.

    Verified:  tests/unit/test_language_data.py::test_prompts_leave_room_for_responses
    """
    table, _, report = _open(source, PROMPTS, "prompt", columns)
    report.ignored = ()  # a reward may look at them
    report.new_tokens = new_tokens
    renderer = Renderer(lm)
    limit = _limit(lm, max_length) - new_tokens

    def prompts(row: Row) -> list[Prompt]:
        tokens = renderer.prompt(row["prompt"], tools=tools_of(row))
        if len(tokens) > limit:
            report.long_prompts += 1
            return []
        return [Prompt(tokens, row)]

    return _convert(table, prompts, report, drop_bad_rows), report


def _open(source: Any, layouts: Sequence[Layout], expected: str, columns: Columns) -> tuple[Table, Layout, Report]:
    """Rows, the layout that their columns have, and a fresh report."""
    table, named = read_table(source), named_columns(columns)
    if not table.rows:
        raise UsageError(f"the dataset {_name(source)} is empty")
    absent = [theirs for theirs in named.values() if theirs not in table.rows[0]]
    if absent:
        raise UsageError(
            f"columns names {', '.join(absent)}, but the dataset {_name(source)} has the columns "
            f"{', '.join(table.rows[0])}"
        )
    if named:
        rows = [row | {name: row[theirs] for name, theirs in named.items() if theirs in row} for row in table.rows]
        table = replace(table, rows=rows)
    present = [name for name in table.rows[0] if name in named or name not in named.values()]
    for layout in layouts:
        # Columns that were named are meant, whatever others there are.
        read = {*layout.columns, *layout.optional}
        if set(layout.columns) <= set(present) and set(named) <= read:
            unused = tuple(name for name in present if name not in read)
            return table, layout, Report(rows=len(table.rows), ignored=unused, repeated=table.repeated)
    known = {name for layout in layouts for name in layout.columns}
    unknown = [name for name in present if name not in known]
    close = [(name, difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)) for name in unknown]
    hints = [f"{name!r} is close to {near[0]!r}" for name, near in close if near]
    raise UsageError(
        f"the dataset {_name(source)} has the columns {', '.join(present)}; expected {expected}"
        + (f" ({'; '.join(hints)})" if hints else "")
        + ". Other names are given by columns, such as prompt=question"
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


def _convert(table: Table, convert: Callable[[Row], list[T]], report: Report, drop_bad_rows: bool) -> list[T]:
    out: list[T] = []
    used = 0
    for number, row in enumerate(table.rows, start=1):
        try:
            converted = convert(row)
        except RowError as error:
            report.bad.append(f"{table.place(number)}: {error}")
            continue
        except KeyError as error:
            report.bad.append(f"{table.place(number)}: it has no {error}")
            continue
        used += bool(converted)
        out += converted
    if report.bad and not drop_bad_rows:
        shown = "; ".join(report.bad[:SHOWN_ERRORS])
        more = f"; and {len(report.bad) - SHOWN_ERRORS} more" if len(report.bad) > SHOWN_ERRORS else ""
        raise UsageError(f"{len(report.bad)} of {len(table.rows)} rows cannot be used: {shown}{more}. Mend them, or "
                         "leave them out with drop_bad_rows")  # fmt: skip
    if not out:
        raise UsageError("no row of the dataset can be used: " + "; ".join(x.strip() for x in report.lines()[1:]))
    report.used = used
    return out
