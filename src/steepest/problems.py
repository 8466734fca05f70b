"""Small decision problems of the literature as tables of numbers: transitions, rewards, first states, known optima.

Numbers only, for two readers: ``exact.finite_mdp`` solves them, ``environments.finite`` steps through them.
A state in which every action stays and pays nothing is *absorbing*: there the episode is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Published(NamedTuple):
    """A number that the literature states, or that follows from its table by hand, and where from."""

    value: float | tuple[float, ...]
    source: str


@dataclass(frozen=True, eq=False)
class Problem:
    """The table of a finite decision problem.

    transition (S, A, S): probabilities; reward (S, A): expected; initial (S,): probabilities of the first state.
    outcome_reward (S, A, S): rewards by where the step leads, where they depend on it; None: the reward is certain.
    features (S, F): how a learner sees a state; None: by its index.
    behaviour (S, A): the policy that the source generates experience with, where it names one.
    """

    name: str
    transition: Array
    reward: Array
    initial: Array
    gamma: float
    description: str
    published: Mapping[str, Published] = field(default_factory=dict[str, Published])
    outcome_reward: Array | None = None
    features: Array | None = None
    behaviour: Array | None = None

    @property
    def num_states(self) -> int:
        """S, absorbing states included."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the same in every state."""
        return self.transition.shape[1]

    @property
    def absorbing(self) -> NDArray[np.bool_]:
        """(S,) True where every action stays and pays nothing."""
        stays = np.diagonal(self.transition, axis1=0, axis2=2).T == 1.0
        return (stays & (self.reward == 0.0)).all(axis=1)


def riverswim(states: int = 6, gamma: float = 0.99) -> Problem:
    """Swimming against the current: a small reward downstream, a large one upstream. Continuing.

    Action 0 drifts left, surely. Action 1 swims right: from the left bank it advances with 0.6, from the middle with
    0.35 (and is carried back with 0.05), and on the right bank it holds with 0.6. Rewards: 0.005 for drifting at the
    left bank, 1 for swimming at the right bank.

    Source:    Strehl & Littman 2008, with the numbers of Osband, Russo & Van Roy 2013, Figure 1.
    Verified:  tests/exact/test_finite_mdp.py::test_optimal_gain_of_riverswim
    """
    _at_least("states", states, 2)
    last = states - 1
    transition = np.zeros((states, 2, states))
    for s in range(states):
        transition[s, 0, max(s - 1, 0)] = 1.0
    transition[0, 1, [0, 1]] = 0.4, 0.6
    for s in range(1, last):
        transition[s, 1, [s - 1, s, s + 1]] = 0.05, 0.6, 0.35
    transition[last, 1, [last - 1, last]] = 0.4, 0.6
    reward = np.zeros((states, 2))
    reward[0, 0], reward[last, 1] = 0.005, 1.0
    published: dict[str, Published] = {}
    if states == 6:
        # Swimming right is a birth-death chain: each state's weight is its left neighbour's times up over down.
        weights = np.cumprod([1.0, 0.6 / 0.05, 0.35 / 0.05, 0.35 / 0.05, 0.35 / 0.05, 0.35 / 0.4])
        published["optimal_gain"] = Published(
            float(weights[-1] / weights.sum()),
            "always swimming right, by detailed balance from the table of Osband et al. 2013",
        )
    description = "Swim right against the current, or drift left for a small reward."
    return Problem("RiverSwim", transition, reward, _one_hot(0, states), gamma, description, published)


