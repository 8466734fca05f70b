"""The command's verbs about language models, each a thin face of ``steepest.language_api``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, cast

from steepest.cli.options import fields_of, parse, pop_flag, read_config, unprefixed, with_positional
from steepest.errors import UsageError

RLHF = ("ppo", "rloo", "grpo")
RLHF_HELP = """usage: steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD [options]
       steepest rlhf --resume RUN

Train a language model on prompts and a reward. ALGORITHM is one of

  ppo     clipped updates token by token, with a value head
  rloo    a response is an action; its baseline is the mean reward of the prompt's other responses
  grpo    advantages are rewards standardised over the responses to a prompt; the KL is in the loss

REWARD is the folder of a reward model, or FILE.py:FUNCTION.
steepest rlhf ppo --help lists the options of ppo; so for the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageOutputOptions:
    """Where a run on a language model is written and shown."""

    out: Path | None = None
    """Folder of the run; by default runs/ALGORITHM-MODEL-seedN."""
    eval_data: str | None = None
    """Held-out data, in the formats of DATA."""
    quiet: bool = False
    """Show nothing but the result."""
    show_batch: bool = False
    """Show the tokens of the first batch with what is learned of them, and train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Answers of a language model."""

    prompt: tuple[str, ...] = ()
    """Prompts to answer. Without any, and without a file, lines are read: a conversation on a terminal."""
    file: Path | None = None
    """Answer the prompts of this file (.jsonl, .json or .parquet with a column prompt)."""
    out: Path | None = None
    """Write prompts and answers into this .jsonl file."""
    json: bool = False
    """Print one JSON object per answer."""
    raw: bool = False
    """Give prompts to the model as they are, without its chat template."""
    system: str | None = None
    """What the conversation begins with, for models with a chat template."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int = 0
    """Draw among this many most probable tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the most probable tokens that together have this probability."""
    seed: int = 0
    """Seed of the answers."""
    micro_batch_size: int = 64
    """Prompts answered at once; changes nothing but speed and memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Two language models on the same prompts and the same random numbers."""

    prompt: tuple[str, ...] = ()
    """Prompts to answer; the same one may come several times."""
    file: Path | None = None
    """Answer the prompts of this file (.jsonl, .json or .parquet with a column prompt)."""
    judge: str | None = None
    """What gives answers a reward: the folder of a reward model, or FILE.py:FUNCTION."""
    reference: str | None = None
    """A third model, from which the KL of both is measured too."""
    out: Path | None = None
    """Write all figures and answers into this .json file, and beside it into one in .md, for reading."""
    json: bool = False
    """Print the same as JSON."""
    show: int = 3
    """Prompts whose answers are shown side by side."""
    raw: bool = False
    """Give prompts to the models as they are, without their chat templates."""
    system: str | None = None
    """What the conversation begins with, for models with a chat template."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token, and then there is no KL."""
    seed: int = 0
    """Seed of the answers, the same for both models."""
    micro_batch_size: int = 64
    """Prompts answered at once; changes nothing but speed and memory."""
    quiet: bool = False
    """Show nothing but the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models live; auto takes a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights."""


def sft(argv: list[str]) -> int:
    """steepest sft MODEL DEMONSTRATIONS"""
    return _train_language("sft", "demonstrations", argv)


def dpo(argv: list[str]) -> int:
    """steepest dpo MODEL PAIRS"""
    return _train_language("dpo", "preferences", argv)


def reward(argv: list[str]) -> int:
    """steepest reward MODEL PAIRS"""
    return _train_language("reward", "preferences", argv)


def rlhf(argv: list[str]) -> int:
    """steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD"""
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume_language("rlhf", Path(resumed), argv)
    if argv and argv[0] not in RLHF and set(argv) & {"-h", "--help"}:
        print(RLHF_HELP)
        return 0
    if not argv or argv[0] not in RLHF:
        raise UsageError(
            f"rlhf takes one of {', '.join(RLHF)}, a model and prompts: "
            "steepest rlhf ppo MODEL PROMPTS.jsonl --reward runs/reward-MODEL-seed0"
        )
    return _train_language(argv[0], "prompts", argv[1:], verb=f"rlhf {argv[0]}")


