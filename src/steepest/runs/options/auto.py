"""Decisions before a run starts: its options, and everything that was left to ``auto``."""

from __future__ import annotations

import dataclasses
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from steepest.agents.agent import Agent
from steepest.algorithms import find
from steepest.errors import RunError, UsageError
from steepest.fields import checked_options
from steepest.networks.config import NetworkConfig
from steepest.runs.evaluate import GIVEN_UP_AFTER
from steepest.runs.options.config import RunConfig
from steepest.runs.store.descriptions import DescribedAgents, refuse_other_kind
from steepest.runs.store.folder import RunDirectory

EPISODES_PER_CHECKPOINT = 4
"""By default every environment can play this many episodes of full length between two checkpoints."""

GRADIENT_SECONDS_SAVED = 0.7e-3
ACTING_SECONDS_SAVED = 0.1e-3
COMPILE_SECONDS = 25.0
"""Measured for 64-64 networks on two cores (docs/speed.md): a gradient step on 64 rows takes 0.8 to 1.0 ms eagerly and
0.12 compiled, and PPO compiles in 25 to 30 s, unless the libraries are cached. Only the order of magnitude matters."""


def resolve_settings(
    settings: RunConfig,
    agent_class: type[Agent],
    config: NetworkConfig,
    env: Any,
    note: Callable[[str], None],
    *,
    plays: bool = True,
) -> RunConfig:
    """Decide everything that is left to ``auto``, once: the decisions are saved and a resumed run repeats them.

    ``plays``: steps are of environments; else they are gradient steps on data.
    """
    images = any(f.kind == "image" for f in env.obs_spec.fields)
    device = settings.device
    if device == "auto":
        device = "cuda" if images and torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    if plays and getattr(config, "asynchronous", False) and not env.asynchronous:
        note(
            f"asynchronous: nothing is gained, since {env.backend} environments take their steps in this process; "
            'vectorization "async" puts each into a process of its own'
        )
    rows, gradient_steps = agent_class.planned_work(config, settings.total_steps, settings.num_envs)
    gradient_steps = gradient_steps if plays else settings.total_steps
    threads = settings.threads
    if threads is None:
        # Below a few hundred rows a step is bound by its calls, and a second thread only costs synchronisation.
        threads = torch.get_num_threads() if images or rows * settings.seeds >= 512 else 1
    choice = settings.compile
    if choice == "auto":
        acting = settings.total_steps / settings.num_envs if plays else 0.0
        saved = settings.seeds * (gradient_steps * GRADIENT_SECONDS_SAVED + acting * ACTING_SECONDS_SAVED)
        slow = images and device == "cpu"
        choice = "on" if saved > COMPILE_SECONDS and not slow else "off"
        if slow:
            why = "convolutions take most of the time, and compiling does not speed them up on a CPU"
        else:
            why = (
                f"compiling the updates takes about {COMPILE_SECONDS:.0f} s and would save about {saved:.0f} s "
                f"of this run (the option compile overrules this)"
            )
        note(f"compile: {choice}, since {why}")
    if choice == "on" and device == "cpu" and not has_compiler():
        note(
            "compile: off, since no C++ compiler with Python's headers was found (Debian: apt install g++ python3-dev)"
        )
        choice = "off"
    # Restarts at checkpoints cut episodes short, so there must be room for several whole ones in between.
    tenth = max(1, settings.total_steps // 10)
    # A replay buffer keeps what is written between two checkpoints beside its own rows.
    buffer_size = getattr(config, "buffer_size", None)
    written = tenth if buffer_size is None else min(tenth, max(1, buffer_size // 10))
    episodes = EPISODES_PER_CHECKPOINT * settings.num_envs * _time_limit(env.name, settings) if plays else 0
    written = written if plays else tenth
    return dataclasses.replace(
        settings,
        device=device,
        threads=threads,
        compile=choice,
        eval_episode_steps=settings.eval_episode_steps or max(GIVEN_UP_AFTER, _time_limit(env.name, settings)),
        eval_every=tenth if settings.eval_every is None else settings.eval_every,
        checkpoint_every=max(written, episodes) if settings.checkpoint_every is None else settings.checkpoint_every,
    )


def _time_limit(env_name: str, settings: RunConfig) -> int:
    """Steps after which an episode is truncated, or 1000 where nobody says."""
    registered = gym.registry.get(env_name)
    return settings.max_episode_steps or (registered and registered.max_episode_steps) or 1000


def has_compiler() -> bool:
    """Return whether PyTorch's compiler finds what it needs on a CPU: a C++ compiler, and Python's headers."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.is_file() and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def read_description(directory: RunDirectory) -> dict[str, Any]:
    """The config.json of a run of agents, its options checked.

    Raises:    RunError if it is not what this version writes; UsageError for a run of a language model
    Verified:  tests/integration/test_damaged_runs.py::test_what_a_config_must_hold_is_checked_at_the_door
    """
    path = directory.config_path
    refuse_other_kind(directory.path, "agent")
    saved = directory.read_json("config.json", DescribedAgents)
    try:
        kinds = RunConfig, find(saved["algorithm"]).Config
        known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
        unknown = [k for k in (*saved["run"], *saved["config"]) if k not in known]
        if unknown:
            raise RunError(f"{path} has options that this version does not know: {', '.join(unknown)}")
        for kind, options in zip(kinds, (saved["run"], saved["config"]), strict=True):
            kind(**checked_options(kind, options))
    except UsageError as error:
        raise RunError(f"{path}: {error}") from error
    return saved
