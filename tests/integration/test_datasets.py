"""Datasets end to end: collected by policies, written, shown, read back; and what is malformed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers_runs import start_command

import steepest
from helpers_envs import Counting
from steepest.api import datasets
from steepest.cli import main
from steepest.errors import RunError, UsageError
from steepest.experience.datasets.dataset import Dataset, parts
from steepest.experience.datasets.folders import arrays_of
from steepest.experience.datasets.recording import UniformPolicy
from steepest.runs.evaluate import Evaluation

INFINITY = float("inf")
TINY: dict[str, Any] = {"hidden_sizes": (8,), "compile": "off", "eval_episodes": 2, "tensorboard": False}


def run_cli(*arguments: object) -> int:
    """The command in this process: what it prints is captured by pytest."""
    return main.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    steepest.train("ppo", "Pendulum-v1", out=out, total_steps=512, num_envs=2, rollout_steps=64, **TINY)
    return out


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A run of DQN in an environment that counts, with a replay buffer of so many rows."""

    def run(size: int) -> Path:
        out = tmp_path_factory.mktemp("replay") / "run"
        options = {"num_envs": 2, "learning_starts": 20, "batch_size": 8, "buffer_size": size, "checkpoint_every": 150}
        steepest.train("dqn", Counting, out=out, total_steps=400, **options, **TINY)
        return out

    return run


def same(one: Dataset, other: Dataset) -> None:
    assert arrays_of(one).keys() == arrays_of(other).keys()
    for name, array in arrays_of(one).items():
        where = slice(None) if name.startswith("obs") else one.valid
        np.testing.assert_array_equal(array[where], arrays_of(other)[name][where], err_msg=name)


# Collect, show, read back


@pytest.mark.parametrize("place", ["data.npz", "data.h5", "rows", "minari:cartpole/random-v0"])
def test_collect_show_and_read_back(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("collect", "random", "CartPole-v1", "--steps", 300, "--out", place, "--reference", 20, 500) == 0
    captured = capsys.readouterr()
    assert "300 steps in" in captured.out
    assert f"steepest dataset show {place}" in captured.out
    assert "random on CartPole-v1, seed 0" in captured.err
    given = steepest.collect("random", "CartPole-v1", steps=300, reference=(20, 500))
    back = steepest.read_dataset(place)
    same(given, back)
    assert (back.env, back.reference) == ("CartPole-v1", (20.0, 500.0))
    assert run_cli("dataset", "show", place, "--out", "data.png") == 0
    text = capsys.readouterr().out
    assert "300 steps in" in text
    assert "picture: data.png" in text
    assert Path("data.png").read_bytes().startswith(b"\x89PNG")
    assert run_cli("dataset", "show", place, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(steepest.dataset_summary(back).as_dict()))
    assert run_cli("collect", "random", "CartPole-v1", "--steps", 300, "--out", place) == 2
    assert "already" in capsys.readouterr().err


class Logged(gym.Env[Any, Any]):
    """Samples its observations and rewards, refuses actions outside its space, and keeps all that happened."""

    def __init__(self, observation: Any, action: Any, masks: bool = False) -> None:
        self.observation_space, self.action_space, self.masks = observation, action, masks
        self.log: list[tuple[str, Any]] = []

    def look(self) -> tuple[Any, dict[str, Any]]:
        obs = self.observation_space.sample()
        if not self.masks:
            return obs, {}
        self.mask = np.zeros(self.action_space.n, np.int8)
        self.mask[self.np_random.integers(self.action_space.n, size=2)] = 1
        return obs, {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(2, 6))
        obs, info = self.look()
        self.log.append(("reset", obs))
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.action_space.shape == ():
            action = np.asarray(action, self.action_space.dtype)[()]
            action = np.asarray(action) if isinstance(self.action_space, spaces.Box) else action
        assert self.action_space.contains(action)
        assert not self.masks or self.mask[action - self.action_space.start]
        obs, info = self.look()
        self.left -= 1
        terminated = self.left == 0 and bool(self.np_random.random() < 0.5)
        step = (obs, float(np.float32(self.np_random.normal())), terminated, self.left == 0 and not terminated)
        self.log.append(("step", (action, *step)))
        return *step, info


NESTED = spaces.Dict(
    goal=spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float32), kind=spaces.Discrete(3, start=1)),
    camera=spaces.Box(0, 255, (36, 36, 3), np.uint8),
)
SPACES: dict[str, tuple[Any, Any]] = {
    "vector, box": (spaces.Box(-1, 1, (3,), np.float32), spaces.Box(np.float32([-3, 0.1]), np.float32([0.2, 7]))),
    "nested, multi-discrete": (NESTED, spaces.MultiDiscrete([2, 5, 3])),
    "image channels last, discrete": (spaces.Box(0, 255, (9, 8, 3), np.uint8), spaces.Discrete(3, start=-2)),
    "image channels first, multi-binary": (spaces.Box(0, 255, (3, 9, 8), np.uint8), spaces.MultiBinary(4)),
    "grey, box of two axes": (spaces.Box(0, 255, (8, 9), np.uint8), spaces.Box(-2, 2, (2, 3), np.float64)),
    "discrete, box of no axes": (spaces.Discrete(5, start=2), spaces.Box(-2, 2, (), np.float32)),
    "multi-discrete, integers": (spaces.MultiDiscrete([2, 3]), spaces.Box(-2, 5, (2,), np.int64)),
    "tuple, multi-discrete": (
        spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2))),
        spaces.MultiDiscrete([[2, 3], [4, 2]]),
    ),
}


