"""Flat arrays in the layouts of D4RL and OGBench: from them to rows, and back to D4RL's.

A layout says of every row of its arrays whether an action was taken there, how the episode went on, and where the
observation is that followed; what remains is the same for all (``_assembled``).

D4RL       observations, actions, rewards, terminals (the process ended), timeouts (only the recording did), and where
           there are any next_observations. Without them the last step of an episode that timed out, and of the
           recording's end, has no next observation: that step is dropped, and its observation becomes the final one of
           the steps before. The final observation of a terminated episode, which no target looks at, is then the last
           one again.
OGBench    observations, actions, rewards, masks (0 where the task was solved, which terminates), and terminals: the
           last row of a trajectory, which in the raw files holds its final observation. Also as
           ``ogbench.make_env_and_datasets`` returns them, with next_observations or with valids.

Observations may be nested: "observations/outer/inner". Ours alone are log_prob and drawn (see ``RecordedEpisode``), and
a description of the environment and the reference returns, as JSON. All other arrays are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from steepest.errors import UsageError
from steepest.experience.datasets.dataset import (
    FLAGS,
    OBS,
    Allocate,
    Array,
    Dataset,
    as_dataset,
    in_memory,
    named_obs,
    pieces,
)
from steepest.types import BARE_OBS

NEXT = "next_observations"
PLAIN = {"action": "actions", "reward": "rewards", "log_prob": "log_prob", "drawn": "drawn"}
"""Arrays of a dataset, and their names in a file."""


class Reading(NamedTuple):
    """How a layout reads: K steps, in E episodes."""

    taken: Array  # (K,) rows in which an action was taken, in order
    terminated: Array  # (K,) bool
    truncated: Array  # (K,) bool
    final: Array  # (E,) rows of the observations that followed the last steps
    final_in: str  # the array that these are rows of


def from_arrays(
    arrays: Mapping[str, Any], *, source: str = "the arrays", allocate: Allocate = in_memory, **described: Any
) -> Dataset:
    """Return the dataset in flat arrays of D4RL's or OGBench's layout, in memory or in files.

    Args:      arrays by name, nested ones as mappings or as "outer/inner"; described: see ``Dataset``
    Raises:    UsageError where an array is missing, of another length, or contradicts another
    Verified:  tests/unit/test_datasets.py::test_d4rl_with_next_observations,
               tests/unit/test_datasets.py::test_d4rl_without_next_observations,
               tests/unit/test_datasets.py::test_ogbench_in_its_three_forms,
               tests/integration/test_datasets.py::test_malformed_files_are_refused
    """
    found = dict(known_arrays(arrays))
    given = [name for name in ("timeouts", "masks") if name in found]
    _require(source, found, "observations", "actions", "terminals")
    if len(given) == 2:
        raise UsageError(f"{source} has both timeouts (D4RL) and masks (OGBench): keep one")
    if not given:
        raise UsageError(
            f"{source} has neither timeouts, as D4RL's layout has, nor masks, as OGBench's with a task has. Give "
            "timeouts: true in the last step of every episode that was cut, zeros where none was. (OGBench's raw files "
            "get rewards and masks with a task: ogbench.make_env_and_datasets of a singletask environment.)"
        )
    _require(source, found, "rewards")
    _check_lengths(source, found)
    reading = _d4rl(found, source) if given == ["timeouts"] else _ogbench(found, source)
    if not len(reading.taken):
        raise UsageError(f"{source} has no step to learn from")
    return _assembled(found, reading, source, allocate, described)


def to_d4rl(dataset: Dataset) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any], Iterator[Array]]]:
    """Yield D4RL's arrays of a dataset: name, shape, type and the pieces of each, none of which copies it whole.

    Verified:  tests/unit/test_datasets.py::test_every_layout_gives_back_what_was_written
    """
    rows = np.flatnonzero(dataset.valid)
    arrays: list[tuple[str, Array, Array]] = []
    for name, array in named_obs(dataset.obs).items():
        field = name.removeprefix(BARE_OBS)
        arrays += [(f"observations{field}", array, rows), (f"{NEXT}{field}", array, rows + 1)]
    named = {**PLAIN, "terminated": "terminals", "truncated": "timeouts"}
    arrays += [(new, x, rows) for name, new in named.items() if (x := getattr(dataset, name)) is not None]
    for name, array, taken in arrays:
        yield name, (len(rows), *array.shape[1:]), array.dtype, (x for _, x in _gathered(array, taken))


def known_arrays(arrays: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays that a layout knows by name, nested ones as "outer/inner"."""
    known = ("observations", NEXT, "terminals", "timeouts", "masks", "valids", *PLAIN.values())
    for key, value in arrays.items():
        name = f"{outer}{key}"
        if name.partition("/")[0] not in known:
            continue
        if isinstance(value, Mapping):
            yield from known_arrays(value, f"{name}/")
        else:
            yield name, value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)


def _require(source: str, arrays: Mapping[str, Any], *names: str) -> None:
    there = {name.partition("/")[0] for name in arrays}
    missing = [name for name in names if name not in there]
    if missing:
        raise UsageError(
            f"{source} lacks {', '.join(missing)}; it has {', '.join(sorted(there)) or 'no array of a known name'}"
        )


