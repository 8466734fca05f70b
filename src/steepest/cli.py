"""The ``steepest`` command: one function per verb, each a thin face of ``steepest.api``.

torch is imported only by the verbs that need it: ``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from steepest.errors import SteepestError, UsageError

USAGE = """\
usage: steepest VERB ...

  train ALGORITHM ENV [options]   train an agent; --help after ALGORITHM ENV lists every option
  train --resume RUN              go on from a run's last checkpoint
  evaluate RUN [options]          play whole episodes: mean, std, min, max, length; --video FILE.mp4 records them
  sft MODEL DATA [options]        fine-tune a language model on demonstrations; --resume RUN goes on
  generate MODEL [options]        answers of a language model: to a prompt, to a file of them, or in a conversation
  plot RUN... [options]           learning curves of several runs and seeds in one picture
  verify [--section 1.9]          check every formula of the notes against exact solutions
  estimators [--problem NAME]     bias and variance of policy-gradient estimators against the exact gradient
  list                            algorithms and environment families

  steepest VERB --help            what a verb takes
  steepest --version

Example: steepest train ppo CartPole-v1 --total-steps 100000
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where a run is written and shown."""

    out: Path | None = None
    """Folder of the run; by default runs/ALGORITHM-ENV-seedN."""
    quiet: bool = False
    """Show nothing but the result."""
    render: bool = False
    """Show an episode in a window at every evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Play whole episodes with a trained agent."""

    episodes: int = 100
    """Episodes to play, per seed of the run."""
    seed: int = 0
    """Seed of the evaluation's environments."""
    stochastic: bool = False
    """Draw actions instead of taking the mode of the policy."""
    which: Literal["latest", "best", "interrupted"] = "latest"
    """Which of the run's saved agents."""
    env: str | None = None
    """Another environment than the one it was trained on."""
    json: bool = False
    """Print JSON."""
    video: Path | None = None
    """Record the episodes into this .mp4 file."""


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
class PlotOptions:
    """Draw learning curves."""

    out: Path = Path("curves.png")
    """The picture."""
    statistic: Literal["mean", "iqm"] = "iqm"
    """What is drawn over seeds: the mean, or the interquartile mean."""
    x: Literal["steps", "wall", "both"] = "both"
    """Against environment steps, wall time, or both."""
    metric: str = "train/return_mean"
    """Which figure of metrics.jsonl."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check every formula of the notes, and the functions that compute them, against exact solutions."""

    section: str | None = None
    """Only this section of the notes and its subsections, such as 1.9."""
    seeds: int = 100
    """Random problems per row."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatorsOptions:
    """Bias and variance of policy-gradient estimators against the exact gradient, at equal numbers of steps."""

    problem: tuple[str, ...] = ("walk", "cliff_walking")
    """Problems: walk, cliff_walking, garnet (with an end), riverswim, two_state, access_control (without)."""
    objective: Literal["discounted", "undiscounted", "average"] | None = None
    """What is estimated; by default the average reward's gradient without an end, the discounted return's with one."""
    repeats: int = 1000
    """Independent estimates."""
    steps: int = 250
    """Environment steps per estimate."""
    seed: int = 0
    """Where the randomness starts."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """The picture (.png, .pdf or .svg); by default estimators.png, and none with --json."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for failure, 2 for misuse, 130 after Ctrl-C, 143 after SIGTERM."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    terminated = False

    def on_terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    # Python lets only the main thread handle signals.
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, on_terminate) if in_main_thread else None
    show_warning = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # how the option parser ends
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except UsageError as error:
        print(f"steepest: {error}", file=sys.stderr)
        return 2
    except SteepestError as error:
        print(f"steepest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"steepest: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:  # whoever read our output has seen enough; what is left of it has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        print(f"steepest: out of memory{': ' if str(error) else ''}{error}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("STEEPEST_DEBUG"):
            raise
        if "allocate memory" in str(error) or "out of memory" in str(error):
            print(f"steepest: out of memory: {_first_line(error)}", file=sys.stderr)
            return 1
        print(
            f"steepest: internal error, {type(error).__name__}: {error}\n"
            "This is a bug in steepest. Run again with STEEPEST_DEBUG=1 for the traceback, and report it.",
            file=sys.stderr,
        )
        return 1
    finally:
        warnings.showwarning = show_warning
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Warnings as one line, without the file and line of library code that mean nothing to the user."""
    if not issubclass(category, DeprecationWarning):
        print(f"steepest: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    verbs = {
        "train": _train,
        "evaluate": _evaluate,
        "sft": _sft,
        "generate": _generate,
        "plot": _plot,
        "verify": _verify,
        "estimators": _estimators,
        "list": _list,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from steepest import __version__

        print(f"steepest {__version__}")
        return 0
    if argv[0] not in verbs:
        near = difflib.get_close_matches(argv[0], verbs, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UsageError(f"no verb is called {argv[0]!r}{hint} Known: {', '.join(verbs)} (steepest --help)")
    return verbs[argv[0]](argv[1:])


def _pop(argv: list[str], flag: str) -> str | None:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of the arguments."""
    for i, argument in enumerate(argv):
        if argument == flag:
            if i + 1 >= len(argv):
                raise UsageError(f"{flag} needs a value")
            value = argv[i + 1]
            del argv[i : i + 2]
            return value
        if argument.startswith(f"{flag}="):
            del argv[i]
            return argument.split("=", 1)[1]
    return None


def _parse(kind: type[Any], argv: list[str], prog: str) -> Any:
    """Options of a dataclass (or a dataclass of them) from the command line; exits with 2 on misuse."""
    import tyro

    # Of ``AtariOptions | None`` the default's type is taken: its options are there for Atari games only.
    return tyro.cli(tyro.conf.configure(tyro.conf.AvoidSubcommands)(kind), args=_as_typed(argv), prog=prog)


def _unprefixed(kind: type[Any]) -> Any:
    """A group of options whose flags do not begin with the group's name."""
    import tyro

    return Annotated[kind, tyro.conf.arg(name="")]


def _as_typed(argv: list[str]) -> list[str]:
    """Two spellings that people expect: whole numbers as 1e6, and flags as ``--flag True`` beside ``--flag``."""
    out: list[str] = []
    for argument in argv:
        flag = out[-1] if out else ""
        if re.fullmatch(r"[0-9.]+[eE]\+?[0-9]{1,2}", argument) and float(argument).is_integer():
            out.append(str(int(float(argument))))
        elif argument in ("True", "False", "true", "false") and flag.startswith("--") and "=" not in flag:
            group, dot, name = flag[2:].rpartition(".")  # --atari.no-fire-reset
            out[-1] = flag if argument.lower() == "true" else f"--{group}{dot}no-{name}"
        else:
            out.append(argument)
    return out


def _with_positional(kind: type[Any], name: str, value: Any, metavar: str, what: str) -> type[Any]:
    """A dataclass of options with a positional argument before them."""
    import tyro

    positional = Annotated[value, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help=what)]
    made = dataclasses.make_dataclass(kind.__name__, [(name, positional)], bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


def _train(argv: list[str]) -> int:
    resumed = _pop(argv, "--resume")
    if resumed is not None:
        return _resume(Path(resumed), argv)
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                "train takes an algorithm and an environment, then options: steepest train ppo CartPole-v1"
            )
        print(USAGE, end="")
        return 0
    algorithm, env = argv[0], argv[1]
    rest = argv[2:]
    from steepest.algorithms import find

    agent_class = find(algorithm)
    from steepest.api import drive
    from steepest.runs.config import RunConfig
    from steepest.runs.run import Run
    from steepest.runs.settings import resolve_options

    config_file = _pop(rest, "--config")
    from_file = {} if config_file is None else _read_config(Path(config_file))
    output_default = _output_options(from_file)
    run_default, config_default = resolve_options(agent_class, env, from_file)
    options_type = dataclasses.make_dataclass(
        "TrainOptions",
        [
            ("output", _unprefixed(OutputOptions), dataclasses.field(default=output_default)),
            ("run", _unprefixed(RunConfig), dataclasses.field(default=run_default)),
            ("config", _unprefixed(agent_class.Config), dataclasses.field(default=config_default)),
        ],
        frozen=True,
        kw_only=True,
    )
    options_type.__doc__ = f"Train {algorithm} on {env}. --config FILE.yaml sets options before those given here."
    parsed = _parse(options_type, rest, f"steepest train {algorithm} {env}")
    given = {**_fields(parsed.run), **_fields(parsed.config)}
    output = cast(OutputOptions, parsed.output)
    out = "" if output.out is None else str(output.out)
    run = drive(lambda note: Run(algorithm, env, out=out, note=note, render=output.render, **given), quiet=output.quiet)
    return _report(run)


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _output_options(options: dict[str, Any]) -> OutputOptions:
    """Take the options of the command itself out of a config file's."""
    given = {f.name: options.pop(f.name) for f in dataclasses.fields(OutputOptions) if f.name in options}
    for name in ("quiet", "render"):
        if not isinstance(given.get(name, False), bool):
            raise UsageError(f"{name} is {given[name]!r}; expected true or false")
    if given.get("out") is not None:
        given["out"] = Path(str(given["out"]))
    return OutputOptions(**given)


