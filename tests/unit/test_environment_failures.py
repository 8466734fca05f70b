"""Everything that an environment can do is an error that names it and the step, and nothing of it stays behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from steepest.environments import make_env
from steepest.environments.errors import EnvFailure
from steepest.errors import RunError, UsageError

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


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NotMadeAgain(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


def unknown_elsewhere() -> Exception:
    class Local(Exception):
        pass

    return Local("here", lambda: None)


def of_kind(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, BaseException) else None


ODD_ERRORS: list[tuple[BaseException, str]] = [
    (Speechless(), "raised Speechless in step(): (its text cannot be made: RuntimeError)"),
    (NotMadeAgain(1, 2), "raised NotMadeAgain in step(): 1"),
    (unknown_elsewhere(), "raised Local in step(): ('here', <function"),
    (ExceptionGroup("several", [ValueError(1)]), "raised ExceptionGroup in step(): several (1 sub-exception)"),
    (BrokenPipeError("pipe"), "raised BrokenPipeError in step(): pipe"),
    (GeneratorExit("x"), "raised GeneratorExit in step(): x"),
    (ValueError("x" * 100_000), "x... (100,000 characters) (at step"),
]


@pytest.mark.parametrize("act", [raising(ValueError("boom")), lambda: "observation", lambda: np.zeros(2, np.float32)])
def test_a_worker_s_failure_is_said_once(act: Callable[[], Any]) -> None:
    """As the error that names the environment: no warning beside it, with a traceback of another process."""
    env = make_env(lambda: Bad(act), 2, vectorization="async")
    env.reset(0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(BAD_STEP - 1):
            env.step(np.zeros(2, np.int64))
        with pytest.raises(EnvFailure, match=f"at step {BAD_STEP} after reset"):
            env.step(np.zeros(2, np.int64))
        env.close()
    assert [str(w.message) for w in warned] == []


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
        *[(raising(error), said) for error, said in ODD_ERRORS],
    ],
)
def test_whatever_is_raised_names_the_environment(step: Callable[[], Any], said: str) -> None:
    found = play(step, "sync")
    assert "environment 0 of 2" in found
    assert said in found
    assert "at step 3 after reset" in found


@pytest.mark.parametrize(
    ("error", "said"), [(OfItsOwn("odd"), "raised OfItsOwn in step(): odd"), *ODD_ERRORS], ids=of_kind
)
def test_whatever_is_raised_comes_from_another_process(error: BaseException, said: str) -> None:
    """What cannot be pickled, or made again, or shown: nobody waits for it for ever."""
    found = play(raising(error), "async")
    assert "of 2" in found
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


@pytest.mark.parametrize("kind", ["complex128", "object", "datetime64[s]"])
def test_what_holds_no_numbers_is_no_observation(kind: str) -> None:
    """Shared memory would take the real part, or make NaN of None."""
    for vectorization in ("sync", "async"):
        found = play(lambda: np.zeros(3).astype(kind), vectorization)
        assert f"returned a wrong observation: it holds {np.dtype(kind)}; expected numbers" in found, vectorization


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 3), (3, 1), ()])
def test_a_wrong_shape_is_not_stretched(shape: tuple[int, ...]) -> None:
    """Shared memory takes what it can broadcast."""
    for vectorization in ("sync", "async"):
        found = play(lambda: np.zeros(shape, np.float32), vectorization)
        assert "returned a wrong observation" in found, vectorization
        assert str(shape) in found


@pytest.mark.parametrize(
    "error",
    [RuntimeError("close boom"), SystemExit(0), OfItsOwn("odd"), Speechless(), unknown_elsewhere()],
    ids=of_kind,
)
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


class Returns(Bad):
    """Returns at its third step, or from reset, what it is told to."""

    def __init__(self, step: Any = None, reset: Any = None) -> None:
        super().__init__()
        self.stepped, self.was_reset = step, reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        good = super().reset(seed=seed)
        return good if self.was_reset is None else self.was_reset()

    def step(self, action: Any) -> Any:
        good = super().step(action)
        return self.stepped() if self.stepped is not None and self.steps == BAD_STEP else good


OBS = np.zeros(3, np.float32)
WRONG_STEPS: dict[str, tuple[Callable[[], Any], str]] = {
    "the old interface": (
        lambda: (OBS, 1.0, False, {}),
        "returned a tuple of 4 from step(); expected (observation, reward, terminated, truncated, info); "
        "four are the interface of gym before 0.26",
    ),
    "three": (lambda: (OBS, 1.0, False), "returned a tuple of 3 from step(); expected (observation, reward,"),
    "six": (lambda: (OBS, 1.0, False, False, {}, 0), "returned a tuple of 6 from step()"),
    "the observation alone": (lambda: OBS, "returned an array of shape (3,) from step()"),
    "five numbers": (lambda: np.zeros(5), "returned an array of shape (5,) from step()"),
    "nothing": (lambda: None, "returned None from step()"),
    "a dictionary": (lambda: {"obs": OBS}, "returned a dict from step()"),
    "a reward in an array": (
        lambda: (OBS, np.array([0.5]), False, False, {}),
        "returned the reward array([0.5]) of shape (1,); expected one number",
    ),
    "a reward in a list": (lambda: (OBS, [0.5], False, False, {}), "returned the reward [0.5]; expected one number"),
    "no reward": (lambda: (OBS, None, False, False, {}), "returned the reward None; expected one number"),
    "a reward as text": (lambda: (OBS, "1.0", False, False, {}), "returned the reward '1.0'; expected one number"),
    "a reward without an end": (lambda: (OBS, 10**400, False, False, {}), "which is more than float32 holds"),
    "a reward that cannot be shown": (
        lambda: (OBS, -(10**5000), False, False, {}),
        "returned the reward an int, which is more than float32 holds",
    ),
    "a flag that is no number": (
        lambda: (OBS, 1.0, float("nan"), False, {}),
        "returned terminated as nan; expected True or False",
    ),
    "a count for a flag": (lambda: (OBS, 1.0, False, 2, {}), "returned truncated as 2; expected True or False"),
    "no flag": (lambda: (OBS, 1.0, None, False, {}), "returned terminated as None; expected True or False"),
    "a flag in an array": (
        lambda: (OBS, 1.0, False, np.array([False]), {}),
        "returned truncated as array([False]) of shape (1,); expected True or False",
    ),
    "no info": (lambda: (OBS, 1.0, False, False, None), "returned None as info from step(); expected a dictionary"),
    "a list of infos": (lambda: (OBS, 1.0, False, False, [{}]), "returned a list of 1 as info from step()"),
}
WRONG_RESETS: dict[str, tuple[Callable[[], Any], str]] = {
    "the observation alone": (
        lambda: OBS,
        "returned an array of shape (3,) from reset(); expected (observation, info), where info is a dictionary",
    ),
    "an observation of two": (lambda: np.zeros(2, np.float32), "returned an array of shape (2,) from reset()"),
    "an observation of two in a list": (lambda: [0.5, 0.5], "returned a list of 2 from reset()"),
    "no info": (lambda: (OBS, None), "returned a tuple of 2 from reset()"),
    "nothing": (lambda: None, "returned None from reset()"),
    "three": (lambda: (OBS, {}, 0), "returned a tuple of 3 from reset()"),
}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", WRONG_STEPS)
def test_what_step_returns_wrongly_is_said(name: str, vectorization: Any) -> None:
    step, said = WRONG_STEPS[name]
    env = make_env(lambda: Returns(step), 2, vectorization=vectorization)
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(EnvFailure) as caught:
        env.step(np.zeros(2, np.int64))
    env.close()
    assert said in str(caught.value)
    assert "raised" not in str(caught.value)
    assert "of 2 returned" in str(caught.value)
    assert "at step 3 after reset" in str(caught.value)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", WRONG_RESETS)
def test_what_reset_returns_wrongly_is_said(name: str, vectorization: Any) -> None:
    reset, said = WRONG_RESETS[name]
    env = make_env(lambda: Returns(reset=reset), 2, vectorization=vectorization)
    with pytest.raises(EnvFailure) as caught:
        env.reset(0)
    env.close()
    assert said in str(caught.value)
    assert "raised" not in str(caught.value)
    assert "(in reset)" in str(caught.value)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_gymnasium_s_own_wrappers_are_not_blamed(vectorization: Any) -> None:
    """They take a step apart before anything here sees it; so does Gymnasium's own vector environment."""
    env = make_env(lambda: Returns(WRONG_STEPS["the old interface"][0]), 1, vectorization=vectorization,
                   max_episode_steps=9)  # fmt: skip
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(1, np.int64))
    with pytest.raises(EnvFailure, match=r"returned something else from step\(\) than \(observation, reward, term"):
        env.step(np.zeros(1, np.int64))
    env.close()
    ready = gym.vector.SyncVectorEnv([lambda: Returns(reset=WRONG_RESETS["the observation alone"][0])])
    with pytest.raises(EnvFailure, match=r"returned something else from reset\(\) than \(observation, info\)"):
        make_env(ready, 1).reset(0)


