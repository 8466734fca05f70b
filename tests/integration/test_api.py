"""Everything that the command does, as Python calls; and what only Python can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers_runs import differences
from torch import Tensor, nn

import steepest
from steepest import Run, UsageError

TINY: dict[str, Any] = {"rollout_steps": 16, "hidden_sizes": (8,), "num_envs": 4, "eval_episodes": 2, "compile": "off"}
SHORT: dict[str, Any] = {**TINY, "total_steps": 512, "minibatches": 2, "epochs": 1}


def same(one: Any, other: Any) -> bool:
    """Whether two agents are the same to the bit."""
    tensors, others = one.tensors(), other.tensors()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[k], others[k]) for k in tensors)


def test_train_load_evaluate_plot(tmp_path: Path) -> None:
    out = tmp_path / "run"
    agent = steepest.train("ppo", "CartPole-v1", out=out, **SHORT)
    assert same(agent, steepest.load(out))
    assert same(agent, steepest.load(str(out)))
    (by_agent,) = steepest.evaluate(agent, "CartPole-v1", episodes=4)
    (by_folder,) = steepest.evaluate(out, episodes=4)
    assert by_agent == by_folder
    assert len(by_agent.returns) == 4
    assert by_agent.summary()["mean"] == by_agent.mean
    picture = steepest.plot([out], tmp_path / "curve.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("given", [None, 3, b"runs/one", {"a": 1}, [1.5], float("nan")], ids=repr)
def test_what_is_no_path_is_refused(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a folder made that has the text of an object for its name."""
    monkeypatch.chdir(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: steepest.load(given),
        lambda: steepest.evaluate(given),
        lambda: steepest.resume(given),
        lambda: steepest.Run.resume(given),
        lambda: steepest.resume_language(given),
        lambda: steepest.collect_replay(given),
        lambda: steepest.plot([given]),
    ]
    if given is not None:
        calls += [
            lambda: steepest.train("ppo", "CartPole-v1", out=given, **SHORT),
            lambda: steepest.plot("runs/one", given),
            lambda: steepest.collect("random", "CartPole-v1", steps=10, out=given),
            lambda: steepest.ope([given], {"a": 1}),
        ]
    for call in calls:
        with pytest.raises(UsageError, match=r"; expected a path$|the arrays lacks|is no agent"):
            call()
    with pytest.raises(UsageError, match=r"^algorithm is .*; expected the name of one, such as 'ppo'"):
        steepest.train(given, "CartPole-v1", **SHORT)
    assert list(tmp_path.iterdir()) == []


def test_plot_takes_one_run_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        steepest.train("ppo", "CartPole-v1", out=f"runs/{name}", **SHORT)
    for number, runs in enumerate(
        ("runs/one", Path("runs/one"), tmp_path / "runs" / "two", ["runs/one", Path("runs/two")])
    ):
        assert steepest.plot(runs, f"{number}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"no run at .*runs/three: it does not exist"):
        steepest.plot("runs/three")
    with pytest.raises(UsageError, match="nothing to plot"):
        steepest.plot([])


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = steepest.train("reinforce", "CartPole-v1", **TINY, total_steps=256)
    assert list(tmp_path.iterdir()) == []
    assert agent.act(np.zeros(4, np.float32))[0] in (0, 1)
    assert steepest.evaluate(agent, episodes=2) == steepest.evaluate(agent, "CartPole-v1", episodes=2)


def test_training_does_not_touch_global_randomness() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    steepest.train("ppo", "CartPole-v1", **SHORT)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_trained_together_are_agents_apart(tmp_path: Path) -> None:
    agents = steepest.train_seeds("ppo", "CartPole-v1", seeds=3, out=tmp_path / "run", seed=7, **SHORT)
    assert [agent.seeds for agent in agents] == [(7,), (8,), (9,)]
    results = steepest.evaluate(tmp_path / "run", episodes=2)
    assert len(results) == 3
    for agent in agents:
        assert agent.act(np.zeros(4, np.float32))[0] in (0, 1)


def test_seeds_with_settings_of_their_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SHORT, "seeds": 2, "vary": {"learning_rate": [1e-3, 1e-2], "gamma": [0.9, 0.8]}}
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **options) as run:
        list(run)
    assert [m.config.learning_rate for m in map(run.agent.member, (0, 1))] == [1e-3, 1e-2]
    assert run.summary()["varied"] == {"learning_rate": [1e-3, 1e-2], "gamma": [0.9, 0.8]}
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **options) as run:
        for _ in zip(run, range(3), strict=False):
            pass
    with Run.resume(tmp_path / "left") as run:
        list(run)
    assert differences(tmp_path / "alone", tmp_path / "left") == []
    agent = steepest.load(tmp_path / "left")
    assert agent.population.varied == {"learning_rate": (1e-3, 1e-2), "gamma": (0.9, 0.8)}
    with pytest.raises(UsageError, match="rollout_steps cannot differ between the members"):
        Run("ppo", "CartPole-v1", **{**options, "vary": ["rollout_steps=8,16"]})


