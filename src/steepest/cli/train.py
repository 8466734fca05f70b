"""The command's verbs that train, each a thin face of ``steepest.api``; any run is resumed and reported here.

Arguments are checked before anything that imports torch, which takes seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steepest.algorithms import ALGORITHMS, find_config
from steepest.cli.help import grouped, show
from steepest.cli.options import (
    MODEL,
    Usage,
    as_flag,
    as_pairs,
    asks_for_help,
    check_words,
    draw_without_screen,
    fields_of,
    filled,
    options_of,
    parse,
    pop_flag,
    print_line,
    printable,
    read_config,
    read_flags,
    read_pairs,
    say,
)
from steepest.errors import UsageError
from steepest.fields import Checked, Count, checked_options
from steepest.preferences.place import Place

TOGETHER = ("sft", "reward", "dpo", "rlhf")
"""Verbs that several processes can work on together."""

TRAIN_HELP = """usage: steepest train ALGORITHM ENV [options]
       steepest train ALGORITHM DATA [options]
       steepest train ALGORITHM ENV --from RUN [options]
       steepest train --resume RUN

Train an agent: by playing ENV (the id of an environment, such as CartPole-v1), or from DATA (recorded episodes). --from
starts from the agent of another run. `steepest train ppo --help` lists the options of ppo, and `steepest train ppo
CartPole-v1 --help` shows them with the defaults tuned for that environment. ALGORITHM is one of

"""

RLHF = ("ppo", "rloo", "grpo")
RLHF_HELP = """usage: steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD [options]
       steepest rlhf --resume RUN

Train a language model on prompts with a reward. ALGORITHM is one of

  ppo     clipped updates token by token, with a value head
  rloo    a response is an action; its baseline is the mean reward of the prompt's other responses
  grpo    advantages are rewards standardised over the responses to a prompt; the KL is in the loss

REWARD is the folder of a reward model, or FILE.py:FUNCTION.
`steepest rlhf ppo --help` lists the options of ppo; likewise for rloo and grpo.
"""

CONFIG = "--config FILE.yaml reads options from a file; options on the command line override it."


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of a run's folder and display."""

    out: Path | None = None
    """Folder of the run; by default runs/ALGORITHM-NAME-seedN, with the name of the environment or the model."""
    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveOptions(Place):
    """How people are asked for labels while an agent trains, with --label-live."""

    labels: Count = 700
    """Labels that are asked for in all, a quarter of them before the agent learns anything."""
    clip_steps: Count = 25
    """Steps of a clip; one that would be over in less than a second is slowed down to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentOutputOptions(OutputOptions):
    """Options of a run's data, folder and display."""

    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, KEY=VALUE each, such as gravity=5 natural=true (default: none)."""
    data: str | None = None
    """Dataset or log to learn from instead of playing (default: none); steps are gradient steps on a dataset."""
    reward: str | None = None
    """Preference project to learn the reward from, instead of the environment's (default: none)."""
    label_live: bool = False
    """Ask people about clips of the agent while it trains, on a page that the run serves; they go to the project."""
    live: LiveOptions = LiveOptions()
    """How they are asked."""
    render: bool = False
    """Show an episode in a window at every evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageOutputOptions(OutputOptions):
    """Options of the folder and display of a run on a language model."""

    eval_data: str | None = None
    """Held-out data, in the formats of DATA (default: none)."""
    show_batch: bool = False
    """Print the first batch, marking which tokens contribute to the loss, then exit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeLanguageOptions(Checked):
    """Resume a run from its last checkpoint."""

    quiet: bool = False
    """Show nothing but the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(ResumeLanguageOptions):
    """Resume a run from its last checkpoint."""

    total_steps: Count | None = None
    """Train further than first planned; for agents (default: as planned)."""


def agents(argv: list[str]) -> int:
    """steepest train ALGORITHM ENV, or ALGORITHM DATA"""
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume("train", resumed, argv)
    start = pop_flag(argv, "--from")
    wants_help, words = asks_for_help(argv), _leading(argv, 2)
    if wants_help and not words:
        print(TRAIN_HELP + "\n".join(f"  {name:14}{line}" for name, (_, line) in sorted(ALGORITHMS.items())))
        return 0
    if words:
        find_config(words[0])  # a misspelled algorithm is told first
    if len(words) < 2 and not wants_help:
        raise UsageError(
            "train takes an algorithm and an environment or a dataset, then options: "
            f"steepest train {words[0] if words else 'ppo'} CartPole-v1"
        )
    algorithm, place = words[0], words[1] if len(words) > 1 else None
    from steepest.experience.datasets.places import check_there, is_dataset
    from steepest.runs.options.resolve import resolve_options

    file, output_default, from_file = _from_file(argv, AgentOutputOptions)
    usage = Usage(f"steepest train {algorithm}{'' if place is None else f' {place}'}", "ENV" if place is None else "")
    env = whose = place
    if place is not None and not wants_help:
        _check_place(algorithm, place, argv, from_file, usage)
    if place is not None and is_dataset(place):
        env = whose = None
        if not wants_help:  # the run takes all that the data says of its environment; help does without
            from steepest.experience.datasets.read import env_of

            output_default, whose = dataclasses.replace(output_default, data=place), env_of(place)
    with _naming(file):
        defaults = (output_default, *resolve_options(algorithm, whose, from_file))
    if wants_help:
        _show_help(usage, defaults)
        return 0
    output, given = _parsed(defaults, argv, usage)
    if output.data is not None:
        check_there(output.data)
    if start is not None:
        from steepest.runs.store.folder import check_saved

        check_saved(Path(start))
    if output.label_live and output.reward is None:
        raise UsageError("--label-live needs the preference project that labels go to: --reward FILE")
    out = "" if output.out is None else str(output.out)
    given |= {"out": out, "data": output.data, "reward": _reward(output), "render": output.render}
    given["env_kwargs"] = read_pairs(output.env_kwargs) or None
    from steepest.api.drive import drive
    from steepest.runs.run import Run

    if start is not None:
        from steepest.api.agents import load

        given["agent"] = load(start)
    return _report(drive(lambda note: Run(algorithm, env, note=note, **given), quiet=output.quiet))


def _reward(output: AgentOutputOptions) -> Any:
    """What the agent's reward is learned from: a project, or people who are asked while it trains."""
    if not output.label_live:
        return output.reward
    from steepest.preferences.learned import LiveLabels
    from steepest.preferences.people import People

    place = {field.name: getattr(output.live, field.name) for field in dataclasses.fields(Place)}
    draw_without_screen()
    people = People(project=Path(str(output.reward)), **place)
    return LiveLabels(labeller=people, labels=output.live.labels, clip_steps=output.live.clip_steps)


