"""Minari datasets: read and written through Minari's own storage, one episode after the other.

Where both flags of a step are true it terminated, as in Gymnasium. ``log_prob`` and ``drawn`` are infos; the
environment is Minari's env_spec, and the reference returns are its ref_min_score and ref_max_score. Images are stored
as they are, never as JPEG, which would change them; those of a dataset that Minari stored so come as they were decoded.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from steepest.environments.names import find_spec
from steepest.environments.spaces import action_spec, obs_spec
from steepest.errors import SteepestError, UsageError
from steepest.experience.datasets.dataset import (
    Allocate,
    Dataset,
    RecordedEpisode,
    Reference,
    Rows,
    in_memory,
)
from steepest.experience.datasets.folders import described_by, description_of
from steepest.experience.datasets.packages import package
from steepest.experience.datasets.places import data_folder
from steepest.experience.datasets.spaces import spaces_of
from steepest.files.atomic import atomic_place

ROOT_VARIABLE = "MINARI_DATASETS_PATH"
KEY = "steepest"
"""Of Minari's metadata: our description, which knows what an EnvSpec cannot say."""


def root() -> Path:
    """Return the folder in which Minari keeps its datasets."""
    return Path(os.environ.get(ROOT_VARIABLE) or Path.home() / ".minari" / "datasets")


def local_folder(name: str) -> Path:
    """Return the folder of a dataset by its id.

    Raises:    UsageError if it is not there
    """
    folder = root() / name
    if not name or data_folder(folder) is None:
        raise UsageError(
            f"there is no Minari dataset {name!r} in {root()}; `minari list local` shows those that are there, and "
            "`minari download ID` fetches one from Minari's hub"
        )
    return folder


def check_free(name: str) -> None:
    """Raise UsageError unless a dataset can be written under this id: well formed, not taken, and Minari installed."""
    _minari(f"minari:{name}")
    ids = package("minari.dataset.minari_dataset", f"minari:{name}")
    match = ids.DATASET_ID_RE.fullmatch(name)
    if match is None or match.group("version") is None:
        raise UsageError(f"{name!r} is no id of a Minari dataset; expected NAME-v0 or NAMESPACE/NAME-v0")
    if (root() / name).exists():
        raise UsageError(f"a Minari dataset {name} is in {root()} already; give another name or version")


