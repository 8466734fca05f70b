"""Finite problems as environments: what is sampled is what the tables say."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from steepest import problems
from steepest.environments import FINITE_ENVIRONMENTS, FiniteEnv, FiniteVectorEnv, UnknownEnvironment, make_env
from steepest.environments.finite import CONTINUING_STEPS, PROBLEMS
from steepest.errors import UsageError
from steepest.problems import Problem

Array = np.ndarray[Any, Any]
GARNET = problems.garnet(4, 2, 3, 0, terminal_probability=0.1)
EPISODIC = {"steepest/RandomWalk-v0", "steepest/RandomWalk19-v0", "steepest/CliffWalking-v0"}


def chi_square(counts: Array, probabilities: Array) -> tuple[float, int]:
    """Pearson's statistic over all rows (..., S), and its degrees of freedom; infinite if the impossible happened."""
    expected = counts.sum(axis=-1, keepdims=True) * probabilities
    possible = probabilities > 0
    if counts[~possible].any():
        return np.inf, 1
    used = possible & (expected > 0)
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    return float(statistic), int(used.sum() - used.any(axis=-1).sum())


def plausible(counts: Array, probabilities: Array) -> bool:
    """Within 4 standard deviations of a chi-square variable: about 1 in 10,000 above."""
    statistic, freedom = chi_square(counts, probabilities)
    return statistic < freedom + 4.0 * (2.0 * freedom) ** 0.5 + 4.0


def sample_scalar(problem: Problem, steps: int) -> tuple[Array, Array, list[tuple[int, int, int, float]]]:
    env = FiniteEnv(problem)
    env.action_space.seed(1)
    counts, first = np.zeros(problem.transition.shape), np.zeros(problem.num_states)
    paid: list[tuple[int, int, int, float]] = []
    state = int(env.reset(seed=0)[0])
    first[state] += 1
    for _ in range(steps):
        action = env.action_space.sample()
        to, reward, terminated, truncated, _ = env.step(action)
        counts[state, action, to] += 1
        paid.append((state, int(action), int(to), reward))
        assert terminated == bool(problem.absorbing[to])
        assert not truncated
        state = int(to)
        if terminated:
            state = int(env.reset()[0])
            first[state] += 1
    return counts, first, paid


