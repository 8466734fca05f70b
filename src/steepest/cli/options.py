"""Read the options of the command: dataclasses from flags and from YAML files; and print what any verb prints.

An option is a field of a dataclass: its type says which values it takes, its docstring is its help. The command reads
them with nothing but the standard library, so that ``--help`` and whatever is wrong with an argument come at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from steepest.errors import UsageError, brief
from steepest.files.reading import Unusable, parse_json, parse_yaml, read_text, refuse_halves, refuse_repeated
from steepest.files.terminal import escaped

MODEL = "MODEL is a Hugging Face id, a folder, a GGUF file, or the folder of a run."
"""The help of whatever takes a language model."""

REQUIRED = dataclasses.MISSING
"""The default of an option that has none."""

_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"

_FLAG = re.compile(r"(--?[A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
"""A flag, perhaps with its value; -1 is a number, and what holds a space is a text."""


class Option(NamedTuple):
    """One option of the command."""

    name: str
    """The field; of a part of a config with a dot, as in atari.frame_skip."""
    kind: Any
    """Type of its values, without None."""
    default: Any
    general: Any
    """The default of the field itself, which a preset may have changed."""
    words: str
    """Its documentation."""

    @property
    def flag(self) -> str:
        """The option as it is written on a command line."""
        return as_flag(self.name)


def as_flag(name: str) -> str:
    """Return the flag of a field."""
    return f"--{name.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class Usage:
    """How a verb is called: ``prog words [options]``, with so many words."""

    prog: str
    words: str = ""
    about: str = ""
    """The meaning of the words."""
    least: int = 0
    most: int | None = 0


# Flags


def options_of(kind: type[Any], defaults: Any = None, prefix: str = "") -> list[Option]:
    """The options that a dataclass declares, with the defaults of an instance of it where there is one.

    A part that is a dataclass itself gives its own fields as options; where its default is None it has none, such as
    the preprocessing of Atari games in any other environment.
    """
    from steepest.cli.help import documented

    hints, words = get_type_hints(kind), documented(kind)
    found: list[Option] = []
    for field in dataclasses.fields(kind):
        default = field.default if defaults is None else getattr(defaults, field.name)
        hint = _without_none(hints[field.name])
        if not dataclasses.is_dataclass(hint):
            found.append(Option(prefix + field.name, hint, default, field.default, words.get(field.name, "")))
        elif default is not None:
            found += options_of(cast(type[Any], hint), default, f"{prefix}{field.name}.")
    return found


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(hint) else hint


def parse(kind: type[Any], argv: Sequence[str], usage: Usage) -> tuple[Any, list[str]]:
    """Return the options of a dataclass and the words beside them, from a command line.

    Raises:    UsageError for an unknown flag, a value that is missing or wrong, and too few or too many words;
               SystemExit(0) after --help
    Verified:  tests/unit/test_options.py::test_flags_are_read
    """
    options = options_of(kind)
    if asks_for_help(argv):
        from steepest.cli.help import show

        show(usage, kind.__doc__ or "", {"": options})
        raise SystemExit(0)
    given, words = read_flags(options, argv, usage.prog)
    check_words(words, usage)
    return filled(kind, None, given, usage.prog), words


def asks_for_help(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return bool({"-h", "--help"} & set(argv))


def read_flags(options: Sequence[Option], argv: Sequence[str], prog: str) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the flags in a command line, by name, and the words that belong to none."""
    by_name = {option.name: option for option in options}
    given: dict[str, Any] = {}
    words: list[str] = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        match = _FLAG.fullmatch(argument)
        if match is None:
            words.append(argument)
            continue
        option, negated = _named(by_name, match[1], prog)
        texts = [] if match[2] is None else [match[2]]
        least, most = (0, 1) if option.kind is bool else _values(option.kind)
        while waiting and len(texts) < most and not _FLAG.fullmatch(waiting[0]) and match[2] is None:
            if option.kind is bool and waiting[0].lower() not in _TRUTH:
                break
            texts.append(waiting.pop(0))
        if len(texts) < least:
            raise UsageError(f"{option.flag} needs {'a value' if least == 1 else f'{least} values'}")
        if option.kind is bool:
            said = _TRUTH.get(texts[0].lower(), texts[0]) if texts else True
            given[option.name] = not said if negated and isinstance(said, bool) else said
        elif get_origin(option.kind) is tuple:
            given[option.name] = tuple(_value(text, get_args(option.kind)[0]) for text in texts)
        else:
            given[option.name] = _value(texts[0], option.kind)
    return given, words


