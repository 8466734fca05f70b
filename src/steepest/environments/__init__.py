"""Environments: any Gymnasium or EnvPool environment as a batch with one autoreset convention."""

from steepest.environments.atari import AtariOptions
from steepest.environments.batch import EnvBatch, StepResult
from steepest.environments.envpool import available_cores
from steepest.environments.errors import EnvFailure, MissingExtra, UnknownEnvironment, UnsupportedSpaceError
from steepest.environments.finite import FINITE_ENVIRONMENTS, FiniteEnv, FiniteVectorEnv
from steepest.environments.make import Vectorization, find_spec, is_atari, make_env
from steepest.environments.pendulum import PendulumThreeTorquesEnv, PendulumThreeTorquesVectorEnv
from steepest.environments.spaces import check_squash, to_env_action

__all__ = [
    "FINITE_ENVIRONMENTS",
    "AtariOptions",
    "EnvBatch",
    "EnvFailure",
    "FiniteEnv",
    "FiniteVectorEnv",
    "MissingExtra",
    "PendulumThreeTorquesEnv",
    "PendulumThreeTorquesVectorEnv",
    "StepResult",
    "UnknownEnvironment",
    "UnsupportedSpaceError",
    "Vectorization",
    "available_cores",
    "check_squash",
    "find_spec",
    "is_atari",
    "make_env",
    "to_env_action",
]
