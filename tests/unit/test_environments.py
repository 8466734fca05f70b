import multiprocessing
import subprocess
import sys
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import TransformReward

from helpers_envs import NUM_ACTIONS, Counting, Faulty, Forgetful
from steepest.environments import (
    AtariOptions,
    EnvBatch,
    EnvFailure,
    MissingExtra,
    UnknownEnvironment,
    UnsupportedSpaceError,
    atari,
    is_atari,
    make_env,
    to_env_action,
)
from steepest.environments.atari import LivesAsEpisodes
from steepest.environments.batch import derive_seeds
from steepest.environments.envpool import EnvPoolBatch
from steepest.environments.sync import SerialVectorEnv
from steepest.errors import RunError, UsageError

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
# Different lengths, so that environments end at different times, and also together.
LENGTHS = [(3, 1, 4), (2, 5), (1,), (7, 3)]


def counting(masks="none"):
    return [partial(Counting, index=i, lengths=lengths, masks=masks) for i, lengths in enumerate(LENGTHS)]


def batch_of(factories, mode, vector=SyncVectorEnv, **options):
    return EnvBatch(vector(factories, autoreset_mode=mode, **options), name="Counting", backend="user")


def run(batch, steps):
    batch.reset(0)
    for _ in range(steps):
        batch.step(np.ones(batch.num_envs, int))


def choose(counts):
    """An action that depends on the observation only, so that alignment cannot change it. Never the masked 0."""
    return 1 + int(counts[..., :3].sum()) % 2


def scalar_stream(factory, steps):
    """What one environment does: (obs, action, reward, next obs, terminated, truncated, next mask) per step."""
    env = factory()
    stream = []
    obs, info = env.reset(seed=0)

    def split(obs, info):
        return (obs["counts"], obs["action_mask"]) if env.masks == "obs" else (obs, info.get("action_mask"))

    while len(stream) < steps:
        counts, _ = split(obs, info)
        action = choose(counts)
        obs, reward, terminated, truncated, info = env.step(action)
        after, mask = split(obs, info)
        # Nothing is chosen after an episode's end: everything is allowed.
        mask = None if mask is None else tuple(bool(x) or terminated or truncated for x in mask)
        stream.append((tuple(counts), action, reward, tuple(after), terminated, truncated, mask))
        if terminated or truncated:
            obs, info = env.reset()
    return stream


def batch_streams(batch, rows):
    """The valid rows of every environment, and the batch's raw rows."""
    name = batch.obs_spec.fields[0].name
    obs, mask = batch.reset(0)
    streams = [[] for _ in range(batch.num_envs)]
    results = []
    for _ in range(rows):
        counts = obs[name].copy()
        action = np.array([choose(row) for row in counts])
        result = batch.step(action)
        results.append((counts, mask, result))
        for i in np.flatnonzero(result.valid):
            legal = None if result.action_mask is None else tuple(bool(x) for x in result.action_mask[i])
            streams[i].append(
                (
                    tuple(counts[i]),
                    action[i],
                    result.reward[i],
                    tuple(result.obs[name][i]),
                    result.terminated[i],
                    result.truncated[i],
                    legal,
                )
            )
        obs, mask = result.obs, result.action_mask
    return streams, results


@pytest.mark.parametrize("masks", ["none", "info", "obs"])
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_valid_rows_are_the_scalar_environment(mode, masks):
    batch = batch_of(counting(masks), mode)
    streams, results = batch_streams(batch, 60)
    for stream, factory in zip(streams, counting(masks), strict=True):
        assert len(stream) >= 20
        assert stream == scalar_stream(factory, len(stream))
    for _, _, result in results:
        assert not result.reward[~result.valid].any()
        assert not (result.terminated | result.truncated)[~result.valid].any()
    batch.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_async_gives_the_same_rows(mode):
    factories = counting("info")[:2]
    batch = batch_of(factories, mode, AsyncVectorEnv)
    streams, _ = batch_streams(batch, 15)
    batch.close()
    for stream, factory in zip(streams, factories, strict=True):
        assert len(stream) > 5
        assert stream == scalar_stream(factory, len(stream))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/MsPacman-v5"])
