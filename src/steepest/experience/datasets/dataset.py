"""A dataset: recorded episodes, one after another, checked as they come in.

Rows are those of ``types.Rollout``: an episode of T steps takes T + 1 rows. The last one holds the observation that
followed the last step, and has ``valid`` False, since nothing was decided there. So no observation is stored twice, the
end of a process and the end of a recording stay apart, and the true next observation is always known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from steepest.errors import UsageError
from steepest.types import BARE_OBS

Array = NDArray[Any]
RawObs = Array | Mapping[str, Any]
"""An array (R, ...), or a mapping of them, nested as the space is; a Tuple's parts are named "0", "1", ..."""

LARGEST = np.finfo(np.float32).max
"""What agents learn from is in float32."""

CHUNK_BYTES = 2**26
"""An array that may be larger than memory is read in pieces of this size."""

OBS = f"{BARE_OBS}/"
"""What the names of the arrays of a nested observation begin with."""


class RecordedEpisode(NamedTuple):
    """One episode of T steps, as the environment gave and took it."""

    obs: RawObs  # (T+1, ...)
    action: Array  # (T, ...)
    reward: Array  # (T,)
    terminated: bool
    truncated: bool
    log_prob: Array | None = None  # (T,) nats, of ``drawn`` under the policy that took it
    drawn: Array | None = None  # (T, ...) the action as that policy drew it, before clipping or squashing


class Reference(NamedTuple):
    """Mean returns that normalised scores are measured by: 0 at the random policy's, 100 at the expert's."""

    random: float
    expert: float

    def score(self, returns: Any) -> Any:
        """Return 100 (R - random) / (expert - random).

        Source:    Fu et al. 2020 (D4RL), section 4.
        Verified:  tests/unit/test_datasets.py::test_normalised_scores
        """
        return 100.0 * (returns - self.random) / (self.expert - self.random)


