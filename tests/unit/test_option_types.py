"""Editors and type checkers know the options of every algorithm: ``api/option_types/`` is what the configs say.

Run as a script (``make options``), this file writes those modules anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import steepest
from steepest.algorithms import ALGORITHMS, find_config
from steepest.networks.config import NetworkConfig
from steepest.runs.options.config import RunConfig, SharedConfig
from steepest.runs.options.language import TRAINERS, LanguageRunConfig, find_trainer_config

FOLDER = Path(__file__).resolve().parents[2] / "src" / "steepest" / "api" / "option_types"
RLHF = ("ppo", "rloo", "grpo")
ELSEWHERE = {"RunConfig": ("seeds",), "RLHFConfig": ("reward",)}
"""Fields that are arguments of their own of what takes the options."""

HEAD = '''"""The options of {what}, for editors and type checkers.

Written from the configs by `make options`; tests/unit/test_option_types.py fails where it is not current. What an
option means stands in its config, and in the help of the command.
"""

# fmt: off
# ruff: noqa: {marks}

from __future__ import annotations
'''

AGENTS = """from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, overload

from steepest.api.option_types.shared import SharedOptions

if TYPE_CHECKING:
    import os

    from steepest.agents.agent import Agent
    from steepest.environments.config import AtariOptions
    from steepest.networks.config import NetworkFactory

class TrainArguments(TypedDict, total=False):
    out: str | os.PathLike[str] | None
    network: NetworkFactory | None
    agent: Agent | None
    eval_env: Any
    env_kwargs: dict[str, Any] | None
    data: Any
    reward: Any
    quiet: bool
"""

LANGUAGE = """from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, overload

from steepest.api.option_types.shared import SharedOptions

if TYPE_CHECKING:
    import os

    from steepest.language.models.language_model import LanguageModel

class LanguageArguments(TypedDict, total=False):
    eval_data: Any
    out: str | os.PathLike[str] | None
    quiet: bool
