"""The gradient laboratory: estimators of the policy gradient against the exact one, on problems that can be solved.

Every estimator is a plain function ``(data, theta, context) -> loss`` (a scalar; minus its gradient is the estimate) or
``-> estimate`` (the shape of theta). ``compare`` draws many independent batches of episodes, hands each on-policy
estimator the very same ones, and reports bias, variance and signal-to-noise ratio. The policy is a tabular softmax,
theta (S, A) its logits; the estimators go through the shipped ``losses``, ``returns`` and ``distributions``.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from steepest import losses, problems, returns
from steepest.distributions import Categorical
from steepest.errors import UsageError
from steepest.exact import finite_mdp as mdps
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy
from steepest.files import write_bytes_atomic
from steepest.problems import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

F64 = torch.float64
Objective = Literal["discounted", "undiscounted", "average"]

TAIL = 1e-6
"""A recording stops where no more than this share of the episodes, or of the discount, is left."""
LONGEST = 20_000
"""Steps after which a policy counts as one that does not get anywhere."""
FIT_BATCHES = 10
"""Batches of earlier data, shared by all repeats, to which learned critics and baselines are fitted."""
EXPLORATION = 0.1
"""Share of uniform actions in the behaviour policy, where the problem names none."""
Z = 1.959964
"""Two-sided 95% of the normal distribution."""


# What an estimator sees


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

        def cut(x: Tensor) -> Tensor:
            return x[:rows, columns]

        return Trajectories(
            state=self.state[: rows + 1, columns],
            action=cut(self.action),
            reward=cut(self.reward),
            terminated=cut(self.terminated),
            truncated=cut(self.truncated),
            valid=cut(self.valid),
            log_prob=cut(self.log_prob),
            weight=self.weight[:rows],
        )

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


def _flags(data: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    return data.terminated, data.truncated, data.valid


def _to_go(data: Trajectories, reward: Tensor, gamma: float) -> Tensor:
    return returns.reward_to_go(reward, torch.zeros(data.state.shape, dtype=F64), *_flags(data), gamma)


def full_return(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Every score times the return of the whole episode (notes 1.2)."""
    total = _to_go(data, data.reward, context.gamma)[:1].expand_as(data.reward)
    # The return is discounted already: gamma^t belongs to sums that begin at t.
    return surrogate_loss(data, theta, total, torch.ones_like(data.weight))