def _train_language(algorithm: str, what: str, argv: list[str], *, verb: str | None = None) -> int:
    """Train a language model with any of the trainers."""
    from steepest.language.models.packages import require_language

    require_language()
    verb = verb or algorithm
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume_language(verb, Path(resumed), argv)
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                f"{verb} takes a model and {what}, then options: steepest {verb} MODEL DATA.jsonl --epochs 3"
            )
        argv = ["MODEL", "DATA", "--help"]
    model, data, *rest = argv
    from steepest.api.language import drive_language, show_batch
    from steepest.runs.loops.language import LanguageRun, LanguageRunConfig, find_trainer, resolve_language_options

    kind = find_trainer(algorithm).Config
    config_file = pop_flag(rest, "--config")
    from_file = {} if config_file is None else read_config(Path(config_file))
    run_default, config_default = resolve_language_options(algorithm, from_file)
    options_type = dataclasses.make_dataclass(
        "LanguageOptions",
        [
            ("output", unprefixed(LanguageOutputOptions), dataclasses.field(default=LanguageOutputOptions())),
            ("run", unprefixed(LanguageRunConfig), dataclasses.field(default=run_default)),
            ("config", unprefixed(kind), dataclasses.field(default=config_default)),
        ],
        frozen=True,
        kw_only=True,
    )
    options_type.__doc__ = (
        f"Train {model} on {data} by {algorithm}. --config FILE.yaml sets options before those given here."
    )
    parsed = parse(options_type, rest, f"steepest {verb} {model} {data}")
    given = {**fields_of(parsed.run), **fields_of(parsed.config)}
    output = cast(LanguageOutputOptions, parsed.output)
    if output.show_batch:
        run = LanguageRun(algorithm, model, data, eval_data=output.eval_data, note=_say, **given)
        print(_printable(show_batch(run)))
        return 0
    out = "" if output.out is None else str(output.out)
    run = drive_language(
        lambda note: LanguageRun(algorithm, model, data, eval_data=output.eval_data, out=out, note=note, **given),
        quiet=output.quiet,
    )
    return _report_language(run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeLanguageOptions:
    """Go on from a run's last checkpoint."""

    quiet: bool = False
    """Show nothing but the result."""


def _resume_language(verb: str, path: Path, argv: list[str]) -> int:
    options: ResumeLanguageOptions = parse(ResumeLanguageOptions, argv, f"steepest {verb} --resume RUN")
    from steepest.api.language import drive_language
    from steepest.runs.loops.language import LanguageRun

    return _report_language(drive_language(lambda note: LanguageRun.resume(path, note=note), quiet=options.quiet))


def _report_language(run: Any) -> int:
    """The last lines of a run on a language model: how good, and where everything is."""
    summary, directory = run.summary(), run.directory
    if directory is None:  # a process that is not the main one
        return 0
    figures = ", ".join(
        f"{k.removeprefix('eval/').replace('_', ' ')} {v:.4g}" for k, v in summary["evaluation"].items()
    )
    if figures:
        print(f"evaluation: {figures}, after {summary['steps']:,} updates")
    print(f"{summary['wall_seconds']:.1f} s, {summary['steps']:,} updates")
    for label, path in (
        ("learning curve", directory.curve_path),
        ("metrics", directory.metrics_path),
        ("model", directory.path / "model"),
    ):
        if path.exists():
            print(f"{label + ':':16}{path}")
    best = summary["best"]
    if best is not None:
        what = best["metric"].removeprefix("eval/").replace("_", " ")
        print(f"{'best model:':16}{run.best_path} ({what} {best['value']:.4g}, after {best['step']:,} updates)")
    then = (
        f"rlhf ppo MODEL PROMPTS.jsonl --reward {directory.path}"
        if run.algorithm == "reward"
        else f"generate {directory.path}"
    )
    print(f"{'next:':16}steepest {then}")
    return 0


def generate(argv: list[str]) -> int:
    """steepest generate MODEL"""
    from steepest.language.models.packages import require_language

    require_language()
    what = "A Hugging Face id, a folder, a GGUF file, or the folder of a run."
    options = parse(with_positional(GenerateOptions, "model", str, "MODEL", what), argv, "steepest generate")
    from steepest.api.language import answer_prompts, converse
    from steepest.language.compare.report import refuse_folder
    from steepest.language.data.datasets import read_prompts
    from steepest.language.models.loading import load_model
    from steepest.language.scoring.generation import Sampling

    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    if options.prompt and options.file is not None:
        raise UsageError("give prompts or a file of them, not both")
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
    lm = load_model(options.model, dtype=options.dtype, device=options.device)
    if reads_lines and sys.stdin.isatty():
        converse(lm, sampling, seed=options.seed, raw=options.raw, system=options.system, show=_show_piece)
        return 0
    rows = answer_prompts(
        lm,
        prompts,
        sampling,
        seed=options.seed,
        micro_batch_size=options.micro_batch_size,
        raw=options.raw,
        system=options.system,
    )
    if options.out is not None:
        from steepest.files.atomic import write_text_atomic

        write_text_atomic(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{len(rows)} answers: {options.out}")
    elif options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        for row in rows:
            if len(rows) > 1:
                print(
                    _printable(f"> {row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]['content']}")
                )
            print(_printable(row["completion"]))
    return 0


def compare(argv: list[str]) -> int:
    """steepest compare MODEL_A MODEL_B"""
    from steepest.language.models.packages import require_language

    require_language()
    if sum(1 for _ in itertools.takewhile(lambda a: not a.startswith("-"), argv)) != 2:
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                "compare takes two models, then options: steepest compare MODEL_A MODEL_B --file PROMPTS.jsonl"
            )
        argv = ["MODEL_A", "MODEL_B", "--help"]
    model_a, model_b, *rest = argv
    options: CompareOptions = parse(CompareOptions, rest, "steepest compare MODEL_A MODEL_B")
    if bool(options.prompt) == (options.file is not None):
        raise UsageError("which prompts? Give --prompt or --file, and not both")
    from steepest.api.language import compare as compare_two
    from steepest.language.compare.report import as_json, terminal_lines

    found = compare_two(
        model_a,
        model_b,
        list(options.prompt) if options.file is None else options.file,
        judge=options.judge,
        reference=options.reference,
        out=options.out,
        seed=options.seed,
        micro_batch_size=options.micro_batch_size,
        raw=options.raw,
        system=options.system,
        dtype=options.dtype,
        device=options.device,
        note=None if options.quiet or options.json else _say,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
    )
    if options.json:
        print(json.dumps(as_json(found)))
        return 0
    for line in terminal_lines(found, shutil.get_terminal_size().columns, options.show):
        print(line)
    if options.out is not None:
        print(f"figures and answers: {options.out}, {options.out.with_suffix('.md')}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _show_piece(text: str) -> None:
    print(_printable(text), end="", flush=True)


def _printable(text: str) -> str:
    """Text for standard output: on a terminal, characters that would command it are escaped."""
    from steepest.language.compare.report import escaped

    return escaped(text) if sys.stdout.isatty() else text