"""


def options_name(config: type[Any]) -> str:
    return config.__name__.removesuffix("Config") + "Options"


def spelled(hint: Any) -> str:
    """A type as source text, as wide as what an option accepts."""
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(spelled(part) for part in get_args(hint))
    if hint is type(None):
        return "None"
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(json.dumps, get_args(hint)))}]"
    if get_origin(hint) is tuple:
        item = spelled(get_args(hint)[0])
        return f"tuple[{item}, ...] | list[{item}]"
    return f"{hint.__name__} | Mapping[str, Any]" if dataclasses.is_dataclass(hint) else hint.__name__


def families(run: type[Any], leaves: dict[type[Any], tuple[str, ...]]) -> dict[type[Any], tuple[str, ...]]:
    """Configs, each after those that it extends, with what else its options extend; ``leaves``: those of algorithms."""
    found: dict[type[Any], tuple[str, ...]] = {}
    for leaf in (run, *leaves):
        for kind in reversed(leaf.__mro__):
            if dataclasses.is_dataclass(kind) and kind not in found and kind is not SharedConfig:
                inherits = any(base in leaves for base in kind.__bases__)
                found[kind] = () if inherits else leaves.get(kind, ())
    return found


def typed_dict(config: type[Any], more: tuple[str, ...] = ()) -> str:
    """The options that a config adds to those that it extends, as source text."""
    bases = [base for base in config.__bases__ if dataclasses.is_dataclass(base)]
    known = {name: hint for base in bases for name, hint in get_type_hints(base).items()}
    extends = [*map(options_name, bases), *more] or ["TypedDict"]
    lines = [f"class {options_name(config)}({', '.join(extends)}, total=False):"]
    for field in dataclasses.fields(config):
        hint = get_type_hints(config)[field.name]
        assert known.get(field.name, hint) == hint, f"{config.__name__} changes the type of {field.name}"
        if field.name not in known and field.name not in ELSEWHERE.get(config.__name__, ()):
            lines.append(f"    {field.name}: {spelled(hint)}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "    pass"]) + "\n"


def protocol(name: str, about: str, calls: list[str]) -> str:
    """A function that is called in several ways, as source text."""
    lines = [f"class {name}(Protocol):", f'    """{about}"""']
    for call in calls:
        lines += ["    @overload", f"    def __call__(self, {call}: ..."]
    return "\n".join(lines) + "\n"


def written() -> dict[str, str]:
    """The modules as they should be, by name."""
    leaves = {find_config(name): ("TrainArguments", "RunOptions") for name in ALGORITHMS}
    agents = [AGENTS, *(typed_dict(config, more) for config, more in families(RunConfig, leaves).items())]
    agents.append(
        f"class AnyOptions({options_name(NetworkConfig)}, TrainArguments, RunOptions, total=False):\n    pass\n"
    )
    kinds = [(f"Literal[{json.dumps(name)}]", options_name(find_config(name))) for name in sorted(ALGORITHMS)]
    kinds.append(("str", "AnyOptions"))
    about = "an algorithm by its name has its own options, any other text those that all algorithms share."
    for name, function, more, result in (
        ("Train", "train", "", "Agent"),
        ("TrainSeeds", "train_seeds", "*, seeds: int, ", "list[Agent]"),
    ):
        calls = [f"algorithm: {a}, env: Any, {more}**options: Unpack[{o}]) -> {result}" for a, o in kinds]
        agents.append(protocol(name, f"``steepest.{function}``: {about}", calls))

    trainers = {
        find_trainer_config(n): ("LanguageArguments",) * (n in RLHF) + ("LanguageRunOptions",) for n in TRAINERS
    }
    language = [LANGUAGE, *(typed_dict(config, more) for config, more in families(LanguageRunConfig, trainers).items())]
    start = "model: LanguageModel | str | os.PathLike[str], data: Any, reward: Any, *"
    calls = [
        f"{start}, algorithm: Literal[{json.dumps(name)}]{' = ...' if name == 'ppo' else ''}, "
        f"**options: Unpack[{options_name(find_trainer_config(name))}]) -> LanguageModel"
        for name in RLHF
    ]
    language.append(protocol("RLHF", "``steepest.rlhf``: each of its algorithms has its own options.", calls))

    shared = ["from typing import TypedDict\n\n", typed_dict(SharedConfig)]
    parts = {"shared": ("every run", shared), "agents": ("agents", agents), "language": ("language models", language)}
    return {name: module(what, "\n".join(text)) for name, (what, text) in parts.items()}


def module(what: str, text: str) -> str:
    """The source of a module, with the marks for the linter that it needs."""
    long = any(len(line) > 120 for line in text.splitlines())
    return "\n".join([HEAD.format(what=what, marks="D101, E501" if long else "D101"), text])


@pytest.mark.parametrize("name", ["shared", "agents", "language"])
def test_the_written_types_are_current(name: str) -> None:
    assert (FOLDER / f"{name}.py").read_text() == written()[name], "run: make options"


def test_every_option_is_typed() -> None:
    from steepest.api.option_types import agents, language

    kinds = [(agents, find_config(name), RunConfig) for name in ALGORITHMS]
    kinds += [(language, find_trainer_config(name), LanguageRunConfig) for name in TRAINERS]
    arguments = {"out", "network", "agent", "eval_env", "env_kwargs", "data", "reward", "quiet", "eval_data"}
    for module, config, run in kinds:
        fields = {f.name for kind in (config, run) for f in dataclasses.fields(kind)} - {"seeds", "reward"}
        typed = set(getattr(module, options_name(config)).__annotations__)
        assert fields <= typed, config
        assert typed - fields <= arguments, config


def test_the_functions_stay_functions() -> None:
    """Help and inspection see the documented function, not the type that checkers see."""
    for function in (steepest.train, steepest.train_seeds, steepest.rlhf):
        assert inspect.isfunction(function)
        assert function.__doc__
        assert "options" in inspect.signature(function).parameters


if __name__ == "__main__":
    for name, text in written().items():
        (FOLDER / f"{name}.py").write_text(text)
    sys.stdout.write(f"wrote {FOLDER}\n")
