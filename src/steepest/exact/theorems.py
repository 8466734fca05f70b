"""Every displayed identity and numbered statement of the notes as one function that returns both of its sides.

A function takes a random problem (``Process``, ``Recording``, ``Dataset``, ``Control``, ``Preferences``) and computes
left and right by different routes: a sum over every trajectory against a linear solve, a formula against automatic
differentiation. Where the notes misprint a formula, the printed form stands beside it as a negative control, which has
to fail. ``STATEMENTS`` lists them all; ``steepest verify`` runs them. Units are those of ``finite_mdp``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import language as languages
from steepest.exact import lqr
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy

F64 = torch.float64
Kind = Literal["equality", "inequality", "negative control"]
EQUALITY: Kind = "equality"
INEQUALITY: Kind = "inequality"
CONTROL: Kind = "negative control"

TOLERANCE = 1e-9
"""The largest norm-wise relative error of an equality, and by how much rounding may carry an inequality past 1."""
CONTROL_THRESHOLD = 1e-3
"""A negative control fails, as it should, where its norm-wise relative error is above this ..."""
CONTROL_SHARE = 0.9
"""... and it has to fail on at least this share of the random problems."""


class Sides(NamedTuple):
    """The two sides of a statement: left = right, or left <= right in every entry.

    ``scale`` is the norm that a difference is measured against where both sides may be zero.
    """

    left: Tensor
    right: Tensor
    scale: float = 0.0


@dataclass(frozen=True)
class Statement:
    """One row of the verification: a claim, how to draw a problem for it, and its two sides there.

    ``tested`` is the dotted name of the shipped function that one of the sides goes through, or "exact".
    """

    section: str
    claim: str
    kind: Kind
    problem: Callable[[int], Any]
    sides: Callable[[Any], Sides]
    tested: str = "exact"

    def at(self, seed: int) -> Sides:
        """Both sides for one random problem."""
        return self.sides(self.problem(seed))


def relative_error(sides: Sides) -> float:
    """Norm-wise relative error of an equality.

    Equation:  |left - right| / max(|left|, |right|, scale), Euclidean norms; 0 where both sides agree to the bit
    Raises:    ValueError if the sides have different shapes: broadcasting would hide a mistake
    Verified:  tests/exact/test_theorems.py::test_relative_error_and_tightness
    """
    _check_shapes(sides)
    difference = float((sides.left - sides.right).norm())
    if difference == 0.0:
        return 0.0
    return difference / max(float(sides.left.norm()), float(sides.right.norm()), sides.scale)


def tightness(sides: Sides) -> float:
    """How close an inequality comes to its bound, over all entries: at most 1 where it holds, 1 where it is attained.

    Equation:  max of 1 - (right - left) / max(|left|, |right|), which is left / right for positive sides
    Raises:    ValueError if the sides have different shapes
    Verified:  tests/exact/test_theorems.py::test_relative_error_and_tightness
    """
    _check_shapes(sides)
    larger = torch.maximum(sides.left.abs(), sides.right.abs())
    # An entry that is nothing but rounding beside the others must not decide.
    size = larger.clamp(min=1e-6 * max(float(larger.max()), sides.scale)).clamp(min=1e-300)
    return float((1.0 - (sides.right - sides.left) / size).max())


def _check_shapes(sides: Sides) -> None:
    if sides.left.shape != sides.right.shape:
        raise ValueError(f"the sides have shapes {tuple(sides.left.shape)} and {tuple(sides.right.shape)}")


# Random problems


class Paths(NamedTuple):
    """Every trajectory of an episodic process, time-major over K trajectories; rows after the end have valid False."""

    state: Tensor  # (T+1, K) int64; after the end, the absorbing state
    action: Tensor  # (T, K) int64
    reward: Tensor  # (T, K)
    terminated: Tensor  # (T, K) bool
    valid: Tensor  # (T, K) bool
    probability: Tensor  # (K,)


HORIZON = 3
"""No episode of ``episodic`` is longer."""

SOFT_TEMPERATURE = 0.4
"""Reward units per nat."""

TRUST_REGION = 0.01
"""Nats: how far a step may go, as TRPO's authors chose it."""

CONSERVATIVE_WEIGHT = 0.7
"""The alpha of conservative Q-learning, where no threshold decides it."""


@dataclass(frozen=True, eq=False)
class Process:
    """A random process with two softmax policies, an arbitrary function of state and action, and one of the state."""

    mdp: FiniteMDP
    theta: Tensor
    other_theta: Tensor
    function: Tensor
    baseline: Tensor

    @cached_property
    def policy(self) -> Tensor:
        """(S, A) pi."""
        return softmax_policy(self.theta)

    @cached_property
    def other(self) -> Tensor:
        """(S, A) pi', or the behaviour policy."""
        return softmax_policy(self.other_theta)

    @cached_property
    def paths(self) -> Paths:
        """The trajectories of pi."""
        return list_paths(self.mdp, self.policy)

    @cached_property
    def other_paths(self) -> Paths:
        """The trajectories of pi'."""
        return list_paths(self.mdp, self.other)

    @cached_property
    def gradient(self) -> Tensor:
        """(S, A) the gradient of the objective, by automatic differentiation through the linear solve."""
        return mdps.objective_gradient(self.mdp, softmax_policy, self.theta)

    @cached_property
    def trajectory_scores(self) -> Tensor:
        """(K, S, A) grad log P_theta(tau) of every trajectory, by automatic differentiation."""
        leaf = self.theta.detach().clone().requires_grad_()
        log_p = _log_probability(self, leaf)
        v = torch.zeros_like(log_p, requires_grad=True)
        # J'v is linear in v, and its derivative is J': one pass per parameter instead of one per trajectory.
        (weighted,) = torch.autograd.grad(log_p, leaf, v, create_graph=True)
        columns = [torch.autograd.grad(x, v, retain_graph=True)[0] for x in weighted.flatten()]
        return torch.stack(columns, -1).view(-1, *self.theta.shape)

    @cached_property
    def discounts(self) -> Tensor:
        """(T, 1) gamma^t."""
        return (self.mdp.gamma ** torch.arange(HORIZON, dtype=F64)).unsqueeze(-1)

    @cached_property
    def returns(self) -> Tensor:
        """(K,) R(tau), discounted, of every trajectory."""
        return (self.discounts * self.paths.reward).sum(0)

    @cached_property
    def soft(self) -> mdps.Solution:
        """The maximum-entropy optimum at SOFT_TEMPERATURE."""
        return mdps.soft_optimal(self.mdp, SOFT_TEMPERATURE)

    def undiscounted(self) -> Process:
        """The same process with gamma = 1."""
        return replace(self, mdp=self.mdp.with_gamma(1.0))


def list_paths(mdp: FiniteMDP, policy: Tensor) -> Paths:
    """All trajectories of a process whose episodes end within HORIZON steps, padded to that length."""
    listed = list(mdps.trajectories(mdp, policy, HORIZON))
    end = int(mdp.absorbing.nonzero()[0])

    def padded(rows: list[list[Any]], length: int, filling: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *([filling] * (length - len(row)))] for row in rows], dtype=dtype).T

    return Paths(
        padded([list(s) for _, s, _, _ in listed], HORIZON + 1, end, torch.int64),
        padded([list(a) for _, _, a, _ in listed], HORIZON, 0, torch.int64),
        padded([list(r) for _, _, _, r in listed], HORIZON, 0.0, F64),
        padded([[False] * (len(a) - 1) + [s[-1] == end] for _, s, a, _ in listed], HORIZON, False, torch.bool),
        padded([[True] * len(a) for _, _, a, _ in listed], HORIZON, False, torch.bool),
        torch.tensor([p for p, _, _, _ in listed], dtype=F64),
    )


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * purpose + seed)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=F64)


def _uniform(g: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=g, dtype=F64))


def _probabilities(g: torch.Generator, *shape: int) -> Tensor:
    """Rows drawn uniformly from the simplex."""
    draw = -torch.log(torch.rand(shape, generator=g, dtype=F64).clamp(min=1e-12))
    return draw / draw.sum(-1, keepdim=True)


def _process(g: torch.Generator, mdp: FiniteMDP) -> Process:
    shape = (mdp.num_states, mdp.num_actions)
    return Process(mdp, _normal(g, *shape), _normal(g, *shape), _normal(g, *shape), 2.0 * _normal(g, mdp.num_states))


@lru_cache(maxsize=256)
def continuing(seed: int) -> Process:
    """Five states, three actions, every transition possible, gamma between 0.6 and 0.95."""
    g = _generator(seed, 1)
    mdp = FiniteMDP(_probabilities(g, 5, 3, 5), _normal(g, 5, 3), _probabilities(g, 5), _uniform(g, 0.6, 0.95))
    return _process(g, mdp)


@lru_cache(maxsize=256)
def episodic(seed: int) -> Process:
    """Three layers of two states and an absorbing one; each step may end the episode, the third does."""
    g = _generator(seed, 2)
    states = 2 * HORIZON + 1
    transition = torch.zeros((states, 2, states), dtype=F64)
    for layer in range(HORIZON):
        rows = slice(2 * layer, 2 * layer + 2)
        if layer + 1 < HORIZON:
            draw = _probabilities(g, 2, 2, 3)
            transition[rows, :, 2 * layer + 2 : 2 * layer + 4] = draw[..., :2]
            transition[rows, :, -1] = draw[..., 2]
        else:
            transition[rows, :, -1] = 1.0
    transition[-1, :, -1] = 1.0
    reward = torch.cat([_normal(g, states - 1, 2), torch.zeros((1, 2), dtype=F64)])
    initial = torch.cat([_probabilities(g, 2), torch.zeros(states - 2, dtype=F64)])
    return _process(g, FiniteMDP(transition, reward, initial, _uniform(g, 0.6, 0.95)))


@lru_cache(maxsize=256)
def undiscounted_episodic(seed: int) -> Process:
    """``episodic`` with gamma = 1."""
    return episodic(seed).undiscounted()


class Recording(NamedTuple):
    """One trajectory's rewards and arbitrary values; its last state is not terminal."""

    reward: Tensor  # (T,)
    value: Tensor  # (T+1,)
    gamma: float
    trace_decay: float

    @property
    def delta(self) -> Tensor:
        """(T,) r_t + gamma V(s_{t+1}) - V(s_t)."""
        return self.reward + self.gamma * self.value[1:] - self.value[:-1]


@lru_cache(maxsize=256)
def recording(seed: int) -> Recording:
    """Ten steps, gamma and lambda between 0.5 and 0.95."""
    g = _generator(seed, 3)
    return Recording(_normal(g, 10), _normal(g, 11), _uniform(g, 0.5, 0.95), _uniform(g, 0.5, 0.95))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A process, a policy to evaluate, and what a finite dataset of a behaviour policy says about the process."""

    process: Process
    model: FiniteMDP
    behaviour: Tensor

    @cached_property
    def policy(self) -> Tensor:
        """(S, A) the policy that is evaluated."""
        return self.process.policy

    @cached_property
    def sampling_error(self) -> Tensor:
        """(S, A) (B-hat - B) Q^pi, as realised."""
        q = mdps.action_value(self.process.mdp, self.policy)
        backup = self.model.reward + self.model.gamma * self.model.transition @ (self.policy * q).sum(-1)
        return backup - q


def _dataset(seed: int, size: int) -> Dataset:
    """``size`` transitions of every state, actions from pi', rewards observed with unit noise."""
    g = _generator(seed, 4)
    process = continuing(seed)
    mdp = process.mdp
    joint = process.other.unsqueeze(-1) * mdp.transition
    draws = torch.multinomial(joint.flatten(1), size, replacement=True, generator=g)
    counts = torch.zeros(joint.flatten(1).shape, dtype=F64).scatter_add_(1, draws, torch.ones(draws.shape, dtype=F64))
    counts = counts.view_as(joint)
    seen = counts.sum(-1)
    counts = torch.where(seen.unsqueeze(-1) == 0.0, mdp.transition, counts)  # full support, as the theorems ask
    noise = _normal(g, *mdp.reward.shape) / seen.clamp(min=1.0).sqrt()
    model, behaviour = mdps.empirical_model(mdp, counts, mdp.reward + noise)
    return Dataset(process, model, behaviour)


@lru_cache(maxsize=256)
def dataset(seed: int) -> Dataset:
    """Sixty transitions of every state."""
    return _dataset(seed, 60)


