"""A pendulum with three torques, too weak to lift it at once: Degris, White & Sutton 2012, from its author's simulator.

    acceleration = g sin(angle) - 0.01 velocity + torque,  g = 9.8,  torque in {-2, 0, 2},  angle 0 upright
    velocity <- clip(velocity + acceleration, +-25 pi),  angle <- angle + 0.01 velocity, wrapped to [-pi, pi)
    reward   = cos(angle), after the step

An episode begins at rest at a random angle and never ends by itself; as registered it is truncated after EPISODE_STEPS
steps, so that evaluation has episodes to report. Observation: (angle, velocity). The velocity takes in the whole
acceleration in one step, as in the simulator: a unit of it is a hundredth of a radian per step.

Importing this module registers ``steepest/PendulumThreeTorques-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

EPISODE_STEPS = 1000
GRAVITY, FRICTION, TORQUE, STEP = 9.8, 0.01, 2.0, 0.01
MAX_VELOCITY = 25.0 * np.pi
BOUNDS = np.array([np.pi, MAX_VELOCITY], dtype=np.float32)

Floats = NDArray[np.float64]


def advance(angle: Floats, velocity: Floats, action: NDArray[Any]) -> tuple[Floats, Floats]:
    """Angle and velocity after one step of any number of pendulums; actions 0, 1, 2 are torques -2, 0, 2."""
    acceleration = GRAVITY * np.sin(angle) - FRICTION * velocity + TORQUE * (action - 1.0)
    velocity = np.clip(velocity + acceleration, -MAX_VELOCITY, MAX_VELOCITY)
    angle = (angle + STEP * velocity + np.pi) % (2.0 * np.pi) - np.pi
    return angle, velocity


class PendulumThreeTorquesVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """``num_envs`` pendulums stepped together; NEXT_STEP autoreset.

    Args:      max_episode_steps: where episodes are truncated, None: nowhere
    Verified:  tests/unit/test_pendulum.py::test_a_step_by_hand,
               tests/unit/test_pendulum.py::test_one_and_many_move_alike
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, max_episode_steps: int | None = None) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = spaces.Box(-BOUNDS, BOUNDS, dtype=np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._angle: Floats | None = None
        self._velocity = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._angle = self.np_random.uniform(-np.pi, np.pi, self.num_envs)
        self._velocity = np.zeros(self.num_envs)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observation(self._angle), {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        if self._angle is None:
            raise ResetNeeded("reset() must be called before the first step().")
        if not self.action_space.contains(actions):
            raise ValueError(f"actions are {actions!r}; they must be in {self.action_space}.")
        angle, self._velocity = advance(self._angle, self._velocity, actions)
        reward = np.cos(angle)
        self._steps += 1
        restarted = self._done
        if restarted.any():
            angle[restarted] = self.np_random.uniform(-np.pi, np.pi, int(restarted.sum()))
            self._velocity[restarted], reward[restarted], self._steps[restarted] = 0.0, 0.0, 0
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        limit = self.max_episode_steps
        truncated = terminated.copy() if limit is None else self._steps >= limit
        self._angle, self._done = angle, truncated
        return self._observation(angle), reward, terminated, truncated, {}

    def _observation(self, angle: Floats) -> NDArray[np.float32]:
        return np.clip(np.stack([angle, self._velocity], axis=1).astype(np.float32), -BOUNDS, BOUNDS)


class PendulumThreeTorquesEnv(gym.Env[Any, np.int64]):
    """One pendulum.

    Verified:  tests/unit/test_pendulum.py::test_one_and_many_move_alike
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own attribute

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-BOUNDS, BOUNDS, dtype=np.float32)
        self.action_space = spaces.Discrete(3)  # pyright: ignore[reportAttributeAccessIssue]
        self._state: tuple[Floats, Floats] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = (self.np_random.uniform(-np.pi, np.pi, 1), np.zeros(1))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._state is None:
            raise ResetNeeded("reset() must be called before the first step().")
        if not self.action_space.contains(action):
            raise ValueError(f"action is {action!r}; it must be in {self.action_space}.")
        self._state = advance(*self._state, np.asarray([action]))
        return self._observation(), float(np.cos(self._state[0][0])), False, False, {}

    def _observation(self) -> NDArray[np.float32]:
        assert self._state is not None
        return np.clip(np.concatenate(self._state).astype(np.float32), -BOUNDS, BOUNDS)


def register() -> None:
    """Make the id known to Gymnasium, once."""
    if "steepest/PendulumThreeTorques-v0" not in gym.registry:
        gym.register(
            "steepest/PendulumThreeTorques-v0",
            entry_point=f"{__name__}:PendulumThreeTorquesEnv",
            vector_entry_point=f"{__name__}:PendulumThreeTorquesVectorEnv",
            max_episode_steps=EPISODE_STEPS,
        )


register()
