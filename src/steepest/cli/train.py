"""The command's verbs that train, each a thin face of ``steepest.api``; any run is resumed and reported here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from steepest.cli.options import fields_of, parse, pop_flag, print_line, printable, read_config, say, unprefixed
from steepest.cli.usage import USAGE
from steepest.errors import UsageError

TOGETHER = ("sft", "reward", "dpo", "rlhf")
"""Verbs that several processes can work on together."""

RLHF = ("ppo", "rloo", "grpo")
RLHF_HELP = """usage: steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD [options]
       steepest rlhf --resume RUN

Train a language model on prompts and a reward. ALGORITHM is one of

  ppo     clipped updates token by token, with a value head
  rloo    a response is an action; its baseline is the mean reward of the prompt's other responses
  grpo    advantages are rewards standardised over the responses to a prompt; the KL is in the loss

REWARD is the folder of a reward model, or FILE.py:FUNCTION.
steepest rlhf ppo --help lists the options of ppo; likewise for rloo and grpo."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of a run's folder and display."""

    out: Path | None = None
    """Folder of the run; by default runs/ALGORITHM-NAME-seedN, with the name of the environment or the model."""
    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentOutputOptions(OutputOptions):
    """Options of a run's data, folder and display."""

    data: str | None = None
    """Dataset or log to learn from instead of playing; steps are gradient steps on a dataset."""
    render: bool = False
    """Show an episode in a window at every evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageOutputOptions(OutputOptions):
    """Options of the folder and display of a run on a language model."""

    eval_data: str | None = None
    """Held-out data, in the formats of DATA."""
    show_batch: bool = False
    """Show the tokens of the first batch with what is learned of them, and train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeLanguageOptions:
    """Resume a run from its last checkpoint."""

    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(ResumeLanguageOptions):
    """Resume a run from its last checkpoint."""

    total_steps: int | None = None
    """Train further than first planned; for agents."""


def agents(argv: list[str]) -> int:
    """steepest train ALGORITHM ENV, or ALGORITHM DATA"""
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume("train", Path(resumed), argv)
    start = pop_flag(argv, "--from")
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                "train takes an algorithm and an environment or a dataset, then options: steepest train ppo CartPole-v1"
            )
        print(USAGE, end="")
        return 0
    algorithm, place, *rest = argv
    env: str | None = place
    from steepest.algorithms import find

    agent_class = find(algorithm)
    from steepest.api.drive import drive
    from steepest.runs.options.auto import resolve_options
    from steepest.runs.run import Run

    output_default, from_file = _from_file(rest, AgentOutputOptions)
    from steepest.experience.datasets.read import env_of, is_dataset

    whose = place
    if is_dataset(place):  # the run takes all that the data says of its environment
        output_default, env, whose = dataclasses.replace(output_default, data=place), None, env_of(place)
    defaults = (output_default, *resolve_options(agent_class, whose, from_file))
    output, given = _parsed(defaults, rest, f"train {algorithm} {place}", f"Train {algorithm} on {place}.")
    out = "" if output.out is None else str(output.out)
    given |= {"out": out, "data": output.data, "render": output.render}
    if start is not None:
        from steepest.api.agents import load

        given["agent"] = load(start)
    return _report(drive(lambda note: Run(algorithm, env, note=note, **given), quiet=output.quiet))


def rlhf(argv: list[str]) -> int:
    """steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD"""
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume("rlhf", Path(resumed), argv)
    if argv and argv[0] not in RLHF and set(argv) & {"-h", "--help"}:
        print(RLHF_HELP)
        return 0
    if not argv or argv[0] not in RLHF:
        raise UsageError(
            f"rlhf takes one of {', '.join(RLHF)}, a model and prompts: "
            "steepest rlhf ppo MODEL PROMPTS.jsonl --reward runs/reward-MODEL-seed0"
        )
    return language(argv[0], "prompts", argv[1:], verb=f"rlhf {argv[0]}")


def language(algorithm: str, what: str, argv: list[str], *, verb: str | None = None) -> int:
    """steepest sft MODEL DEMONSTRATIONS, or any other verb that trains a language model."""
    from steepest.language.models.packages import require_language

    require_language()
    verb = verb or algorithm
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume(verb, Path(resumed), argv)
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        if not set(argv) & {"-h", "--help"}:
            raise UsageError(
                f"{verb} takes a model and {what}, then options: steepest {verb} MODEL DATA.jsonl --epochs 3"
            )
        argv = ["MODEL", "DATA", "--help"]
    model, data, *rest = argv
    from steepest.api.drive import drive
    from steepest.api.language import show_batch
    from steepest.runs.language_run import LanguageRun
    from steepest.runs.options.language import resolve_language_options

    output_default, from_file = _from_file(rest, LanguageOutputOptions)
    defaults = (output_default, *resolve_language_options(algorithm, from_file))
    output, given = _parsed(defaults, rest, f"{verb} {model} {data}", f"Train {model} on {data} by {algorithm}.")
    given["eval_data"] = output.eval_data
    if output.show_batch:
        print(printable(show_batch(LanguageRun(algorithm, model, data, note=say, **given))))
        return 0
    out = "" if output.out is None else str(output.out)
    run = drive(lambda note: LanguageRun(algorithm, model, data, out=out, note=note, **given), quiet=output.quiet)
    return _report(run)


