"""Runs on datasets: what every algorithm learns from one, resuming, populations, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers_runs import differences, start_command, steepest_command, stray_files, wait_for_step

import steepest
from steepest import Run, UsageError
from steepest.agents.replay_updates import ReplayAgent
from steepest.algorithms import ALGORITHMS, find
from steepest.experience.datasets.dataset import Dataset, RecordedEpisode, from_episodes
from steepest.experience.datasets.places import is_dataset
from steepest.runs.store.metrics import read_metrics
from tiny_problems import Aim, Bandit, Chain, TinyProblem

OFFLINE = sorted(name for name in ALGORITHMS if issubclass(find(name), ReplayAgent))

QUICK: dict[str, Any] = {
    "hidden_sizes": (64,),
    "batch_size": 64,
    "learning_rate": 0.02,
    "critic_learning_rate": 0.02,
    "learning_rate_schedule": "linear",
    "target_update_rate": 0.05,
    "target_update_every": 1,
    "temperature": 0.02,
    "updates_per_call": 10,
    "steps_per_iteration": 100,
}
"""What learns a tiny problem from data in a second. Every algorithm takes the options that it has."""

PACE: dict[str, dict[str, Any]] = {
    "bc": {"best_fraction": 0.1},
    "cql": {"conservative_weight": 0.1},
    "discrete_cql": {"conservative_weight": 0.1, "final_epsilon": 0.0, "initial_epsilon": 0.0},
    "dqn": {"final_epsilon": 0.0, "initial_epsilon": 0.0},
    "iql": {"expectile": 0.9},
    "rebrac": {"policy_penalty": 0.001},
    "td3_bc": {"policy_penalty": 0.001},
}


def played(problem: type[TinyProblem], episodes: int, sign: float = 1.0, seed: int = 0) -> Dataset:
    """Episodes of uniformly random actions."""
    env: Any = problem(sign)
    env.action_space.seed(seed)
    found = []
    for number in range(episodes):
        obs, actions, rewards, over = [env.reset(seed=seed + number)[0]], [], [], False
        while not over:
            actions.append(env.action_space.sample())
            following, reward, over, _, _ = env.step(actions[-1])
            obs.append(following)
            rewards.append(reward)
        found.append(RecordedEpisode(np.array(obs), np.array(actions), np.array(rewards), True, False))
    return from_episodes(found, source="the tiny dataset")


def options_of(algorithm: str, **options: Any) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(find(algorithm).Config)}
    taken = {k: v for k, v in (QUICK | PACE.get(algorithm, {})).items() if k in known}
    return {"compile": "off", "eval_episodes": 0, "total_steps": 600, **taken, **options}


def problems_of(algorithm: str) -> list[type[TinyProblem]]:
    return [
        p for p in (Bandit, Chain, Aim) if (p is Aim) == ("box" in _kinds(algorithm)) or len(_kinds(algorithm)) == 2
    ]


def _kinds(algorithm: str) -> set[str]:
    return set(find(algorithm).action_kinds) & {"box", "discrete"}


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [(a, p) for a in OFFLINE for p in problems_of(a)],
)
def test_learns_from_a_dataset(algorithm: str, problem: type[TinyProblem]) -> None:
    """Uniformly random actions are enough to find the best policy; nothing is played."""
    data = played(problem, 2000 if problem is Chain else 400)
    steps = 600 if "discrete" in find(algorithm).action_kinds else 1500
    with Run(algorithm, problem, data=data, **options_of(algorithm, total_steps=steps)) as run:
        rows = list(run)
        score = problem.score(run.agent)
    assert [row["step"] for row in rows] == list(range(100, steps + 1, 100))
    assert "train/return_mean" not in rows[-1]
    assert abs(score - problem.best) < 0.06


@pytest.mark.parametrize("algorithm", ["iql", "cql", "discrete_cql", "awac"])
def test_rewards_of_the_other_sign_teach_the_opposite(algorithm: str) -> None:
    """Negative control: the same actions, recorded with what they are not worth."""
    problem = Aim if algorithm == "cql" else Bandit
    data = played(problem, 400, sign=-1.0)
    with Run(algorithm, problem, data=data, **options_of(algorithm)) as run:
        list(run)
        assert abs(problem.score(run.agent) - problem.best) > 0.3


def test_cloning_takes_what_there_is_and_the_best_of_it_more() -> None:
    """All of a uniform policy's episodes are its clone; the best tenth are those that never erred."""
    data = played(Chain, 2000)
    with Run("bc", Chain, data=data, **options_of("bc", best_fraction=1.0)) as run:
        list(run)
        assert abs(Chain.score(run.agent) - Chain.indifferent) < 0.08


def state_of(run: Run) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in run.agent.state.items()}


