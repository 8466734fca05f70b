"""Evaluation plays whole episodes, the first of each environment, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import CountingEnvironments, box
from steepest.algorithms.ppo import PPO, PPOConfig
from steepest.errors import RunError
from steepest.runs import evaluate
from steepest.runs.evaluate import MAX_EVAL_ENVS, Evaluation, evaluate_members, make_evaluation_env


def make(env: CountingEnvironments, members: int = 1, network: Any = None, **config: Any) -> PPO:
    options = {"rollout_steps": 8, "hidden_sizes": (6,), "minibatches": 1, "sequence_length": 4, **config}
    return PPO(
        PPOConfig(**options),
        env.obs_spec,
        env.action_spec,
        num_envs=2,
        seeds=tuple(range(members)),
        network=network,
    )


def episode(i: int, e: int, length: int) -> float:
    return 100 * i * length + 10 * e * length + length * (length + 1) / 2


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_each_environment_contributes_its_first_episodes(pause: bool, deterministic: bool) -> None:
    """Seven episodes over three environments of very different speed: 3, 2 and 2, not the seven that end first."""
    lengths = (9, 1, 4)
    env = CountingEnvironments(lengths, pause=pause)
    (found,) = evaluate_members(make(env), env, 7, seed=0, deterministic=deterministic)
    expected = [(i, e) for i, quota in enumerate((3, 2, 2)) for e in range(quota)]
    assert found.returns == tuple(episode(i, e, lengths[i]) for i, e in expected)
    assert found.lengths == tuple(lengths[i] for i, _ in expected)


def test_members_keep_to_their_environments() -> None:
    lengths = (2, 5, 3, 1)
    env = CountingEnvironments(lengths)
    found = evaluate_members(make(env, members=2), env, 3, seed=0)
    assert found[0].returns == (episode(0, 0, 2), episode(0, 1, 2), episode(1, 0, 5))
    assert found[1].returns == (episode(2, 0, 3), episode(2, 1, 3), episode(3, 0, 1))


def test_figures() -> None:
    found = Evaluation((1.0, 2.0, 6.0), (3, 4, 5))
    assert found.mean == 3.0
    assert found.std == pytest.approx(np.std([1.0, 2.0, 6.0]))
    assert found.summary() == {
        "episodes": 3,
        "mean": 3.0,
        "std": found.std,
        "min": 1.0,
        "max": 6.0,
        "mean_length": 4.0,
    }


@pytest.mark.parametrize(("count", "members", "episodes"), [(3, 2, 3), (3, 1, 2), (1, 2, 1)])
def test_environments_must_fit_members_and_episodes(count: int, members: int, episodes: int) -> None:
    env = CountingEnvironments((2,) * count)
    with pytest.raises(ValueError, match=f"{count} environments for {members} members and {episodes} episodes each"):
        evaluate_members(make(env, members), env, episodes, seed=0)


def test_the_same_seed_plays_the_same_and_another_does_not() -> None:
    def actions(seed: int, deterministic: bool) -> Any:
        env = CountingEnvironments((3, 4), action_spec=box(2))
        evaluate_members(make(env), env, 4, seed=seed, deterministic=deterministic)
        return np.stack(env.received)

    np.testing.assert_array_equal(actions(0, False), actions(0, False))
    assert not np.array_equal(actions(0, False), actions(1, False))
    np.testing.assert_array_equal(actions(0, True), actions(1, True))


class Recording(nn.Module):
    """Writes down what it saw, in place, as running statistics do."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.fields[0].shape[0], 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1.0)
        return self.linear(x)


@pytest.mark.parametrize("network", [None, Recording])
@pytest.mark.parametrize("members", [1, 2])
def test_evaluation_leaves_no_trace(members: int, network: Any) -> None:
    env = CountingEnvironments((3, 4) * members)
    agent = make(env, members, network=network)
    before = {k: v.clone() for k, v in agent.tensors().items()}
    evaluate_members(agent, env, 4, seed=0, deterministic=False)
    after = agent.tensors()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


@pytest.mark.parametrize("pause", [False, True])
def test_recurrent_memory_starts_afresh_with_each_episode(pause: bool) -> None:
    """All episodes of an environment look alike but for their number; without that column, so do the actions.

    The deterministic action is a function of what the episode has shown so far, so it repeats with every episode only
    if the memory is forgotten at its start, and on nothing else than its start.
    """

    class Blind(nn.Module):
        def __init__(self, spec: Any) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x[:, :1]))  # the environment's number alone: the step is not seen

    lengths = (4, 3)
    env = CountingEnvironments(lengths, pause=pause, action_spec=box(1))
    agent = make(env, network=Blind, recurrent="gru", recurrent_size=8)
    evaluate_members(agent, env, 6, seed=0)
    received, replay = np.stack(env.received)[:, :, 0], CountingEnvironments(lengths, pause=pause, action_spec=box(1))
    replay.reset(0)
    by_step: list[dict[int, set[float]]] = [{}, {}]
    for action in received:
        step = replay.count.copy()
        result = replay.step(action[:, None])
        for i in range(2):
            if result.valid[i]:
                by_step[i].setdefault(int(step[i]), set()).add(round(float(action[i]), 5))
    for i in range(2):
        assert len(by_step[i]) == lengths[i]
        assert all(len(actions) == 1 for actions in by_step[i].values())
        assert len(set.union(*by_step[i].values())) == lengths[i]  # the memory moves within an episode


