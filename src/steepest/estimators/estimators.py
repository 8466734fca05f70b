"""The estimators of the policy gradient, and what they see (notes 1.2 to 1.8, 1.10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steepest import losses, returns
from steepest.distributions import Categorical

F64 = torch.float64
Objective = Literal["discounted", "undiscounted", "average"]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """N recordings, time-major; row t is step t of its episode, and rows after the episode's end have valid False."""

    state: Tensor  # (T+1, N) int64
    action: Tensor  # (T, N) int64
    reward: Tensor  # (T, N)
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool
    log_prob: Tensor  # (T, N) nats, of the policy that acted
    weight: Tensor  # (T, 1) of a step in the objective: gamma^t (discounted), 1 (undiscounted), 1/T (average)

    def batch(self, index: int, size: int) -> Trajectories:
        """The columns of one estimate, without the rows in which all of them are over."""
        columns = slice(index * size, (index + 1) * size)
        rows = int(self.valid[:, columns].any(1).sum())
        whole = (self.action, self.reward, self.terminated, self.truncated, self.valid, self.log_prob)
        state, weight = self.state[: rows + 1, columns], self.weight[:rows]
        return Trajectories(state, *(x[:rows, columns] for x in whole), weight=weight)

    @property
    def steps(self) -> int:
        """Environment steps, over all recordings."""
        return int(self.valid.sum())


@dataclass(frozen=True, eq=False)
class Context:
    """What is known besides the batch: exact solutions, and what was learned from independent earlier data.

    ``value`` and ``gain`` are exact; ``learned_value``, ``learned_gain``, ``constant`` and ``component_baseline`` are
    fitted once, to ``FIT_BATCHES`` times as much data as one estimate gets, and stay fixed: their error is bias, not
    variance. In the average-reward objective values are differential and gamma is 1; in the others both gains are 0.
    """

    objective: Objective
    gamma: float
    policy: Tensor  # (S, A)
    behaviour: Tensor  # (S, A)
    value: Tensor  # (S,)
    gain: float
    learned_value: Tensor  # (S,)
    learned_gain: float
    constant: float
    component_baseline: Tensor  # (S, A)


Function = Callable[[Trajectories, Tensor, Context], Tensor]
"""(data, theta, context) -> a loss, whose negative gradient is the estimate, or the estimate in theta's shape."""


# Estimators


def surrogate_loss(data: Trajectories, theta: Tensor, advantage: Tensor, weight: Tensor | None = None) -> Tensor:
    """The score-function loss of a batch, a scalar: minus its gradient is the estimate.

    Equation:  L = 1/N sum_n sum_t w_t (-log pi(a_t|s_t) A_t), over the steps that were decided
    Source:    notes 1.2 to 1.5.
    Args:      theta (S, A) logits, carries gradient; advantage (T, N), detached; weight: of each step, data.weight
               unless given
    Verified:  tests/exact/test_estimators.py::test_unbiased_estimators_are_unbiased
    """
    policy = Categorical(torch.log_softmax(theta, -1)[data.state[:-1]])
    per_step = losses.score_function_loss(policy.log_prob(data.action), advantage)
    return (per_step * (data.weight if weight is None else weight) * data.valid).sum(0).mean()