@lru_cache(maxsize=256)
def datasets(seed: int) -> tuple[Dataset, Dataset]:
    """Sixty, and twenty thousand."""
    return dataset(seed), _dataset(seed, 20_000)


class Control(NamedTuple):
    """A linear-quadratic problem with two stabilising feedback matrices."""

    problem: lqr.LQR
    feedback: Tensor
    other: Tensor


@lru_cache(maxsize=256)
def control(seed: int) -> Control:
    """Three state and two action components."""
    g = _generator(seed, 5)
    problem = lqr.random_lqr(3, 2, seed, gamma=_uniform(g, 0.6, 0.95))

    def stabilising() -> Tensor:
        feedback = 0.3 * _normal(g, 2, 3)
        while float(torch.linalg.eigvals(problem.A + problem.B @ feedback).abs().max()) > 0.95:
            feedback = 0.5 * feedback
        return feedback

    return Control(problem, stabilising(), stabilising())


class Preferences(NamedTuple):
    """A language small enough to list, the scores of its responses, a policy, a reference, and beta."""

    language: languages.EnumerableLanguage
    logits: Tensor  # (P, S, V) of pi_theta
    ref_logits: Tensor  # (P, S, V)
    score: Tensor  # (P, R) r(x, y)
    kl_coef: float
    shift: Tensor  # (P, 1) f(x)

    @property
    def log_policy(self) -> Tensor:
        """(P, R) log pi_theta(y|x)."""
        return languages.response_log_probs(self.language, self.logits)

    @property
    def log_reference(self) -> Tensor:
        """(P, R) log pi_ref(y|x)."""
        return languages.response_log_probs(self.language, self.ref_logits)

    @property
    def log_optimum(self) -> Tensor:
        """(P, R) log pi*(y|x)."""
        return languages.optimal_log_probs(self.log_reference, self.score, self.kl_coef)

    @property
    def partition(self) -> Tensor:
        """(P,) Z(x) = sum_y pi_ref(y|x) exp(r(x, y) / beta), as it is defined."""
        return (self.log_reference.exp() * (self.score / self.kl_coef).exp()).sum(-1)


@lru_cache(maxsize=256)
def preferences(seed: int) -> Preferences:
    """Two prompts, seven responses of up to two tokens out of three; beta between 0.2 and 2."""
    g = _generator(seed, 6)
    weight = _probabilities(g, 2).tolist()
    language = languages.EnumerableLanguage(((1,), (2,)), tuple(weight), vocab_size=3, eos=0, max_length=2)
    logits, ref_logits = _normal(g, *language.table_shape), _normal(g, *language.table_shape)
    score = _normal(g, *language.response_shape)
    return Preferences(language, logits, ref_logits, score, _uniform(g, 0.2, 2.0), _normal(g, 2, 1))


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a scalar function, by automatic differentiation."""
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradients of a vector's entries (n,), stacked: (n, *at.shape)."""
    leaf = at.detach().clone().requires_grad_()
    return torch.stack([torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in function(leaf)])


def _weighted(c: Process, weight: Tensor, q: Tensor) -> Tensor:
    """(S, A) sum_s weight(s) sum_a q(s, a) grad pi(a|s), the form of every policy-gradient theorem."""
    fixed = weight.unsqueeze(-1) * q
    return gradient(lambda theta: (fixed * softmax_policy(theta)).sum(), c.theta)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


# 1, 1.1: notation, the policy-gradient theorem


def discounted_visits(c: Process) -> Sides:
    """The improper discounted state distribution is the sum that defines it.

    Equation:  p^pi(s) = sum_k gamma^k P(s_0 -> s, k)
    Source:    notes 1 (Notation). The sum by doubling: terms 0 .. 2^12 - 1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    step = c.mdp.gamma * mdps.policy_transition(c.mdp, c.policy).T
    total = c.mdp.initial
    for _ in range(12):
        total = total + step @ total
        step = step @ step
    return Sides(total, mdps.discounted_visits(c.mdp, c.policy))


def state_distribution(c: Process) -> Sides:
    """d^pi is p^pi times 1 - gamma, and with the absorbing state it sums to 1.

    Equation:  d^pi(s) = (1 - gamma) sum_t gamma^t P(s_0 -> s, t),  sum_s d^pi(s) = 1
    Source:    notes 1 (Notation), 1.9.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    d = mdps.state_distribution(c.mdp, c.policy)
    expected = (1.0 - c.mdp.gamma) * discounted_visits(c).left
    return Sides(torch.cat([d, d.sum().view(1)]), torch.cat([expected, torch.ones(1, dtype=F64)]))


def state_distribution_without_the_end(c: Process) -> Sides:
    """Negative control: d^pi over the states in which something is decided does not sum to 1."""
    d = mdps.state_distribution(c.mdp, c.policy)
    return Sides(d[~c.mdp.absorbing].sum(), _scalar(1.0))


def value_over_actions(c: Process) -> Sides:
    """A state is worth what its actions are worth.

    Equation:  V(s, theta) = sum_a pi(a|s) Q(s, a; theta)
    Source:    notes 1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(mdps.state_value(c.mdp, c.policy), (c.policy * mdps.action_value(c.mdp, c.policy)).sum(-1))


def value_over_trajectories(c: Process) -> Sides:
    """The objective is the mean return over every trajectory.

    Equation:  V(theta) = sum_tau P_theta(tau) R(tau)
    Source:    notes 1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(mdps.objective(c.mdp, c.policy), c.paths.probability @ c.returns)


def _log_probability(c: Process, theta: Tensor) -> Tensor:
    """(K,) log P_theta(tau), from the product of probabilities itself."""
    s, a = c.paths.state[:-1], c.paths.action
    chosen = softmax_policy(theta)[s, a] * c.mdp.transition[s, a, c.paths.state[1:]]
    factors = torch.where(c.paths.valid, chosen, torch.ones_like(chosen))
    return torch.log(c.mdp.initial[c.paths.state[0]] * factors.prod(0))


def _scores(c: Process) -> Tensor:
    """(T, K, S, A) grad log pi(a_t|s_t) of a softmax policy in closed form; 0 after the end."""
    s, a = c.paths.state[:-1], c.paths.action
    by_state = torch.nn.functional.one_hot(s, c.mdp.num_states).to(F64)
    chosen = torch.nn.functional.one_hot(a, c.mdp.num_actions).to(F64)
    score = by_state.unsqueeze(-1) * (chosen - c.policy[s]).unsqueeze(-2)
    return score * c.paths.valid[..., None, None]


def lemma_1(c: Process) -> Sides:
    """The gradient of the objective is an expectation of returns times scores of trajectories.

    Equation:  grad V(theta) = sum_tau R(tau) P_theta(tau) grad log P_theta(tau)
    Source:    notes 1.1, Lemma 1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    weight = c.paths.probability * c.returns
    return Sides(c.gradient, gradient(lambda theta: weight @ _log_probability(c, theta), c.theta))


def lemma_2(c: Process) -> Sides:
    """The score of a trajectory is the sum of its actions' scores; checked for every trajectory.

    Equation:  grad log P_theta(tau) = sum_{t=0}^{T-1} grad log pi(a_t|s_t)
    Source:    notes 1.1, Lemma 2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(c.trajectory_scores, _scores(c).sum(0))


def lemma_2_without_the_gradient_sign(c: Process) -> Sides:
    """Negative control: the proof's second line as printed puts log-probabilities where their gradients belong."""
    numbers = _log_probability(c, c.theta) - torch.log(c.mdp.initial[c.paths.state[0]])
    left = c.trajectory_scores
    return Sides(left, numbers[:, None, None].expand_as(left))


def lemma_2_from_step_1(c: Process) -> Sides:
    """Negative control: with indices 1..T on a trajectory that starts at s_0, the first action's score is lost."""
    return Sides(c.trajectory_scores, _scores(c)[1:].sum(0))


def likelihood_ratio_gradient(c: Process) -> Sides:
    """Lemmas 1 and 2 together: the update rule.

    Equation:  grad V = E_tau[(sum_t grad log pi(a_t|s_t)) (sum_t gamma^t r(s_t, a_t))]
    Source:    notes 1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(c.gradient, torch.einsum("k,tksa->sa", c.paths.probability * c.returns, _scores(c)))


def _counted_visits(c: Process) -> Tensor:
    """(S,) eta(s): the (discounted) steps decided in s, counted over every trajectory."""
    here = torch.nn.functional.one_hot(c.paths.state[:-1], c.mdp.num_states).to(F64)
    weight = c.discounts * c.paths.valid * c.paths.probability
    return torch.einsum("tk,tks->s", weight, here)


def eta_recursion(c: Process) -> Sides:
    """The visits of an episode, counted over every trajectory, solve their recursion.

    Equation:  eta(s) = mu_0(s) + sum_s' eta(s') sum_a gamma pi(a|s') p(s|s', a), s not absorbing
    Source:    notes 1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    eta = _counted_visits(c)
    arriving = c.mdp.initial + c.mdp.gamma * eta @ mdps.policy_transition(c.mdp, c.policy)
    return Sides(eta, torch.where(c.mdp.absorbing, 0.0, arriving))


def eta_is_discounted_visits(c: Process) -> Sides:
    """eta as printed contains gamma, so it is p^pi; with gamma = 1 it counts visits.

    Equation:  eta(s) = p^pi(s), s not absorbing
    Source:    notes 1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(_counted_visits(c), mdps.expected_visits(c.mdp, c.policy))


def theorem_3(c: Process) -> Sides:
    """The policy-gradient theorem, with p^pi an equality.

    Equation:  grad V = sum_s p^pi(s) sum_a grad pi(a|s) q(s, a)
    Source:    notes 1.1, Theorem 3.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(c.gradient, mdps.policy_gradient(c.mdp, softmax_policy, c.theta))


def theorem_3_as_expectation(c: Process) -> Sides:
    """The same as an expectation of scores, the softmax's in closed form.

    Equation:  grad V = E_{s~p^pi, a~pi}[grad log pi(a|s) q(s, a)]; for a softmax, p^pi(s) pi(a|s) A(s, a)
    Source:    notes 1.1, Theorem 3.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    visits = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1)
    return Sides(c.gradient, visits * c.policy * mdps.advantage(c.mdp, c.policy))


def _theorem_3_under_mu(c: Process) -> Tensor:
    return _weighted(c, mdps.on_policy_distribution(c.mdp, c.policy), mdps.action_value(c.mdp, c.policy))


def theorem_3_constant(c: Process) -> Sides:
    """What "proportional to" hides: the constant is the expected (discounted) length of an episode.

    Equation:  grad V = (sum_s' eta(s')) sum_s mu(s) sum_a q(s, a) grad pi(a|s)
    Source:    notes 1.1, Theorem 3.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(c.gradient, mdps.expected_visits(c.mdp, c.policy).sum() * _theorem_3_under_mu(c))


def theorem_3_without_the_constant(c: Process) -> Sides:
    """Negative control: "proportional to" read as an equality."""
    return Sides(c.gradient, _theorem_3_under_mu(c))


def theorem_3_undiscounted_states(c: Process) -> Sides:
    """Negative control: states weighted without gamma^t do not give the gradient of the discounted objective."""
    return Sides(c.gradient, mdps.undiscounted_weighting_gradient(c.mdp, softmax_policy, c.theta))


def _baseline_term(c: Process, baseline: Tensor) -> Tensor:
    """(S, A) sum_s p^pi(s) sum_a baseline(s, a) grad pi(a|s)."""
    return _weighted(c, mdps.discounted_visits(c.mdp, c.policy), baseline)


def baseline_has_zero_mean(c: Process) -> Sides:
    """A function of the state alone adds nothing to the gradient.

    Equation:  E_{s~p^pi, a~pi}[b(s) grad log pi(a|s)] = sum_s p^pi(s) b(s) grad sum_a pi(a|s) = 0
    Source:    notes 1.4. Measured against the gradient.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    term = _baseline_term(c, c.baseline.unsqueeze(-1))
    return Sides(term, torch.zeros_like(term), scale=float(c.gradient.norm()))


def baseline_of_the_action(c: Process) -> Sides:
    """Negative control: a baseline that has seen the action has no zero mean."""
    term = _baseline_term(c, c.function)
    return Sides(term, torch.zeros_like(term), scale=float(c.gradient.norm()))


def theorem_3_with_baseline(c: Process) -> Sides:
    """The policy-gradient theorem less a baseline.

    Equation:  grad V = (sum_s' eta(s')) sum_s mu(s) sum_a (q(s, a) - b(s)) grad pi(a|s)
    Source:    notes 1.4.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q = mdps.action_value(c.mdp, c.policy) - c.baseline.unsqueeze(-1)
    return Sides(c.gradient, _baseline_term(c, q))


