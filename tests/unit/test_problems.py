"""The tables are the problems they are named after."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from steepest import problems
from steepest.problems import Problem

ALL: dict[str, Callable[[], Problem]] = {
    "riverswim": problems.riverswim,
    "riverswim 20": lambda: problems.riverswim(20),
    "random walk 5": problems.random_walk,
    "random walk 19": lambda: problems.random_walk(19),
    "access control": problems.access_control,
    "baird": problems.baird,
    "cliff walking": problems.cliff_walking,
    "two state": problems.two_state,
    "garnet": lambda: problems.garnet(8, 3, 4, 0),
    "ending garnet": lambda: problems.garnet(8, 3, 4, 0, terminal_probability=0.1),
}
EPISODIC = {"random walk 5", "random walk 19", "cliff walking", "ending garnet"}


@pytest.mark.parametrize("name", ALL)
def test_tables_are_consistent(name: str) -> None:
    problem = ALL[name]()
    s, a = problem.num_states, problem.num_actions
    assert problem.transition.shape == (s, a, s)
    assert problem.reward.shape == (s, a)
    assert problem.initial.shape == (s,)
    for rows in (problem.transition, problem.initial):
        assert (rows >= 0.0).all()
        np.testing.assert_allclose(rows.sum(axis=-1), 1.0, rtol=0, atol=1e-14)
    if problem.outcome_reward is not None:
        np.testing.assert_allclose(
            (problem.transition * problem.outcome_reward).sum(axis=2), problem.reward, atol=1e-15
        )
    assert problem.absorbing.sum() == (1 if name in EPISODIC else 0)
    assert not problem.initial[problem.absorbing].any()
    assert problem.description.endswith(".")
    assert all(published.source for published in problem.published.values())


def test_riverswim_by_hand() -> None:
    problem = problems.riverswim()
    assert problem.transition[0, 1].tolist() == [0.4, 0.6, 0, 0, 0, 0]
    assert problem.transition[2, 1].tolist() == [0, 0.05, 0.6, 0.35, 0, 0]
    assert problem.transition[5, 1].tolist() == [0, 0, 0, 0, 0.4, 0.6]
    assert [int(row.argmax()) for row in problem.transition[:, 0]] == [0, 0, 1, 2, 3, 4]
    assert problem.reward[0, 0] == 0.005
    assert problem.reward[5, 1] == 1.0
    assert problem.reward.sum() == 1.005
    assert "optimal_gain" not in problems.riverswim(7).published


def test_cliff_walking_is_gymnasiums() -> None:
    """State by state and action by action; theirs lets one walk on from the goal, and ours does not."""
    env = gym.make("CliffWalking-v1")
    table = env.unwrapped.P  # pyright: ignore[reportAttributeAccessIssue]
    problem = problems.cliff_walking()
    for s in range(47):
        for a in range(4):
            ((probability, to, reward, terminated),) = table[s][a]
            assert problem.transition[s, a, to] == probability == 1.0
            assert problem.reward[s, a] == reward
            assert terminated == (to == 47)
    assert problem.initial[env.reset(seed=0)[0]] == 1.0
    env.close()


def test_access_control_by_hand() -> None:
    """Two servers, two kinds of customers."""
    problem = problems.access_control(2, (1.0, 5.0), 0.1)
    full, one_free, empty = problem.transition[:2], problem.transition[2:4], problem.transition[4:]
    # No server is free: both actions reject, and the two busy servers may become free.
    for row in full.reshape(-1, 6):
        np.testing.assert_allclose(row, np.repeat([0.81, 0.18, 0.01], 2) / 2, atol=1e-15)
    np.testing.assert_allclose(one_free[:, 0], np.tile(np.repeat([0, 0.9, 0.1], 2) / 2, (2, 1)), atol=1e-15)
    np.testing.assert_allclose(one_free[:, 1], np.tile(np.repeat([0.81, 0.18, 0.01], 2) / 2, (2, 1)), atol=1e-15)
    np.testing.assert_allclose(empty[:, 0], np.tile(np.repeat([0, 0, 1.0], 2) / 2, (2, 1)), atol=1e-15)
    np.testing.assert_allclose(empty[:, 1], np.tile(np.repeat([0, 0.9, 0.1], 2) / 2, (2, 1)), atol=1e-15)
    assert problem.reward.tolist() == [[0, 0], [0, 0], [0, 1], [0, 5], [0, 1], [0, 5]]
    assert problem.initial.tolist() == [0, 0, 0, 0, 0.5, 0.5]


def test_baird_diverges_off_policy() -> None:
    """Expected semi-gradient updates under the features: off-policy the weights explode, on-policy they do not."""
    problem = problems.baird()
    assert problem.features is not None
    assert problem.behaviour is not None
    assert problem.features[0].tolist() == [2, 0, 0, 0, 0, 0, 0, 1]
    assert problem.features[6].tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
    target = np.tile([0.0, 1.0], (7, 1))

    def run(behaviour: np.ndarray, policy: np.ndarray) -> float:
        x = problem.features
        assert x is not None
        w = np.array([1.0, 1, 1, 1, 1, 1, 10, 1])
        chain = np.einsum("sa,sat->st", behaviour, problem.transition)
        visits = np.linalg.matrix_power(chain, 50)[0]
        ahead = np.einsum("sa,sat->st", policy, problem.transition)
        for _ in range(2000):
            error = problem.gamma * ahead @ x @ w - x @ w
            w = w + 0.01 * x.T @ (visits * error)
        return float(np.abs(w).max())

    assert run(problem.behaviour, target) > 100.0
    assert run(problem.behaviour, problem.behaviour) < 11.0
    np.testing.assert_allclose(np.einsum("sa,sat->st", problem.behaviour, problem.transition), 1 / 7, atol=1e-15)


def test_garnets_are_as_described() -> None:
    problem = problems.garnet(10, 3, 4, 0)
    assert ((problem.transition > 0).sum(axis=2) == 4).all()
    again, other = problems.garnet(10, 3, 4, 0), problems.garnet(10, 3, 4, 1)
    assert np.array_equal(problem.transition, again.transition)
    assert np.array_equal(problem.reward, again.reward)
    assert not np.array_equal(problem.transition, other.transition)
    ending = problems.garnet(10, 3, 4, 0, terminal_probability=0.25)
    np.testing.assert_allclose(ending.transition[:10, :, 10], 0.25, atol=1e-15)
    assert ending.absorbing.tolist() == [False] * 10 + [True]
    assert np.array_equal(ending.reward[:10], problem.reward)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: problems.riverswim(1), "states is 1; it must be at least 2"),
        (lambda: problems.random_walk(1), "states is 1"),
        (lambda: problems.access_control(0), "servers is 0"),
        (lambda: problems.access_control(priorities=()), "the number of priorities is 0"),
        (lambda: problems.access_control(free_probability=1.0), "free_probability is 1.0"),
        (lambda: problems.garnet(4, 2, 5, 0), "branching is 5; it must be between 1 and the number of states, 4"),
        (lambda: problems.garnet(4, 0, 2, 0), "actions is 0"),
        (lambda: problems.garnet(4, 2, 2, 0, terminal_probability=1.0), "terminal_probability is 1.0"),
    ],
)
def test_impossible_problems_are_refused(build: Callable[[], Problem], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
