"""Random problems for the statements to be about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients, lqr, offline, optimal
from steepest.exact import language as languages
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy
from steepest.verification.statement import F64, gradient


class Paths(NamedTuple):
    """Every trajectory of an episodic process, time-major over K trajectories; rows after the end have valid False."""

    state: Tensor  # (T+1, K) int64; after the end, the absorbing state
    action: Tensor  # (T, K) int64
    reward: Tensor  # (T, K)
    terminated: Tensor  # (T, K) bool
    valid: Tensor  # (T, K) bool
    probability: Tensor  # (K,)

    @property
    def flags(self) -> tuple[Tensor, Tensor, Tensor]:
        """terminated, truncated (never), valid."""
        return self.terminated, torch.zeros_like(self.terminated), self.valid


HORIZON = 3
"""No episode of ``episodic`` is longer."""

SOFT_TEMPERATURE = 0.4
"""Reward units per nat."""

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
        return gradients.objective_gradient(self.mdp, softmax_policy, self.theta)

    @cached_property
    def trajectory_scores(self) -> Tensor:
        """(K, S, A) grad log P_theta(tau) of every trajectory, by automatic differentiation."""
        leaf = self.theta.detach().clone().requires_grad_()
        log_p = self.log_probability(leaf)
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
    def soft(self) -> optimal.Solution:
        """The maximum-entropy optimum at SOFT_TEMPERATURE."""
        return optimal.soft_optimal(self.mdp, SOFT_TEMPERATURE)

    def log_probability(self, theta: Tensor) -> Tensor:
        """(K,) log P_theta(tau) of every trajectory, from the product of probabilities itself."""
        s, a = self.paths.state[:-1], self.paths.action
        chosen = softmax_policy(theta)[s, a] * self.mdp.transition[s, a, self.paths.state[1:]]
        factors = torch.where(self.paths.valid, chosen, torch.ones_like(chosen))
        return torch.log(self.mdp.initial[self.paths.state[0]] * factors.prod(0))

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


def stream(seed: int, purpose: int) -> torch.Generator:
    """A generator of its own for every purpose."""
    return torch.Generator().manual_seed(1_000_003 * purpose + seed)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Standard normals."""
    return torch.randn(shape, generator=g, dtype=F64)


def uniform(g: torch.Generator, low: float, high: float) -> float:
    """A number between low and high."""
    return low + (high - low) * float(torch.rand((), generator=g, dtype=F64))


def probabilities(g: torch.Generator, *shape: int) -> Tensor:
    """Rows drawn uniformly from the simplex."""
    draw = -torch.log(torch.rand(shape, generator=g, dtype=F64).clamp(min=1e-12))
    return draw / draw.sum(-1, keepdim=True)


def _with_policies(g: torch.Generator, mdp: FiniteMDP) -> Process:
    shape = (mdp.num_states, mdp.num_actions)
    return Process(mdp, normal(g, *shape), normal(g, *shape), normal(g, *shape), 2.0 * normal(g, mdp.num_states))


@lru_cache(maxsize=256)
def continuing(seed: int) -> Process:
    """Five states, three actions, every transition possible, gamma between 0.6 and 0.95."""
    g = stream(seed, 1)
    mdp = FiniteMDP(probabilities(g, 5, 3, 5), normal(g, 5, 3), probabilities(g, 5), uniform(g, 0.6, 0.95))
    return _with_policies(g, mdp)


@lru_cache(maxsize=256)
def episodic(seed: int) -> Process:
    """Three layers of two states and an absorbing one; each step may end the episode, the third does."""
    g = stream(seed, 2)
    states = 2 * HORIZON + 1
    transition = torch.zeros((states, 2, states), dtype=F64)
    for layer in range(HORIZON):
        rows = slice(2 * layer, 2 * layer + 2)
        if layer + 1 < HORIZON:
            draw = probabilities(g, 2, 2, 3)
            transition[rows, :, 2 * layer + 2 : 2 * layer + 4] = draw[..., :2]
            transition[rows, :, -1] = draw[..., 2]
        else:
            transition[rows, :, -1] = 1.0
    transition[-1, :, -1] = 1.0
    reward = torch.cat([normal(g, states - 1, 2), torch.zeros((1, 2), dtype=F64)])
    initial = torch.cat([probabilities(g, 2), torch.zeros(states - 2, dtype=F64)])
    return _with_policies(g, FiniteMDP(transition, reward, initial, uniform(g, 0.6, 0.95)))


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

    @property
    def flags(self) -> tuple[Tensor, Tensor, Tensor]:
        """terminated (never), truncated (never), valid (always)."""
        never = torch.zeros_like(self.reward, dtype=torch.bool)
        return never, never, ~never


@lru_cache(maxsize=256)
def recording(seed: int) -> Recording:
    """Ten steps, gamma and lambda between 0.5 and 0.95."""
    g = stream(seed, 3)
    return Recording(normal(g, 10), normal(g, 11), uniform(g, 0.5, 0.95), uniform(g, 0.5, 0.95))


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
    g = stream(seed, 4)
    process = continuing(seed)
    mdp = process.mdp
    joint = process.other.unsqueeze(-1) * mdp.transition
    draws = torch.multinomial(joint.flatten(1), size, replacement=True, generator=g)
    counts = torch.zeros(joint.flatten(1).shape, dtype=F64).scatter_add_(1, draws, torch.ones(draws.shape, dtype=F64))
    counts = counts.view_as(joint)
    seen = counts.sum(-1)
    counts = torch.where(seen.unsqueeze(-1) == 0.0, mdp.transition, counts)  # full support, as the theorems ask
    noise = normal(g, *mdp.reward.shape) / seen.clamp(min=1.0).sqrt()
    model, behaviour = offline.empirical_model(mdp, counts, mdp.reward + noise)
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
    g = stream(seed, 5)
    problem = lqr.random_lqr(3, 2, seed, gamma=uniform(g, 0.6, 0.95))

    def stabilising() -> Tensor:
        feedback = 0.3 * normal(g, 2, 3)
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
    g = stream(seed, 6)
    weight = probabilities(g, 2).tolist()
    language = languages.EnumerableLanguage(((1,), (2,)), tuple(weight), vocab_size=3, eos=0, max_length=2)
    logits, ref_logits = normal(g, *language.table_shape), normal(g, *language.table_shape)
    score = normal(g, *language.response_shape)
    return Preferences(language, logits, ref_logits, score, uniform(g, 0.2, 2.0), normal(g, 2, 1))


def weighted_gradient(c: Process, weight: Tensor, q: Tensor) -> Tensor:
    """(S, A) sum_s weight(s) sum_a q(s, a) grad pi(a|s), the form of every policy-gradient theorem."""
    fixed = weight.unsqueeze(-1) * q
    return gradient(lambda theta: (fixed * softmax_policy(theta)).sum(), c.theta)
