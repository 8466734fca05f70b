"""The text of ``steepest VERB --help``: what a verb takes, in plain words and in groups."""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from steepest.cli.options import REQUIRED, Option, Usage

GROUPS: dict[str, tuple[str, ...]] = {
    "common": (
        *("total_steps", "epochs", "seed", "seeds", "num_envs", "learning_rate", "learning_rate_schedule"),
        *("critic_learning_rate", "policy_learning_rate", "value_learning_rate", "schedule", "warmup"),
        *("gamma", "gae_lambda", "rollout_steps", "minibatches", "batch_size", "micro_batch_size", "max_length"),
        *("buffer_size", "learning_starts", "train_every", "update_ratio", "hidden_sizes", "activation"),
        *("normalize_obs", "normalize_reward", "recurrent", "clip_epsilon", "entropy_coef", "target_kl", "max_kl"),
        *("temperature", "conservative_weight", "expectile", "policy_penalty", "critic_penalty", "best_fraction"),
        *("final_epsilon", "data", "data_share", "reward", "label_live", "kl_coef", "loss", "group_size"),
        *("max_new_tokens", "lora_rank", "dtype", "device", "vectorization"),
    ),
    "labels while training": (
        *("live.labels", "live.clip_steps", "live.host", "live.port", "live.labellers", "live.names"),
        *("live.certificate", "live.key"),
    ),
    "evaluation": (
        *(
            "eval_every",
            "eval_episodes",
            "eval_episode_steps",
            "stop_at_return",
            "render",
            "eval_data",
            "eval_fraction",
        ),
    ),
    "output": (
        *("out", "quiet", "show_batch", "checkpoint_every", "keep_checkpoints", "tensorboard", "wandb"),
        *("merge_adapters",),
    ),
}
"""Groups of the options of training, in the order of their help; every other option is an advanced one."""

_COLUMN = 30
"""Width of the column of flags."""


def grouped(options: Sequence[Option]) -> dict[str, list[Option]]:
    """The options of training by group, those that most people want first.

    Verified:  tests/unit/test_options.py::test_every_option_of_a_group_exists
    """
    by_name = {option.name: option for option in options}
    found = {group: [by_name.pop(n) for n in names if n in by_name] for group, names in GROUPS.items()}
    return {**found, "advanced": list(by_name.values())}


def show(usage: Usage, about: str, groups: Mapping[str, Sequence[Option]], more: str = "") -> None:
    """Print the help of a verb."""
    width = min(shutil.get_terminal_size().columns, 120)
    parts = [f"usage: {usage.prog} {usage.words + ' ' if usage.words else ''}[options]"]
    parts += [textwrap.fill(_plain(text), width) for text in (about, usage.about, more) if text]
    for group, options in groups.items():
        if options:
            parts.append("\n".join([f"{group or 'options'}:", *(_lines(option, width) for option in options)]))
    sys.stdout.write("\n\n".join(parts) + "\n")


def _lines(option: Option, width: int) -> str:
    flag = f"  {_written(option)}"
    unbroken = _default(option).replace(" ", "\xa0")  # which is no place to break a line at
    indent = " " * _COLUMN
    first = indent if len(flag) > _COLUMN - 2 else flag.ljust(_COLUMN)
    words = f"{_plain(option.words)} {unbroken}".strip()
    text = textwrap.fill(words, width, initial_indent=first, subsequent_indent=indent).replace("\xa0", " ")
    return text if first != indent else f"{flag}\n{text}"


def _written(option: Option) -> str:
    """The flag with what follows it: --seed N, --device auto|cpu|cuda, --[no-]tensorboard."""
    if option.kind is bool:
        group, dot, name = option.flag[2:].rpartition(".")
        return f"--{group}{dot}[no-]{name}" if option.default else option.flag
    if get_origin(option.kind) is tuple:
        parts = get_args(option.kind)
        shown = f"{_metavar(parts[0])} ..." if parts[-1] is Ellipsis else " ".join(map(_metavar, parts))
        return f"{option.flag} {shown}"
    return f"{option.flag} {_metavar(option.kind)}"


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _default(option: Option) -> str:
    """The default in brackets, unless there is none or the words say what happens by default."""
    if option.default is REQUIRED:
        return "(required)"
    if option.default != option.general:
        return f"(default here: {spoken(option.default)}, in general {spoken(option.general)})"
    told = (option.default is None or option.default == ()) and "default" in option.words
    return "" if told or option.default is False else f"(default: {spoken(option.default)})"


def spoken(value: Any) -> str:
    """A value as the command takes it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _plain(text: str) -> str:
    """Documentation without the marks of code."""
    return " ".join(text.replace("``", "").split())


# Documentation of fields


def documented(kind: type[Any]) -> dict[str, str]:
    """The documentation of a dataclass's fields: the string below a field, its own or that of a class it extends.

    Verified:  tests/unit/test_options.py::test_fields_are_documented
    """
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        found |= _by_class(owner.__module__).get(owner.__qualname__, {})
    return found


@cache
def _by_class(module: str) -> dict[str, dict[str, str]]:
    """The documentation of fields in a module's source, by class."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                field.target.id: text.value.value
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }  # fmt: skip
    return found