def test_an_environment_s_own_unpacking_is_its_own_error() -> None:
    def unpack() -> Any:
        _, _ = list(range(3))

    assert "raised ValueError in step(): too many values to unpack" in play(unpack, "sync")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (1e300, "returned the reward 1e+300, which is more than float32 holds"),
        (-3.5e38, "returned the reward -3.5e+38, which is more than float32 holds"),
        (float("inf"), "returned the reward inf (at"),
        (float("nan"), "returned the reward nan (at"),
        (np.float64(4e38), "returned the reward 4e+38, which"),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_reward_too_large_to_learn_from_is_said(reward: float, said: str, vectorization: Any) -> None:
    env = make_env(lambda: Returns(lambda: (OBS, reward, False, False, {})), 1, vectorization=vectorization)
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(1, np.int64))
    with pytest.raises(EnvFailure) as caught:
        env.step(np.zeros(1, np.int64))
    env.close()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "reward", [3e38, -3e38, True, 1, np.float32(0.5), np.array(0.5), np.int64(3), torch.tensor(0.25)], ids=repr
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_any_one_number_is_a_reward(reward: Any, vectorization: Any) -> None:
    env = make_env(lambda: Returns(lambda: (OBS, reward, np.False_, 0, {})), 1, vectorization=vectorization)
    env.reset(0)
    given = [env.step(np.zeros(1, np.int64)).reward[0] for _ in range(BAD_STEP)]
    env.close()
    assert given == [0.0, 0.0, float(reward)]


