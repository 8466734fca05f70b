"""The pendulum with three torques."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from steepest.environments import PendulumThreeTorquesEnv, PendulumThreeTorquesVectorEnv, make_env
from steepest.environments.pendulum import EPISODE_STEPS, MAX_VELOCITY, advance


def test_a_step_by_hand() -> None:
    """Level and at rest, pushed up: a = 9.8 - 2; then across the wrap at pi, and at the fastest."""
    angle, velocity = advance(np.array([math.pi / 2, 3.1, 3.0]), np.array([0.0, 20.0, 78.0]), np.array([0, 1, 2]))
    assert velocity[0] == pytest.approx(7.8)
    assert angle[0] == pytest.approx(math.pi / 2 + 0.078)
    fast = 20.0 + 9.8 * math.sin(3.1) - 0.2
    assert velocity[1] == pytest.approx(fast)
    assert angle[1] == pytest.approx(3.1 + 0.01 * fast - 2.0 * math.pi)
    assert velocity[2] == MAX_VELOCITY


def test_one_and_many_move_alike() -> None:
    one, many = PendulumThreeTorquesEnv(), PendulumThreeTorquesVectorEnv(1, max_episode_steps=50)
    obs, _ = one.reset(seed=3)
    assert np.array_equal(many.reset(seed=3)[0][0], obs)
    for action in np.random.default_rng(0).integers(3, size=40):
        obs, reward, terminated, truncated, _ = one.step(action)
        all_obs, rewards, ends, cuts, _ = many.step(np.array([action]))
        assert np.array_equal(all_obs[0], obs)
        assert rewards[0] == reward == pytest.approx(math.cos(obs[0]), abs=1e-6)
        assert not any((terminated, truncated, ends[0], cuts[0]))
        assert one.observation_space.contains(obs)


def test_the_torque_cannot_lift_it() -> None:
    """Held against gravity it stays below the horizontal, which is what makes the task one of planning."""
    state = (np.array([math.pi - 1e-9]), np.zeros(1))
    highest = -1.0
    for _ in range(400):
        state = advance(*state, np.array([2]))
        highest = max(highest, float(np.cos(state[0][0])))
    assert highest < 0.0


def test_episodes_are_truncated_and_restart() -> None:
    env = PendulumThreeTorquesVectorEnv(2, max_episode_steps=3)
    env.reset(seed=0)
    cuts = [env.step(np.array([1, 2]))[3].tolist() for _ in range(3)]
    assert cuts == [[False] * 2, [False] * 2, [True] * 2]
    obs, reward, _, truncated, _ = env.step(np.array([1, 2]))
    assert reward.tolist() == [0.0, 0.0]
    assert obs[:, 1].tolist() == [0.0, 0.0]
    assert not truncated.any()


def test_it_is_registered() -> None:
    assert gym.spec("steepest/PendulumThreeTorques-v0").max_episode_steps == EPISODE_STEPS
    env = make_env("steepest/PendulumThreeTorques-v0", 3, seed=0)
    env.reset(0)
    assert env.step(np.array([0, 1, 2])).valid.all()
    env.close()


@pytest.mark.parametrize("env", [PendulumThreeTorquesEnv(), PendulumThreeTorquesVectorEnv(1)], ids=["one", "many"])
def test_misuse_is_explained(env: gym.Env | gym.vector.VectorEnv) -> None:
    action = np.int64(3) if isinstance(env, gym.Env) else np.array([3])
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="must be in"):
        env.step(action)
