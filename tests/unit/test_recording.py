"""Recording: what policies played, cut into episodes, with the log-probability of every action."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from helpers import CountingEnvironments, box, discrete
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.sac import SAC, SACConfig
from steepest.distributions import action_noise
from steepest.environments.spaces import action_spec
from steepest.errors import UsageError
from steepest.experience.datasets.dataset import from_episodes
from steepest.experience.datasets.recording import AgentPolicy, UniformPolicy, record, steps_of

OBSERVED = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def flags(rows: int, *at: int) -> Any:
    return np.isin(np.arange(rows), at)


def test_steps_end_where_environments_were_restarted() -> None:
    # Row 2 terminates, 3 restarts; 4 and 5 play, 6 stands still for all and is where all were restarted; 8 stops.
    steps = steps_of(flags(9, 2), flags(9, 6), ~flags(9, 3, 6))
    assert steps.taken.tolist() == [0, 1, 2, 4, 5, 7, 8]
    assert steps.terminated.nonzero()[0].tolist() == [2]
    assert steps.truncated.nonzero()[0].tolist() == [4, 6]
    assert steps.ends.tolist() == [2, 4, 6]
    # A restart right after an end, or before anything was decided, ends nothing.
    again = steps_of(flags(5, 2), flags(5, 0, 3), ~flags(5, 0, 3))
    assert again.truncated.nonzero()[0].tolist() == [2]
    assert again.taken[again.ends].tolist() == [2, 4]
    short = steps_of(flags(9, 2), flags(9, 6), ~flags(9, 3, 6), limit=4)
    assert short.taken.tolist() == [0, 1, 2, 4]
    assert short.truncated.nonzero()[0].tolist() == [3]
    assert steps_of(flags(4, 3), flags(4), ~flags(4)).truncated.tolist() == [False] * 4


@pytest.mark.parametrize("pause", [False, True])
def test_what_is_recorded_is_what_was_played(pause: bool) -> None:
    """Environment i repeats episodes of L_i steps; (environment, episode, step) is what it shows."""
    lengths = (3, 1, 5)
    env = CountingEnvironments(lengths, pause=pause)
    player = UniformPolicy(env.obs_spec, env.action_spec, 3)
    progress: list[int] = []
    episodes = record(env, OBSERVED, player, 401, seed=1, on_rows=lambda n, _: progress.append(n))
    assert progress == sorted(progress)
    assert progress[-1] == 401
    assert sum(len(e.reward) for e in episodes) == 401
    for i, length in enumerate(lengths):
        mine = [e for e in episodes if e.obs[0, 0] == i]
        quota = 133 if i == 2 else 134
        assert sum(len(e.reward) for e in mine) == quota
        for number, e in enumerate(mine):
            steps = min(length, quota - number * length)
            assert e.obs.tolist() == [[i, number, k] for k in range(steps + 1)]
            assert e.reward.tolist() == [100 * i + 10 * number + k + 1 for k in range(steps)]
            whole = steps == length
            assert (e.terminated, e.truncated) == (whole and number % 2 == 0, not whole or number % 2 == 1)
    received = {tuple(a) for a in np.stack(env.received)[:1]}
    assert {tuple(int(e.action[0]) for e in episodes if (e.obs[0, 1:] == 0).all())} == received


def test_the_random_policy_is_uniform() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(space: spaces.Space[Any], mask: Any = None) -> tuple[Any, Any]:
        policy = UniformPolicy(CountingEnvironments((1,)).obs_spec, action_spec(space), 20_000)
        noise = action_noise(policy.action_spec, (20_000,), generator)
        return policy.uniform(noise, None if mask is None else torch.tensor(mask).expand(20_000, -1))

    action, log_prob = drawn(spaces.Discrete(4))
    assert np.abs(np.bincount(action) - 5_000).max() < 4 * (20_000 * 0.25 * 0.75) ** 0.5
    torch.testing.assert_close(log_prob, torch.full((20_000,), -np.log(4.0), dtype=torch.float32))
    action, log_prob = drawn(spaces.Discrete(4), [True, False, False, True])
    assert set(action.tolist()) == {0, 3}
    torch.testing.assert_close(log_prob, torch.full((20_000,), -np.log(2.0), dtype=torch.float32))
    action, log_prob = drawn(spaces.MultiDiscrete([2, 5]), [True] * 3 + [False] * 3 + [True])
    assert {tuple(a) for a in action.tolist()} == {(i, j) for i in (0, 1) for j in (0, 4)}
    torch.testing.assert_close(log_prob, torch.full((20_000,), -np.log(4.0), dtype=torch.float32))
    action, log_prob = drawn(spaces.MultiBinary(3))
    assert len({tuple(a) for a in action.tolist()}) == 8
    torch.testing.assert_close(log_prob, torch.full((20_000,), -np.log(8.0), dtype=torch.float32))
    action, log_prob = drawn(spaces.Box(-3, 7, (2,), np.float32))
    quarters = np.histogram(action, bins=4, range=(-1, 1))[0]
    assert np.abs(quarters - 10_000).max() < 4 * (40_000 * 0.25 * 0.75) ** 0.5
    torch.testing.assert_close(log_prob, torch.full((20_000,), -2 * np.log(2.0), dtype=torch.float32))
    with pytest.raises(UsageError, match="needs finite bounds"):
        drawn(spaces.Box(0, np.inf, (1,), np.float32))
    with pytest.raises(UsageError, match="no most likely action"):
        UniformPolicy(CountingEnvironments((1,)).obs_spec, discrete(2), 1).actor(deterministic=True)


def agents() -> Any:
    env = CountingEnvironments((3, 4), action_spec=box(2))
    small: dict[str, Any] = {"rollout_steps": 8, "hidden_sizes": (6,), "minibatches": 1}
    given = (env.obs_spec, env.action_spec)
    yield "PPO", PPO(PPOConfig(**small), *given, num_envs=2), False
    recurrent = PPOConfig(**small, recurrent="gru", recurrent_size=5, sequence_length=4)
    yield "PPO with memory", PPO(recurrent, *given, num_envs=2), False
    yield "PPO normalised", PPO(PPOConfig(**small, normalize_obs=True), *given, num_envs=2), False
    yield "SAC", SAC(SACConfig(hidden_sizes=(6,)), *given, num_envs=2), True
    masked = CountingEnvironments((3, 4), masked=True)
    yield "PPO masked", PPO(PPOConfig(**small), masked.obs_spec, masked.action_spec, num_envs=2), False


@pytest.mark.parametrize(("name", "agent", "squashed"), list(agents()), ids=[name for name, *_ in agents()])
def test_log_probabilities_are_those_of_the_policy(name: str, agent: Any, squashed: bool) -> None:
    """Played again step by step, on the recorded observations, from the same noise."""
    agent.parameters["policy_head.weight" if "PPO" in name else "head.weight"].mul_(30.0)
    masked = name == "PPO masked"
    if name == "PPO normalised":
        agent.state["obs_mean/obs"] += 2.0
        agent.state["obs_variance/obs"] *= 9.0
    env = CountingEnvironments((3, 4), masked=masked, action_spec=agent.action_spec)
    episodes = record(env, OBSERVED, AgentPolicy(agent, 2), 40, seed=2)
    for e in episodes:
        i = int(e.obs[0, 0])
        start, memory = np.array([True]), None
        for t in range(len(e.reward)):
            mask = None
            if masked:
                mask = torch.tensor(np.arange(3) == (i + t) % 3)[None]
            _, distribution, memory = policy_at(agent, e.obs[t], mask, start, memory)
            start = np.array([False])
            drawn = torch.as_tensor(e.drawn[t : t + 1])
            expected = distribution.log_prob(drawn if memory is None else drawn[None])
            np.testing.assert_allclose(e.log_prob[t], expected.item(), rtol=1e-4, atol=1e-4)
            if not masked:
                executed = np.tanh(e.drawn[t]) if squashed else np.clip(e.drawn[t], -1, 1)
                np.testing.assert_allclose(e.action[t], executed, rtol=1e-5)
    modes = record(env, OBSERVED, AgentPolicy(agent, 2, deterministic=True), 7, seed=2)
    assert all(e.log_prob is None for e in modes)
    assert from_episodes(modes).steps == 7
    for e in modes:
        mask = torch.tensor(np.arange(3) == int(e.obs[0, 0]))[None] if masked else None
        _, distribution, memory = policy_at(agent, e.obs[0], mask, np.array([True]), None)
        mode = distribution.mode() if memory is None else distribution.mode()[0]
        np.testing.assert_allclose(e.drawn[:1], mode, rtol=1e-4, atol=1e-5)


def policy_at(agent: Any, obs: Any, mask: Any, start: Any, memory: Any) -> Any:
    """The distribution at one observation (1, ...), from the pure forward of the agent."""
    from steepest.networks.inputs import PolicyInput

    state = {k: v[0] for k, v in agent.state.items()}
    given = {"obs": torch.as_tensor(obs)[None]}
    if not agent.memory_size:
        output = agent.forward(state["params"], state, PolicyInput(given, mask, None, None, None), False)
        return given, output.distribution, None
    if memory is None:
        memory = torch.zeros(1, agent.memory_size)
    given = {"obs": given["obs"][None]}
    inputs = PolicyInput(given, None, torch.as_tensor(start)[None], torch.ones(1, 1, dtype=torch.bool), memory)
    output = agent.forward(state["params"], state, inputs, False)
    return given, output.distribution, output.memory
