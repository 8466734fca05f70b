"""Deep Q-networks: targets at the optimum and under noise, the semi-gradient, and the agent's own update by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import F64, discrete, to_float64, vector
from steepest.algorithms.dqn import DQN, DQNConfig
from steepest.exact import optimal
from steepest.experience.replay import ReplayBuffer
from steepest.losses import chosen_q_value, double_dqn_target, dqn_target, huber_loss, value_loss
from steepest.types import Rollout
from steepest.verification.random_problems import episodic

SEEDS = pytest.mark.parametrize("seed", range(5))


# The functions


@SEEDS
def test_the_optimum_of_a_finite_mdp_is_a_fixed_point(seed: int) -> None:
    """Of both targets, double DQN's with any values that pick the right actions; not with the networks exchanged."""
    mdp = episodic(seed).mdp
    best = optimal.policy_iteration(mdp).action_value
    there = torch.where(mdp.absorbing.unsqueeze(-1), 7.0, best)  # a target must not look at the terminal state
    shape = mdp.transition.shape
    reward, over = mdp.reward.unsqueeze(-1).expand(shape), mdp.absorbing.expand(shape)

    def off(*tables: Tensor) -> float:
        """How far E_{s'} of the target is from Q*."""
        q = [x.expand(*shape, -1) for x in tables]
        target = (double_dqn_target if len(q) == 2 else dqn_target)(reward, *q, over, mdp.gamma)
        error = (mdp.transition * target).sum(-1) - best
        return float(error[~mdp.absorbing].norm() / best.norm())

    online = 3.0 + 2.0 * there
    assert max(off(there), off(there, online)) < 1e-10
    assert off(online, there) > 1e-2


SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=F64)
NEVER = torch.zeros(64, dtype=torch.bool)


def test_a_maximum_over_noise_is_too_high() -> None:
    """Three actions alike, errors of 1 either way: the largest is -1 once in eight and 1 else, 0.75 in the mean."""
    q, reward = (2.0 + SIGNS).repeat(8, 1), torch.full((64,), 0.5, dtype=F64)
    target = dqn_target(reward, q, NEVER, 0.9).mean()
    assert float(target) == pytest.approx(0.5 + 0.9 * (2.0 + 0.75), rel=1e-12)


def test_noise_of_its_own_does_not_raise_the_double_target() -> None:
    """Every pair of errors; with one network for both it is DQN's target again."""
    rows = torch.tensor(list(itertools.product(range(8), repeat=2)))
    (q, online), reward = (2.0 + SIGNS[rows.T]), torch.full((64,), 0.5, dtype=F64)
    target = double_dqn_target(reward, q, online, NEVER, 0.9)
    assert float(target.mean()) == pytest.approx(0.5 + 0.9 * 2.0, rel=1e-12)
    assert bool((target <= dqn_target(reward, q, NEVER, 0.9)).all())
    assert torch.equal(double_dqn_target(reward, q, q, NEVER, 0.9), dqn_target(reward, q, NEVER, 0.9))


