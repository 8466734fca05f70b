"""Ground truth for the tests: a small enumerable decision process, and defining sums written as loops.

Nothing here uses the library's own mathematics, only its containers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from beartype import beartype
from numpy.typing import NDArray
from torch import Tensor

from steepest.types import ActionSpec, ObsField, ObsSpec, Rollout

F64 = torch.float64


def discrete(*sizes: int) -> ActionSpec:
    kind = "discrete" if len(sizes) == 1 else "multi_discrete"
    return ActionSpec(kind, () if len(sizes) == 1 else (len(sizes),), "int64", sizes, (0,) * len(sizes))


def bits(d: int) -> ActionSpec:
    return ActionSpec("multi_binary", (d,), "int8", (2,) * d, (0,) * d)


def box(d: int, bound: float = 1.0) -> ActionSpec:
    return ActionSpec("box", (d,), "float32", low=(-bound,) * d, high=(bound,) * d)


def vector(*shape: int) -> ObsSpec:
    return ObsSpec((ObsField("obs", "vector", shape, "float32"),), is_dict=False)


def to_float64(agent: Any) -> Any:
    """The same agent with parameters, moments and statistics in float64."""
    for module in agent.modules.values():
        module.double()
    agent.state = {k: v.double() if v.is_floating_point() else v for k, v in agent.state.items()}
    return agent


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the import hook puts around a function: beartype, and for a method of a NamedTuple its fields' shapes too.

    Checking the fields binds their axis names, so that an action of another batch than the distribution's is an error.
    """
    checked = beartype(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        owner = type(args[0]) if args else None
        if hasattr(owner, "_fields"):
            for name, hint in get_type_hints(owner).items():
                if not isinstance(getattr(args[0], name), hint):
                    raise TypeError(
                        f"{owner.__name__}.{name} has shape {tuple(getattr(args[0], name).shape)}, not {hint}"
                    )
        return checked(*args, **kwargs)

    return wrapper


# A decision process whose trajectories can all be listed


class Paths(NamedTuple):
    """Every trajectory, time-major (T, K); rows after an episode's end have valid False."""

    state: Tensor  # (T+1, K)
    action: Tensor
    reward: Tensor
    terminated: Tensor
    valid: Tensor
    probability: Tensor  # (K,) under the policy that they were listed for


@dataclass(frozen=True)
class LayeredMDP:
    """An episode visits layers 0, 1, ..., horizon-1 and may end early; the layer is part of the state.

    ``transition[s, a, s']`` falls short of 1 by the probability of termination. The last layer always terminates.
    """

    transition: Tensor  # (S, A, S)
    reward: Tensor  # (S, A, S+1): by where the step leads, the last entry being termination
    start: Tensor  # (S,)
    gamma: float
    horizon: int

    @property
    def states(self) -> int:
        return self.transition.shape[0]

    @property
    def actions(self) -> int:
        return self.transition.shape[1]

    def with_end(self) -> Tensor:
        """(S, A, S+1): transition probabilities with termination as the last outcome."""
        return torch.cat([self.transition, 1.0 - self.transition.sum(-1, keepdim=True)], -1)

    def values(self, policy: Tensor) -> Tensor:
        """(S,) discounted values of a policy (S, A), by the linear solve; differentiable."""
        expected = (self.with_end() * self.reward).sum(-1)
        p = torch.einsum("sa,sat->st", policy, self.transition)
        r = (policy * expected).sum(-1)
        return torch.linalg.solve(torch.eye(self.states, dtype=F64) - self.gamma * p, r)

    def q_values(self, policy: Tensor) -> Tensor:
        """(S, A)"""
        return (self.with_end() * self.reward).sum(-1) + self.gamma * self.transition @ self.values(policy)

    def discounted_visits(self, policy: Tensor) -> Tensor:
        """(S,) sum_t gamma^t P(s_t = s)."""
        p = torch.einsum("sa,sat->st", policy, self.transition)
        return torch.linalg.solve((torch.eye(self.states, dtype=F64) - self.gamma * p).T, self.start)

    def objective(self, policy: Tensor) -> Tensor:
        return self.start @ self.values(policy)

    def gradient(self, logits: Tensor) -> Tensor:
        """The exact gradient of the objective in the logits of a softmax policy: autodiff through the solve."""
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(self.objective(torch.softmax(leaf, -1)), leaf)[0]

    def paths(self, policy: Tensor) -> Paths:
        """All trajectories of nonzero probability."""
        outcomes, rewards, pi = self.with_end().numpy(), self.reward.numpy(), policy.detach().numpy()
        found: list[tuple[list[tuple[int, int, float, int]], float]] = []

        def follow(steps: list[tuple[int, int, float, int]], state: int, probability: float) -> None:
            for a in range(self.actions):
                for to in range(self.states + 1):
                    p = probability * pi[state, a] * outcomes[state, a, to]
                    if p <= 1e-14:
                        continue
                    path = [*steps, (state, a, float(rewards[state, a, to]), to)]
                    if to == self.states:
                        found.append((path, p))
                    else:
                        follow(path, to, p)

        for s in range(self.states):
            if self.start[s] > 0:
                follow([], s, float(self.start[s]))
        t, k = self.horizon, len(found)
        out = Paths(
            torch.zeros((t + 1, k), dtype=torch.int64),
            torch.zeros((t, k), dtype=torch.int64),
            torch.zeros((t, k), dtype=F64),
            torch.zeros((t, k), dtype=torch.bool),
            torch.zeros((t, k), dtype=torch.bool),
            torch.tensor([p for _, p in found], dtype=F64),
        )
        for j, (path, _) in enumerate(found):
            for i, (s, a, r, to) in enumerate(path):
                out.state[i, j], out.action[i, j], out.reward[i, j], out.valid[i, j] = s, a, r, True
                if to == self.states:
                    out.terminated[i, j] = True
                    out.state[i + 1 :, j] = s  # what the recorder sees after the end must not matter
        return out


def layered_mdp(seed: int, gamma: float, *, width: int = 2, actions: int = 2, horizon: int = 4) -> LayeredMDP:
    """Random rewards and transition probabilities; each step ends the episode with a probability of its own."""
    g = torch.Generator().manual_seed(seed)
    s = width * horizon
    transition = torch.zeros((s, actions, s), dtype=F64)
    for layer in range(horizon - 1):
        rows = slice(layer * width, (layer + 1) * width)
        draw = torch.rand((width, actions, width + 1), generator=g, dtype=F64) + 0.1
        transition[rows, :, (layer + 1) * width : (layer + 2) * width] = (draw / draw.sum(-1, keepdim=True))[
            ..., :width
        ]
    reward = torch.randn((s, actions, s + 1), generator=g, dtype=F64)
    start = torch.zeros(s, dtype=F64)
    start[:width] = torch.softmax(torch.randn(width, generator=g, dtype=F64), 0)
    return LayeredMDP(transition, reward, start, gamma, horizon)


def quarters_mdp(seed: int, gamma: float) -> LayeredMDP:
    """Two states, two actions, three layers, every probability a multiple of 1/4.

    With a policy in quarters too, a finite sample exists in which every trajectory occurs exactly as often as expected.
    """
    g = torch.Generator().manual_seed(seed)
    horizon, width = 3, 2
    s = horizon * width
    transition = torch.zeros((s, 2, s), dtype=F64)
    for layer in range(horizon - 1):
        for i in range(width):
            for a in range(2):
                row = torch.tensor([(1 + i) / 4, (2 - i) / 4] if a == 0 else [2 / 4, 1 / 4], dtype=F64)
                transition[layer * width + i, a, (layer + 1) * width : (layer + 2) * width] = row
    reward = torch.randn((s, 2, s + 1), generator=g, dtype=F64)
    start = torch.zeros(s, dtype=F64)
    start[0], start[1] = 1 / 4, 3 / 4
    return LayeredMDP(transition, reward, start, gamma, horizon)


def expected_rollout(mdp: LayeredMDP, policy: Tensor) -> tuple[Rollout, int]:
    """One rollout that holds every trajectory in exact proportion to its probability; observations are one-hot."""
    paths = mdp.paths(policy)
    smallest = float(paths.probability.min())
    repeats = (paths.probability / smallest).round().to(torch.int64)
    scale = next(k for k in range(1, 65) if torch.allclose(*_scaled(paths.probability, smallest, k), atol=1e-9, rtol=0))
    repeats = (paths.probability * scale / smallest).round().to(torch.int64)
    index = torch.arange(len(repeats)).repeat_interleave(repeats)
    state = paths.state[:, index]
    step = torch.arange(mdp.horizon + 1).unsqueeze(1).expand(-1, len(index))
    rollout = Rollout(
        obs={"obs": torch.nn.functional.one_hot(state, mdp.states).to(F64)},
        action=paths.action[:, index],
        reward=paths.reward[:, index],
        terminated=paths.terminated[:, index],
        truncated=torch.zeros_like(paths.terminated[:, index]),
        valid=paths.valid[:, index],
        episode_step=step,
        action_mask=None,
        memory=None,
    )
    return rollout, len(index)


def _scaled(probability: Tensor, smallest: float, k: int) -> tuple[Tensor, Tensor]:
    scaled = probability * k / smallest
    return scaled, scaled.round()


# Defining sums


def defining_gae(
    reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, valid: Tensor, gamma: float, lam: float
) -> Tensor:
    """sum_l (gamma lambda)^l delta_{t+l} over the decided steps of the episode, by a double loop; NaN where undecided.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with V = 0 after termination.
    """
    steps, envs = reward.shape
    out = torch.full((steps, envs), float("nan"), dtype=F64)
    for n in range(envs):
        for t in range(steps):
            if not valid[t, n]:
                continue
            total, power = 0.0, 1.0
            for k in range(t, steps):
                if not valid[k, n]:
                    continue
                following = 0.0 if terminated[k, n] else float(value[k + 1, n])
                total += power * (float(reward[k, n]) + gamma * following - float(value[k, n]))
                power *= gamma * lam
                if terminated[k, n] or truncated[k, n]:
                    break
            out[t, n] = total
    return out


def defining_vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    lam: float,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(v_t, q_t) by the definitions, in loops over the decided steps of the episode; NaN where undecided.

    v_t = V(s_t) + sum_k gamma^k c_t ... c_{t+k-1} rho_{t+k} delta_{t+k},  q_t = r_t + gamma of what V and v make of
    s_{t+1}, in the proportion 1 - lambda to lambda; V alone where the recording stops, nothing after termination.
    """
    steps, envs = reward.shape
    v, q = (torch.full((steps, envs), float("nan"), dtype=F64) for _ in range(2))
    for n in range(envs):
        for t in range(steps):
            if not valid[t, n]:
                continue
            total, product = float(value[t, n]), 1.0
            for k in range(t, steps):
                if not valid[k, n]:
                    continue
                following = 0.0 if terminated[k, n] else float(value[k + 1, n])
                delta = float(reward[k, n]) + gamma * following - float(value[k, n])
                ratio = math.exp(float(log_ratio[k, n]))
                total += product * min(rho_bar, ratio) * delta
                product *= gamma * lam * min(c_bar, ratio)
                if terminated[k, n] or truncated[k, n]:
                    break
            v[t, n] = total
        for t in range(steps):
            if not valid[t, n]:
                continue
            later = next((k for k in range(t + 1, steps) if valid[k, n]), None)
            here = float(value[t + 1, n])
            if terminated[t, n]:
                following = 0.0
            elif truncated[t, n] or later is None:
                following = here
            else:
                following = (1.0 - lam) * here + lam * float(v[later, n])
            q[t, n] = float(reward[t, n]) + gamma * following
    return v, q


class Ragged(NamedTuple):
    """Time-major experience of several environments with episodes of many lengths, in the NEXT_STEP convention."""

    reward: Tensor
    value: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor


def ragged(seed: int, steps: int = 23, envs: int = 6, pauses: tuple[int, ...] = ()) -> Ragged:
    """Random episodes; an end is followed by a restart row; the rows in ``pauses`` stand still for all."""
    g = np.random.default_rng(seed)
    reward, value = torch.zeros((steps, envs), dtype=F64), torch.zeros((steps + 1, envs), dtype=F64)
    terminated, truncated, valid = (torch.zeros((steps, envs), dtype=torch.bool) for _ in range(3))
    for n in range(envs):
        value[0, n] = g.normal()
        restart = False
        for t in range(steps):
            value[t + 1, n] = g.normal()
            if t in pauses:
                value[t + 1, n] = value[t, n]
            elif restart:
                restart = False
            else:
                valid[t, n] = True
                reward[t, n] = g.normal()
                kind = g.choice(3, p=[0.75, 0.125, 0.125])
                terminated[t, n], truncated[t, n] = bool(kind == 1), bool(kind == 2)
                restart = kind > 0
    return Ragged(reward, value, terminated, truncated, valid)


def synthetic_rollout(agent: Any, steps: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Rollout:
    """Ragged experience (M, T, N) of a feed-forward agent that sees vectors and takes one discrete action."""
    m, n = agent.members, agent.num_envs
    g = torch.Generator().manual_seed(seed)
    data = [ragged(seed + 1 + i, steps=steps, envs=n) for i in range(m)]
    shape = agent.obs_spec.fields[0].shape
    choices = agent.action_spec.sizes[0]
    return Rollout(
        obs={"obs": torch.randn((m, steps + 1, n, *shape), generator=g, dtype=F64).to(dtype)},
        action=torch.randint(0, choices, (m, steps, n), generator=g),
        reward=torch.stack([d.reward for d in data]).to(dtype),
        terminated=torch.stack([d.terminated for d in data]),
        truncated=torch.stack([d.truncated for d in data]),
        valid=torch.stack([d.valid for d in data]),
        episode_step=torch.zeros((m, steps + 1, n), dtype=torch.int64),
        action_mask=None,
        memory=None,
    )


# Environments whose every observation is known in advance


class Step(NamedTuple):
    obs: dict[str, NDArray[Any]]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    action_mask: NDArray[np.bool_] | None


class CountingEnvironments:
    """Environment i has episodes of ``lengths[i]`` steps. It observes (environment, episode, step) and pays
    100 i + 10 episode + step + 1. Even episodes terminate, odd ones are truncated. Actions change nothing.

    ``pause``: the step after any environment's end restarts it and stands still for all; otherwise only that
    environment's own next row is invalid.
    ``masked``: only action (environment + step) mod k is legal.
    """

    def __init__(
        self,
        lengths: tuple[int, ...],
        *,
        pause: bool = False,
        masked: bool = False,
        action_spec: ActionSpec | None = None,
    ) -> None:
        self.num_envs = len(lengths)
        self.lengths = np.array(lengths)
        self.pause = pause
        self.masked = masked
        self.obs_spec = vector(3)
        self.action_spec = action_spec or discrete(3)
        self.received: list[NDArray[Any]] = []

    def reset(self, seed: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_] | None]:
        self.episode = np.zeros(self.num_envs, dtype=np.int64)
        self.count = np.zeros(self.num_envs, dtype=np.int64)
        self.done = np.zeros(self.num_envs, dtype=np.bool_)
        return self._obs(), self._mask()

    def step(self, action: NDArray[Any]) -> Step:
        self.received.append(np.array(action))
        valid = np.full(self.num_envs, not self.done.any()) if self.pause else ~self.done
        restart = self.done.copy()
        self.episode[restart] += 1
        self.count[restart] = 0
        self.count += valid
        i = np.arange(self.num_envs)
        reward = np.where(valid, 100.0 * i + 10.0 * self.episode + self.count, 0.0)
        self.done = valid & (self.count == self.lengths)
        even = self.episode % 2 == 0
        return Step(self._obs(), reward, self.done & even, self.done & ~even, valid, self._mask())

    def _obs(self) -> dict[str, NDArray[Any]]:
        columns = [np.arange(self.num_envs), self.episode, self.count]
        return {"obs": np.stack(columns, axis=1).astype(np.float32)}

    def _mask(self) -> NDArray[np.bool_] | None:
        if not self.masked:
            return None
        k = self.action_spec.sizes[0]
        return np.arange(k) == ((np.arange(self.num_envs) + self.count) % k)[:, None]