def reward_to_go(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Causality: every score times the rewards that follow it (notes 1.3)."""
    return surrogate_loss(data, theta, _to_go(data, data.reward - context.learned_gain, context.gamma))


def constant_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less one number, its weighted mean over earlier data (notes 1.4)."""
    return surrogate_loss(data, theta, _to_go(data, data.reward, context.gamma) - context.constant)


def learned_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less a tabular value that was learned from earlier data (notes 1.4)."""
    to_go = _to_go(data, data.reward - context.learned_gain, context.gamma)
    return surrogate_loss(data, theta, to_go - context.learned_value[data.state[:-1]])


def exact_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less the exact value (notes 1.4)."""
    to_go = _to_go(data, data.reward - context.gain, context.gamma)
    return surrogate_loss(data, theta, to_go - context.value[data.state[:-1]])


def optimal_baseline(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Reward-to-go less, in every component of the gradient, the constant that minimises its variance.

    Equation:  g = X - b Y,  X = sum_t w_t grad log pi_t G_t,  Y = sum_t w_t grad log pi_t,  b_k = E[X_k Y_k] / E[Y_k^2]
    Source:    notes 1.4; Peters & Schaal 2008, section 3.2, for the reward-to-go. E[Y] = 0, so b is the regression
               coefficient of X on Y. The expectations are means over earlier data.
    Verified:  tests/exact/test_estimators.py::test_variances_are_ordered
    """
    to_go = _to_go(data, data.reward, context.gamma)
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
        advantage = returns.generalized_advantage(reward, value, *_flags(data), context.gamma, gae_lambda)
        return surrogate_loss(data, theta, advantage)

    return estimator


def _running_ratio(data: Trajectories, theta: Tensor) -> Tensor:
    """(T, N) the product of pi / beta up to and including each step."""
    policy = Categorical(torch.log_softmax(theta.detach(), -1)[data.state[:-1]])
    return ((policy.log_prob(data.action) - data.log_prob) * data.valid).cumsum(0).exp()


def importance_trajectory(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Off-policy reward-to-go, every episode weighted by the ratio of its whole probability (notes 1.6)."""
    ratio = _running_ratio(data, theta)[-1]
    return surrogate_loss(data, theta, ratio * _to_go(data, data.reward, context.gamma))


def importance_per_decision(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """Off-policy reward-to-go, every reward weighted by the ratios up to its own step.

    Equation:  A_t = sum_{t' >= t} gamma^{t'-t} rho_0 ... rho_{t'} r_{t'},  rho = pi / beta
    Source:    notes 1.6; Precup, Sutton & Singh 2000: later actions change nothing about an earlier reward.
    Verified:  tests/exact/test_estimators.py::test_unbiased_estimators_are_unbiased
    """
    return surrogate_loss(data, theta, _to_go(data, _running_ratio(data, theta) * data.reward, context.gamma))


Group = Literal["Monte Carlo", "baseline", "actor-critic", "n-step", "GAE", "off-policy", "own"]
_EPISODES: tuple[Objective, ...] = ("discounted", "undiscounted")
_ANY: tuple[Objective, ...] = ("discounted", "undiscounted", "average")


@dataclass(frozen=True, eq=False)
class Estimator:
    """A function of ``Trajectories``, theta and ``Context``, which policy draws its data, and what it estimates."""

    name: str
    function: Function
    data: Literal["policy", "behaviour"] = "policy"
    objectives: tuple[Objective, ...] = _ANY
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


# Problems


def walk(states: int = 9, slip: float = 0.25, gamma: float = 0.95) -> Problem:
    """A random walk with something to choose: action 0 steps left and 1 right, the other way with probability slip.

    Each step costs 0.1; the one to the right end pays 1 instead, that to the left end nothing. The first state is any.
    """
    base = problems.random_walk(states)
    end = states
    transition = np.zeros((states + 1, 2, states + 1))
    for s in range(states):
        left, right = (s - 1 if s > 0 else end), (s + 1 if s < states - 1 else end)
        for action, chance_left in enumerate((1.0 - slip, slip)):
            transition[s, action, left] += chance_left
            transition[s, action, right] += 1.0 - chance_left
    transition[end, :, end] = 1.0
    outcome_reward = np.full_like(transition, -0.1)
    outcome_reward[end] = 0.0
    outcome_reward[states - 1, :, end] = 1.0
    outcome_reward[0, :, end] = 0.0
    initial = np.where(base.absorbing, 0.0, 1.0 / states)
    return Problem(
        name="Walk",
        transition=transition,
        reward=(transition * outcome_reward).sum(2),
        initial=initial,
        gamma=gamma,
        description="Left or right, with slips, to an end that pays or one that does not.",
        outcome_reward=outcome_reward,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "walk": walk,
    "cliff_walking": problems.cliff_walking,
    "garnet": lambda: problems.garnet(8, 3, 4, 0, gamma=0.95, terminal_probability=0.1),
    "riverswim": problems.riverswim,
    "two_state": problems.two_state,
    "access_control": problems.access_control,
}
"""The problems of ``steepest estimators``, by name."""


def default_policy(problem: Problem) -> Tensor:
    """(S, A) logits of a policy half-way to the optimum: its advantages, none below -3."""
    mdp = FiniteMDP.from_problem(problem)
    solution = mdps.value_iteration(mdp)
    return (solution.action_value - solution.action_value.amax(1, keepdim=True)).clamp_min(-3.0)


# Sampling


def _recording_length(mdp: FiniteMDP, policy: Tensor) -> tuple[int, float]:
    """(T, mean length): where recordings stop, and the expected number of steps up to there."""
    p = mdps.policy_transition(mdp, policy)
    live = ~mdp.absorbing
    now, length, discount = mdp.initial, 0.0, 1.0
    for t in range(LONGEST + 1):
        alive = float(now[live].sum())
        if alive * discount <= TAIL:
            return t, length
        length += alive
        now, discount = now @ p, discount * mdp.gamma
    raise UsageError(
        f"{mdp.name}: episodes of this policy go on for more than {LONGEST} steps; choose a policy that ends sooner, a "
        "smaller gamma, or, for a continuing problem, objective 'average'."
    )


def sample(
    problem: Problem,
    policy: Tensor,
    *,
    recordings: int,
    length: int,
    generator: torch.Generator,
    objective: Objective = "discounted",
    start: Tensor | None = None,
) -> Trajectories:
    """Episodes of a policy (S, A), each up to its end or to ``length`` steps; start (S,) instead of the first states.

    Verified:  tests/exact/test_estimators.py::test_sampled_frequencies
    """
    transition = torch.from_numpy(problem.transition).cumsum(-1)
    reward = torch.from_numpy(problem.reward if problem.outcome_reward is None else problem.outcome_reward)
    over = torch.from_numpy(problem.absorbing)
    choose, log_policy = policy.cumsum(-1), policy.log()

    def draw(cumulative: Tensor) -> Tensor:
        u = torch.rand(recordings, 1, generator=generator, dtype=F64) * cumulative[..., -1:]
        return (cumulative <= u).sum(-1)

    first = torch.from_numpy(problem.initial) if start is None else start
    states, rows = [draw(first.cumsum(0).expand(recordings, -1))], list[tuple[Tensor, ...]]()
    while len(rows) < length and not bool(over[states[-1]].all()):
        s = states[-1]
        a = draw(choose[s])
        to = draw(transition[s, a])
        r = reward[s, a] if problem.outcome_reward is None else reward[s, a, to]
        rows.append((a, r, over[to] & ~over[s], ~over[s], log_policy[s, a]))
        states.append(to)
    action, earned, terminated, valid, log_prob = (torch.stack(column) for column in zip(*rows, strict=True))
    truncated = torch.zeros_like(valid)
    if len(rows) == length:
        truncated[-1] = valid[-1] & ~terminated[-1]
    steps = torch.arange(len(rows), dtype=F64).unsqueeze(1)
    weight = {
        "discounted": problem.gamma**steps,
        "undiscounted": torch.ones_like(steps),
        "average": torch.full_like(steps, 1.0 / len(rows)),
    }[objective]
    return Trajectories(torch.stack(states), action, earned, terminated, truncated, valid, log_prob, weight)


# Learning from earlier data


def _mean_by_state(data: Trajectories, target: Tensor, states: int) -> Tensor:
    """(S,) the mean of (T, N) targets over the visits to each state; 0 where there was none.

    Of the reward-to-go it is the Monte-Carlo critic.
    """
    visited = data.state[:-1][data.valid]
    total = torch.zeros(states, dtype=F64).index_add(0, visited, target[data.valid])
    return total / torch.bincount(visited, minlength=states).clamp_min(1)


def _fit_differential_value(data: Trajectories, states: int, gain: float) -> Tensor:
    """(S,) a bootstrapped critic: the fixed point of the mean lambda-return (lambda 0.9), with mean zero."""
    value = torch.zeros(states, dtype=F64)
    for _ in range(100):
        target = returns.lambda_return(data.reward - gain, value[data.state], *_flags(data), 1.0, 0.9)
        value = _mean_by_state(data, target, states)
        value = value - value[data.state[:-1]].mean()
    return value


def _component_baseline(data: Trajectories, theta: Tensor, to_go: Tensor) -> Tensor:
    """(S, A) E[X Y] / E[Y^2] of ``optimal_baseline``; 0 where a component never had a score."""
    copies = theta.detach().expand(data.action.shape[1], -1, -1).clone().requires_grad_()  # a theta per episode
    log_prob = Categorical(torch.log_softmax(copies, -1)[torch.arange(len(copies)), data.state[:-1]]).log_prob(
        data.action
    )
    weight = data.weight * data.valid
    y = torch.autograd.grad((log_prob * weight).sum(), copies, retain_graph=True)[0]
    x = torch.autograd.grad((log_prob * weight * to_go).sum(), copies)[0]
    square = y.square().sum(0)
    return torch.where(square > 0.0, (x * y).sum(0) / square.clamp_min(torch.finfo(F64).tiny), 0.0)


# Comparing


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator against the exact gradient g; biases are in units of |g|, variances of |g|^2, intervals 95%."""

    name: str
    group: Group
    data: Literal["policy", "behaviour"]
    steps: float
    """Environment steps per estimate, the mean over repeats."""
    bias: float
    """|E[estimate] - g| / |g|, less what sampling adds to it; 0 where that is more than all of it."""
    bias_interval: tuple[float, float]
    variance: float
    """tr Cov[estimate] / |g|^2."""
    variance_interval: tuple[float, float]
    snr: float
    """|E[estimate]| / sqrt(tr Cov[estimate]), less what sampling adds to the numerator."""
    cosine: float
    """The mean cosine between one estimate and g."""
    gae_lambda: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``compare`` found, and how."""

    problem: str
    objective: Objective
    gamma: float
    truth: str
    """What the estimates are compared with."""
    gradient_norm: float
    steps: int
    """Environment steps per estimate, as asked for."""
    episodes: int
    """Recordings per estimate of the on-policy estimators."""
    behaviour_episodes: int
    """Recordings per estimate of the off-policy ones."""
    repeats: int
    seed: int
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join([self.heading(), *_lines(self)])

    def heading(self) -> str:
        """What was compared, in two lines."""
        what = ("recording" if self.objective == "average" else "episode") + "s" * (self.episodes > 1)
        apart = any(r.data == "behaviour" for r in self.rows)
        each = f"{self.episodes} {what}" + (f" ({self.behaviour_episodes} off-policy)" if apart else "")
        return (
            f"{self.problem}: estimates of {self.truth}, of norm {self.gradient_norm:.4g}\n"
            f"{self.repeats} independent estimates, each from {each}, about {self.steps} steps; seed {self.seed}"
        )


def compare(
    problem: str | Problem,
    policy: Tensor | None = None,
    estimators: Sequence[str | Estimator | Function] | None = None,
    *,
    objective: Objective | None = None,
    behaviour: Tensor | None = None,
    repeats: int = 1000,
    steps: int = 250,
    seed: int = 0,
) -> Comparison:
    """Bias, variance and signal-to-noise ratio of gradient estimators, at equal numbers of environment steps.

    All on-policy estimators see the same trajectories in every repeat. Episodes are whole, since cutting them would
    bias: their number is ``steps`` over their exact mean length, rounded; off-policy ones get the number of episodes of
    the behaviour policy that takes as many steps on average.

    Equation:  bias^2 = 1/(R(R-1)) sum_{i != j} (g_i - g).(g_j - g), which is unbiased;
               variance = 1/(R-1) sum_i |g_i - mean|^2.
               Intervals: every b with |bias^2 - b^2| <= 1.96 sqrt(4 b^2 s^2 + v), s^2 the variance of the mean along
               the bias, v = 2/(R(R-1)) tr Cov^2 what is left at b = 0; for the variance, normal in its logarithm
    Source:    notes 1.2 to 1.8, 1.10; Hoeffding 1948 for the variance of a U-statistic.
    Args:      problem: a name of ``PROBLEMS`` or a table; policy: logits theta (S, A), by default half-way to the
               optimum; estimators: names of ``ESTIMATORS``, your own functions (see ``Function``) or Estimators, by
               default all that estimate this objective;
               objective: "discounted" (the gradient of the discounted return), "undiscounted" (the theorem's sum with
               states weighted by plain visits, which is no gradient at gamma < 1), "average" (the gradient of the gain,
               on a continuing problem); by default "average" where no state ends the episode, else "discounted";
               behaviour (S, A): probabilities of the off-policy data's policy, by default the problem's own, or the
               policy with ``EXPLORATION`` uniform actions; repeats, at least 10; steps per estimate
    Raises:    UsageError on unknown names, wrong shapes, numbers out of range, estimates that are not finite
    Verified:  tests/exact/test_estimators.py::test_unbiased_estimators_are_unbiased,
               tests/exact/test_estimators.py::test_wrong_estimators_are_found,
               tests/exact/test_estimators.py::test_variances_are_ordered
    """
    for name, value, least in (("repeats", repeats, 10), ("steps", steps, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}; expected at least {least}")
    problem = _find_problem(problem)
    mdp = FiniteMDP.from_problem(problem)
    continuing = not bool(mdp.absorbing.any())
    objective = objective or ("average" if continuing else "discounted")
    if objective not in _ANY:
        raise UsageError(f"objective is {objective!r}; expected one of {', '.join(_ANY)}")
    if objective == "average" and not continuing:
        raise UsageError(f"{mdp.name} has an end, so its average reward is 0; objective 'average' is for those without")
    chosen = _choose(estimators, objective)
    shape = (mdp.num_states, mdp.num_actions)
    theta = default_policy(problem) if policy is None else torch.as_tensor(policy, dtype=F64).detach()
    if tuple(theta.shape) != shape:
        raise UsageError(
            f"{mdp.name}: policy has shape {tuple(theta.shape)}; expected logits (states, actions) {shape}"
        )
    if not bool(torch.isfinite(theta).all()):
        raise UsageError(f"{mdp.name}: policy has logits that are not finite; every action needs some chance")
    pi = softmax_policy(theta)
    acting = _behaviour(problem, pi, behaviour)

    if objective == "average":
        length, mean_length, other_length, other_mean = steps, float(steps), steps, float(steps)
        start = mdps.stationary_distribution(mdp, pi)
    else:
        length, mean_length = _recording_length(mdp, pi)
        other_length, other_mean = _recording_length(mdp, acting)
        start = None
    episodes = max(1, round(steps / mean_length))
    other_episodes = max(1, round(episodes * mean_length / other_mean))
    truth, said = _truth(mdp, theta, objective, length if continuing else None)
    norm = float(truth.norm())
    if norm < 1e-12:
        raise UsageError(f"{mdp.name}: the exact gradient is 0 here, so nothing can be compared with it")

    def draw(recordings: int, off_policy: bool, stream: int) -> Trajectories:
        generator = torch.Generator().manual_seed(1_000_003 * seed + stream)
        return sample(
            problem,
            acting if off_policy else pi,
            recordings=recordings,
            length=other_length if off_policy else length,
            generator=generator,
            objective=objective,
            start=start,
        )

    context = _context(mdp, theta, acting, objective, draw(FIT_BATCHES * episodes, False, 0))
    rows: dict[str, Row] = {}
    for off_policy, size in ((False, episodes), (True, other_episodes)):
        members = [e for e in chosen if (e.data == "behaviour") == off_policy]
        if not members:
            continue
        data = draw(repeats * size, off_policy, 1 + off_policy)
        batches = [data.batch(i, size) for i in range(repeats)]
        for e in members:
            found = torch.stack([estimate(e, batch, theta, context) for batch in batches])
            rows[e.name] = _measure(e, found.flatten(1) / norm, truth.flatten() / norm, data.steps / repeats)
    return Comparison(
        problem=mdp.name,
        objective=objective,
        gamma=mdp.gamma,
        truth=said,
        gradient_norm=norm,
        steps=steps,
        episodes=episodes,
        behaviour_episodes=other_episodes,
        repeats=repeats,
        seed=seed,
        rows=tuple(rows[e.name] for e in chosen),
    )


def estimate(estimator: Estimator, data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """(S, A) what an estimator makes of one batch.

    Raises:    UsageError if it returns neither a scalar that depends on theta nor numbers in theta's shape
    Verified:  tests/exact/test_estimators.py::test_a_bad_estimator_is_one_clear_error
    """
    leaf = theta.detach().clone().requires_grad_()
    out = estimator.function(data, leaf, context)
    if not isinstance(out, Tensor) or (out.ndim > 0 and out.shape != theta.shape):  # pyright: ignore[reportUnnecessaryIsInstance]  users' functions
        what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"estimator {estimator.name} returned {what}; expected a loss (a scalar tensor) or an estimate of the "
            f"gradient in theta's shape {tuple(theta.shape)}"
        )
    if out.ndim == 0:
        if not out.requires_grad:
            raise UsageError(f"estimator {estimator.name} returned a loss that does not depend on theta")
        out = -torch.autograd.grad(out, leaf)[0]
    if not bool(torch.isfinite(out).all()):
        raise UsageError(f"estimator {estimator.name} gave an estimate that is not finite")
    return out.detach()


def _nearest(kind: str, name: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return UsageError(f"no {kind} is called {name!r}{hint} Known: {', '.join(known)}")


def _find_problem(problem: str | Problem) -> Problem:
    if isinstance(problem, Problem):
        return problem
    if problem not in PROBLEMS:
        raise _nearest("problem", problem, list(PROBLEMS))
    return PROBLEMS[problem]()


def _choose(estimators: Sequence[str | Estimator | Function] | None, objective: Objective) -> list[Estimator]:
    if estimators is None:
        return [e for e in ESTIMATORS.values() if objective in e.objectives]
    chosen: list[Estimator] = []
    for given in estimators:
        if isinstance(given, str):
            if given not in ESTIMATORS:
                raise _nearest("estimator", given, list(ESTIMATORS))
            given = ESTIMATORS[given]
        elif not isinstance(given, Estimator):
            if not callable(given):
                raise UsageError(f"{given!r} is no estimator; expected a name, a function or an Estimator")
            given = Estimator(getattr(given, "__name__", "own"), given)
        if objective not in given.objectives:
            raise UsageError(
                f"{given.name} does not estimate the {objective} objective, but {' and '.join(given.objectives)}"
            )
        if given.name in {e.name for e in chosen}:
            raise UsageError(f"two estimators are called {given.name}; give yours a name: Estimator('name', function)")
        chosen.append(given)
    if not chosen:
        raise UsageError("no estimators were given; leave them out for all that there are")
    return chosen


def _behaviour(problem: Problem, policy: Tensor, behaviour: Tensor | None) -> Tensor:
    if behaviour is None:
        if problem.behaviour is None:
            return (1.0 - EXPLORATION) * policy + EXPLORATION / policy.shape[1]
        behaviour = torch.from_numpy(problem.behaviour)
    acting = torch.as_tensor(behaviour, dtype=F64)
    if acting.shape != policy.shape:
        raise UsageError(
            f"{problem.name}: behaviour has shape {tuple(acting.shape)}; expected probabilities (states, actions) "
            f"{tuple(policy.shape)}"
        )
    if bool((acting <= 0.0).any()):
        raise UsageError(f"{problem.name}: behaviour must give every action some chance, or the ratio has no bound")
    return acting


def _truth(mdp: FiniteMDP, theta: Tensor, objective: Objective, length: int | None) -> tuple[Tensor, str]:
    if objective == "average":
        return mdps.gain_gradient(mdp, softmax_policy, theta), "the gradient of the average reward"
    if objective == "undiscounted":
        found = mdps.undiscounted_weighting_gradient(mdp, softmax_policy, theta, length)
        return found, f"the sum with undiscounted states (gamma {mdp.gamma:g}; no gradient unless gamma is 1)"
    found = mdps.objective_gradient(mdp, softmax_policy, theta)
    return found, f"the gradient of the {'discounted ' if mdp.gamma < 1.0 else ''}return (gamma {mdp.gamma:g})"


def _context(mdp: FiniteMDP, theta: Tensor, acting: Tensor, objective: Objective, data: Trajectories) -> Context:
    policy, states = softmax_policy(theta), mdp.num_states
    average = objective == "average"
    gain = float(data.reward.mean()) if average else 0.0
    to_go = _to_go(data, data.reward - gain, 1.0 if average else mdp.gamma)
    weight = data.weight * data.valid
    return Context(
        objective=objective,
        gamma=1.0 if average else mdp.gamma,
        policy=policy,
        behaviour=acting,
        value=mdps.differential_value(mdp, policy) if average else mdps.state_value(mdp, policy),
        gain=float(mdps.gain(mdp, policy)) if average else 0.0,
        learned_value=_fit_differential_value(data, states, gain) if average else _mean_by_state(data, to_go, states),
        learned_gain=gain,
        constant=float((weight * to_go).sum() / weight.sum()),
        component_baseline=_component_baseline(data, theta, to_go),
    )


def _measure(estimator: Estimator, found: Tensor, truth: Tensor, steps: float) -> Row:
    """Figures of R estimates (R, D) in units of the exact gradient's norm."""
    count = len(found)
    bias, bias_interval = _distance(found - truth)
    deviation = (found - found.mean(0)).square().sum(1)
    variance = float(deviation.sum() / (count - 1))
    spread = math.exp(Z * float(deviation.std()) / (math.sqrt(count) * variance)) if variance > 0.0 else 1.0
    length = _distance(found)[0]
    cosine = (found @ truth) / found.norm(dim=1).clamp_min(torch.finfo(F64).tiny)
    return Row(
        name=estimator.name,
        group=estimator.group,
        data=estimator.data,
        steps=steps,
        bias=bias,
        bias_interval=bias_interval,
        variance=variance,
        variance_interval=(variance / spread, variance * spread),
        snr=length / math.sqrt(variance) if variance > 0.0 else math.inf,
        cosine=float(cosine.mean()),
        gae_lambda=estimator.gae_lambda,
    )


def _distance(x: Tensor) -> tuple[float, tuple[float, float]]:
    """The norm of the mean of x (R, D), without the noise's share, and its interval."""
    n = len(x)
    pairs = n * (n - 1)
    mean = x.mean(0)
    centred = x - mean
    square = float(mean.square().sum()) - float(centred.square().sum()) / pairs
    products = centred @ centred.T
    null = 2.0 * float(products.square().sum() - products.diagonal().square().sum()) / pairs**2
    along = float((centred @ mean).var()) / (n * max(float(mean.square().sum()), torch.finfo(F64).tiny))
    # (square - b^2)^2 = z^2 (4 along b^2 + null), solved for b^2.
    centre = square + 2.0 * Z**2 * along
    reach = math.sqrt(4.0 * Z**2 * along * max(0.0, square) + 4.0 * Z**4 * along**2 + Z**2 * null)
    low, middle, high = (math.sqrt(max(0.0, y)) for y in (centre - reach, square, centre + reach))
    return middle, (low, high)


# Showing

_COLUMNS = ("estimator", "bias", "95%", "variance", "95%", "SNR", "cosine", "steps")
_LEGEND = (
    "bias: distance of the mean from the exact gradient, over its norm, sampling noise subtracted; variance: of one\n"
    "estimate, over the squared norm; SNR: norm of the mean over the root of the variance; cosine: of one estimate\n"
    f"with the exact one. Learned critics and baselines: from {FIT_BATCHES} times as much earlier data, then fixed."
)


def _number(x: float) -> str:
    return "0" if x == 0.0 else f"{x:.3g}" if 1e-3 <= x < 1e4 else f"{x:.1e}"


def _cells(row: Row) -> tuple[str, ...]:
    low, high = ("{} .. {}".format(*map(_number, x)) for x in (row.bias_interval, row.variance_interval))
    return (
        row.name,
        _number(row.bias),
        low,
        _number(row.variance),
        high,
        _number(row.snr),
        f"{row.cosine:.3f}",
        f"{row.steps:.0f}",
    )


def _lines(comparison: Comparison) -> list[str]:
    table = [_COLUMNS, *map(_cells, comparison.rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_COLUMNS))]
    return [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in table
    ]


def show(comparisons: Sequence[Comparison]) -> None:
    """Print the tables: with rules on a terminal, plain anywhere else."""
    if not sys.stdout.isatty():
        for comparison in comparisons:
            print(comparison, end="\n\n")
        print(_LEGEND)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for comparison in comparisons:
        table = Table()
        for i, name in enumerate(_COLUMNS):
            table.add_column(name, justify="right" if i else "left")
        for i, row in enumerate(comparison.rows):
            last = i + 1 == len(comparison.rows) or comparison.rows[i + 1].group != row.group
            table.add_row(*map(Text, _cells(row)), end_section=last)
        console.print(Text(comparison.heading()), table, sep="\n")
    console.print(Text(_LEGEND))


# The picture

# Okabe and Ito (2008): distinct for every common kind of colour vision.
_COLOURS: dict[Group, str] = {
    "Monte Carlo": "#333333",
    "baseline": "#0072B2",
    "actor-critic": "#D55E00",
    "n-step": "#CC79A7",
    "GAE": "#009E73",
    "off-policy": "#E69F00",
    "own": "#56B4E9",
}
_MARKERS = "os^Dv<>PX"
_INK, _FAINT_INK = "#222222", "#6B6B6B"
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.edgecolor": "none",
    "savefig.dpi": 130,
}


def plot(comparisons: Sequence[Comparison], out: str | Path) -> Path:
    """Draw bias against variance, a panel per comparison, with 95% intervals.

    Args:      out: the picture (.png, .pdf or .svg; .png when there is no ending)
    Returns:   the path written
    Raises:    UsageError on another ending, or nothing to draw; RunError when the system refuses the write
    Verified:  tests/exact/test_estimators.py::test_the_command_prints_and_draws
    """
    if not comparisons:
        raise UsageError("nothing to draw: give at least one comparison")
    out = Path(out)
    out = out if out.suffix else out.with_suffix(".png")
    check_picture(out)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looks = _looks(comparisons)
    with mpl.rc_context(_STYLE):
        count = len(comparisons)
        columns = count if count <= 3 else 2
        lines = math.ceil(count / columns)
        height = max(4.8 * lines, 0.28 * (len(looks) + 2))
        figure = Figure(figsize=(4.4 * columns + 2.4, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        handles: dict[str, Any] = {}
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat[count:]:
            axes.set_visible(False)
        for axes, comparison in zip(panels.flat, comparisons, strict=False):
            _draw(axes, comparison, looks, handles)
        for row in panels:
            row[0].set_ylabel("variance of one estimate / |exact gradient|\u00b2")
        # Beside the panels, where it can hide no point.
        legend = panels[0][-1].legend(
            [handles[name] for name in looks],
            list(looks),
            loc="upper left",
            bbox_to_anchor=(1.02, 1.02),
            frameon=False,
            title="bars: 95% intervals\ngreen line: GAE over lambda",
            title_fontproperties={"size": 9},
            alignment="left",
        )
        legend.get_title().set_color(_FAINT_INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=out.suffix[1:].lower())
    write_bytes_atomic(out, buffer.getvalue())
    return out


def check_picture(out: Path) -> None:
    """Refuse an ending that cannot be drawn, before anything is computed."""
    if out.suffix and out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"cannot draw to {out}: the ending must be .png, .pdf or .svg.")


def _looks(comparisons: Sequence[Comparison]) -> dict[str, tuple[str, str]]:
    """Colour by group and marker within it, by estimator, the same in every panel."""
    groups: dict[str, Group] = {row.name: row.group for comparison in comparisons for row in comparison.rows}
    names = [name for name in ESTIMATORS if name in groups]
    looks: dict[str, tuple[str, str]] = {}
    met: dict[Group, int] = {}
    for name in [*names, *(name for name in groups if name not in names)]:
        number = met.get(groups[name], 0)
        looks[name] = _COLOURS[groups[name]], _MARKERS[number % len(_MARKERS)]
        met[groups[name]] = number + 1
    return looks


def _draw(axes: Axes, comparison: Comparison, looks: Mapping[str, tuple[str, str]], handles: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # In one recording without an end the learned baseline is not quite lambda 1: it does not bootstrap.
    longest = 0.99 if comparison.objective == "average" else 1.0
    traces = ((r.gae_lambda, r.bias, r.variance) for r in comparison.rows if r.gae_lambda is not None)
    path = sorted(trace for trace in traces if trace[0] <= longest)
    axes.plot([p[1] for p in path], [p[2] for p in path], color=_COLOURS["GAE"], linewidth=1, alpha=0.5)
    for row in comparison.rows:
        colour, marker = looks[row.name]
        axes.errorbar(
            row.bias,
            row.variance,
            xerr=[[row.bias - row.bias_interval[0]], [row.bias_interval[1] - row.bias]],
            yerr=[[row.variance - row.variance_interval[0]], [row.variance_interval[1] - row.variance]],
            fmt="none",
            ecolor=colour,
            elinewidth=1.1,
        )
        (handles[row.name],) = axes.plot(
            row.bias,
            row.variance,
            marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.7,
            clip_on=False,
            zorder=3,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    # The interval of an estimator of huge variance says little about bias: it may leave the picture.
    furthest = max(row.bias for row in comparison.rows)
    usual = float(np.median([row.bias_interval[1] for row in comparison.rows]))
    axes.set_xlim(0.0, 1.15 * max(furthest, 2.0 * usual))
    axes.set_xlabel("bias / |exact gradient|")
    axes.set_title(comparison.problem, loc="left", fontweight="bold", pad=22)
    what = {
        "discounted": f"return, gamma {comparison.gamma:g}",
        "undiscounted": f"undiscounted states, gamma {comparison.gamma:g}",
        "average": "average reward",
    }[comparison.objective]
    facts = f"{what}  \u00b7  {comparison.repeats} estimates, {comparison.steps} steps each"
    axes.annotate(
        facts,
        xy=(0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        color=_FAINT_INK,
        fontsize=9,
    )