_TRUTH = {"true": True, "false": False}


def _named(by_name: dict[str, Option], flag: str, prog: str) -> tuple[Option, bool]:
    """The option that a flag sets, and whether it says no to it."""
    name = flag.lstrip("-").replace("-", "_")
    if name in by_name and flag.startswith("--"):
        return by_name[name], False
    group, dot, last = name.rpartition(".")  # --atari.no-fire-reset
    positive = by_name.get(f"{group}{dot}{last.removeprefix('no_')}")
    if positive is not None and positive.kind is bool and flag.startswith("--"):
        return positive, True
    from steepest.runs.options.config import unknown_option

    raise UsageError(f"{unknown_option(name, list(by_name), prog, as_flag)} ({prog} --help lists all)")


def _values(kind: Any) -> tuple[int, int]:
    """How many values an option of a type takes, at least and at most."""
    if get_origin(kind) is not tuple:
        return 1, 1
    parts = get_args(kind)
    return (0, sys.maxsize) if parts[-1] is Ellipsis else (len(parts), len(parts))


def _value(text: str, kind: Any) -> Any:
    """A text as a value of a type; one that is none is left for the check of the fields to refuse."""
    if kind in (int, float):
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                continue
    return Path(text) if kind is Path and text != "none" else text


def check_words(words: Sequence[str], usage: Usage) -> None:
    """Raise UsageError where a verb is given too few or too many words."""
    example = f"{usage.prog} {usage.words}".strip()
    if len(words) < usage.least:
        raise UsageError(f"{usage.prog} needs {usage.words}: {example}. {usage.about}".rstrip())
    if usage.most is not None and len(words) > usage.most:
        takes = f"takes {usage.words}" if usage.words else "takes no arguments but options"
        raise UsageError(f"{' '.join(words[usage.most :])} is too much: {usage.prog} {takes}")


def filled(kind: type[Any], defaults: Any, given: dict[str, Any], prog: str) -> Any:
    """A dataclass with what is given over the defaults; UsageError for what its fields do not accept."""
    from steepest.fields import checked_options

    values: dict[str, Any] = {} if defaults is None else fields_of(defaults)
    for name, value in given.items():
        part, dot, inner = name.partition(".")
        values[part] = {**_by_name(values[part]), inner: value} if dot else value
    for field in dataclasses.fields(kind):
        if field.default is REQUIRED and field.name not in values:
            raise UsageError(f"{prog} needs {as_flag(field.name)} (see {prog} --help)")
    return kind(**checked_options(kind, values))


