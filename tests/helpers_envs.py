"""Environments whose every value is known, for tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NUM_ACTIONS = 3


class Counting(gym.Env):
    """Counts. Episode e of environment ``index`` lasts ``lengths[e % len]`` steps and ends as ``ends[e % len]`` says.

    The observation is (index, episode, step in the episode, last action; -1 before the first), the reward
    100 index + 10 episode + step. With ``masks`` "info" or "obs", action 0 is illegal at odd steps, and the mask of a
    final observation is empty, since games that are over allow no move.
    """

    def __init__(
        self,
        index: int = 0,
        lengths: tuple[int, ...] = (3, 1, 4),
        ends: tuple[str, ...] = ("terminated", "truncated", "both"),
        masks: str = "none",
    ) -> None:
        self.index, self.lengths, self.ends, self.masks = index, lengths, ends, masks
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        counts = spaces.Box(-1, np.inf, (4,), np.float32)
        mask = spaces.Box(0, 1, (NUM_ACTIONS,), np.int8)
        self.observation_space = spaces.Dict(counts=counts, action_mask=mask) if masks == "obs" else counts
        self.episode = -1
        self.steps = 0
        self.over = True

    def _observe(self, action: int) -> tuple[Any, dict[str, Any]]:
        counts = np.array([self.index, self.episode, self.steps, action], np.float32)
        mask = np.array([self.steps % 2 == 0, True, True], np.int8) * (not self.over)
        if self.masks == "obs":
            return {"counts": counts, "action_mask": mask.astype(np.int8)}, {}
        return counts, {"action_mask": mask.astype(np.int8)} if self.masks == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.steps = 0
        self.over = False
        return self._observe(-1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "stepped after the end of an episode"
        self.steps += 1
        k = self.episode % len(self.lengths)
        self.over = self.steps == self.lengths[k]
        terminated = self.over and self.ends[k] in ("terminated", "both")
        truncated = self.over and self.ends[k] in ("truncated", "both")
        obs, info = self._observe(int(action))
        return obs, float(100 * self.index + 10 * self.episode + self.steps), terminated, truncated, info


class Faulty(gym.Env):
    """Misbehaves as ``fault`` says at step ``at`` (0: in reset)."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", at: int = 3) -> None:
        self.fault, self.at, self.steps = fault, at, 0

    def _observe(self) -> np.ndarray:
        if self.steps == self.at:
            if self.fault == "raise":
                raise ZeroDivisionError("the wheel came off")
            if self.fault == "nan":
                return np.array([0.5, np.nan], np.float32)
            if self.fault == "shape":
                return np.zeros(3, np.float32)
        return np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward: Any = 0.0
        if self.steps == self.at:
            reward = {"reward": np.inf, "no reward": None}.get(self.fault, 0.0)
        return self._observe(), reward, False, False, {}


class Forgetful(gym.Env):
    """Its dynamics depend on how often it was ever reset: state that survives ``reset(seed)``."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        return np.array([self.resets], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([self.resets], np.float32), 0.0, True, False, {}
