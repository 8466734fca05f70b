"""Policy optimisation, from the policy-gradient theorem to DPO.

The names below load on first use, so that importing steepest costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest import estimators as estimators
    from steepest.agent import Agent as Agent
    from steepest.api import evaluate as evaluate
    from steepest.api import load as load
    from steepest.api import plot as plot
    from steepest.api import resume as resume
    from steepest.api import train as train
    from steepest.api import train_seeds as train_seeds
    from steepest.environments import make_env as make_env
    from steepest.errors import RunError as RunError
    from steepest.errors import SteepestError as SteepestError
    from steepest.errors import UsageError as UsageError
    from steepest.language_api import compare as compare
    from steepest.language_api import dpo as dpo
    from steepest.language_api import respond as respond
    from steepest.language_api import resume_language as resume_language
    from steepest.language_api import reward_model as reward_model
    from steepest.language_api import rlhf as rlhf
    from steepest.language_api import sft as sft
    from steepest.runs.evaluation import Evaluation as Evaluation
    from steepest.runs.run import Run as Run
    from steepest.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "Agent": "steepest.agent",
    "evaluate": "steepest.api",
    "load": "steepest.api",
    "plot": "steepest.api",
    "resume": "steepest.api",
    "train": "steepest.api",
    "train_seeds": "steepest.api",
    "make_env": "steepest.environments",
    "RunError": "steepest.errors",
    "SteepestError": "steepest.errors",
    "UsageError": "steepest.errors",
    "compare": "steepest.language_api",
    "dpo": "steepest.language_api",
    "respond": "steepest.language_api",
    "resume_language": "steepest.language_api",
    "reward_model": "steepest.language_api",
    "rlhf": "steepest.language_api",
    "sft": "steepest.language_api",
    "Evaluation": "steepest.runs.evaluation",
    "Run": "steepest.runs.run",
    "verify": "steepest.verification",
}

__all__ = [
    "Agent",
    "Evaluation",
    "Run",
    "RunError",
    "SteepestError",
    "UsageError",
    "compare",
    "dpo",
    "estimators",
    "evaluate",
    "load",
    "make_env",
    "plot",
    "respond",
    "resume",
    "resume_language",
    "reward_model",
    "rlhf",
    "sft",
    "train",
    "train_seeds",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "estimators":  # a module of its own: steepest.estimators.compare
        return importlib.import_module("steepest.estimators")
    if name not in _HOME:
        raise AttributeError(f"module 'steepest' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "estimators", "__version__"])