def test_workers_are_sent_nothing_of_who_listens(env_id, tmp_path, request):
    """``on_game`` is usually a method of a training, with its agent and the terminal that it writes to. Where processes
    are not forked, as on macOS, all that a worker's function names is sent to it."""
    request.addfinalizer(partial(multiprocessing.set_start_method, multiprocessing.get_start_method(), force=True))
    multiprocessing.set_start_method("spawn", force=True)
    with (tmp_path / "terminal").open("w") as terminal:  # what cannot be sent

        def on_game(*game):
            terminal.write(repr(game))

        batch = make_env(env_id, 1, vectorization="async", on_game=on_game)
        batch.reset(0)
        batch.close()


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_a_step_in_two_halves_is_the_step(mode, vector):
    whole, halves = (batch_of(counting("info")[:2], mode, vector) for _ in range(2))
    whole.reset(0)
    halves.reset(0)
    for _ in range(12):
        action = np.ones(2, int)
        result = whole.step(action)
        halves.step_async(action)
        other = halves.step_wait()
        np.testing.assert_array_equal(result.obs["obs"], other.obs["obs"])
        for one, two in zip(result[1:], other[1:], strict=True):
            np.testing.assert_array_equal(one, two)
    whole.close()
    halves.close()


class Doubled(AsyncVectorEnv):
    """Pays twice. Its halves are AsyncVectorEnv's, which would not."""

    def step(self, actions):
        obs, reward, *rest = super().step(actions)
        return obs, 2.0 * reward, *rest


def doubled_outside(factories, **options):
    return TransformReward(AsyncVectorEnv(factories, **options), lambda reward: 2.0 * reward)


@pytest.mark.parametrize("doubled", [Doubled, doubled_outside])
def test_halves_are_only_taken_where_they_are_the_whole(doubled):
    """What a subclass or a wrapper makes of a step counts, also where the step is asked for in halves."""
    plain, batch = (batch_of(counting()[:2], AutoresetMode.NEXT_STEP, vector) for vector in (AsyncVectorEnv, doubled))
    assert plain.asynchronous
    assert not batch.asynchronous
    rewards = []
    for one in (plain, batch):
        one.reset(0)
        one.step_async(np.ones(2, int))
        rewards.append(one.step_wait().reward)
        one.close()
    np.testing.assert_array_equal(rewards[1], 2.0 * rewards[0])
    assert rewards[0].all()


class Footprint(Counting):
    """Leaves a file at every step."""

    def __init__(self, path):
        super().__init__(index=0, lengths=(5,))
        self.path = path

    def step(self, action):
        self.path.touch()
        return super().step(action)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_only_processes_step_between_the_halves(vectorization, tmp_path):
    batch = make_env(partial(Footprint, tmp_path / "here"), 1, vectorization=vectorization)
    batch.reset(0)
    batch.step_async(np.ones(1, int))
    patience = time.monotonic() + (60 if vectorization == "async" else 0.1)
    while not (tmp_path / "here").exists() and time.monotonic() < patience:
        time.sleep(0.01)
    assert (tmp_path / "here").exists() == (vectorization == "async")
    batch.step_wait()
    assert (tmp_path / "here").exists()
    batch.close()


def test_next_step_rows_restart_only_their_own_environment():
    batch = batch_of(counting(), AutoresetMode.NEXT_STEP)
    _, results = batch_streams(batch, 30)
    done = np.zeros(4, bool)
    for _, _, result in results:
        np.testing.assert_array_equal(result.valid, ~done)
        assert (result.obs["obs"][done, 2] == 0).all()
        assert (result.obs["obs"][done, 3] == -1).all()
        done = result.terminated | result.truncated


@pytest.mark.parametrize("masks", ["none", "info", "obs"])
@pytest.mark.parametrize("mode", MODES[1:], ids=lambda m: m.name)
def test_pause_rows_are_exact(mode, masks):
    batch = batch_of(counting(masks), mode)
    _, results = batch_streams(batch, 30)
    name = batch.obs_spec.fields[0].name
    done = np.zeros(4, bool)
    pauses = 0
    for before, mask_before, result in results:
        paused = bool(done.any())
        np.testing.assert_array_equal(result.valid, np.full(4, not paused))
        if paused:
            pauses += 1
            after = result.obs[name]
            np.testing.assert_array_equal(after[~done], before[~done])
            assert (after[done, 2] == 0).all()
            np.testing.assert_array_equal(after[done, 1], before[done, 1] + 1)
            if masks != "none":
                np.testing.assert_array_equal(result.action_mask[~done], mask_before[~done])
                assert result.action_mask[done].all()
        done = result.terminated | result.truncated
    assert pauses > 5


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_returned_arrays_are_never_written_again(mode):
    batch = batch_of(counting("info"), mode, copy=False)
    obs, mask = batch.reset(0)
    kept = [obs["obs"], mask]
    copies = [x.copy() for x in kept]
    for _ in range(20):
        result = batch.step(np.ones(4, int))
        arrays = [result.obs["obs"], *result[1:]]
        kept += arrays
        copies += [x.copy() for x in arrays]
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_masks():
    batch = batch_of(counting("obs"), AutoresetMode.NEXT_STEP)
    assert [f.name for f in batch.obs_spec.fields] == ["counts"]
    obs, mask = batch.reset(0)
    assert set(obs) == {"counts"}
    np.testing.assert_array_equal(mask, np.ones((4, NUM_ACTIONS), bool))
    result = batch.step(np.ones(4, int))
    np.testing.assert_array_equal(result.action_mask[0], [False, True, True])