def test_a_run_is_left_and_taken_up_again(tmp_path: Path) -> None:
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **SHORT) as run:
        expected = [row["step"] for row in run]
    with Run("ppo", "CartPole-v1", out=tmp_path / "left", **SHORT) as run:
        steps = []
        for row in run:
            steps.append(row["step"])
            if len(steps) == 3:
                break
        assert not run.done
        assert not (tmp_path / "left" / "summary.json").exists()
        steps += [row["step"] for row in run]
        assert run.done
        assert list(run) == [], "there is nothing left to do"
    assert steps == expected
    assert differences(tmp_path / "alone", tmp_path / "left") == []


def test_rows_hold_what_is_due() -> None:
    with Run("ppo", "CartPole-v1", eval_every=128, **SHORT) as run:
        rows = list(run)
    assert rows[0]["seed"] == 0
    assert rows[-1]["step"] >= 512
    assert rows[-1]["eval/episodes"] == 2
    assert 3 <= sum("eval/return_mean" in row for row in rows) <= 6
    with Run("ppo", "CartPole-v1", seeds=2, **SHORT) as run:
        rows = list(run)
    assert "health/entropy" in rows[-1]


# Networks


class Plain(nn.Module):
    """A torso of the user's own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, 8), nn.LayerNorm(8), nn.SiLU())

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


class Counting(nn.Module):
    """Counts its calls and keeps a running mean, in buffers that it writes to."""

    seen: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.linear = nn.Linear(size, 8)
        self.register_buffer("scale", torch.full((1,), 0.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(size))

    def forward(self, obs: Tensor) -> Tensor:
        if self.in_place:
            self.seen += 1
            self.mean.mul_(0.9).add_(0.1 * obs.detach().mean(0))
        return torch.tanh(self.linear((obs - self.mean) * self.scale))


def plain(spec: Any) -> nn.Module:
    return Plain(spec.fields[0].shape[0])


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_a_network_of_the_users_own(algorithm: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = SHORT if algorithm == "ppo" else {**TINY, "total_steps": 512}
    agent = steepest.train(algorithm, "CartPole-v1", network=plain, out=out, **options)
    assert any("layers.1.weight" in name for name in agent.parameters)
    for call in (lambda: steepest.load(out), lambda: steepest.evaluate(out), lambda: steepest.resume(out)):
        with pytest.raises(UsageError, match="custom network"):
            call()
    assert same(agent, steepest.load(out, network=plain))
    assert len(steepest.evaluate(out, network=plain, episodes=2)[0].returns) == 2
    extended = steepest.resume(out, network=plain, total_steps=1024)
    assert not same(agent, extended)
    with pytest.raises(UsageError, match="does not fit"):
        steepest.load(out, network=lambda spec: Counting(4, in_place=False))


def test_a_network_that_only_reads_its_buffers_keeps_them(tmp_path: Path) -> None:
    notes: list[str] = []
    with Run("ppo", "CartPole-v1", network=lambda s: Counting(4, in_place=False), note=notes.append, **SHORT) as run:
        list(run)
    buffers = {k: v for k, v in run.agent.state.items() if k.startswith("buffers/")}
    assert sum(k.endswith("scale") for k in buffers) == 2, "one each of policy and value function"
    assert all(torch.equal(v, torch.full((1, 1), 0.5)) for k, v in buffers.items() if k.endswith("scale"))
    assert not any("going on" in note for note in notes)


@pytest.mark.parametrize(
    ("seeds", "compile"), [(1, "off"), (2, "off"), (1, "on"), pytest.param(2, "on", marks=pytest.mark.slow)]
)
def test_a_network_that_writes_its_buffers_in_place(seeds: int, compile: str, tmp_path: Path) -> None:
    """What cannot be done in one fused step is done by ordinary autograd, saying so; the buffers are kept."""
    notes: list[str] = []
    options = {**SHORT, "compile": compile, "seeds": seeds}
    run = Run("ppo", "CartPole-v1", network=lambda s: Counting(4, in_place=True), note=notes.append, **options)
    with run:
        run.iterate()
        first = {k: v.clone() for k, v in run.agent.state.items() if k.startswith("buffers/")}
        run.iterate()
    second = {k: v for k, v in run.agent.state.items() if k.startswith("buffers/")}
    assert torch.isfinite(run.agent.state["params"]).all()
    if compile == "on":
        assert any("going on with" in note for note in notes), notes
    for name, before in first.items():
        if name.endswith("seen"):
            assert (second[name] > before).all(), f"{name} was not kept"
        if name.endswith("scale"):
            assert torch.equal(second[name], torch.full_like(before, 0.5))
        if name.endswith("mean"):
            assert torch.isfinite(second[name]).all()
            assert not torch.equal(second[name], before)
    run.agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors", network=lambda s: Counting(4, in_place=True))
    assert same(run.agent, loaded)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda spec: nn.Flatten(0), "features"),
        (lambda spec: nn.Linear(3, 8), ""),
        (lambda spec: 3, ""),
    ],
)
def test_a_network_that_does_not_fit_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(UsageError, match="network.*" + message):
        Run("ppo", "CartPole-v1", network=factory, **SHORT)


# Environments


class Bandit(gym.Env[Any, Any]):
    """Action 1 pays."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, pay: float = 1.0) -> None:
        self.pay = pay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 5
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.ones(2, np.float32), self.pay * float(action), self.left == 0, False, {}


