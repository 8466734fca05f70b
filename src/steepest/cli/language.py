"""The command's verbs that use language models, each a thin face of ``steepest.api``."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from steepest.cli.options import MODEL, Usage, fields_of, parse, print_line, printable, say
from steepest.errors import UsageError
from steepest.fields import Checked, Count, NonNegative, PositiveShare, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions(Checked):
    """Answers of a language model."""

    prompt: tuple[str, ...] = ()
    """Prompts to answer; by default, without a file too, lines are read: a conversation on a terminal."""
    file: Path | None = None
    """Answer the prompts of this file: .jsonl, .json or .parquet with a column prompt (default: none)."""
    out: Path | None = None
    """Write prompts and answers into this .jsonl file (default: print them)."""
    json: bool = False
    """Print one JSON object per answer."""
    raw: bool = False
    """Give prompts to the model as they are, without its chat template."""
    system: str | None = None
    """System message at the beginning of the conversation, for models with a chat template (default: none)."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    temperature: NonNegative = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: Whole = 0
    """Draw among this many most probable tokens; 0: among all."""
    top_p: PositiveShare = 1.0
    """Draw among the most probable tokens that together have this probability."""
    seed: Whole = 0
    """Seed of the answers."""
    micro_batch_size: Count = 64
    """Prompts answered at once; changes nothing but speed and memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights."""
    template_kwargs: str | None = None
    """Values of the chat template's arguments, as JSON: '{"enable_thinking": false}'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(Checked):
    """Two language models on the same prompts and the same random numbers."""

    prompt: tuple[str, ...] = ()
    """Prompts to answer; the same one may come several times (default: those of the file)."""
    file: Path | None = None
    """Answer the prompts of this file: .jsonl, .json or .parquet with a column prompt (default: none)."""
    judge: str | None = None
    """Reward of answers: the folder of a reward model, or FILE.py:FUNCTION (default: no reward)."""
    reference: str | None = None
    """A third model, from which the KL of both is measured too (default: none)."""
    out: Path | None = None
    """Write all metrics and answers into this .json file, and into a .md file beside it (default: print them)."""
    json: bool = False
    """Print the same as JSON."""
    show: Whole = 3
    """Prompts whose answers are shown side by side."""
    raw: bool = False
    """Give prompts to the models as they are, without their chat templates."""
    system: str | None = None
    """System message at the beginning of the conversation, for models with a chat template (default: none)."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    temperature: NonNegative = 1.0
    """Logits are divided by it; 0 takes the most probable token, and then there is no KL."""
    seed: Whole = 0
    """Seed of the answers, the same for both models."""
    micro_batch_size: Count = 64
    """Prompts answered at once; changes nothing but speed and memory."""
    quiet: bool = False
    """Show nothing but the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights."""
    template_kwargs: str | None = None
    """Values of the chat templates' arguments, as JSON: '{"enable_thinking": false}'."""


def generate(argv: list[str]) -> int:
    """steepest generate MODEL"""
    usage = Usage("steepest generate", "MODEL", MODEL, least=1, most=1)
    options, (model, *_) = parse(GenerateOptions, argv, usage)
    if options.prompt and options.file is not None:
        raise UsageError("give prompts or a file of them, not both")
    check_places(options.file, model)
    from steepest.api.chat import converse
    from steepest.api.language import answer_prompts
    from steepest.language.compare.report import refuse_folder
    from steepest.language.data.datasets import read_prompts
    from steepest.language.models.loading import load_model
    from steepest.language.scoring.generation import Sampling

    drawn = ("max_new_tokens", "temperature", "top_k", "top_p")
    sampling = Sampling(**{name: getattr(options, name) for name in drawn})
    if options.out is not None:
        refuse_folder(options.out)
    prompts: list[Any] = (
        list(options.prompt) if options.file is None else [row["prompt"] for row in read_prompts(options.file)]
    )
    reads_lines = not options.prompt and options.file is None
    if reads_lines and not sys.stdin.isatty():
        prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not prompts:
            raise UsageError("nothing to answer: standard input is empty; give --prompt or --file")
    lm = load_model(model, dtype=options.dtype, device=options.device, template_kwargs=options.template_kwargs)
    if reads_lines and sys.stdin.isatty():
        converse(lm, sampling, seed=options.seed, raw=options.raw, system=options.system, show=_show_piece)
        return 0
    given = {name: getattr(options, name) for name in ("seed", "micro_batch_size", "raw", "system")}
    rows = answer_prompts(lm, prompts, sampling, **given)
    if options.out is not None:
        from steepest.files.atomic import write_text_atomic

        write_text_atomic(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print_line(f"{len(rows)} answers: {options.out}")
    elif options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        for row in rows:
            if len(rows) > 1:
                print_line(f"> {row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]['content']}")
            print(printable(row["completion"]))
    return 0


def compare(argv: list[str]) -> int:
    """steepest compare MODEL_A MODEL_B"""
    usage = Usage("steepest compare", "MODEL_A MODEL_B", f"Each {MODEL}", least=2, most=2)
    options, (model_a, model_b) = parse(CompareOptions, argv, usage)
    check_places(options.file, model_a, model_b)
    if bool(options.prompt) == (options.file is not None):
        raise UsageError("which prompts? Give --prompt or --file, and not both")
    from steepest.api.language import compare as compare_two
    from steepest.language.compare.report import as_json, terminal_lines

    prompts = list(options.prompt) if options.file is None else options.file
    note = None if options.quiet or options.json else say
    ours = ("prompt", "file", "json", "show", "quiet")
    given = {name: value for name, value in fields_of(options).items() if name not in ours}
    found = compare_two(model_a, model_b, prompts, note=note, **given)
    if options.json:
        print(json.dumps(as_json(found)))
        return 0
    for line in terminal_lines(found, shutil.get_terminal_size().columns, options.show):
        print_line(line)
    if options.out is not None:
        print_line(f"metrics and answers: {options.out}, {options.out.with_suffix('.md')}")
    return 0


def _show_piece(text: str) -> None:
    print(printable(text), end="", flush=True)


def check_places(prompts: Path | str | None, *models: str) -> None:
    """Raise UsageError where the packages are missing, or no model or no prompts are at a place."""
    from steepest.language.data.rows import check_source
    from steepest.language.models.packages import require_language
    from steepest.language.models.places import locate

    require_language()
    for model in models:
        locate(model)
    if prompts is not None:
        check_source(prompts)