def checked_reference(random: float, expert: float) -> Reference:
    """Return reference returns; UsageError unless the expert's exceeds that of the random policy."""
    if not (math.isfinite(random) and math.isfinite(expert) and expert > random):
        raise UsageError(
            f"the reference returns are {random:g} of the random policy and {expert:g} of the expert; expected two "
            "finite numbers, of which the expert's is the higher"
        )
    return Reference(float(random), float(expert))


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Episodes in rows; make one with ``from_episodes`` or ``read.read_dataset``.

    Args:      obs (R, ...): an array or a mapping, nested as the space is; action (R, ...) as the environment took it;
               reward (R,); terminated, truncated, valid (R,) bool; log_prob (R,) nats and drawn (R, ...), see
               ``RecordedEpisode``, or None where they are not known; env: id of the environment, env_kwargs and
               max_episode_steps where it is not the registered one, or None; spaces: of observations and actions, where
               they are known; reference: see ``Reference``; source: for messages
    Raises:    UsageError naming the array and the row of anything that is missing, of another length, not a finite
               number, or contradicts itself
    Verified:  tests/unit/test_datasets.py::test_what_contradicts_itself_is_refused
    """

    obs: RawObs
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    valid: Array
    log_prob: Array | None = None
    drawn: Array | None = None
    env: str | None = None
    env_kwargs: dict[str, Any] | None = None
    max_episode_steps: int | None = None
    spaces: tuple[Space[Any], Space[Any]] | None = None
    reference: Reference | None = None
    source: str = "the dataset"

    def __post_init__(self) -> None:
        rows = len(self.valid)
        observed = {name if name == BARE_OBS else f"obs/{name}": x for name, x in parts(self.obs)}
        steps = ("action", "reward", "terminated", "truncated", "log_prob", "drawn")
        arrays = observed | {name: x for name in steps if (x := getattr(self, name)) is not None}
        for name, array in arrays.items():
            if array.ndim == 0 or len(array) != rows:
                held = f"{len(array):,} rows" if array.ndim else "a single value"
                raise UsageError(f"{self.source}: {name} has {held}; expected {rows:,} rows, as many as the others")
        for name in ("reward", "log_prob"):
            if name in arrays and arrays[name].ndim != 1:
                shape = tuple(arrays[name].shape)
                raise UsageError(f"{self.source}: {name} has the shape {shape}; expected one number a row, {(rows,)}")
        for name in ("terminated", "truncated", "valid"):
            flags = getattr(self, name)
            if flags.dtype != np.bool_ or flags.ndim != 1:
                held = f"{flags.dtype} of shape {flags.shape}"
                raise UsageError(f"{self.source}: {name} holds {held}; expected one truth value a row")
        if not self.valid.any():
            raise UsageError(f"{self.source} has no step to learn from")
        for name, array in arrays.items():
            self._check_finite(name, array, None if name in observed else self.valid)
        self._check_ends()
        if self.reference is not None:
            checked_reference(*self.reference)

    def _check_finite(self, name: str, array: Array, where: Array | None) -> None:
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{self.source}: {name} holds {array.dtype}; expected numbers")
        if array.dtype.kind != "f":
            return
        for piece in pieces(array):
            chunk = array[piece]
            bad = ~(np.abs(chunk) <= LARGEST).reshape(len(chunk), -1).all(1)  # of NaN too
            if where is not None:
                bad &= where[piece]
            if bad.any():
                row = piece.start + int(bad.argmax())
                why = "more than float32 holds" if np.isfinite(array[row]).all() else "not a finite number"
                raise UsageError(f"{self.source}: {name} is {why} in row {row:,}: {array[row]}")

    def _check_ends(self) -> None:
        both = self.terminated & self.truncated
        if both.any():
            raise UsageError(
                f"{self.source}: row {int(both.argmax()):,} is both terminated and truncated; an episode ends by one"
            )
        ends = self.terminated | self.truncated
        if (ends & ~self.valid).any():
            row = int((ends & ~self.valid).argmax())
            raise UsageError(f"{self.source}: row {row:,} ends an episode, but nothing was decided there")
        # The row after an end, and no other, holds a final observation.
        expected = np.concatenate([[False], ends[:-1]])
        wrong = expected != ~self.valid
        if wrong.any() or self.valid[-1]:
            row = int(wrong.argmax()) if wrong.any() else len(ends) - 1
            what = "follows the end of an episode and decides" if expected[row] else "belongs to no whole episode"
            raise UsageError(
                f"{self.source}: row {row:,} {what}; every episode ends with terminated or truncated, and one row "
                "more with its final observation"
            )

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.valid.sum())

    @property
    def bounds(self) -> tuple[Array, Array]:
        """The first row of every episode, and the row of its final observation, (E,) each."""
        last = np.flatnonzero(~self.valid)
        return np.concatenate([[0], last[:-1] + 1]), last

    @property
    def lengths(self) -> Array:
        """Steps of every episode, (E,)."""
        first, last = self.bounds
        return last - first

    @property
    def returns(self) -> Array:
        """Undiscounted return of every episode, (E,) reward units."""
        first, _ = self.bounds
        return np.add.reduceat(np.where(self.valid, self.reward, 0.0).astype(np.float64), first)

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yield the episodes one after another; their arrays are views of these."""
        for first, last in zip(*self.bounds, strict=True):
            steps = slice(first, last)
            yield RecordedEpisode(
                _part(self.obs, slice(first, last + 1)),
                self.action[steps],
                self.reward[steps],
                bool(self.terminated[last - 1]),
                bool(self.truncated[last - 1]),
                None if self.log_prob is None else self.log_prob[steps],
                None if self.drawn is None else self.drawn[steps],
            )

    def returns_to_go(self, gamma: float) -> Array:
        """Discounted sum of the rewards from every row to the end of its episode, (R,) reward units.

        Equation:  G_t = r_t + gamma G_{t+1}, 0 after the last recorded step; where only the recording ended, what would
                   have followed is missing
        Verified:  tests/unit/test_datasets.py::test_returns_to_go_against_a_loop
        """
        reward = np.where(self.valid, self.reward, 0.0).tolist()
        going = self.valid.tolist()
        out, following = [0.0] * len(reward), 0.0
        for t in range(len(reward) - 1, -1, -1):
            following = reward[t] + gamma * following if going[t] else 0.0
            out[t] = following
        return np.array(out)