@pytest.mark.parametrize(
    ("vectorization", "episodes", "cores", "expected"),
    [
        ("async", 100, 4, ("async", 4)),  # two members with two environments each, as in training
        ("async", 1, 4, ("async", 2)),
        ("async", 100, 3, ("sync", 4)),  # the same environments and so the same episodes, without their processes
        ("sync", 100, 1, ("sync", 2 * MAX_EVAL_ENVS)),
    ],
)
def test_evaluation_starts_no_more_processes_than_cores(
    vectorization: Any, episodes: int, cores: int, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(evaluate, "available_cores", lambda: cores)
    monkeypatch.setattr(evaluate, "make_env", lambda env, n, *, vectorization, **_: made.append((vectorization, n)))
    agent = make(CountingEnvironments((2,) * 4), members=2)
    make_evaluation_env("CartPole-v1", agent, episodes, vectorization=vectorization)
    assert made == [expected]


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ((1.0, 3.0), "return 2.00 ± 1.00 over 2 episodes"),
        ((5.0,), "return 5.00 ± 0.00 over 1 episode"),
        ((0.0,) * 1000, "return 0.00 ± 0.00 over 1,000 episodes"),
    ],
)
def test_an_evaluation_is_readable(returns: tuple[float, ...], words: str) -> None:
    found = Evaluation(returns, (7,) * len(returns))
    assert repr(found) == f"Evaluation({words})"
    assert str(found) == f"{words}, min {min(returns):.2f}, max {max(returns):.2f}, mean length 7.0"


@pytest.mark.parametrize("pause", [False, True])
def test_an_episode_that_does_not_end_is_given_up(pause: bool) -> None:
    """Of three environments the second never ends in time; the others' episodes are as ever."""
    lengths = (3, 50, 4)
    env = CountingEnvironments(lengths, pause=pause)
    (found,) = evaluate_members(make(env), env, 7, seed=0, limit=20)
    expected = [(0, e) for e in range(3)] + [(2, e) for e in range(2)]
    assert found.returns == tuple(episode(i, e, lengths[i]) for i, e in expected)
    assert found.unfinished == 2
    assert len(env.received) <= 2 * 20


def test_an_episode_as_long_as_the_limit_has_ended() -> None:
    env = CountingEnvironments((20, 21))
    (found,) = evaluate_members(make(env), env, 4, seed=0, limit=20)
    assert found.lengths == (20, 20)
    assert found.unfinished == 2


def test_members_give_up_their_own_environments() -> None:
    env = CountingEnvironments((2, 99, 3, 1))
    found = evaluate_members(make(env, members=2), env, 4, seed=0, limit=10)
    assert [x.unfinished for x in found] == [2, 0]
    assert [len(x.returns) for x in found] == [2, 4]


def test_what_nobody_finishes_has_no_figures() -> None:
    env = CountingEnvironments((99, 99))
    (found,) = evaluate_members(make(env), env, 2, seed=0, limit=10)
    assert (found.returns, found.unfinished) == ((), 2)
    assert np.isnan([found.mean, found.std, found.mean_length]).all()
    assert found.summary() == {
        "episodes": 0, "mean": None, "std": None, "min": None, "max": None, "mean_length": None, "unfinished": 2,
    }  # fmt: skip


def test_without_a_limit_an_episode_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_EPISODE_STEPS", 30)
    env = CountingEnvironments((3, 31))
    with pytest.raises(RunError, match="has not ended after 30 steps"):
        evaluate_members(make(env), env, 2, seed=0)
    env = CountingEnvironments((3, 30))
    assert evaluate_members(make(env), env, 2, seed=0)[0].lengths == (3, 30)


def test_a_time_limit_of_steps_keeps_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(evaluate, "available_cores", lambda: 1)
    monkeypatch.setattr(evaluate, "make_env", lambda env, n, *, vectorization, **_: made.append(vectorization))
    agent = make(CountingEnvironments((2,) * 4), members=2)
    make_evaluation_env("CartPole-v1", agent, 10, vectorization="async", step_timeout=1.0)
    assert made == ["async"]
