"""``make_env``: from a name, a factory or an environment to a batch of environments."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from steepest.environments import atari as atari_games
from steepest.environments.atari import GameScores, OnGame
from steepest.environments.batch import EnvBatch, check_seed
from steepest.environments.config import VECTORIZATIONS, AtariOptions, Vectorization
from steepest.environments.envpool import EnvPoolBatch, available_cores
from steepest.environments.errors import EnvFailure, missing_extra
from steepest.environments.failures import Guarded, Workers
from steepest.environments.names import ENVPOOL_ATARI, find_in_envpool, find_spec
from steepest.environments.sync import SerialVectorEnv
from steepest.errors import SteepestError, UsageError
from steepest.files.space import require_space

_T = TypeVar("_T")
AnyEnv = gym.Env[Any, Any]
AnyVectorEnv = VectorEnv[Any, Any, Any]
EnvLike = str | Callable[..., AnyEnv] | AnyEnv | AnyVectorEnv

NATIVE_FROM = 4
"""From so many environments on, a NumPy vector environment beats a loop (CartPole: both 32 us a step at 4)."""
BYTES_OF_A_ROW, BYTES_OF_AN_ENVIRONMENT, BYTES_OF_A_PROCESS = 2**6, 2**12, 10 * 2**20
"""Of memory, about: of a small environment in arrays of them all, of one made in Python (CartPole 6 kB, Acrobot 2), and
of a process around one."""


class _Asked(NamedTuple):
    """How environments are to be made, whatever kind they are of; see ``make_env``."""

    num_envs: int
    seed: int
    vectorization: Vectorization
    kwargs: dict[str, Any]
    render_mode: str | None
    max_episode_steps: int | None
    on_game: OnGame | None
    step_timeout: float | None
    info_keys: tuple[str, ...]

    @property
    def of_batch(self) -> dict[str, Any]:
        """What goes to the batch as it is."""
        return {"seed": self.seed, "step_timeout": self.step_timeout, "info_keys": self.info_keys}


def make_env(
    env: EnvLike,
    num_envs: int,
    *,
    seed: int = 0,
    vectorization: Vectorization = "auto",
    env_kwargs: dict[str, Any] | None = None,
    atari: AtariOptions | None = None,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    on_game: OnGame | None = None,
    step_timeout: float | None = None,
    info_keys: Sequence[str] = (),
) -> EnvBatch:
    """``num_envs`` environments of one kind, behind one face and one autoreset convention (see ``EnvBatch``).

    Args:
        env: one of
            a Gymnasium id, also "module:Id-v0" (the module is imported first) and "ALE/Pong-v5";
            an EnvPool id, with ``vectorization="envpool"``;
            a factory: it is called ``num_envs`` times, with ``env_kwargs``, and ``render_mode`` where one is given;
            a ``gym.Env``: used as it is for one environment, made again from its spec for more;
            a ``gym.vector.VectorEnv`` of ``num_envs`` environments, used as it is.
        seed: of a first ``reset(None)``. ``reset(seed)`` makes all that follows a function of that seed and the
            actions: sync and async environments made from an id or a factory are made anew, so nothing can survive of
            earlier episodes. A ``gym.Env`` or ``VectorEnv`` passed in is only reset, and must keep the promise itself.
        vectorization:
            "native"  the vector environment that the id registers;
            "sync"    a loop in this process; "async"  one process each, for environments slower than about 1 ms a step;
            "envpool" EnvPool's C++ environments;
            "auto"    native where there is one and it is faster (from 4 environments on, Atari always), else sync.
        env_kwargs: go to the environment's constructor (with "envpool" to ``envpool.make_gymnasium``).
        atari: preprocessing of Atari games; the default is ``AtariOptions()``.
        render_mode: as Gymnasium has it, usually "rgb_array".
        max_episode_steps: replaces the registered limit, in the agent's steps; a limit is ``truncated``.
        on_game: called with every finished Atari game's own score, where ``atari`` has the agent see something else.
        step_timeout: seconds that one step or reset may take; with "async" only, since a process can be stopped, and a
            call in this one cannot.
        info_keys: names of numbers in the environments' infos, given with every step.

    Raises: UnknownEnvironment with the nearest names; MissingExtra with the line that installs it;
            UnsupportedSpaceError; UsageError for other misuse; EnvFailure if the environment's constructor raises.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"num_envs is {num_envs!r}; it must be a whole number of at least 1.")
    if vectorization not in VECTORIZATIONS:
        raise UsageError(f"vectorization is {vectorization!r}; it must be one of {', '.join(VECTORIZATIONS)}.")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise UsageError(f"max_episode_steps is {max_episode_steps}; it must be at least 1.")
    check_seed(seed)
    kwargs = dict(env_kwargs or {})
    _check_timeout(env, vectorization, step_timeout)
    names = tuple(info_keys)
    asked = _Asked(num_envs, seed, vectorization, kwargs, render_mode, max_episode_steps, on_game, step_timeout, names)

    if isinstance(env, str):
        if vectorization == "envpool":
            return _envpool(env, atari, asked)
        spec = find_spec(env)
        if spec.entry_point == atari_games.ENTRY_POINT:
            return _atari(spec, atari or AtariOptions(), asked)
        _refuse(atari is not None, f"atari options were given, but {env} is not an Atari game.")
        return _registered(spec, asked)

    _refuse(atari is not None, "atari options need the id of an Atari game; preprocess the environment yourself.")
    if isinstance(env, VectorEnv):
        return _ready(env, asked)
    if vectorization in ("native", "envpool"):
        raise UsageError(f'vectorization="{vectorization}" needs an id, but env is {_short(env)}.')
    if isinstance(env, gym.Env):
        _refuse(bool(kwargs), "env_kwargs were given, but the environment is already made.")
        _refuse(
            render_mode not in (None, env.render_mode), "render_mode was given, but the environment is already made."
        )
        if num_envs == 1 and vectorization != "async":
            limited = env if max_episode_steps is None else TimeLimit(env, max_episode_steps)
            name = env.spec.id if env.spec else type(env.unwrapped).__name__
            venv = _construct(name, lambda: SerialVectorEnv([lambda: limited], names))
            return _batch(venv, name=name, backend="sync", **asked.of_batch)
        env, name = _factory_from(env, num_envs)
    elif callable(env):
        name = getattr(env, "__name__", type(env).__name__)
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
    else:
        raise UsageError(
            f"env is {_short(env)}; it must be the id of an environment, a factory that makes one, a gymnasium.Env, "
            "or a gymnasium.vector.VectorEnv."
        )
    factory = cast("Callable[..., Any]", env)

    def one() -> AnyEnv:
        made = factory(**kwargs)
        if not isinstance(made, gym.Env):
            raise UsageError(f"The factory {name} returned {_short(made)}, not a gymnasium.Env.")
        made = cast(AnyEnv, made)
        return made if max_episode_steps is None else TimeLimit(made, max_episode_steps)

    return _loop(name, one, asked)


