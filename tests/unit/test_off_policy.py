"""Steps that off-policy algorithms share, and their warm-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import F64, box, discrete, vector
from steepest.agents.replay_updates import chosen, descend, regress, track
from steepest.algorithms import find
from steepest.runs.loops.off_policy import uniform_actor


def test_track_is_the_moving_average() -> None:
    state = {"a": torch.tensor([1.0, 2.0], dtype=F64), "b": torch.tensor([3.0, -2.0], dtype=F64)}
    moved = track(state, "a", "b", torch.tensor(0.25, dtype=F64))
    assert moved["a"].tolist() == [1.5, 1.0]
    assert moved["b"] is state["b"]
    assert state["a"].tolist() == [1.0, 2.0], "a pure function leaves its input"


def test_regress_is_the_weighted_sum_over_critics() -> None:
    """Two critics on three transitions, by hand: half squares, their means, summed; errors are means over critics."""
    q = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 5.0]], dtype=F64, requires_grad=True)
    target, weight = torch.tensor([0.0, 2.0, 4.0], dtype=F64), torch.tensor([1.0, 3.0, 0.5], dtype=F64)
    batch = {"reward": torch.zeros(3, dtype=F64), "weight": weight}
    loss, metrics = regress(q, target, batch)
    assert float(loss.detach()) == pytest.approx((0.5 + 0.0 + 0.25) / 3 + (0.0 + 0.0 + 0.25) / 3, rel=1e-15)
    loss.backward()
    assert q.grad is not None
    torch.testing.assert_close(q.grad, weight * (q.detach() - target) / 3.0, rtol=1e-15, atol=0.0)
    assert metrics["error"].tolist() == [0.5, 0.0, 1.0]
    assert float(metrics["q_mean"].detach()) == pytest.approx(13.0 / 6.0, rel=1e-15)
    unweighted, _ = regress(q.detach(), target, {"reward": torch.zeros(3, dtype=F64)})
    assert float(unweighted) == pytest.approx((0.5 + 0.5) / 3 + 0.5 / 3, rel=1e-15)


def test_chosen_takes_the_value_of_each_action() -> None:
    q = torch.arange(12.0).view(2, 3, 2)
    assert chosen(q, torch.tensor([0, 1, 1])).tolist() == [[0.0, 3.0, 5.0], [6.0, 9.0, 11.0]]


def test_each_network_has_its_own_adam() -> None:
    """Against torch.optim, with Adam's own epsilon, for one of two networks in a state."""
    names = ("params", "adam_mean", "adam_square")
    state = {f"{p}{k}": torch.zeros(3, dtype=F64) for p in ("", "critic/") for k in names}
    state |= {f"{p}adam_count": torch.zeros((), dtype=F64) for p in ("", "critic/")}
    leaf = torch.zeros(3, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    g = torch.Generator().manual_seed(0)
    rate, norm = torch.tensor(0.01, dtype=F64), torch.tensor(torch.inf, dtype=F64)
    for _ in range(4):
        leaf.grad = 1e-4 * torch.randn(3, generator=g, dtype=F64)
        state, _ = descend(state, "critic/", leaf.grad, rate, norm)
        optimizer.step()
    torch.testing.assert_close(state["critic/params"], leaf.detach(), rtol=1e-12, atol=0.0)
    assert not state["params"].any()


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_the_warm_up_is_uniform(algorithm: str) -> None:
    """Over the whole range of a box, however it is squashed: ten equal shares within 5 standard deviations."""
    kind = find(algorithm)
    agent = kind(kind.Config(hidden_sizes=(4,)), vector(3), box(2, 3.0), num_envs=5_000)
    action, _ = uniform_actor(agent)({}, agent.draw_noise((1, 5_000))[0], None, None, None)
    played = agent.to_env(action[0].numpy())
    counts = np.histogram(played, bins=10, range=(-3.0, 3.0))[0]
    assert counts.sum() == 10_000
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(900)


def test_the_warm_up_takes_only_legal_actions() -> None:
    agent = find("sac")(find("sac").Config(hidden_sizes=(4,)), vector(3), discrete(4), num_envs=3_000)
    mask = torch.tensor([True, False, True, True]).expand(1, 3_000, 4)
    action, _ = uniform_actor(agent)({}, agent.draw_noise((1, 3_000))[0], mask, None, None)
    counts = action.flatten().bincount(minlength=4)
    assert counts[1] == 0
    assert (counts[[0, 2, 3]] - 1_000).abs().max() < 5 * np.sqrt(667)
