"""Datasets: rows, minibatches, and the layouts that they are read from and written to."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import steepest
from steepest.environments.spaces import action_spec, convert_obs, obs_spec
from steepest.errors import UsageError
from steepest.experience.datasets import read as reading
from steepest.experience.datasets.dataset import (
    Dataset,
    RecordedEpisode,
    Reference,
    checked_reference,
    from_episodes,
    named_obs,
    parts,
    pieces,
)
from steepest.experience.datasets.folders import arrays_of
from steepest.experience.datasets.layouts import from_arrays
from steepest.experience.datasets.picture import draw
from steepest.experience.datasets.read import read_dataset, write_dataset
from steepest.experience.datasets.sampling import DatasetRows, unit_actions
from steepest.experience.datasets.spaces import as_given, spaces_of
from steepest.experience.datasets.summary import coverage, principal_components, summarised

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)
OBSERVED = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def episode(number: int, steps: int, ends: str = "terminated", **more: Any) -> RecordedEpisode:
    """An episode whose every number says where it belongs: 100 number + row."""
    row = 100.0 * number + np.arange(steps + 1)
    obs = np.stack([row, -row, row / 7], 1).astype(np.float32)
    action = np.stack([np.sin(row[:-1]), 2 * np.cos(row[:-1])], 1).astype(np.float32)
    return RecordedEpisode(
        obs,
        action,
        (row[:-1] / 10).astype(np.float32),
        ends in ("terminated", "both"),
        ends in ("truncated", "both"),
        **{"log_prob": -row[:-1], "drawn": 3 * action, **more},
    )


def some_episodes() -> list[RecordedEpisode]:
    return [episode(1, 3), episode(2, 1, "truncated"), episode(3, 5, "truncated"), episode(4, 2)]


def some(**described: Any) -> Dataset:
    return from_episodes(some_episodes(), **described)


def same(one: Dataset, other: Dataset) -> None:
    """Every array to the bit where it means anything, and the description."""
    assert arrays_of(one).keys() == arrays_of(other).keys()
    for name, array in arrays_of(one).items():
        where = slice(None) if name in named_obs(one.obs) else one.valid
        np.testing.assert_array_equal(array[where], arrays_of(other)[name][where], err_msg=name)
        assert array.dtype == arrays_of(other)[name].dtype, name
    for name in ("env", "env_kwargs", "max_episode_steps", "reference"):
        assert getattr(one, name) == getattr(other, name), name


# Rows


def test_normalised_scores() -> None:
    reference = Reference(-10.0, 40.0)
    assert reference.score(-10.0) == 0.0
    assert reference.score(40.0) == 100.0
    np.testing.assert_allclose(reference.score(np.array([15.0, 90.0])), [50.0, 200.0])
    for random, expert in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(UsageError, match="reference returns"):
            checked_reference(random, expert)


def test_episodes_come_back_as_they_went_in() -> None:
    given = some_episodes()
    dataset = from_episodes(given)
    assert dataset.steps == 11
    assert len(dataset.valid) == 15
    np.testing.assert_array_equal(dataset.lengths, [3, 1, 5, 2])
    np.testing.assert_allclose(dataset.returns, [e.reward.astype(np.float64).sum() for e in given], rtol=1e-6)
    for one, other in zip(given, dataset.episodes(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    both = from_episodes([episode(1, 2, "both")])
    assert both.terminated.tolist() == [False, True, False]
    assert not both.truncated.any()
    partly = from_episodes([episode(1, 2), episode(2, 2, log_prob=None), episode(3, 2)])
    assert partly.log_prob is None
    assert partly.drawn is not None
    mixed = from_episodes([episode(1, 2)._replace(reward=np.array([1, 0])), episode(2, 1)])
    np.testing.assert_allclose(mixed.returns, [1.0, 20.0])


def test_episodes_that_do_not_fit_are_refused() -> None:
    good = episode(1, 3)
    nested = good._replace(obs={"a": good.obs})
    for episodes, words in (
        ([], "no episode"),
        ([good, good._replace(terminated=False)], "episode 1 is neither terminated nor truncated"),
        ([episode(1, 3)._replace(reward=good.reward[:0])], "episode 0 has no step"),
        ([good._replace(action=good.action[:-1])], "action of length 2 with 3 rewards; expected 3"),
        ([good._replace(obs=good.obs[:-1])], "obs of length 3 with 3 rewards; expected 4"),
        ([good._replace(drawn=good.action[1:])], "drawn of length 2"),
        ([good, good._replace(action=good.action[:, :1])], r"action of shape \(1,\); those before it have \(2,\)"),
        ([good, nested], "has obs/a, which those before it lack"),
        ([nested, good], "has obs, which those before it lack"),
        ([nested, good._replace(obs={"a": good.obs, "b": good.obs})], "has obs/b, which those"),
        ([good._replace(obs={"a": good.obs, "b": good.obs}), nested], "lacks obs/b"),
        ([good._replace(action=np.arange(3)), good._replace(action=np.ones(3))], "float64; those before it have int64"),
    ):
        with pytest.raises(UsageError, match=words):
            from_episodes(episodes)


def test_what_contradicts_itself_is_refused() -> None:
    def changed(**arrays: Any) -> None:
        dataset = some()
        fields = {name: getattr(dataset, name) for name in ("obs", *arrays_of(dataset)) if "/" not in name}
        Dataset(**{**fields, **arrays}, source="it")

    def put(array: Any, row: int, value: Any) -> Any:
        array = array.copy()
        array[row] = value
        return array

    base = some()
    changed()
    changed(action=put(base.action, 3, np.nan))  # nothing was decided there
    for arrays, words in (
        ({"reward": base.reward[:-1]}, "it: reward has 14 rows; expected 15 rows"),
        ({"reward": np.float32(1.0)}, "reward has a single value"),
        ({"reward": base.reward[:, None]}, r"reward has the shape \(15, 1\)"),
        ({"reward": put(base.reward, 2, np.nan)}, "reward is not a finite number in row 2: nan"),
        ({"action": put(base.action, 9, np.inf)}, "action is not a finite number in row 9"),
        ({"obs": put(base.obs, 14, np.nan)}, "obs is not a finite number in row 14"),
        ({"obs": {"x": {"y": put(base.obs, 4, -np.inf)}}}, "obs/x/y is not a finite number in row 4"),
        ({"log_prob": put(base.log_prob, 0, np.inf)}, "log_prob is not a finite number in row 0"),
        ({"action": np.array(["a"] * 15)}, "action holds <U1; expected numbers"),
        ({"valid": base.valid.astype(np.float32)}, "valid holds float32"),
        ({"terminated": put(base.terminated, 4, True)}, "row 4 is both terminated and truncated"),
        ({"terminated": put(base.terminated, 3, True)}, "row 3 ends an episode, but nothing was decided"),
        ({"terminated": put(base.terminated, 2, False)}, "row 3 belongs to no whole episode"),
        ({"terminated": put(base.terminated, 7, True)}, "row 8 follows the end of an episode and decides"),
        ({"valid": put(base.valid, 14, True)}, "row 14 follows the end"),
        ({"valid": np.zeros(15, np.bool_)}, "no step to learn from"),
        ({"reference": Reference(5.0, 5.0)}, "reference returns"),
    ):
        with pytest.raises(UsageError, match=words):
            changed(**arrays)


def test_a_last_episode_without_an_end_is_refused() -> None:
    one = some()
    with pytest.raises(UsageError, match="row 13 belongs to no whole episode"):
        Dataset(
            obs=np.asarray(one.obs)[:14],
            action=one.action[:14],
            reward=one.reward[:14],
            terminated=one.terminated[:14] & (np.arange(14) != 13),
            truncated=one.truncated[:14],
            valid=one.valid[:14],
        )


def test_returns_to_go_against_a_loop() -> None:
    dataset, gamma = some(), 0.9
    expected = []
    for e in some_episodes():
        rewards = e.reward.astype(np.float64)
        expected += [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
        expected.append(0.0)
    np.testing.assert_allclose(dataset.returns_to_go(gamma), expected, rtol=1e-12)


def test_pieces_are_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steepest.experience.datasets.dataset.CHUNK_BYTES", 50)
    array = np.arange(24.0).reshape(12, 2)
    assert [(p.start, p.stop) for p in pieces(array)] == [(0, 3), (3, 6), (6, 9), (9, 12)]
    np.testing.assert_array_equal(np.concatenate([array[p] for p in pieces(array)]), array)
    assert [(p.start, p.stop) for p in pieces(np.zeros((2, 100)))] == [(0, 1), (1, 2)]


# Minibatches


def rows_of(dataset: Dataset, action: spaces.Space[Any] = BOX) -> DatasetRows:
    return DatasetRows(dataset, obs_spec(OBSERVED), action_spec(action))


def test_minibatches_hold_what_was_recorded() -> None:
    rows = rows_of(some())
    rows.add_returns_to_go(0.9)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    for n in (1, 3):
        batch = rows.sample(generators, 4, 16, gamma=0.9, n_steps=n)
        assert batch["obs/obs"].shape == (2, 4, 16, 3)
        assert {k: x.dtype for k, x in batch.items()}["reward"] == torch.float32
        given = {int(e.obs[0, 0]) // 100: e for e in some_episodes()}
        flat = {k: x.reshape(128, *x.shape[3:]).numpy() for k, x in batch.items()}
        seen = set()
        for i, first in enumerate(flat["obs/obs"][:, 0]):
            e, t = given[int(first) // 100], int(first) % 100
            seen.add(first)
            stop = min(t + n, len(e.reward))
            reward = sum(0.9**k * float(r) for k, r in enumerate(e.reward[t:stop]))
            np.testing.assert_allclose(flat["reward"][i], reward, rtol=1e-5)
            np.testing.assert_allclose(flat["action"][i], e.action[t] / 2, rtol=1e-6)
            np.testing.assert_array_equal(flat["next_obs/obs"][i], e.obs[stop])
            assert flat["terminated"][i] == (e.terminated and stop == len(e.reward))
            np.testing.assert_allclose(flat["discount"][i], 0.9 ** (stop - t), rtol=1e-6)
            to_go = sum(0.9**k * float(r) for k, r in enumerate(e.reward[t:]))
            np.testing.assert_allclose(flat["return_to_go"][i], to_go, rtol=1e-5)
        assert len(seen) == 11
    again = rows.sample([torch.Generator().manual_seed(s) for s in (2, 1)], 2, 8, gamma=0.9)
    other = rows.sample([torch.Generator().manual_seed(s) for s in (1, 2)], 2, 8, gamma=0.9)
    torch.testing.assert_close(again["obs/obs"][0], other["obs/obs"][1])


def test_minibatches_are_uniform_over_steps() -> None:
    rows = rows_of(some())
    draws = 11 * 4_000
    batch = rows.sample([torch.Generator().manual_seed(3)], 1, draws, gamma=0.9)
    counts = np.unique(batch["obs/obs"][0, 0, :, 0].numpy(), return_counts=True)[1]
    assert len(counts) == 11
    deviation = (draws / 11 * 10 / 11) ** 0.5
    assert (np.abs(counts - draws / 11) < 4 * deviation).all()


def test_actions_come_in_units_of_half_their_range() -> None:
    def unit(space: spaces.Space[Any], *actions: Any) -> Any:
        actions = np.array([*actions, np.zeros_like(actions[0])], getattr(space, "dtype", None))
        steps = len(actions) - 1
        valid = np.arange(steps + 1) < steps
        end = np.arange(steps + 1) == steps - 1
        zeros = np.zeros(steps + 1, np.float32)
        dataset = Dataset(obs=zeros, action=actions, reward=zeros, terminated=end, truncated=end & False, valid=valid)
        return unit_actions(dataset, action_spec(space))[:steps]

    asymmetric = spaces.Box(np.float32([-3, 1]), np.float32([1, 5]), dtype=np.float32)
    np.testing.assert_allclose(unit(asymmetric, [-3, 5], [1, 1], [-1, 3]), [[-1, 1], [1, -1], [0, 0]])
    assert unit(asymmetric, [1 + 1e-7, 5.0])[0].max() == 1.0
    half = spaces.Box(np.float32([0.0]), np.float32([np.inf]), dtype=np.float32)
    np.testing.assert_allclose(unit(half, [7.5]), [[7.5]])
    assert unit(spaces.Discrete(3, start=-1), -1, 1).tolist() == [0, 2]
    assert unit(spaces.Discrete(3), [2]).tolist() == [2]
    assert unit(spaces.MultiDiscrete([[2, 3], [4, 2]]), [[1, 2], [3, 0]]).tolist() == [[1, 2, 3, 0]]
    assert unit(spaces.MultiBinary(3), [1, 0, 1]).tolist() == [[1, 0, 1]]
    np.testing.assert_allclose(unit(spaces.Box(-2, 2, (), np.float32), 1.0), [[0.5]])
    for space, action, words in (
        (asymmetric, [1.1, 2.0], "component 0 is 1.1.* in row 0; the environment takes -3 to 1"),
        (half, [-0.5], "component 0 is -0.5"),
        (spaces.Discrete(3), 3, "component 0 is 3 in row 0"),
        (spaces.Discrete(3), -1, "takes 0 to 2"),
        (spaces.MultiDiscrete([2, 2]), [0, 2], "component 1 is 2"),
        (asymmetric, [1.0], r"shape \(1,\); the environment takes \(2,\)"),
    ):
        with pytest.raises(UsageError, match=words):
            unit(space, action)


def test_a_dataset_of_other_spaces_is_refused() -> None:
    with pytest.raises(UsageError, match="observations are not those of the environment"):
        DatasetRows(some(), obs_spec(spaces.Box(-1, 1, (4,))), action_spec(BOX))
    with pytest.raises(UsageError, match="observations are not those of the environment"):
        DatasetRows(some(), obs_spec(spaces.Dict(a=OBSERVED)), action_spec(BOX))
    with pytest.raises(UsageError, match=r"component 1 is .* the environment takes -1 to 1"):
        rows_of(some(), spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(UsageError, match=r"shape \(2,\); the environment takes \(\)"):
        rows_of(some(), spaces.Discrete(3))
    with pytest.raises(UsageError, match="whole numbers"):
        rows_of(some(), spaces.MultiDiscrete([3, 3]))


def test_the_best_episodes_are_kept() -> None:
    """Of returns 30.3, 20, 151 and 80.1."""
    for fraction, kept in ((0.0, {3}), (0.25, {3}), (0.5, {3, 4}), (0.8, {1, 3, 4}), (1.0, {1, 2, 3, 4})):
        rows = rows_of(some())
        rows.keep_best(fraction)
        batch = rows.sample([torch.Generator().manual_seed(0)], 1, 400, gamma=0.9)
        assert {int(x) // 100 for x in batch["obs/obs"][0, 0, :, 0]} == kept


def test_next_actions_are_those_of_the_next_step() -> None:
    rows = rows_of(some())
    rows.add_next_actions()
    batch = {k: x[0, 0] for k, x in rows.sample([torch.Generator().manual_seed(0)], 1, 100, gamma=0.9).items()}
    given = {int(e.obs[0, 0]) // 100: e for e in some_episodes()}
    for i in range(100):
        first = int(batch["obs/obs"][i, 0])
        e, t = given[first // 100], first % 100
        known = t + 1 < len(e.reward)
        assert batch["next_known"][i] == known
        if known:
            np.testing.assert_allclose(batch["next_action"][i], e.action[t + 1] / 2, rtol=1e-6)


def test_a_fingerprint_is_of_all_that_is_learned_from() -> None:
    def changed(**arrays: Any) -> str:
        episodes = some_episodes()
        episodes[2] = episodes[2]._replace(**arrays)
        return rows_of(from_episodes(episodes)).fingerprint()

    one = some_episodes()[2]
    found = {
        changed(),
        changed(reward=one.reward + 1),
        changed(obs=one.obs + np.eye(6, 3, dtype=np.float32)),
        changed(action=one.action * np.float32(0.5)),
        changed(terminated=True, truncated=False),
    }
    assert len(found) == 5
    assert changed(log_prob=None) == changed()


# Layouts


NESTED = spaces.Dict(
    goal=spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float64), kind=spaces.Discrete(3, start=2)),
    camera=spaces.Box(0, 255, (36, 33, 3), np.uint8),
    pair=spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (1,), np.float32))),
)


def sampled(space: spaces.Space[Any], action: spaces.Space[Any], lengths: tuple[int, ...] = (4, 1, 3)) -> Dataset:
    """Random numbers of any spaces; with log-probabilities and draws."""
    space.seed(5)
    action.seed(6)

    def stacked(part: Any, samples: list[Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {k: stacked(p, [s[k] for s in samples]) for k, p in part.spaces.items()}
        if isinstance(part, spaces.Tuple):
            return {str(i): stacked(p, [s[i] for s in samples]) for i, p in enumerate(part.spaces)}
        return np.stack([np.asarray(s, part.dtype) for s in samples])

    episodes = [
        RecordedEpisode(
            stacked(space, [space.sample() for _ in range(n + 1)]),
            stacked(action, [action.sample() for _ in range(n)]),
            np.arange(n, dtype=np.float32),
            terminated=i % 2 == 0,
            truncated=i % 2 == 1,
            log_prob=-np.arange(n, dtype=np.float32),
            drawn=np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        )
        for i, n in enumerate(lengths)
    ]
    return from_episodes(episodes, spaces=(space, action))


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


PLACES = ("data.npz", "data.hdf5", "rows", "minari:test/some-v0", "minari:plain-v2")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("space", "action"),
    [
        (OBSERVED, BOX),
        (NESTED, spaces.MultiDiscrete([2, 3])),
        (spaces.Box(0, 255, (8, 8), np.uint8), spaces.Discrete(3, start=1)),
        (spaces.Discrete(4, start=-1), spaces.MultiBinary(3)),
    ],
)
def test_every_layout_gives_back_what_was_written(
    place: str, space: spaces.Space[Any], action: spaces.Space[Any], tmp_path: Path, minari_root: Path
) -> None:
    pytest.importorskip("minari")
    out = place if place.startswith("minari:") else str(tmp_path / place)
    dataset = sampled(space, action)
    write_dataset(dataset, out)
    back = read_dataset(out)
    same(dataset, back)
    with pytest.raises(UsageError, match="already"):
        write_dataset(dataset, out)
    if place.startswith("minari:"):
        assert back.spaces == dataset.spaces
        same(dataset, read_dataset(minari_root / place.removeprefix("minari:")))
        assert [p.name for p in minari_root.glob(".*")] == []


@pytest.mark.parametrize("place", PLACES[:4])
def test_a_description_comes_back(place: str, tmp_path: Path, minari_root: Path) -> None:
    pytest.importorskip("minari")
    out = place if place.startswith("minari:") else str(tmp_path / place)
    described = {"env": "Pendulum-v1", "env_kwargs": {"g": 9.0}, "max_episode_steps": 7}
    dataset = some(**described, reference=Reference(-3.5, 12.25))
    write_dataset(dataset, out)
    same(dataset, read_dataset(out))
    found = spaces_of(read_dataset(out))
    assert found is not None
    assert found[1] == gym.make("Pendulum-v1").action_space


def test_the_same_dataset_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one.npz", "other.npz"):
        write_dataset(some(env="Pendulum-v1"), tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_d4rl_with_next_observations() -> None:
    obs = np.arange(6.0)[:, None]
    arrays = {
        "observations": obs,
        "next_observations": np.array([1, 99, 3, 98, 5, 97.0])[:, None],
        "actions": np.arange(6.0)[:, None],
        "rewards": np.arange(6.0),
        "terminals": np.array([0, 1, 0, 0, 0, 0]),
        "timeouts": np.array([0, 0, 0, 1, 0, 0]),
        "infos": {"qpos": np.zeros(17)},
        "metadata/algorithm": np.array("SAC"),
    }
    dataset = from_arrays(arrays)
    assert np.asarray(dataset.obs)[:, 0].tolist() == [0, 1, 99, 2, 3, 98, 4, 5, 97]
    assert dataset.valid.tolist() == [True, True, False] * 3
    assert dataset.terminated.nonzero()[0].tolist() == [1]
    assert dataset.truncated.nonzero()[0].tolist() == [4, 7]
    assert dataset.action[dataset.valid, 0].tolist() == [0, 1, 2, 3, 4, 5]
    broken = {**arrays, "next_observations": arrays["next_observations"] + (np.arange(6)[:, None] == 2)}
    with pytest.raises(UsageError, match="next_observations of row 2 is not the observation of row 3"):
        from_arrays(broken)
    with pytest.raises(UsageError, match="terminals and timeouts are both set in row 1"):
        from_arrays({**arrays, "timeouts": np.array([0, 1, 0, 1, 0, 0])})
    with pytest.raises(UsageError, match="terminals is 2 in row 1; expected 0 or 1"):
        from_arrays({**arrays, "terminals": 2 * arrays["terminals"]})


def test_d4rl_without_next_observations() -> None:
    """A step that timed out has no next observation: it is dropped, and its observation is the final one."""
    terminals = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0])
    timeouts = np.array([0, 0, 0, 0, 0, 1, 1, 0, 0])
    rows = np.arange(9.0)
    arrays = {"observations": rows[:, None], "actions": rows, "rewards": rows}
    dataset = from_arrays({**arrays, "terminals": terminals, "timeouts": timeouts})
    # 0 1 2 terminates, and 2 stands again for what nobody looks at; 3 4 | 5; 6 had one step; 7 | 8 is where it stops
    assert np.asarray(dataset.obs)[:, 0].tolist() == [0, 1, 2, 2, 3, 4, 5, 7, 8]
    assert dataset.reward[dataset.valid].tolist() == [0, 1, 2, 3, 4, 7]
    assert dataset.lengths.tolist() == [3, 2, 1]
    assert dataset.terminated.nonzero()[0].tolist() == [2]
    assert dataset.truncated.nonzero()[0].tolist() == [5, 7]
    ended = from_arrays({**arrays, "terminals": terminals + (rows == 8), "timeouts": timeouts})
    assert ended.lengths.tolist() == [3, 2, 2]
    with pytest.raises(UsageError, match="no step"):
        from_arrays({name: x[:1] for name, x in arrays.items()} | {"terminals": [0], "timeouts": [1]})


def test_ogbench_in_its_three_forms() -> None:
    """As ogbench 1.2 writes and returns them: trajectories of four steps, one of which solves the task midway."""
    obs = np.concatenate([np.arange(5.0), 10 + np.arange(5.0)])[:, None]
    raw = {
        "observations": obs,
        "actions": obs,
        "rewards": np.array([-1, -1, -1, -1, -9, -1, 0, -1, -1, -9.0]),
        "masks": np.array([1, 1, 1, 1, 1, 1, 0, 1, 1, 0.0]),
        "terminals": np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1.0]),
    }
    taken = raw["terminals"] == 0
    regular = {name: x[taken] for name, x in raw.items()} | {"next_observations": obs[1:][taken[:-1]]}
    regular["terminals"] = np.array([0, 0, 0, 1, 0, 0, 0, 1.0])
    compact = raw | {"valids": taken * 1.0, "terminals": np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1.0])}
    for arrays in (raw, regular, compact):
        dataset = from_arrays(arrays)
        assert np.asarray(dataset.obs)[:, 0].tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 12, 13, 14]
        assert dataset.lengths.tolist() == [4, 2, 2]
        assert dataset.returns.tolist() == [-4, -1, -2]
        assert dataset.terminated.nonzero()[0].tolist() == [6]
        assert dataset.truncated.nonzero()[0].tolist() == [3, 9]
    with pytest.raises(UsageError, match="terminals is not set in the last row"):
        from_arrays({name: x[:-1] for name, x in raw.items()})
    with pytest.raises(UsageError, match=r"both timeouts .* and masks"):
        from_arrays({**raw, "timeouts": np.zeros(10)})
    with pytest.raises(UsageError, match=r"neither timeouts.*nor masks.*zeros where none was"):
        from_arrays({name: x for name, x in raw.items() if name != "masks"})


def test_minari_semantics(minari_root: Path) -> None:
    """Written by Minari itself: both flags mean terminated; infos that are not ours are ignored; a JPEG is decoded."""
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    space = spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)))

    def buffer(steps: int, terminated: bool, truncated: bool) -> Any:
        last = np.arange(steps) == steps - 1
        return EpisodeBuffer(
            observations=(np.full((steps + 1, 2), 0.5, np.float32), np.arange(steps + 1) % 3),
            actions=np.arange(steps) % 2,
            rewards=[1] * steps,
            terminations=last & terminated,
            truncations=last & truncated,
            infos={"speed": np.zeros(steps + 1)},
        )

    def write(name: str, *buffers: Any) -> None:
        with warnings.catch_warnings():  # of all that Minari would like to be told
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                name, list(buffers), observation_space=space, action_space=spaces.Discrete(2)
            )

    write("a-v0", buffer(3, True, True), buffer(2, False, True))
    dataset = read_dataset("minari:a-v0")
    assert dataset.terminated.nonzero()[0].tolist() == [2]
    assert dataset.truncated.nonzero()[0].tolist() == [5]
    assert dict(parts(dataset.obs)).keys() == {"0", "1"}
    assert dataset.reward.dtype == np.float64
    assert dataset.log_prob is None
    assert dataset.env is None
    write("b-v0", buffer(2, False, False))
    with pytest.raises(UsageError, match="episode 0 is neither terminated nor truncated"):
        read_dataset("minari:b-v0")
    early = buffer(3, True, False)
    early.terminations[0] = True
    write("c-v0", early)
    with pytest.raises(UsageError, match="episode 0 has terminations set at step 0 of 3"):
        read_dataset("minari:c-v0")
    with pytest.raises(UsageError, match=r"no Minari dataset 'nothing-v0' in .*minari list local"):
        read_dataset("minari:nothing-v0")
    (minari_root / "a-v0" / "data" / "main_data.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UsageError, match="minari:a-v0 cannot be read as a Minari dataset"):
        read_dataset("minari:a-v0")
    for name in ("noversion", "a b-v0", "-v0"):
        with pytest.raises(UsageError, match="is no id of a Minari dataset"):
            write_dataset(some(env="Pendulum-v1"), f"minari:{name}")
    with pytest.raises(UsageError, match="does not say of which spaces"):
        write_dataset(some(), "minari:d-v0")


def test_minari_recovers_the_environment(minari_root: Path) -> None:
    minari = pytest.importorskip("minari")
    write_dataset(some(env="Pendulum-v1", env_kwargs={"g": 2.0}, max_episode_steps=9), "minari:pendulum/x-v0")
    env = minari.load_dataset("pendulum/x-v0").recover_environment()
    assert env.unwrapped.g == 2.0
    assert env.spec.max_episode_steps == 9
    assert "pendulum" in minari.namespace.list_local_namespaces()
    metadata = minari_root / "pendulum" / "x-v0" / "data" / "metadata.json"
    text = json.loads(metadata.read_text())
    del text["steepest"]
    metadata.write_text(json.dumps(text))
    back = read_dataset("minari:pendulum/x-v0")  # as anybody else would have written it
    assert (back.env, back.env_kwargs, back.max_episode_steps) == ("Pendulum-v1", {"g": 2.0}, 9)


def test_what_a_killed_writer_left_goes_though_its_data_is_there(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("whole")
    (tmp_path / ".x.npz.4711-0.tmp").mkdir()
    (tmp_path / ".y.npz.4711-0.tmp").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_dataset(some(), tmp_path / "x.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".y.npz.4711-0.tmp", "x.npz"]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")

    def interrupted(self: Dataset) -> Any:
        yield from list(iter_episodes(self))[:2]
        raise KeyboardInterrupt

    iter_episodes = Dataset.episodes
    monkeypatch.setattr(Dataset, "episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(some(env="Pendulum-v1"), "minari:ab/c-v0")
    assert [p for p in minari_root.rglob("*") if p.is_file()] == []
    for module, place in (("layouts", "x.npz"), ("layouts", "x.hdf5"), ("folders", "x")):

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt
            yield

        monkeypatch.setattr(f"steepest.experience.datasets.{module}.pieces", stop)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(some(), tmp_path / place)
    assert [p.name for p in tmp_path.iterdir() if p != minari_root] == []


def test_what_is_no_dataset_is_refused(tmp_path: Path, minari_root: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "objects.npz", observations=np.array([{}], object))
    for source, words in (
        (3, "an object of type int; accepted are a Dataset"),
        (tmp_path / "none.npz", "there is no data at .*accepted are"),
        (tmp_path / "empty", "a folder without a dataset; accepted are"),
        (tmp_path / "data.csv", "a file ending in .csv; accepted are"),
        (tmp_path / "text.npz", "cannot be read as an .npz file"),
        (tmp_path / "text.hdf5", "cannot be read as an HDF5 file"),
        (tmp_path / "array.npz", "cannot be read as an .npz file"),
        (tmp_path / "objects.npz", "holds Python objects, which are not unpickled"),
        ({}, "lacks observations, actions, terminals; it has no array of a known name"),
    ):
        with pytest.raises(UsageError, match=words):
            read_dataset(source)
    dataset = some()
    assert read_dataset(dataset) is dataset
    with pytest.raises(UsageError, match=r'expected "minari:NAME-v0", a file ending in .npz, .hdf5, .h5, or a folder'):
        write_dataset(dataset, tmp_path / "data.csv")
    write_dataset(dataset, tmp_path / "rows")
    (tmp_path / "rows" / "reward.npy").unlink()
    with pytest.raises(UsageError, match="cannot be read as a folder of arrays"):
        read_dataset(tmp_path / "rows")
    newer = tmp_path / "newer.npz"
    write_dataset(dataset, newer)
    with zipfile.ZipFile(newer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(newer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace('"schema": 1'.encode("utf-32-le"), '"schema": 2'.encode("utf-32-le")))
    with pytest.raises(UsageError, match="schema 2, and this version of steepest reads up to 1"):
        read_dataset(newer)


@pytest.mark.parametrize("place", ["data.npz", "data.hdf5", "minari:big-v0"])
def test_a_large_file_is_mapped_from_a_cache(
    place: str, tmp_path: Path, minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    source = place if place.startswith("minari:") else str(tmp_path / place)
    dataset = sampled(NESTED, BOX)
    write_dataset(dataset, source)
    monkeypatch.setattr(reading, "available_memory", lambda: 100)
    with pytest.raises(UsageError, match=r"takes .* GB in memory, of which .* are free. Give a folder as cache"):
        read_dataset(source)
    monkeypatch.setattr("steepest.experience.datasets.dataset.CHUNK_BYTES", 64)
    cache = tmp_path / "cache"
    for _ in range(2):
        back = read_dataset(source, cache=cache)
        same(dataset, back)
        assert all(isinstance(x, np.memmap) for x in arrays_of(back).values())
        assert back.spaces == (dataset.spaces if place.startswith("minari:") else None)
    assert not (cache / "unpacked").exists()
    if not place.startswith("minari:"):
        Path(source).unlink()
        write_dataset(some(), source)
        with pytest.raises(UsageError, match="holds the rows of other data than"):
            read_dataset(source, cache=cache)
    with pytest.raises(UsageError, match="exists and holds no dataset"):
        read_dataset(source, cache=tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    for place in ("minari:a-v0", str(tmp_path / "a.hdf5")):
        with pytest.raises(UsageError, match=r"needs h5py, which is not installed. Run: pip install 'steepest\[off"):
            write_dataset(some(), place)


def test_observations_are_given_back_as_the_space_has_them() -> None:
    shapes = [
        NESTED,
        spaces.Box(0, 255, (3, 8, 9), np.uint8),
        spaces.Box(0, 255, (8, 9, 3), np.uint8),
        spaces.Box(0, 255, (8, 9), np.uint8),
        spaces.Box(-1, 1, (2, 3), np.float64),
        spaces.Box(-1, 1, (), np.float32),
        spaces.MultiDiscrete([[2, 3], [4, 2]]),
        spaces.Discrete(4, start=-1),
    ]
    for space in shapes:
        given = sampled(space, BOX).obs
        names = convert_obs(obs_spec(space), given, 11)
        back = as_given(space, names)
        for (name, one), (other_name, other) in zip(parts(given), parts(back), strict=True):
            assert name == other_name
            assert one.dtype == other.dtype
            if one.dtype == np.float64:
                np.testing.assert_allclose(one, other, rtol=1e-6)
            else:
                np.testing.assert_array_equal(one, other)


# Figures and the picture


def test_what_never_changes_is_no_component() -> None:
    """Its deviation is rounding: 100.1 a hundred times has one of 1e-14."""
    steps = 100
    obs = np.full((steps + 1, 3), 100.1)
    obs[:, 1] = np.arange(steps + 1)
    dataset = from_episodes([RecordedEpisode(obs, np.zeros(steps), np.zeros(steps), True, False)])
    assert np.full(steps, 100.1).std() > 0.0
    found = principal_components(dataset)
    assert np.abs(found[:, 1]).max() == 0.0
    assert found[:, 0].std() == pytest.approx(1.0)


def test_a_summary_by_hand() -> None:
    dataset = from_episodes(some_episodes(), spaces=(OBSERVED, BOX), reference=Reference(0.0, 40.0))
    found = summarised(dataset)
    returns = np.array([30.3, 20.0, 151.0, 80.1])
    assert (found.episodes, found.steps, found.terminated, found.truncated) == (4, 11, 0.5, 0.5)
    assert found.returns.mean == pytest.approx(returns.mean(), rel=1e-6)
    assert found.returns.std == pytest.approx(returns.std(), rel=1e-6)
    assert found.returns.quartiles == pytest.approx(np.quantile(returns, [0.25, 0.5, 0.75]), rel=1e-6)
    assert (found.length.min, found.length.max, found.length.mean) == (1, 5, 2.75)
    assert found.score is not None
    assert found.score.max == pytest.approx(151.0 / 0.4, rel=1e-6)
    assert found.log_prob is not None
    assert found.log_prob.max == -100.0
    assert found.observations[0].max == 402.0
    assert found.observations[0].min == -402.0
    assert found.notes == ()
    assert json.loads(json.dumps(found.as_dict()))["steps"] == 11
    text = "\n".join(found.lines())
    for words in ("11 steps in 4 episodes", "50.0% terminated", "0.00 (random), 40.00 (expert)"):
        assert words in text
    clipped = [e._replace(action=np.where(e.action > 1, 2, e.action)) for e in some_episodes()]
    steps = np.concatenate([e.action for e in clipped])
    at = summarised(from_episodes(clipped, spaces=(OBSERVED, BOX))).actions
    for i in (0, 1):
        assert at[i].at_high == pytest.approx((steps[:, i] == 2).mean())
        assert at[i].at_low == pytest.approx((steps[:, i] == -2).mean())
    three = summarised(from_episodes(some_episodes()[:3]))
    assert (three.terminated, three.truncated) == pytest.approx((1 / 3, 2 / 3))
    plain = summarised(some())
    assert plain.actions[0].at_low is None
    assert plain.notes == ("bounds are not checked: the dataset names no environment",)
    assert "environment 'Nothing-v9'" in summarised(some(env="Nothing-v9")).notes[0]
    with pytest.raises(UsageError, match="observations are not those of the environment"):
        summarised(from_episodes(some_episodes(), spaces=(spaces.Box(-1, 1, (4,)), BOX)))
    with pytest.raises(UsageError, match="the environment takes -1 to 1"):
        summarised(from_episodes(some_episodes(), spaces=(OBSERVED, spaces.Box(-1, 1, (2,), np.float32))))


def test_discrete_actions_are_counted() -> None:
    actions = np.array([2, 2, 4])
    one = episode(1, 3)._replace(action=actions)
    (found,) = summarised(from_episodes([one], spaces=(OBSERVED, spaces.Discrete(4, start=1)))).actions
    assert found.counts == (0, 2, 0, 1)
    assert (found.min, found.max) == (2, 4)
    (unknown,) = summarised(from_episodes([one])).actions
    assert unknown.counts == (2, 0, 1)


def test_coverage_is_the_share_of_cells() -> None:
    def of(*values: Any) -> float:
        obs = np.array([*values, values[0]], np.float32)
        steps = len(values)
        zeros = np.zeros(steps)
        return coverage(from_episodes([RecordedEpisode(obs, zeros, zeros, True, False)]))

    assert of(0, 1, 2, 3) == pytest.approx(1.0)  # four values, four cells, each as often
    assert of(5, 5, 5) == pytest.approx(1.0)
    counts = np.array([3, 1]) / 4
    assert of(0, 0, 0, 1) == pytest.approx(np.exp(-(counts * np.log(counts)).sum()) / 2)
    grid = np.stack(np.meshgrid(np.arange(3), [-5.0, 5.0]), -1).reshape(-1, 2)
    assert of(*grid) == pytest.approx(1.0)
    assert of(*np.repeat(grid, 3, axis=0)) == pytest.approx(1.0)
    assert of(*grid, *[grid[0]] * 50) < 0.4
    far = np.array([100, 2]) / 102  # in the first of 32 cells and in the last, of a range without its outermost percent
    spread = np.concatenate([np.linspace(0, 1, 100), [1000, 1e6]])
    assert of(*spread) == pytest.approx(np.exp(-(far * np.log(far)).sum()) / 32)


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (OBSERVED, BOX),
        (OBSERVED, spaces.Box(-1, 1, (9,), np.float32)),
        (NESTED, spaces.MultiDiscrete([2, 3])),
        (spaces.Discrete(4), spaces.Discrete(3)),
    ],
)
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_dataset_is_drawn(space: Any, action: Any, ending: str, tmp_path: Path) -> None:
    dataset = sampled(space, action)
    out = draw(dataset, summarised(dataset), tmp_path / f"picture{ending}")
    assert out.stat().st_size > 10_000
    with pytest.raises(UsageError, match=r"must be \.png, \.pdf or \.svg"):
        draw(dataset, summarised(dataset), tmp_path / "picture.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "more than 100 deep"),
        ("[1]", r"it is \[1\]; expected an object"),
        ("{}", "its description is not of the form that steepest writes: it has no schema|'arrays'"),
        ('{"schema": 1, "schema": 1}', "it has 'schema' twice"),
        ({"schema": "1"}, 'schema is "1"; expected a whole number'),
        ({"schema": 99}, "has schema 99, and this version of steepest reads up to"),
        ({"env": ["CartPole-v1"]}, r'env is \["CartPole-v1"\]; expected text'),
        ({"env": "half \ud83d"}, "env holds half a character"),
        ({"env_kwargs": 3}, "env_kwargs is 3; expected an object"),
        ({"max_episode_steps": "many"}, 'max_episode_steps is "many"; expected a whole number'),
        ({"reference": {"random": 0.0}}, "reference has no expert"),
        ({"reference": {"random": "low", "expert": 1.0}}, 'reference.random is "low"; expected a number'),
        ({"arrays": 3}, "cannot be read as a folder of arrays"),
        ({"arrays": ["../action"]}, "cannot be read as a folder of arrays"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_description_of_another_form_is_refused(text: str | dict[str, Any], message: str, tmp_path: Path) -> None:
    """Of a folder, and of a file that holds the same."""
    dataset = steepest.collect("random", "CartPole-v1", steps=20, out=tmp_path / "data")
    assert read_dataset(tmp_path / "data").steps == dataset.steps == 20
    path = tmp_path / "data" / "dataset.json"
    whole = text if isinstance(text, str) else json.dumps({**json.loads(path.read_text()), **text})
    path.write_text(whole)
    with pytest.raises(UsageError, match=message) as error:
        read_dataset(tmp_path / "data")
    assert len(str(error.value)) < 500