class Masked(Counting):
    """Gives the masks it is told to, one per observation; None for none."""

    def __init__(self, given):
        super().__init__(lengths=(100,))
        self.given = iter(given)

    def _observe(self, action):
        mask = next(self.given)
        return super()._observe(action)[0], {} if mask is None else {"action_mask": np.array(mask, np.int8)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(1, 1, 1), (0, 0, 0)], r"allows no action .*\(at step 1 after reset\)"),
        ([(1, 1, 1), None], r"gave no info\['action_mask'\], though"),
        ([None, (1, 1, 1)], r"gave none in reset\(\)"),
        ([(1, 1)], r"shape \(1, 2\), not \(N, 3\).*\(in reset\)"),
    ],
)
def test_bad_masks(given, message):
    batch = make_env(lambda: Masked(given), 1)
    with pytest.raises(EnvFailure, match=message):
        run(batch, 1)


class Scripted(VectorEnv):
    """A vector environment that returns exactly what a test tells it to."""

    def __init__(self, steps=(), autoreset_mode=AutoresetMode.NEXT_STEP):
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.steps = iter(steps)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions):
        obs, reward, terminated, truncated = next(self.steps)
        return np.array(obs, np.float32)[:, None], reward, np.array(terminated), np.array(truncated), {}


def scripted(*steps, **options):
    batch = EnvBatch(Scripted(steps, **options), name="Scripted", backend="user")
    batch.reset(0)
    return batch


