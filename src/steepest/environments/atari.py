"""Atari 2600 games, preprocessed as the field does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from steepest.environments.config import AtariOptions
from steepest.environments.errors import MissingExtra

ENTRY_POINT = "ale_py.env:AtariEnv"
OnGame = Callable[[int, float, int], None]
"""Takes the environment's index, the score of its finished game, and how many steps the agent decided in it."""
NOOP, FIRE = 0, 1  # FIRE is the second action of every game that has it


def register() -> bool:
    """Register the Atari ids with Gymnasium; False where ale_py is not installed."""
    if importlib.util.find_spec("ale_py") is None:
        return False
    import ale_py

    # The emulator announces itself on standard error otherwise.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)
    return True


def require_registered(env_id: str) -> None:
    """Raises: MissingExtra where ale_py is not installed."""
    if not register():
        raise MissingExtra(f'{env_id} needs ale-py, which is not installed. Run: pip install "steepest[atari]"')


def _settings(spec: EnvSpec, options: AtariOptions, max_episode_steps: int | None) -> dict[str, Any]:
    """Keyword arguments that ale_py's scalar and vector environments share. The emulator counts its limit in frames."""
    frames = spec.kwargs["max_num_frames_per_episode"]
    return {
        "repeat_action_probability": spec.kwargs["repeat_action_probability"]
        if options.sticky is None
        else options.sticky,
        "full_action_space": options.full_action_space,
        "max_num_frames_per_episode": max_episode_steps * options.frame_skip if max_episode_steps else frames,
    }