def named(space: Any, obs: Any) -> Any:
    if isinstance(space, spaces.Tuple):
        return {str(i): named(part, x) for i, (part, x) in enumerate(zip(space.spaces, obs, strict=True))}
    if isinstance(space, spaces.Dict):
        return {key: named(part, obs[key]) for key, part in space.spaces.items()}
    return np.asarray(obs)


def check_log(log: list[tuple[str, Any]], dataset: Dataset, space: Any) -> None:
    """Every row of the dataset is what the environment showed and took, in order."""
    position = 0
    for episode in dataset.episodes():
        steps = len(episode.reward)
        kind, first = log[position]
        assert kind == "reset"
        shown = [first]
        for t in range(steps):
            kind, (action, obs, reward, terminated, truncated) = log[position + 1 + t]
            shown.append(obs)
            np.testing.assert_array_equal(episode.action[t], action)
            assert episode.reward[t] == reward
            if t < steps - 1:
                assert (terminated, truncated) == (False, False)
        assert episode.terminated == terminated
        whole = terminated or truncated
        assert whole or episode.truncated
        for t, obs in enumerate(shown):
            for name, part in parts(named(space, obs)):
                found = dict(parts(episode.obs))[name]
                assert found.dtype == part.dtype
                np.testing.assert_array_equal(found[t], part)
        position += steps + 1


@pytest.mark.parametrize("name", SPACES)
def test_any_spaces_are_recorded_and_come_back(name: str) -> None:
    pytest.importorskip("minari")
    observation, action = SPACES[name]
    env = Logged(observation, action)
    dataset = steepest.collect("random", env, steps=60, out="minari:any-v0", seed=3)
    assert dataset.steps == 60
    check_log(env.log, dataset, observation)
    back = steepest.read_dataset("minari:any-v0")
    same(dataset, back)
    assert back.spaces == (observation, action)
    steepest.write_dataset(back, "any.npz")
    same(dataset, steepest.read_dataset("any.npz"))
    found = steepest.dataset_summary("minari:any-v0", out="any.png")
    assert (found.steps, found.notes) == (60, ())
    assert found.log_prob is not None


def test_agents_record_in_nested_spaces_and_with_masks() -> None:
    env = Logged(NESTED, spaces.Discrete(6, start=2), masks=True)
    options = {"num_envs": 1, "rollout_steps": 32, "total_steps": 64, "minibatches": 2, "recurrent": "gru"}
    agent = steepest.train("ppo", env, recurrent_size=4, **options, **TINY)
    env.log.clear()
    dataset = steepest.collect(agent, env, steps=50)
    check_log(env.log, dataset, NESTED)
    assert dataset.log_prob is not None
    assert (dataset.log_prob[dataset.valid] <= 0).all()
    steepest.dataset_summary(dataset)


