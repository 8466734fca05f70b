"""A dataset: recorded episodes, one after another, checked as they come in.

Rows are those of ``types.Rollout``: an episode of T steps takes T + 1 rows. The last one holds the observation that
followed the last step, and has ``valid`` False, since nothing was decided there. So no observation is stored twice, the
end of a process and the end of a recording stay apart, and the true next observation is always known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from steepest.errors import UsageError
from steepest.types import BARE_OBS

Array = NDArray[Any]
RawObs = Array | Mapping[str, Any]
"""An array (R, ...), or a mapping of them, nested as the space is."""


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Episodes in rows; make one with ``from_episodes`` or ``read.read_dataset``.

    Args:      obs (R, ...): an array or a mapping, nested as the space is; action (R, ...) as the environment took it;
               reward (R,); terminated, truncated, valid (R,) bool; log_prob (R,) nats and drawn (R, ...), see
               ``RecordedEpisode``, or None where they are not known; env: id of the environment and env_kwargs, or
               None; reference: see ``Reference``; source: for messages
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
    reference: Reference | None = None
    source: str = "the dataset"

    def __post_init__(self) -> None:
        rows = len(self.valid)
        observed = {name if name == BARE_OBS else f"obs/{name}": x for name, x in parts(self.obs)}
        steps = ("action", "reward", "terminated", "truncated", "log_prob", "drawn")
        arrays = observed | {name: x for name in steps if (x := getattr(self, name)) is not None}
        for name, array in arrays.items():
            if len(array) != rows:
                raise UsageError(f"{self.source}: {name} has {len(array):,} rows; the others have {rows:,}")
        if not self.valid.any():
            raise UsageError(f"{self.source} has no step to learn from")
        for name, array in arrays.items():
            self._check_finite(name, array, None if name in observed else self.valid)
        self._check_ends()

    def _check_finite(self, name: str, array: Array, where: Array | None) -> None:
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{self.source}: {name} holds {array.dtype}; expected numbers")
        if array.dtype.kind != "f":
            return
        for start in range(0, len(array), 65_536):  # a file that is larger than memory is never read whole
            bad = ~np.isfinite(array[start : start + 65_536]).reshape(len(array[start : start + 65_536]), -1).all(1)
            if where is not None:
                bad &= where[start : start + 65_536]
            if bad.any():
                row = start + int(bad.argmax())
                raise UsageError(f"{self.source}: {name} is not a finite number in row {row:,}: {array[row]}")

    def _check_ends(self) -> None:
        ends = self.terminated | self.truncated
        if (ends & ~self.valid).any():
            row = int((ends & ~self.valid).argmax())
            raise UsageError(f"{self.source}: row {row:,} ends an episode, but nothing was decided there")
        # The row after an end, and no other, holds a final observation.
        expected = np.concatenate([[False], ends[:-1]])
        wrong = expected != ~self.valid
        if wrong.any() or self.valid[-1]:
            row = int(wrong.argmax()) if wrong.any() else len(ends) - 1
            what = "follows the end of an episode and decides" if expected[row] else "belongs to no episode"
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
        """Yield the episodes one after another."""
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


def from_episodes(episodes: Iterable[RecordedEpisode], **described: Any) -> Dataset:
    """Return a dataset of these episodes; ``described``: env, env_kwargs, reference and source, see ``Dataset``.

    Raises:    UsageError for an episode without a step, with arrays of other lengths, or that neither terminated nor
               was truncated
    Verified:  tests/unit/test_datasets.py::test_episodes_come_back_as_they_went_in
    """
    source = described.get("source", "the dataset")
    found = list(episodes)
    for number, episode in enumerate(found):
        steps = len(episode.reward)
        lengths = {name: len(x) - 1 for name, x in parts(episode.obs)} | {"action": len(episode.action)}
        more = {name: x for name in ("log_prob", "drawn") if (x := getattr(episode, name)) is not None}
        for name, length in {**lengths, **{name: len(x) for name, x in more.items()}}.items():
            if length != steps or not steps:
                wish = f"{steps} rewards need as many actions and one observation more" if steps else "it has no step"
                raise UsageError(f"{source}: episode {number} has {name} of {length} steps; {wish}")
        if not (episode.terminated or episode.truncated):
            raise UsageError(f"{source}: episode {number} is neither terminated nor truncated: say how it ended")
    if not found:
        raise UsageError(f"{source} has no episode")
    steps = np.array([len(e.reward) for e in found])
    last = np.cumsum(steps + 1) - 1
    valid = np.ones(int(last[-1]) + 1, np.bool_)
    valid[last] = False
    terminated, truncated = np.zeros_like(valid), np.zeros_like(valid)
    terminated[last - 1] = [e.terminated for e in found]
    truncated[last - 1] = [e.truncated for e in found]

    def padded(name: str) -> Array | None:
        pieces = [getattr(e, name) for e in found]
        if any(x is None for x in pieces):
            return None
        return np.concatenate([np.concatenate([x, np.zeros_like(x[:1])]) for x in pieces])

    return Dataset(
        obs=_joined([e.obs for e in found]),
        action=cast(Array, padded("action")),
        reward=cast(Array, padded("reward")),
        terminated=terminated,
        truncated=truncated & ~terminated,
        valid=valid,
        log_prob=padded("log_prob"),
        drawn=padded("drawn"),
        **described,
    )


def parts(obs: RawObs, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an observation under their names, "outer/inner" where they are nested."""
    if not isinstance(obs, Mapping):
        yield name or BARE_OBS, obs
        return
    for key, part in obs.items():
        yield from parts(part, f"{name}/{key}" if name else str(key))


def _part(obs: RawObs, rows: slice) -> RawObs:
    return {k: _part(x, rows) for k, x in obs.items()} if isinstance(obs, Mapping) else obs[rows]


def _joined(obs: list[RawObs]) -> RawObs:
    first = obs[0]
    if isinstance(first, Mapping):
        return {k: _joined([cast(Mapping[str, Any], x)[k] for x in obs]) for k in first}
    return np.concatenate(cast(list[Array], obs))