def test_an_episode_that_ends_in_its_own_first_row_is_started_again():
    batch = scripted(
        ([1, 1], [1, 1], [True, False], [False, False]),
        ([2, 2], [5, 5], [True, False], [False, False]),
        ([3, 3], [7, 7], [False, False], [False, False]),
        ([4, 4], [9, 9], [False, False], [False, False]),
    )
    results = [batch.step(np.zeros(2, int)) for _ in range(4)]
    np.testing.assert_array_equal([r.valid for r in results], [[1, 1], [0, 1], [0, 1], [1, 1]])
    np.testing.assert_array_equal([r.reward for r in results], [[1, 1], [0, 5], [0, 7], [9, 9]])
    np.testing.assert_array_equal([r.terminated for r in results], [[1, 0], [0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (([1, 1], [1, np.nan], [False] * 2, [False] * 2), "environment 1 of 2 returned the reward nan"),
        (([1, 1], [1, 1, 1], [False] * 2, [False] * 2), r"rewards of shape \(3,\), not \(2,\)"),
        (([1, 1], [1, "much"], [False] * 2, [False] * 2), "reward that is not a number"),
        (([1, 1], [1, 1], [False] * 3, [False] * 2), r"terminated of shape \(3,\)"),
        (
            ([np.inf, 1], [1, 1], [False] * 2, [False] * 2),
            r"environment 0 of 2 returned a observation|not finite: \[inf\]",
        ),
        (([1, 1, 1], [1, 1], [False] * 2, [False] * 2), r"shape \(3, 1\), not \(2, 1\)"),
    ],
)
def test_bad_returns_of_vector_environments(step, message):
    with pytest.raises(EnvFailure, match=message):
        scripted(step).step(np.zeros(2, int))


def test_same_step_without_final_observations_is_refused():
    batch = scripted(([1, 1], [1, 1], [False, True], [False] * 2), autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvFailure, match=r"environment 1 of 2 .* no info\['final_obs'\]"):
        batch.step(np.zeros(2, int))


def test_autoreset_mode_must_be_known():
    with pytest.raises(UsageError, match=r"metadata\['autoreset_mode'\] is None.*AutoresetMode.NEXT_STEP"):
        make_env(Scripted(autoreset_mode=None), 2)


def test_large_finite_values_pass():
    batch = scripted(([3e38, -3e38], [3e38, -3e38], [False] * 2, [False] * 2))
    assert batch.step(np.zeros(2, int)).reward.tolist() == [3e38, -3e38]


@pytest.mark.parametrize(
    ("fault", "at", "message"),
    [
        (
            "raise",
            3,
            r"Faulty.*environment 1 of 3 raised ZeroDivisionError in step\(\): the wheel came off \(at step 3",
        ),
        ("raise", 0, r"environment 1 of 3 raised ZeroDivisionError in reset\(\).*\(in reset\)"),
        ("nan", 3, r"environment 1 of 3 returned .* not finite: \[0\.5 nan\] \(at step 3"),
        ("nan", 0, r"environment 1 of 3 .*\(in reset\)"),
        ("shape", 3, r"environment 1 of 3 returned a wrong observation: it has the shape \(3,\), its space \(2,\)"),
        ("shape", 0, r"environment 1 of 3 returned a wrong observation.*\(in reset\)"),
        ("reward", 3, r"environment 1 of 3 returned the reward inf \(at step 3"),
        ("no reward", 3, r"environment 1 of 3 returned the reward None; expected one number"),
    ],
)
def test_faults_name_the_environment_and_the_step(fault, at, message):
    made = iter([Faulty(), Faulty(fault, at), Faulty()])

    def Faulty_():
        return next(made)

    batch = make_env(Faulty_, 3)
    with pytest.raises(EnvFailure, match=message) as error:
        run(batch, 5)
    assert isinstance(error.value, RunError)
    if fault == "raise":
        assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.filterwarnings("ignore:.*(Worker-1|Traceback|Raising the last)[\\s\\S]*:UserWarning")
def test_faults_in_workers():
    venv = AsyncVectorEnv([Faulty, partial(Faulty, "raise")])
    batch = make_env(venv, 2)
    with pytest.raises(EnvFailure, match="environment 1 of 2 raised ZeroDivisionError"):
        run(batch, 3)
    batch.close()


def test_step_needs_a_reset_and_render_a_mode():
    batch = make_env("CartPole-v1", 1)
    with pytest.raises(UsageError, match="reset"):
        batch.step(np.zeros(1, int))
    batch.reset(0)
    with pytest.raises(UsageError, match='render_mode="rgb_array"'):
        batch.render()


# Seeds


def play(batch, seed, steps, stream):
    """Everything that a batch returns, under actions drawn from ``stream``."""
    rng = np.random.default_rng(stream)
    spec = batch.action_spec
    obs, _ = batch.reset(seed)
    out = [np.copy(x) for x in obs.values()]
    for _ in range(steps):
        if spec.kind == "box":
            raw = rng.uniform(-1, 1, (batch.num_envs, spec.dimension))
        else:
            raw = rng.integers(0, spec.sizes[0], batch.num_envs)
        result = batch.step(to_env_action(spec, raw, "clip"))
        out += [*result.obs.values(), result.reward, result.terminated, result.truncated, result.valid]
    return out


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("env", "num_envs", "vectorization", "limit"),
    [
        ("CartPole-v1", 4, "native", None),
        ("CartPole-v1", 2, "sync", None),
        ("CartPole-v1", 2, "async", None),
        ("CartPole-v1", 3, "envpool", None),
        ("Pendulum-v1", 2, "auto", 30),
        ("LunarLander-v3", 2, "auto", None),
        # Keeps something of earlier episodes through reset(seed): only making it anew gives the same bits.
        ("BipedalWalker-v3", 2, "auto", None),
        ("HalfCheetah-v5", 2, "sync", 40),
        ("HalfCheetah-v5", 2, "envpool", 40),
        ("ALE/Pong-v5", 2, "auto", 30),
        (Forgetful, 2, "sync", None),
    ],
)
def test_reset_with_a_seed_determines_everything(env, num_envs, vectorization, limit):
    options = {"vectorization": vectorization, "max_episode_steps": limit}
    batch = make_env(env, num_envs, **options)
    first = play(batch, 5, 100, stream=1)
    other = play(batch, 6, 70, stream=2)
    assert equal(play(batch, 5, 100, stream=1), first)
    batch.close()
    fresh = make_env(env, num_envs, seed=5, **options)
    assert equal(play(fresh, None, 100, stream=1), first)
    fresh.close()
    if env is not Forgetful:
        assert not equal(other[: len(first)], first[: len(other)])
        # Sub-environments differ too. (A Pong game begins like any other, until an action sticks.)
        assert any(not np.array_equal(x[0], x[1]) for x in first)