def spaces_in(path: Path, source: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the spaces of observations and actions of the Minari dataset in a folder."""
    with _silent():
        storage = _open(path, source)
        return storage.observation_space, storage.action_space


def nbytes(path: Path, source: str) -> int:
    """Return about how many bytes the Minari dataset in a folder takes in memory."""
    with _silent():
        storage = _open(path, source)
        try:
            rows = int(storage.total_steps) + int(storage.total_episodes)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{source} cannot be read as a Minari dataset: {error!r}") from error
    leaves = [*_leaves(storage.observation_space), *_leaves(storage.action_space)]
    return rows * (8 + sum(_row_bytes(leaf) for leaf in leaves))


def read_minari(path: Path, source: str, *, allocate: Allocate = in_memory) -> Dataset:
    """Return the Minari dataset in a folder.

    Raises:    UsageError where it is damaged, of spaces that no policy here takes, or Minari is not installed
    Verified:  tests/unit/test_datasets.py::test_minari_semantics,
               tests/unit/test_datasets.py::test_every_layout_gives_back_what_was_written
    """
    with _silent():
        storage = _open(path, source)
        try:
            obs_spec(storage.observation_space)
            action_spec(storage.action_space)
            metadata = storage.metadata
            steps = [int(e["total_steps"]) for e in storage.get_episode_metadata(range(storage.total_episodes))]
            rows = Rows(sum(steps) + len(steps), source, allocate)
            for number, found in enumerate(storage.get_episodes(range(storage.total_episodes))):
                rows.append(_episode(found, storage.observation_space, f"{source}: episode {number:,}"))
        except SteepestError:
            raise
        except Exception as error:  # whatever a damaged file makes h5py or Minari raise
            raise UsageError(f"{source} cannot be read as a Minari dataset: {type(error).__name__}: {error}") from error
        both = (storage.observation_space, storage.action_space)
        return rows.dataset(spaces=both, **_described(metadata, source))


def write_minari(dataset: Dataset, name: str) -> Path:
    """Write a dataset under an id of Minari's, wholly or not at all; return its folder.

    Raises:    UsageError where its spaces are not known, the id is taken or malformed, or Minari is not installed;
               RunError where the system refuses
    """
    check_free(name)
    minari = _minari(f"minari:{name}")
    known = spaces_of(dataset)
    if known is None:
        raise UsageError(
            f"{dataset.source} does not say of which spaces it is, which a Minari dataset does: give it env, the id of "
            "its environment"
        )
    place = root() / name
    # Minari writes below a root of its own here, so that an interrupted dataset is never one.
    with atomic_place(place) as temporary, _silent(), _scratch_root(temporary.parent / "scratch") as scratch:
        made = minari.create_dataset_from_buffers(
            name,
            _buffers(dataset, known[0]),
            env=_Named(_env_spec(dataset)) if dataset.env is not None else None,
            observation_space=known[0],
            action_space=known[1],
            algorithm_name="steepest",
            jpeg_encoding=False,
        )
        more: dict[str, Any] = {KEY: description_of(dataset)}
        if dataset.reference is not None:
            more |= {"ref_min_score": dataset.reference.random, "ref_max_score": dataset.reference.expert}
        made.storage.update_metadata(more)
        (scratch / name).rename(temporary)
    namespace = name.rpartition("/")[0]
    if namespace:
        with _silent():
            names = package("minari.namespace", f"minari:{name}")
            if namespace not in names.list_local_namespaces():
                names.create_namespace(namespace)
    return place


@contextmanager
def _scratch_root(folder: Path) -> Generator[Path]:
    """Let Minari keep its datasets in another folder for a while."""
    before = os.environ.get(ROOT_VARIABLE)
    folder.mkdir()
    try:
        os.environ[ROOT_VARIABLE] = str(folder)
        yield folder
    finally:
        if before is None:
            os.environ.pop(ROOT_VARIABLE, None)
        else:
            os.environ[ROOT_VARIABLE] = before


class _Named(gym.Env[Any, Any]):
    """Stands for an environment of which Minari needs the spec alone."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec


@contextmanager
def _silent() -> Generator[None]:
    """Keep Minari from warning about everything that a dataset could say of itself and does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _minari(what: str) -> Any:
    package("h5py", what)
    return package("minari", what)


def _open(path: Path, source: str) -> Any:
    _minari(source)
    storage = package("minari.dataset.minari_storage", source).MinariStorage
    try:
        return storage.read(data_folder(path))
    except Exception as error:  # assertions, missing keys, whatever the metadata lacks
        raise UsageError(f"{source} cannot be read as a Minari dataset: {type(error).__name__}: {error}") from error


def _episode(found: Mapping[str, Any], space: gym.Space[Any], who: str) -> RecordedEpisode:
    ended = {name: np.asarray(found[name], np.bool_) for name in ("terminations", "truncations")}
    for name, flags in ended.items():
        if flags[:-1].any():
            raise UsageError(f"{who} has {name} set at step {int(flags.argmax()):,} of {len(flags):,}, before its end")
        if len(flags) != len(found["rewards"]):
            raise UsageError(f"{who} has {len(flags):,} {name} and {len(found['rewards']):,} rewards; expected as many")
    infos = found.get("infos") or {}
    more = {name: np.asarray(infos[name]) for name in ("log_prob", "drawn") if name in infos}
    return RecordedEpisode(
        _named(space, found["observations"]),
        np.asarray(found["actions"]),
        np.asarray(found["rewards"]),
        bool(ended["terminations"][-1:].any()),
        bool(ended["truncations"][-1:].any()),
        **more,
    )


def _named(space: gym.Space[Any], obs: Any) -> Any:
    """Return an observation as a dataset has it: a Tuple's parts are named by their numbers."""
    if isinstance(space, spaces.Tuple):
        return {str(i): _named(part, x) for i, (part, x) in enumerate(zip(space.spaces, obs, strict=True))}
    if isinstance(space, spaces.Dict):
        return {key: _named(part, obs[key]) for key, part in space.spaces.items()}
    return np.asarray(obs)


def _as_space(space: gym.Space[Any], obs: Any) -> Any:
    """Return an observation nested as the space is; the inverse of ``_named``."""
    if isinstance(space, spaces.Tuple):
        return tuple(_as_space(part, obs[str(i)]) for i, part in enumerate(space.spaces))
    if isinstance(space, spaces.Dict):
        return {key: _as_space(part, obs[key]) for key, part in space.spaces.items()}
    return obs


def _buffers(dataset: Dataset, space: gym.Space[Any]) -> Iterator[Any]:
    """Yield Minari's buffers of the episodes, whose arrays are views of the dataset's."""
    buffer = package("minari.data_collector", dataset.source).EpisodeBuffer
    for episode in dataset.episodes():
        steps = len(episode.reward)
        last = np.arange(steps) == steps - 1
        infos = {name: x for name in ("log_prob", "drawn") if (x := getattr(episode, name)) is not None}
        yield buffer(
            observations=_as_space(space, episode.obs),
            actions=episode.action,
            rewards=episode.reward,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
            infos=infos,
        )


def _env_spec(dataset: Dataset) -> EnvSpec:
    spec = copy.deepcopy(find_spec(cast(str, dataset.env)))
    spec.kwargs.update(dataset.env_kwargs or {})
    if dataset.max_episode_steps is not None:
        spec.max_episode_steps = dataset.max_episode_steps
    return spec


def _described(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    described = described_by(metadata[KEY], source) if KEY in metadata else _by_spec(metadata, source)
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None:
        described["reference"] = Reference(float(low), float(high))
    return described


def _by_spec(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    text = metadata.get("env_spec")
    if text is None:
        return {}
    try:
        spec = EnvSpec.from_json(text)
    except Exception as error:  # specs of environments and wrappers that are not there
        raise UsageError(f"{source}: its env_spec cannot be read: {type(error).__name__}: {error}") from error
    return {"env": spec.id, "env_kwargs": dict(spec.kwargs) or None, "max_episode_steps": spec.max_episode_steps}


def _leaves(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _row_bytes(space: gym.Space[Any]) -> int:
    if space.shape is None or space.dtype is None:
        raise UsageError(f"the space {space} has no arrays; expected Box, Discrete, MultiDiscrete or MultiBinary")
    return int(np.prod(space.shape)) * space.dtype.itemsize