def hang() -> Any:
    time.sleep(60.0)


def hang_deaf() -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60.0)


@pytest.mark.parametrize("step", [hang, hang_deaf])
def test_a_step_that_does_not_end_is_named(step: Callable[[], Any]) -> None:
    before = {p.pid for p in multiprocessing.active_children()}

    class Second(Bad):
        """Of two, the one that has seen two steps when the other has seen none."""

        def step(self, action: Any) -> Any:
            return super().step(action) if action else (OBS, 0.0, False, False, {})

    env = make_env(lambda: Second(step), 2, vectorization="async", step_timeout=0.5)
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.array([0, 1]))
    began = time.monotonic()
    with pytest.raises(EnvFailure) as caught:
        env.step(np.array([0, 1]))
    env.close()
    assert "environment 1 of 2 had not returned from step() after 0.5 s, the step_timeout" in str(caught.value)
    assert "at step 3 after reset" in str(caught.value)
    assert time.monotonic() - began < 10.0
    assert {p.pid for p in multiprocessing.active_children()} <= before


def test_a_reset_that_does_not_end_is_named() -> None:
    env = make_env(lambda: Returns(reset=hang), 2, vectorization="async", step_timeout=0.5)
    with pytest.raises(EnvFailure, match=r"environment 0 of 2 had not returned from reset\(\) after 0\.5 s"):
        env.reset(0)
    env.close()


def test_a_time_limit_that_is_kept_changes_nothing() -> None:
    def rows(**options: Any) -> list[Any]:
        env = make_env("CartPole-v1", 2, vectorization="async", **options)
        env.reset(3)
        found = [env.step(np.array([i % 2, 1])).obs["obs"].copy() for i in range(30)]
        env.close()
        return found

    np.testing.assert_array_equal(rows(), rows(step_timeout=20.0))


@pytest.mark.parametrize("vectorization", ["auto", "sync", "native", "envpool"])
def test_a_time_limit_needs_processes(vectorization: Any) -> None:
    with pytest.raises(UsageError, match=r'step_timeout is 5.*vectorization="async"'):
        make_env("CartPole-v1", 2, vectorization=vectorization, step_timeout=5.0)
    with pytest.raises(UsageError, match="step_timeout is 5"):
        make_env(gym.vector.SyncVectorEnv([Bad]), 1, step_timeout=5.0)


@pytest.mark.parametrize("step", [hang, hang_deaf])
def test_closing_does_not_wait_for_a_step_that_does_not_end(step: Callable[[], Any]) -> None:
    """As after Ctrl-C in such a step."""
    before = {p.pid for p in multiprocessing.active_children()}
    env = make_env(lambda: Bad(step), 1, vectorization="async")
    env.reset(0)
    for _ in range(BAD_STEP - 1):
        env.step(np.zeros(1, np.int64))
    env.step_async(np.zeros(1, np.int64))
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 10.0
    assert {p.pid for p in multiprocessing.active_children()} <= before


def test_a_training_with_a_time_limit_saves_and_says_where(tmp_path: Any) -> None:
    """The last good checkpoint is named, and the environments get processes of their own."""
    import steepest

    class Hangs(Bad):
        def step(self, action: Any) -> Any:
            if os.path.exists(mark):
                hang()
            return super().step(action)

    mark = str(tmp_path / "hang")
    options: dict[str, Any] = {
        "num_envs": 1, "total_steps": 200, "rollout_steps": 8, "checkpoint_every": 32, "eval_episodes": 0,
        "step_timeout": 0.5, "minibatches": 1,
    }  # fmt: skip
    said = r"had not returned from step\(\) after 0\.5 s.*last good checkpoint is .*step-0"
    with steepest.Run("ppo", Hangs, out=tmp_path / "run", **options) as run:
        assert run.settings.vectorization == "async"
        while run.step < 40:
            run.iterate()
        (tmp_path / "hang").touch()
        with pytest.raises(RunError, match=said):
            run.iterate()