def test_reset_without_a_seed_goes_on():
    batch = make_env("CartPole-v1", 2, seed=3)
    first, second = batch.reset(None)[0]["obs"], batch.reset(None)[0]["obs"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(batch.reset(3)[0]["obs"], first)


def test_seeds_are_disjoint_and_fit_31_bits():
    seeds = [s for member in range(50) for s in derive_seeds(member, 64)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) + 1000 < 2**31


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_bad_seeds(seed):
    with pytest.raises(UsageError, match="seed is"):
        make_env("CartPole-v1", 1, seed=seed)
    with pytest.raises(UsageError, match="seed is"):
        make_env("CartPole-v1", 1).reset(seed)


# Backends


def test_auto_takes_the_faster_backend():
    assert make_env("CartPole-v1", 1).backend == "sync"
    assert make_env("CartPole-v1", 8).backend == "native"
    assert make_env("Pendulum-v1", 8).backend == "sync"
    assert make_env("CartPole-v1", 8, vectorization="envpool").backend == "envpool"


@pytest.mark.parametrize("limit", [None, 40])
def test_native_cartpole_is_the_scalar_one(limit):
    batch = make_env("CartPole-v1", 16, vectorization="native", max_episode_steps=limit)
    assert batch._venv.max_episode_steps == (limit or gym.spec("CartPole-v1").max_episode_steps)
    scalar = gym.make("CartPole-v1").unwrapped
    scalar.reset(seed=0)
    batch.reset(0)
    ends = np.zeros(2, int)
    elapsed = np.zeros(16, int)
    for t in range(200):
        before = batch._venv.state.T.copy()
        # Half of the environments balance, so that some reach the limit.
        action = (before[:, 2] + before[:, 3] + 0.5 * before[:, 1] > 0).astype(int)
        action[::2] = t % 3 == 0
        result = batch.step(action)
        for i in np.flatnonzero(result.valid):
            scalar.state, scalar.steps_beyond_terminated = tuple(before[i]), None
            after, reward, terminated, _, _ = scalar.step(int(action[i]))
            np.testing.assert_allclose(result.obs["obs"][i], after, rtol=1e-6, atol=1e-7)
            assert result.reward[i] == reward
            assert result.terminated[i] == terminated
        elapsed = np.where(result.valid, elapsed + 1, 0)
        np.testing.assert_array_equal(result.truncated, elapsed == (limit or 500))
        assert (np.abs(result.obs["obs"][~result.valid]) <= 0.05).all()
        ends += [result.terminated.sum(), result.truncated.sum()]
    assert ends[0] > 10
    assert (ends[1] > 10) == (limit is not None)


def test_envpool_rows():
    """Every valid row is a step of the dynamics, every other one a start, and a limit is truncated only."""
    limit = 12
    batch = make_env("CartPole-v1", 16, vectorization="envpool", max_episode_steps=limit)
    scalar = gym.make("CartPole-v1").unwrapped
    scalar.reset(seed=0)
    obs, _ = batch.reset(0)
    done, elapsed, ends = np.zeros(16, bool), np.zeros(16, int), np.zeros(2, int)
    for _ in range(80):
        before = obs["obs"].astype(np.float64)
        action = np.arange(16) % 2
        action[::2] = before[::2, 2] + before[::2, 3] > 0
        result = batch.step(action)
        obs = result.obs
        np.testing.assert_array_equal(result.valid, ~done)
        assert not result.reward[done].any()
        assert (np.abs(obs["obs"][done]) <= 0.05).all()
        for i in np.flatnonzero(result.valid):
            scalar.state, scalar.steps_beyond_terminated = tuple(before[i]), None
            after, reward, terminated, _, _ = scalar.step(int(action[i]))
            # EnvPool carries the state in float64, the observation only float32.
            np.testing.assert_allclose(obs["obs"][i], after, atol=1e-5)
            assert result.reward[i] == reward
            at_limit = elapsed[i] + 1 == limit
            assert result.truncated[i] == at_limit
            assert result.terminated[i] == (terminated and not at_limit)
        elapsed = np.where(result.valid, elapsed + 1, 0)
        done = result.terminated | result.truncated
        ends += [result.terminated.sum(), result.truncated.sum()]
    assert (ends > 10).all()


def test_envpool_spaces():
    batch = make_env("HalfCheetah-v5", 2, vectorization="envpool", env_kwargs={"num_threads": 1})
    assert isinstance(batch, EnvPoolBatch)
    obs, _ = batch.reset(0)
    assert obs["obs"].dtype == np.float32
    assert batch.step(to_env_action(batch.action_spec, np.zeros((2, 6)), "clip")).obs["obs"].shape == (2, 17)


@pytest.mark.parametrize("vectorization", ["sync", "native", "envpool"])
def test_render(vectorization):
    if vectorization == "envpool":
        pytest.importorskip("envpool")
    batch = make_env("CartPole-v1", 2, vectorization=vectorization, render_mode="rgb_array")
    batch.reset(0)
    frame = batch.render()
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    assert frame.dtype == np.uint8
    batch.close()
    batch.close()


def test_limits_of_factories():
    batch = make_env(partial(Counting, lengths=(50,)), 2, max_episode_steps=3)
    batch.reset(0)
    truncated = [batch.step(np.ones(2, int)).truncated[0] for _ in range(8)]
    assert truncated == [False, False, True, False, False, False, True, False]


# Atari


def atari_pair(options, num_envs=2):
    """The same games through ale_py's vector environment and through Gymnasium's wrappers."""
    return [make_env("ALE/Breakout-v5", num_envs, atari=options, vectorization=v) for v in ("native", "sync")]


@pytest.mark.parametrize(
    "options",
    [
        AtariOptions(sticky=0.0),
        AtariOptions(sticky=0.0, life_loss_terminates=True, clip_reward=True),
        AtariOptions(sticky=0.0, life_loss_terminates=True, fire_reset=True, size=42, frame_stack=2, frame_skip=3),
    ],
    ids=["plain", "lives", "lives and fire"],
)
def test_native_atari_is_the_wrapped_one(options):
    native, wrapped = atari_pair(options)
    assert native.obs_spec == wrapped.obs_spec
    assert native.obs_spec.fields[0].shape == (options.frame_stack, options.size, options.size)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(native.reset(0)[0]["obs"], wrapped.reset(0)[0]["obs"])
    ends, rewards = 0, 0
    for t in range(260):
        action = np.array([1, 1]) if t % 20 == 0 else rng.integers(0, 4, 2)
        a, b = native.step(action), wrapped.step(action)
        ended = a.terminated | a.truncated
        for x, y in zip(a[1:5], b[1:5], strict=True):
            np.testing.assert_array_equal(x, y)
        # Gymnasium's wrapper leaves the frame of an episode that ends amid skipped frames unfinished.
        if not (ended.any() or not a.valid.all()):
            np.testing.assert_array_equal(a.obs["obs"], b.obs["obs"])
        ends += int(a.terminated.sum())
        rewards += int((a.reward != 0).sum())
    assert ends >= (6 if options.life_loss_terminates else 1)
    assert rewards > 0


def test_a_lost_life_ends_the_episode_but_not_the_game():
    spec = gym.spec("ALE/Breakout-v5")
    venv = atari.vector_env(spec, 1, AtariOptions(life_loss_terminates=True), 1, None)
    assert isinstance(venv, LivesAsEpisodes)
    venv.reset(seed=0)
    rng = np.random.default_rng(0)
    lives = []
    for _ in range(600):
        _, _, terminated, _, info = venv.step(rng.integers(0, 4, 1))
        if terminated[0]:
            lives.append(int(info["lives"][0]))
    assert lives[:7] == [4, 3, 2, 1, 0, 4, 3]


@pytest.mark.parametrize(
    ("env_id", "vectorization"),
    [
        ("ALE/MsPacman-v5", "native"),
        ("ALE/MsPacman-v5", "sync"),
        ("ALE/MsPacman-v5", "async"),
        ("MsPacman-v5", "envpool"),
    ],
)
def test_games_report_their_own_score(env_id, vectorization):
    """Clipped rewards and single lives are for the agent; the score is the sum of what the game gave."""
    if vectorization == "envpool":
        pytest.importorskip("envpool")

    def play(steps, **options):
        games = []
        batch = make_env(
            env_id,
            2,
            vectorization=vectorization,
            atari=AtariOptions(sticky=0.0, frame_skip=8, **options),
            on_game=lambda *game: games.append(game),
        )
        batch.reset(0)
        rng = np.random.default_rng(0)
        results = [batch.step(rng.integers(0, 9, 2)) for _ in range(steps)]
        batch.close()
        return games, results

    steps = 500
    games, plain = play(steps)
    assert games == []  # episodes are games and rewards the score: nothing to add
    games, clipped = play(steps, clip_reward=True)
    assert {r for result in clipped for r in result.reward} <= {-1.0, 0.0, 1.0}
    expected, score, length = [], np.zeros(2), np.zeros(2, int)
    for result in plain:
        score += result.reward
        length += result.valid
        for i in np.flatnonzero(~result.valid):
            expected.append((i, score[i], length[i]))
            score[i], length[i] = 0.0, 0
    assert games == expected
    assert len(games) >= 2
    assert min(s for _, s, _ in games) > 100
    games, lives = play(2 * steps, life_loss_terminates=True)
    lost = sum(int(r.terminated.sum()) for r in lives)
    assert len(games) >= 2
    assert lost >= 3 * len(games)  # three lives a game
    assert min(s for _, s, _ in games) > 100


def test_which_ids_are_atari_games():
    for env_id in ("ALE/Pong-v5", "PongNoFrameskip-v4"):
        assert is_atari(env_id)
    for env in ("CartPole-v1", "NoSuchThing-v0", Counting, None):
        assert not is_atari(env)
    pytest.importorskip("envpool")
    assert is_atari("Pong-v5")


def test_sticky_actions_are_on_as_registered():
    def distinct(env_id, options=None):
        batch = make_env(env_id, 8, atari=options)
        batch.reset(0)
        for t in range(12):
            result = batch.step(np.full(8, 2 + t % 2))
        return len({x.tobytes() for x in result.obs["obs"]})

    assert distinct("ALE/Pong-v5") > 1
    assert distinct("PongNoFrameskip-v4") == 1
    assert distinct("ALE/Pong-v5", AtariOptions(sticky=0.0)) == 1


def test_atari_limit_is_in_agent_steps():
    batch = make_env("ALE/Pong-v5", 1, max_episode_steps=5)
    batch.reset(0)
    results = [batch.step(np.zeros(1, int)) for _ in range(6)]
    assert [bool(r.truncated[0]) for r in results] == [False] * 4 + [True, False]
    assert not any(r.terminated[0] for r in results)


def test_atari_can_be_rendered():
    batch = make_env("ALE/Pong-v5", 1, render_mode="rgb_array")
    assert batch.backend == "sync"
    batch.reset(0)
    assert batch.render().shape == (210, 160, 3)


def test_envpool_atari():
    batch = make_env("Pong-v5", 2, vectorization="envpool", atari=AtariOptions(frame_stack=2, num_threads=1))
    obs, _ = batch.reset(0)
    assert obs["obs"].shape == (2, 2, 84, 84)
    assert obs["obs"].dtype == np.uint8
    assert batch.step(np.zeros(2, int)).valid.all()


@pytest.mark.parametrize(
    ("field", "value"), [("frame_skip", 0), ("sticky", 1.5), ("noop_max", -1), ("frame_stack", 0), ("size", 0)]
)
def test_bad_atari_options(field, value):
    with pytest.raises(UsageError, match=f"AtariOptions.{field}"):
        AtariOptions(**{field: value})


# What users pass


def test_what_may_be_passed():
    assert make_env(lambda: gym.make("CartPole-v1"), 2).num_envs == 2
    assert make_env(gym.make("CartPole-v1"), 1).name == "CartPole-v1"
    again = make_env(gym.make("Pendulum-v1", g=1.0), 3)
    assert [e.unwrapped.g for e in again._venv.envs] == [1.0] * 3
    assert make_env(gym.make_vec("CartPole-v1", 3), 3).backend == "user"
    batch = make_env(Counting, 2, env_kwargs={"lengths": (2,)})
    assert batch.name == "Counting"
    assert make_env("gymnasium.envs.classic_control:CartPole-v1", 1).name == "CartPole-v1"
    assert make_env("Pendulum-v1", 1, env_kwargs={"g": 2.0})._venv.envs[0].unwrapped.g == 2.0


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("CartPole-v1", 0), {}, "num_envs is 0"),
        (("CartPole-v1", 1), {"vectorization": "magic"}, "auto, native, sync, async, envpool"),
        (("CartPole-v1", 1), {"max_episode_steps": 0}, "max_episode_steps is 0"),
        (("CartPole-v1", 1), {"atari": AtariOptions()}, "not an Atari game"),
        (("CartPole-v1", 1), {"env_kwargs": {"colour": 1}}, "does not take these arguments.*colour"),
        (("CartPole-v1", 8), {"env_kwargs": {"colour": 1}}, "does not take these arguments.*colour"),
        (("CartPole-v1", 1), {"env_kwargs": {"colour": 1}, "vectorization": "envpool"}, "arguments.*colour"),
        (("Pendulum-v1", 1), {"vectorization": "native"}, 'no native .*vectorization="sync"'),
        ((Counting, 1), {"vectorization": "envpool"}, "needs an id"),
        ((Counting(), 2), {}, "Pass a factory instead"),
        ((gym.make("CartPole-v1"), 1), {"env_kwargs": {"g": 1}}, "already made"),
        ((gym.make_vec("CartPole-v1", 3), 2), {}, "num_envs is 2, but the vector environment has 3"),
        ((gym.make_vec("CartPole-v1", 3), 3), {"max_episode_steps": 3}, "already made"),
        ((lambda: 3, 1), {}, "returned an object of type builtins.int"),
        ((3, 1), {}, "the id of an environment, a factory"),
        (("ALE/Pong-v5", 1), {"env_kwargs": {"obs_type": "ram"}}, "set AtariOptions"),
        (("ALE/Pong-v5", 1), {"vectorization": "native", "render_mode": "rgb_array"}, 'vectorization="sync"'),
    ],
)
def test_misuse(args, options, message):
    with pytest.raises(UsageError, match=message):
        make_env(*args, **options)


