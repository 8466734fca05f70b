"""Updates written out: the networks as plain formulas over leaves, torch's own Adam, and rows to learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import F64, box, discrete, to_float64, vector
from steepest.algorithms import find

OBS, ACTIONS, CHOICES, BATCH, STEPS = 3, 2, 4, 16, 4
Rows = dict[str, Tensor]


class Scalar:
    """The logarithm of a number that Adam learns."""

    def __init__(self, value: float, rate: float) -> None:
        self.leaf = torch.tensor([value], dtype=F64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.leaf], lr=rate, eps=1e-8)

    def exp(self) -> Tensor:
        return self.leaf.detach().exp().squeeze()

    def move(self, slope: Tensor) -> None:
        self.leaf.grad = slope.detach().reshape(1)
        self.optimizer.step()


class Twin:
    """The same networks as plain formulas over leaves, and torch's own Adam for each."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.config = agent, agent.config
        self.p: dict[str, dict[str, Tensor]] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        critic_rate = getattr(self.config, "critic_learning_rate", self.config.learning_rate)
        for prefix, layout in agent.layouts.items():
            named = layout.unflatten(agent.state[f"{prefix}params"][0])
            leaves = {k: v.clone().requires_grad_() for k, v in named.items()}
            rate = critic_rate if prefix in ("critic/", "value/") else self.config.learning_rate
            self.p[prefix] = leaves
            self.optimizers[prefix] = torch.optim.Adam(leaves.values(), lr=rate, eps=1e-8)
        self.temperature = Scalar(0.0, self.config.learning_rate)
        weight = torch.tensor(max(getattr(self.config, "conservative_weight", 1.0), 1e-3)).log()  # float32, as there
        self.weight = Scalar(float(weight), critic_rate)

    def step(self, prefix: str, loss: Tensor) -> None:
        self.descend(prefix, torch.autograd.grad(loss, list(self.p[prefix].values())))

    def descend(self, prefix: str, slopes: tuple[Tensor, ...]) -> None:
        for leaf, slope in zip(self.p[prefix].values(), slopes, strict=True):
            leaf.grad = slope
        self.optimizers[prefix].step()

    def follow(self, pairs: dict[str, str], rate: float) -> None:
        for target, source in pairs.items():
            for name, leaf in self.p[target].items():
                leaf.data = (1.0 - rate) * leaf.data + rate * self.p[source][name].data

    def policy_out(self, obs: Tensor, prefix: str = "") -> Tensor:
        p = self.p[prefix]
        hidden = torch.relu(obs @ p["torso.mlp.0.weight"].T + p["torso.mlp.0.bias"])
        return hidden @ p["head.weight"].T + p["head.bias"]

    def ensemble(self, prefix: str, obs: Tensor, action: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """(C, B) or (C, B, choices), one critic after another; ``dropped`` (C, B, H) True where a unit is left out."""
        p, found = self.p[prefix], []
        for c in range(len(p["first.weight"])):
            x = obs @ p["first.weight"][c] + p["first.bias"][c]
            if action is not None:
                x = x + action @ p["first_action"][c]
            if dropped is not None:
                x = torch.where(dropped[c], 0.0, x / (1.0 - self.config.dropout))
            if "norms.0.scale" in p:
                centred = x - x.mean(-1, keepdim=True)
                x = centred / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
                x = x * p["norms.0.scale"][c] + p["norms.0.shift"][c]
            x = torch.relu(x) @ p["layers.0.weight"][c] + p["layers.0.bias"][c]
            found.append(x.squeeze(-1) if x.shape[-1] == 1 else x)
        return torch.stack(found)

    def q_values(self, prefix: str, obs: Tensor) -> Tensor:
        return self.policy_out(obs, prefix)

    def gaussian_log_prob(self, obs: Tensor, action: Tensor, prefix: str = "") -> Tensor:
        mean, log_std = torch.tanh(self.policy_out(obs, prefix)), self.log_std(prefix)
        z = (action - mean) / log_std.exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def log_std(self, prefix: str = "") -> Tensor:
        return self.p[prefix]["log_std"].clamp(self.config.min_log_std, self.config.max_log_std)

    def log_prob(self, rows: Rows) -> Tensor:
        """Of the actions that were taken."""
        obs, action = rows["obs/obs"], rows["action"]
        if self.agent.action_spec.kind == "box":
            return self.gaussian_log_prob(obs, action)
        return self.log_probs(obs, rows.get("action_mask"))[torch.arange(len(action)), action]

    def log_probs(self, obs: Tensor, mask: Tensor | None = None, prefix: str = "") -> Tensor:
        """(B, choices), very negative where an action is illegal."""
        out, floor = self.policy_out(obs, prefix), getattr(self.config, "min_probability", 1e-6)
        legal = torch.ones_like(out, dtype=torch.bool) if mask is None else mask
        share = torch.softmax(out.masked_fill(~legal, -torch.inf), -1)
        mixed = floor + (1.0 - legal.double().sum(-1, keepdim=True) * floor) * share
        return torch.where(legal, torch.where(legal, mixed, 1.0).log(), -1e30)

    def data_q(self, prefix: str, rows: Rows) -> Tensor:
        if self.agent.action_spec.kind == "box":
            return self.ensemble(prefix, rows["obs/obs"], rows["action"])
        q = self.ensemble(prefix, rows["obs/obs"])
        return torch.stack([x[torch.arange(BATCH), rows["action"]] for x in q])


def backup(rows: Rows, value: Tensor) -> Tensor:
    return (rows["reward"] + rows["discount"] * torch.where(rows["terminated"], 0.0, value)).detach()


def importance(rows: Rows) -> Tensor:
    return rows["weight"] if "weight" in rows else torch.ones(BATCH, dtype=F64)


def regression(q: Tensor, target: Tensor, rows: Rows) -> Tensor:
    return (importance(rows) * 0.5 * (q - target) ** 2).mean(-1).sum()


def huber(error: Tensor, threshold: float | None) -> Tensor:
    size, c = error.abs(), math.inf if threshold is None else threshold
    return torch.where(size < c, 0.5 * size**2, min(c, 1e9) * (size - 0.5 * min(c, 1e9)))


def squashed(twin: Twin, obs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A draw before tanh, its log-density in [-1, 1]^D, and the density of any other draw (n, B, D)."""
    mean, log_std = twin.policy_out(obs).chunk(2, -1)
    std = log_std.clamp(twin.config.min_log_std, twin.config.max_log_std).exp()

    def density(u: Tensor) -> Tensor:
        normal = -0.5 * ((u - mean) / std) ** 2 - std.log() - 0.5 * math.log(2.0 * math.pi)
        return (normal - (1.0 - torch.tanh(u) ** 2).log()).sum(-1)

    draw = mean + std * eps
    return draw, density(draw), density


def minibatches(agent: Any, *, masks: bool = False, weights: bool = False) -> Rows:
    """(1, K, B): a quarter terminal, one step and three; actions at the bounds too, as data has them."""
    g = torch.Generator().manual_seed(5)
    shape = (1, STEPS, BATCH)
    rows = {
        "obs/obs": torch.randn((*shape, OBS), generator=g, dtype=F64),
        "next_obs/obs": torch.randn((*shape, OBS), generator=g, dtype=F64),
        "action": torch.randint(0, CHOICES, shape, generator=g),
        "reward": torch.randn(shape, generator=g, dtype=F64),
        "terminated": torch.rand(shape, generator=g) < 0.25,
        "discount": torch.where(torch.rand(shape, generator=g) < 0.3, 0.729, 0.9).to(F64),
    }
    if agent.action_spec.kind == "box":
        unit = (1.5 * torch.randn((*shape, ACTIONS), generator=g, dtype=F64)).clamp(-0.999, 0.999)
        rows["action"] = torch.atanh(unit) if agent.squash == "tanh" else unit
    if getattr(agent.config, "calibrated", False):
        rows["return_to_go"] = torch.randn(shape, generator=g, dtype=F64)
    if getattr(agent.config, "critic_penalty", 0.0):
        rows["next_action"] = (torch.randn((*shape, ACTIONS), generator=g, dtype=F64)).clamp(-1.0, 1.0)
        rows["next_known"] = (torch.rand(shape, generator=g) < 0.8).to(F64)
    if masks:
        for name in ("action_mask", "next_action_mask"):
            rows[name] = torch.rand((*shape, CHOICES), generator=g) < 0.6
            rows[name].scatter_(-1, rows["action"].unsqueeze(-1), True)
    if weights:
        rows["weight"] = 0.2 + 0.8 * torch.rand(shape, generator=g, dtype=F64)
    return rows


def exact_hyper(agent: Any) -> Rows:
    """The hyper-parameters of an update in float64, before a run would round them to float32."""
    found = {k: v.double() for k, v in agent.hyperparameters(0.0).items()}
    given = {k: v for k in found if (v := getattr(agent.config, k, None)) is not None}
    for name, value in given.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6), name
    return found | {k: torch.tensor(v, dtype=F64) for k, v in given.items()}


ByHand = Callable[[Twin, Rows, Rows, int], None]


def small_agent(algorithm: str, kind: str, options: dict[str, Any]) -> Any:
    """Small networks in float64, large steps, and targets that follow fast."""
    agent_class: Any = find(algorithm)
    known: dict[str, Any] = {"hidden_sizes": (5,), "batch_size": BATCH, "updates_per_call": STEPS, "proposals": 3}
    known |= {"learning_rate": 0.01, "critic_learning_rate": 0.02}
    known |= {"target_update_rate": 0.2, "target_update_every": 3}
    fields = {f for f in known if f in agent_class.Config.__dataclass_fields__}
    config = agent_class.Config(**{**{k: known[k] for k in fields}, **options})
    return to_float64(agent_class(config, vector(OBS), box(ACTIONS) if kind == "box" else discrete(CHOICES)))


def check_update(
    algorithm: str,
    kind: str,
    options: dict[str, Any],
    by_hand: ByHand,
    *,
    masks: bool = False,
    weights: bool = False,
    calls: int = 2,
) -> None:
    """Four gradient steps in a call, and four more: every parameter as torch.optim's, in float64."""
    agent = small_agent(algorithm, kind, options)
    twin = Twin(agent)
    for prefix in ("critic/", "target/"):
        if "first.weight" in twin.p.get(prefix, {}) and (prefix == "critic/" or "value/" not in twin.p):
            assert len(twin.p[prefix]["first.weight"]) == getattr(
                agent.config, "num_critics", 1 if algorithm == "ddpg" else 2
            )
            assert ("norms.0.scale" in twin.p[prefix]) == getattr(agent.config, "layer_norm", False)
    rows = minibatches(agent, masks=masks, weights=weights)
    if algorithm in ("td3", "ddpg"):
        rows["action"] = 1.3 * rows["action"]  # as played: with noise, before the bounds cut it
    for call in range(calls):
        noise = {k: x.double() if x.is_floating_point() else x for k, x in agent.update_noise(STEPS).items()}
        agent.update(rows, noise, exact_hyper(agent))
        for k in range(STEPS):
            one, drawn = ({key: x[0, k] for key, x in tree.items()} for tree in (rows, noise))
            by_hand(twin, one, drawn, STEPS * call + k)
        for prefix, leaves in twin.p.items():
            found = agent.layouts[prefix].unflatten(agent.state[f"{prefix}params"][0])
            for name, leaf in leaves.items():
                torch.testing.assert_close(
                    found[name], leaf.detach(), rtol=1e-8, atol=1e-10, msg=lambda m, n=prefix + name: f"{n}: {m}"
                )
        for prefix, scalar in (("temperature/", twin.temperature), ("conservative/", twin.weight)):
            if f"{prefix}params" in agent.state:
                torch.testing.assert_close(
                    agent.state[f"{prefix}params"][0], scalar.leaf.detach(), rtol=1e-8, atol=1e-10
                )