def random_walk(states: int = 5, gamma: float = 1.0) -> Problem:
    """A walk that steps left or right with probability 1/2 and ends beyond either side; there is one action.

    The last state is the end. With 19 states the left side pays -1 (Example 7.1); otherwise it pays 0 (Example 6.2).
    The right side pays 1.

    Source:    Sutton & Barto 2018, Examples 6.2 and 7.1.
    Verified:  tests/exact/test_finite_mdp.py::test_random_walk_values
    """
    _at_least("states", states, 2)
    left = -1.0 if states == 19 else 0.0
    end = states
    transition = np.zeros((states + 1, 1, states + 1))
    outcome_reward = np.zeros_like(transition)
    for s in range(states):
        transition[s, 0, s - 1 if s > 0 else end] = 0.5
        transition[s, 0, s + 1 if s < states - 1 else end] = 0.5
    transition[end, 0, end] = 1.0
    outcome_reward[0, 0, end], outcome_reward[states - 1, 0, end] = left, 1.0
    published: dict[str, Published] = {}
    if gamma == 1.0 and states in (5, 19):
        chances = [(s + 1) / (states + 1) for s in range(states)]
        published["values"] = Published(
            tuple(p + (1 - p) * left for p in chances),
            f"Sutton & Barto 2018, Example {'6.2' if states == 5 else '7.1'}",
        )
    return Problem(
        name="RandomWalk",
        transition=transition,
        reward=(transition * outcome_reward).sum(axis=2),
        initial=_one_hot(states // 2, states + 1),
        gamma=gamma,
        description="Left or right with equal chances until an end; only prediction, nothing to choose.",
        published=published,
        outcome_reward=outcome_reward,
    )


def access_control(
    servers: int = 10,
    priorities: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0),
    free_probability: float = 0.06,
    gamma: float = 0.99,
) -> Problem:
    """Customers of several priorities ask for a server; reject or accept the one at the head of the queue. Continuing.

    State ``free * len(priorities) + k``: free servers, and a customer who pays ``priorities[k]``. Action 0 rejects, 1
    accepts, which without a free server is a rejection. Then each busy server, the newly taken one included, becomes
    free with ``free_probability``, and the next customer is of any priority with equal chances.

    Source:    Sutton & Barto 2018, Example 10.2. Differences: none; the order of events is that of the example's text.
    Verified:  tests/exact/test_finite_mdp.py::test_optimal_gain_of_the_access_control_queue
    """
    _at_least("servers", servers, 1)
    _at_least("the number of priorities", len(priorities), 1)
    if not 0.0 < free_probability < 1.0:
        raise ValueError(f"free_probability is {free_probability}; it must lie strictly between 0 and 1.")
    kinds = len(priorities)
    states = (servers + 1) * kinds
    transition = np.zeros((states, 2, states))
    reward = np.zeros((states, 2))
    for free in range(servers + 1):
        for k, pay in enumerate(priorities):
            for action in range(2):
                accepted = action == 1 and free > 0
                s, left = free * kinds + k, free - accepted
                reward[s, action] = pay if accepted else 0.0
                busy = servers - left
                for freed in range(busy + 1):
                    chance = comb(busy, freed) * free_probability**freed * (1 - free_probability) ** (busy - freed)
                    to = (left + freed) * kinds
                    transition[s, action, to : to + kinds] += chance / kinds
    initial = np.zeros(states)
    initial[servers * kinds :] = 1.0 / kinds
    published: dict[str, Published] = {}
    if (servers, priorities, free_probability) == (10, (1.0, 2.0, 4.0, 8.0), 0.06):
        published["learned_gain"] = Published(
            2.31,
            "Sutton & Barto 2018, Example 10.2: the running estimate of a learner that explores; the optimum is higher",
        )
    description = "Accept or reject customers who pay by priority, with a limited number of servers."
    return Problem("AccessControl", transition, reward, initial, gamma, description, published)


def baird(gamma: float = 0.99) -> Problem:
    """Baird's star of seven states, on which off-policy semi-gradient methods diverge. Continuing.

    Action 0 ("dashed") leads to any of the six upper states with equal chances, action 1 ("solid") to the seventh.
    Nothing pays, so every value is 0. The behaviour takes dashed with 6/7; the target policy always takes solid.

    Source:    Sutton & Barto 2018, Section 11.2, Figure 11.1; features: upper state i is 2 w_i + w_8, the seventh is
               w_7 + 2 w_8.
    Verified:  tests/unit/test_problems.py::test_baird_diverges_off_policy
    """
    transition = np.zeros((7, 2, 7))
    transition[:, 0, :6] = 1.0 / 6.0
    transition[:, 1, 6] = 1.0
    features = np.zeros((7, 8))
    features[:6, :6] = 2.0 * np.eye(6)
    features[:6, 7] = 1.0
    features[6, 6], features[6, 7] = 1.0, 2.0
    return Problem(
        name="Baird",
        transition=transition,
        reward=np.zeros((7, 2)),
        initial=np.full(7, 1.0 / 7.0),
        gamma=gamma,
        description="Baird's star: rewards are 0, and semi-gradient TD under its features diverges off-policy.",
        published={"values": Published((0.0,) * 7, "Sutton & Barto 2018, Section 11.2")},
        features=features,
        behaviour=np.tile([6.0 / 7.0, 1.0 / 7.0], (7, 1)),
    )


