"""Settings of a run: what surrounds an algorithm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steepest.environments.config import AtariOptions, Vectorization
from steepest.errors import UsageError
from steepest.fields import Checked, Count, PartialShare, Positive, Threads, Whole
from steepest.runs.options.aliases import called_here


@dataclass(frozen=True, kw_only=True)
class SharedConfig(Checked):
    """Settings of a run that hold for agents and language models alike."""

    seed: Whole = 0
    """Seed of everything random in the run; with several seeds, of the first."""
    threads: Threads | None = None
    """CPU threads of PyTorch; by default 1 for small updates of agents, else all cores."""
    eval_every: Whole | None = None
    """Steps between evaluations (of the environment, or updates of a language model); by default a tenth of the run. 0
    evaluates only at the end."""
    checkpoint_every: Whole | None = None
    """Updates between checkpoints; by default a tenth of the run. 0 only checkpoints at the end."""
    keep_checkpoints: Count = 3
    """Newest checkpoints kept, besides the best one by evaluation."""
    tensorboard: bool = True
    """Write TensorBoard events into the run's folder."""
    wandb: bool = False
    """Log to Weights & Biases too."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(SharedConfig):
    """Settings of a run that no algorithm knows of."""

    total_steps: Count = 100_000
    """Environment steps to train for, per seed."""
    num_envs: Count = 8
    """Environments per seed, stepped together."""
    seeds: Count = 1
    """Train this many seeds (seed, seed + 1, ...) together, in one fused update."""
    vary: tuple[str, ...] = ()
    """Settings that differ between the seeds, still in one fused update: NAME=VALUE,VALUE,..., one for each seed, as
    learning_rate=1e-4,3e-4,1e-3 for three (default: all have the same)."""
    vectorization: Vectorization = "auto"
    """Way of stepping environments together; auto takes the environment's own vector version where there is one, else
    sync."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks; auto takes a GPU if there is one and the observations are images."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the update; auto does so where it saves more time than it takes."""
    stop_at_return: float | None = None
    """Stop as soon as an evaluation's mean return reaches this."""
    eval_episodes: Whole = 10
    """Episodes per evaluation and seed. 0 never evaluates."""
    eval_episode_steps: Count | None = None
    """Steps after which an evaluation gives up an episode that has not ended, and counts it as unfinished; by default
    30,000, or the environment's own limit if that is longer."""
    checkpoint_every: Whole | None = None
    """Environment steps between checkpoints; by default a tenth of the run, or of a replay buffer that is smaller, or
    time for four full episodes in every environment if that is longer. Environments restart at each (see
    docs/resuming.md), so very short intervals change what is learned. 0 only checkpoints at the end."""
    data_share: PartialShare | None = None
    """Play and learn from data together: share of every minibatch that is drawn from the data, usually 0.5; none learns
    from the data alone."""
    max_episode_steps: Count | None = None
    """Truncate episodes after this many steps, instead of where the environment says."""
    step_timeout: Positive | None = None
    """Seconds that one step or reset of an environment may take; longer is an error. Environments then have processes
    of their own (vectorization async), since a step in this process cannot be stopped (default: no limit)."""
    info_keys: tuple[str, ...] = ()
    """Numbers in the environment's infos to log: info/NAME_mean, their mean over steps, and info/NAME_last, the mean
    over episodes of what the last step gave, such as a rate of success (default: none)."""
    atari: AtariOptions | None = None
    """Preprocessing of Atari games, None for every other environment. Returns are whole games' own scores, whatever the
    agent is trained on."""


def refuse_unknown(given: Mapping[str, Any], known: list[str], what: str) -> None:
    """UsageError for an option that ``what`` does not have, with what it is called here, or the nearest ones."""
    for name in given:
        if name not in known:
            raise UsageError(unknown_option(name, known, what))


def unknown_option(name: str, known: list[str], what: str, spelled: Callable[[str], str] | None = None) -> str:
    """Say that ``what`` has no option of a name; ``spelled`` writes a known one as the user would.

    Verified:  tests/unit/test_options.py::test_names_of_other_libraries_are_explained
    """
    write = spelled or str
    said = f"{what} has no option {write(name) if spelled else repr(name)}"
    elsewhere = called_here(name, known)
    if elsewhere is not None:
        here, meaning = elsewhere
        return f"{said}; it is called {write(here)} here{f' ({meaning})' if meaning else ''}"
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"{said}; did you mean {' or '.join(map(write, near))}?" if near else said
