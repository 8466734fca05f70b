"""Problems with something to choose, episodes of a policy, and what is learned from earlier ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from steepest import problems, returns
from steepest.distributions import Categorical
from steepest.errors import UsageError
from steepest.estimators.estimators import F64, Objective, Trajectories, flags
from steepest.exact import finite_mdp as mdps
from steepest.exact import optimal
from steepest.exact.finite_mdp import FiniteMDP
from steepest.files.space import require_space
from steepest.problems import Problem

TAIL = 1e-6
"""A recording stops where no more than this share of the episodes, or of the discount, is left."""
LONGEST = 20_000
"""Steps after which a policy counts as one that does not get anywhere."""


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
    solution = optimal.value_iteration(mdp)
    return (solution.action_value - solution.action_value.amax(1, keepdim=True)).clamp_min(-3.0)


# Sampling


def recording_length(mdp: FiniteMDP, policy: Tensor) -> tuple[int, float]:
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
    need = 8 * recordings * len(problem.initial)
    require_space(need, f"sampling {recordings:,} episodes at a time", "give fewer repeats or steps")
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


def mean_by_state(data: Trajectories, target: Tensor, states: int) -> Tensor:
    """(S,) the mean of (T, N) targets over the visits to each state; 0 where there was none.

    Of the reward-to-go it is the Monte-Carlo critic.
    """
    visited = data.state[:-1][data.valid]
    total = torch.zeros(states, dtype=F64).index_add(0, visited, target[data.valid])
    return total / torch.bincount(visited, minlength=states).clamp_min(1)


def fit_differential_value(data: Trajectories, states: int, gain: float) -> Tensor:
    """(S,) a bootstrapped critic: the fixed point of the mean lambda-return (lambda 0.9), with mean zero."""
    value = torch.zeros(states, dtype=F64)
    for _ in range(100):
        target = returns.lambda_return(data.reward - gain, value[data.state], *flags(data), 1.0, 0.9)
        value = mean_by_state(data, target, states)
        value = value - value[data.state[:-1]].mean()
    return value


def component_baseline(data: Trajectories, theta: Tensor, to_go: Tensor) -> Tensor:
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