def _read_config(path: Path) -> dict[str, Any]:
    """Options from a YAML file of them, or from the config.json of a run."""
    import yaml

    try:
        data: object = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"there is no config file {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__}; expected options by name, such as 'seed: 1'")
    options = cast(dict[str, Any], data)
    if isinstance(options.get("run"), dict) and isinstance(options.get("config"), dict):
        options = {**options["run"], **options["config"]}
    return _yaml_value(options)


def _yaml_value(value: Any) -> Any:
    """Names with underscores, tuples, and numbers: YAML 1.1 reads 3e-4 as text, since it has no decimal point."""
    if isinstance(value, dict):
        return {str(k).replace("-", "_"): _yaml_value(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return tuple(_yaml_value(v) for v in cast(list[Any], value))
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
        return float(value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Go on from a run's last checkpoint."""

    total_steps: int | None = None
    """Train further than first planned."""
    quiet: bool = False
    """Show nothing but the result."""


def _resume(path: Path, argv: list[str]) -> int:
    if argv and not argv[0].startswith("-"):
        raise UsageError(
            f"--resume takes the algorithm, environment and settings from the run itself; leave out {' '.join(argv)} "
            "(only --total-steps and --quiet can be given)"
        )
    options: ResumeOptions = _parse(ResumeOptions, argv, "steepest train --resume RUN")
    from steepest.api import drive
    from steepest.runs.run import Run

    run = drive(lambda note: Run.resume(path, total_steps=options.total_steps, note=note), quiet=options.quiet)
    return _report(run)


def _report(run: Any) -> int:
    """The last lines of a training run: how good, how fast, and where everything is."""
    summary = run.summary()
    for seed, result in zip(summary["seeds"], summary["evaluation"], strict=False):
        print(
            f"seed {seed}: return {result['mean']:.1f} +- {result['std']:.1f} over {result['episodes']} evaluation "
            f"episodes, after {max(summary['steps']):,} steps"
        )
    print(f"{summary['wall_seconds']:.1f} s, {summary['steps_per_second']:,.0f} steps/s")
    directory = run.directory
    checkpoint = run.store.latest()
    for label, path in (
        ("learning curve", directory.curve_path),
        ("metrics", directory.metrics_path),
        ("checkpoint", checkpoint),
    ):
        if path is not None and path.exists():
            print(f"{label + ':':16}{path}")
    print(f"{'next:':16}steepest evaluate {directory.path} --video {directory.path / 'episode.mp4'} --episodes 1")
    return 0


def _evaluate(argv: list[str]) -> int:
    what = "The folder that `steepest train` reported, a checkpoint in it, or a saved agent."
    options = _parse(_with_positional(EvaluateOptions, "run", Path, "RUN", what), argv, "steepest evaluate")
    if options.video is not None and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # it complains about the missing screen otherwise
    from steepest.api import evaluate, load

    agent = load(options.run, which=options.which)
    results = evaluate(
        agent,
        options.env,
        episodes=options.episodes,
        seed=options.seed,
        deterministic=not options.stochastic,
        video=options.video,
    )
    summaries = [r.summary() for r in results]
    if options.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries))
        return 0
    for seed, s in zip(agent.seeds, summaries, strict=True):
        print(
            f"seed {seed}: return {s['mean']:.2f} +- {s['std']:.2f}, min {s['min']:.2f}, max {s['max']:.2f}, "
            f"length {s['mean_length']:.1f}, {s['episodes']} episodes"
        )
    if options.video is not None:
        print(f"video: {options.video}")
    return 0


def _sft(argv: list[str]) -> int:
    return _train_language("sft", "demonstrations", argv)


def _train_language(algorithm: str, what: str, argv: list[str]) -> int:
    """Train a language model with any of the trainers."""
    from steepest.language.models import require_language

    require_language()
    resumed = _pop(argv, "--resume")
    if resumed is not None:
        return _resume_language(algorithm, Path(resumed), argv)
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                f"{algorithm} takes a model and {what}, then options: steepest {algorithm} MODEL DATA.jsonl --epochs 3"
            )
        argv = ["MODEL", "DATA", "--help"]
    model, data, *rest = argv
    from steepest.language_api import drive_language, show_batch
    from steepest.runs.language_run import LanguageRun, LanguageRunConfig, find_trainer, resolve_language_options

    kind = find_trainer(algorithm).Config
    config_file = _pop(rest, "--config")
    from_file = {} if config_file is None else _read_config(Path(config_file))
    run_default, config_default = resolve_language_options(algorithm, from_file)
    options_type = dataclasses.make_dataclass(
        "LanguageOptions",
        [
            ("output", _unprefixed(LanguageOutputOptions), dataclasses.field(default=LanguageOutputOptions())),
            ("run", _unprefixed(LanguageRunConfig), dataclasses.field(default=run_default)),
            ("config", _unprefixed(kind), dataclasses.field(default=config_default)),
        ],
        frozen=True,
        kw_only=True,
    )
    options_type.__doc__ = (
        f"Train {model} on {data} by {algorithm}. --config FILE.yaml sets options before those given here."
    )
    parsed = _parse(options_type, rest, f"steepest {algorithm} {model} {data}")
    given = {**_fields(parsed.run), **_fields(parsed.config)}
    output = cast(LanguageOutputOptions, parsed.output)
    if output.show_batch:
        print(_printable(show_batch(LanguageRun(algorithm, model, data, note=_say, **given))))
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