def _by_name(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else fields_of(part)


def pop_flag(argv: list[str], flag: str) -> str | None:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of the arguments; "" where help is asked for instead of a value.

    Raises:    UsageError where another flag, or nothing, stands in the place of the value
    Verified:  tests/unit/test_options.py::test_a_flag_is_no_value_of_another
    """
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name != flag:
            continue
        del argv[i]
        if not equals and i < len(argv) and not _FLAG.fullmatch(argv[i]):
            value = argv.pop(i)
        if not value and not asks_for_help(argv):
            raise UsageError(f"{flag} needs a value")
        return value
    return None


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


# Files


def read_config(path: Path) -> dict[str, Any]:
    """Options from a YAML file of them, or from the config.json of a run.

    Raises:    UsageError that names the file and the place
    Verified:  tests/integration/test_bad_input.py::test_the_command_says_what_is_wrong
    """
    try:
        text = read_text(path)
        data = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
        refuse_halves(data)
    except FileNotFoundError as error:
        raise UsageError(f"there is no config file {path}") from error
    except Unusable as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UsageError(f"{path} cannot be read as {kind}: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__}; expected options by name, such as 'seed: 1'")
    options = cast(dict[str, Any], data)
    if isinstance(options.get("run"), dict) and isinstance(options.get("config"), dict):
        arguments = {k: v for k, v in options.items() if k == "env_kwargs" and v is not None}
        options = {**options["run"], **options["config"], **arguments}
    # They are the environment's, whose names and lists stay as they are.
    kept = {k: v for k, v in options.items() if str(k).replace("-", "_") == "env_kwargs"}
    others = {k: v for k, v in options.items() if k not in kept}
    try:
        return {**_yaml_value(others), **{k.replace("-", "_"): _as_meant(v) for k, v in kept.items()}}
    except Unusable as error:
        raise UsageError(f"{path}: {error}") from error


def as_pairs(arguments: Any, file: str) -> tuple[str, ...]:
    """Arguments by name in a file as a user types them, KEY=VALUE each; ``read_pairs`` reads them."""
    if not isinstance(arguments, dict):
        raise UsageError(f"{file}: env_kwargs is {brief(arguments)}; expected arguments by name, such as 'gravity: 5'")
    given = cast(dict[Any, Any], arguments)
    for key in given:
        if not (isinstance(key, str) and key.isidentifier()):
            raise UsageError(f"{file}: env_kwargs has {brief(key)}; expected names of arguments, such as 'gravity: 5'")
    return tuple(f"{key}={json.dumps(value)}" for key, value in given.items())


def read_pairs(pairs: Sequence[str], flag: str = "--env-kwargs") -> dict[str, Any]:
    """Arguments by name from KEY=VALUE each, where VALUE is YAML: a number, true, [1, 2], or text.

    Raises:    UsageError where one is no such pair
    Verified:  tests/unit/test_pairs.py::test_pairs_are_read_as_typed
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{flag} has {pair!r}; expected KEY=VALUE, such as gravity=5")
        if key in found:
            raise UsageError(f"{flag} has {key} twice")
        try:
            found[key] = _as_meant(parse_yaml(text)) if text.strip() else text
        except Unusable:  # no YAML: text as it stands
            found[key] = text
    return found


def _as_meant(value: Any) -> Any:
    """What YAML has read with its dates as text, and numbers such as 3e-4 as numbers."""
    if isinstance(value, dict):
        return {str(k): _as_meant(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return [_as_meant(v) for v in cast(list[Any], value)]
    if isinstance(value, str) and re.fullmatch(rf"[+-]?{_DECIMAL}[eE][+-]?[0-9]+", value):
        return float(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _yaml_value(value: Any) -> Any:
    """Names with underscores, tuples, and numbers: YAML 1.1 reads 3e-4 as text, since it has no decimal point."""
    if isinstance(value, dict):
        made: dict[str, Any] = {}
        for key, part in cast(dict[Any, Any], value).items():
            name = str(key).replace("-", "_")
            if name in made:  # batch-size beside batch_size
                refuse_repeated(name)
            made[name] = _yaml_value(part)
        return made
    if isinstance(value, list):
        return tuple(_yaml_value(v) for v in cast(list[Any], value))
    if isinstance(value, str) and re.fullmatch(rf"[+-]?{_DECIMAL}[eE][+-]?[0-9]+", value):
        return float(value)
    return value


# Output


def draw_without_screen() -> None:
    """Keep pygame from complaining of a missing screen, where there is none."""
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def say(text: str) -> None:
    """Print a line for the user beside the results."""
    print(escaped(text), file=sys.stderr)


def print_line(text: str) -> None:
    """Print a line of results."""
    print(printable(text))


def printable(text: str) -> str:
    """Return text for standard output: on a terminal, characters that would command it are escaped."""
    return escaped(text) if sys.stdout.isatty() else text
