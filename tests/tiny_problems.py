"""Problems so small that their best policy is known and learnt within seconds, and what a policy scores on them.

``sign`` -1 pays the opposite: whoever learns then avoids what the score counts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class TinyProblem(gym.Env[Any, Any]):
    """An environment with the scores of its best policy, its worst, and one that takes no notice."""

    best: ClassVar[float] = 1.0
    worst: ClassVar[float] = 0.0
    indifferent: ClassVar[float] = 0.5

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.begin(), {}

    def begin(self) -> Any:
        """The first observation of an episode."""
        raise NotImplementedError

    @classmethod
    def score(cls, agent: Any) -> float:
        """How good the agent's policy is, whatever the sign of the rewards that it was trained with."""
        raise NotImplementedError


class Bandit(TinyProblem):
    """One choice an episode; the arm of the same number as the context pays 1. The score is the chance of taking it."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def begin(self) -> Any:
        self.context = int(self.np_random.integers(2))
        return self.context

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.context, self.sign * float(action == self.context), True, False, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        contexts = np.repeat([0, 1], 200)
        return float((agent.act(contexts)[0] == contexts).mean())


class Chain(TinyProblem):
    """Three states in a row; a wrong action ends the episode with nothing, the third right one pays 1.

    Which action is right differs from state to state. The score is the chance of all three.
    """

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)
    indifferent = 0.125
    right: ClassVar = np.array([1, 0, 1])

    def begin(self) -> Any:
        self.state = 0
        return self.state

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action != self.right[self.state]:
            return self.state, 0.0, True, False, {}
        won = self.state == 2
        self.state = min(self.state + 1, 2)
        return self.state, self.sign * float(won), won, False, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        states = np.repeat([0, 1, 2], 200)
        return float((agent.act(states)[0] == cls.right[states]).reshape(3, -1).mean(1).prod())


class Aim(TinyProblem):
    """A number in [-1, 1] is wanted that is half of the observed one; the miss is paid for by its square.

    The score is 1 less the mean distance of the policy's mode.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    worst = -0.5

    def begin(self) -> Any:
        self.place = np.float32([self.np_random.choice([-1.0, 1.0])])
        return self.place

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        miss = float(np.square(action - 0.5 * self.place).sum())
        return self.place, -self.sign * miss, True, False, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        places = np.float32([[-1.0], [1.0]])
        return float(1.0 - np.abs(agent.act(places, deterministic=True)[0] - 0.5 * places).mean())


class Recall(TinyProblem):
    """A bit is shown at the first step and asked for at the second. The score is the chance of recalling it."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)
    question: ClassVar = 2

    def begin(self) -> Any:
        self.bit, self.asked = int(self.np_random.integers(2)), False
        return self.bit

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.asked:
            self.asked = True
            return self.question, 0.0, False, False, {}
        return self.question, self.sign * float(action == self.bit), True, False, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        shown = np.repeat([0, 1], 200)
        _, memory = agent.act(shown, episode_start=True)
        answers, _ = agent.act(np.full_like(shown, cls.question), memory=memory)
        return float((answers == shown).mean())


class Treadmill(TinyProblem):
    """Two places, never an end: the action of the place's number stays and pays 1, the other one changes places.

    The recording is cut every 40 steps. The score is the chance of staying, which is the policy's average reward.
    """

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)

    def begin(self) -> Any:
        self.place, self.steps = int(self.np_random.integers(2)), 0
        return self.place

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        stays = bool(action == self.place)
        self.place, self.steps = self.place if stays else 1 - self.place, self.steps + 1
        return self.place, self.sign * float(stays), False, self.steps == 40, {}

    @classmethod
    def score(cls, agent: Any) -> float:
        places = np.repeat([0, 1], 200)
        return float((agent.act(places)[0] == places).mean())