def _check_lengths(source: str, arrays: Mapping[str, Any]) -> None:
    lengths = {name: len(x) if len(x.shape) else 0 for name, x in arrays.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise UsageError(f"{source}: the arrays differ in length: {listed}; expected one row a step in each")
    if 0 in lengths.values():
        raise UsageError(f"{source} has no step to learn from")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{source}: {name} holds {array.dtype}; expected numbers")


def _flags(source: str, arrays: Mapping[str, Any], name: str) -> Array:
    flags = np.asarray(arrays[name][:])
    if flags.ndim != 1:
        raise UsageError(f"{source}: {name} has the shape {flags.shape}; expected one flag a step, {flags.shape[:1]}")
    wrong = (flags != 0) & (flags != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UsageError(f"{source}: {name} is {flags[row]} in row {row:,}; expected 0 or 1")
    return flags.astype(np.bool_)


def _d4rl(arrays: Mapping[str, Any], source: str) -> Reading:
    terminated, truncated = (_flags(source, arrays, name) for name in ("terminals", "timeouts"))
    both = terminated & truncated
    if both.any():
        raise UsageError(
            f"{source}: terminals and timeouts are both set in row {int(both.argmax()):,}; a step ends the process, or "
            "only the recording"
        )
    truncated[-1] |= not terminated[-1]
    if any(name.partition("/")[0] == NEXT for name in arrays):
        ends = terminated | truncated
        _check_continuous(arrays, ends, source)
        return Reading(np.arange(len(ends)), terminated, truncated, np.flatnonzero(ends), NEXT)
    taken = np.flatnonzero(~truncated)
    followed_by_cut = np.append(truncated[1:], False)[taken]
    terminated = terminated[taken]
    truncated = followed_by_cut & ~terminated
    final = np.where(terminated, taken, taken + 1)[terminated | truncated]
    return Reading(taken, terminated, truncated, final, "observations")


def _ogbench(arrays: Mapping[str, Any], source: str) -> Reading:
    last, solved = _flags(source, arrays, "terminals"), ~_flags(source, arrays, "masks")
    if not last[-1]:
        raise UsageError(f"{source}: terminals is not set in the last row; expected it at the end of every trajectory")
    if any(name.partition("/")[0] == NEXT for name in arrays):
        ends = last | solved
        _check_continuous(arrays, ends, source)
        return Reading(np.arange(len(last)), solved, last & ~solved, np.flatnonzero(ends), NEXT)
    final_rows = ~_flags(source, arrays, "valids") if "valids" in arrays else last
    if not final_rows[-1]:
        raise UsageError(f"{source}: valids is 1 in the last row; expected 0, as in every trajectory's final row")
    taken = np.flatnonzero(~final_rows)
    terminated = solved[taken]
    truncated = np.append(final_rows[1:], True)[taken] & ~terminated
    return Reading(taken, terminated, truncated, taken[terminated | truncated] + 1, "observations")


def _check_continuous(arrays: Mapping[str, Any], ends: Array, source: str) -> None:
    """Within an episode, an observation is the next one of the step before: else an end is not marked."""
    for name in [n for n in arrays if n.partition("/")[0] == "observations"]:
        following = name.replace("observations", NEXT, 1)
        after = arrays.get(following)
        if after is None or after.shape != arrays[name].shape:
            held = "is missing" if after is None else f"has the shape {after.shape}"
            raise UsageError(f"{source}: {following} {held}; expected {arrays[name].shape}, as {name} has")
        for piece in pieces(arrays[name]):
            until = min(piece.stop, len(ends) - 1)
            if until == piece.start:  # the last row alone
                continue
            one = np.asarray(after[piece.start : until])
            other = np.asarray(arrays[name][piece.start + 1 : until + 1])
            differs = (one != other) & (other == other)  # where an observation is NaN, that is the error
            jumps = differs.reshape(len(one), -1).any(1) & ~ends[piece.start : until]
            if jumps.any():
                row = piece.start + int(jumps.argmax())
                raise UsageError(
                    f"{source}: {NEXT} of row {row:,} is not the observation of row {row + 1:,}, though no episode "
                    "ends there: set terminals or timeouts at the last step of every episode"
                )


def _assembled(
    arrays: Mapping[str, Any], reading: Reading, source: str, allocate: Allocate, described: Mapping[str, Any]
) -> Dataset:
    """Put steps and final observations into rows."""
    ends = reading.terminated | reading.truncated
    place = np.arange(len(ends)) + np.concatenate([[0], np.cumsum(ends)[:-1]])
    rows = len(ends) + int(ends.sum())
    out: dict[str, Array] = {}
    for name in [n for n in arrays if n.partition("/")[0] == "observations"]:
        field = name.removeprefix("observations").lstrip("/")
        stored = arrays[name]
        new = out[f"{OBS}{field}" if field else BARE_OBS] = allocate(
            f"{OBS}{field}" if field else BARE_OBS, (rows, *stored.shape[1:]), stored.dtype
        )
        for part, values in _gathered(stored, reading.taken):
            new[place[part]] = values
        for part, values in _gathered(arrays[name.replace("observations", reading.final_in, 1)], reading.final):
            with np.errstate(over="ignore"):  # what they cannot hold becomes infinite, and is refused as such
                new[place[ends][part] + 1] = values
    for ours, name in PLAIN.items():
        if name in arrays:
            new = out[ours] = allocate(ours, (rows, *arrays[name].shape[1:]), arrays[name].dtype)
            for part, values in _gathered(arrays[name], reading.taken):
                new[place[part]] = values
    flags = {"terminated": reading.terminated, "truncated": reading.truncated, "valid": np.ones_like(ends)}
    for name in FLAGS:
        out[name] = allocate(name, (rows,), np.dtype(np.bool_))
        out[name][place] = flags[name]
    return as_dataset(out, source=source, **described)


def _gathered(array: Any, index: Array) -> Iterator[tuple[slice, Array]]:
    """Yield (where in ``index``, rows of the array), piece by piece; ``index`` ascends, and the array may be a file."""
    for piece in pieces(array):
        part = slice(*np.searchsorted(index, (piece.start, piece.stop)))
        if part.stop > part.start:
            yield part, np.asarray(array[piece])[index[part] - piece.start]
