"""Targets and losses of deep Q-networks, at the optimum of finite processes and under noise that can be listed.

DQN is beside the notes; its rows stand with the other target that looks for the best action (notes 1.11).
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import losses
from steepest.algorithms.dqn import DQN, DQNConfig
from steepest.exact import optimal
from steepest.types import ActionSpec, ObsField, ObsSpec
from steepest.verification.random_problems import Process, episodic
from steepest.verification.shipped.distributions import normal_draws
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

# The optimum of a finite process


class Optimum(NamedTuple):
    """Every transition (S, A, S) of a process, and two tables of action values with the greedy actions of Q*.

    Both say something about the terminal state, where a target must not look.
    """

    process: Process
    best: Tensor  # (S, A) Q*
    target: Tensor  # (S, A) Q*, but for the terminal state
    online: Tensor  # (S, A) other values
    reward: Tensor
    terminated: Tensor

    def expected(self, target: Tensor) -> Sides:
        """E_{s'} of a target (S, A, S) beside Q*, in the states where something is decided."""
        decided = ~self.process.mdp.absorbing
        return Sides((self.process.mdp.transition * target).sum(-1)[decided], self.best[decided])


@lru_cache(maxsize=256)
def optimum(seed: int) -> Optimum:
    """Of ``episodic``."""
    c = episodic(seed)
    best = optimal.policy_iteration(c.mdp).action_value
    ends = c.mdp.absorbing.unsqueeze(-1)
    target = torch.where(ends, 7.0, best)
    reward = c.mdp.reward.unsqueeze(-1).expand_as(c.mdp.transition)
    return Optimum(c, best, target, 3.0 + 2.0 * target, reward, c.mdp.absorbing.expand(reward.shape))


@rows.equality("1.11", "DQN's target at Q*, finite", optimum, tested="losses.dqn_target")
def fixed_point(c: Optimum) -> Sides:
    """E_{s'} of DQN's target is Q* where the target network is."""
    q = c.target.expand(*c.reward.shape, -1)
    return c.expected(losses.dqn_target(c.reward, q, c.terminated, c.process.mdp.gamma))


@rows.equality("1.11", "double DQN's target at Q*, finite", optimum, tested="losses.double_dqn_target")
@rows.control("1.11", "the same, networks exchanged", optimum, tested="losses.double_dqn_target", exchanged=True)
def double_fixed_point(c: Optimum, exchanged: bool = False) -> Sides:
    """So is double DQN's, whatever values the other network has, as long as its greedy actions are right.

    Negative control: the network that learns values the action that the target network picks.
    """
    tables = (c.online, c.target) if exchanged else (c.target, c.online)
    q, other = (x.expand(*c.reward.shape, -1) for x in tables)
    return c.expected(losses.double_dqn_target(c.reward, q, other, c.terminated, c.process.mdp.gamma))


@rows.equality("1.11", "DQN at rest at Q*, finite", optimum, tested="algorithms.dqn.DQN.loss")
@rows.control("1.11", "DQN under another target network", optimum, tested="algorithms.dqn.DQN.loss", factor=1.1)
def agent_at_rest(c: Optimum, factor: float = 1.0) -> Sides:
    """DQN's own loss, over every transition weighted by its probability, has no slope at Q*.

    Negative control: the target network says a tenth more.
    """
    mdp = c.process.mdp
    live = (~mdp.absorbing).nonzero().squeeze(-1).tolist()
    rows = torch.tensor(list(itertools.product(live, range(mdp.num_actions), range(mdp.num_states))))
    state, action, following = rows.T
    see = partial(torch.nn.functional.one_hot, num_classes=mdp.num_states)
    batch = {"obs/obs": see(state).to(F64), "next_obs/obs": see(following).to(F64), "action": action}
    batch |= {"reward": mdp.reward[state, action], "terminated": mdp.absorbing[following]}
    batch |= {"weight": mdp.transition[state, action, following]}
    batch["discount"] = torch.full_like(batch["reward"], mdp.gamma)
    agent = _tabular(mdp.num_states, mdp.num_actions)
    bias = torch.zeros(mdp.num_actions, dtype=F64)
    vector, other = (
        agent.layout.flatten({"head.weight": q.T, "head.bias": bias}) for q in (c.target, factor * c.target)
    )
    held = {"params": vector, "target/params": other, "buffers/epsilon": torch.zeros((), dtype=F64)}
    hyper = {"huber_threshold": torch.tensor(torch.inf)}
    pull = agent.target(held, batch)
    slope = gradient(lambda x: agent.loss(x, held, batch, pull, hyper)[0], vector)
    return Sides(slope, torch.zeros_like(slope), scale=1.0 / len(rows))


@lru_cache
def _tabular(states: int, actions: int) -> DQN:
    """In float64 and without hidden layers: one-hot states in, a table of values inside."""
    obs = ObsSpec((ObsField("obs", "vector", (states,), "float32"),), is_dict=False)
    agent = DQN(DQNConfig(hidden_sizes=()), obs, ActionSpec("discrete", (), "int64", (actions,), (0,)))
    agent.module.double()
    return agent


# The gradient


class Regression(NamedTuple):
    """A linear Q of four actions, and a batch of transitions, a quarter of them terminal."""

    weights: Tensor  # (4, 5)
    feature: Tensor  # (32, 5)
    next_feature: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    gamma: float

    @property
    def following(self) -> Tensor:
        """(32, 5) the slope of gamma (1 - terminated) max_a Q(s', a), and where it belongs: (32,) the best action."""
        return torch.where(self.terminated.unsqueeze(-1), 0.0, self.gamma * self.next_feature)

    @property
    def best(self) -> Tensor:
        """(32,) the greedy action at the next state."""
        return (self.next_feature @ self.weights.T).argmax(-1)

    @property
    def delta(self) -> Tensor:
        """(32,) Q(s, a) less its target, with the same network in both places."""
        q = (self.feature * self.weights[self.action]).sum(-1)
        return q - self.reward - (self.following * self.weights[self.best]).sum(-1)


@lru_cache(maxsize=256)
def regression(seed: int) -> Regression:
    """Random numbers throughout."""
    draw = normal_draws(seed, 44)
    action = torch.arange(32) % 4
    return Regression(draw(4, 5), draw(32, 5), draw(32, 5), action, draw(32), torch.arange(32) // 4 % 4 == 0, 0.9)


@rows.equality("1.11", "Q-network's loss: its semi-gradient", regression, tested="losses.chosen_q_value")
@rows.control("1.11", "Q-network's loss: through the target too", regression, tested="losses.dqn_target", residual=True)
def semi_gradient(c: Regression, residual: bool = False) -> Sides:
    """(Q(s, a) - y) grad Q(s, a), summed over the batch; y has none.

    Negative control: the gradient of the squared Bellman error, through its target too.
    """
    found = _by_action(c, c.delta.unsqueeze(-1) * c.feature, c.action)
    if residual:
        found = found - _by_action(c, c.delta.unsqueeze(-1) * c.following, c.best)
    return Sides(_slope(c, None), found)


@rows.equality("1.11", "Q-network's loss beyond the Huber threshold", regression, tested="losses.huber_loss")
def huber_gradient(c: Regression) -> Sides:
    """clip(Q(s, a) - y, -c, c) grad Q(s, a)."""
    return Sides(_slope(c, 0.5), _by_action(c, c.delta.clamp(-0.5, 0.5).unsqueeze(-1) * c.feature, c.action))


def _slope(c: Regression, threshold: float | None) -> Tensor:
    def loss(weights: Tensor) -> Tensor:
        target = losses.dqn_target(c.reward, c.next_feature @ weights.T, c.terminated, c.gamma)
        q = losses.chosen_q_value(c.feature @ weights.T, c.action)
        found = losses.value_loss(q, target) if threshold is None else losses.huber_loss(q, target, threshold)
        return found.sum()

    return gradient(loss, c.weights)


def _by_action(c: Regression, rows: Tensor, action: Tensor) -> Tensor:
    """(4, 5) the sum of the rows of every action."""
    return torch.zeros_like(c.weights).index_add(0, action, rows)


# Overestimation


class Noise(NamedTuple):
    """A next state whose three actions are all worth ``value``, and all ways of being wrong by +-size in each."""

    reward: Tensor
    value: Tensor
    size: Tensor
    gamma: float
    q_value: Tensor  # (64, 3) of the target network
    online: Tensor  # (64, 3), every combination with the other network once
    truth: Tensor  # (3,) values that differ

    @property
    def right(self) -> Tensor:
        """() r + gamma V."""
        return self.reward + self.gamma * self.value

    def dqn(self) -> Tensor:
        """(64,) the targets of DQN."""
        return losses.dqn_target(self.reward.expand(64), self.q_value, self.never, self.gamma)

    def double(self, online: Tensor) -> Tensor:
        """(64,) the targets of double DQN."""
        return losses.double_dqn_target(self.reward.expand(64), self.q_value, online, self.never, self.gamma)

    @property
    def never(self) -> Tensor:
        """(64,) nothing ends."""
        return torch.zeros(64, dtype=torch.bool)


@lru_cache(maxsize=256)
def noise(seed: int) -> Noise:
    """Errors of a size between 0.5 and 1.5, beside values of about 1."""
    draw = normal_draws(seed, 45)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=F64)
    pairs = torch.tensor(list(itertools.product(range(8), repeat=2)))
    value, size = draw(), 0.5 + torch.sigmoid(draw())
    q, online = (value + size * signs[rows] for rows in pairs.T)
    return Noise(draw(), value, size, 0.9, q, online, draw(3))


@rows.equality("1.11", "DQN's overestimation, errors listed", noise, tested="losses.dqn_target")
@rows.control("1.11", "no overestimation by DQN", noise, tested="losses.dqn_target", unbiased=True)
def overestimation(c: Noise, unbiased: bool = False) -> Sides:
    """DQN's is too high by gamma E[max of the errors]: the size, unless all three are down.

    Negative control: DQN's mean target is right, where errors have mean 0.
    """
    return Sides(c.dqn().mean(), c.right if unbiased else c.right + c.gamma * c.size * (7.0 / 8.0 - 1.0 / 8.0))


@rows.equality("1.11", "no overestimation by double DQN", noise, tested="losses.double_dqn_target")
@rows.control("1.11", "the same with one network", noise, tested="losses.double_dqn_target", one_network=True)
def double_is_unbiased(c: Noise, one_network: bool = False) -> Sides:
    """With errors of its own, the network that picks the action leaves the mean target where it belongs.

    Negative control: both networks make the same errors.
    """
    return Sides(c.double(c.q_value if one_network else c.online).mean(), c.right)


@rows.inequality("1.11", "double DQN's target <= DQN's", noise, tested="losses.double_dqn_target")
def double_is_no_higher(c: Noise) -> Sides:
    """Target by target, whatever the values are."""
    moved = c._replace(q_value=c.q_value + c.truth)
    return Sides(moved.double(c.online + c.truth), moved.dqn())