@pytest.mark.parametrize("algorithm", ["bc", "iql", "awac", "rebrac", "td3_bc", "cql", "discrete_cql", "sac"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_resuming_gives_the_same_bits(algorithm: str, seeds: int, tmp_path: Path) -> None:
    """Left after an uneven number of iterations; the whole run without a folder is the reference."""
    problem = Aim if "box" in find(algorithm).action_kinds else Bandit
    data = played(problem, 100)
    more = {"seeds": seeds, "checkpoint_every": 100, "tensorboard": False}
    more |= {"gap_threshold": 1.0, "regulariser": "behaviour"} if algorithm.endswith("cql") else {}
    options = options_of(algorithm, **more)
    with Run(algorithm, problem, data=data, **options) as whole:
        list(whole)
        expected = state_of(whole)
    with Run(algorithm, problem, data=data, out=tmp_path / "run", **options) as left:
        for row in left:
            if row["step"] >= 300:
                break
    with Run.resume(tmp_path / "run", env=problem, data=data) as again:
        assert 0 < again.step < 600
        list(again)
        found = state_of(again)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if row["seed"] == 0]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("algorithm", ["cql", "td3_bc"])
def test_a_killed_run_resumes_to_the_same_bits(algorithm: str, tmp_path: Path) -> None:
    """From a file, by the command; killed while it trains."""
    data = tmp_path / "data.npz"
    steepest.collect("random", "Pendulum-v1", steps=1000, out=data)
    arguments = ["train", algorithm, data, "--total-steps", 600, "--compile", "off", "--hidden-sizes", 16]
    arguments += ["--steps-per-iteration", 20, "--checkpoint-every", 60, "--eval-episodes", 1, "--no-tensorboard"]
    arguments += ["--batch-size", 32, "--seeds", 2]
    assert steepest_command(*arguments, "--out", tmp_path / "alone").returncode == 0
    killed = tmp_path / "killed"
    process = start_command(*arguments, "--out", killed)
    wait_for_step(killed, 200, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = steepest_command("train", "--resume", killed)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-" in done.stderr
    assert differences(tmp_path / "alone", killed) == []
    assert stray_files(killed) == []


def test_the_command_takes_what_the_data_says_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments and its time limit too; and a folder is data only if it holds some."""
    data, out = tmp_path / "data.npz", tmp_path / "run"
    steepest.collect("random", "Pendulum-v1", steps=300, out=data, env_kwargs={"g": 5.0}, max_episode_steps=30)
    arguments = ["train", "td3_bc", data, "--total-steps", 20, "--compile", "off", "--hidden-sizes", 8, "--out", out]
    done = steepest_command(*arguments, "--eval-episodes", 1, "--batch-size", 8, "--no-tensorboard")
    assert done.returncode == 0, done.stderr
    saved = json.loads((out / "config.json").read_text())
    assert (saved["env"], saved["env_kwargs"], saved["data"]) == ("Pendulum-v1", {"g": 5.0}, str(data))
    assert saved["run"]["max_episode_steps"] == 30
    assert [row["eval/episode_length_mean"] for row in read_metrics(out) if "eval/episodes" in row] == [30]
    monkeypatch.chdir(tmp_path)
    Path("CartPole-v1").mkdir()
    assert [is_dataset(x) for x in ("CartPole-v1", "Pendulum-v1", "data.npz", "minari:a/b-v0", "no.hdf5")] == [
        False, False, True, True, True,
    ]  # fmt: skip


def test_as_many_steps_are_taken_as_were_asked_for(tmp_path: Path) -> None:
    """The last iteration is shorter; a run that is extended goes on from there."""
    data = played(Bandit, 50)
    options = options_of("iql", total_steps=250, updates_per_call=5, checkpoint_every=100)
    with Run("iql", Bandit, data=data, out=tmp_path / "run", **options) as run:
        assert [row["step"] for row in run] == [100, 200, 250]
    with Run.resume(tmp_path / "run", env=Bandit, data=data, total_steps=410) as more:
        assert [row["step"] for row in more] == [350, 410]


class Pictures(TinyProblem):
    """As ``Bandit``, seen as a picture and a number."""

    observation_space = spaces.Dict(
        {"picture": spaces.Box(0, 255, (36, 36, 1), np.uint8), "place": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    )
    action_space = spaces.Discrete(2)

    def begin(self) -> Any:
        self.context = int(self.np_random.integers(2))
        picture = np.zeros((36, 36, 1), np.uint8)
        picture[:, 18 * self.context : 18 * self.context + 18] = 255
        return {"picture": picture, "place": np.zeros(2, np.float32)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.begin(), self.sign * float(action == self.context), True, False, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        env = cls()
        env.reset(seed=0)
        right = []
        for _ in range(60):
            obs = env.begin()
            right.append(int(agent.act(obs)[0]) == env.context)
        return float(np.mean(right))


@pytest.mark.parametrize("algorithm", ["iql", "discrete_cql"])
def test_learns_from_pictures_and_dictionaries(algorithm: str) -> None:
    """The rewarded context is that of before the step; the next observation is another picture."""
    env, episodes = Pictures(), []
    rng = np.random.default_rng(0)
    for number in range(200):
        obs, action = env.reset(seed=number)[0], int(rng.integers(2))
        paid = float(action == env.context)
        both = {k: np.stack([obs[k], x]) for k, x in env.begin().items()}
        episodes.append(RecordedEpisode(both, np.array([action]), np.array([paid]), True, False))
    options = options_of(algorithm, total_steps=200, batch_size=32, learning_rate=1e-3, critic_learning_rate=1e-3)
    options = {k: v for k, v in options.items() if k != "critic_learning_rate" or algorithm == "iql"}
    with Run(algorithm, Pictures, data=from_episodes(episodes), **options) as run:
        list(run)
        assert Pictures.score(run.agent) > 0.9


def test_a_changed_dataset_is_refused(tmp_path: Path) -> None:
    data = played(Bandit, 100)
    options = options_of("iql", checkpoint_every=100)
    with Run("iql", Bandit, data=data, out=tmp_path / "run", **options) as run:
        run.iterate()
        run.iterate()
    reward = data.reward.copy()
    reward[0] += 1.0
    changed = dataclasses.replace(data, reward=reward)
    with pytest.raises(UsageError, match="the tiny dataset has changed since the run began"):
        Run.resume(tmp_path / "run", env=Bandit, data=changed)
    with pytest.raises(UsageError, match=r"trained on .* made in Python; pass it again: data="):
        Run.resume(tmp_path / "run", env=Bandit)


def test_what_data_cannot_teach_is_refused() -> None:
    data = played(Bandit, 20)
    with pytest.raises(UsageError, match="ppo learns from what it plays itself, not from data; cql"):
        Run("ppo", Bandit, data=data)
    with pytest.raises(UsageError, match="bc learns from data alone: steepest train bc DATA"):
        Run("bc", Bandit)
    with pytest.raises(UsageError, match="the observations are not those of the environment"):
        Run("iql", Chain, data=dataclasses.replace(data, obs=np.full(len(data.valid), 7)), eval_episodes=0)
    with pytest.raises(UsageError, match="actions have the shape"):
        Run("iql", Aim, data=dataclasses.replace(data, obs=np.zeros((len(data.valid), 1), np.float32)))
    with pytest.raises(UsageError, match="prioritized is True; minibatches of a dataset are drawn uniformly"):
        Run("dqn", Bandit, data=data, prioritized=True)
    with pytest.raises(UsageError, match=r"regulariser is 'entrophy'.*entropy, behaviour, or FILE.py:FUNCTION"):
        Run("discrete_cql", Bandit, data=data, regulariser="entrophy")


def test_observations_are_normalised_by_the_dataset() -> None:
    """Mean and variance over its steps, fixed before the first gradient step, for every member."""
    data = played(Aim, 50)
    with Run("td3_bc", Aim, data=data, **options_of("td3_bc", seeds=2)) as run:
        before = state_of(run)
        list(run)
        for state in (before, state_of(run)):
            seen = np.asarray(data.obs)[data.valid]
            for member in range(2):
                np.testing.assert_allclose(state["obs_mean/obs"][member], seen.mean(0), rtol=1e-6)
                np.testing.assert_allclose(state["obs_variance/obs"][member], seen.var(0), rtol=1e-6)


def test_it_is_evaluated_where_there_is_an_environment() -> None:
    """At its intervals in gradient steps, and at the end; the last evaluation is the one that is reported."""
    with Run("iql", Bandit, data=played(Bandit, 100), **options_of("iql", eval_episodes=20, eval_every=300)) as run:
        rows = list(run)
    evaluated = [row["step"] for row in rows if "eval/return_mean" in row]
    assert evaluated == [300, 600]
    assert run.evaluations[0].mean > 0.9


def test_train_returns_the_agent_of_a_dataset() -> None:
    agent = steepest.train("iql", Bandit, data=played(Bandit, 100), **options_of("iql"))
    assert Bandit.score(agent) > 0.9


@pytest.mark.compiles
@pytest.mark.parametrize("algorithm", ["cql", pytest.param("iql", marks=pytest.mark.slow)])
def test_compiled_learns_as_eager(algorithm: str) -> None:
    data = played(Aim, 200)
    scores = []
    for mode in ("off", "on"):
        options = options_of(algorithm, compile=mode, updates_per_call=2, total_steps=400, steps_per_iteration=50)
        with Run(algorithm, Aim, data=data, **options) as run:
            rows = list(run)
            scores.append((Aim.score(run.agent), rows[0]["health/critic_loss"]))
    assert scores[1][0] == pytest.approx(scores[0][0], abs=0.05)
    assert scores[1][1] == pytest.approx(scores[0][1], rel=1e-4)
