"""One face for every vector environment, with one convention for what follows an episode's end.

The convention is NEXT_STEP: the step that ends an episode returns its true final observation, and the next step ignores
the action, returns the first observation of the next episode with reward 0, and is marked ``valid`` False. So
``obs[t + 1]`` is always what truly followed ``obs[t]``.

Gymnasium's other two autoreset modes become this by a *pause row*. SAME_STEP returns the next episode's first
observation at once; it is held back while the true final one is returned. DISABLED waits to be reset. In both, the step
after any environment finished does not reach the environments: it reveals the first observations (SAME_STEP) or resets
the finished environments (DISABLED), and is ``valid`` False for *all* of them, since nobody decided anything; the
others' observations are unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from steepest.environments.errors import EnvFailure
from steepest.environments.failures import close, what_happened
from steepest.environments.normalising import inner_statistics
from steepest.environments.pictures import pictures
from steepest.environments.reading import MASK, WrongReturn, check_shape
from steepest.environments.rows import all_finite, as_batch, first_bad, numbers, row_of, text_of
from steepest.environments.spaces import action_spec, convert_obs, flatten_mask, obs_spec
from steepest.errors import SteepestError, UsageError

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Obs = dict[str, Array]
LARGEST_REWARD = float(np.finfo(np.float32).max)
"""Rewards travel in float64 and are learned from in float32."""


class StepResult(NamedTuple):
    """Result of one step of N environments. The arrays are the caller's: no later step changes them."""

    obs: Obs  # each (N, ...): what truly followed
    reward: NDArray[np.float64]  # (N,) reward units; 0 where not valid
    terminated: Bools  # (N,) the process ended; False where not valid
    truncated: Bools  # (N,) only the recording ended; False where not valid
    valid: Bools  # (N,) False where the row only restarts an environment, or waits for another one's restart
    action_mask: Bools | None  # (N, mask_size) True where legal, for ``obs``
    infos: dict[str, NDArray[np.float64]] = {}  # noqa: RUF012  # of every name in ``info_keys`` (N,), NaN where absent or not valid


