"""Between the arrays that agents see and observations as an environment gave them; and the spaces of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from steepest.environments import EnvBatch, make_env
from steepest.environments.batch import MASK
from steepest.experience.datasets.dataset import Array, Dataset, RawObs
from steepest.types import BARE_OBS


def spaces_of(dataset: Dataset) -> tuple[Space[Any], Space[Any]] | None:
    """Return the spaces of observations and actions: the dataset's own, or those of its environment; None without.

    Raises:    UsageError where the environment cannot be made
    """
    if dataset.spaces is not None or dataset.env is None:
        return dataset.spaces
    env = make_env(dataset.env, 1, env_kwargs=dataset.env_kwargs, max_episode_steps=dataset.max_episode_steps)
    try:
        return recorded_spaces(env)
    finally:
        env.close()


def recorded_spaces(env: EnvBatch) -> tuple[Space[Any], Space[Any]]:
    """Return the spaces of what is recorded of environments: an action mask is no observation."""
    space = env.observation_space
    if isinstance(space, spaces.Dict) and all(f.name != MASK for f in env.obs_spec.fields):
        space = spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK})
    return space, env.action_space


def as_given(space: Space[Any], named: Mapping[str, Array]) -> RawObs:
    """Return observations as the space has them, from the named arrays that agents see.

    Discrete values count from the space's start again, images have its axes, and all its type.

    Verified:  tests/unit/test_datasets.py::test_observations_are_given_back_as_the_space_has_them
    """
    return _given(space, named, "")


def _given(space: Space[Any], named: Mapping[str, Array], name: str) -> RawObs:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {str(key): _given(part, named, f"{name}/{key}" if name else str(key)) for key, part in inner}
    array = named[name or BARE_OBS]
    shape, dtype = tuple(space.shape or ()), space.dtype
    if array.shape[1:] != shape and len(shape) == 2:  # one channel
        array = array[:, 0]
    elif array.shape[1:] != shape and len(shape) == 3:  # channels first
        array = array.transpose(0, 2, 3, 1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        array = array + np.asarray(space.start, array.dtype)
    return np.ascontiguousarray(array, dtype)