def sample_vector(problem: Problem, steps: int, n: int = 50) -> tuple[Array, Array, list[tuple[int, int, int, float]]]:
    env = FiniteVectorEnv(n, problem)
    env.action_space.seed(1)
    counts, first = np.zeros(problem.transition.shape), np.zeros(problem.num_states)
    paid: list[tuple[int, int, int, float]] = []
    state, _ = env.reset(seed=0)
    np.add.at(first, state, 1)
    restart = np.zeros(n, dtype=bool)
    for _ in range(steps // n):
        action = env.action_space.sample()
        to, reward, terminated, truncated, _ = env.step(action)
        on = ~restart
        np.add.at(counts, (state[on], action[on], to[on]), 1)
        np.add.at(first, to[restart], 1)
        paid += list(zip(state[on], action[on], to[on], reward[on], strict=True))
        assert (reward[restart] == 0.0).all()
        assert np.array_equal(terminated, problem.absorbing[to] & on)
        assert not truncated.any()
        state, restart = to, terminated
    return counts, first, paid


@pytest.mark.parametrize("sample", [sample_scalar, sample_vector])
@pytest.mark.parametrize(
    "problem", [GARNET, problems.riverswim(), problems.random_walk()], ids=["garnet", "riverswim", "random walk"]
)
def test_frequencies_match_the_transition_probabilities(sample: Any, problem: Problem) -> None:
    """Fixed seeds; the same statistic rejects a table that is a little different."""
    counts, first, paid = sample(problem, 20_000)
    assert plausible(counts, problem.transition)
    assert plausible(first, problem.initial)
    assert counts.sum() >= 15_000
    wrong = 0.93 * problem.transition + 0.07 * problem.transition[:, ::-1].mean(axis=1, keepdims=True)
    if problem.num_actions > 1:
        assert not plausible(counts, wrong)
    outcome = problem.outcome_reward
    for s, a, to, reward in paid[:2000]:
        assert reward == (problem.reward[s, a] if outcome is None else outcome[s, a, to])


def test_the_statistic_rejects() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.array([0.5, 0.3, 0.2])
    assert plausible(rng.multinomial(20_000, probabilities), probabilities)
    assert not plausible(rng.multinomial(20_000, [0.47, 0.32, 0.21]), probabilities)
    assert not plausible(np.array([5, 5, 1]), np.array([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("env_id", FINITE_ENVIRONMENTS)
@pytest.mark.parametrize("n", [1, 8])
def test_every_id_is_found(env_id: str, n: int) -> None:
    batch = make_env(env_id, n)
    obs, _ = batch.reset(3)
    assert batch.backend == ("native" if n == 8 else "sync")
    features = env_id == "steepest/Baird-v0"
    assert obs["obs"].shape == ((n, 8) if features else (n,))
    assert obs["obs"].dtype == (np.float32 if features else np.int64)
    rng = np.random.default_rng(0)
    ended = False
    for _ in range(60):
        result = batch.step(rng.integers(batch.action_spec.sizes[0], size=n))
        ended |= bool(result.terminated.any())
        assert not result.truncated.any()
    assert not ended or env_id in EPISODIC
    assert ended or env_id != "steepest/RandomWalk-v0", "60 steps of a walk that takes 9 on average"
    batch.close()


@pytest.mark.parametrize("env_id", FINITE_ENVIRONMENTS)
def test_gymnasium_accepts_them(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_continuing_problems_are_only_truncated(vectorization: Any) -> None:
    batch = make_env("steepest/RiverSwim-v0", 4, vectorization=vectorization)
    batch.reset(0)
    for step in range(2 * CONTINUING_STEPS + 1):
        result = batch.step(np.ones(4, np.int64))
        assert not result.terminated.any()
        assert (
            result.truncated.all() == result.truncated.any() == (step in (CONTINUING_STEPS - 1, 2 * CONTINUING_STEPS))
        )
        assert result.valid.all() == result.valid.any() == (step != CONTINUING_STEPS)
        if step == CONTINUING_STEPS:
            assert result.obs["obs"].tolist() == [0] * 4
    batch.close()


def test_without_a_limit_nothing_is_truncated() -> None:
    env = FiniteVectorEnv(2, "riverswim")
    env.reset(seed=0)
    assert not any(env.step(np.ones(2, np.int64))[3].any() for _ in range(2 * CONTINUING_STEPS))


def test_an_episode_of_cliff_walking() -> None:
    """Up, eleven right, down: in both faces -13, terminated at the goal, and the next step starts anew."""
    path = [0, *[1] * 11, 2]
    env = FiniteEnv("cliff_walking")
    assert env.reset(seed=0)[0] == 36
    steps = [env.step(np.int64(a)) for a in path]
    assert [int(s[0]) for s in steps] == [*range(24, 36), 47]
    assert sum(s[1] for s in steps) == -13.0
    assert [s[2] for s in steps] == [False] * 12 + [True]

    vector = FiniteVectorEnv(2, "cliff_walking")
    vector.reset(seed=0)
    total = np.zeros(2)
    for a in path:
        obs, reward, terminated, _, _ = vector.step(np.array([a, 1]))
        total += reward
    assert obs.tolist() == [47, 36]
    assert total.tolist() == [-13.0, -1300.0]
    assert terminated.tolist() == [True, False]
    obs, reward, terminated, _, _ = vector.step(np.array([1, 0]))
    assert obs.tolist() == [36, 24]
    assert reward.tolist() == [0.0, -1.0]
    assert not terminated.any()


def test_the_same_seed_gives_the_same_experience() -> None:
    def record(seed: int, env: Any) -> list[list[float]]:
        obs, _ = env.reset(seed=seed)
        out = [np.asarray(obs).tolist()]
        for k in range(60):
            obs, reward, *_ = env.step(np.full(6, k % 2))
            out += [obs.tolist(), reward.tolist()]
        return out

    env = FiniteVectorEnv(6, GARNET)
    first = record(1, env)
    assert record(1, env) == first
    assert record(2, env) != first
    assert len({tuple(column) for column in np.array(first, dtype=float).T}) == 6, "each copy goes its own way"


def test_observations_are_the_callers() -> None:
    for name in ("riverswim", "baird"):
        env = FiniteVectorEnv(3, name)
        kept, _ = env.reset(seed=0)
        before = kept.copy()
        env.step(np.ones(3, np.int64))
        assert np.array_equal(kept, before)
        kept[...] = 0
        assert env.observation_space.contains(env.step(np.ones(3, np.int64))[0])
    env = FiniteEnv("baird")
    env.reset(seed=0)[0][...] = 99.0
    assert env.observation_space.contains(env.step(np.int64(1))[0])


def test_parameters_reach_the_problem() -> None:
    batch = make_env("steepest/RiverSwim-v0", 4, env_kwargs={"states": 9})
    assert batch.obs_spec.fields[0].sizes == (9,)
    assert set(PROBLEMS) == {kwargs["problem"] for kwargs, _ in FINITE_ENVIRONMENTS.values()}
    assert FiniteEnv(GARNET).observation_space == gym.spaces.Discrete(5)


def test_misuse_is_refused() -> None:
    with pytest.raises(UsageError, match="There is no problem 'river'; there are riverswim, "):
        FiniteEnv("river")
    with pytest.raises(UsageError, match="states were given, but the problem"):
        FiniteEnv(GARNET, states=3)
    with pytest.raises(UsageError, match="'riverswim' cannot be made: states is 1"):
        make_env("steepest/RiverSwim-v0", 1, env_kwargs={"states": 1})
    with pytest.raises(UsageError, match="does not take these arguments"):
        make_env("steepest/RiverSwim-v0", 1, env_kwargs={"size": 9})
    with pytest.raises(UnknownEnvironment, match="steepest/RiverSwim-v0"):
        make_env("steepest/Riverswim-v1", 1)
    for field, table in (("transition", GARNET.transition * 0.9), ("initial", -GARNET.initial)):
        with pytest.raises(UsageError, match=f"{field} must hold probabilities"):
            FiniteEnv(dataclasses.replace(GARNET, **{field: table}))
    with pytest.raises(ResetNeeded):
        FiniteEnv(GARNET).step(np.int64(0))
    with pytest.raises(ResetNeeded):
        FiniteVectorEnv(2, GARNET).step(np.zeros(2, np.int64))
    env, vector = FiniteEnv(GARNET), FiniteVectorEnv(2, GARNET)
    env.reset(seed=0)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="must be in Discrete"):
        env.step(np.int64(-1))
    with pytest.raises(ValueError, match="must be in MultiDiscrete"):
        vector.step(np.array([0, -1]))
