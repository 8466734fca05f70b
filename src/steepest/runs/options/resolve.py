"""Options of a run over the preset of its environment, split into settings and config; checked without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gymnasium.vector import VectorEnv

from steepest.algorithms import find_config
from steepest.environments.names import is_atari
from steepest.errors import UsageError
from steepest.fields import checked_options
from steepest.networks.config import NetworkConfig
from steepest.runs.options.config import RunConfig, refuse_unknown
from steepest.runs.options.presets import preset


def resolve_options(
    algorithm: str, env: Any, options: dict[str, Any], base: NetworkConfig | None = None
) -> tuple[RunConfig, NetworkConfig]:
    """Split options into run settings and algorithm config, over the preset of the environment's family.

    Fields of ``atari`` given by name change the preset's; an ``AtariOptions`` replaces them all. Only the id of an
    Atari game has any by default: a game made in Python is preprocessed there.
    """
    kind = find_config(algorithm)
    run_fields = [f.name for f in dataclasses.fields(RunConfig)]
    config_fields = [f.name for f in dataclasses.fields(kind)]
    refuse_unknown(options, run_fields + config_fields, algorithm)
    tuned = preset(algorithm, name_of(env))
    preprocessing = tuned.pop("atari", {}) if is_atari(env) else None
    given = options.get("atari")
    if given is None:
        given = preprocessing
    elif isinstance(given, Mapping):
        given = {**(preprocessing or {}), **given}
    merged = {**tuned, **(dataclasses.asdict(base) if base else {}), **options, "atari": given}
    made = isinstance(env, VectorEnv)
    apart = merged.get("asynchronous") or merged.get("step_timeout") is not None
    if apart and merged.get("vectorization", "auto") == "auto" and not made:
        merged["vectorization"] = "async"  # only processes take steps while this one learns, and can be stopped
    settings = checked_options(RunConfig, {k: v for k, v in merged.items() if k in run_fields})
    try:
        config = kind(**checked_options(kind, {k: v for k, v in merged.items() if k in config_fields}))
    except UsageError as error:
        if base is None or isinstance(base, kind):
            raise
        other = type(base).__name__.removesuffix("Config")
        raise UsageError(
            f"{error}. It comes from the agent to start from, of {other}: give another, or an agent of {algorithm}"
        ) from error
    return RunConfig(**settings), config


def name_of(env: Any) -> str:
    """Return an environment's name: its id, or the name of what makes it."""
    if isinstance(env, str):
        return env
    spec_id = getattr(getattr(env, "spec", None), "id", None)  # a class has a property there
    if isinstance(spec_id, str):
        return spec_id
    return getattr(env, "__name__", type(env).__name__)