def cliff_walking(gamma: float = 1.0) -> Problem:
    """From one corner of a 4 x 12 grid to the other, along a cliff: -1 a step, -100 and back to the start in the cliff.

    State ``12 * row + column``; actions 0 up, 1 right, 2 down, 3 left, as in Gymnasium. State 47 is the goal and ends
    the episode. The cliff, states 37 to 46, is never stood on.

    Source:    Sutton & Barto 2018, Example 6.6.
    Verified:  tests/exact/test_finite_mdp.py::test_cliff_walking_optimum
    """
    rows, columns = 4, 12
    states = rows * columns
    start, goal = (rows - 1) * columns, states - 1
    transition = np.zeros((states, 4, states))
    reward = np.zeros((states, 4))
    for s in range(states - 1):
        row, column = divmod(s, columns)
        for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            to_row = min(max(row + down, 0), rows - 1)
            to_column = min(max(column + right, 0), columns - 1)
            to = to_row * columns + to_column
            fell = start < to < goal
            transition[s, action, start if fell else to] = 1.0
            reward[s, action] = -100.0 if fell else -1.0
    transition[goal, :, goal] = 1.0
    published: dict[str, Published] = {}
    if gamma == 1.0:
        published["optimal_objective"] = Published(-13.0, "Sutton & Barto 2018, Example 6.6: the path along the edge")
    description = "The shortest way to the goal runs along a cliff."
    return Problem("CliffWalking", transition, reward, _one_hot(start, states), gamma, description, published)


def two_state(gamma: float = 0.9) -> Problem:
    """Two states, stay or switch: staying in the second pays 1, in the first 0.1; switching pays nothing. Continuing.

    Everything about it can be done by hand: the optimum switches to the second state and stays.

    Source:    none; the smallest problem in which a myopic policy is wrong.
    Verified:  tests/exact/test_finite_mdp.py::test_two_states_by_hand
    """
    transition = np.zeros((2, 2, 2))
    transition[:, 0] = np.eye(2)
    transition[:, 1] = np.eye(2)[::-1]
    reward = np.array([[0.1, 0.0], [1.0, 0.0]])
    description = "Stay for a small reward, or move to where staying pays more."
    return Problem("TwoState", transition, reward, _one_hot(0, 2), gamma, description)


def garnet(
    states: int, actions: int, branching: int, seed: int, gamma: float = 0.9, terminal_probability: float = 0.0
) -> Problem:
    """A random problem: each action leads to ``branching`` states drawn without replacement; rewards are normal.

    With ``terminal_probability`` above 0, one more state is the end, reached from everywhere with that probability, so
    that every policy terminates and gamma may be 1. Without, it is continuing.

    Source:    Archibald, McKinnon & Thomas 1995; Bhatnagar et al. 2009, Section 6. Differences: probabilities are drawn
               from the flat Dirichlet distribution; the first state is random, every state having some chance.
    Verified:  tests/unit/test_problems.py::test_garnets_are_as_described
    """
    _at_least("states", states, 1)
    _at_least("actions", actions, 1)
    if not 1 <= branching <= states:
        raise ValueError(f"branching is {branching}; it must be between 1 and the number of states, {states}.")
    if not 0.0 <= terminal_probability < 1.0:
        raise ValueError(f"terminal_probability is {terminal_probability}; it must lie in [0, 1).")
    rng = np.random.default_rng(seed)
    total = states + (terminal_probability > 0.0)
    transition = np.zeros((total, actions, total))
    reward = np.zeros((total, actions))
    for s in range(states):
        for a in range(actions):
            to = rng.choice(states, size=branching, replace=False)
            transition[s, a, to] = (1.0 - terminal_probability) * rng.dirichlet(np.ones(branching))
    reward[:states] = rng.standard_normal((states, actions))
    initial = np.zeros(total)
    initial[:states] = rng.dirichlet(np.ones(states))
    if total > states:
        transition[:, :, -1] = 1.0 - transition[:, :, :-1].sum(axis=2)
    name = f"Garnet({states}, {actions}, {branching}, seed {seed})"
    return Problem(name, transition, reward, initial, gamma, "A random decision problem of a given size.")


def _one_hot(index: int, length: int) -> Array:
    out = np.zeros(length)
    out[index] = 1.0
    return out


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{what} is {value}; it must be at least {least}.")