def test_the_same_seed_gives_the_same_bits(trained: Path) -> None:
    files: dict[str, bytes] = {}
    for name, options in (
        ("one", ["--seed", 4]),
        ("again", ["--seed", 4]),
        ("other", ["--seed", 5]),
        ("modes", ["--seed", 4, "--deterministic"]),
        ("three", ["--seed", 4, "--num-envs", 3]),
        ("three again", ["--seed", 4, "--num-envs", 3]),
    ):
        assert run_cli("collect", trained, "--steps", 500, "--quiet", "--out", f"{name}.npz", *options) == 0
        files[name] = Path(f"{name}.npz").read_bytes()
    assert files["one"] == files["again"]
    assert files["three"] == files["three again"]
    assert len(set(files.values())) == 4
    one, modes, three = (steepest.read_dataset(f"{name}.npz") for name in ("one", "modes", "three"))
    assert one.lengths.tolist() == [200, 200, 100]
    assert three.lengths.tolist() == [167, 167, 166]
    assert modes.log_prob is None
    assert one.log_prob is not None
    agent = steepest.load(trained)
    obs = np.asarray(modes.obs)[:100]
    np.testing.assert_allclose(agent.act(obs, deterministic=True)[0], modes.action[:100], rtol=1e-5, atol=1e-6)
    executed = np.clip(one.drawn[one.valid], -1, 1) * 2
    np.testing.assert_allclose(one.action[one.valid], executed, rtol=1e-6)


def test_a_mixture_plays_its_shares(trained: Path) -> None:
    assert run_cli("collect", "--mixture", f"{trained}:0.7", "random:0.3", "--steps", 1001, "--out", "mix.npz") == 0
    mixed = steepest.read_dataset("mix.npz")
    assert mixed.env == "Pendulum-v1"
    assert mixed.steps == 1001
    uniform = mixed.log_prob[mixed.valid] == np.float32(-np.log(2))
    assert uniform[701:].all()
    assert uniform[:701].mean() < 0.05
    same(mixed, steepest.collect(mixture=[(str(trained), 0.7), ("random", 0.3)], steps=1001))


def test_references_are_measured(
    trained: Path, replayed: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="give the return of an expert"):
        steepest.collect("random", "CartPole-v1", steps=10, reference_episodes=5)

    def played(player: Any, *_: Any, **__: Any) -> list[Evaluation]:
        uniform = isinstance(player, UniformPolicy)
        return [Evaluation((-9.0,) if uniform else (-3.0, -1.0), (1,))]

    monkeypatch.setattr(datasets, "evaluate_members", played)
    dataset = steepest.collect(trained, steps=200, reference_episodes=5)
    assert dataset.reference == (-9.0, -2.0)
    assert steepest.collect_replay(replayed(10_000), env=Counting, reference=(1, 2)).reference == (1.0, 2.0)


@pytest.mark.parametrize("size", [10_000, 150])
def test_a_replay_buffer_becomes_a_dataset(size: int, replayed: Callable[[int], Path]) -> None:
    """Counting shows (index, episode, step, last action) and pays 10 episode + step."""
    run = replayed(size)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    dataset = steepest.collect_replay(run, env=Counting, out="replay.npz")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    done = json.loads((run / "summary.json").read_text())["steps"][0]
    assert dataset.steps == done if size > done else 90 <= dataset.steps <= size
    assert dataset.log_prob is None
    np.testing.assert_array_equal(dataset.drawn[dataset.valid], dataset.action[dataset.valid])
    lengths, ends = (3, 1, 4), ("terminated", "truncated", "both")
    cut = 0
    for e in dataset.episodes():
        _, episode, first, _ = e.obs[0]
        kind = int(episode) % 3
        steps = first + np.arange(len(e.obs))
        np.testing.assert_array_equal(e.obs[:, 2], steps)
        np.testing.assert_array_equal(e.obs[:, 1], episode)
        np.testing.assert_array_equal(e.obs[1:, 3], e.action)
        np.testing.assert_array_equal(e.reward, 10 * episode + steps[1:])
        if steps[-1] == lengths[kind]:
            assert e.terminated == (ends[kind] in ("terminated", "both"))
        else:
            cut += 1
            assert e.truncated
    assert cut <= 8  # where environments were restarted, and where the recording ends, of two environments
    same(dataset, steepest.read_dataset("replay.npz"))


def test_a_run_of_several_seeds_plays_one(capsys: pytest.CaptureFixture[str]) -> None:
    steepest.train_seeds("ppo", "CartPole-v1", seeds=2, out="run", total_steps=64, num_envs=2, rollout_steps=16, **TINY)
    assert run_cli("collect", "run", "--steps", 20, "--out", "a.npz") == 2
    assert "holds 2 seeds; say which with member" in capsys.readouterr().err
    assert run_cli("collect", "run", "--steps", 20, "--out", "a.npz", "--member", 2) == 2
    found = [steepest.collect("run", steps=50, member=m).action.tolist() for m in (0, 1, 1)]
    assert found[0] != found[1] == found[2]


