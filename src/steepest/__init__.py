"""Policy optimisation, from the policy-gradient theorem to DPO.

The names below load on first use, so that importing steepest costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steepest import estimators as estimators
    from steepest.agents.agent import Agent as Agent
    from steepest.api.agents import evaluate as evaluate
    from steepest.api.agents import load as load
    from steepest.api.agents import plot as plot
    from steepest.api.agents import resume as resume
    from steepest.api.agents import train as train
    from steepest.api.agents import train_seeds as train_seeds
    from steepest.api.datasets import collect as collect
    from steepest.api.datasets import collect_replay as collect_replay
    from steepest.api.datasets import dataset_summary as dataset_summary
    from steepest.api.language import compare as compare
    from steepest.api.language import dpo as dpo
    from steepest.api.language import respond as respond
    from steepest.api.language import resume_language as resume_language
    from steepest.api.language import reward_model as reward_model
    from steepest.api.language import rlhf as rlhf
    from steepest.api.language import sft as sft
    from steepest.api.ope import ope as ope
    from steepest.api.selection import OnlineSelection as OnlineSelection
    from steepest.api.selection import select_online as select_online
    from steepest.environments import make_env as make_env
    from steepest.errors import RunError as RunError
    from steepest.errors import SteepestError as SteepestError
    from steepest.errors import UsageError as UsageError
    from steepest.experience.datasets.read import read_dataset as read_dataset
    from steepest.experience.datasets.read import write_dataset as write_dataset
    from steepest.runs.evaluate import Evaluation as Evaluation
    from steepest.runs.run import Run as Run
    from steepest.verification import verify as verify

__version__ = "0.1.0"

_HOME = {
    "Agent": "steepest.agents.agent",
    "evaluate": "steepest.api.agents",
    "load": "steepest.api.agents",
    "plot": "steepest.api.agents",
    "resume": "steepest.api.agents",
    "train": "steepest.api.agents",
    "train_seeds": "steepest.api.agents",
    "collect": "steepest.api.datasets",
    "collect_replay": "steepest.api.datasets",
    "dataset_summary": "steepest.api.datasets",
    "ope": "steepest.api.ope",
    "OnlineSelection": "steepest.api.selection",
    "select_online": "steepest.api.selection",
    "Sweep": "steepest.scale.sweep",
    "sweep": "steepest.scale.sweep",
    "read_dataset": "steepest.experience.datasets.read",
    "write_dataset": "steepest.experience.datasets.read",
    "make_env": "steepest.environments",
    "RunError": "steepest.errors",
    "SteepestError": "steepest.errors",
    "UsageError": "steepest.errors",
    "compare": "steepest.api.language",
    "dpo": "steepest.api.language",
    "respond": "steepest.api.language",
    "resume_language": "steepest.api.language",
    "reward_model": "steepest.api.language",
    "rlhf": "steepest.api.language",
    "sft": "steepest.api.language",
    "Evaluation": "steepest.runs.evaluate",
    "Run": "steepest.runs.run",
    "verify": "steepest.verification",
}

__all__ = [
    "Agent",
    "Evaluation",
    "OnlineSelection",
    "Run",
    "RunError",
    "SteepestError",
    "UsageError",
    "collect",
    "collect_replay",
    "compare",
    "dataset_summary",
    "dpo",
    "estimators",
    "evaluate",
    "load",
    "make_env",
    "ope",
    "plot",
    "read_dataset",
    "respond",
    "resume",
    "resume_language",
    "reward_model",
    "rlhf",
    "select_online",
    "sft",
    "train",
    "train_seeds",
    "verify",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "estimators":  # a module of its own: steepest.estimators.compare
        return importlib.import_module("steepest.estimators")
    if name not in _HOME:
        raise AttributeError(f"module 'steepest' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "estimators", "__version__"])