def flags(data: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """terminated, truncated, valid."""
    return data.terminated, data.truncated, data.valid


def to_go_of(data: Trajectories, reward: Tensor, gamma: float) -> Tensor:
    """(T, N) the shipped reward-to-go, without bootstrap."""
    return returns.reward_to_go(reward, torch.zeros(data.state.shape, dtype=F64), *flags(data), gamma)


def full_return(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Every score times the return of the whole episode (notes 1.2)."""
    total = to_go_of(data, data.reward, context.gamma)[:1].expand_as(data.reward)
    # The return is discounted already: gamma^t belongs to sums that begin at t.
    return surrogate_loss(data, theta, total, torch.ones_like(data.weight))


def reward_to_go(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Causality: every score times the rewards that follow it (notes 1.3)."""
    return surrogate_loss(data, theta, to_go_of(data, data.reward - context.learned_gain, context.gamma))


def constant_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less one number, its weighted mean over earlier data (notes 1.4)."""
    return surrogate_loss(data, theta, to_go_of(data, data.reward, context.gamma) - context.constant)


def learned_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less a tabular value that was learned from earlier data (notes 1.4)."""
    to_go = to_go_of(data, data.reward - context.learned_gain, context.gamma)
    return surrogate_loss(data, theta, to_go - context.learned_value[data.state[:-1]])


def exact_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less the exact value (notes 1.4)."""
    to_go = to_go_of(data, data.reward - context.gain, context.gamma)
    return surrogate_loss(data, theta, to_go - context.value[data.state[:-1]])


def optimal_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less, in every component of the gradient, the constant that minimises its variance.

    Equation:  g = X - b Y,  X = sum_t w_t grad log pi_t G_t,  Y = sum_t w_t grad log pi_t,  b_k = E[X_k Y_k] / E[Y_k^2]
    Source:    notes 1.4; Peters & Schaal 2008, section 3.2, for the reward-to-go. E[Y] = 0, so b is the regression
               coefficient of X on Y. The expectations are means over earlier data.
    Verified:  tests/exact/test_estimators.py::test_variances_are_ordered
    """
    to_go = to_go_of(data, data.reward, context.gamma)
    x, y = (torch.autograd.grad(-surrogate_loss(data, theta, a), theta)[0] for a in (to_go, torch.ones_like(to_go)))
    return x - context.component_baseline * y


def _critic_errors(data: Trajectories, context: Context, value: Tensor, gain: float) -> Tensor:
    v = value[data.state]
    return returns.td_error(data.reward - gain, v[:-1], v[1:], data.terminated, context.gamma)


def actor_critic_exact(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """The TD error of the exact value as advantage (notes 1.5, 1.8)."""
    return surrogate_loss(data, theta, _critic_errors(data, context, context.value, context.gain))


def actor_critic(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """The TD error of a value learned from earlier data as advantage (notes 1.5, 1.8)."""
    return surrogate_loss(data, theta, _critic_errors(data, context, context.learned_value, context.learned_gain))


def n_step(n: int) -> Function:
    """The n-step advantage with the learned value: A_t = sum_{l < n} gamma^l delta_{t+l} (notes 1.10)."""

    def estimator(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
        delta = _critic_errors(data, context, context.learned_value, context.learned_gain) * data.valid
        advantage = delta.clone()
        for ahead in range(1, min(n, len(delta))):
            advantage[:-ahead] += context.gamma**ahead * delta[ahead:]
        return surrogate_loss(data, theta, advantage)

    return estimator


def gae(gae_lambda: float) -> Function:
    """Generalised advantage estimation with the learned value (notes 1.10)."""

    def estimator(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
        reward, value = data.reward - context.learned_gain, context.learned_value[data.state]
        advantage = returns.generalized_advantage(reward, value, *flags(data), context.gamma, gae_lambda)
        return surrogate_loss(data, theta, advantage)

    return estimator


def _running_ratio(data: Trajectories, theta: Tensor) -> Tensor:
    """(T, N) the product of pi / beta up to and including each step."""
    policy = Categorical(torch.log_softmax(theta.detach(), -1)[data.state[:-1]])
    return ((policy.log_prob(data.action) - data.log_prob) * data.valid).cumsum(0).exp()


def importance_trajectory(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Off-policy reward-to-go, every episode weighted by the ratio of its whole probability (notes 1.6)."""
    ratio = _running_ratio(data, theta)[-1]
    return surrogate_loss(data, theta, ratio * to_go_of(data, data.reward, context.gamma))


def importance_per_decision(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Off-policy reward-to-go, every reward weighted by the ratios up to its own step.

    Equation:  A_t = sum_{t' >= t} gamma^{t'-t} rho_0 ... rho_{t'} r_{t'},  rho = pi / beta
    Source:    notes 1.6; Precup, Sutton & Singh 2000: later actions change nothing about an earlier reward.
    Verified:  tests/exact/test_estimators.py::test_unbiased_estimators_are_unbiased
    """
    return surrogate_loss(data, theta, to_go_of(data, _running_ratio(data, theta) * data.reward, context.gamma))


Group = Literal["Monte Carlo", "baseline", "actor-critic", "n-step", "GAE", "off-policy", "own"]
_EPISODES: tuple[Objective, ...] = ("discounted", "undiscounted")
ANY: tuple[Objective, ...] = ("discounted", "undiscounted", "average")


@dataclass(frozen=True, eq=False)
class Estimator:
    """A function of ``Trajectories``, theta and ``Context``, which policy draws its data, and what it estimates."""

    name: str
    function: Function
    data: Literal["policy", "behaviour"] = "policy"
    objectives: tuple[Objective, ...] = ANY
    group: Group = "own"
    gae_lambda: float | None = None
    """Where it lies between the learned critic's TD error (0) and the learned baseline (1), for the picture."""


ESTIMATORS: dict[str, Estimator] = {
    e.name: e
    for e in (
        Estimator("full_return", full_return, objectives=("discounted",), group="Monte Carlo"),
        Estimator("reward_to_go", reward_to_go, group="Monte Carlo"),
        Estimator("constant_baseline", constant_baseline, objectives=_EPISODES, group="baseline"),
        Estimator("learned_baseline", learned_baseline, group="baseline", gae_lambda=1.0),
        Estimator("exact_baseline", exact_baseline, group="baseline"),
        Estimator("optimal_baseline", optimal_baseline, objectives=_EPISODES, group="baseline"),
        Estimator("actor_critic_exact", actor_critic_exact, group="actor-critic"),
        Estimator("actor_critic", actor_critic, group="actor-critic", gae_lambda=0.0),
        Estimator("n_step_2", n_step(2), group="n-step"),
        Estimator("n_step_5", n_step(5), group="n-step"),
        Estimator("gae_0.5", gae(0.5), group="GAE", gae_lambda=0.5),
        Estimator("gae_0.9", gae(0.9), group="GAE", gae_lambda=0.9),
        Estimator("gae_0.98", gae(0.98), group="GAE", gae_lambda=0.98),
        Estimator("importance_per_decision", importance_per_decision, "behaviour", _EPISODES, "off-policy"),
        Estimator("importance_trajectory", importance_trajectory, "behaviour", _EPISODES, "off-policy"),
    )
}
"""The estimators of the notes, by name."""