def _resume_language(algorithm: str, path: Path, argv: list[str]) -> int:
    options: ResumeLanguageOptions = _parse(ResumeLanguageOptions, argv, f"steepest {algorithm} --resume RUN")
    from steepest.language_api import drive_language
    from steepest.runs.language_run import LanguageRun

    return _report_language(drive_language(lambda note: LanguageRun.resume(path, note=note), quiet=options.quiet))


def _report_language(run: Any) -> int:
    """The last lines of a run on a language model: how good, and where everything is."""
    summary, directory = run.summary(), run.directory
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
    print(f"{'next:':16}steepest generate {directory.path}")
    return 0


def _generate(argv: list[str]) -> int:
    from steepest.language.models import require_language

    require_language()
    what = "A Hugging Face id, a folder, a GGUF file, or the folder of a run."
    options = _parse(_with_positional(GenerateOptions, "model", str, "MODEL", what), argv, "steepest generate")
    from steepest.language.data import read_prompts
    from steepest.language.generation import Sampling
    from steepest.language.models import load_model
    from steepest.language_api import answer_prompts, converse

    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    if options.prompt and options.file is not None:
        raise UsageError("give prompts or a file of them, not both")
    prompts: list[Any] = list(options.prompt) if options.file is None else read_prompts(options.file)
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
        from steepest.files import write_text_atomic

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


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _show_piece(text: str) -> None:
    print(_printable(text), end="", flush=True)