def test_wrapped_environments_that_cannot_be_made_again():
    class Plain(gym.Wrapper):
        pass

    with pytest.raises(UsageError, match="Pass a factory instead"):
        make_env(Plain(gym.make("CartPole-v1")), 2).reset(0)


@pytest.mark.parametrize(
    ("env_id", "near"),
    [("CartPole", "CartPole-v1"), ("cartpole-v1", "CartPole-v1"), ("HalfCheeta-v5", "HalfCheetah-v5")],
)
def test_unknown_names_come_with_the_nearest(env_id, near):
    with pytest.raises(UnknownEnvironment, match=rf"no environment '{env_id}'.*{near}") as error:
        make_env(env_id, 1)
    assert isinstance(error.value, UsageError)


def test_other_unknown_names():
    with pytest.raises(UnknownEnvironment, match=r"ALE/Pong-v5"):
        make_env("ALE/Pongg-v5", 1)
    with pytest.raises(UnknownEnvironment, match="No name comes near"):
        make_env("zzzzzzzzzzzz", 1)
    with pytest.raises(UnknownEnvironment, match=r"EnvPool.*HalfCheetah-v5"):
        make_env("HalfCheetah-v55", 1, vectorization="envpool")
    with pytest.raises(UnknownEnvironment, match="module of 'no_such_module:X-v0' cannot be imported"):
        make_env("no_such_module:X-v0", 1)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mujoco", r"steepest\[mujoco\]"),
        ("Box2D", r"steepest\[box2d\]"),
        ("pygame", r"steepest\[video\]"),
        ("jax", r"gymnasium\[jax\]"),
        ("elsewhere", "pip install elsewhere"),
    ],
)
def test_missing_packages_come_with_the_line_that_installs_them(module, line):
    def factory():
        try:
            raise ModuleNotFoundError(f"No module named '{module}.core'", name=f"{module}.core")
        except ModuleNotFoundError as error:
            raise gym.error.DependencyNotInstalled("not there") from error

    with pytest.raises(MissingExtra, match=f"needs {module}, which is not installed. Run: .*{line}") as error:
        make_env(factory, 1)
    assert isinstance(error.value, UsageError)
    assert isinstance(error.value, ImportError)