# 1.6: off-policy


def off_policy_objective(c: Process) -> Sides:
    """The off-policy objective in its two forms.

    Equation:  J_beta = sum_s p^beta(s) V^pi(s) = sum_s p^beta(s) sum_a pi(a|s) Q^pi(s, a)
    Source:    notes 1.6.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    visits = mdps.discounted_visits(c.mdp, c.other)
    q = mdps.action_value(c.mdp, c.policy)
    left = mdps.off_policy_objective(c.mdp, c.other, c.policy, "discounted")
    return Sides(left, (visits.unsqueeze(-1) * c.policy * q).sum())


def off_policy_gradient(c: Process) -> Sides:
    """The printed expectation under the behaviour is the gradient with grad Q dropped.

    Equation:  E_{s~p^beta, a~beta}[pi/beta grad log pi(a|s) Q^pi(s, a)] = sum_s p^beta(s) sum_a grad pi(a|s) Q^pi(s, a)
    Source:    notes 1.6; Degris, White & Sutton 2012, Eq. 5.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    drawn = mdps.discounted_visits(c.mdp, c.other).unsqueeze(-1) * c.other
    fixed = drawn * (c.policy / c.other) * mdps.action_value(c.mdp, c.policy)
    left = gradient(lambda theta: (fixed * torch.log_softmax(theta, -1)).sum(), c.theta)
    right = mdps.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted")
    return Sides(left, right)


def off_policy_gradient_is_approximate(c: Process) -> Sides:
    """Negative control: with grad Q dropped it is not the gradient of J_beta."""
    return Sides(
        mdps.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
        mdps.off_policy_gradient_approximate(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
    )


def emphatic_gradient(c: Process) -> Sides:
    """Emphasis brings the dropped term back, with states weighted as they are met in the long run.

    Equation:  grad J_beta = sum_s m(s) sum_a grad pi(a|s) Q^pi(s, a),  m = (I - gamma P_pi^T)^-1 d^beta
    Source:    Imani, Graves & White 2018, Theorem 1, for the objective of notes 1.6.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(
        mdps.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "stationary"),
        mdps.emphatic_gradient(c.mdp, c.other, softmax_policy, c.theta, "stationary"),
    )


def emphatic_gradient_discounted(c: Process) -> Sides:
    """The same with the discounted weighting of the notes, the interest then being p^beta.

    Equation:  grad J_beta = sum_s m(s) sum_a grad pi(a|s) Q^pi(s, a),  m = (I - gamma P_pi^T)^-1 p^beta
    Source:    notes 1.6; Imani, Graves & White 2018, Theorem 1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(
        mdps.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
        mdps.emphatic_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
    )


def followed_trace(c: Process, *, discounted_interest: bool = True) -> Tensor:
    """(S,) E_beta[sum_t F_t 1(s_t = s)] over every trajectory, F_t = gamma rho_{t-1} F_{t-1} + gamma^t (or + 1)."""
    paths = c.other_paths
    ratio = (c.policy / c.other)[paths.state[:-1], paths.action]
    trace = torch.zeros_like(paths.probability)
    total = torch.zeros(c.mdp.num_states, dtype=F64)
    for t in range(HORIZON):
        carried = c.mdp.gamma * ratio[t - 1] * trace if t > 0 else trace
        trace = carried + (c.mdp.gamma**t if discounted_interest else 1.0)
        total = total.index_add(0, paths.state[t], paths.probability * trace * paths.valid[t])
    return total


def emphasis_is_followed(c: Process) -> Sides:
    """The emphasis is what a trace along the behaviour's trajectories gathers.

    Equation:  m(s) = E_beta[sum_t F_t 1(s_t = s)],  F_t = gamma rho_{t-1} F_{t-1} + gamma^t
    Source:    Imani, Graves & White 2018, Sec. 4, with the interest of p^beta.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    m = mdps.emphasis(c.mdp, c.other, c.policy, "discounted")
    return Sides(followed_trace(c), torch.where(c.mdp.absorbing, 0.0, m))


def emphasis_with_interest_1(c: Process) -> Sides:
    """Negative control: with p^beta, a trace whose interest is 1 at every step does not give the gradient."""
    trace = followed_trace(c, discounted_interest=False)
    return Sides(
        mdps.off_policy_gradient(c.mdp, c.other, softmax_policy, c.theta, "discounted"),
        _weighted(c, trace, mdps.action_value(c.mdp, c.policy)),
    )


# 1.7: soft actor-critic


def soft_value(c: Process) -> Sides:
    """At the soft optimum the value is the expected action value plus temperature times the entropy.

    Equation:  V(s) = E_{a~pi}[Q(s, a) - temperature log pi(a|s)],  pi = softmax(Q / temperature)
    Source:    notes 1.7, where the temperature is 1 and hidden in the reward scale.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    s = c.soft
    return Sides(s.value, (s.policy * (s.action_value - SOFT_TEMPERATURE * s.policy.log())).sum(-1))


def soft_value_at_temperature_1(c: Process) -> Sides:
    """Negative control: the printed form, which has no temperature."""
    s = c.soft
    return Sides(s.value, (s.policy * (s.action_value - s.policy.log())).sum(-1))


def soft_bellman(c: Process) -> Sides:
    """The target of the soft Q-function, at its fixed point, with V = 0 where the process ended.

    Equation:  Q(s, a) = r(s, a) + gamma E_{s'}[V(s')],  V the soft value of the policy, from a linear solve
    Source:    notes 1.7.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    s = c.soft
    value = mdps.soft_state_value(c.mdp, s.policy, SOFT_TEMPERATURE)
    return Sides(s.action_value, c.mdp.reward + c.mdp.gamma * c.mdp.transition @ value)


def soft_bellman_past_the_end(c: Process) -> Sides:
    """Negative control: a target that goes on after termination, where only the entropy of acting at random is left."""
    s, gamma = c.soft, c.mdp.gamma
    going_on = SOFT_TEMPERATURE * math.log(c.mdp.num_actions) / (1.0 - gamma)
    value = torch.where(c.mdp.absorbing, going_on, mdps.soft_state_value(c.mdp, s.policy, SOFT_TEMPERATURE))
    backup = c.mdp.reward + gamma * c.mdp.transition @ value
    return Sides(s.action_value, torch.where(c.mdp.absorbing.unsqueeze(-1), 0.0, backup))


def soft_value_gradient(c: Process) -> Sides:
    """The sampled gradient of the value loss has the right mean.

    Equation:  grad J_V = E_{a~pi}[V(s) - Q(s, a) + temperature log pi(a|s)] for a tabular V
    Source:    notes 1.7, with the temperature.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    target = (c.policy * (c.function - SOFT_TEMPERATURE * c.policy.log())).sum(-1)
    left = gradient(lambda v: 0.5 * (v - target).square().sum(), c.baseline)
    errors = c.baseline.unsqueeze(-1) - c.function + SOFT_TEMPERATURE * c.policy.log()
    return Sides(left, (c.policy * errors).sum(-1))


def soft_q_gradient(c: Process) -> Sides:
    """The sampled gradient of the Q-function's loss, which sees one next state, has the right mean.

    Equation:  grad J_Q = E_{s'}[Q(s, a) - r(s, a) - gamma V(s')] for a tabular Q, V(s') held fixed
    Source:    notes 1.7.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    target = c.mdp.reward + c.mdp.gamma * c.mdp.transition @ c.baseline
    left = gradient(lambda q: 0.5 * (q - target).square().sum(), c.function)
    errors = (c.function - c.mdp.reward).unsqueeze(-1) - c.mdp.gamma * c.baseline
    return Sides(left, (c.mdp.transition * errors).sum(-1))


def soft_improvement(c: Process) -> Sides:
    """No policy is worth more than the soft optimum, entropy counted.

    Equation:  exp V^pi(s) <= exp V*(s)
    Source:    notes 1.7. Exponentials make both sides positive.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(mdps.soft_state_value(c.mdp, c.policy, SOFT_TEMPERATURE).exp(), c.soft.value.exp())


# 1.8: continuing problems


def average_reward(c: Process) -> Sides:
    """The average reward is what a step earns in the long run, wherever it began.

    Equation:  lim_t E[R_t] = sum_s mu(s) sum_a pi(a|s) r(s, a)
    Source:    notes 1.8. The limit at t = 512, from every state.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    late = torch.linalg.matrix_power(mdps.policy_transition(c.mdp, c.policy), 512)
    left = late @ mdps.policy_reward(c.mdp, c.policy)
    return Sides(left, mdps.gain(c.mdp, c.policy).expand_as(left))


def differential_values(c: Process) -> Sides:
    """The value beyond the gain is the sum of expected rewards less the gain.

    Equation:  V(s) = E[sum_t (R_t - r(pi)) | s_0 = s], which has mean zero under mu
    Source:    notes 1.8. The sum by doubling, over 2^10 steps.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    step = mdps.policy_transition(c.mdp, c.policy) - mdps.stationary_distribution(c.mdp, c.policy)
    total = mdps.policy_reward(c.mdp, c.policy) - mdps.gain(c.mdp, c.policy)
    for _ in range(10):
        total = total + step @ total
        step = step @ step
    return Sides(total, mdps.differential_value(c.mdp, c.policy))


def _expected_differential_error(c: Process, gain: Tensor | float) -> Tensor:
    """(S, A) E_{s'}[r - gain + v(s') - v(s)]."""
    v = mdps.differential_value(c.mdp, c.policy)
    return c.mdp.reward - gain + c.mdp.transition @ v - v.unsqueeze(-1)


def differential_error(c: Process) -> Sides:
    """The differential TD error has mean zero in every state.

    Equation:  E_{a~pi, s'}[r - r(pi) + v(s') - v(s)] = 0
    Source:    notes 1.8, from its definition of G_t. Measured against v.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    error = (c.policy * _expected_differential_error(c, mdps.gain(c.mdp, c.policy))).sum(-1)
    return Sides(error, torch.zeros_like(error), scale=float(mdps.differential_value(c.mdp, c.policy).norm()))


def differential_error_without_the_gain(c: Process) -> Sides:
    """Negative control: the TD error of discounted problems at gamma = 1, which leaves the gain in."""
    error = (c.policy * _expected_differential_error(c, 0.0)).sum(-1)
    return Sides(error, torch.zeros_like(error), scale=float(mdps.differential_value(c.mdp, c.policy).norm()))


def theorem_4(c: Process) -> Sides:
    """The policy-gradient theorem of continuing problems; the proof gives an equality.

    Equation:  grad r(pi) = sum_s mu(s) sum_a q(s, a) grad pi(a|s)
    Source:    notes 1.8, Theorem 4.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(
        mdps.gain_gradient(c.mdp, softmax_policy, c.theta), mdps.gain_policy_gradient(c.mdp, softmax_policy, c.theta)
    )


def theorem_4_with_discounted_values(c: Process) -> Sides:
    """Negative control: discounted action values in the place of differential ones."""
    mu = mdps.stationary_distribution(c.mdp, c.policy)
    return Sides(
        mdps.gain_gradient(c.mdp, softmax_policy, c.theta), _weighted(c, mu, mdps.action_value(c.mdp, c.policy))
    )


def theorem_4_proof(c: Process) -> Sides:
    """What the proof sums over s: the gradient of the gain, seen from each state by itself.

    Equation:  grad r(pi) = sum_a [grad pi(a|s) q(s, a) + pi(a|s) sum_s' P(s'|s, a) grad v(s')] - grad v(s), every s
    Source:    notes 1.8, the proof of Theorem 4; grad v by automatic differentiation.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q = mdps.differential_action_value(c.mdp, c.policy)
    direct = jacobian(lambda theta: (softmax_policy(theta) * q).sum(-1), c.theta)
    slope = jacobian(lambda theta: mdps.differential_value(c.mdp, softmax_policy(theta)), c.theta)
    carried = torch.einsum("st,tbu->sbu", mdps.policy_transition(c.mdp, c.policy), slope)
    left = mdps.gain_gradient(c.mdp, softmax_policy, c.theta)
    return Sides(left.expand_as(slope), direct + carried - slope)


# 1.9: the performance difference lemma


def probability_of_a_state(c: Process) -> Sides:
    """The probability of a state after two steps is a sum over what came before.

    Equation:  P(s_t = s) = sum_{s_0, a_0, ...} mu_0(s_0) prod_{i=0}^{t-1} pi(a_i|s_i) P(s_{i+1}|s_i, a_i),  t = 2
    Source:    notes 1.9; left, counted over every trajectory.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    counted = torch.zeros(c.mdp.num_states, dtype=F64).index_add(0, c.paths.state[2], c.paths.probability)
    step = c.policy.unsqueeze(-1) * c.mdp.transition
    return Sides(counted, torch.einsum("s,sat,tbu->u", c.mdp.initial, step, step))


def probability_of_a_state_from_step_1(c: Process) -> Sides:
    """Negative control: the product as printed starts at i = 1 and leaves the first step out."""
    step = c.policy.unsqueeze(-1) * c.mdp.transition
    unweighted = torch.ones_like(step)
    return Sides(probability_of_a_state(c).left, torch.einsum("s,sat,tbu->u", c.mdp.initial, unweighted, step))


def lemma_5(c: Process) -> Sides:
    """Discounted sums along trajectories are expectations under d^pi; for an arbitrary f, absorbing states included.

    Equation:  E_tau[sum_t gamma^t f(s_t, a_t)] = 1/(1 - gamma) E_{s~d^pi} E_{a~pi}[f(s, a)]
    Source:    notes 1.9, Lemma 5; left over every trajectory, whose stay in the end is a geometric sum.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    paths, gamma = c.paths, c.mdp.gamma
    expected = (c.policy * c.function).sum(-1)
    along = torch.where(paths.valid, c.function[paths.state[:-1], paths.action], expected[paths.state[:-1]])
    stay = gamma**HORIZON / (1.0 - gamma) * expected[paths.state[-1]]
    left = paths.probability @ ((c.discounts * along).sum(0) + stay)
    return Sides(left, mdps.state_distribution(c.mdp, c.policy) @ expected / (1.0 - gamma))


def theorem_6(c: Process) -> Sides:
    """The performance difference lemma.

    Equation:  V_pi(s_0) - V_pi'(s_0) = 1/(1 - gamma) E_{s~d^pi} E_{a~pi}[A^pi'(s, a)]
    Source:    notes 1.9, Theorem 6; Kakade & Langford 2002.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    gained = (c.policy * mdps.advantage(c.mdp, c.other)).sum(-1)
    right = mdps.state_distribution(c.mdp, c.policy) @ gained / (1.0 - c.mdp.gamma)
    return Sides(_difference(c), right)


