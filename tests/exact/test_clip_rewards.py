"""Rewards from clips on finite processes: what infinitely many labels leave open, in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steepest.exact import optimal
from steepest.exact.finite_mdp import FiniteMDP
from steepest.preferences.answers import Comparisons
from steepest.preferences.clips import clip_score, comparison_loss
from steepest.verification.random_problems import continuing

F64 = torch.float64


def feasible(mdp: FiniteMDP, steps: int) -> list[tuple[int, ...]]:
    """Every clip of that many steps that can happen, as numbers of (state, action)."""
    actions = mdp.num_actions
    clips = [(s * actions + a,) for s in range(mdp.num_states) for a in range(actions)]
    for _ in range(steps - 1):
        clips = [
            (*clip, s * actions + a)
            for clip in clips
            for s in range(mdp.num_states)
            for a in range(actions)
            if mdp.transition[clip[-1] // actions, clip[-1] % actions, s] > 0.0
        ]
    return clips


def learned(mdp: FiniteMDP, clips: list[tuple[int, ...]]) -> Tensor:
    """(S, A) by L-BFGS on the shipped loss over all pairs of clips, both answers in their probability."""
    clip = torch.tensor(clips)
    first, second = (torch.tensor(x) for x in zip(*itertools.combinations(range(len(clips)), 2), strict=True))
    worth = clip_score(mdp.reward.flatten()[clip])
    chance = torch.sigmoid(worth[first] - worth[second])
    number = len(first)
    said = Comparisons(torch.stack([first, second], -1), torch.full((number,), 2), torch.zeros(number).bool())
    reward = torch.zeros_like(mdp.reward, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [reward], max_iter=500, history_size=50, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        score = clip_score(reward.flatten()[clip])
        pair = torch.stack([score[first], score[second]], -1).unsqueeze(0)
        won, lost = comparison_loss(pair, said, 0.0), comparison_loss(pair.flip(-1), said, 0.0)
        value = (chance * won + (1.0 - chance) * lost).mean()
        value.backward()
        return value

    optimizer.step(closure)
    return reward.detach()


def small(seed: int) -> FiniteMDP:
    """Three states, two actions, out of a random process of five and three."""
    c = continuing(seed).mdp
    transition = c.transition[:3, :2, :3]
    return FiniteMDP(
        transition / transition.sum(-1, keepdim=True), c.reward[:3, :2], c.initial[:3] / c.initial[:3].sum(), c.gamma
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_learned_reward_is_the_true_one_but_for_a_constant(seed: int, steps: int) -> None:
    """And its optimal policy is the true one's, also once normalised, as an agent sees it."""
    mdp = small(seed)
    clips = feasible(mdp, steps)
    found = learned(mdp, clips)
    difference = found - mdp.reward
    torch.testing.assert_close(difference, difference.mean().expand_as(difference), rtol=0, atol=1e-6)
    expected = optimal.policy_iteration(mdp).policy
    normalised = (found - found.mean()) / found.std(correction=0)
    for reward in (found, normalised):
        assert torch.equal(optimal.policy_iteration(replace(mdp, reward=reward)).policy, expected)
    wrong = optimal.policy_iteration(replace(mdp, reward=-found)).policy
    assert not torch.equal(wrong, expected)


def test_a_deterministic_cycle_leaves_more_than_a_constant_open() -> None:
    """Clips of two steps around a ring of two states always hold both: rewards may move from one to the other.

    No label can tell them apart, and none has to: rewards differ by a potential, and the optimal policy is the same.
    """
    transition = torch.zeros(2, 2, 2, dtype=F64)
    transition[0, :, 1] = transition[1, :, 0] = 1.0
    mdp = FiniteMDP(transition, torch.tensor([[1.0, 0.5], [-0.3, 0.4]]), torch.tensor([0.5, 0.5]), 0.9)
    found = learned(mdp, feasible(mdp, 2))
    difference = found - mdp.reward
    assert float((difference - difference.mean()).abs().max()) > 0.1  # from nought, the shares are even
    torch.testing.assert_close(difference[:, 0], difference[:, 1], rtol=0, atol=1e-6)  # the same in every state
    policies = [optimal.policy_iteration(m).policy for m in (mdp, replace(mdp, reward=found))]
    assert torch.equal(*policies)


def test_where_episodes_end_the_constant_decides() -> None:
    """Leave at once for 1, or stay for 0.3 a step with discount 0.9: normalised rewards make leaving worth it."""
    transition = torch.zeros(2, 2, 2, dtype=F64)
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, :, 1] = 1.0
    reward = torch.tensor([[0.3, 1.0], [0.0, 0.0]], dtype=F64)
    mdp = FiniteMDP(transition, reward, torch.tensor([1.0, 0.0]), 0.9)
    assert optimal.policy_iteration(mdp).policy[0].tolist() == [1.0, 0.0]
    # Of equal clips only differences are known; centred, what happens after the end is worth more than staying.
    centred = torch.tensor([[-0.35, 0.35], [0.0, 0.0]], dtype=F64)
    assert optimal.policy_iteration(replace(mdp, reward=centred)).policy[0].tolist() == [0.0, 1.0]