def _printable(text: str) -> str:
    """Text for standard output: on a terminal, characters that would command it are escaped."""
    if not sys.stdout.isatty():
        return text
    import unicodedata

    # Line ends and tabs may stay. Besides controls, some formatting characters turn the direction of what follows.
    def commands(char: str) -> bool:
        control = unicodedata.category(char) == "Cc" and char not in "\n\t"
        return control or "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"

    return "".join(char.encode("unicode_escape").decode("ascii") if commands(char) else char for char in text)


def _plot(argv: list[str]) -> int:
    what = "Folders that `steepest train` reported."
    options = _parse(_with_positional(PlotOptions, "runs", tuple[Path, ...], "RUN...", what), argv, "steepest plot")
    if not options.runs:
        raise UsageError("which runs? Give the folders that `steepest train` reported")
    from steepest.runs.plots import plot_runs

    path = plot_runs(list(options.runs), options.out, statistic=options.statistic, x=options.x, metric=options.metric)
    print(path)
    return 0


def _verify(argv: list[str]) -> int:
    options: VerifyOptions = _parse(VerifyOptions, argv, "steepest verify")
    from steepest.verification import results, show

    rows = results(options.section, seeds=options.seeds)
    if options.json:
        found = list(rows)
        print(json.dumps([r.as_dict() for r in found]))
    else:
        found = show(rows)
    return 0 if all(r.passed for r in found) else 1