def _check_place(algorithm: str, place: str, argv: Sequence[str], from_file: dict[str, Any], usage: Usage) -> None:
    """Raise UsageError for an unknown flag, then for data that is not there or a name that no environment has.

    All of it before presets are looked up, which may take EnvPool's registry, and before data is read.
    """
    from steepest.environments.config import AtariOptions
    from steepest.environments.names import check_name
    from steepest.experience.datasets.places import check_there, is_dataset
    from steepest.runs.options.config import RunConfig

    known = [*options_of(AgentOutputOptions), *options_of(RunConfig, RunConfig(atari=AtariOptions()))]
    given, _ = read_flags([*known, *options_of(find_config(algorithm))], argv, usage.prog)
    if is_dataset(place):
        check_there(place)
    else:
        check_name(place, given.get("vectorization", from_file.get("vectorization", "auto")))


def rlhf(argv: list[str]) -> int:
    """steepest rlhf ALGORITHM MODEL PROMPTS --reward REWARD"""
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume("rlhf", resumed, argv)
    if (not argv or argv[0] not in RLHF) and asks_for_help(argv):
        print(RLHF_HELP, end="")
        return 0
    if not argv or argv[0] not in RLHF:
        raise UsageError(
            f"rlhf takes one of {', '.join(RLHF)}, a model and prompts: "
            "steepest rlhf ppo MODEL PROMPTS.jsonl --reward runs/reward-MODEL-seed0"
        )
    return language(argv[0], "prompts", argv[1:], verb=f"rlhf {argv[0]}")


def language(algorithm: str, what: str, argv: list[str], *, verb: str | None = None) -> int:
    """steepest sft MODEL DEMONSTRATIONS, or any other verb that trains a language model."""
    from steepest.runs.options.language import resolve_language_options

    verb = verb or algorithm
    resumed = pop_flag(argv, "--resume")
    if resumed is not None:
        return _resume(verb, resumed, argv)
    wants_help, words = asks_for_help(argv), _leading(argv, 2)
    if len(words) < 2 and not wants_help:
        raise UsageError(f"{verb} takes a model and {what}, then options: steepest {verb} MODEL DATA.jsonl --epochs 3")
    file, output_default, from_file = _from_file(argv, LanguageOutputOptions)
    with _naming(file):
        defaults = (output_default, *resolve_language_options(algorithm, from_file))
    if wants_help:
        _show_help(Usage(f"steepest {verb}", f"MODEL {what.upper()}", MODEL), defaults)
        return 0
    model, data = words
    output, given = _parsed(defaults, argv, Usage(f"steepest {verb} {model} {data}"))
    given["eval_data"] = output.eval_data
    from steepest.language.data.rows import check_source
    from steepest.language.models.packages import require_language
    from steepest.language.models.places import locate

    require_language()
    locate(model)
    for source in (data, *([] if output.eval_data is None else [output.eval_data])):
        check_source(source)
    from steepest.api.drive import drive
    from steepest.runs.language_run import LanguageRun

    if output.show_batch:
        from steepest.api.language import show_batch

        print(printable(show_batch(LanguageRun(algorithm, model, data, note=say, **given))))
        return 0
    out = "" if output.out is None else str(output.out)
    run = drive(lambda note: LanguageRun(algorithm, model, data, out=out, note=note, **given), quiet=output.quiet)
    return _report(run)