def test_a_factory_of_environments(tmp_path: Path) -> None:
    options = {**SHORT, "total_steps": 6000, "learning_rate": 0.01}
    agent = steepest.train("ppo", Bandit, out=tmp_path / "run", **options)
    assert agent.act(np.ones(2, np.float32), deterministic=True)[0] == 1
    assert steepest.evaluate(agent, Bandit, episodes=3)[0].mean == 5.0
    for source in (agent, tmp_path / "run"):
        with pytest.raises(UsageError, match="on which environment"):
            steepest.evaluate(source)
    assert steepest.evaluate(tmp_path / "run", Bandit, episodes=3)[0].mean == 5.0
    with pytest.raises(UsageError, match="pass it again"):
        steepest.resume(tmp_path / "run")
    steepest.resume(tmp_path / "run", env=Bandit, total_steps=7000)


class Wrapped(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that makes what it wraps."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))


def test_a_wrapper_class_is_a_factory() -> None:
    with Run("ppo", Wrapped, **SHORT) as run:
        assert run.name == "Wrapped"
        run.iterate()


def test_arguments_of_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "run"
    steepest.train("ppo", Bandit, env_kwargs={"pay": 2.0}, out=out, **SHORT)
    assert steepest.evaluate(out, Bandit, episodes=2, deterministic=False)[0].mean % 2.0 == 0.0
    steepest.train("ppo", "FrozenLake-v1", env_kwargs={"is_slippery": False}, out=tmp_path / "lake", **SHORT)
    assert len(steepest.evaluate(tmp_path / "lake", episodes=2)[0].returns) == 2


def test_an_environment_that_is_made_already() -> None:
    notes: list[str] = []
    env = Bandit()
    with Run("ppo", env, note=notes.append, **{**SHORT, "num_envs": 1}) as run:
        list(run)
    assert any("not evaluating" in note and "eval_env" in note for note in notes), "there is only one, and it is busy"
    made = gym.make("CartPole-v1")
    agent = steepest.train("ppo", made, **{**SHORT, "num_envs": 2})
    assert agent.act(np.zeros(4, np.float32))[0] in (0, 1)
    with pytest.raises(UsageError, match="factory"):
        Run("ppo", Bandit(), **{**SHORT, "num_envs": 2})


def test_a_vector_environment() -> None:
    notes: list[str] = []
    venv = gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")
    with Run("ppo", venv, note=notes.append, **SHORT) as run:
        list(run)
    assert any("not evaluating" in note for note in notes)
    venv = gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")
    with Run("ppo", venv, eval_env="CartPole-v1", **SHORT) as run:
        list(run)
        assert len(run.evaluations[0].returns) == 2
    with pytest.raises(UsageError, match="num_envs"):
        Run("ppo", gym.make_vec("CartPole-v1", 3, vectorization_mode="sync"), **SHORT)


def test_train_goes_on_with_an_agent(tmp_path: Path) -> None:
    agent = steepest.train("ppo", "CartPole-v1", **SHORT)
    agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors")
    ahead = steepest.train("ppo", "CartPole-v1", agent=loaded, **{**SHORT, "seed": 1})
    assert not same(agent, ahead)
    assert same(agent, loaded), "the agent that was given stays as it is"
    assert float(ahead.state["adam_count"]) > float(agent.state["adam_count"])
    with pytest.raises(UsageError, match="has other observations"):
        steepest.train("ppo", "Acrobot-v1", agent=loaded, **SHORT)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_learns_within_seconds(algorithm: str) -> None:
    """Cheap enough for every test run; what is reached in the end is for tests/learning."""
    options = {"seed": 1, "total_steps": 20_000, "eval_every": 2_000, "eval_episodes": 10, "compile": "off"}
    with Run(algorithm, "CartPole-v1", **options) as run:
        (untrained,) = steepest.evaluate(run.agent, "CartPole-v1", episodes=10, seed=1)
        scores = [row["eval/return_mean"] for row in run if "eval/return_mean" in row]
    if algorithm == "ppo":
        assert max(scores) >= 150, scores
    assert max(scores) > untrained.mean + 10, scores


@pytest.mark.parametrize("kind", ["env", "vector"])
def test_evaluation_never_plays_the_training_environment(kind: str) -> None:
    """Training bits are the same with and without evaluation, also where there is only one environment to play."""

    def parameters(eval_episodes: int) -> tuple[Any, list[str]]:
        env = gym.make("CartPole-v1") if kind == "env" else gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")
        notes: list[str] = []
        n = 1 if kind == "env" else 4
        sizes = {"num_envs": n, "rollout_steps": 32, "minibatches": 1, "epochs": 1}
        run = steepest.Run(
            "ppo", env, total_steps=128 * n, eval_every=32 * n, eval_episodes=eval_episodes, note=notes.append, **sizes
        )
        with run:
            for _ in run:
                pass
            env.close()
            return run.agent.state["params"].clone(), notes

    with_evaluation, notes = parameters(1 if kind == "env" else 4)
    without, _ = parameters(0)
    assert (with_evaluation == without).all()
    assert any("training uses the one environment" in note for note in notes)


def test_a_damaged_interrupted_agent_does_not_hide_a_good_checkpoint(tmp_path: Path) -> None:
    steepest.train("ppo", "CartPole-v1", total_steps=1024, eval_episodes=0, out=tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    good = next(folder.glob("step-*.safetensors"))
    (folder / "interrupted.safetensors").write_bytes(good.read_bytes()[:-7])
    with pytest.warns(RuntimeWarning, match=f"Taking {good.name} instead"):
        agent = steepest.load(tmp_path / "run")
    assert (agent.state["params"] == steepest.load(good).state["params"]).all()