def _check_timeout(env: object, vectorization: str, step_timeout: float | None) -> None:
    """Refuse a time limit where no step can be stopped; a ready vector environment is asked later."""
    if step_timeout is None or vectorization == "async" or isinstance(env, VectorEnv):
        return
    raise UsageError(
        f"step_timeout is {step_timeout:g}, but vectorization is {vectorization!r}: a step in this process cannot be "
        'stopped. Use vectorization="async", a process for each environment.'
    )


def _registered(spec: EnvSpec, asked: _Asked) -> EnvBatch:
    more = {"render_mode": asked.render_mode, "max_episode_steps": asked.max_episode_steps}
    options: dict[str, Any] = {**asked.kwargs, **more}
    options = {key: value for key, value in options.items() if value is not None or key in asked.kwargs}
    has_native = spec.vector_entry_point is not None and not spec.additional_wrappers
    _refuse(
        asked.vectorization == "native" and not has_native,
        f'{spec.id} registers no native vector environment; use vectorization="sync".',
    )
    # Windows are a matter of single environments, and those that are native draw all of theirs for one picture.
    worth_it = has_native and asked.num_envs >= NATIVE_FROM and asked.render_mode is None
    if asked.vectorization == "native" or (asked.vectorization == "auto" and worth_it):
        _require_memory(asked.num_envs, BYTES_OF_A_ROW)
        venv = _construct(
            spec.id, lambda: gym.make_vec(spec, asked.num_envs, vectorization_mode="vector_entry_point", **options)
        )
        return _batch(venv, name=spec.id, backend="native", **asked.of_batch)
    # Observations are checked at every step here, which Gymnasium's own checker does only at the first.
    return _loop(spec.id, lambda: _make_one(spec, options), asked)