def _estimators(argv: list[str]) -> int:
    options: EstimatorsOptions = _parse(EstimatorsOptions, argv, "steepest estimators")
    if not options.problem:
        raise UsageError("--problem needs at least one name, such as walk")
    from steepest import estimators

    out = options.out or (None if options.json else Path("estimators.png"))
    if out is not None:
        estimators.check_picture(out)
    found = [
        estimators.compare(
            name, objective=options.objective, repeats=options.repeats, steps=options.steps, seed=options.seed
        )
        for name in options.problem
    ]
    if options.json:
        print(json.dumps([comparison.to_json() for comparison in found]))
    else:
        estimators.show(found)
    if out is not None:
        path = estimators.plot(found, out)
        if not options.json:
            print(f"picture: {path}")
    return 0


def _list(argv: list[str]) -> int:
    if argv and argv[0] not in ("-h", "--help"):
        raise UsageError(f"list takes no arguments; got {' '.join(argv)}")
    from importlib.util import find_spec

    from steepest.algorithms import ALGORITHMS

    print("algorithms")
    for name, (_, line) in sorted(ALGORITHMS.items()):
        print(f"  {name:12}{line}")
    print("\nlanguage models (steepest VERB MODEL DATA)")
    there = "installed" if find_spec("transformers") else 'pip install "steepest[language]"'
    print(f"  {'sft':12}supervised fine-tuning on demonstrations (notes 2.2)  ({there})")
    print("\nenvironments (any Gymnasium id; these families need an extra)")
    for extra, module, example in (
        ("", "gymnasium", "CartPole-v1, Acrobot-v1, Pendulum-v1, MountainCar-v0"),
        ("mujoco", "mujoco", "HalfCheetah-v5, Hopper-v5, Walker2d-v5, Ant-v5"),
        ("box2d", "Box2D", "LunarLander-v3, BipedalWalker-v3"),
        ("atari", "ale_py", "ALE/Pong-v5, ALE/Breakout-v5"),
        ("envpool", "envpool", "--vectorization envpool: HalfCheetah-v5, CartPole-v1, Pong-v5"),
    ):
        there = "installed" if find_spec(module) else f'pip install "steepest[{extra}]"'
        print(f"  {extra or 'classic':12}{example}  ({there})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
