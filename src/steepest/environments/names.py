"""Environments by name: what is registered under it, told without torch: a misspelled one must be told at once."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from steepest.environments import (
    atari,
    finite,  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers its environments, as does the next
    pendulum,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from steepest.environments.errors import MissingExtra, UnknownEnvironment

ENVPOOL_ATARI = "envpool.atari"
"""The package of EnvPool's Atari games in its registry."""


def find_spec(env_id: str) -> EnvSpec:
    """The registered spec of "Id-v0", "namespace/Id-v0" or "module:Id-v0".

    Raises: UnknownEnvironment with the nearest names; MissingExtra for ALE/... without ale-py.
    """
    module, _, name = env_id.rpartition(":")
    if module.endswith(".py") or "/" in module:
        stem = module.rpartition("/")[2].removesuffix(".py")
        raise UnknownEnvironment(
            f"The module of {env_id!r} is given as a file; expected its name, such as '{stem}:{name}', from the folder "
            "that it is in."
        )
    if module:
        try:
            _import_module(module)
        except ImportError as error:
            raise UnknownEnvironment(f"The module of {env_id!r} cannot be imported: {error}.") from error
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise UnknownEnvironment(f"The module of {env_id!r} cannot be imported: it raised {what}.") from error
    if name not in gym.registry:
        if name.startswith("ALE/"):
            atari.require_registered(name)
        else:
            atari.register()
    if name not in gym.registry:
        hint = 'Those of a package need its name, "package:Id-v0", those of EnvPool vectorization="envpool".'
        raise UnknownEnvironment(f"{_unknown(name, gym.registry)} {hint}")
    return gym.registry[name]


def _import_module(module: str) -> None:
    """Import a module that an id names. One that is found nowhere else may lie in the working folder.

    The folder comes last in the path, so that nothing in it stands in for what is installed. It stays there:
    environments may import from it when they are made, and their processes do.
    """
    try:
        importlib.import_module(module)
        return
    except ModuleNotFoundError as error:
        top, here = module.partition(".")[0], os.path.realpath(os.curdir)
        there = Path(here, f"{top}.py").is_file() or Path(here, top).is_dir()
        if error.name != top or not there or here in sys.path:
            raise
    sys.path.append(here)
    try:
        importlib.import_module(module)
    except BaseException:
        sys.path.remove(here)
        raise


def find_in_envpool(env_id: str) -> tuple[Any, ...]:
    """What EnvPool has registered under a name, its package first.

    Raises: UnknownEnvironment with the nearest names; MissingExtra without EnvPool.
    """
    specs = import_envpool().registration.registry.specs
    if env_id not in specs:
        raise UnknownEnvironment(f"EnvPool: {_unknown(env_id, specs)}")
    return specs[env_id]


def check_name(env: str, vectorization: str = "auto") -> None:
    """Raise UnknownEnvironment or MissingExtra where no environment has this name.

    Verified:  tests/integration/test_light.py::test_wrong_arguments_are_told_without_torch
    """
    if vectorization == "envpool":
        find_in_envpool(env)
    else:
        find_spec(env)


def is_atari(env: object) -> bool:
    """Return whether ``env`` is the id of an Atari game, in Gymnasium's registry or in EnvPool's."""
    if not isinstance(env, str):
        return False
    try:
        return find_spec(env).entry_point == atari.ENTRY_POINT
    except MissingExtra:  # only theirs can be missing
        return True
    except UnknownEnvironment:
        if importlib.util.find_spec("envpool") is None:
            return False
        specs = import_envpool().registration.registry.specs
        return env in specs and specs[env][0] == ENVPOOL_ATARI


def import_envpool() -> Any:
    """The ``envpool`` module. Raises: MissingExtra where it is not installed."""
    try:
        import envpool
    except ImportError as error:
        raise MissingExtra('EnvPool is not installed. Run: pip install "steepest[envpool]"') from error
    return envpool


def _unknown(name: str, known: Iterable[str]) -> str:
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), list(by_lower), n=5, cutoff=0.6)]
    hint = f"The nearest names are {', '.join(near)}." if near else "No name comes near it."
    return f"There is no environment {name!r}. {hint}"
