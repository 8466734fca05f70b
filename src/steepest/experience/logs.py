"""Experience that somebody logged with the probabilities of its actions, cut into rollouts."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.errors import UsageError
from steepest.types import BARE_OBS, Rollout


class LoggedExperience(NamedTuple):
    """K steps in the order of time, one episode after the other: ``LoggedExperience(**np.load(path))``.

    Where an episode goes on, ``next_obs`` is the next row's ``obs``. Actions are as the policy drew them.
    """

    obs: NDArray[Any]  # (K, ...)
    action: NDArray[Any]  # (K,) or (K, D)
    reward: NDArray[Any]  # (K,) reward units
    next_obs: NDArray[Any]  # (K, ...)
    terminated: NDArray[np.bool_]  # (K,)
    truncated: NDArray[np.bool_]  # (K,)
    log_prob: NDArray[Any]  # (K,) nats, of the action under the policy that took it


def read_log(source: Any) -> LoggedExperience:
    """Return a log: as it is given, or from an .npz file of arrays with the names of its fields.

    Raises:    UsageError if the file cannot be read, or lacks a field
    Verified:  tests/unit/test_logged.py::test_a_file_that_is_no_log_is_refused
    """
    if isinstance(source, LoggedExperience):
        return source
    try:
        with np.load(Path(source), allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{source} cannot be read as a log, an .npz file of arrays: {error}") from error
    missing = [name for name in LoggedExperience._fields if name not in arrays]
    if missing:
        raise UsageError(f"{source} lacks {', '.join(missing)}; a log has {', '.join(LoggedExperience._fields)}")
    return LoggedExperience(**{name: arrays[name] for name in LoggedExperience._fields})


def logged_rollouts(data: LoggedExperience, num_envs: int, steps: int) -> Iterator[Rollout]:
    """The log as rollouts (1, T, N) of one member: N parts of it side by side, T steps at a time.

    What is left over at the end of a part, less than T steps, is not used.

    Raises:    UsageError where lengths differ, an episode's next_obs is not the next obs, log_prob is no number, or the
               log is too short for a single rollout
    Verified:  tests/unit/test_logged.py::test_rollouts_hold_what_was_logged
    """
    done = _checked(data)
    # Behind every end comes a row in which nothing is decided, as where an environment restarts.
    place = np.arange(len(done)) + np.concatenate([[0], np.cumsum(done)[:-1]])
    rows = len(done) + int(done.sum())
    length = rows // num_envs // steps * steps
    if length == 0:
        raise UsageError(
            f"the log has {len(done)} steps, too few for {num_envs} environments x {steps} rollout_steps; take fewer"
        )

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros((rows, *values.shape[1:]), dtype=values.dtype)
        out[place] = values
        return out

    obs, next_obs = _as_computed(data.obs), _as_computed(data.next_obs)
    obs = spread(obs)
    obs[place[done] + 1] = next_obs[done]
    obs = np.concatenate([obs, next_obs[-1:]])
    episode_step = _episode_steps(spread(np.ones(len(done), dtype=np.int64)))
    columns = {
        "action": spread(_as_computed(data.action)),
        "reward": spread(np.asarray(data.reward, dtype=np.float32)),
        "terminated": spread(np.asarray(data.terminated, dtype=np.bool_)),
        "truncated": spread(np.asarray(data.truncated, dtype=np.bool_)),
        "valid": spread(np.ones(len(done), dtype=np.bool_)),
        "behaviour_log_prob": spread(np.asarray(data.log_prob, dtype=np.float32)),
    }
    first = length * np.arange(num_envs)
    for t in range(0, length, steps):
        decided = first + t + np.arange(steps)[:, None]
        looked = first + t + np.arange(steps + 1)[:, None]
        yield Rollout(
            obs={BARE_OBS: torch.from_numpy(obs[looked]).unsqueeze(0)},
            episode_step=torch.from_numpy(episode_step[looked]).unsqueeze(0),
            action_mask=None,
            memory=None,
            **{k: torch.from_numpy(x[decided]).unsqueeze(0) for k, x in columns.items()},
        )


def _as_computed(values: Any) -> NDArray[Any]:
    """Fractions in float32, as networks take them (simulators write float64); whole numbers in int64, but bytes."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(np.int64) if values.dtype.kind in "bi" else values


def _episode_steps(decided: NDArray[np.int64]) -> NDArray[np.int64]:
    """(L+1,) actions taken since the episode began; the row after an undecided one begins the next episode."""
    steps = np.zeros(len(decided) + 1, dtype=np.int64)
    for i, counts in enumerate(decided):
        steps[i + 1] = steps[i] + 1 if counts else 0
    return steps


def _checked(data: LoggedExperience) -> NDArray[np.bool_]:
    """Check a log; return where its episodes end."""
    lengths = {name: len(values) for name, values in zip(data._fields, data, strict=True)}
    if len(set(lengths.values())) != 1 or lengths["obs"] == 0:
        raise UsageError(f"the parts of a log must have the same length, at least 1; they have {lengths}")
    if not np.isfinite(np.asarray(data.log_prob)).all():
        raise UsageError("log_prob has entries that are not finite; every logged action needs its log-probability")
    done = np.asarray(data.terminated, dtype=np.bool_) | np.asarray(data.truncated, dtype=np.bool_)
    jumps = (np.asarray(data.next_obs[:-1]) != np.asarray(data.obs[1:])).reshape(len(done) - 1, -1).any(1) & ~done[:-1]
    if jumps.any():
        row = int(np.flatnonzero(jumps)[0])
        raise UsageError(
            f"next_obs of row {row} of the log is not obs of row {row + 1}, though no episode ends there; a log holds "
            "whole stretches in the order of time, with truncated set where a recording stops"
        )
    return done