def test_what_cannot_be_collected_is_refused(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("taken.npz").write_bytes(b"")
    steps = ("--steps", 10)
    for arguments, words in (
        (("random", "--out", "a.npz", *steps), "in which environment? Give env"),
        (("random", "CartPole-v1", "--out", "a.npz"), "how many steps?"),
        (("random", "CartPole-v1", *steps, "--out", "taken.npz"), "taken.npz exists already"),
        (("random", "CartPole-v1", *steps, "--out", "a.csv"), "cannot write a dataset to a.csv"),
        (("random", "CartPole-v1", *steps, "--out", "minari:x"), "'x' is no id of a Minari dataset"),
        (("random", "CartPole-v9", *steps, "--out", "a.npz"), "The nearest names are CartPole-v"),
        (("random", "CartPole-v1", "--steps", 0, "--out", "a.npz"), "steps is 0; expected at least 1"),
        (("random", "CartPole-v1", *steps, "--num-envs", 11, "--out", "a.npz"), "num_envs is 11"),
        (("random", "CartPole-v1", *steps, "--deterministic", "--out", "a.npz"), "no most likely action"),
        (("random", "CartPole-v1", *steps, "--reference", 9, 1, "--out", "a.npz"), "the expert's is the higher"),
        (("nowhere", *steps, "--out", "a.npz"), "there is nothing at nowhere"),
        ((trained, "CartPole-v1", *steps, "--out", "a.npz"), "the agent does not fit CartPole-v1"),
        ((trained, "--replay", "--out", "a.npz"), "has no replay buffer"),
        ((trained, "--replay", *steps, "--out", "a.npz"), "plays nothing; leave out --steps"),
        ((trained, "Pendulum-v1", "more", *steps, "--out", "a.npz"), "more is too much"),
        ((*steps, "--out", "a.npz"), "which policy?"),
        (("--mixture", f"{trained}:0.5", "random:0.4", *steps, "--out", "a.npz"), "whose sum is 1"),
        (("--mixture", f"{trained}:0.99", "random:0.01", *steps, "--out", "a.npz"), "at least 1 for every policy"),
        (("--mixture", str(trained), *steps, "--out", "a.npz"), "of the mixture has no share"),
        (("--mixture", "random:x", *steps, "--out", "a.npz"), "has the share 'x'"),
    ):
        assert run_cli("collect", *arguments, "--quiet") == 2, arguments
        assert words in capsys.readouterr().err, arguments
    assert run_cli("dataset", "list") == 2
    assert "which verb of dataset?" in capsys.readouterr().err
    assert run_cli("dataset", "--help") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.npz"]
    with pytest.raises(UsageError, match="give one policy, or a mixture"):
        steepest.collect("random", "CartPole-v1", steps=10, mixture=[("random", 1.0)])


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start_command("collect", "random", "CartPole-v1", "--steps", 10**8, "--out", tmp_path / "a.npz", log=log)
    deadline = time.monotonic() + 60
    while "step " not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import errno
    import os

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"the disk is full: could not write a\.npz"):
        steepest.collect("random", "CartPole-v1", steps=10, out="a.npz")
    assert list(tmp_path.iterdir()) == []


# What is malformed

STEPS = 6


def good() -> dict[str, Any]:
    """Pendulum's layout: two episodes of three steps, the first terminated."""
    rows = np.arange(STEPS, dtype=np.float32)
    obs = np.stack([np.cos(rows), np.sin(rows), rows / 10], 1).astype(np.float32)
    return {
        "observations": obs,
        "next_observations": np.concatenate([obs[1:3], -obs[:1], obs[4:], obs[:1]]),
        "actions": np.sin(rows)[:, None].astype(np.float32),
        "rewards": -rows,
        "terminals": rows == 2,
        "timeouts": rows == 5,
        "steepest": np.array(json.dumps({"schema": 1, "env": "Pendulum-v1"})),
    }


