"""Comparisons for people: a table, answers side by side, and files of both."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steepest.errors import UsageError
from steepest.files.atomic import write_text_atomic
from steepest.files.terminal import escaped

if TYPE_CHECKING:
    from steepest.language.compare.comparison import Comparison, Divergence, Side

LABEL_WIDTH = 24
NARROWEST = 60
"""Narrower than this, two columns of text cannot be read."""


def figures(c: Comparison) -> list[tuple[str, str, str]]:
    """The rows of the table: what, and its value for both models; intervals are of 95 %."""
    of: list[tuple[str, Callable[[Side], Any]]] = []
    if c.judge is not None:
        of.append(("reward", lambda side: side.reward))

    def divergence(name: str, get: Callable[[Side], Divergence | None]) -> None:
        for kind in ("kl", "k1"):
            label = {"kl": f"KL to {name}, nats", "k1": "  by k1"}[kind]
            of.append((label, lambda side, k=kind: getattr(get(side), k)))

    if c.a.to_other is not None:
        divergence("the other", lambda side: side.to_other)
    if c.reference is not None:
        divergence("the reference", lambda side: side.to_reference)
    of += [
        ("length, tokens", lambda side: side.tokens),
        ("length, characters", lambda side: side.characters),
        ("ended by an end token", lambda side: side.ended),
        ("distinct words", lambda side: f"{side.distinct_1:.3f}"),
        ("distinct pairs of words", lambda side: f"{side.distinct_2:.3f}"),
    ]
    return [(label, str(get(c.a)), str(get(c.b))) for label, get in of]


def conclusions(c: Comparison) -> list[str]:
    """The lines below the table."""
    out: list[str] = []
    if c.win_rate is not None:
        w = c.win_rate
        out.append(f"win rate of A over B: {w.rate}, {w.wins} wins, {w.ties} ties (counted half), {w.losses} losses")
        out.append(f"reward of A less that of B: {c.reward_difference}")
        out.append(f"judge: {escaped(c.judge or '')}")
    if c.reference is not None:
        out.append(f"reference: {escaped(c.reference)}")
    out += [escaped(line) for line in c.notes]
    s = c.sampling
    limits = [f"top_k {s.top_k}"] * bool(s.top_k) + [f"top_p {s.top_p:g}"] * (s.top_p < 1.0)
    settings = [f"temperature {s.temperature:g}", *limits, f"at most {s.max_new_tokens} tokens", f"seed {c.seed}"]
    out.append(f"{len(c.prompts):,} prompts, {', '.join(settings)}; 95 % intervals: Student's, of shares Wilson's")
    return out


def terminal_lines(c: Comparison, width: int, shown: int) -> list[str]:
    """The first answers side by side, the table and what follows from it, with nothing that commands a terminal."""
    out: list[str] = [f"A: {escaped(c.a.model)}", f"B: {escaped(c.b.model)}", ""]
    for i in range(min(shown, len(c.prompts))):
        out += _wrapped(f"> {prompt_text(c.prompts[i])}", max(width, NARROWEST))
        out += side_by_side(_with_reward(c.a, i), _with_reward(c.b, i), width)
        out.append("")
    rows = [("", "A", "B"), *figures(c)]
    column = max(len(a) for _, a, _ in rows) + 3
    out += [f"{label:{LABEL_WIDTH}}  {a:{column}}{b}".rstrip() for label, a, b in rows]
    return [*out, "", *conclusions(c)]


def _with_reward(side: Side, i: int) -> str:
    answer = side.answers[i]
    reward = "" if answer.reward is None else f"\n({answer.reward:.3g})"
    return answer.text + ("" if answer.ended else " ...") + reward


def side_by_side(left: str, right: str, width: int) -> list[str]:
    """Two texts as two columns, their controls escaped."""
    half = (max(width, NARROWEST) - 3) // 2
    columns = [_wrapped(text, half) for text in (left, right)]
    height = max(map(len, columns))
    a, b = ([*lines, *[""] * (height - len(lines))] for lines in columns)
    return [f"{x:{half}} | {y}".rstrip() for x, y in zip(a, b, strict=True)]


def _wrapped(text: str, width: int) -> list[str]:
    lines = escaped(text).expandtabs(4).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, width, drop_whitespace=False) or [""]]


def prompt_text(prompt: Any) -> str:
    """A prompt in a line or a few: of a conversation, its last message."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


# Files


def checked_out(path: Path) -> Path:
    """The place for a comparison's figures, before anything is computed for it."""
    if path.suffix != ".json":
        raise UsageError(f"out is {path}; expected a name ending in .json (one in .md is written beside it)")
    return refuse_folder(path)


def refuse_folder(path: Path) -> Path:
    """The place for a file, before anything is computed for it."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a name of a file in it")
    return path


def write_comparison(c: Comparison, path: Path) -> tuple[Path, Path]:
    """Write everything as JSON, and beside it metrics and answers as Markdown; each file whole or not at all.

    Raises:    RunError when the system refuses a write
    """
    text = path.with_suffix(".md")
    write_text_atomic(path, json.dumps(as_json(c), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text_atomic(text, markdown(c))
    return path, text


def as_json(c: Comparison) -> dict[str, Any]:
    """All of it as what JSON can hold; bounds that do not exist are null."""
    return _finite(dataclasses.asdict(c))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def markdown(c: Comparison) -> str:
    """Figures and all answers, for reading."""
    out = ["# Comparison", "", f"A: `{escaped(c.a.model)}`  ", f"B: `{escaped(c.b.model)}`", ""]
    out += ["| | A | B |", "|---|---|---|", *(f"| {label.strip()} | {a} | {b} |" for label, a, b in figures(c)), ""]
    out += [f"- {line}" for line in conclusions(c)]
    for number, prompt in enumerate(c.prompts, start=1):
        out += ["", f"## {number}", "", *_fenced(prompt_text(prompt))]
        for label, side in (("A", c.a), ("B", c.b)):
            answer = side.answers[number - 1]
            facts = [f"{answer.tokens} tokens", *([] if answer.ended else ["cut off"])]
            facts += [] if answer.reward is None else [f"reward {answer.reward:.4g}"]
            out += ["", f"{label} ({', '.join(facts)})", "", *_fenced(answer.text)]
    return "\n".join(out) + "\n"


def _fenced(text: str) -> list[str]:
    """A text as a block of code, whatever backticks are in it."""
    text = escaped(text)
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
