"""Everything that the command does, as one Python call each."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from steepest.agents.agent import Agent
from steepest.api.drive import drive
from steepest.api.option_types import seen_as
from steepest.api.option_types.agents import Train, TrainSeeds
from steepest.environments import EnvBatch
from steepest.errors import UsageError, as_path
from steepest.files.tensors import CheckpointError, load_metadata, load_tensors
from steepest.networks.config import NetworkFactory
from steepest.runs.evaluate import Evaluation, evaluate_members, make_evaluation_env
from steepest.runs.run import Run, class_of_run
from steepest.runs.store.agents import read_agent
from steepest.runs.store.checkpoints import CheckpointStore
from steepest.runs.store.descriptions import kind_of_run
from steepest.runs.store.folder import check_saved
from steepest.runs.view.plots import plot_runs
from steepest.seeding import stream_seed
from steepest.types import described

PathLike = str | os.PathLike[str]
Which = Literal["latest", "best", "interrupted"]


@seen_as(Train)
def train(
    algorithm: str,
    env: Any,
    *,
    out: PathLike | None = None,
    network: NetworkFactory | None = None,
    agent: Agent | None = None,
    eval_env: Any = None,
    env_kwargs: dict[str, Any] | None = None,
    data: Any = None,
    reward: Any = None,
    quiet: bool = True,
    **options: Any,
) -> Agent:
    """Train an agent and return it.

    Args:
        algorithm: its name, such as "ppo" or "sac"; ``steepest list`` shows them all.
        env: a Gymnasium or EnvPool id, a factory of environments, an environment, or a vector environment.
        out: folder for metrics, checkpoints and the learning curve; None writes nothing.
        network: a custom torso, ``ObsSpec -> nn.Module`` (see ``networks.config.NetworkFactory``).
        agent: train this one further.
        data: a dataset to learn from instead of playing, or with the option data_share beside it: what ``read_dataset``
            takes; env may then be None. For off_pac a log: ``LoggedExperience`` or an .npz file.
        reward: labels to learn the reward from, in the place of the environment's: the file of a preference project, or
            ``preferences.learned.LiveLabels``, which asks for them while the agent trains.
        quiet: whether to leave out the progress display.
        options: any field of ``RunConfig`` or of the algorithm's config: total_steps, seed, learning_rate, ...; see
            ``steepest train ALGORITHM --help``. Editors know them by the algorithm (``api.option_types``).
    Raises:
        UsageError for what cannot work; RunError for what failed, with the last good checkpoint named.
    """
    if options.get("seeds", 1) != 1:
        raise UsageError("train gives one agent; use train_seeds for several")
    return train_seeds(
        algorithm,
        env,
        seeds=1,
        out=out,
        network=network,
        agent=agent,
        eval_env=eval_env,
        env_kwargs=env_kwargs,
        data=data,
        reward=reward,
        quiet=quiet,
        **{k: v for k, v in options.items() if k != "seeds"},
    )[0]


@seen_as(TrainSeeds)
def train_seeds(
    algorithm: str,
    env: Any,
    *,
    seeds: int,
    out: PathLike | None = None,
    network: NetworkFactory | None = None,
    agent: Agent | None = None,
    eval_env: Any = None,
    env_kwargs: dict[str, Any] | None = None,
    data: Any = None,
    reward: Any = None,
    quiet: bool = True,
    **options: Any,
) -> list[Agent]:
    """Train several seeds together in one fused update and return their agents; arguments as for ``train``."""
    run = drive(
        lambda note: Run(
            algorithm,
            env,
            out=None if out is None else as_path(out, "out"),
            network=network,
            agent=agent,
            eval_env=eval_env,
            env_kwargs=env_kwargs,
            data=data,
            reward=reward,
            note=note,
            seeds=seeds,
            **options,
        ),
        quiet=quiet,
    )
    return [run.agent] if seeds == 1 else [run.agent.member(i, network) for i in range(seeds)]


def resume(
    path: PathLike,
    *,
    total_steps: int | None = None,
    env: Any = None,
    network: NetworkFactory | None = None,
    eval_env: Any = None,
    data: Any = None,
    reward: Any = None,
    quiet: bool = True,
) -> Agent:
    """Finish an interrupted run from its last checkpoint; to the same bits as if it had never stopped."""
    path = as_path(path, "the run")
    if class_of_run(path) is not Run:
        raise UsageError(f"{path} is a run of a language model; resume it with steepest.resume_language")
    run = drive(
        lambda note: Run.resume(
            path,
            total_steps=total_steps,
            env=env,
            network=network,
            eval_env=eval_env,
            data=data,
            reward=reward,
            note=note,
        ),
        quiet=quiet,
    )
    return run.agent


def saved_file(path: PathLike, which: Which = "latest") -> Path:
    """The file that holds an agent: the path itself, or the checkpoint that is meant in a run's folder.

    "latest" is whatever has seen the most steps: the newest checkpoint, or the agent saved by an interruption.
    """
    path = as_path(path, "the run")
    check_saved(path)
    if path.is_file():
        return path
    kind = kind_of_run(path)
    if kind is not None and kind.what == "model":
        raise UsageError(f"there is no agent in {path}. {kind.said(path)}")
    if kind is None and not (path / "checkpoints").is_dir():
        raise UsageError(
            f"there is no agent in {path}: its config.json is not that of a run. A language model is loaded by "
            "steepest.language.load_model"
        )
    store = CheckpointStore(path / "checkpoints")
    candidates: dict[Which, list[Path | None]] = {
        "latest": [store.latest(), store.interrupted_path],
        "best": [store.best_path],
        "interrupted": [store.interrupted_path],
    }
    found = [p for p in candidates[which] if p is not None and p.is_file()]
    if not found:
        why = {
            "latest": "it was stopped before its first checkpoint",
            "best": "it was stopped before its first evaluation",
            "interrupted": "it was never interrupted",
        }
        raise UsageError(f"{path} holds no {which} agent: {why[which]}")
    if len(found) == 1:
        return found[0]
    scheduled, interrupted = found
    try:
        newer = load_tensors(interrupted)[1]["step"] > load_metadata(scheduled)["step"]
    except (CheckpointError, KeyError, TypeError) as error:
        warnings.warn(f"{error} Taking {scheduled.name} instead.", RuntimeWarning, stacklevel=3)
        return scheduled
    return interrupted if newer else scheduled


def load(
    path: PathLike, *, which: Which = "latest", network: NetworkFactory | None = None, device: str = "cpu"
) -> Agent:
    """Load an agent from a run's folder, a checkpoint, or a file that ``Agent.save`` wrote.

    Args:      which: of a run's folder, the latest, the best by evaluation, or the interrupted one; network: the
               factory of a custom network, again
    Raises:    UsageError if there is nothing there; CheckpointError if it is damaged or foreign
    """
    return read_agent(saved_file(path, which), network=network, device=device)


def evaluate(
    source: Agent | PathLike,
    env: Any = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    which: Which = "latest",
    video: PathLike | None = None,
    network: NetworkFactory | None = None,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> list[Evaluation]:
    """Play whole episodes with frozen statistics; one Evaluation per member of the agent.

    Args:      source: an agent, or what ``load`` takes; env: by default the one it was trained on; video: an .mp4 file
               to record the first member's first environment into
    Raises:    UsageError where env is needed and missing, or a video cannot be made
    """
    agent = source if isinstance(source, Agent) else load(source, which=which, network=network)
    where = agent.trained_on if env is None else {"env": env}
    if where.get("env") is None:
        raise UsageError("on which environment? Pass env: this agent was trained on one that has no id")
    if episodes < 1:
        raise UsageError(f"episodes is {episodes}; expected at least 1")
    if seed < 0:
        raise UsageError(f"seed is {seed}; expected zero or more")
    batch = make_evaluation_env(
        where["env"],
        agent,
        episodes if video is None else 1,
        vectorization="auto" if video else where.get("vectorization", "auto"),
        env_kwargs=where.get("env_kwargs") if env_kwargs is None else env_kwargs,
        max_episode_steps=where.get("max_episode_steps") if max_episode_steps is None else max_episode_steps,
        atari=agent.trained_on.get("atari"),  # what it has learned to see, in every game
        render_mode=None if video is None else "rgb_array",
    )
    try:
        check_fit(agent, batch)
        play = partial(
            evaluate_members,
            agent,
            batch,
            episodes,
            seed=stream_seed(seed, "evaluation") % 2**31,
            deterministic=deterministic,
        )
        if video is None:
            return play()
        from steepest.runs.view.video import Recorder

        with Recorder(as_path(video, "video"), batch) as recorder:
            return play(on_step=recorder.frame)
    finally:
        batch.close()


def check_fit(agent: Agent, batch: EnvBatch) -> None:
    """Raise UsageError unless an agent's observations and actions are those of an environment."""
    # The number type is the backend's business: EnvPool takes float64 actions where Gymnasium takes float32.
    same_actions = dataclasses.replace(batch.action_spec, dtype=agent.action_spec.dtype) == agent.action_spec
    if batch.obs_spec != agent.obs_spec or not same_actions:
        raise UsageError(
            f"the agent does not fit {batch.name}: it was trained on observations {described(agent.obs_spec)} and "
            f"actions {described(agent.action_spec)}; this environment has observations "
            f"{described(batch.obs_spec)} and actions {described(batch.action_spec)}"
        )


def plot(runs: PathLike | Sequence[PathLike], out: PathLike = "curves.png", **options: Any) -> Path:
    """Draw the learning curves of one run or several into a picture; return its path.

    Args:      runs: the folder of a run, or several of them; options: see ``runs.view.plots.plot_runs``
    Verified:  tests/integration/test_api.py::test_plot_takes_one_run_or_several
    """
    folders = runs if isinstance(runs, list | tuple) else [runs]
    return plot_runs([as_path(run, "a run") for run in folders], as_path(out, "out"), **options)