@SEEDS
def test_the_semi_gradient_by_hand(seed: int) -> None:
    """Of the squared error and of Huber's, on both sides of its threshold; the target has none."""
    g = torch.Generator().manual_seed(seed)
    q, following = torch.randn((2, 32, 4), generator=g, dtype=F64)
    reward, action, over = torch.randn(32, generator=g, dtype=F64), torch.arange(32) % 4, torch.arange(32) // 4 % 4 == 0
    y = reward + 0.9 * torch.where(over, 0.0, following.max(-1).values)
    delta = q[torch.arange(32), action] - y
    assert 0 < int((delta.abs() > 0.5).sum()) < 32, "on both sides of the threshold"
    chosen = torch.nn.functional.one_hot(action, 4)
    for threshold, slope in ((None, delta), (0.5, delta.clamp(-0.5, 0.5))):
        leaf = torch.stack([q, following]).requires_grad_()
        picked, target = chosen_q_value(leaf[0], action), dqn_target(reward, leaf[1], over, 0.9)
        loss = value_loss(picked, target) if threshold is None else huber_loss(picked, target, threshold)
        (found,) = torch.autograd.grad(loss.sum(), leaf)
        expected = torch.stack([chosen * slope.unsqueeze(-1), torch.zeros_like(q)])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_illegal_actions_are_never_greedy() -> None:
    """The best of the target network's, then the best of the other's, is illegal; the third row is over."""
    q = torch.tensor([[9.0, 2.0, 1.0], [1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=F64)
    online = torch.tensor([[0.0, 1.0, 2.0], [9.0, 0.0, 1.0], [5.0, 5.0, 5.0]], dtype=F64)
    mask = torch.tensor([[False, True, True], [False, True, True], [True, True, True]])
    ends = (torch.tensor([False, False, True]), 0.5, mask)
    reward = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    assert dqn_target(reward, q, *ends).tolist() == [2.0, 3.5, 3.0]
    assert double_dqn_target(reward, q, online, *ends).tolist() == [1.5, 3.0, 3.0]
    assert dqn_target(reward, q, *ends[:2]).tolist() == [5.5, 3.5, 3.0]
    assert double_dqn_target(reward, q, online, *ends[:2]).tolist() == [1.5, 2.5, 3.0]


def test_targets_carry_no_gradient() -> None:
    x, never = torch.ones(2, 3, dtype=F64, requires_grad=True), torch.zeros(2, dtype=torch.bool)
    assert not dqn_target(x[:, 0], x, never, 0.9).requires_grad
    assert not double_dqn_target(x[:, 0], x, x, never, 0.9).requires_grad


def test_several_critics_value_one_action() -> None:
    q = torch.arange(12.0, dtype=F64).view(2, 2, 3)
    assert chosen_q_value(q, torch.tensor([2, 0])).tolist() == [[2.0, 3.0], [8.0, 9.0]]


# The agent


def linear_agent(**options: Any) -> DQN:
    """Three observed numbers, four actions, no hidden layer; in float64."""
    options = {"hidden_sizes": (), "max_gradient_norm": None, **options}
    return to_float64(DQN(DQNConfig(**options), vector(3), discrete(4)))


def values(agent: DQN, params: Tensor, obs: Tensor) -> Tensor:
    """(B, 4) W x + b."""
    named = agent.layout.unflatten(params[0])
    return obs @ named["head.weight"].T + named["head.bias"]


def minibatch(seed: int = 0) -> dict[str, Tensor]:
    """(B = 64): a quarter terminal; discounts of one and of three steps; masks that leave two actions or more."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand((64, 4), generator=g) < 0.4
    mask[:, :2] |= torch.rand((64, 1), generator=g) < 0.5
    mask[:, 2:] |= ~mask[:, :2].all(-1, keepdim=True)
    return {
        "obs/obs": torch.randn((64, 3), generator=g, dtype=F64),
        "next_obs/obs": torch.randn((64, 3), generator=g, dtype=F64),
        "action": torch.randint(0, 4, (64,), generator=g),
        "reward": torch.randn(64, generator=g, dtype=F64),
        "terminated": torch.arange(64) % 4 == 0,
        "discount": torch.where(torch.arange(64) % 3 == 0, 0.729, 0.9).to(F64),
        "action_mask": ~mask,
        "next_action_mask": mask,
        "weight": torch.rand(64, generator=g, dtype=F64) + 0.1,
    }


def updated(agent: DQN, batch: dict[str, Tensor], progress: float = 0.0) -> tuple[dict[str, Any], Tensor]:
    """One gradient step on one minibatch."""
    metrics, error = agent.update({k: x[None, None] for k, x in batch.items()}, {}, agent.hyperparameters(progress))
    return metrics, error[0, 0]


@pytest.mark.parametrize("double", [False, True])
def test_an_update_by_hand(double: bool) -> None:
    """Targets row by row, the gradient of the weighted mean loss, and the absolute errors that become priorities."""
    agent, batch = linear_agent(double=double, huber_threshold=0.75), minibatch()
    agent.state["target/params"] = torch.randn(agent.state["params"].shape, dtype=F64)
    params, held = agent.state["params"].clone(), agent.state["target/params"]
    there, picked = values(agent, held, batch["next_obs/obs"]), values(agent, params, batch["next_obs/obs"])
    target = torch.zeros(64, dtype=F64)
    for i in range(64):
        legal = batch["next_action_mask"][i].nonzero().squeeze(-1).tolist()
        judge = picked if double else there
        best = max(legal, key=lambda a, i=i, judge=judge: float(judge[i, a]))
        following = 0.0 if batch["terminated"][i] else float(there[i, best])
        target[i] = batch["reward"][i] + batch["discount"][i] * following
    one = {k: v[0] for k, v in agent.state.items()}
    torch.testing.assert_close(agent.target(one, batch), target, rtol=1e-12, atol=1e-12)
    q = values(agent, params, batch["obs/obs"])[torch.arange(64), batch["action"]]
    delta = q - target
    slope = batch["weight"] * delta.clamp(-0.75, 0.75) / 64
    chosen = torch.nn.functional.one_hot(batch["action"], 4).to(F64)
    expected = agent.layout.flatten(
        {"head.weight": (chosen * slope[:, None]).T @ batch["obs/obs"], "head.bias": chosen.T @ slope}
    )
    metrics, error = updated(agent, batch)
    torch.testing.assert_close(error, delta.abs(), rtol=1e-10, atol=1e-12)
    # Adam's first mean is a tenth of the gradient.
    torch.testing.assert_close(agent.state["adam_mean"][0], 0.1 * expected, rtol=1e-10, atol=1e-13)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(expected.norm()), rel=1e-10)
    assert not torch.equal(agent.state["params"], params)


def test_importance_weights_undo_prioritised_drawing() -> None:
    """Priorities 1, 2, 4, 1 and eight equal shares: every minibatch holds each row exactly as often as its priority.

    Weighted by P^-1, its gradient is that of all rows once, up to the factor n min P; unweighted it is another.
    """
    agent, generator = linear_agent(), torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(agent.obs_spec, agent.action_spec, rows=8, prioritized=True)
    never, g = torch.zeros((4, 1), dtype=torch.bool), torch.Generator().manual_seed(1)
    buffer.append(
        Rollout(
            obs={"obs": torch.randn((5, 1, 3), generator=g)},
            action=torch.tensor([[0], [1], [2], [1]]),
            reward=torch.randn((4, 1), generator=g),
            terminated=never,
            truncated=never,
            valid=~never,
            episode_step=torch.arange(5).unsqueeze(-1),
            action_mask=None,
            memory=None,
        )
    )
    errors = torch.tensor([[1.0, 2.0, 4.0, 1.0]])
    buffer.set_priorities(torch.arange(4).unsqueeze(0), errors, exponent=1.0, floor=0.0)

    def slope(batch: dict[str, Tensor]) -> Tensor:
        batch = {k: x.to(F64) if x.is_floating_point() else x for k, x in batch.items()}
        state = {k: v[0] for k, v in agent.state.items()}
        target, hyper = agent.target(state, batch), agent.hyperparameters(0.0)
        leaf = state["params"].clone().requires_grad_()
        return torch.autograd.grad(agent.loss(leaf, state, batch, target, hyper)[0], leaf)[0]

    everything = slope(buffer.transitions(np.arange(4), np.zeros(4, np.int64), gamma=0.9))
    for exponent in (1.0, 0.0):
        drawn = buffer.sample([generator], 1, 8, gamma=0.9, importance_exponent=exponent)
        drawn = {k: x[0, 0] for k, x in drawn.items()}
        assert drawn["index"].bincount().tolist() == [1, 2, 4, 1]
        found = slope({k: x for k, x in drawn.items() if k != "index"})
        if exponent == 1.0:
            torch.testing.assert_close(found, 4 * (1 / 8) * everything, rtol=1e-12, atol=1e-15)
        else:
            cosine = torch.nn.functional.cosine_similarity(found, everything, dim=0)
            assert float(cosine) < 0.99


@pytest.mark.parametrize(("every", "rate"), [(3, 1.0), (1, 0.25), (2, 0.5)])
def test_the_target_network_follows(every: int, rate: float) -> None:
    """Untouched but for every so many steps, when it goes a share of the way; all of it is a copy, to the bit."""
    agent = linear_agent(target_update_every=every, target_update_rate=rate, learning_rate=0.1)
    expected = agent.state["target/params"].clone()
    assert torch.equal(expected, agent.state["params"])
    for step in range(1, 8):
        updated(agent, minibatch(step))
        if step % every == 0:
            expected = agent.state["params"].clone() if rate == 1.0 else expected.lerp(agent.state["params"], rate)
        torch.testing.assert_close(agent.state["target/params"], expected, rtol=1e-14, atol=0.0)
        assert int(agent.state["target/age"][0]) == step % every
        assert (step % every == 0 and rate == 1.0) == torch.equal(agent.state["target/params"], agent.state["params"])


def test_exploration_falls_and_is_played() -> None:
    """From 1 to 0.2 in half of the run; what is drawn after an update has the share of that moment."""
    agent = linear_agent(final_epsilon=0.2, exploration_fraction=0.5)
    assert [agent.epsilon(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2], rel=1e-12)
    assert linear_agent(exploration_fraction=0.0).epsilon(0.0) == pytest.approx(0.05, rel=1e-12)
    agent = DQN(DQNConfig(hidden_sizes=(), final_epsilon=0.2, exploration_fraction=0.5), vector(3), discrete(4))
    obs = np.ones((40_000, 3), np.float32)
    for progress, share in ((None, 1.0), (0.25, 0.6), (0.75, 0.2)):
        if progress is not None:
            batch = {k: x.float() if x.is_floating_point() else x for k, x in minibatch().items()}
            metrics, _ = updated(agent, batch, progress)
            assert float(metrics["epsilon"]) == pytest.approx(share, rel=1e-6)
        best = int(agent.act(obs[0], deterministic=True)[0])
        named = agent.layout.unflatten(agent.state["params"][0])
        assert best == int((named["head.weight"] @ torch.ones(3) + named["head.bias"]).argmax())
        counts = np.bincount(agent.act(obs)[0], minlength=4) / len(obs)
        expected = np.full(4, share / 4) + (1.0 - share) * (np.arange(4) == best)
        # Five standard errors of a share of 40,000 draws.
        np.testing.assert_allclose(counts, expected, atol=5 * 0.5 / np.sqrt(len(obs)))