def test_missing_backends(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(MissingExtra, match=r"phys2d/CartPole-v1 needs jax.*gymnasium\[jax\]"):
        make_env("phys2d/CartPole-v1", 8)
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(MissingExtra, match=r"steepest\[envpool\]"):
        make_env("CartPole-v1", 1, vectorization="envpool")
    monkeypatch.setattr(atari, "register", lambda: False)
    with pytest.raises(MissingExtra, match=r"steepest\[atari\]"):
        make_env("ALE/NoSuchGame-v5", 1)


def test_pictures_that_need_a_missing_package(monkeypatch):
    batch = make_env("CartPole-v1", 1, render_mode="rgb_array")
    batch.reset(0)
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingExtra, match=r"CartPole-v1's picture needs pygame.*steepest\[video\]"):
        batch.render()


def test_constructors_that_raise():
    def Broken():
        raise ValueError("no such map")

    with pytest.raises(EnvFailure, match="Broken cannot be made: ValueError: no such map"):
        make_env(Broken, 1)


def test_unsupported_spaces_are_refused_at_once():
    class Talking(Faulty):
        observation_space = spaces.Text(5)

    with pytest.raises(UnsupportedSpaceError, match="Text"):
        make_env(Talking, 1)


def test_importing_leaves_heavy_packages_alone():
    code = (
        "import sys, steepest.environments;"
        "print([m for m in ('envpool', 'ale_py', 'mujoco', 'Box2D', 'cv2', 'pygame') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mujoco_says_nothing_of_a_model_that_is_not_the_users(tmp_path):
    """In a process of its own, since C writes past Python's streams; what it says of anything else is still said."""
    pytest.importorskip("mujoco")
    code = """
import gymnasium as gym, mujoco
from steepest.environments import make_env
make_env("HalfCheetah-v5", 2).reset(0)
class Talking(gym.envs.mujoco.half_cheetah_v5.HalfCheetahEnv):
    def __init__(self, **kwargs):
        mujoco.MjModel.from_xml_string('<mujoco><statistic meaninertia="1"/><worldbody/></mujoco>')
        super().__init__(**kwargs)
gym.envs.mujoco.half_cheetah_v5.HalfCheetahEnv = Talking
make_env("HalfCheetah-v5", 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "settotalmass" not in said
    assert said.count("'meaninertia' is deprecated") == 1


@pytest.mark.parametrize("num_envs", [1, 3])
def test_serial_stepping_is_gymnasiums_own(num_envs: int) -> None:
    factories = [lambda: gym.make("CartPole-v1", max_episode_steps=7)] * num_envs
    serial, sync = SerialVectorEnv(factories), SyncVectorEnv(factories)
    seeds = list(range(num_envs))
    np.testing.assert_array_equal(serial.reset(seed=seeds)[0], sync.reset(seed=seeds)[0])
    actions = np.random.default_rng(0).integers(0, 2, (60, num_envs))
    for action in actions:
        for ours, theirs in zip(serial.step(action)[:4], sync.step(action)[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