def _difference(c: Process) -> Tensor:
    return mdps.objective(c.mdp, c.policy) - mdps.objective(c.mdp, c.other)


def theorem_6_over_trajectories(c: Process) -> Sides:
    """The lemma's last step but one: the advantages of the other policy, summed along this one's trajectories.

    Equation:  V^pi(s_0) - V^pi'(s_0) = E_{tau~P^pi}[sum_t gamma^t A^pi'(s_t, a_t)]
    Source:    notes 1.9.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    a = mdps.advantage(c.mdp, c.other)[c.paths.state[:-1], c.paths.action] * c.paths.valid
    return Sides(_difference(c), c.paths.probability @ (c.discounts * a).sum(0))


def theorem_6_proof(c: Process) -> Sides:
    """The proof's two rewritings: the other policy's values telescope, and a step of reward and value is Q.

    Equation:  V_pi(s_0) - V_pi'(s_0) = E[sum_t gamma^t (R_t + gamma V_pi'(s_{t+1})) - sum_t gamma^{t+1} V_pi'(s_{t+1})
               - V_pi'(s_0)],  E[sum_t gamma^t (R_t + gamma V_pi'(s_{t+1}))] = E[sum_t gamma^t Q^pi'(s_t, a_t)]
    Source:    notes 1.9, the proof of Theorem 6.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    paths, gamma = c.paths, c.mdp.gamma
    value = mdps.state_value(c.mdp, c.other)[paths.state]
    q = mdps.action_value(c.mdp, c.other)[paths.state[:-1], paths.action] * paths.valid

    def mean(steps: Tensor) -> Tensor:
        return paths.probability @ (c.discounts * steps).sum(0)

    backed_up = mean(paths.reward + gamma * value[1:])
    telescoped = backed_up - mean(gamma * value[1:]) - paths.probability @ value[0]
    return Sides(torch.stack([_difference(c), backed_up]), torch.stack([telescoped, mean(q)]))


def theorem_6_at_the_other_states(c: Process) -> Sides:
    """Negative control: states met by the policy whose advantages are summed, not by the one that acts."""
    gained = (c.policy * mdps.advantage(c.mdp, c.other)).sum(-1)
    right = mdps.state_distribution(c.mdp, c.other) @ gained / (1.0 - c.mdp.gamma)
    return Sides(_difference(c), right)


# 1.10: TRPO, PPO, GAE


def surrogate(c: Process, new: Tensor) -> Tensor:
    """L_pi(pi') = 1/(1 - gamma) E_{s~d^pi, a~pi}[pi'/pi A^pi], for pi = ``c.policy``; differentiable in ``new``."""
    d = mdps.state_distribution(c.mdp, c.policy).unsqueeze(-1)
    return (d * c.policy * (new / c.policy) * mdps.advantage(c.mdp, c.policy)).sum() / (1.0 - c.mdp.gamma)


def surrogate_identity(c: Process) -> Sides:
    """The step that TRPO's derivation takes exactly: actions reweighted, states still those of pi'.

    Equation:  V_pi' - V_pi = 1/(1 - gamma) E_{s~d^pi'} E_{a~pi}[pi'(a|s)/pi(a|s) A^pi(s, a)]
    Source:    notes 1.10.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    d = mdps.state_distribution(c.mdp, c.other).unsqueeze(-1)
    ratio = c.other / c.policy
    right = (d * c.policy * ratio * mdps.advantage(c.mdp, c.policy)).sum() / (1.0 - c.mdp.gamma)
    return Sides(-_difference(c), right)


def surrogate_to_first_order(c: Process) -> Sides:
    """The surrogate has the objective's gradient at the old policy, where it is zero.

    Equation:  L_pi(pi) = 0,  grad L_pi(pi') at pi' = pi  =  grad V
    Source:    notes 1.10.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    slope = gradient(lambda theta: surrogate(c, softmax_policy(theta)), c.theta)
    at_old = surrogate(c, c.policy).view(1)
    return Sides(torch.cat([slope.flatten(), at_old]), torch.cat([c.gradient.flatten(), torch.zeros(1, dtype=F64)]))


def surrogate_is_not_the_difference(c: Process) -> Sides:
    """Negative control: away from the old policy the surrogate is an approximation."""
    return Sides(-_difference(c), surrogate(c, c.other))


def _policy_kl(p: Tensor, q: Tensor) -> Tensor:
    """(S,) KL(p || q) in nats."""
    return (p * (p.log() - q.log())).sum(-1)


def trpo_constant(c: Process) -> float:
    """C = sqrt(2) gamma eps / (1 - gamma)^2,  eps = max_s |E_{a~pi'} A^pi(s, a)|."""
    eps = float((c.other * mdps.advantage(c.mdp, c.policy)).sum(-1).abs().max())
    return math.sqrt(2.0) * c.mdp.gamma * eps / (1.0 - c.mdp.gamma) ** 2


def trpo_bound(c: Process) -> Sides:
    """How far the surrogate may be off; a theorem, not a condition.

    Equation:  |V_pi' - V_pi - L_pi(pi')| <= C sqrt(E_{s~d^pi} KL(pi || pi')),  C = sqrt(2) gamma eps / (1 - gamma)^2
    Source:    notes 1.10; Achiam et al. 2017, Corollary 1, by Pinsker and Jensen.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    kl = mdps.state_distribution(c.mdp, c.policy) @ _policy_kl(c.policy, c.other)
    return Sides((-_difference(c) - surrogate(c, c.other)).abs(), trpo_constant(c) * kl.sqrt())


def total_variation_bound(c: Process) -> Sides:
    """The bound before Pinsker and Jensen.

    Equation:  |V_pi' - V_pi - L_pi(pi')| <= 2 gamma eps / (1 - gamma)^2 E_{s~d^pi} D_TV(pi' || pi)
    Source:    Achiam et al. 2017, Corollary 1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    distance = 0.5 * (c.other - c.policy).abs().sum(-1)
    mean = mdps.state_distribution(c.mdp, c.policy) @ distance
    return Sides((-_difference(c) - surrogate(c, c.other)).abs(), math.sqrt(2.0) * trpo_constant(c) * mean)


KL_WEIGHT = 2.0
"""The beta of PPO's penalty, reward units per nat."""


def penalised_surrogate_to_first_order(c: Process) -> Sides:
    """PPO's penalty costs nothing to first order, whichever way round its divergence is taken.

    Equation:  grad E_{s~d^pi, a~pi}[pi'/pi A^pi - beta KL] / (1 - gamma) = grad V at pi' = pi,
               KL(pi || pi') as in Schulman et al. 2017, and KL(pi' || pi) as printed
    Source:    notes 1.10.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    visits = mdps.discounted_visits(c.mdp, c.policy)

    def penalised(theta: Tensor, *, printed: bool) -> Tensor:
        new = softmax_policy(theta)
        kl = _policy_kl(new, c.policy) if printed else _policy_kl(c.policy, new)
        return surrogate(c, new) - KL_WEIGHT * visits @ kl

    slopes = [gradient(lambda theta, p=p: penalised(theta, printed=p), c.theta) for p in (False, True)]
    return Sides(torch.stack(slopes), torch.stack([c.gradient, c.gradient]))


class SharedStep(NamedTuple):
    """A process whose states share one probability p of action 1, and a step from one p to another."""

    mdp: FiniteMDP
    old: Tensor
    new: Tensor


@lru_cache(maxsize=256)
def shared_step(seed: int) -> SharedStep:
    """Action 1 earns 1 and leads to where it costs 3 to 5; p starts just below the best and goes on by 0.01 nat.

    V = p - gamma cost p^2, so the best p is 1 / (2 gamma cost). The surrogate is linear in p and sees only that V still
    rises; 0.01 is the usual trust region.
    """
    g = _generator(seed, 7)
    transition = torch.zeros((3, 2, 3), dtype=F64)
    transition[0, 1, 1] = 1.0
    transition[0, 0, 2] = transition[1, 0, 2] = transition[1, 1, 2] = 1.0
    transition[2, :, 2] = 1.0
    cost, gamma = _uniform(g, 3.0, 5.0), _uniform(g, 0.8, 0.99)
    reward = torch.tensor([[0.0, 1.0], [0.0, -cost], [0.0, 0.0]], dtype=F64)
    mdp = FiniteMDP(transition, reward, torch.tensor([1.0, 0.0, 0.0], dtype=F64), gamma)

    def policy(p: float) -> Tensor:
        return torch.tensor([[1.0 - p, p]] * 3, dtype=F64)

    first = 0.95 / (2.0 * gamma * cost)
    low, high = first, 0.5
    for _ in range(60):
        middle = 0.5 * (low + high)
        inside = float(_policy_kl(policy(first), policy(middle))[0]) <= TRUST_REGION
        low, high = (middle, high) if inside else (low, middle)
    return SharedStep(mdp, policy(first), policy(low))


def improvement_is_not_guaranteed(c: SharedStep) -> Sides:
    """Negative control: a step that the surrogate likes, within the trust region, improves the policy.

    Equation:  L_pi(pi') > 0  =>  V_pi' = max(V_pi', V_pi), which is what "V_pi' >= V_pi" says as an equality
    Source:    notes 1.10: a fixed delta guarantees nothing.
    """
    liked = (mdps.discounted_visits(c.mdp, c.old).unsqueeze(-1) * c.new * mdps.advantage(c.mdp, c.old)).sum()
    before, after = mdps.objective(c.mdp, c.old), mdps.objective(c.mdp, c.new)
    return Sides(after, torch.maximum(after, before) if float(liked) > 0.0 else after)


def improvement_bound(c: Process) -> Sides:
    """What is guaranteed, for a short step along the natural gradient: the loss is at most what the bound allows.

    Equation:  L_pi(pi') <= V_pi' - V_pi + C sqrt(E_{s~d^pi} KL(pi || pi')),  pi' = softmax(theta + A^pi / 10)
    Source:    notes 1.10; Kakade 2001 for the natural gradient of a tabular softmax, which is A^pi.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    step = replace(c, other_theta=c.theta + 0.1 * mdps.advantage(c.mdp, c.policy))
    return Sides(surrogate(step, step.other), trpo_bound(step).right - _difference(step))


def kl_directions(c: Process) -> Sides:
    """Negative control: the penalty as printed, KL(pi' || pi), is another number than KL(pi || pi')."""
    d = mdps.state_distribution(c.mdp, c.policy)
    return Sides(d @ _policy_kl(c.policy, c.other), d @ _policy_kl(c.other, c.policy))


def k_step_advantage(r: Recording, t: int, k: int) -> Tensor:
    """A_t^(k) = sum_{l<k} gamma^l r_{t+l} + gamma^k V(s_{t+k}) - V(s_t), a scalar."""
    weight = r.gamma ** torch.arange(k, dtype=F64)
    return weight @ r.reward[t : t + k] + r.gamma**k * r.value[t + k] - r.value[t]


def k_step_telescopes(r: Recording) -> Sides:
    """The k-step advantage is a discounted sum of TD errors; for every k.

    Equation:  sum_{l<k} gamma^l r_{t+l} + gamma^k V(s_{t+k}) - V(s_t) = sum_{l<k} gamma^l delta_{t+l}
    Source:    notes 1.10.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    steps = len(r.reward)
    weighted = r.gamma ** torch.arange(steps, dtype=F64) * r.delta
    return Sides(torch.stack([k_step_advantage(r, 0, k) for k in range(1, steps + 1)]), weighted.cumsum(0))


def two_step_advantage_as_printed(r: Recording) -> Sides:
    """Negative control: A^(2) with gamma V(s_{t+2}), which should be gamma^2 V(s_{t+2})."""
    printed = r.reward[0] + r.gamma * r.reward[1] + r.gamma * r.value[2] - r.value[0]
    return Sides(printed, r.delta[0] + r.gamma * r.delta[1])


def weighted_advantages(r: Recording, *, last_takes_the_rest: bool = True) -> Tensor:
    """(T,) (1 - lambda) sum_k lambda^(k-1) A_t^(k) up to the end, whose last weight is lambda^(n-1), n = T - t."""
    steps, decay = len(r.reward), r.trace_decay
    rows: list[Tensor] = []
    for t in range(steps):
        n = steps - t
        weights = [(1.0 - decay) * decay ** (k - 1) for k in range(1, n + 1)]
        if last_takes_the_rest:
            weights[-1] = decay ** (n - 1)
        rows.append(torch.stack([w * k_step_advantage(r, t, k) for k, w in enumerate(weights, start=1)]).sum())
    return torch.stack(rows)


def summed_errors(r: Recording) -> Tensor:
    """(T,) sum_{l=0}^{T-t-1} (gamma lambda)^l delta_{t+l}."""
    weight = (r.gamma * r.trace_decay) ** torch.arange(len(r.reward), dtype=F64)
    return torch.stack([weight[: len(r.reward) - t] @ r.delta[t:] for t in range(len(r.reward))])


def gae_two_forms(r: Recording) -> Sides:
    """GAE is a mixture of k-step advantages and a sum of TD errors; finite, at every step.

    Equation:  (1 - lambda) sum_{k=1}^{n-1} lambda^(k-1) A^(k) + lambda^(n-1) A^(n) = sum_{l<n} (gamma lambda)^l delta_l
    Source:    notes 1.10, with the last weight that a finite mixture needs.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(weighted_advantages(r), summed_errors(r))


def gae_infinite(r: Recording) -> Sides:
    """The same for an infinite trajectory: this one, followed by states of value 0 that pay nothing.

    Equation:  (1 - lambda) (A^(1) + lambda A^(2) + lambda^2 A^(3) + ...) = sum_l (gamma lambda)^l delta_l
    Source:    notes 1.10. 800 terms, of which the last weighs less than 1e-17.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    terms = torch.arange(800, dtype=F64)
    tail = torch.zeros(800 - len(r.reward), dtype=F64)
    ending = Recording(r.reward, torch.cat([r.value[:-1], torch.zeros(1, dtype=F64)]), r.gamma, r.trace_decay)
    delta = torch.cat([ending.delta, tail])
    k_step = (r.gamma**terms * delta).cumsum(0)
    left = (1.0 - r.trace_decay) * (r.trace_decay**terms) @ k_step
    return Sides(left, ((r.gamma * r.trace_decay) ** terms) @ delta)


def gae_with_equal_last_weight(r: Recording) -> Sides:
    """Negative control: a finite mixture whose last weight is (1 - lambda) lambda^(n-1) like the others."""
    return Sides(weighted_advantages(r, last_takes_the_rest=False), summed_errors(r))


def gae_second_line_as_printed(r: Recording) -> Sides:
    """Negative control: the second line as printed, with gamma^2 delta_{t+2} in the term of lambda^1."""
    extra = (1.0 - r.trace_decay) * r.trace_decay * r.gamma**2 * r.delta[2]
    return Sides(weighted_advantages(r)[0] + extra, summed_errors(r)[0])


# 1.11: deterministic policy gradients


def objective_over_visits(c: Process) -> Sides:
    """The objective is an integral of rewards over p^pi, whose sum starts at t = 0.

    Equation:  J(pi) = sum_s p^pi(s) sum_a pi(a|s) r(s, a),  p^pi(s) = sum_{t>=0} gamma^t P(s_t = s)
    Source:    notes 1.11.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    visits = mdps.discounted_visits(c.mdp, c.policy)
    return Sides(mdps.objective(c.mdp, c.policy), visits @ mdps.policy_reward(c.mdp, c.policy))


def objective_over_visits_from_step_1(c: Process) -> Sides:
    """Negative control: p^pi as printed, sum_{t>=1} gamma^(t-1) P(s_t = s), leaves the first state out."""
    visits = (mdps.discounted_visits(c.mdp, c.policy) - c.mdp.initial) / c.mdp.gamma
    return Sides(mdps.objective(c.mdp, c.policy), visits @ mdps.policy_reward(c.mdp, c.policy))


def control_objective_over_visits(c: Control) -> Sides:
    """The same for continuous states and actions, the integral of a quadratic reward being a trace.

    Equation:  J(mu) = integral of p^mu(s) r(s, mu(s)) ds = -tr((Q + K'R K) M)
    Source:    notes 1.11.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    cost = c.problem.Q + c.feedback.mT @ c.problem.R @ c.feedback
    moment = lqr.second_moment(c.problem, c.feedback)
    return Sides(lqr.objective(c.problem, c.feedback), -(cost * moment).sum())


def deterministic_policy_gradient(c: Control) -> Sides:
    """The deterministic policy gradient theorem.

    Equation:  grad J = integral of p^mu(s) grad_theta mu(s) grad_a Q^mu(s, a) at a = mu(s)
    Source:    notes 1.11, Eq. 1; Silver et al. 2014, Theorem 1. Left by differentiating the objective's closed form.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    left = gradient(lambda k: lqr.objective(c.problem, k), c.feedback)
    return Sides(left, lqr.deterministic_policy_gradient(c.problem, c.feedback))


def chain_rule(c: Control) -> Sides:
    """Moving a policy along Q is moving its action along grad_a Q; at one state, Q held fixed.

    Equation:  grad_theta Q^k(s, mu_theta(s)) = grad_theta mu_theta(s) grad_a Q^k(s, a) at a = mu_theta(s)
    Source:    notes 1.11. Left by automatic differentiation, right with the closed form of grad_a Q.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q, state = lqr.q_function(c.problem, c.feedback), c.problem.initial_mean
    left = gradient(lambda k: q(state, k @ state), c.feedback)
    return Sides(left, torch.outer(lqr.action_gradient(c.problem, c.feedback) @ state, state))


def _expected_critic_error(c: Control, following: Tensor) -> Tensor:
    """(64,) E_{s'}[r + gamma Q^mu(s', following s') - Q^mu(s, a)] at states and actions drawn at random."""
    q = lqr.q_function(c.problem, c.feedback)
    g = _generator(0, 8)
    state, action = _normal(g, 64, c.problem.n), _normal(g, 64, c.problem.m)
    reward = -((state @ c.problem.Q * state).sum(-1) + (action @ c.problem.R * action).sum(-1))
    after = state @ c.problem.A.mT + action @ c.problem.B.mT
    lift = torch.cat([torch.eye(c.problem.n, dtype=F64), following])
    noise = (lift.mT @ q.matrix @ lift * c.problem.W).sum()  # what the process noise adds to the mean of a quadratic
    return reward + c.problem.discount * (q(after, after @ following.mT) + noise) - q(state, action)


def critic_error(c: Control) -> Sides:
    """At Q^mu the critics' error has mean zero, whatever action was taken: on-policy, and off-policy with a' = mu(s').

    Equation:  E_{s'}[r(s, a) + gamma Q^mu(s', mu(s')) - Q^mu(s, a)] = 0 for every s and a
    Source:    notes 1.11, both algorithms; on-policy a_{t+1} is mu(s_{t+1}). Measured against Q^mu.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    error = _expected_critic_error(c, c.feedback)
    return Sides(error, torch.zeros_like(error), scale=float(lqr.q_function(c.problem, c.feedback).matrix.norm()))


def critic_error_of_the_behaviour(c: Control) -> Sides:
    """Negative control: off-policy with the behaviour's next action, where the on-policy algorithm has a_{t+1}."""
    error = _expected_critic_error(c, c.other)
    return Sides(error, torch.zeros_like(error), scale=float(lqr.q_function(c.problem, c.feedback).matrix.norm()))


def off_policy_deterministic_objective(c: Control) -> Sides:
    """The off-policy objective in its two forms; the quadratic Q over p^pi is a trace and a constant.

    Equation:  J_pi(mu) = integral of p^pi(s) V^mu(s) ds = integral of p^pi(s) Q^mu(s, mu(s)) ds
    Source:    notes 1.11.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q = lqr.q_function(c.problem, c.feedback)
    lift = torch.cat([torch.eye(c.problem.n, dtype=F64), c.feedback])  # (s, mu(s)) from s
    moment = lqr.second_moment(c.problem, c.other)
    right = (lift.mT @ q.matrix @ lift * moment).sum() + c.problem.total_weight * q.constant
    return Sides(lqr.off_policy_objective(c.problem, c.feedback, c.other), right)


def off_policy_deterministic_gradient(c: Control) -> Sides:
    """The off-policy update is the gradient through the action alone, Q held fixed.

    Equation:  integral of p^pi(s) grad_theta mu(s) grad_a Q^mu(s, a) at a = mu(s), grad_theta Q^mu dropped
    Source:    notes 1.11; Silver et al. 2014, Eq. 15.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q = lqr.q_function(c.problem, c.feedback)
    moment = lqr.second_moment(c.problem, c.other)

    def through_the_action(k: Tensor) -> Tensor:
        lift = torch.cat([torch.eye(c.problem.n, dtype=F64), k])
        return (lift.mT @ q.matrix.detach() @ lift * moment).sum()

    return Sides(gradient(through_the_action, c.feedback), lqr.off_policy_semi_gradient(c.problem, c.feedback, c.other))


def off_policy_deterministic_is_approximate(c: Control) -> Sides:
    """Negative control: with grad_theta Q dropped it is not the gradient of J_pi."""
    return Sides(
        gradient(lambda k: lqr.off_policy_objective(c.problem, k, c.other), c.feedback),
        lqr.off_policy_semi_gradient(c.problem, c.feedback, c.other),
    )


def off_policy_deterministic_middle_form(c: Control) -> Sides:
    """Negative control: the middle form as printed, grad mu times Q itself, lacks grad_a; at one state."""
    q, state = lqr.q_function(c.problem, c.feedback), c.problem.initial_mean
    slope = gradient(lambda action: q(state, action), c.feedback @ state).unsqueeze(-1) * state
    return Sides(slope, q(state, c.feedback @ state) * state.expand_as(slope))


def compatible_critic(c: Control) -> Sides:
    """With the compatible critic that fits grad_a Q best, the actor's gradient is exact, though the fit is not.

    Equation:  grad_theta_i J = E_{s~p^mu}[grad_theta_i mu(s)' grad_a Q^w(s, a)],  grad_a Q^w = grad_theta mu(s)' w
    Source:    notes 1.11; Silver et al. 2014, Theorem 3. Two directions D_i = dK/dtheta_i of six.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    directions = torch.stack([c.other, c.feedback])
    return _actor_gradients(c, directions, lqr.compatible_weights(c.problem, c.feedback, directions))


def compatible_critic_of_other_states(c: Control) -> Sides:
    """Negative control: the same critic fitted over the states of another policy."""
    directions = torch.stack([c.other, c.feedback])
    moment = lqr.second_moment(c.problem, c.other)
    gram = torch.einsum("iab,bc,jac->ij", directions, moment, directions)
    slope = torch.einsum("iab,ab->i", directions, lqr.action_gradient(c.problem, c.feedback) @ moment)
    return _actor_gradients(c, directions, torch.linalg.solve(gram, slope))


def _actor_gradients(c: Control, directions: Tensor, w: Tensor) -> Sides:
    """The gradient along each direction, and what the actor follows with the critic of weights w."""
    left = torch.einsum("iab,ab->i", directions, gradient(lambda k: lqr.objective(c.problem, k), c.feedback))
    fitted = torch.einsum("jab,j->ab", directions, w)
    return Sides(left, torch.einsum("iab,ab->i", directions, fitted @ lqr.second_moment(c.problem, c.feedback)))


# 2.1: conservative Q-learning


def policy_improvement(c: Process) -> Sides:
    """Policy improvement climbs E_{a~pi}[Q], whose gradient is the score times Q.

    Equation:  grad_theta E_{a~pi_theta}[Q(s, a)] = E_{a~pi_theta}[grad log pi_theta(a|s) Q(s, a)]
    Source:    notes 2.1, with the expectation under the policy that is optimised.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    left = gradient(lambda theta: (softmax_policy(theta) * c.function).sum(), c.theta)
    centred = c.function - (c.policy * c.function).sum(-1, keepdim=True)
    return Sides(left, c.policy * centred)


def policy_improvement_as_printed(c: Process) -> Sides:
    """Negative control: with a ~ pi^k, as printed, the new policy does not occur in what it is to maximise."""
    left = gradient(lambda theta: (softmax_policy(theta) * c.function).sum(), c.theta)
    return Sides(left, gradient(lambda theta: (c.policy * c.function).sum() + 0.0 * theta.sum(), c.theta))


def _argmin(d: Dataset, q_k: Tensor, penalty: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """(S, A) argmin_Q alpha penalty(Q) + 1/2 E_{s,a,s'~D}[(Q(s, a) - r - gamma E_{a'~pi} Q^k(s', a'))^2].

    By one Newton step from zero: the objective is quadratic with a diagonal Hessian, the weights of the dataset. The
    backup is of a single s', as the dataset has it; ``penalty`` is a mean over its states.
    """
    states = 1.0 / d.model.num_states
    weight = states * d.behaviour.unsqueeze(-1) * d.model.transition
    target = d.model.reward.unsqueeze(-1) + d.model.gamma * (d.policy * q_k).sum(-1)

    def loss(q: Tensor) -> Tensor:
        fit = 0.5 * (weight * (q.unsqueeze(-1) - target).square()).sum()
        return fit if penalty is None else fit + CONSERVATIVE_WEIGHT * penalty(states * q)

    return -gradient(loss, torch.zeros_like(q_k)) / weight.sum(-1)


def policy_evaluation(d: Dataset) -> Sides:
    """The minimiser of the Bellman error on a dataset is the empirical backup.

    Equation:  argmin_Q E_D[(r + gamma E_{a'~pi}[Q^k(s', a')] - Q(s, a))^2] = B-hat Q^k,  Q^k the third iterate
    Source:    notes 2.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q_k, following = _third_and_fourth(d, mdps.conservative_evaluation, weight=0.0)
    return Sides(_argmin(d, q_k), following)


_EVALUATIONS = (mdps.conservative_evaluation, mdps.conservative_evaluation_in_expectation)


def _third_and_fourth(
    d: Dataset, evaluation: Callable[..., Tensor], weight: float = CONSERVATIVE_WEIGHT
) -> tuple[Tensor, Tensor]:
    """Two iterates of a conservative evaluation with mu = pi, one after the other."""
    given = (d.model, d.policy, d.behaviour, d.policy, weight)
    return evaluation(*given, iterations=3), evaluation(*given, iterations=4)


def conservative_update(d: Dataset) -> Sides:
    """The minimiser of the first update, with mu = pi, is the backup less alpha mu / pi_beta: one iteration.

    Equation:  argmin_Q alpha E_{s~D, a~mu}[Q] + 1/2 E_D[(Q - B Q^k)^2] = B Q^k - alpha mu / pi_beta
    Source:    notes 2.1.1; Kumar et al. 2020, Eq. 1. pi_beta and B are empirical, Q^k the third iterate.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q_k, following = _third_and_fourth(d, mdps.conservative_evaluation)
    return Sides(_argmin(d, q_k, lambda q: (d.policy * q).sum()), following)


def conservative_update_in_expectation(d: Dataset) -> Sides:
    """The minimiser of the second update is the backup less alpha (mu / pi_beta - 1): one iteration.

    Equation:  argmin_Q alpha (E_mu[Q] - E_{pi_beta}[Q]) + 1/2 E_D[(Q - B Q^k)^2] = B Q^k - alpha (mu / pi_beta - 1)
    Source:    notes 2.1.1; Kumar et al. 2020, Eq. 2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    q_k, following = _third_and_fourth(d, mdps.conservative_evaluation_in_expectation)
    return Sides(_argmin(d, q_k, lambda q: ((d.policy - d.behaviour) * q).sum()), following)


def conservative_fixed_points(d: Dataset) -> Sides:
    """Iterating either update arrives where the linear solve says.

    Equation:  Q <- B Q - alpha mu / pi_beta,  Q <- B Q - alpha (mu / pi_beta - 1), 500 times from zero
    Source:    notes 2.1.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    given = (d.model, d.policy, d.behaviour, d.policy, CONSERVATIVE_WEIGHT)
    iterated = [f(*given, iterations=500) for f in _EVALUATIONS]
    return Sides(torch.stack(iterated), torch.stack([f(*given) for f in _EVALUATIONS]))


def pointwise_threshold(d: Dataset) -> float:
    """An alpha for which the first bound holds: max over (s, a) of |(B-hat - B) Q^pi| pi_beta / mu, with mu = pi."""
    return float((d.sampling_error.abs() * d.behaviour / d.policy).max())


def expectation_threshold(d: Dataset) -> float:
    """An alpha for which the second bound holds: max over s of |E_pi[(B-hat - B) Q^pi]| / E_pi[pi/pi_beta - 1]."""
    error = (d.policy * d.sampling_error).sum(-1).abs()
    return float((error / (d.policy * (d.policy / d.behaviour - 1.0)).sum(-1)).max())


def conservative_pointwise_bound(d: Dataset) -> Sides:
    """From the threshold on, the penalty takes off at least what sampling error put on, at every state and action.

    Equation:  Q-hat_0 - Q^pi <= Q-hat_0 - Q-hat_alpha, which is Q-hat_alpha <= Q^pi
    Source:    notes 2.1.1; Kumar et al. 2020, Theorem 3.1, with the realised sampling error.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    alpha = pointwise_threshold(d)
    q = mdps.action_value(d.process.mdp, d.policy)
    free, bound = (
        mdps.conservative_evaluation(d.model, d.policy, d.behaviour, d.policy, weight) for weight in (0.0, alpha)
    )
    return Sides(free - q, free - bound)


def conservative_bound_in_expectation(d: Dataset) -> Sides:
    """The same for the mean under the policy, at every state.

    Equation:  V-hat_0 - V^pi <= V-hat_0 - V-hat_alpha, which is E_pi[Q-hat_alpha] <= V^pi
    Source:    notes 2.1.1; Kumar et al. 2020, Theorem 3.2, mu = pi, with the realised sampling error.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    alpha = expectation_threshold(d)
    value = mdps.state_value(d.process.mdp, d.policy)
    free, bound = (
        (d.policy * mdps.conservative_evaluation_in_expectation(d.model, d.policy, d.behaviour, d.policy, weight)).sum(
            -1
        )
        for weight in (0.0, alpha)
    )
    return Sides(free - value, free - bound)


def unpenalised_is_no_bound(d: Dataset) -> Sides:
    """Negative control: without a penalty sampling error overestimates; Q = max(Q, B-hat Q) says that it never does."""
    q = mdps.action_value(d.process.mdp, d.policy)
    return Sides(q, torch.maximum(q, q + d.sampling_error))


def expectation_bound_is_not_pointwise(c: Process) -> Sides:
    """Negative control: the second update bounds the mean only; Q = max(Q, Q-hat) would bound every action value.

    Shown without sampling error, for a policy near the behaviour: what it takes less often is overestimated.
    """
    policy = softmax_policy(c.other_theta + 0.02 * c.function)
    q = mdps.action_value(c.mdp, policy)
    found = mdps.conservative_evaluation_in_expectation(c.mdp, policy, c.other, policy, 10.0)
    return Sides(q, torch.maximum(q, found))


def threshold_falls_with_data(pair: tuple[Dataset, Dataset]) -> Sides:
    """With more data a smaller alpha is enough for the pointwise bound.

    Equation:  alpha(20,000 transitions of every state) <= alpha(60)
    Source:    notes 2.1.1 (Note). The second bound's alpha also depends on how near pi is to the empirical pi_beta.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    small, large = pair
    return Sides(
        torch.tensor(pointwise_threshold(large), dtype=F64), torch.tensor(pointwise_threshold(small), dtype=F64)
    )


def entropy_regulariser(c: Process) -> Sides:
    """CQL(H): the inner maximum over mu, with R scaled by alpha like the rest, is a log-sum-exp.

    Equation:  max_mu alpha (E_mu[Q] + H(mu)) = alpha log sum_a exp Q(s, a), attained at mu = softmax(Q)
    Source:    notes 2.1.2; Kumar et al. 2020, Eq. 4.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    mu = torch.softmax(c.function, -1)
    attained = CONSERVATIVE_WEIGHT * (mu * (c.function - mu.log())).sum(-1)
    return Sides(attained, CONSERVATIVE_WEIGHT * torch.logsumexp(c.function, -1))


def entropy_regulariser_is_a_maximum(c: Process) -> Sides:
    """No other mu reaches it.

    Equation:  exp(E_mu[Q] + H(mu)) <= sum_a exp Q(s, a) for mu = pi
    Source:    notes 2.1.2. Exponentials make both sides positive.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides((c.policy * (c.function - c.policy.log())).sum(-1).exp(), c.function.exp().sum(-1))


def entropy_regulariser_outside(c: Process) -> Sides:
    """Negative control: with R outside alpha, as printed, the maximum is another: log sum_a exp(alpha Q)."""
    mu = torch.softmax(CONSERVATIVE_WEIGHT * c.function, -1)
    attained = (mu * (CONSERVATIVE_WEIGHT * c.function - mu.log())).sum(-1)
    return Sides(attained, CONSERVATIVE_WEIGHT * torch.logsumexp(c.function, -1))


def divergence_regulariser(c: Process) -> Sides:
    """CQL(rho): with a divergence from rho in the place of the entropy, the maximum is log E_rho exp Q.

    Equation:  max_mu E_mu[Q] - KL(mu || rho) = log E_{a~rho}[exp Q(s, a)], attained at mu = rho exp Q / E_rho exp Q
    Source:    notes 2.1.2; Kumar et al. 2020, Appendix A.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    log_rho = c.policy.log()
    mu = torch.softmax(log_rho + c.function, -1)
    return Sides((mu * (c.function - mu.log() + log_rho)).sum(-1), torch.logsumexp(log_rho + c.function, -1))


def weighted_average_gradient(c: Process) -> Sides:
    """The exponentially weighted average of CQL(rho) has the gradient of log E_rho exp Q, its weights held fixed.

    Equation:  grad_Q log E_rho[exp Q] = grad_Q E_rho[w Q],  w = exp Q / E_rho[exp Q] held fixed
    Source:    notes 2.1.2; Kumar et al. 2020, Appendix A.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(_log_mean_slope(c), _weighted_average_slope(c, fixed=True))


def weighted_average_with_moving_weights(c: Process) -> Sides:
    """Negative control: differentiating the weights too gives another gradient."""
    return Sides(_log_mean_slope(c), _weighted_average_slope(c, fixed=False))


def _log_mean_slope(c: Process) -> Tensor:
    return gradient(lambda q: torch.logsumexp(c.policy.log() + q, -1).sum(), c.function)


def _weighted_average_slope(c: Process, *, fixed: bool) -> Tensor:
    def average(q: Tensor) -> Tensor:
        weight = torch.softmax(c.policy.log() + q, -1)
        return ((weight.detach() if fixed else weight) * q).sum()

    return gradient(average, c.function)


# 2.2: preferences


def _margins(score: Tensor) -> Tensor:
    """(P, R, R) score of the first response less that of the second."""
    return score.unsqueeze(-1) - score.unsqueeze(-2)


def bradley_terry(p: Preferences) -> Sides:
    """The Bradley-Terry model is a sigmoid of the difference in reward.

    Equation:  exp r(x, y1) / (exp r(x, y1) + exp r(x, y2)) = sigma(r(x, y1) - r(x, y2))
    Source:    notes 2.2.1, conditioned on the prompt x.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    e = p.score.exp()
    return Sides(e.unsqueeze(-1) / (e.unsqueeze(-1) + e.unsqueeze(-2)), languages.preference_probs(p.score))


def bradley_terry_across_prompts(p: Preferences) -> Sides:
    """Negative control: compared across prompts, a reward's shift f(x) changes the preference."""
    first, second = (r[0] - r[1] for r in (p.score, p.score + p.shift))
    return Sides(torch.sigmoid(first), torch.sigmoid(second))


def _preference_loss(p: Preferences, score: Tensor) -> Tensor:
    """The reward model's population loss, preferences being those of the true score, pairs drawn from pi_ref."""
    weight = languages.pair_weights(p.log_reference)
    return languages.preference_loss(p.language, score, languages.preference_probs(p.score), weight)


def reward_model(p: Preferences) -> Sides:
    """The reward model's loss is smallest at the reward that made the preferences.

    Equation:  L_R(r*) <= L_R(r), r = log pi_theta being as good as any
    Source:    notes 2.2.1 (Gibbs).
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(_preference_loss(p, p.score), _preference_loss(p, p.log_policy))


def reward_model_gradient(p: Preferences) -> Sides:
    """The gradient of the reward model's loss is the error of its preferences.

    Equation:  dL_R/dr(x, y1) = -2 p(x) sum_{y2} w(y1, y2|x) (p*(y1 > y2|x) - sigma(r(x, y1) - r(x, y2)))
    Source:    notes 2.2.1. Twice, since every pair is met in both orders.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    error = torch.sigmoid(_margins(p.score)) - torch.sigmoid(_margins(p.log_policy))
    reference = p.log_reference.exp()
    weight = reference.unsqueeze(-1) * reference.unsqueeze(-2)
    right = -2.0 * p.language.prompt_weight.unsqueeze(-1) * (weight * error).sum(-1)
    return Sides(gradient(lambda r: _preference_loss(p, r), p.log_policy), right)


def _token_rewards(p: Preferences) -> Tensor:
    return languages.shaped_token_rewards(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)


def shaped_reward_per_token(p: Preferences) -> Sides:
    """Per-token rewards, with the score on the last token, sum to the printed reward of the response.

    Equation:  sum_t [-beta (log pi(y_t|y_<t) - log pi_ref(y_t|y_<t))] + r(x, y) = r - beta (log pi(y) - log pi_ref(y))
    Source:    notes 2.2.1.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(_token_rewards(p).sum(-1), p.score - p.kl_coef * (p.log_policy - p.log_reference))


def shaped_reward_by_token_id(p: Preferences) -> Sides:
    """Negative control: real tokens told from padding by their id lose the EOS, and with it the score."""
    real = (p.language.tokens != p.language.eos).to(F64)
    return Sides((_token_rewards(p) * real).sum(-1), p.score - p.kl_coef * (p.log_policy - p.log_reference))


def score_function_of_rlhf(p: Preferences) -> Sides:
    """The gradient through the samples exists: the score times the shaped reward, held fixed.

    Equation:  grad (E_pi[r] - beta KL(pi || pi_ref)) = E_{x, y~pi}[grad log pi (r - beta (log pi - log pi_ref))]
    Source:    notes 2.2.1; the gradient of the reward's own log pi has mean zero.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    given = (p.language, p.logits, p.ref_logits, p.score, p.kl_coef)
    return Sides(languages.rlhf_gradient(*given), languages.rlhf_score_gradient(*given))


def lemma_7(p: Preferences) -> Sides:
    """The optimum of the KL-constrained objective reaches beta E_x log Z(x), and the gradient vanishes there.

    Equation:  max_pi E[r] - beta KL(pi || pi_ref) = beta E_x[log Z(x)], at pi_r = pi_ref exp(r / beta) / Z(x)
    Source:    notes 2.2.2, Lemma 7. The gradient is that of the tabular policy of tokens which pi_r is.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    optimum = p.log_reference + p.score / p.kl_coef - p.partition.log().unsqueeze(-1)
    logits = languages.policy_logits(p.language, optimum)
    slope = languages.rlhf_gradient(p.language, logits, p.ref_logits, p.score, p.kl_coef)
    reached = languages.rlhf_objective(p.language, optimum, p.log_reference, p.score, p.kl_coef)
    best = p.kl_coef * (p.language.prompt_weight @ p.partition.log())
    return Sides(
        torch.cat([optimum.flatten(), reached.view(1), slope.flatten()]),
        torch.cat([p.log_optimum.flatten(), best.view(1), torch.zeros(slope.numel(), dtype=F64)]),
    )


def _objective_by_prompt(p: Preferences) -> Tensor:
    """(P,) E_{y~pi}[r] - beta KL(pi || pi_ref)."""
    kl = languages.kl_divergence(p.log_policy, p.log_reference)
    return languages.expected_score(p.log_policy, p.score) - p.kl_coef * kl


def lemma_7_is_a_maximum(p: Preferences) -> Sides:
    """No policy does better than the optimum, at any prompt.

    Equation:  exp((E_pi[r] - beta KL(pi || pi_ref)) / beta) <= Z(x)
    Source:    notes 2.2.2, Lemma 7. Exponentials make both sides positive.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides((_objective_by_prompt(p) / p.kl_coef).exp(), p.partition)


def lemma_7_gap(p: Preferences) -> Sides:
    """What a policy misses of the optimum is its divergence from it.

    Equation:  E_pi[r] - beta KL(pi || pi_ref) = beta log Z(x) - beta KL(pi || pi*), for every x
    Source:    notes 2.2.2, the proof of Lemma 7.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    right = p.kl_coef * (p.partition.log() - languages.kl_divergence(p.log_policy, p.log_optimum))
    return Sides(_objective_by_prompt(p), right, scale=float(p.score.norm()))


def lemma_7_chain_as_printed(p: Preferences) -> Sides:
    """Negative control: the chain of equalities taken at its word, from the objective to the divergence alone.

    It keeps the argmin, not the value: the sign, the factor beta and log Z(x) are lost on the way.
    """
    return Sides(_objective_by_prompt(p), languages.kl_divergence(p.log_policy, p.log_optimum))


def reparametrised_reward(p: Preferences) -> Sides:
    """The reward in terms of its optimal policy.

    Equation:  r(x, y) = beta log(pi*(y|x) / pi_ref(y|x)) + beta log Z(x)
    Source:    notes 2.2.2, with pi*.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    implied = languages.implied_reward(p.log_optimum, p.log_reference, p.kl_coef)
    return Sides(p.score, implied + p.kl_coef * p.partition.log().unsqueeze(-1))


def reparametrised_reward_of_another_policy(p: Preferences) -> Sides:
    """Negative control: with pi_theta, as printed, in the place of pi*."""
    implied = languages.implied_reward(p.log_policy, p.log_reference, p.kl_coef)
    return Sides(p.score, implied + p.kl_coef * p.partition.log().unsqueeze(-1))


def invariant_to_a_shift(p: Preferences) -> Sides:
    """A function of the prompt added to the reward changes neither the optimal policy nor the preferences.

    Equation:  pi_{r + f(x)} = pi_r,  p*_{r + f(x)} = p*_r
    Source:    notes 2.2.2; Rafailov et al. 2023, Lemmas 1 and 2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    shifted = p._replace(score=p.score + p.shift)
    left, right = (
        torch.cat([q.log_optimum.flatten(), languages.preference_probs(q.score).flatten()]) for q in (shifted, p)
    )
    return Sides(left, right)


def preferences_of_the_optimum(p: Preferences) -> Sides:
    """The preferences in terms of the optimal policy alone: Z(x) cancels.

    Equation:  p*(y1 > y2|x) = 1 / (1 + exp(beta log pi*(y2)/pi_ref(y2) - beta log pi*(y1)/pi_ref(y1)))
    Source:    notes 2.2.2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    ratio = p.kl_coef * (p.log_optimum - p.log_reference)
    return Sides(languages.preference_probs(p.score), 1.0 / (1.0 + torch.exp(-_margins(ratio))))


def _dpo_loss(p: Preferences, log_policy: Tensor) -> Tensor:
    return languages.dpo_loss(p.language, log_policy, p.log_reference, languages.preference_probs(p.score), p.kl_coef)


def dpo_loss_is_the_reward_loss(p: Preferences) -> Sides:
    """The DPO loss of the optimal policy is the reward model's loss at its reward, and stationary there.

    Equation:  L_DPO(pi*; pi_ref) = L_R(r),  grad L_DPO at pi* = 0
    Source:    notes 2.2.2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    slope = gradient(lambda logits: _dpo_loss(p, torch.log_softmax(logits, -1)), p.log_optimum)
    left = torch.cat([_dpo_loss(p, p.log_optimum).view(1), slope.flatten()])
    return Sides(left, torch.cat([_preference_loss(p, p.score).view(1), torch.zeros(slope.numel(), dtype=F64)]))


def dpo_is_smallest_at_the_optimum(p: Preferences) -> Sides:
    """No policy has a smaller DPO loss than the optimal one.

    Equation:  L_DPO(pi*; pi_ref) <= L_DPO(pi; pi_ref)
    Source:    notes 2.2.2.
    Verified:  tests/exact/test_theorems.py::test_every_statement
    """
    return Sides(_dpo_loss(p, p.log_optimum), _dpo_loss(p, p.log_policy))


# The table


STATEMENTS: tuple[Statement, ...] = (
    Statement("1", "p^pi(s) = sum_k gamma^k P(s_0 -> s, k)", EQUALITY, continuing, discounted_visits),
    Statement(
        "1", "d^pi = (1 - gamma) p^pi, sums to 1 with the absorbing state", EQUALITY, episodic, state_distribution
    ),
    Statement("1", "d^pi without the absorbing state", CONTROL, episodic, state_distribution_without_the_end),
    Statement("1.1", "V(s) = sum_a pi(a|s) Q(s, a)", EQUALITY, continuing, value_over_actions),
    Statement("1.1", "V = sum_tau P(tau) R(tau)", EQUALITY, episodic, value_over_trajectories),
    Statement("1.1", "Lemma 1: grad V = sum_tau R P grad log P", EQUALITY, episodic, lemma_1),
    Statement("1.1", "Lemma 2: grad log P(tau) = sum_t grad log pi", EQUALITY, episodic, lemma_2),
    Statement("1.1", "Lemma 2 without the gradient sign", CONTROL, episodic, lemma_2_without_the_gradient_sign),
    Statement("1.1", "Lemma 2 with steps from 1", CONTROL, episodic, lemma_2_from_step_1),
    Statement(
        "1.1", "grad V = E[(sum_t grad log pi) (sum_t gamma^t r)]", EQUALITY, episodic, likelihood_ratio_gradient
    ),
    Statement("1.1", "recursion of eta", EQUALITY, episodic, eta_recursion),
    Statement("1.1", "eta = p^pi", EQUALITY, episodic, eta_is_discounted_visits),
    Statement("1.1", "eta counts visits at gamma = 1", EQUALITY, undiscounted_episodic, eta_is_discounted_visits),
    Statement("1.1", "Theorem 3, p^pi", EQUALITY, continuing, theorem_3),
    Statement("1.1", "Theorem 3 at gamma = 1", EQUALITY, undiscounted_episodic, theorem_3),
    Statement("1.1", "Theorem 3 as an expectation of scores", EQUALITY, continuing, theorem_3_as_expectation),
    Statement("1.1", "Theorem 3, the constant of proportionality", EQUALITY, episodic, theorem_3_constant),
    Statement("1.1", "Theorem 3 without the constant", CONTROL, episodic, theorem_3_without_the_constant),
    Statement("1.1", "Theorem 3, states weighted without gamma^t", CONTROL, episodic, theorem_3_undiscounted_states),
    Statement("1.4", "E[b(s) grad log pi] = 0", EQUALITY, continuing, baseline_has_zero_mean),
    Statement("1.4", "a baseline that sees the action", CONTROL, continuing, baseline_of_the_action),
    Statement("1.4", "Theorem 3 with a baseline", EQUALITY, episodic, theorem_3_with_baseline),
    Statement("1.6", "J_beta = sum p^beta V = sum p^beta pi Q", EQUALITY, continuing, off_policy_objective),
    Statement("1.6", "E_beta[rho grad log pi Q] = sum p^beta grad pi Q", EQUALITY, continuing, off_policy_gradient),
    Statement("1.6", "grad Q dropped", CONTROL, continuing, off_policy_gradient_is_approximate),
    Statement("1.6", "emphasis gives the gradient, d^beta", EQUALITY, continuing, emphatic_gradient),
    Statement("1.6", "emphasis gives the gradient, p^beta", EQUALITY, continuing, emphatic_gradient_discounted),
    Statement("1.6", "emphasis = E_beta[sum_t F_t]", EQUALITY, episodic, emphasis_is_followed),
    Statement("1.6", "emphasis with interest 1 and p^beta", CONTROL, episodic, emphasis_with_interest_1),
    Statement("1.7", "V = E[Q - temperature log pi]", EQUALITY, continuing, soft_value),
    Statement("1.7", "V without the temperature", CONTROL, continuing, soft_value_at_temperature_1),
    Statement("1.7", "Q = r + gamma E[V]", EQUALITY, continuing, soft_bellman),
    Statement("1.7", "Q = r + gamma E[V] up to termination", EQUALITY, episodic, soft_bellman),
    Statement("1.7", "Q = r + gamma E[V] past the end", CONTROL, episodic, soft_bellman_past_the_end),
    Statement("1.7", "gradient of the value loss", EQUALITY, continuing, soft_value_gradient),
    Statement("1.7", "gradient of the Q-function's loss", EQUALITY, continuing, soft_q_gradient),
    Statement("1.7", "no policy beats the soft optimum", INEQUALITY, continuing, soft_improvement),
    Statement("1.8", "lim E[R_t] = sum_s mu(s) sum_a pi r", EQUALITY, continuing, average_reward),
    Statement("1.8", "V(s) = E[sum_t R_t - r(pi)]", EQUALITY, continuing, differential_values),
    Statement("1.8", "E[r - r(pi) + v(s') - v(s)] = 0", EQUALITY, continuing, differential_error),
    Statement("1.8", "TD error without the gain", CONTROL, continuing, differential_error_without_the_gain),
    Statement("1.8", "Theorem 4", EQUALITY, continuing, theorem_4),
    Statement("1.8", "Theorem 4, its proof, state by state", EQUALITY, continuing, theorem_4_proof),
    Statement("1.8", "Theorem 4 with discounted values", CONTROL, continuing, theorem_4_with_discounted_values),
    Statement("1.9", "P(s_t = s), the product from i = 0", EQUALITY, episodic, probability_of_a_state),
    Statement("1.9", "P(s_t = s), the product from i = 1", CONTROL, episodic, probability_of_a_state_from_step_1),
    Statement("1.9", "Lemma 5, arbitrary f", EQUALITY, episodic, lemma_5),
    Statement("1.9", "Theorem 6: performance difference", EQUALITY, continuing, theorem_6),
    Statement("1.9", "Theorem 6 along trajectories", EQUALITY, episodic, theorem_6_over_trajectories),
    Statement("1.9", "Theorem 6, its proof's two steps", EQUALITY, episodic, theorem_6_proof),
    Statement("1.9", "Theorem 6 at the other policy's states", CONTROL, continuing, theorem_6_at_the_other_states),
    Statement("1.10", "V' - V = E_{d'} E_pi[ratio A]/(1 - gamma)", EQUALITY, continuing, surrogate_identity),
    Statement("1.10", "L(pi) = 0, grad L(pi) = grad V", EQUALITY, continuing, surrogate_to_first_order),
    Statement("1.10", "V' - V = L", CONTROL, continuing, surrogate_is_not_the_difference),
    Statement("1.10", "|V' - V - L| <= C sqrt(E KL)", INEQUALITY, continuing, trpo_bound),
    Statement("1.10", "|V' - V - L| <= sqrt(2) C E D_TV", INEQUALITY, continuing, total_variation_bound),
    Statement("1.10", "L <= V' - V + C sqrt(E KL), a natural step", INEQUALITY, continuing, improvement_bound),
    Statement(
        "1.10", "PPO's KL penalty: grad V at the old policy", EQUALITY, continuing, penalised_surrogate_to_first_order
    ),
    Statement("1.10", "L > 0 and KL <= 0.01 mean improvement", CONTROL, shared_step, improvement_is_not_guaranteed),
    Statement("1.10", "KL(pi'||pi) = KL(pi||pi')", CONTROL, continuing, kl_directions),
    Statement("1.10", "A^(k) = sum_l gamma^l delta, every k", EQUALITY, recording, k_step_telescopes),
    Statement("1.10", "A^(2) with gamma V(s_{t+2})", CONTROL, recording, two_step_advantage_as_printed),
    Statement("1.10", "GAE, its two forms, finite", EQUALITY, recording, gae_two_forms),
    Statement("1.10", "GAE, its two forms, infinite", EQUALITY, recording, gae_infinite),
    Statement("1.10", "GAE, last weight (1 - lambda) lambda^(n-1)", CONTROL, recording, gae_with_equal_last_weight),
    Statement("1.10", "GAE, second line as printed", CONTROL, recording, gae_second_line_as_printed),
    Statement("1.11", "J = sum p^pi pi r", EQUALITY, continuing, objective_over_visits),
    Statement("1.11", "J with p^pi from t = 1", CONTROL, continuing, objective_over_visits_from_step_1),
    Statement("1.11", "J = integral of p^mu r(s, mu(s)), LQR", EQUALITY, control, control_objective_over_visits),
    Statement("1.11", "deterministic policy gradient theorem, LQR", EQUALITY, control, deterministic_policy_gradient),
    Statement("1.11", "grad Q(s, mu(s)) = grad mu grad_a Q", EQUALITY, control, chain_rule),
    Statement("1.11", "E[delta] = 0 at Q^mu, any action", EQUALITY, control, critic_error),
    Statement("1.11", "the same with the behaviour's next action", CONTROL, control, critic_error_of_the_behaviour),
    Statement("1.11", "J_pi = integral of p^pi V = of p^pi Q", EQUALITY, control, off_policy_deterministic_objective),
    Statement("1.11", "off-policy update = grad mu grad_a Q", EQUALITY, control, off_policy_deterministic_gradient),
    Statement("1.11", "off-policy, grad Q dropped", CONTROL, control, off_policy_deterministic_is_approximate),
    Statement("1.11", "off-policy, grad mu Q without grad_a", CONTROL, control, off_policy_deterministic_middle_form),
    Statement("1.11", "compatible critic gives the gradient", EQUALITY, control, compatible_critic),
    Statement("1.11", "compatible critic of other states", CONTROL, control, compatible_critic_of_other_states),
    Statement("2.1", "policy evaluation: argmin = B-hat Q", EQUALITY, dataset, policy_evaluation),
    Statement("2.1", "policy improvement under the new policy", EQUALITY, continuing, policy_improvement),
    Statement("2.1", "policy improvement under pi^k", CONTROL, continuing, policy_improvement_as_printed),
    Statement("2.1.1", "argmin = B Q - alpha mu/pi_beta", EQUALITY, dataset, conservative_update),
    Statement("2.1.1", "argmin = B Q - alpha (mu/pi_beta - 1)", EQUALITY, dataset, conservative_update_in_expectation),
    Statement("2.1.1", "both fixed points by iteration", EQUALITY, dataset, conservative_fixed_points),
    Statement("2.1.1", "Q-hat <= Q at the threshold", INEQUALITY, dataset, conservative_pointwise_bound),
    Statement("2.1.1", "E_pi[Q-hat] <= V at the threshold", INEQUALITY, dataset, conservative_bound_in_expectation),
    Statement("2.1.1", "B-hat Q <= Q with alpha = 0", CONTROL, dataset, unpenalised_is_no_bound),
    Statement("2.1.1", "second update bounds pointwise", CONTROL, continuing, expectation_bound_is_not_pointwise),
    Statement("2.1.1", "the threshold falls with the data", INEQUALITY, datasets, threshold_falls_with_data),
    Statement("2.1.2", "CQL(H): max = alpha log-sum-exp", EQUALITY, continuing, entropy_regulariser),
    Statement("2.1.2", "CQL(H): no other mu is better", INEQUALITY, continuing, entropy_regulariser_is_a_maximum),
    Statement("2.1.2", "CQL(H) with R outside alpha", CONTROL, continuing, entropy_regulariser_outside),
    Statement("2.1.2", "CQL(rho): max = log E_rho exp Q", EQUALITY, continuing, divergence_regulariser),
    Statement("2.1.2", "CQL(rho): weighted average, weights fixed", EQUALITY, continuing, weighted_average_gradient),
    Statement("2.1.2", "CQL(rho): weights not fixed", CONTROL, continuing, weighted_average_with_moving_weights),
    Statement("2.2.1", "Bradley-Terry = sigma(r1 - r2)", EQUALITY, preferences, bradley_terry),
    Statement("2.2.1", "preferences across prompts", CONTROL, preferences, bradley_terry_across_prompts),
    Statement("2.2.1", "L_R(r*) <= L_R(r)", INEQUALITY, preferences, reward_model),
    Statement("2.2.1", "gradient of L_R", EQUALITY, preferences, reward_model_gradient),
    Statement("2.2.1", "per-token rewards sum to the printed one", EQUALITY, preferences, shaped_reward_per_token),
    Statement("2.2.1", "tokens told from padding by id", CONTROL, preferences, shaped_reward_by_token_id),
    Statement("2.2.1", "gradient of (2) by scores", EQUALITY, preferences, score_function_of_rlhf),
    Statement("2.2.2", "Lemma 7: optimum and its value", EQUALITY, preferences, lemma_7),
    Statement("2.2.2", "Lemma 7: no policy is better", INEQUALITY, preferences, lemma_7_is_a_maximum),
    Statement("2.2.2", "Lemma 7: the gap is beta KL(pi||pi*)", EQUALITY, preferences, lemma_7_gap),
    Statement("2.2.2", "Lemma 7: the chain taken as values", CONTROL, preferences, lemma_7_chain_as_printed),
    Statement("2.2.2", "r = beta log(pi*/pi_ref) + beta log Z", EQUALITY, preferences, reparametrised_reward),
    Statement("2.2.2", "the same with pi_theta", CONTROL, preferences, reparametrised_reward_of_another_policy),
    Statement("2.2.2", "invariance to f(x)", EQUALITY, preferences, invariant_to_a_shift),
    Statement("2.2.2", "preferences of pi*", EQUALITY, preferences, preferences_of_the_optimum),
    Statement("2.2.2", "L_DPO(pi*) = L_R(r), stationary", EQUALITY, preferences, dpo_loss_is_the_reward_loss),
    Statement("2.2.2", "L_DPO(pi*) <= L_DPO(pi)", INEQUALITY, preferences, dpo_is_smallest_at_the_optimum),
)
"""Every statement that needs nothing but the exact solutions, by section of the notes."""