def _make_one(spec: EnvSpec, options: dict[str, Any]) -> AnyEnv:
    """One registered environment. MuJoCo is kept from saying, once for each, that Gymnasium's model of HalfCheetah has
    a deprecated attribute: nobody who trains on it can change that. All else that it says is passed on."""
    if not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return gym.make(spec, disable_env_checker=True, **options)
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError:  # which Gymnasium puts into words
        return gym.make(spec, disable_env_checker=True, **options)
    before = mujoco.get_mju_user_warning()

    def say(text: str) -> None:
        if "'settotalmass' is deprecated" in text:
            return
        if callable(before):
            before(text)
        else:
            print(f"WARNING: {text}", file=sys.stderr)

    mujoco.set_mju_user_warning(say)
    try:
        return gym.make(spec, disable_env_checker=True, **options)
    finally:
        mujoco.set_mju_user_warning(before)


def _atari(spec: EnvSpec, options: AtariOptions, asked: _Asked) -> EnvBatch:
    for key in ("obs_type", "frameskip", "repeat_action_probability", "full_action_space", "continuous"):
        _refuse(
            key in asked.kwargs,
            f"env_kwargs has {key!r}, but Atari games are preprocessed here: set AtariOptions, or pass a factory to "
            "preprocess them yourself.",
        )
    scalar_only = asked.render_mode is not None or bool(asked.kwargs)
    _refuse(
        asked.vectorization == "native" and scalar_only,
        'Native Atari environments take no render_mode and no env_kwargs; use vectorization="sync".',
    )
    options, watch = _score_watch(options, "episode_frame_number", asked.on_game)
    limit = asked.max_episode_steps
    if asked.vectorization == "native" or (asked.vectorization == "auto" and not scalar_only):
        threads = available_cores()
        venv = _construct(spec.id, lambda: watch(atari_games.vector_env(spec, asked.num_envs, options, threads, limit)))
        # ale_py's arrays are never used twice, so they need no copy.
        return _batch(venv, name=spec.id, backend="native", shares_memory=False, **asked.of_batch)
    render_mode, kwargs = asked.render_mode, asked.kwargs
    return _loop(spec.id, lambda: atari_games.scalar_env(spec, options, render_mode, limit, kwargs), asked, watch)


def _score_watch(
    options: AtariOptions, counter: str, on_game: OnGame | None
) -> tuple[AtariOptions, Callable[[AnyVectorEnv], AnyVectorEnv]]:
    """The options for the environments, and what to wrap around them so that ``on_game`` hears of every game.

    The wrapper clips in their place, since it has to see the rewards before.
    """
    if on_game is None or not options.changes_episodes:
        return options, lambda venv: venv
    unclipped = dataclasses.replace(options, clip_reward=False)
    return unclipped, lambda venv: GameScores(venv, counter, options.clip_reward, on_game)


def _envpool(env_id: str, atari: AtariOptions | None, asked: _Asked) -> EnvBatch:
    is_atari_game = find_in_envpool(env_id)[0] == ENVPOOL_ATARI
    _refuse(atari is not None and not is_atari_game, f"atari options were given, but {env_id} is not an Atari game.")
    options, watch = asked.kwargs, None
    if is_atari_game:
        preprocessing, watch = _score_watch(atari or AtariOptions(), "elapsed_step", asked.on_game)
        options = {**atari_games.envpool_settings(preprocessing), **asked.kwargs}
    if asked.max_episode_steps is not None:
        options["max_episode_steps"] = asked.max_episode_steps
    if asked.render_mode is not None:
        options["render_mode"] = asked.render_mode
    return _construct(
        env_id,
        lambda: EnvPoolBatch(env_id, asked.num_envs, seed=asked.seed, wrap=watch, info_keys=asked.info_keys, **options),
    )


