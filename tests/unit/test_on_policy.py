"""From a rollout to training sequences: reward scaling, scoring, cutting, gathering."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, box, discrete, ragged, synthetic_rollout, to_float64, vector
from steepest.agents.average_reward import initial_gain, objective_rewards, refuse_termination, update_gain
from steepest.agents.rollout_updates import (
    all_sequences,
    batch_inputs,
    corrected_batch,
    each_minibatch,
    from_sequences,
    gather,
    minibatch_indices,
    obs_to_sequences,
    score_rollout,
    sequences_per_rollout,
    steps_per_call,
    to_sequences,
)
from steepest.agents.statistics import (
    explained_variance,
    initial_observation_statistics,
    initial_return_statistics,
    scale_rewards,
    scaled_rewards,
    state_weights,
    update_observations,
)
from steepest.algorithms.actor_critic import ActorCritic
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.algorithms.ppo_kl import PPOKL
from steepest.algorithms.reinforce import REINFORCE
from steepest.algorithms.trpo import TRPO
from steepest.errors import UsageError
from steepest.returns import vtrace
from steepest.types import Rollout

GAMMA = 0.9
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "actor_critic": (ActorCritic, {}),
    "ppo": (PPO, {"minibatches": 1}),
    "ppo_kl": (PPOKL, {"minibatches": 1}),
    "reinforce": (REINFORCE, {}),
    "trpo": (TRPO, {"minibatches": 1}),
}


def experience(seed: int, steps: int = 12, envs: int = 3, pauses: tuple[int, ...] = ()) -> Rollout:
    data = ragged(seed, steps, envs, pauses)
    g = torch.Generator().manual_seed(seed)
    return Rollout(
        obs={"obs": torch.randn((steps + 1, envs, 2), generator=g, dtype=F64)},
        action=torch.randint(0, 3, (steps, envs), generator=g),
        reward=data.reward,
        terminated=data.terminated,
        truncated=data.truncated,
        valid=data.valid,
        episode_step=torch.zeros((steps + 1, envs), dtype=torch.int64),
        action_mask=None,
        memory=None,
    )


def test_reward_scaling_against_a_loop() -> None:
    """Over three rollouts: the running return is carried from one to the next, and starts afresh after every end."""
    envs = 3
    state = {
        "return_mean": torch.tensor(0.0, dtype=F64),
        "return_variance": torch.tensor(1.0, dtype=F64),
        "return_count": torch.tensor(0.0, dtype=F64),
        "return_carry": torch.zeros(envs, dtype=F64),
    }
    running, seen = [0.0] * envs, []
    for seed in range(3):
        rollout = experience(seed, pauses=(0, 5))
        if seed == 0:  # an end on the very last row, whose successor is the next rollout's first
            rollout.terminated[-1, 0] = rollout.valid[-1, 0] = True
        state, scaled = scale_rewards(state, rollout, torch.tensor(GAMMA, dtype=F64))
        for t in range(12):
            for n in range(envs):
                if not rollout.valid[t, n]:
                    continue
                running[n] = float(rollout.reward[t, n]) + GAMMA * running[n]
                seen.append(running[n])
                if rollout.terminated[t, n] or rollout.truncated[t, n]:
                    running[n] = 0.0
        everything = torch.tensor(seen, dtype=F64)
        variance = everything.var(correction=0)
        torch.testing.assert_close(state["return_mean"], everything.mean(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state["return_variance"], variance, rtol=1e-10, atol=1e-10)
        assert state["return_count"] == len(seen)
        torch.testing.assert_close(state["return_carry"], torch.tensor(running, dtype=F64), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(scaled, rollout.reward / (variance + 1e-8).sqrt(), rtol=1e-10, atol=1e-10)
        assert torch.equal(scaled_rewards(state, rollout), scaled), "the statistics hold the rollout already"


def test_rewards_stay_as_they_are_where_nothing_is_normalised() -> None:
    rollout = experience(0)
    state, reward = scale_rewards({}, rollout, torch.tensor(GAMMA))
    assert state == {}
    assert reward is rollout.reward
    assert scaled_rewards({}, rollout) is rollout.reward


# The average reward


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_running_gain_against_a_loop(rate: float) -> None:
    """Over decided steps alone; at first the plain mean over rollouts, then a moving one."""
    agent = PPO(PPOConfig(), vector(2), discrete(2), num_envs=6)
    state = {k: x[0].double() for k, x in initial_gain(1, torch.device("cpu")).items()}
    expected = 0.0
    for k in range(1, 8):
        rollout = Rollout(*(x if x is None else _first(x) for x in synthetic_rollout(agent, 23, seed=k, dtype=F64)))
        assert not rollout.valid.all()
        mean = float(rollout.reward[rollout.valid].mean())
        expected += max(rate, 1.0 / k) * (mean - expected)
        unseen = rollout._replace(reward=torch.where(rollout.valid, rollout.reward, 100.0))
        state |= update_gain(state, unseen, torch.tensor(rate, dtype=F64))
        assert float(state["gain"]) == pytest.approx(expected, rel=1e-12)
        if rate == 1.0:
            assert expected == pytest.approx(mean)


def test_rewards_of_both_objectives() -> None:
    """Less the new gain and undiscounted, or scaled as the statistics say and discounted."""
    agent = PPO(PPOConfig(), vector(2), discrete(2), num_envs=6)
    rollout = Rollout(*(x if x is None else _first(x) for x in synthetic_rollout(agent, 23, dtype=F64)))
    hyper = {"gamma": torch.tensor(0.9, dtype=F64), "gain_rate": torch.tensor(0.25, dtype=F64)}
    assert objective_rewards({}, rollout, hyper) == ({}, rollout.reward, hyper["gamma"])
    state = {"gain": torch.tensor(0.5, dtype=F64), "gain_rollouts": torch.tensor(9.0, dtype=F64)}
    new, reward, discount = objective_rewards(state, rollout, hyper)
    gain = 0.75 * 0.5 + 0.25 * float(rollout.reward[rollout.valid].mean())
    assert float(new["gain"]) == pytest.approx(gain, rel=1e-12)
    torch.testing.assert_close(reward, rollout.reward - gain, rtol=1e-12, atol=1e-12)
    assert float(discount) == 1.0


def _first(x: Any) -> Any:
    return {k: v[0] for k, v in x.items()} if isinstance(x, dict) else x[0]


def test_termination_is_refused() -> None:
    agent = PPO(PPOConfig(), vector(2), discrete(2), num_envs=6)
    rollout = synthetic_rollout(agent, 23)
    assert rollout.truncated.any()
    refuse_termination(rollout._replace(terminated=torch.zeros_like(rollout.terminated)))
    ended = torch.zeros_like(rollout.terminated)
    ended[0, 3, 2] = True
    with pytest.raises(UsageError, match=r"has terminated 1 episode; .* Use objective 'discounted'"):
        refuse_termination(rollout._replace(terminated=ended))


def test_state_weights_are_powers_by_step_of_the_episode() -> None:
    step = torch.tensor([[0, 7], [1, 0], [0, 1], [1, 2]])
    found = state_weights(step[:-1], torch.tensor(0.5, dtype=F64))
    expected = torch.tensor([[1.0, 0.5**7], [0.5, 1.0], [1.0, 0.5]], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_observation_statistics_are_those_of_decided_steps() -> None:
    """The observation that only follows the last step is left for the next rollout, which begins with it."""
    state: dict[str, Tensor] = {
        "obs_mean/obs": torch.zeros(2, dtype=F64),
        "obs_variance/obs": torch.ones(2, dtype=F64),
        "obs_count": torch.tensor(0.0, dtype=F64),
    }
    rows = []
    for seed in range(2):
        rollout = experience(seed, pauses=(3,))
        state = update_observations(state, rollout, {})
        rows.append(rollout.obs["obs"][:-1][rollout.valid])
    everything = torch.cat(rows)
    torch.testing.assert_close(state["obs_mean/obs"], everything.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state["obs_variance/obs"], everything.var(0, correction=0), rtol=1e-10, atol=1e-10)
    assert state["obs_count"] == len(everything)


def test_statistics_of_several_fields_count_once() -> None:
    rollout = experience(0)
    rollout.obs["more"] = rollout.obs["obs"] * 2.0
    state = {f"obs_{k}/{n}": torch.zeros(2, dtype=F64) for k in ("mean", "variance") for n in ("obs", "more")}
    state["obs_count"] = torch.tensor(0.0, dtype=F64)
    for _ in range(2):
        state = update_observations(state, rollout, {})
    assert state["obs_count"] == 2 * rollout.valid.sum()
    torch.testing.assert_close(state["obs_mean/more"], 2.0 * state["obs_mean/obs"])


# Cutting and gathering


@pytest.mark.parametrize("length", [0, 1, 2, 6])
def test_sequences_hold_consecutive_steps_of_one_environment(length: int) -> None:
    steps, envs = 6, 4
    x = torch.stack(torch.meshgrid(torch.arange(steps), torch.arange(envs), indexing="ij"), -1)  # (T, N, [t, n])
    cut = to_sequences(x, length)
    assert torch.equal(from_sequences(cut, length, envs), x)
    if length == 0:
        assert cut.shape == (steps * envs, 2)
        assert {tuple(row.tolist()) for row in cut} == {(t, n) for t in range(steps) for n in range(envs)}
        return
    assert cut.shape == (steps * envs // length, length, 2)
    assert (cut[:, :, 1] == cut[:, :1, 1]).all()
    assert torch.equal(cut[:, :, 0] - cut[:, :1, 0], torch.arange(length).expand(len(cut), -1))
    assert len({tuple(row.tolist()) for row in cut[:, 0]}) == len(cut)
    # The memory of sequence i is that of its first step: (T / L, N, K) flattened in the same order.
    first = x[::length].flatten(0, 1)
    assert torch.equal(cut[:, 0], first)
    obs = obs_to_sequences({"obs": torch.cat([x, x[:1]])}, length)
    assert torch.equal(obs["obs/obs"], cut)


def test_gather_puts_time_first() -> None:
    batch = {"reward": torch.arange(12).view(4, 3), "memory": torch.arange(8).view(4, 2)}
    index = torch.tensor([2, 0])
    out = gather(batch, index)
    assert torch.equal(out["reward"], batch["reward"][index].T)
    assert torch.equal(out["memory"], batch["memory"][index])
    whole = all_sequences(batch)
    assert torch.equal(whole["reward"], batch["reward"].T)
    assert torch.equal(gather({"reward": torch.arange(4)}, index)["reward"], index)


def test_batch_inputs_finds_its_parts() -> None:
    batch = {"obs/a": torch.zeros(2), "obs/b": torch.ones(2), "weight": torch.tensor([1.0, 0.0])}
    inputs = batch_inputs(batch)
    assert inputs.obs.keys() == {"a", "b"}
    assert inputs.valid is inputs.episode_start is inputs.memory is inputs.action_mask is None
    batch |= {"episode_start": torch.tensor([True, False]), "memory": torch.zeros(2)}
    inputs = batch_inputs(batch)
    assert torch.equal(inputs.valid, torch.tensor([True, False]))


def test_every_epoch_sees_every_sequence_once() -> None:
    index = minibatch_indices(12, 3, 4, torch.Generator().manual_seed(0))
    assert index.shape == (12, 4)
    epochs = index.view(4, 12)
    assert torch.equal(epochs.sort(-1).values, torch.arange(12).expand(4, -1))
    assert len({tuple(e.tolist()) for e in epochs}) == 4
    assert torch.equal(index, minibatch_indices(12, 3, 4, torch.Generator().manual_seed(0)))


def test_each_minibatch_follows_the_one_before() -> None:
    """A step that adds what it sees, doubled by what came before; figures are means."""

    def step(state: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        seen = batch["x"].sum()
        return {"total": 2.0 * state["total"] + seen}, {"seen": seen, "before": state["total"]}

    batch = {"x": torch.tensor([1.0, 10.0, 100.0, 1000.0])}
    state, figures = each_minibatch(step, {"total": torch.tensor(0.0)}, batch, torch.tensor([[3, 0], [1, 2]]))
    assert float(state["total"]) == 2.0 * 1001.0 + 110.0
    assert {k: float(x) for k, x in figures.items()} == {"seen": 1111.0 / 2.0, "before": 1001.0 / 2.0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 8, 0, 2, True), 32),
        ((4, 8, 4, 2, True), 8),
        ((4, 8, 3, 1, True), "multiple of sequence_length"),
        ((4, 8, 0, 5, True), "do not divide"),
        ((4, 8, 0, 16, True), 32),
        ((4, 8, 0, 32, False), 32),
        ((4, 8, 0, 32, True), "gives each of 32 minibatches a single step"),
        ((4, 8, 4, 8, True), 8),
    ],
)
def test_sequences_per_rollout(arguments: tuple[int, int, int, int, bool], expected: Any) -> None:
    *numbers, standardizes = arguments
    if isinstance(expected, int):
        assert sequences_per_rollout(*numbers, standardizes=standardizes) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            sequences_per_rollout(*numbers, standardizes=standardizes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_single_step_is_not_standardised(algorithm: str) -> None:
    """Less its own mean it is 0; a policy that never learns is refused before it begins."""
    kind, options = ALGORITHMS[algorithm]
    config = {**options, "rollout_steps": 1, "hidden_sizes": (5,)}
    with pytest.raises(UsageError, match="the policy would never learn"):
        kind(kind.Config(**config, normalize_advantage=True), vector(2), discrete(3))
    kind(kind.Config(**config, normalize_advantage=False), vector(2), discrete(3))


@pytest.mark.parametrize(
    ("steps", "members", "expected"),
    [(16, 1, 2), (6, 1, 2), (5, 1, 1), (16, 2, 1), (16, 8, 1)],
)
def test_steps_per_call_divides(steps: int, members: int, expected: int) -> None:
    assert steps_per_call(steps, members) == expected


def test_explained_variance_by_hand() -> None:
    """Over the rows that count; equal targets, if only to rounding, have no variance to explain."""
    target, value = torch.tensor([1.0, 3.0, 5.0, 99.0]), torch.tensor([1.0, 3.0, 8.0, 0.0])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert float(explained_variance(target, value, weight)) == pytest.approx(1.0 - 2.0 / (8.0 / 3.0), rel=1e-6)
    assert float(explained_variance(1e-5 * target, 1e-5 * value, weight)) == pytest.approx(0.25, rel=1e-4)
    assert float(explained_variance(target, 2.0 + 0.0 * value, weight)) == pytest.approx(0.0, abs=1e-6)
    for constant in (0.0, 0.1, 1e6):
        assert explained_variance(torch.full((1000,), constant), torch.rand(1000), torch.ones(1000)).isnan()


# Scoring


@pytest.mark.parametrize("gaussian", ["diagonal", "full"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_score_rollout_equals_scoring_row_by_row(gaussian: Any, steps: int) -> None:
    """Also where a rollout has fewer steps than an action has components."""
    agent = to_float64(
        PPO(PPOConfig(gaussian=gaussian, rollout_steps=4, minibatches=1, hidden_sizes=(5,)), vector(2), box(3))
    )
    state = {k: v[0] for k, v in agent.state.items()}
    g = torch.Generator().manual_seed(0)
    if gaussian == "full":
        parameters = agent.layout.unflatten(state["params"])
        parameters["tril"].copy_(torch.randn((3, 3), generator=g, dtype=F64))
    rollout = experience(0, steps=max(steps, 4))
    rows = slice(0, steps)
    rollout = rollout._replace(
        obs={"obs": rollout.obs["obs"][: steps + 1]},
        action=torch.randn((steps, 3, 3), generator=g, dtype=F64),
        **{k: getattr(rollout, k)[rows] for k in ("reward", "terminated", "truncated", "valid")},
    )
    forward = partial(agent.forward, state["params"], state)
    log_prob, value = score_rollout(forward, rollout, 0)
    assert log_prob.shape == (steps, 3)
    assert value.shape == (steps + 1, 3)
    for t in range(steps + 1):
        output = forward(batch_inputs({"obs/obs": rollout.obs["obs"][t]}))
        torch.testing.assert_close(value[t], output.value, rtol=1e-10, atol=1e-10)
        if t < steps:
            expected = output.distribution.log_prob(rollout.action[t])
            torch.testing.assert_close(log_prob[t], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("average", [False, True])
def test_corrected_batch_is_vtrace_of_the_present_policy(recurrent: Any, average: bool) -> None:
    """With ratios to the old policy, the present values and the rewards as they were scaled; time-major by hand.

    For the average reward with the rewards less the gain, no discount, and pinned targets.
    """
    config = {"rollout_steps": 12, "hidden_sizes": (5,), "sequence_length": 4, "recurrent_size": 3, "minibatches": 1}
    agent = to_float64(PPO(PPOConfig(**config, recurrent=recurrent), vector(2), discrete(3), num_envs=3))
    length, g = agent.sequence_length, torch.Generator().manual_seed(0)
    rollout = experience(0, pauses=(5,))
    if length:
        rollout = rollout._replace(memory=torch.randn((3, 3, agent.memory_size), generator=g, dtype=F64))
    hyper = {"gamma": torch.tensor(GAMMA, dtype=F64), "gae_lambda": torch.tensor(0.75, dtype=F64)}
    statistics = (
        {"gain": torch.tensor(0.5, dtype=F64)} if average else {"return_variance": torch.tensor(4.0, dtype=F64)}
    )
    scored, state = [], {k: v[0] for k, v in agent.state.items()} | statistics
    for _ in range(2):
        state = {**state, "params": state["params"] + 0.3 * torch.randn(len(state["params"]), generator=g, dtype=F64)}
        forward = partial(agent.forward, state["params"], state)
        with torch.no_grad():
            scored.append(score_rollout(forward, rollout, length))
    (old, _), (new, value) = scored
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    reward = rollout.reward - 0.5 if average else rollout.reward / (4.0 + 1e-8) ** 0.5
    expected = vtrace(new - old, reward, value, *flags, 1.0 if average else GAMMA, 0.75)
    pin = 0.1 * value[:-1][rollout.valid].mean() if average else 0.0
    with torch.no_grad():
        found = corrected_batch(forward, state, rollout, to_sequences(old, length), length, hyper)
    assert found.keys() == {"advantage", "target"}
    for name, exact in (("target", expected.target - pin), ("advantage", expected.q_value - value[:-1])):
        torch.testing.assert_close(found[name], to_sequences(exact, length), rtol=1e-10, atol=1e-10)
    assert float((new - old).abs().max()) > 0.1


@pytest.mark.parametrize("normalize_reward", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_invalid_rows_have_no_influence_on_an_update(algorithm: str, normalize_reward: bool) -> None:
    """Actions and rewards of undecided rows are arbitrary; whatever they hold, the update is the same."""
    kind, options = ALGORITHMS[algorithm]
    settings = {"rollout_steps": 12, "hidden_sizes": (5,), "normalize_obs": True, "normalize_reward": normalize_reward}
    results = []
    for change in (False, True):
        agent = to_float64(kind(kind.Config(**settings, **options), vector(2), discrete(3), num_envs=4))
        rollout = synthetic_rollout(agent, 12, dtype=F64)
        assert not rollout.valid.all()
        if change:
            action = torch.where(rollout.valid, rollout.action, 2 - rollout.action)
            rollout = rollout._replace(action=action, reward=torch.where(rollout.valid, rollout.reward, 100.0))
        results.append((agent.update(rollout, 0.0), agent.state))
    for (name, one), other in zip(results[0][0].items(), results[1][0].values(), strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-12), name
    for (name, one), other in zip(results[0][1].items(), results[1][1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


def test_statistics_are_kept_in_float64() -> None:
    """Of numbers far from zero, float32 loses the deviation; and it counts no further than 2^24."""
    device = torch.device("cpu")
    found = {**initial_observation_statistics(vector(3), 2, device), **initial_return_statistics(2, 4, device)}
    assert {name for name, x in found.items() if x.dtype != F64} == {"return_carry"}
