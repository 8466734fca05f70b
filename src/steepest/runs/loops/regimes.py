"""The loop of an agent's data regime, and what every one of them checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from steepest.agents.agent import Agent
from steepest.agents.replay_updates import ReplayAgent
from steepest.errors import NonFiniteError, RunError, UsageError
from steepest.experience.datasets.read import read_dataset
from steepest.experience.logs import read_log
from steepest.experience.rollout import Environments
from steepest.learner.trees import all_finite
from steepest.preferences.learned import LearnedReward
from steepest.preferences.people import People
from steepest.preferences.rewards import from_json
from steepest.runs.loops.logs import LogLoop
from steepest.runs.loops.loop import Loop
from steepest.runs.loops.off_policy import OffPolicyLoop
from steepest.runs.loops.offline import OfflineLoop
from steepest.runs.loops.on_policy import OnPolicyLoop
from steepest.runs.loops.training import IN_MEMORY
from steepest.runs.options.config import RunConfig
from steepest.runs.store.folder import RunDirectory


def loop_of(agent: Agent, env: Environments, settings: RunConfig, data: Any, learned: LearnedReward | None) -> Loop:
    """Return the loop that trains an agent: from data alone, from a log, from play and a replay buffer, or on-policy.

    Verified:  tests/integration/test_offline_runs.py::test_learns_from_a_dataset
    """
    alone = data is not None and settings.data_share is None  # nothing is played
    if isinstance(agent, ReplayAgent):
        if alone:
            return OfflineLoop(read_dataset(data), agent)
        return OffPolicyLoop(env, agent, settings, None if data is None else read_dataset(data))
    return LogLoop(read_log(data), agent) if alone else OnPolicyLoop(env, agent, learned)


def restored_reward(
    directory: RunDirectory, saved: dict[str, Any], given: dict[str, Any], note: Callable[[str], None]
) -> Any:
    """Return the reward of a run that resumes: what was given again, or what its folder holds.

    Raises:    UsageError where it is in neither, or the run has none; RunError where the folder's cannot be read
    Verified:  tests/integration/test_learned_reward_runs.py::test_what_was_given_in_python_is_given_again,
               tests/integration/test_live_labels.py::test_what_was_answered_is_not_asked_again
    """
    reward = given.get("reward", saved.get("reward"))
    if reward is not None and saved.get("reward") is None:
        raise UsageError(
            f"reward is given to resume {directory.path}, which learns from its environment's: leave it out"
        )
    if isinstance(reward, str) and reward == IN_MEMORY:
        raise UsageError(f"{directory.path} learns from labels asked for in Python; pass them again: reward=...")
    if not isinstance(reward, dict):
        return reward
    try:
        live = from_json(cast(dict[str, Any], reward))
    except UsageError as error:
        raise RunError(f"{directory.config_path}: {error}") from error
    place = Path(cast(People, live.labeller).project)
    if not place.exists():
        note(f"{place} is gone; what was answered since the last checkpoint is asked again, into a new project")
    return live


def check_json(env_kwargs: dict[str, Any]) -> None:
    """Raise UsageError for arguments of an environment that a run's folder cannot describe."""
    try:
        json.dumps(env_kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"env_kwargs cannot be saved with the run: {error}. Pass a factory of environments instead, such "
            "as lambda: gym.make(...)"
        ) from error


def check_finite(agent: Agent, health: dict[str, Any], step: int) -> None:
    """Raise NonFiniteError where a figure of the last iteration, or what the agent learns, is no finite number."""
    # Where all targets are equal no share of their variance is explained: that is no number, and no failure.
    bad = [k for k, v in health.items() if k != "explained_variance" and not np.isfinite(v).all()]
    # A user's own buffers may hold infinities, such as a mask to add to logits.
    own = {k: v for k, v in agent.state.items() if not k.startswith("buffers/") and v.is_floating_point()}
    bad += [k for k, v in own.items() if not all_finite(v)]
    if bad:
        raise NonFiniteError(
            f"training stopped at step {step}: {', '.join(bad)} became non-finite. A smaller learning_rate, "
            "or normalize_obs and normalize_reward, usually help."
        )