def _ready(env: AnyVectorEnv, asked: _Asked) -> EnvBatch:
    count = asked.num_envs
    _refuse(env.num_envs != count, f"num_envs is {count}, but the vector environment has {env.num_envs}.")
    for what, given in (
        ("vectorization", asked.vectorization != "auto"),
        ("env_kwargs", bool(asked.kwargs)),
        ("render_mode", asked.render_mode not in (None, env.render_mode)),
        ("max_episode_steps", asked.max_episode_steps is not None),
    ):
        _refuse(given, f"{what} was given, but the vector environment is already made.")
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    return _batch(env, name=name, backend="user", **asked.of_batch)


def _factory_from(env: AnyEnv, num_envs: int) -> tuple[Callable[[], AnyEnv], str]:
    """A factory of environments like ``env``, from the spec that ``gym.make`` and the wrappers recorded."""
    cls = type(env.unwrapped).__name__
    advice = f"Pass a factory instead, such as lambda: {cls}(...)."
    spec = env.spec
    if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
        raise UsageError(
            f"{num_envs} environments cannot be made from one {cls}: it does not record how it was made. {advice}"
        )
    return lambda: gym.make(spec, disable_env_checker=True), spec.id


def _loop(
    name: str,
    one: Callable[[], AnyEnv],
    asked: _Asked,
    wrap: Callable[[AnyVectorEnv], AnyVectorEnv] = lambda venv: venv,
) -> EnvBatch:
    """Scalar environments, in this process or one process each."""
    each = BYTES_OF_A_PROCESS if asked.vectorization == "async" else BYTES_OF_AN_ENVIRONMENT
    _require_memory(asked.num_envs, each)
    if asked.vectorization == "async":
        # A worker is sent all that its function names: never ``asked``, whose ``on_game`` may know the whole training.
        owner, info_keys = os.getpid(), asked.info_keys

        def worker() -> AnyEnv:
            # Ctrl-C reaches the whole process group; what it means is for the process that owns the workers to decide.
            if os.getpid() != owner:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            return Guarded(one(), info_keys)

        def build() -> AnyVectorEnv:
            return wrap(Workers([worker] * asked.num_envs, copy=False))
    else:

        def build() -> AnyVectorEnv:
            return wrap(SerialVectorEnv([one] * asked.num_envs, asked.info_keys))

    venv = _construct(name, build)
    backend = "async" if asked.vectorization == "async" else "sync"
    return _batch(venv, name=name, backend=backend, rebuild=lambda: _construct(name, build), **asked.of_batch)


def _batch(venv: AnyVectorEnv, **options: Any) -> EnvBatch:
    try:
        return EnvBatch(venv, **options)
    except SteepestError:
        if options["backend"] != "user":
            venv.close()
        raise


def _construct(name: str, build: Callable[[], _T]) -> _T:
    """``build()``, with what can go wrong said plainly."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            return build()
    except SteepestError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_extra(name, error) from error
    except TypeError as error:
        if "unexpected keyword argument" in str(error) or "required positional argument" in str(error):
            raise UsageError(f"{name} does not take these arguments: {error}") from error
        raise EnvFailure(f"{name} cannot be made: TypeError: {error}") from error
    except Exception as error:
        raise EnvFailure(f"{name} cannot be made: {type(error).__name__}: {error}") from error


def _require_memory(num_envs: int, each: int) -> None:
    require_space(num_envs * each, f"a batch of {num_envs:,} environments", "give fewer (num_envs, seeds)")


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise UsageError(message)


def _short(value: object) -> str:
    kind = type(value)
    hint = " (of the old gym package? Use gymnasium)" if kind.__module__.split(".")[0] == "gym" else ""
    return f"an object of type {kind.__module__}.{kind.__qualname__}{hint}"
