"""Tiny environments with any spaces, which refuse every action that is outside them or masked."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

INFINITY = float("inf")

ACTIONS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(4), {}),
    "discrete from 3": (spaces.Discrete(3, start=3), {}),
    "discrete from -2": (spaces.Discrete(5, start=-2), {}),
    "multi-discrete ragged": (spaces.MultiDiscrete([2, 5, 3]), {}),
    "multi-discrete of one axis more": (spaces.MultiDiscrete([[2, 3], [4, 2]]), {}),
    "multi-binary": (spaces.MultiBinary(4), {}),
    "multi-binary of one axis more": (spaces.MultiBinary((2, 2)), {}),
    "box": (spaces.Box(-1, 1, (3,), np.float32), {}),
    "box tanh": (spaces.Box(-1, 1, (3,), np.float32), {"squash": "tanh"}),
    "box full covariance": (spaces.Box(-1, 1, (3,), np.float32), {"gaussian": "full"}),
    "box asymmetric": (spaces.Box(np.float32([-3, 0.1]), np.float32([0.2, 7]), dtype=np.float32), {}),
    "box asymmetric tanh": (
        spaces.Box(np.float32([-3, 0.1]), np.float32([0.2, 7]), dtype=np.float32),
        {"squash": "tanh"},
    ),
    "box one-sided": (spaces.Box(np.float32([0, -INFINITY]), np.float32([INFINITY, 0.5]), dtype=np.float32), {}),
    "box infinite": (spaces.Box(-INFINITY, INFINITY, (2,), np.float32), {}),
    "box infinite full covariance": (spaces.Box(-INFINITY, INFINITY, (2,), np.float32), {"gaussian": "full"}),
    "box of two axes": (spaces.Box(-2, 2, (2, 3), np.float64), {}),
    "box of no axes": (spaces.Box(-2, 2, (), np.float32), {}),
    "box of integers": (spaces.Box(-2, 5, (2,), np.int64), {}),
}
"""Action spaces, with the options that they are to be trained with."""

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "vector infinite": spaces.Box(-INFINITY, INFINITY, (3,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "image channels first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "image channels last": spaces.Box(0, 255, (36, 40, 3), np.uint8),
    "image grey": spaces.Box(0, 255, (36, 36), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete from 2": spaces.Discrete(5, start=2),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "dict nested": spaces.Dict(
        goal=spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float32), kind=spaces.Discrete(3)),
        camera=spaces.Box(0, 255, (36, 36, 3), np.uint8),
        speed=spaces.Box(-INFINITY, INFINITY, (1,), np.float32),
    ),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2))),
}

PARTLY_SEEN = spaces.Dict(
    inner=spaces.Dict(position=spaces.Box(-1, 1, (2,), np.float32)), room=spaces.MultiDiscrete([2, 3])
)
"""A Dict without images, for recurrent policies."""


class IllegalAction(Exception):
    """The agent took an action outside the space, or a masked one."""


class AnySpace(gym.Env[Any, Any]):
    """Random observations and rewards; episodes of 3 to 6 steps that terminate or are truncated.

    With ``masks`` "info" or "obs", a random subset of every component's choices is legal at each step.
    """

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], masks: str = "none") -> None:
        self.inner = observation
        self.action_space = action
        self.masks = masks
        self.sizes = [int(action.n)] if isinstance(action, spaces.Discrete) else [int(n) for n in _sizes(action)]
        self.observation_space = observation
        if masks == "obs":
            mask = spaces.MultiBinary(sum(self.sizes))
            parts = observation.spaces if isinstance(observation, spaces.Dict) else {"state": observation}
            self.observation_space = spaces.Dict({**parts, "action_mask": mask})
        self.mask = np.ones(sum(self.sizes), np.int8)

    def _look(self) -> tuple[Any, dict[str, Any]]:
        obs = self.inner.sample()
        if self.masks == "none":
            return obs, {}
        parts = []
        for size in self.sizes:
            part = self.np_random.integers(0, 2, size).astype(np.int8)
            part[self.np_random.integers(size)] = 1
            parts.append(part)
        self.mask = np.concatenate(parts)
        if self.masks == "obs":
            named = obs if isinstance(self.inner, spaces.Dict) else {"state": obs}
            return {**named, "action_mask": self.mask}, {}
        return obs, {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.inner.seed(seed)
        self.left = int(self.np_random.integers(3, 7))
        return self._look()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.action_space.shape == ():
            action = np.asarray(action, self.action_space.dtype)[()]
            action = np.asarray(action) if isinstance(self.action_space, spaces.Box) else action
        if not self.action_space.contains(action):
            raise IllegalAction(f"{action!r} is not in {self.action_space}")
        if self.masks != "none":
            start = getattr(self.action_space, "start", 0)
            chosen = np.ravel(action - start) + np.cumsum([0, *self.sizes[:-1]])
            if not self.mask[chosen].all():
                raise IllegalAction(f"{action!r} is masked: {self.mask}")
        self.left -= 1
        over = self.left == 0
        terminated = bool(over and self.np_random.random() < 0.5)
        return *self._look_as_step(), terminated, over and not terminated, self._info

    def _look_as_step(self) -> tuple[Any, float]:
        obs, self._info = self._look()
        return obs, float(self.np_random.normal())


def _sizes(action: spaces.Space[Any]) -> Any:
    return action.nvec.ravel() if isinstance(action, spaces.MultiDiscrete) else ()