def _from_file(argv: list[str], kind: type[OutputOptions]) -> tuple[Any, dict[str, Any]]:
    """Take ``--config FILE`` out of the arguments; return its options of the command itself, and its others."""
    config_file = pop_flag(argv, "--config")
    options = {} if config_file is None else read_config(Path(config_file))
    given = {f.name: options.pop(f.name) for f in dataclasses.fields(kind) if f.name in options}
    for field in dataclasses.fields(kind):
        if isinstance(field.default, bool) and not isinstance(given.get(field.name, False), bool):
            raise UsageError(f"{field.name} is {given[field.name]!r}; expected true or false")
    if given.get("out") is not None:
        given["out"] = Path(str(given["out"]))
    return kind(**given), options


def _parsed(defaults: tuple[Any, Any, Any], argv: list[str], verb: str, what: str) -> tuple[Any, dict[str, Any]]:
    """Parse the options of the output, of the run and of the algorithm; return the first, and the others by name."""
    groups = zip(("output", "run", "config"), defaults, strict=True)
    options_type = dataclasses.make_dataclass(
        "TrainOptions",
        [(name, unprefixed(type(default)), dataclasses.field(default=default)) for name, default in groups],
        frozen=True,
        kw_only=True,
    )
    options_type.__doc__ = f"{what} --config FILE.yaml sets options before those given here."
    parsed = parse(options_type, argv, f"steepest {verb}")
    return parsed.output, {**fields_of(parsed.run), **fields_of(parsed.config)}


def _resume(verb: str, path: Path, argv: list[str]) -> int:
    """Resume a run: of any kind under ``train``, of a language model under its verbs."""
    kind = ResumeOptions if verb == "train" else ResumeLanguageOptions
    if argv and not argv[0].startswith("-"):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(fields_of(kind()), reverse=True))
        raise UsageError(
            "--resume takes the algorithm, environment and settings from the run itself; leave out "
            f"{' '.join(argv)} (only {flags} can be given)"
        )
    given = fields_of(parse(kind, argv, f"steepest {verb} --resume RUN"))
    quiet = given.pop("quiet")
    from steepest.api.drive import drive

    if verb == "train":
        from steepest.runs.run import Run as Resumed
    else:
        from steepest.runs.language_run import LanguageRun as Resumed

    return _report(drive(lambda note: Resumed.resume(path, note=note, **given), quiet=quiet))


def _report(run: Any) -> int:
    """Print the last lines of a run: how good, how fast, and where everything is."""
    summary, directory = run.summary(), run.directory
    if directory is None:  # a process that is not the main one
        return 0
    lines, places, then = (_of_model if run.training.what == "model" else _of_agent)(run, summary)
    for line in lines:
        print_line(line)
    for label, path in (("learning curve", directory.curve_path), ("metrics", directory.metrics_path), *places):
        if path is not None and path.exists():
            print_line(f"{label + ':':16}{path}")
    for label, text in then:
        print_line(f"{label + ':':16}{text}")
    return 0


Report = tuple[list[str], list[tuple[str, Any]], list[tuple[str, str]]]
"""Lines about the result, labelled places, and labelled lines that come last."""


def _of_agent(run: Any, summary: dict[str, Any]) -> Report:
    lines = [
        f"seed {seed}: return {result['mean']:.1f} +- {result['std']:.1f} over {result['episodes']} evaluation "
        f"episodes, after {max(summary['steps']):,} steps"
        for seed, result in zip(summary["seeds"], summary["evaluation"], strict=False)
    ]
    lines.append(f"{summary['wall_seconds']:.1f} s, {summary['steps_per_second']:,.0f} steps/s")
    place = run.directory.path
    following = f"steepest evaluate {place} --video {place / 'episode.mp4'} --episodes 1"
    return lines, [("checkpoint", run.store.latest())], [("next", following)]


def _of_model(run: Any, summary: dict[str, Any]) -> Report:
    place, best = run.directory.path, summary["best"]
    metrics = ", ".join(f"{_words(k)} {v:.4g}" for k, v in summary["evaluation"].items())
    lines = [f"evaluation: {metrics}, after {summary['steps']:,} updates"] if metrics else []
    lines.append(f"{summary['wall_seconds']:.1f} s, {summary['steps']:,} updates")
    then: list[tuple[str, str]] = []
    if best is not None:
        value = f"{_words(best['metric'])} {best['value']:.4g}"
        then.append(("best model", f"{run.best_path} ({value}, after {best['step']:,} updates)"))
    rewarded = run.algorithm == "reward"
    following = f"rlhf ppo MODEL PROMPTS.jsonl --reward {place}" if rewarded else f"generate {place}"
    return lines, [("model", place / "model")], [*then, ("next", f"steepest {following}")]


def _words(tag: str) -> str:
    return tag.removeprefix("eval/").replace("_", " ")
