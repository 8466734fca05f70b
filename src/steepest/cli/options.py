"""Read the options of the command: dataclasses from flags and from YAML files; and print what any verb prints."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated, Any, cast

from steepest.errors import UsageError
from steepest.files.terminal import escaped


def pop_flag(argv: list[str], flag: str) -> str | None:
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


def parse(kind: type[Any], argv: list[str], prog: str) -> Any:
    """Options of a dataclass (or a dataclass of them) from the command line; exits with 2 on misuse."""
    import tyro

    # Of ``AtariOptions | None`` the default's type is taken: its options are there for Atari games only.
    return tyro.cli(tyro.conf.configure(tyro.conf.AvoidSubcommands)(kind), args=_as_typed(argv), prog=prog)


def unprefixed(kind: type[Any]) -> Any:
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


def with_positional(kind: type[Any], name: str, value: Any, metavar: str, what: str) -> type[Any]:
    """A dataclass of options with a positional argument before them."""
    import tyro

    positional = Annotated[value, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help=what)]
    made = dataclasses.make_dataclass(kind.__name__, [(name, positional)], bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as they are."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def read_config(path: Path) -> dict[str, Any]:
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


def say(text: str) -> None:
    """Print a line for the user beside the results."""
    print(escaped(text), file=sys.stderr)


def print_line(text: str) -> None:
    """Print a line of results."""
    print(printable(text))


def printable(text: str) -> str:
    """Return text for standard output: on a terminal, characters that would command it are escaped."""
    return escaped(text) if sys.stdout.isatty() else text