def pieces(array: Any) -> Iterator[slice]:
    """Yield slices of an array, in memory or in a file, that together are all its rows, none above ``CHUNK_BYTES``."""
    row = int(np.prod(array.shape[1:])) * array.dtype.itemsize
    step = max(1, CHUNK_BYTES // max(1, row))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def parts(obs: RawObs, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an observation under their names, "outer/inner" where they are nested."""
    if not isinstance(obs, Mapping):
        yield name or BARE_OBS, obs
        return
    for key, part in obs.items():
        yield from parts(part, f"{name}/{key}" if name else str(key))


def nested(named: Mapping[str, Array]) -> dict[str, Any]:
    """Return the mapping whose ``parts`` are these."""
    out: dict[str, Any] = {}
    for name, array in named.items():
        *outer, key = name.split("/")
        inner = out
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[key] = array
    return out


def _part(obs: RawObs, rows: slice) -> RawObs:
    return {k: _part(x, rows) for k, x in obs.items()} if isinstance(obs, Mapping) else obs[rows]


Allocate = Callable[[str, tuple[int, ...], np.dtype[Any]], Array]
"""(name, shape, dtype) -> an array of zeros, in memory or in a file; names are those of ``Rows.arrays``."""

FLAGS = ("terminated", "truncated", "valid")


def in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Allocate an array in memory."""
    del name
    return np.zeros(shape, dtype)


class Rows:
    """A number of rows known beforehand, filled by one episode after another."""

    def __init__(self, rows: int, source: str, allocate: Allocate = in_memory) -> None:
        self.rows = rows
        self.source = source
        self.allocate = allocate
        self.written = self.episodes = 0
        self.arrays: dict[str, Array] = {}

    def append(self, episode: RecordedEpisode) -> None:
        """Put an episode behind the last one.

        Raises:    UsageError for an episode without a step, with arrays of other lengths, shapes or names than those
                   before, or that neither terminated nor was truncated
        """
        given = _given(episode)
        steps = _checked_steps(episode, given, f"{self.source}: episode {self.episodes:,}")
        if not self.arrays:
            for name, array in given.items():
                self.arrays[name] = self.allocate(name, (self.rows, *array.shape[1:]), _stored(name, array))
            for name in FLAGS:
                self.arrays[name] = self.allocate(name, (self.rows,), np.dtype(np.bool_))
        begin, end = self.written, self.written + steps
        if end + 1 > self.rows:
            raise UsageError(f"{self.source} has more than the {self.rows:,} rows that it says it has")
        for name in ("log_prob", "drawn"):
            if name not in given:  # known of every step or of none
                self.arrays.pop(name, None)
        for name, array in given.items():
            if name in self.arrays or name not in ("log_prob", "drawn"):
                self._put(name, array, begin)
        missing = self.arrays.keys() - given.keys() - set(FLAGS)
        if missing:
            raise UsageError(f"{self.source}: episode {self.episodes:,} lacks {', '.join(sorted(missing))}")
        self.arrays["valid"][begin:end] = True
        self.arrays["terminated"][end - 1] = episode.terminated
        self.arrays["truncated"][end - 1] = episode.truncated and not episode.terminated
        self.written, self.episodes = end + 1, self.episodes + 1

    def _put(self, name: str, array: Array, begin: int) -> None:
        if name not in self.arrays:
            raise UsageError(f"{self.source}: episode {self.episodes:,} has {name}, which those before it lack")
        rows = self.arrays[name]
        if array.shape[1:] != rows.shape[1:]:
            raise UsageError(
                f"{self.source}: episode {self.episodes:,} has {name} of shape {array.shape[1:]}; those before it have "
                f"{rows.shape[1:]}"
            )
        if not np.can_cast(array.dtype, rows.dtype, "same_kind"):
            raise UsageError(
                f"{self.source}: episode {self.episodes:,} has {name} of {array.dtype}; those before it have "
                f"{rows.dtype}"
            )
        with np.errstate(over="ignore"):  # what these rows cannot hold becomes infinite, and is refused as such
            rows[begin : begin + len(array)] = array

    def dataset(self, **described: Any) -> Dataset:
        """Return what was put in, as a dataset; ``described``: see ``from_episodes``."""
        if not self.episodes:
            raise UsageError(f"{self.source} has no episode")
        if self.written != self.rows:
            raise UsageError(f"{self.source} has {self.written:,} rows; it says that it has {self.rows:,}")
        return as_dataset(self.arrays, source=self.source, **described)


def as_dataset(arrays: Mapping[str, Array], **described: Any) -> Dataset:
    """Return the dataset of arrays with the names that ``Rows`` gives them."""
    fields = {k.removeprefix(OBS): x for k, x in arrays.items() if k.startswith(OBS)}
    others = {k: x for k, x in arrays.items() if k != BARE_OBS and not k.startswith(OBS)}
    return Dataset(obs=arrays[BARE_OBS] if BARE_OBS in arrays else nested(fields), **others, **described)


def named_obs(obs: RawObs) -> dict[str, Array]:
    """Return the arrays of an observation by name: "obs", or "obs/outer/inner" where it is a mapping."""
    return {f"{OBS}{name}" if isinstance(obs, Mapping) else BARE_OBS: x for name, x in parts(obs)}


def from_episodes(episodes: Iterable[RecordedEpisode], *, source: str = "the dataset", **described: Any) -> Dataset:
    """Return a dataset of these episodes; ``described``: env, env_kwargs, max_episode_steps, spaces and reference.

    Both flags true means terminated, as in Gymnasium. ``log_prob`` and ``drawn`` are kept where every episode has them.

    Raises:    UsageError for an episode without a step, with arrays of other lengths, or that neither terminated nor
               was truncated
    Verified:  tests/unit/test_datasets.py::test_episodes_come_back_as_they_went_in,
               tests/unit/test_datasets.py::test_episodes_that_do_not_fit_are_refused
    """
    found = list(episodes)
    rows = Rows(sum(len(e.reward) + 1 for e in found), source)
    for episode in found:
        rows.append(episode)
    return rows.dataset(**described)


def _given(episode: RecordedEpisode) -> dict[str, Array]:
    given = {**named_obs(episode.obs), "action": episode.action, "reward": episode.reward}
    return given | {name: x for name in ("log_prob", "drawn") if (x := getattr(episode, name)) is not None}


def _stored(name: str, array: Array) -> np.dtype[Any]:
    """Return the type that rows have: rewards may be whole numbers in one episode and not in the next."""
    return np.dtype(np.float64) if name == "reward" and array.dtype.kind != "f" else array.dtype


def _checked_steps(episode: RecordedEpisode, given: dict[str, Array], who: str) -> int:
    steps = len(episode.reward)
    if not steps:
        raise UsageError(f"{who} has no step")
    for name, array in given.items():
        expected = steps + 1 if name.partition("/")[0] == BARE_OBS else steps
        if len(array) != expected:
            raise UsageError(
                f"{who} has {name} of length {len(array):,} with {steps:,} rewards; expected {expected:,}: one action "
                "a reward, and one observation more"
            )
    if not (episode.terminated or episode.truncated):
        raise UsageError(f"{who} is neither terminated nor truncated: say how it ended")
    return steps
