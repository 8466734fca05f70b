"""Everything that an environment can do is an error that names it and the step, and nothing of it stays behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from steepest.environments import make_env
from steepest.environments.errors import EnvFailure
from steepest.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:.*(Worker-|Traceback|Raising the last)[\\s\\S]*:UserWarning")

BAD_STEP = 3


class Bad(gym.Env[Any, Any]):
    """Does something at its third step, or when it is closed; else nothing."""

    def __init__(self, step: Callable[[], Any] | None = None, close: Callable[[], Any] | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.does, self.closes, self.steps = step, close, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs: Any = np.zeros(3, np.float32)
        if self.does is not None and self.steps == BAD_STEP:
            obs = self.does()
        return obs, 0.0, False, False, {}

    def close(self) -> None:
        if self.closes is not None:
            self.closes()


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


class OfItsOwn(BaseException):
    pass


def play(step: Callable[[], Any], vectorization: str, envs: int = 2) -> str:
    """What is said where one of the environments does this at its third step; all processes have ended then."""
    before = {p.pid for p in multiprocessing.active_children()}
    env = make_env(lambda: Bad(step), envs, vectorization=vectorization)
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(envs, np.int64))
    with pytest.raises(EnvFailure) as caught:
        env.step(np.zeros(envs, np.int64))
    env.close()
    env.close()
    assert {p.pid for p in multiprocessing.active_children()} <= before
    return str(caught.value)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (raising(ValueError("boom")), "raised ValueError in step(): boom"),
        (raising(OfItsOwn("odd")), "raised OfItsOwn in step(): odd"),
        (lambda: sys.exit(0), "ended the program in step(): sys.exit(0)"),
        (lambda: sys.exit("bye"), "ended the program in step(): sys.exit('bye')"),
        (raising(EOFError()), "raised EOFError in step(): "),
        (lambda: np.zeros(1, np.float32), "returned a wrong observation: "),
    ],
)
def test_whatever_is_raised_names_the_environment(step: Callable[[], Any], said: str) -> None:
    found = play(step, "sync")
    assert "environment 0 of 2" in found
    assert said in found
    assert "at step 3 after reset" in found


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda: os._exit(7), "ended in step(): its process exited with code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended in step(): its process was ended by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ended in step(): its process was ended by SIGSEGV"),
        (lambda: sys.exit(0), "its process exited with code 0"),
    ],
)
def test_a_dead_process_is_named(step: Callable[[], Any], said: str) -> None:
    found = play(step, "async")
    assert said in found
    assert "at step 3 after reset" in found


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3), (3, 1), ()])
def test_a_wrong_shape_is_not_stretched(shape: tuple[int, ...]) -> None:
    """Shared memory takes what it can broadcast."""
    for vectorization in ("sync", "async"):
        found = play(lambda: np.zeros(shape, np.float32), vectorization)
        assert "returned a wrong observation" in found, vectorization
        assert str(shape) in found


@pytest.mark.parametrize("error", [RuntimeError("close boom"), SystemExit(0), OfItsOwn("odd")], ids=repr)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_closing_never_raises(error: BaseException, vectorization: str, recwarn: pytest.WarningsRecorder) -> None:
    before = {p.pid for p in multiprocessing.active_children()}
    env = make_env(lambda: Bad(close=raising(error)), 2, vectorization=vectorization)
    env.reset(0)
    env.close()
    assert {p.pid for p in multiprocessing.active_children()} <= before
    if vectorization == "sync":
        assert any("in close()" in str(w.message) for w in recwarn)


def test_a_wrong_number_leaves_processes_that_are_asked_to_close(tmp_path: Any) -> None:
    """They answer still, and what an environment does as it is closed, such as ending a recording, is done."""
    env = make_env(
        lambda: Bad(lambda: np.full(3, np.nan, np.float32), (tmp_path / str(os.getpid())).touch),
        2,
        vectorization="async",
    )
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(EnvFailure, match="not finite"):
        env.step(np.zeros(2, np.int64))
    env.close()
    assert len([x for x in tmp_path.iterdir() if x.name != str(os.getpid())]) == 2


def test_ctrl_c_is_the_user_s() -> None:
    env = make_env(lambda: Bad(raising(KeyboardInterrupt())), 1, vectorization="sync")
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(1, np.int64))
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(1, np.int64))
    env.close()


def test_a_training_says_so_and_fails(tmp_path: Any) -> None:
    """An environment that ends the program with code 0 does not make a training look successful."""
    import steepest

    options: dict[str, Any] = {"num_envs": 1, "total_steps": 64, "eval_episodes": 0, "vectorization": "sync"}
    with pytest.raises(RunError, match=r"sys\.exit\(0\)"):
        steepest.train("ppo", lambda: Bad(lambda: sys.exit(0)), out=tmp_path / "run", **options)
