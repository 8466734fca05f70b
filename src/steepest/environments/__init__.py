"""Environments: any Gymnasium or EnvPool environment as a batch with one autoreset convention.

The names below load on first use: options and names of environments are checked without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest.environments.batch import EnvBatch as EnvBatch
    from steepest.environments.batch import StepResult as StepResult
    from steepest.environments.config import AtariOptions as AtariOptions
    from steepest.environments.config import Vectorization as Vectorization
    from steepest.environments.envpool import available_cores as available_cores
    from steepest.environments.errors import EnvFailure as EnvFailure
    from steepest.environments.errors import MissingExtra as MissingExtra
    from steepest.environments.errors import UnknownEnvironment as UnknownEnvironment
    from steepest.environments.errors import UnsupportedSpaceError as UnsupportedSpaceError
    from steepest.environments.finite import FINITE_ENVIRONMENTS as FINITE_ENVIRONMENTS
    from steepest.environments.finite import FiniteEnv as FiniteEnv
    from steepest.environments.finite import FiniteVectorEnv as FiniteVectorEnv
    from steepest.environments.make import make_env as make_env
    from steepest.environments.names import find_spec as find_spec
    from steepest.environments.names import is_atari as is_atari
    from steepest.environments.pendulum import PendulumThreeTorquesEnv as PendulumThreeTorquesEnv
    from steepest.environments.pendulum import PendulumThreeTorquesVectorEnv as PendulumThreeTorquesVectorEnv
    from steepest.environments.spaces import check_squash as check_squash
    from steepest.environments.spaces import to_env_action as to_env_action

_HOME = {
    "FINITE_ENVIRONMENTS": "finite",
    "AtariOptions": "config",
    "EnvBatch": "batch",
    "EnvFailure": "errors",
    "FiniteEnv": "finite",
    "FiniteVectorEnv": "finite",
    "MissingExtra": "errors",
    "PendulumThreeTorquesEnv": "pendulum",
    "PendulumThreeTorquesVectorEnv": "pendulum",
    "StepResult": "batch",
    "UnknownEnvironment": "errors",
    "UnsupportedSpaceError": "errors",
    "Vectorization": "config",
    "available_cores": "envpool",
    "check_squash": "spaces",
    "find_spec": "names",
    "is_atari": "names",
    "make_env": "make",
    "to_env_action": "spaces",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steepest.environments' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steepest.environments.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