class EnvBatch:
    """N environments of one kind, over any ``gymnasium.vector.VectorEnv``.

    An action mask is found in ``info["action_mask"]``, or under the key "action_mask" of a Dict observation, which is
    then not an observation field. An environment that gives masks must give one for every observation, except an
    episode's last: nothing is chosen there, so its mask may be empty or absent, and is then all True.

    Every environment is seeded apart, from ``numpy.random.SeedSequence(seed)``: nearby seeds share no environment.

    Args: rebuild: makes the vector environment anew. ``reset(seed)`` then starts from fresh environments once they have
          been stepped, so that nothing can survive of earlier episodes. seed: used by a first ``reset(None)``.
          shares_memory: False promises that observation arrays are never written to again. step_timeout: seconds that
          a step or reset may take, where environments have processes of their own. info_keys: numbers in their infos
          that every step gives back.
    """

    def __init__(
        self,
        venv: VectorEnv[Any, Any, Any],
        *,
        name: str,
        backend: str,
        seed: int = 0,
        rebuild: Callable[[], VectorEnv[Any, Any, Any]] | None = None,
        shares_memory: bool = True,
        step_timeout: float | None = None,
        info_keys: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.backend = backend
        self.num_envs = int(venv.num_envs)
        self.observation_space = venv.single_observation_space
        self.action_space = venv.single_action_space
        self._venv = venv
        self._mode = self._autoreset_mode()
        self._rebuild = rebuild
        self._copy = shares_memory
        # Whether a step can be begun now and ended later: not where a step is more than AsyncVectorEnv's two halves.
        self.asynchronous = type(venv).step is AsyncVectorEnv.step
        self._step_timeout = step_timeout
        if step_timeout is not None and not self.asynchronous:
            raise UsageError(
                f"step_timeout is {step_timeout:g}, but {name} is no AsyncVectorEnv: no other lets go of a step"
            )
        self.info_keys = tuple(info_keys)
        self._first_seed: int | None = check_seed(seed)

        self.action_spec = action_spec(self.action_space)
        space = self.observation_space
        self._mask_from: Literal["nowhere", "obs", "info"] = "nowhere"
        if isinstance(space, spaces.Dict) and MASK in space.spaces and self.action_spec.mask_size:
            self._mask_from = "obs"
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK})
        self.obs_spec = obs_spec(space)
        self._float_fields = tuple(f.name for f in self.obs_spec.fields if f.dtype == "float32")

        self._seeded = self._failed = False
        self._steps = 0
        self._action: Array | None = None  # of a step that was begun
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_done = False
        self._shown: Obs = {}  # the last observations of a step that ended an episode (SAME_STEP: those held back)
        self._mask: Bools | None = None  # the masks that belong to ``_shown``

    def reset(self, seed: int | None) -> tuple[Obs, Bools | None]:
        """Start every environment afresh.

        With a seed, all that follows is a function of the seed and the actions. Without, the environments' own random
        streams go on, except in a first reset, which uses the seed given at construction.

        Returns: observations, each (N, ...), and the action mask (N, mask_size) where there is one
        Raises:  EnvFailure if an environment raises or returns what its spaces do not allow
        """
        if seed is None:
            seed = self._first_seed
        seed = None if seed is None else check_seed(seed)
        self._first_seed = None
        self._steps = 0
        try:
            raw, info = self._reset_all(seed)
        except SteepestError:
            raise
        except BaseException as error:
            raise self._raised("reset", error) from error
        self._seeded = True
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_done = False
        obs = self._convert(raw)
        if self._mask_from != "obs":
            self._mask_from = "info" if MASK in info else "nowhere"
        self._mask = self._read_mask(raw, info, None)
        return obs, self._mask

    def _reset_all(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            return self._reset()
        if self._rebuild is not None and self._seeded:
            close(self._venv, self.name, failed=self._failed)
            self._venv, self._failed = self._rebuild(), False
        if isinstance(self._venv.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            return self._reset(seed=derive_seeds(seed, self.num_envs))
        return self._reset(seed=derive_seeds(seed, 1)[0])

    def _reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        venv: Any = self._venv
        if self._step_timeout is None:
            return venv.reset(**given)
        venv.reset_async(**given)
        return venv.reset_wait(timeout=self._step_timeout)

    def step(self, action: Array) -> StepResult:
        """Advance every environment by one step.

        Args:    action: as the environments take it (``to_env_action``), (N, *action_spec.shape); ignored where the row
                 turns out not valid
        Raises:  EnvFailure if an environment raises or returns what its spaces do not allow
        """
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Array) -> None:
        """Begin the step that ``step_wait`` ends. Where ``asynchronous``, the environments take it meanwhile.

        Raises:  as ``step``
        """
        if not self._seeded:
            raise UsageError(f"{self.name}: call reset(seed) before the first step.")
        self._steps += 1
        self._action = action
        if self.asynchronous and not self._pauses:
            try:
                self._venv.step_async(action)  # pyright: ignore[reportAttributeAccessIssue]
            except BaseException as error:
                raise self._raised("step", error) from error

    @property
    def _pauses(self) -> bool:
        """Return whether the next row is a pause row."""
        return bool(self._any_done) and self._mode is not AutoresetMode.NEXT_STEP

    def step_wait(self) -> StepResult:
        """End the step that ``step_async`` has begun; together they are ``step``.

        Raises:    as ``step``
        Verified:  tests/unit/test_environments.py::test_a_step_in_two_halves_is_the_step
        """
        if self._pauses:
            return self._pause()
        try:
            if self.asynchronous:
                raw, reward, terminated, truncated, info = cast(Any, self._venv).step_wait(timeout=self._step_timeout)
            else:
                assert self._action is not None
                raw, reward, terminated, truncated, info = self._venv.step(self._action)
        except BaseException as error:
            raise self._raised("step", error) from error
        obs = self._convert(raw)
        reward = self._check_reward(reward)
        terminated = self._check_flags("terminated", terminated)
        truncated = self._check_flags("truncated", truncated)
        # Taken before invalid rows are cleared: an episode that ends in its own first row is started once more.
        done = terminated | truncated
        valid = ~self._done if self._mode is AutoresetMode.NEXT_STEP else np.ones(self.num_envs, dtype=np.bool_)
        infos = self._infos(info, valid, done)
        if self._any_done:
            reward = np.where(valid, reward, 0.0)
            terminated &= valid
            truncated &= valid
        self._done = done
        self._any_done = np.count_nonzero(done) > 0  # any(), at a fifth of its cost on a few flags
        mask = None
        if self._mask_from != "nowhere":
            # In SAME_STEP these masks already belong to the next episode's first observation.
            mask = self._mask = self._read_mask(raw, info, None if self._mode is AutoresetMode.SAME_STEP else done)
        elif MASK in info:
            raise self._failure(
                None, f"gave info[{MASK!r}] but gave none in reset(): a mask must come with every observation"
            )
        if self._any_done:
            if self._mode is AutoresetMode.SAME_STEP:
                self._shown = obs
                obs, mask = self._final(obs, mask, info)
            elif self._mode is AutoresetMode.DISABLED:
                self._shown = {key: value.copy() for key, value in obs.items()}
        return StepResult(obs, reward, terminated, truncated, valid, mask, infos)

    def _pause(self) -> StepResult:
        """The row on which finished environments restart and all others wait."""
        obs, mask = self._shown, self._mask
        if self._mode is AutoresetMode.DISABLED:
            try:
                raw, info = self._reset(options={"reset_mask": self._done.copy()})
            except BaseException as error:
                raise self._raised("reset", error) from error
            first = self._convert(raw)
            for key, value in obs.items():
                value[self._done] = first[key][self._done]
            first_mask = self._read_mask(raw, info, ~self._done)
            if mask is not None and first_mask is not None:
                mask = np.where(self._done[:, None], first_mask, mask)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_done = False
        self._shown, self._mask = {}, mask
        terminated, truncated, valid = np.zeros((3, self.num_envs), dtype=np.bool_)
        return StepResult(
            obs, np.zeros(self.num_envs), terminated, truncated, valid, mask, self._infos({}, valid, valid)
        )

    def _final(self, first: Obs, first_mask: Bools | None, info: dict[str, Any]) -> tuple[Obs, Bools | None]:
        """SAME_STEP: observations and masks with the true final ones put in the place of the next episode's first."""
        obs = {key: value.copy() for key, value in first.items()}
        mask = None if first_mask is None else first_mask.copy()
        final = info.get("final_obs")
        for i in np.flatnonzero(self._done):
            raw = None if final is None else row_of(final, i)
            if raw is None:
                raise self._failure(
                    i, "ended its episode but gave no info['final_obs'], which SAME_STEP autoreset requires"
                )
            one = self._convert(as_batch(raw), index=int(i))
            for key, value in one.items():
                obs[key][i] = value[0]
            if mask is not None:
                mask[i] = True
                if self._mask_from == "obs":
                    source: Any = as_batch(raw)[MASK]
                else:
                    final_info = info.get("final_info", {})
                    source = final_info.get(MASK)
                    if source is not None:
                        given = bool(final_info.get(f"_{MASK}", np.ones(self.num_envs, dtype=np.bool_))[i])
                        source = source[i : i + 1] if given else None
                if source is not None:
                    mask[i] = self._flatten(source, np.ones(1, dtype=np.bool_), np.array([i]))[0]
        return obs, mask

    def render(self) -> NDArray[np.uint8]:
        """The first environment's picture, (height, width, 3)."""
        return self.pictures([0])[0]

    def pictures(self, which: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The pictures of some environments; see ``pictures.pictures``."""
        return pictures(self._venv, self.name, which)

    @property
    def render_fps(self) -> float:
        """Pictures per second at which a recording plays in real time."""
        return float(self._venv.metadata.get("render_fps") or 30)

    @property
    def inner_statistics(self) -> tuple[str, ...]:
        """The options in whose place the environments normalise themselves."""
        return inner_statistics(self._venv)

    def close(self) -> None:
        """Release processes, windows and memory. Further calls do nothing, and none raises."""
        close(self._venv, self.name, failed=self._failed)

    # Reading what the environments gave

    def _convert(self, raw: Any, index: int | None = None) -> Obs:
        """Named, checked observations of all environments, or of the one at ``index``."""
        try:
            obs = convert_obs(self.obs_spec, raw, self.num_envs if index is None else 1, copy=self._copy)
        except (ValueError, TypeError) as error:
            raise self._failure(index, f"returned a wrong observation: {error}") from error
        for key in self._float_fields:
            value = obs[key]
            if not all_finite(value):
                row = first_bad(value)
                field = f" (field {key!r})" if self.obs_spec.is_dict else ""
                what = f"returned an observation{field} that is not finite: {text_of(value[row])}"
                raise self._failure(row if index is None else index, what)
        return obs

    def _check_reward(self, raw: Any) -> NDArray[np.float64]:
        try:
            reward = np.asarray(raw, dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise self._failure(None, f"returned a reward that is not a number: {text_of(raw)}") from error
        if reward.shape != (self.num_envs,):
            raise self._failure(None, f"returned rewards of shape {reward.shape}, not {(self.num_envs,)}")
        # A sum of squares costs a tenth of the elementwise test on short arrays.
        if not math.fabs(np.vdot(reward, reward)) < LARGEST_REWARD:
            bad = ~(np.abs(reward) <= LARGEST_REWARD)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                why = ", which is more than float32 holds" if math.isfinite(reward[row]) else ""
                raise self._failure(row, f"returned the reward {reward[row]}{why}")
        return reward

    def _check_flags(self, what: str, raw: Any) -> Bools:
        # A copy, since rows that only restart are cleared in place.
        flags = np.array(raw, dtype=np.bool_)
        if flags.shape != (self.num_envs,):
            raise self._failure(None, f"returned {what} of shape {flags.shape}, not {(self.num_envs,)}")
        return flags

    def _infos(self, info: dict[str, Any], valid: Bools, done: Bools) -> dict[str, NDArray[np.float64]]:
        """The numbers that ``info_keys`` names, NaN where there are none."""
        found: dict[str, NDArray[np.float64]] = {}
        for key in self.info_keys:
            try:
                values = numbers(info, key, self.num_envs)
                if self._mode is AutoresetMode.SAME_STEP:  # where an episode ended they are of the next one
                    values = np.where(done, numbers(info.get("final_info", {}), key, self.num_envs), values)
            except WrongReturn as error:
                raise self._failure(None, str(error)) from error
            found[key] = np.where(valid, values, np.nan)
        return found

    def _read_mask(self, raw: Any, info: dict[str, Any], optional: Bools | None) -> Bools | None:
        """The action masks; rows in ``optional`` may lack one, or have an empty one, and are then all True."""
        if self._mask_from == "nowhere":
            return None
        optional = np.zeros(self.num_envs, dtype=np.bool_) if optional is None else optional
        source = raw[MASK] if self._mask_from == "obs" else info.get(MASK)
        present = info.get(f"_{MASK}") if self._mask_from == "info" else None
        if source is None:
            present = np.zeros(self.num_envs, dtype=np.bool_)
        if present is not None and not present.all():
            missing = ~present & ~optional
            if missing.any():
                raise self._failure(
                    int(np.flatnonzero(missing)[0]), f"gave no info[{MASK!r}], though it gave one before"
                )
            mask = np.ones((self.num_envs, self.action_spec.mask_size), dtype=np.bool_)
            if source is not None and present.any():
                mask[present] = self._flatten(source[present], optional[present], np.flatnonzero(present))
            return mask
        return self._flatten(source, optional, np.arange(self.num_envs))

    def _flatten(self, source: Any, optional: Bools, rows: Array) -> Bools:
        try:
            mask = flatten_mask(self.action_spec, source, optional)
        except ValueError as error:
            raise self._failure(None, f"gave an action mask that cannot be used: {error}") from error
        if len(mask) != len(rows):
            raise self._failure(None, f"gave {len(mask)} action masks for {len(rows)} environments")
        return mask

    # Saying what went wrong

    def _failure(self, index: int | np.integer[Any] | None, what: str) -> EnvFailure:
        who = "environment" if index is None or self.num_envs == 1 else f"environment {index} of {self.num_envs}"
        when = f"at step {self._steps} after reset" if self._steps else "in reset"
        return EnvFailure(f"{self.name}: {who} {what} ({when}).")

    def _raised(self, call: str, error: BaseException) -> EnvFailure:
        """The failure to raise where ``call`` raised ``error``; what is the user's, Ctrl-C, is raised again."""
        if isinstance(error, KeyboardInterrupt):
            raise error
        self._failed = True  # unlike a wrong number, it may have left processes that no longer answer
        index, what = what_happened(self._venv.unwrapped, call, error, self._step_timeout)
        sync = self._venv.unwrapped
        if isinstance(sync, SyncVectorEnv) and what.startswith("returned a wrong observation"):
            # Joining the observations failed: one of them does not fit the space.
            for i, raw in enumerate(sync._env_obs):  # pyright: ignore[reportPrivateUsage]
                try:
                    check_shape(sync.single_observation_space, raw)
                    convert_obs(self.obs_spec, as_batch(raw), 1)
                except Exception as misfit:
                    index, what = i, f"returned a wrong observation: {misfit}"
                    break
        return self._failure(index, what)

    def _autoreset_mode(self) -> AutoresetMode:
        mode = self._venv.metadata.get("autoreset_mode")
        try:
            return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
        except ValueError:
            raise UsageError(
                f"{self.name} does not say how its environments restart: metadata['autoreset_mode'] is {mode!r}. "
                f"Set it to one of {', '.join(f'AutoresetMode.{m.name}' for m in AutoresetMode)} (gymnasium.vector)."
            ) from None


def check_seed(seed: int) -> int:
    """``seed`` as an int. Raises: UsageError unless it is a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"seed is {seed!r}; it must be a whole number of at least 0.")
    return int(seed)


def derive_seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for ``count`` environments.

    30 bits each: vector environments that count on from one seed, in 32 signed bits, then cannot overflow.
    """
    return [int(x) >> 2 for x in np.random.SeedSequence(seed).generate_state(count, np.uint32)]