def vector_env(
    spec: EnvSpec, num_envs: int, options: AtariOptions, threads: int, max_episode_steps: int | None
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """ale_py's C++ vector environment. Without sticky actions it gives the same bits as ``scalar_env``."""
    from ale_py.vector_env import AtariVectorEnv

    venv = AtariVectorEnv(
        spec.kwargs["game"],
        num_envs,
        num_threads=min(num_envs, options.num_threads or threads),
        img_height=options.size,
        img_width=options.size,
        stack_num=options.frame_stack,
        frameskip=options.frame_skip,
        noop_max=options.noop_max,
        # Not ``episodic_life``: ale_py then restarts the game at every lost life, so later lives are never seen.
        life_loss_info=options.life_loss_terminates,
        reward_clipping=options.clip_reward,
        use_fire_reset=options.fire_reset,
        **_settings(spec, options, max_episode_steps),
    )
    return LivesAsEpisodes(venv, _start_button(venv, options)) if options.life_loss_terminates else venv


def scalar_env(
    spec: EnvSpec,
    options: AtariOptions,
    render_mode: str | None,
    max_episode_steps: int | None,
    env_kwargs: dict[str, Any],
) -> gym.Env[Any, Any]:
    """One game through Gymnasium's wrappers: slower, but it can be rendered and takes modes and difficulties."""
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

    settings = {**_settings(spec, options, max_episode_steps), **env_kwargs}
    env: gym.Env[Any, Any] = gym.make(
        spec, frameskip=1, obs_type="rgb", render_mode=render_mode, disable_env_checker=True, **settings
    )
    button = _start_button(env.unwrapped, options)
    if button == FIRE:
        env = FireReset(env)
    env = AtariPreprocessing(env, noop_max=options.noop_max, frame_skip=options.frame_skip, screen_size=options.size)
    env = FrameStackObservation(env, options.frame_stack, padding_type="zero")
    if options.life_loss_terminates:
        env = LifeAsEpisode(env, button)
    return TransformReward(env, _sign) if options.clip_reward else env


def _sign(reward: SupportsFloat) -> float:
    return float(np.sign(float(reward)))


def envpool_settings(options: AtariOptions) -> dict[str, Any]:
    """The options in EnvPool's words."""
    return {
        "frame_skip": options.frame_skip,
        "repeat_action_probability": 0.25 if options.sticky is None else options.sticky,
        "img_height": options.size,
        "img_width": options.size,
        "stack_num": options.frame_stack,
        # EnvPool counts the reset's own frame, and crashes on 0.
        "noop_max": max(1, options.noop_max),
        "use_fire_reset": options.fire_reset,
        "episodic_life": options.life_loss_terminates,
        "reward_clip": options.clip_reward,
        "full_action_space": options.full_action_space,
        **({"num_threads": options.num_threads} if options.num_threads else {}),
    }


def _start_button(env: Any, options: AtariOptions) -> int:
    """Actions that are taken when a life begins within a game."""
    if not options.fire_reset:
        return NOOP
    from ale_py import Action

    if options.full_action_space:
        return FIRE
    ale = env.ale
    actions = ale.get_action_set() if hasattr(ale, "get_action_set") else ale.getMinimalActionSet()
    return FIRE if Action.FIRE in actions else NOOP


class LivesAsEpisodes(gym.vector.VectorWrapper[Any, Any, Any]):
    """Makes the row after a lost life a restart, as NEXT_STEP has it.

    ale_py reports the lost life as terminated and plays on. On the row that follows the agent is not asked; the game is
    moved on by one press of ``button``, as the field's life-loss wrappers do.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], button: int) -> None:
        super().__init__(env)
        self._button = button
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._ended[:] = False
        return self.env.reset(seed=seed, options=options)  # pyright: ignore[reportArgumentType]

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(np.where(self._ended, self._button, actions))
        self._ended = result[2] | result[3]
        return result


class LifeAsEpisode(gym.Wrapper[Any, Any, Any, Any]):
    """A lost life is ``terminated``; the next reset goes on with the game, unless it is over or a seed is given."""

    def __init__(self, env: gym.Env[Any, Any], button: int) -> None:
        super().__init__(env)
        self._button = button
        self._lives = 0
        self._game_over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if not self._game_over and seed is None:
            obs, _, terminated, truncated, info = self.env.step(self._button)
            if not (terminated or truncated):
                self._lives = info["lives"]
                return obs, info
        obs, info = self.env.reset(seed=seed, options=options)
        self._lives = info["lives"]
        self._game_over = False
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        terminated = terminated or info["lives"] < self._lives
        self._lives = info["lives"]
        return obs, reward, terminated, truncated, info


class FireReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE for one frame after every reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        obs, _, _, _, info = self.env.step(FIRE)
        return obs, info


class GameScores(gym.vector.VectorWrapper[Any, Any, Any]):
    """Reports what whole games scored, whatever rewards and episodes the agent is trained on.

    A game is over when the count of its frames goes back, so it is reported on the row that starts the next one, and a
    lost life cannot be mistaken for it. Rewards of rows on which the agent is not asked are part of the score.
    Unfinished games are dropped by a reset.

    Args: env: gives the game's own rewards; counter: the info that counts within a game; clip: hand on the sign of the
          reward; on_game: see ``OnGame``
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], counter: str, clip: bool, on_game: OnGame) -> None:
        super().__init__(env)
        self._counter = counter
        self._clip = clip
        self._on_game = on_game
        self._forget()

    def _forget(self) -> None:
        self._score = np.zeros(self.env.num_envs)
        self._length = np.zeros(self.env.num_envs, dtype=np.int64)
        self._frames = np.zeros(self.env.num_envs, dtype=np.int64)
        self._ended = np.zeros(self.env.num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._forget()
        # EnvPool's reset takes neither.
        given: dict[str, Any] = {k: v for k, v in (("seed", seed), ("options", options)) if v is not None}
        return self.env.reset(**given)

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(actions)
        frames = info[self._counter]
        for i in np.flatnonzero(frames < self._frames):
            self._on_game(int(i), float(self._score[i]), int(self._length[i]))
            self._score[i] = 0.0
            self._length[i] = 0
        self._frames = np.array(frames)
        self._score += reward
        self._length += ~self._ended
        self._ended = terminated | truncated
        return obs, np.sign(reward) if self._clip else reward, terminated, truncated, info