def _leading(argv: list[str], most: int) -> list[str]:
    """Take the words at the beginning of the arguments, at most so many."""
    words: list[str] = []
    while argv and len(words) < most and not argv[0].startswith("-"):
        words.append(argv.pop(0))
    return words


@contextmanager
def _naming(file: str | None) -> Generator[None]:
    """Let a UsageError about options name the file that they are from."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error}" if file is not None else str(error)) from error


def _from_file(argv: list[str], kind: type[OutputOptions]) -> tuple[str | None, Any, dict[str, Any]]:
    """Take ``--config FILE`` out of the arguments; return it, its options of the command itself, and its others."""
    config_file = pop_flag(argv, "--config")
    options = read_config(Path(config_file)) if config_file else {}
    given = {f.name: options.pop(f.name) for f in dataclasses.fields(kind) if f.name in options}
    for field in dataclasses.fields(kind):
        if isinstance(field.default, bool) and not isinstance(given.get(field.name, False), bool):
            raise UsageError(f"{config_file}: {field.name} is {given[field.name]!r}; expected true or false")
    if given.get("out") is not None:
        given["out"] = Path(str(given["out"]))
    if "live" in given:
        given |= checked_options(kind, {"live": given["live"]})
    if "env_kwargs" in given:
        given["env_kwargs"] = as_pairs(given["env_kwargs"] or {}, str(config_file))
    return config_file, kind(**given), options


def _show_help(usage: Usage, defaults: Sequence[Any]) -> None:
    """Print what a verb that trains takes; ``defaults``: of the output, of the run and of the algorithm."""
    options = [option for part in defaults for option in options_of(type(part), part)]
    show(usage, type(defaults[-1]).__doc__ or "", grouped(options), CONFIG)


def _parsed(defaults: Sequence[Any], argv: Sequence[str], usage: Usage) -> tuple[Any, dict[str, Any]]:
    """Parse the options of the output, of the run and of the algorithm; return the first, and the others by name."""
    options = [options_of(type(part), part) for part in defaults]
    given, words = read_flags([option for part in options for option in part], argv, usage.prog)
    check_words(words, usage)
    output, *others = (
        filled(type(part), part, {o.name: given[o.name] for o in own if o.name in given}, usage.prog)
        for part, own in zip(defaults, options, strict=True)
    )
    return output, {name: value for part in others for name, value in fields_of(part).items()}


def _resume(verb: str, run: str, argv: list[str]) -> int:
    """Resume a run: of any kind under ``train``, of a language model under its verbs."""
    kind = ResumeOptions if verb == "train" else ResumeLanguageOptions
    if argv and not argv[0].startswith("-"):
        flags = " and ".join(as_flag(name) for name in sorted(fields_of(kind()), reverse=True))
        raise UsageError(
            "--resume takes the algorithm, environment and settings from the run itself; leave out "
            f"{' '.join(argv)} (only {flags} can be given)"
        )
    usage = Usage(f"steepest {verb} --resume {run or 'RUN'}")
    options, _ = parse(kind, argv, usage)
    path = Path(run)
    given = fields_of(options)
    quiet = given.pop("quiet")
    from steepest.runs.store.folder import RunDirectory

    RunDirectory.open(path, lock=False)  # whether there is a run, before what takes seconds
    from steepest.api.drive import drive
    from steepest.runs.options.language import TRAINERS
    from steepest.runs.store.descriptions import kind_of_run

    found = kind_of_run(path)
    known = found is not None and (found.what == "agent" or found.algorithm in TRAINERS)  # else its file is damaged
    if verb != "train" and found is not None and known and verb not in (found.verb, f"{found.verb} {found.algorithm}"):
        raise UsageError(found.said(path))
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
    from steepest.runs.view.progress import counted

    def found(result: dict[str, Any]) -> str:
        lacking = f", {result['unfinished']} unfinished" if result.get("unfinished") else ""
        if not result["episodes"]:
            return f"no evaluation episode ended{lacking}"
        episodes = counted(result["episodes"], "evaluation episode")
        return f"return {result['mean']:.1f} ± {result['std']:.1f} over {episodes}{lacking}"

    from steepest.runs.options.varied import named_members

    named = named_members(summary["seeds"], summary.get("varied", {}))
    results = zip(named, summary["evaluation"], strict=False)
    lines = [f"{name}: {found(result)}, after {max(summary['steps']):,} steps" for name, result in results]
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
