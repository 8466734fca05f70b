"""The problems of ``steepest.problems`` as Gymnasium environments, whose every value ``exact.finite_mdp`` knows.

Importing this module registers ``steepest/RiverSwim-v0`` and the others of ``FINITE_ENVIRONMENTS``. The observation is
the state's index, or its features where the problem has them (Baird). An episode terminates on entering an absorbing
state; a continuing problem never terminates. As registered it is *truncated* after ``CONTINUING_STEPS`` steps, so that
evaluation has episodes to report; nothing ends there, and values are bootstrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from steepest import problems
from steepest.errors import UsageError
from steepest.problems import Problem

CONTINUING_STEPS = 1000
"""Steps after which a continuing problem is truncated, unless ``max_episode_steps`` says otherwise."""

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "riverswim": problems.riverswim,
    "random_walk": problems.random_walk,
    "access_control": problems.access_control,
    "baird": problems.baird,
    "cliff_walking": problems.cliff_walking,
    "two_state": problems.two_state,
    "garnet": problems.garnet,
}

FINITE_ENVIRONMENTS: dict[str, tuple[dict[str, Any], int | None]] = {
    # id: (the problem and its parameters, max_episode_steps)
    "steepest/RiverSwim-v0": ({"problem": "riverswim"}, CONTINUING_STEPS),
    "steepest/RandomWalk-v0": ({"problem": "random_walk"}, None),
    "steepest/RandomWalk19-v0": ({"problem": "random_walk", "states": 19}, None),
    "steepest/AccessControl-v0": ({"problem": "access_control"}, CONTINUING_STEPS),
    "steepest/Baird-v0": ({"problem": "baird"}, CONTINUING_STEPS),
    "steepest/CliffWalking-v0": ({"problem": "cliff_walking"}, CONTINUING_STEPS),
    "steepest/TwoState-v0": ({"problem": "two_state"}, CONTINUING_STEPS),
    "steepest/Garnet-v0": (
        {"problem": "garnet", "states": 20, "actions": 4, "branching": 3, "seed": 0},
        CONTINUING_STEPS,
    ),
}


class _Tables(NamedTuple):
    """Tables that sampling needs."""

    next_state: NDArray[np.float64]  # (S, A, S) cumulative probabilities
    first_state: NDArray[np.float64]  # (S,) cumulative probabilities
    reward: NDArray[np.float64]  # (S, A, S), or (S, A, 1) where it does not depend on the next state
    absorbing: NDArray[np.bool_]  # (S,)
    shown: NDArray[Any]  # (S,) indices or (S, F) features
    obs_space: spaces.Space[Any]
    action_space: spaces.Discrete


def _tables(problem: str | Problem, parameters: dict[str, Any]) -> _Tables:
    if isinstance(problem, str):
        if problem not in PROBLEMS:
            raise UsageError(f"There is no problem {problem!r}; there are {', '.join(PROBLEMS)}.")
        try:
            problem = PROBLEMS[problem](**parameters)
        except ValueError as error:
            raise UsageError(f"The problem {problem!r} cannot be made: {error}") from error
    elif parameters:
        raise UsageError(f"{', '.join(parameters)} were given, but the problem {problem.name} is already made.")
    if problem.features is None:
        shown, obs_space = np.arange(problem.num_states), spaces.Discrete(problem.num_states)
    else:
        shown = problem.features.astype(np.float32)
        obs_space = spaces.Box(shown.min(axis=0), shown.max(axis=0), dtype=np.float32)
    outcome = problem.outcome_reward
    return _Tables(
        _cumulative(problem.transition, f"{problem.name}: transition"),
        _cumulative(problem.initial, f"{problem.name}: initial"),
        problem.reward[:, :, None] if outcome is None else outcome,
        problem.absorbing,
        shown,
        obs_space,
        spaces.Discrete(problem.num_actions),
    )


def _cumulative(probabilities: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    total = probabilities.cumsum(axis=-1)
    if (probabilities < 0.0).any() or not np.allclose(total[..., -1], 1.0, rtol=0.0, atol=1e-9):
        raise UsageError(f"{what} must hold probabilities: none negative, every row with the sum 1.")
    # The last entry, and those before it up to the last possible outcome, become exactly 1, above every draw.
    return total / total[..., -1:]


class FiniteEnv(gym.Env[Any, np.int64]):
    """One copy of a finite problem.

    Args:      problem: a ``Problem``, or the name of a function of ``steepest.problems`` and its parameters
    Raises:    UsageError for an unknown name, or tables that are no probabilities
    Verified:  tests/unit/test_finite_environments.py::test_frequencies_match_the_transition_probabilities
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own attribute

    def __init__(self, problem: str | Problem, **parameters: Any) -> None:
        self._tables = _tables(problem, parameters)
        self.observation_space = self._tables.obs_space
        self.action_space = self._tables.action_space  # pyright: ignore[reportAttributeAccessIssue]
        self._state: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = int(self._tables.first_state.searchsorted(self.np_random.random(), side="right"))
        return self._observation(self._state), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        state = self._state
        if state is None:
            raise ResetNeeded("reset() must be called before the first step().")
        if not self._tables.action_space.contains(action):
            raise ValueError(f"action is {action!r}; it must be in {self._tables.action_space}.")
        to = int(self._tables.next_state[state, action].searchsorted(self.np_random.random(), side="right"))
        rewards = self._tables.reward[state, action]
        self._state = to
        return self._observation(to), float(rewards[to % len(rewards)]), bool(self._tables.absorbing[to]), False, {}

    def _observation(self, state: int) -> Any:
        shown = self._tables.shown[state]
        return shown.copy() if shown.ndim else shown


class FiniteVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """``num_envs`` copies of a finite problem, stepped together; NEXT_STEP autoreset.

    Args:      problem, parameters: as for ``FiniteEnv``; max_episode_steps: where episodes are truncated, None: nowhere
    Verified:  tests/unit/test_finite_environments.py::test_frequencies_match_the_transition_probabilities
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int, problem: str | Problem, max_episode_steps: int | None = None, **parameters: Any
    ) -> None:
        self._tables = _tables(problem, parameters)
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = self._tables.obs_space
        self.single_action_space = self._tables.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: NDArray[np.int64] | None = None
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._done = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = self._first_states(self.num_envs)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._tables.shown[self._state], {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        state, tables = self._state, self._tables
        if state is None:
            raise ResetNeeded("reset() must be called before the first step().")
        if not self.action_space.contains(actions):
            raise ValueError(f"actions are {actions!r}; they must be in {self.action_space}.")
        draw = self.np_random.random(self.num_envs)
        to = (tables.next_state[state, actions] <= draw[:, None]).sum(axis=1)
        reward = tables.reward[state, actions, to % tables.reward.shape[2]]
        steps = self._steps + 1
        restarted = self._done
        if restarted.any():
            to[restarted] = self._first_states(int(restarted.sum()))
            reward[restarted] = 0.0
            steps[restarted] = 0
        terminated = tables.absorbing[to] & ~restarted
        if self.max_episode_steps is None:
            truncated = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            truncated = steps >= self.max_episode_steps
        self._state, self._steps, self._done = to, steps, terminated | truncated
        return tables.shown[to], reward, terminated, truncated, {}

    def _first_states(self, count: int) -> NDArray[np.int64]:
        return self._tables.first_state.searchsorted(self.np_random.random(count), side="right")


def register() -> None:
    """Make the ids of ``FINITE_ENVIRONMENTS`` known to Gymnasium, once."""
    for env_id, (kwargs, limit) in FINITE_ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point=f"{__name__}:FiniteEnv",
                vector_entry_point=f"{__name__}:FiniteVectorEnv",
                max_episode_steps=limit,
                kwargs=kwargs,
            )


register()
