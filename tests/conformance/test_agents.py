"""What every algorithm has to do. A new one is held to it by being listed in ``ALGORITHMS``."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from spaces_envs import ACTIONS, OBSERVATIONS, PARTLY_SEEN, AnySpace

import steepest
from steepest import Run, UsageError
from steepest.algorithms import ALGORITHMS, find
from steepest.environments import make_env
from steepest.learner import tree_map
from steepest.rollout import Collector
from steepest.runs.run import resolve_options

VECTOR = OBSERVATIONS["vector"]
FOUR = ACTIONS["discrete"][0]

TINY = {"rollout_steps": 8, "hidden_sizes": (8,), "epochs": 2, "minibatches": 2, "sequence_length": 4}

algorithms = pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))


def tiny(algorithm: str, **options: Any) -> dict[str, Any]:
    """Options for a small and quick run, as far as the algorithm has them."""
    known = {f.name for f in dataclasses.fields(find(algorithm).Config)}
    tiny_ones = {k: v for k, v in TINY.items() if k in known}
    return {"num_envs": 2, "compile": "off", "eval_episodes": 0, "total_steps": 10_000, **tiny_ones, **options}


def make_run(
    algorithm: str,
    observation: spaces.Space[Any] = VECTOR,
    action: spaces.Space[Any] = FOUR,
    masks: str = "none",
    agent: Any = None,
    **options: Any,
) -> Run:
    return Run(algorithm, lambda: AnySpace(observation, action, masks), agent=agent, **tiny(algorithm, **options))


def train(run: Run, iterations: int = 2) -> Any:
    """The agent after some updates, which have to have changed it and kept it finite."""
    before = run.agent.state["params"].clone()
    with run:
        for _ in range(iterations):
            row = run.iterate()
    after = run.agent.state["params"]
    assert torch.isfinite(after).all()
    assert (before != after).any(dim=1).all()
    assert all(np.isfinite(v) for v in row.values())
    return run.agent


def observe(env: AnySpace, count: int, seed: int = 7) -> list[Any]:
    env.reset(seed=seed)
    return [env._look()[0] for _ in range(count)]


def stack(observations: list[Any]) -> Any:
    first = observations[0]
    if isinstance(first, dict):
        return {k: stack([o[k] for o in observations]) for k in first}
    if isinstance(first, tuple):
        return tuple(stack([o[i] for o in observations]) for i in range(len(first)))
    return np.stack([np.asarray(o) for o in observations])


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


# Acting


@algorithms
@pytest.mark.parametrize("name", ACTIONS)
def test_acts_inside_the_space(algorithm: str, name: str) -> None:
    action, options = ACTIONS[name]
    agent = train(make_run(algorithm, action=action, **options))
    # However far the policy's draws are from the bounds, what reaches the environment is inside them.
    agent.state["params"].mul_(20.0)
    observations = observe(AnySpace(VECTOR, action), 8)
    for deterministic in (False, True):
        for obs in observations:
            chosen, memory = agent.act(obs, deterministic=deterministic)
            assert memory is None
            assert action.contains(_element(action, chosen)), chosen
        batch, _ = agent.act(stack(observations), deterministic=deterministic)
        assert len(batch) == len(observations)
        assert all(action.contains(_element(action, chosen)) for chosen in batch)


def _element(space: spaces.Space[Any], action: Any) -> Any:
    """A Box without axes holds arrays, not scalars."""
    return np.asarray(action) if isinstance(space, spaces.Box) else action


@algorithms
@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("options", [{}, {"normalize_obs": True, "normalize_reward": True, "shared_torso": True}])
def test_sees_every_observation_space(algorithm: str, name: str, options: dict[str, Any]) -> None:
    space = OBSERVATIONS[name]
    agent = train(make_run(algorithm, observation=space, **options))
    observations = observe(AnySpace(space, FOUR), 3)
    single = [agent.act(obs, deterministic=True)[0] for obs in observations]
    together, _ = agent.act(stack(observations), deterministic=True)
    assert np.array_equal(single, together)
    assert all(FOUR.contains(chosen) for chosen in together)


@algorithms
@pytest.mark.parametrize("masks", ["info", "obs"])
@pytest.mark.parametrize("name", ["discrete from -2", "multi-discrete ragged", "multi-discrete of one axis more"])
def test_never_takes_a_masked_action(algorithm: str, masks: str, name: str) -> None:
    """The environment raises on an illegal action; afterwards the mask is given to ``act`` by hand."""
    action = ACTIONS[name][0]
    agent = train(make_run(algorithm, action=action, masks=masks, entropy_coef=0.1), iterations=3)
    env = AnySpace(VECTOR, action, masks)
    obs, _ = env.reset(seed=3)
    for t in range(40):
        chosen, _ = agent.act(obs, action_mask=env.mask, deterministic=t % 2 == 0)
        obs, _, terminated, truncated, _ = env.step(chosen)
        if terminated or truncated:
            obs, _ = env.reset()


@algorithms
@pytest.mark.parametrize("recurrent", ["gru", "lstm"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("masks", ["none", "info", "obs"])
def test_recurrence_composes(algorithm: str, recurrent: str, shared: bool, masks: str) -> None:
    run = make_run(
        algorithm,
        observation=PARTLY_SEEN,
        action=ACTIONS["multi-discrete ragged"][0],
        masks=masks,
        recurrent=recurrent,
        shared_torso=shared,
        recurrent_size=4,
        normalize_obs=True,
    )
    agent = train(run)
    assert agent.memory_size == 4 * (1 if recurrent == "gru" else 2) * (1 if shared else 2)
    env = AnySpace(PARTLY_SEEN, ACTIONS["multi-discrete ragged"][0], masks)
    obs, _ = env.reset(seed=3)
    memory, start, seen = None, True, []
    for _ in range(12):
        mask = None if masks == "none" else env.mask
        chosen, memory = agent.act(obs, memory=memory, episode_start=start, action_mask=mask)
        seen.append(memory)
        obs, _, terminated, truncated, _ = env.step(chosen)
        start = terminated or truncated
        if start:
            obs, _ = env.reset()
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    # A new episode forgets: the same observation gives the same memory, whatever came before.
    again = (
        [agent.act(obs, memory=m, episode_start=True)[1] for m in (None, memory)] if masks == "none" else [memory] * 2
    )
    assert torch.equal(*again)


# Determinism, saving and going on


@algorithms
@pytest.mark.parametrize("options", [{}, {"recurrent": "gru", "normalize_obs": True, "normalize_reward": True}])
def test_same_seed_same_bits(algorithm: str, options: dict[str, Any]) -> None:
    agents = [train(make_run(algorithm, seed=seed, **options), iterations=4) for seed in (5, 5, 6)]
    assert_same_tensors(agents[0].tensors(), agents[1].tensors())
    assert not torch.equal(agents[0].state["params"], agents[2].state["params"])


@algorithms
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("discrete from 3", {"recurrent": "lstm"}),
        ("box one-sided", {"normalize_obs": True, "normalize_reward": True}),
        ("box tanh", {}),
        ("multi-binary", {"shared_torso": True}),
    ],
)
def test_save_and_load_act_the_same(algorithm: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    action, more = ACTIONS[name]
    agent = train(make_run(algorithm, action=action, **options, **more))
    agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors")
    assert_same_tensors(agent.tensors(), loaded.tensors())
    assert loaded.metadata() == agent.metadata()
    memories: list[Any] = [None, None]
    for obs in observe(AnySpace(VECTOR, action), 10):
        chosen = [a.act(obs, memory=m) for a, m in zip((agent, loaded), memories, strict=True)]
        assert np.array_equal(chosen[0][0], chosen[1][0])
        memories = [m for _, m in chosen]


@algorithms
@pytest.mark.parametrize("options", [{}, {"normalize_obs": True, "normalize_reward": True, "num_envs": 4}])
def test_a_loaded_agent_trains_on(algorithm: str, options: dict[str, Any], tmp_path: Path) -> None:
    first = {k: v for k, v in options.items() if k != "num_envs"}
    agent = train(make_run(algorithm, **first))
    agent.save(tmp_path / "agent.safetensors")
    loaded = steepest.load(tmp_path / "agent.safetensors")
    run = make_run(algorithm, agent=loaded, seed=9, **options)
    for key in ("params", "adam_mean", "adam_square", "adam_count", "obs_count", "return_variance"):
        if key in agent.state:
            assert torch.equal(run.agent.state[key], agent.state[key]), key
    train(run)
    assert torch.equal(loaded.state["params"], agent.state["params"]), "the agent that was given must not change"


# Populations


@algorithms
@pytest.mark.parametrize("options", [{}, {"recurrent": "gru"}])
def test_a_population_trains_together(algorithm: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(algorithm, seeds=3, seed=4, normalize_obs=True, **options)
    agent = train(run)
    assert agent.members == 3
    assert agent.seeds == (4, 5, 6)
    vectors = agent.state["params"]
    assert all(not torch.equal(vectors[i], vectors[j]) for i, j in itertools.combinations(range(3), 2))
    with pytest.raises(UsageError, match="member"):
        agent.act(np.zeros(3, np.float32))
    observations = stack(observe(AnySpace(VECTOR, FOUR), 6))
    agent.save(tmp_path / "population.safetensors")
    loaded = steepest.load(tmp_path / "population.safetensors")
    for i in range(3):
        member = agent.member(i)
        assert member.seeds == (4 + i,)
        assert torch.equal(member.state["params"][0], vectors[i])
        assert torch.equal(member.state["obs_mean/obs"][0], agent.state["obs_mean/obs"][i])
        again = loaded.member(i)
        for deterministic in (True, False):
            one, _ = member.act(observations, deterministic=deterministic)
            other, _ = again.act(observations, deterministic=deterministic)
            assert np.array_equal(one, other)
    if not options:
        stacked = {"obs": torch.as_tensor(observations).expand(3, -1, -1)}
        with torch.no_grad():
            together, _ = agent.actor(deterministic=True)(stacked, None, None, None, None)
        apart = [agent.member(i).act(observations, deterministic=True)[0] for i in range(3)]
        assert np.array_equal(agent.to_env(together.flatten().numpy()), np.concatenate(apart))
    with pytest.raises(UsageError, match="population of 3"):
        agent.member(3)


def rollout_of_population(algorithm: str, seeds: tuple[int, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """A population before its first update, and the rollout that it learns from."""
    agent_class = find(algorithm)
    known = {f.name for f in dataclasses.fields(agent_class.Config)}
    options = {k: v for k, v in options.items() if k in known}
    _, config = resolve_options(agent_class, "AnySpace", tiny(algorithm, **options))
    env = make_env(lambda: AnySpace(VECTOR, FOUR, "info"), 2 * len(seeds))
    notes: list[str] = []
    agent = agent_class(config, env.obs_spec, env.action_spec, num_envs=2, seeds=seeds, note=notes.append)
    collector = Collector(env, agent, config.rollout_steps)
    collector.reset(0)
    rollout, _ = collector.collect()
    env.close()
    assert notes == []
    return agent, tree_map(torch.clone, rollout)


def assert_close_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        # Adam divides by the root of the second moment: a gradient of nearly 0 has no relative precision left in
        # float32, so entries are compared on the scale of the tensor.
        scale = float(value.abs().max()) if value.is_floating_point() else 0.0
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-4 * scale, msg=lambda m, k=key: f"{k}: {m}")


@algorithms
@pytest.mark.parametrize("options", [{}, {"normalize_obs": True, "normalize_reward": True}, {"recurrent": "gru"}])
def test_vmapped_members_learn_as_if_alone(algorithm: str, options: dict[str, Any]) -> None:
    population, rollout = rollout_of_population(algorithm, (0, 1, 2), options)
    members = [population.member(i) for i in range(3)]
    together = population.update(rollout, 0.25)
    for i, member in enumerate(members):
        alone = member.update(tree_map(lambda x, i=i: x[i : i + 1], rollout), 0.25)
        mine = {k: v[i : i + 1] for k, v in population.state.items()}
        assert_close_states(mine, member.state)
        for key, value in alone.items():
            np.testing.assert_allclose(together[key][i : i + 1], value, rtol=1e-3, atol=1e-5, err_msg=key)


@algorithms
@pytest.mark.compiles
def test_compiled_learns_as_eager(algorithm: str, request: pytest.FixtureRequest) -> None:
    if "jaxtyping" in sys.modules and os.environ.get("STEEPEST_TYPECHECK") != "0":
        # Functions with shape checks cannot be compiled whole, and they stay wrapped for the life of the process.
        again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        environment = {**os.environ, "STEEPEST_TYPECHECK": "0"}
        environment.pop("PYTEST_ADDOPTS", None)
        done = subprocess.run(
            again, env=environment, cwd=request.config.rootpath, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        return
    options = {"normalize_obs": True, "normalize_reward": True, "epochs": 1, "entropy_coef": 0.01}
    agent, rollout = rollout_of_population(algorithm, (0,), options)
    notes: list[str] = []
    compiled = type(agent)(
        agent.config,
        agent.obs_spec,
        agent.action_spec,
        num_envs=2,
        seeds=(0,),
        compile=True,
        note=notes.append,
    )
    compiled.load_tensors(agent.tensors())
    expected = agent.update(rollout, 0.25)
    found = compiled.update(rollout, 0.25)
    assert notes == [], "nothing may fall back"
    assert_close_states(agent.state, compiled.state)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-5, err_msg=key)


# Bad configuration

BAD = [
    ("rollout_steps", 0),
    ("rollout_steps", 2.5),
    ("rollout_steps", "many"),
    ("learning_rate", 0.0),
    ("learning_rate", -1e-3),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")),
    ("learning_rate", None),
    ("learning_rate", "fast"),
    ("gamma", 1.5),
    ("gamma", True),
    ("entropy_coef", -0.1),
    ("max_gradient_norm", 0.0),
    ("hidden_sizes", (0,)),
    ("hidden_sizes", 64),
    ("hidden_sizes", "64"),
    ("activation", "swish"),
    ("recurrent", "rnn"),
    ("recurrent_size", 0),
    ("sequence_length", 0),
    ("gaussian", "diagnal"),
    ("squash", "sigmoid"),
    ("initial_std", 0.0),
    ("min_probability", 0.5),
    ("min_std", 0.0),
    ("normalize_obs", "yes"),
    ("clip_epsilon", 0.0),
    ("gae_lambda", -0.1),
    ("epochs", 0),
    ("minibatches", 0),
    ("target_kl", 0.0),
    ("value_clip", -1.0),
    ("total_steps", 0),
    ("num_envs", 0),
    ("seeds", 0),
    ("seed", -1),
    ("eval_episodes", -1),
    ("eval_every", -5),
    ("checkpoint_every", -5),
    ("keep_checkpoints", 0),
    ("threads", 0),
    ("max_episode_steps", 0),
    ("device", "tpu"),
    ("compile", "maybe"),
    ("vectorization", "threads"),
]


@algorithms
@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_names_its_option(algorithm: str, name: str, value: Any) -> None:
    options = tiny(algorithm, **{name: value})
    with pytest.raises(UsageError, match=name):
        Run(algorithm, lambda: AnySpace(VECTOR, FOUR), **options)


@algorithms
def test_a_misspelled_option_names_the_nearest(algorithm: str) -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        make_run(algorithm, learnin_rate=0.1)


@algorithms
def test_sequences_must_divide_the_rollout(algorithm: str) -> None:
    with pytest.raises(UsageError, match="sequence_length"):
        make_run(algorithm, recurrent="gru", sequence_length=3)


@algorithms
def test_tanh_needs_finite_bounds(algorithm: str) -> None:
    with pytest.raises(UsageError, match="tanh"):
        make_run(algorithm, action=ACTIONS["box infinite"][0], squash="tanh")


@algorithms
def test_tanh_and_full_covariance_exclude_each_other(algorithm: str) -> None:
    with pytest.raises(UsageError, match="gaussian"):
        make_run(algorithm, action=ACTIONS["box"][0], squash="tanh", gaussian="full")