def put(name: str, row: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = np.array(arrays[name], np.float64)
        arrays[name][row] = value

    return change


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: [arrays.pop(name) for name in names]


def replaced(name: str, make: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({name: make(arrays.get(name))})


def described(**description: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update(
        steepest=np.array(json.dumps({"schema": 1, "env": "Pendulum-v1", **description}))
    )


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN in an observation": (put("observations", (4, 1), np.nan), "obs is not a finite number in row 5"),
    "NaN in a final observation": (put("next_observations", (2, 0), np.nan), "obs is not a finite number in row 3"),
    "infinite reward": (put("rewards", 1, np.inf), "reward is not a finite number in row 1: inf"),
    "a reward beyond float32": (put("rewards", 1, 1e300), "reward is more than float32 holds in row 1: 1e+300"),
    "an observation beyond it": (put("next_observations", (2, 0), -1e39), "obs is not a finite number in row 3"),
    "NaN in an action": (put("actions", (3, 0), np.nan), "action is not a finite number in row 4"),
    "action out of bounds": (put("actions", (0, 0), 2.5), "component 0 is 2.5 in row 0; the environment takes -2 to 2"),
    "actions too short": (replaced("actions", lambda x: x[:-1]), "the arrays differ in length: "),
    "no actions": (without("actions"), "lacks actions; it has next_observations, observations, rewards"),
    "no rewards": (without("rewards"), "lacks rewards"),
    "no terminals": (without("terminals"), "lacks terminals"),
    "no timeouts": (without("timeouts"), "has neither timeouts"),
    "masks and timeouts": (replaced("masks", lambda _: np.ones(STEPS)), "both timeouts (D4RL) and masks (OGBench)"),
    "both flags": (put("timeouts", 2, 1), "terminals and timeouts are both set in row 2"),
    "a flag of 2": (put("terminals", 2, 2), "terminals is 2.0 in row 2; expected 0 or 1"),
    "a flag that is NaN": (put("timeouts", 5, np.nan), "timeouts is nan in row 5; expected 0 or 1"),
    "flags of two axes": (replaced("terminals", lambda x: x[:, None]), "terminals has the shape (6, 1)"),
    "an end not marked": (put("terminals", 2, 0), "next_observations of row 2 is not the observation of row 3"),
    "next observations of another shape": (
        replaced("next_observations", lambda x: x[:, :2]),
        "next_observations has the shape (6, 2); expected (6, 3)",
    ),
    "rewards of two axes": (replaced("rewards", lambda x: x[:, None]), "reward has the shape (8, 1)"),
    "text for rewards": (replaced("rewards", lambda _: np.array(["a"] * STEPS)), "rewards holds <U1; expected numbers"),
    "Python objects": (replaced("rewards", lambda _: np.array([{}] * STEPS)), "not unpickled"),
    "no steps": (lambda arrays: arrays.update({k: x[:0] for k, x in arrays.items() if x.ndim}), "has no step"),
    "a single number": (replaced("rewards", lambda _: np.array(1.0)), "rewards 0"),
    "observations of another space": (
        lambda arrays: [arrays.update({k: arrays[k][:, :2]}) for k in ("observations", "next_observations")],
        "the observations are not those of the environment",
    ),
    "actions of another space": (replaced("actions", lambda x: np.tile(x, 2)), "the actions have the shape (2,)"),
    "a description that is no JSON": (replaced("steepest", lambda _: np.array("{")), "its description is not JSON"),
    "a description of a newer version": (described(schema=2), "schema 2, and this version"),
    "references the wrong way round": (described(reference={"random": 5, "expert": 1}), "the expert's is the higher"),
    "a log-probability that is infinite": (
        replaced("log_prob", lambda _: np.full(STEPS, -np.inf)),
        "log_prob is not a finite number in row 0",
    ),
}


def test_the_file_that_the_malformed_ones_are_made_from_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("good.npz", **good())
    assert run_cli("dataset", "show", "good.npz", "--out", "good.png") == 0
    assert "6 steps in 2 episodes of Pendulum-v1" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["npz", "hdf5"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(
    name: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear line on standard error, exit code 2, and nothing written."""
    change, words = MALFORMED[name]
    arrays = good()
    change(arrays)
    if ending == "npz":
        np.savez("bad.npz", **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        if any(x.dtype.kind in "O" for x in arrays.values()):
            pytest.skip("HDF5 has no Python objects")
        words = words.replace("<U1", "|S1")
        with h5py.File("bad.hdf5", "w") as file:
            file.attrs["steepest"] = str(arrays.pop("steepest"))
            for key, x in arrays.items():
                file[key] = x.astype("S") if x.dtype.kind == "U" else x
    for more in ((), ("--cache", "rows")):
        assert run_cli("dataset", "show", f"bad.{ending}", "--out", "bad.png", *more) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert words in found.err
        assert f"bad.{ending}" in found.err or "rows" in found.err or "reference returns" in found.err
        assert len(found.err.splitlines()) == 1
        if not any(about in words for about in ("the environment", "of the environment", "actions have the shape")):
            assert sorted(p.name for p in tmp_path.iterdir()) == [f"bad.{ending}"]
        else:  # the rows are good, for another environment
            assert not (tmp_path / "bad.png").exists()
    with pytest.raises(UsageError, match=r"."):
        steepest.dataset_summary(f"bad.{ending}", out="bad.png")
