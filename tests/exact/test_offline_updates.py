"""Whole updates of the offline algorithms, written out with torch.optim: several steps in a row, to the last digits."""

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


def logsumexp(x: Tensor) -> Tensor:
    return x.exp().sum(-1).log()


class Twin:
    """The same networks as plain formulas over leaves, and torch's own Adam for each."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.config = agent, agent.config
        self.p: dict[str, dict[str, Tensor]] = {}
        self.optimizers: dict[str, torch.optim.Adam] = {}
        for prefix, layout in agent.layouts.items():
            named = layout.unflatten(agent.state[f"{prefix}params"][0])
            leaves = {k: v.clone().requires_grad_() for k, v in named.items()}
            rate = self.config.learning_rate
            if prefix in ("critic/", "value/"):
                rate = self.config.critic_learning_rate
            self.p[prefix] = leaves
            self.optimizers[prefix] = torch.optim.Adam(leaves.values(), lr=rate, eps=1e-8)

    def step(self, prefix: str, loss: Tensor) -> None:
        leaves = self.p[prefix]
        for leaf, slope in zip(leaves.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
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

    def ensemble(self, prefix: str, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """(C, B) or (C, B, choices), one critic after another."""
        p, found = self.p[prefix], []
        for c in range(len(p["first.weight"])):
            x = obs @ p["first.weight"][c] + p["first.bias"][c]
            if action is not None:
                x = x + action @ p["first_action"][c]
            if "norms.0.scale" in p:
                centred = x - x.mean(-1, keepdim=True)
                x = centred / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
                x = x * p["norms.0.scale"][c] + p["norms.0.shift"][c]
            x = torch.relu(x) @ p["layers.0.weight"][c] + p["layers.0.bias"][c]
            found.append(x if action is None and prefix != "value/" else x.squeeze(-1))
        return torch.stack(found)

    def q_values(self, prefix: str, obs: Tensor) -> Tensor:
        return self.policy_out(obs, prefix)

    def gaussian_log_prob(self, obs: Tensor, action: Tensor, prefix: str = "") -> Tensor:
        mean, log_std = torch.tanh(self.policy_out(obs, prefix)), self.p[prefix]["log_std"].clamp(-5.0, 2.0)
        z = (action - mean) / log_std.exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        if self.agent.action_spec.kind == "box":
            return self.gaussian_log_prob(obs, action)
        return self.log_probs(obs)[torch.arange(len(action)), action]

    def log_probs(self, obs: Tensor, prefix: str = "", floor: float = 1e-6) -> Tensor:
        share = torch.softmax(self.policy_out(obs, prefix), -1)
        return (floor + (1.0 - CHOICES * floor) * share).log()

    def data_q(self, prefix: str, rows: Rows) -> Tensor:
        if self.agent.action_spec.kind == "box":
            return self.ensemble(prefix, rows["obs/obs"], rows["action"])
        q = self.ensemble(prefix, rows["obs/obs"])
        return torch.stack([x[torch.arange(BATCH), rows["action"]] for x in q])


def backup(rows: Rows, value: Tensor) -> Tensor:
    return (rows["reward"] + rows["discount"] * torch.where(rows["terminated"], 0.0, value)).detach()


def regression(q: Tensor, target: Tensor) -> Tensor:
    return (0.5 * (q - target) ** 2).mean(-1).sum()


def bc(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise, step
    twin.step("", -twin.log_prob(rows["obs/obs"], rows["action"]).mean())


def iql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise, step
    config, obs = twin.config, rows["obs/obs"]
    q = twin.data_q("target/", rows).min(0).values.detach()
    short = q - twin.ensemble("value/", obs)[0]
    twin.step("value/", (torch.where(short > 0, config.expectile, 1.0 - config.expectile) * 0.5 * short**2).mean())
    advantage = (q - twin.ensemble("value/", obs)[0]).detach()
    weight = (advantage / config.temperature).exp().clamp(max=config.max_weight)
    twin.step("", -(weight * twin.log_prob(obs, rows["action"])).mean())
    target = backup(rows, twin.ensemble("value/", rows["next_obs/obs"])[0])
    twin.step("critic/", regression(twin.data_q("critic/", rows), target))
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def awac(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del step
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]

    def value(critic: str, at: Tensor, eps: str) -> Tensor:
        if twin.agent.action_spec.kind == "discrete":
            return (twin.log_probs(at).exp() * twin.ensemble(critic, at).min(0).values).sum(-1)
        action = torch.tanh(twin.policy_out(at)) + twin.p[""]["log_std"].clamp(-5.0, 2.0).exp() * noise[eps]
        return twin.ensemble(critic, at, action.clamp(-1.0, 1.0)).min(0).values

    target = backup(rows, value("target/", after, "next_action"))
    twin.step("critic/", regression(twin.data_q("critic/", rows), target))
    advantage = (twin.data_q("critic/", rows).min(0).values - value("critic/", obs, "action")).detach()
    weight = (advantage / config.temperature).exp().clamp(max=config.max_weight)
    twin.step("", -(weight * twin.log_prob(obs, rows["action"])).mean())
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def rebrac(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    blur = (config.target_noise * noise["next_action"]).clamp(-config.target_noise_clip, config.target_noise_clip)
    action = (torch.tanh(twin.policy_out(after, "target_policy/")) + blur).clamp(-1.0, 1.0)
    value = twin.ensemble("target/", after, action).min(0).values
    if "next_action" in rows:
        value = value - config.critic_penalty * ((action - rows["next_action"]) ** 2).sum(-1) * rows["next_known"]
    twin.step("critic/", regression(twin.data_q("critic/", rows), backup(rows, value)))
    if step % config.policy_delay == config.policy_delay - 1:
        action = torch.tanh(twin.policy_out(obs))
        q = twin.ensemble("critic/", obs, action)
        q = q[0] if config.policy_q == "first" else q.min(0).values
        distance = ((action - rows["action"]) ** 2).sum(-1)
        distance = distance / ACTIONS if config.average_components else distance
        twin.step("", (config.policy_penalty * distance - q / q.abs().mean().detach()).mean())
        twin.follow({"target/": "critic/", "target_policy/": ""}, config.target_update_rate)


def squashed(twin: Twin, obs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A draw before tanh, its log-density in [-1, 1]^D, and the density of any other draw (n, B, D)."""
    mean, log_std = twin.policy_out(obs).chunk(2, -1)
    std = log_std.clamp(-5.0, 2.0).exp()

    def density(u: Tensor) -> Tensor:
        normal = -0.5 * ((u - mean) / std) ** 2 - std.log() - 0.5 * math.log(2.0 * math.pi)
        return (normal - (1.0 - torch.tanh(u) ** 2).log()).sum(-1)

    draw = mean + std * eps
    return draw, density(draw), density


def cql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del step
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    temperature = twin.temperature.exp().detach() if config.temperature is None else config.temperature
    draw, log_density, _ = squashed(twin, after, noise["next_action"])
    value = twin.ensemble("target/", after, torch.tanh(draw)).min(0).values
    value = value - temperature * log_density if config.entropy_backup else value
    target, number = backup(rows, value), config.proposals
    data = torch.tanh(rows["action"])
    if config.regulariser == "behaviour":
        mean = torch.tanh(twin.policy_out(obs, "behaviour/"))
        proposed = mean + twin.p["behaviour/"]["log_std"].clamp(-5.0, 2.0).exp() * noise["proposal"]
        proposed, log_ratio = proposed.clamp(-1.0, 1.0).detach(), torch.zeros(number, BATCH, dtype=F64)
    else:
        draw, _, density = squashed(twin, obs, noise["proposal"])
        if config.regulariser == "entropy":
            draw = torch.cat([draw, torch.atanh(noise["uniform"])])
            log_ratio = -(0.5 * (density(draw).exp() + 0.5**ACTIONS)).log().detach()
        else:
            log_ratio = torch.zeros(number, BATCH, dtype=F64)
        proposed = torch.tanh(draw).detach()
    q = twin.ensemble("critic/", obs, data)
    others = torch.stack([twin.ensemble("critic/", obs, a) for a in proposed], -1)  # (C, B, n)
    if config.calibrated:
        mine = torch.maximum(others[..., :number], rows["return_to_go"].unsqueeze(-1))
        others = torch.cat([mine, others[..., number:]], -1)
    gap = (logsumexp(others + log_ratio.T) - math.log(len(proposed)) - q).mean(-1)
    weight = twin.weight.exp().detach() if config.gap_threshold else config.conservative_weight
    twin.step("critic/", regression(q, target) + weight * gap.sum())
    if config.gap_threshold:
        twin.move(twin.weight, twin.weight_optimizer, (config.gap_threshold - gap.mean()).detach())
    if config.regulariser == "behaviour":
        twin.step("behaviour/", -twin.gaussian_log_prob(obs, data, "behaviour/").mean())
    draw, log_density, _ = squashed(twin, obs, noise["action"])
    loss = temperature * log_density - twin.ensemble("critic/", obs, torch.tanh(draw)).min(0).values
    entropy = -log_density.detach().mean()
    twin.step("", loss.mean())
    if config.temperature is None:
        twin.move(twin.temperature, twin.temperature_optimizer, entropy + ACTIONS)
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def discrete_cql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    there, picked = twin.q_values("target/", after), twin.q_values("", after)
    target = backup(rows, there[torch.arange(BATCH), (picked if config.double else there).argmax(-1)])
    q = twin.q_values("", obs)
    data = q[torch.arange(BATCH), rows["action"]]
    prior = twin.log_probs(obs, "behaviour/").detach() if config.regulariser == "behaviour" else 0.0
    gap = (logsumexp(q + prior) - data).mean()
    error = (data - target).abs()
    c = config.huber_threshold
    loss = torch.where(error < c, 0.5 * error**2, c * (error - 0.5 * c)).mean()
    weight = twin.weight.exp().detach() if config.gap_threshold else config.conservative_weight
    twin.step("", loss + weight * gap)
    if config.gap_threshold:
        twin.move(twin.weight, twin.weight_optimizer, (config.gap_threshold - gap).detach())
    if config.regulariser == "behaviour":
        chosen = twin.log_probs(obs, "behaviour/")[torch.arange(BATCH), rows["action"]]
        twin.step("behaviour/", -chosen.mean())
    if step % config.target_update_every == config.target_update_every - 1:
        twin.follow({"target/": ""}, config.target_update_rate)


def with_scalars(twin: Twin) -> Twin:
    """Logarithms that are learned by Adam: of the temperature, from 1, and of the weight, from what is given."""

    def scalar(value: float, rate: float) -> tuple[Tensor, torch.optim.Adam]:
        leaf = torch.tensor([value], dtype=F64, requires_grad=True)
        return leaf, torch.optim.Adam([leaf], lr=rate, eps=1e-8)

    def move(leaf: Tensor, optimizer: torch.optim.Adam, slope: Tensor) -> None:
        leaf.grad = slope.reshape(1)
        optimizer.step()

    config: Any = twin.config
    twin.temperature, twin.temperature_optimizer = scalar(0.0, config.learning_rate)
    rate = getattr(config, "critic_learning_rate", config.learning_rate)
    weight = torch.tensor(getattr(config, "conservative_weight", 1.0)).log()  # float32, as the agent begins
    twin.weight, twin.weight_optimizer = scalar(float(weight), rate)
    twin.move = move
    return twin


CASES: list[tuple[str, str, dict[str, Any], Callable[[Twin, Rows, Rows, int], None]]] = [
    ("bc", "box", {}, bc),
    ("bc", "discrete", {}, bc),
    ("iql", "box", {"expectile": 0.8, "temperature": 0.5, "max_weight": 1.2}, iql),
    ("iql", "discrete", {"layer_norm": True}, iql),
    ("awac", "box", {"max_weight": 1.1}, awac),
    ("awac", "discrete", {"temperature": 0.3}, awac),
    ("rebrac", "box", {"critic_penalty": 0.3, "policy_penalty": 0.2}, rebrac),
    ("td3_bc", "box", {"normalize_obs": False}, rebrac),
    ("cql", "box", {}, cql),
    ("cql", "box", {"regulariser": "previous", "temperature": 0.3, "entropy_backup": True}, cql),
    ("cql", "box", {"regulariser": "behaviour", "layer_norm": True}, cql),
    ("cql", "box", {"calibrated": True, "gap_threshold": 0.5}, cql),
    ("discrete_cql", "discrete", {}, discrete_cql),
    ("discrete_cql", "discrete", {"regulariser": "behaviour", "gap_threshold": 0.4, "double": False}, discrete_cql),
]


def minibatches(kind: str, agent: Any) -> Rows:
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
    if kind == "box":
        unit = (1.5 * torch.randn((*shape, ACTIONS), generator=g, dtype=F64)).clamp(-0.999, 0.999)
        rows["action"] = torch.atanh(unit) if agent.squash == "tanh" else unit
    if getattr(agent.config, "calibrated", False):
        rows["return_to_go"] = torch.randn(shape, generator=g, dtype=F64)
    if getattr(agent.config, "critic_penalty", 0.0):
        rows["next_action"] = (torch.randn((*shape, ACTIONS), generator=g, dtype=F64)).clamp(-1.0, 1.0)
        rows["next_known"] = (torch.rand(shape, generator=g) < 0.8).to(F64)
    return rows


def exact_hyper(agent: Any) -> Rows:
    """The hyper-parameters of an update in float64, before a run would round them to float32."""
    given = {k: getattr(agent.config, k, None) for k in agent.hyperparameters(0.0)}
    found = {k: v.double() for k, v in agent.hyperparameters(0.0).items()}
    return found | {k: torch.tensor(v, dtype=F64) for k, v in given.items() if v is not None}


@pytest.mark.parametrize(("algorithm", "kind", "options", "by_hand"), CASES)
def test_updates_written_out(
    algorithm: str, kind: str, options: dict[str, Any], by_hand: Callable[[Twin, Rows, Rows, int], None]
) -> None:
    """Four gradient steps in a call, and four more: every parameter as torch.optim's, in float64."""
    agent_class: Any = find(algorithm)
    known = {"hidden_sizes": (5,), "batch_size": BATCH, "target_update_rate": 0.2, "target_update_every": 3}
    known |= {"learning_rate": 0.01, "critic_learning_rate": 0.02, "proposals": 3, "updates_per_call": STEPS}
    fields = {f for f in known if f in agent_class.Config.__dataclass_fields__}
    config = agent_class.Config(**{**{k: known[k] for k in fields}, **options})
    spec = box(ACTIONS) if kind == "box" else discrete(CHOICES)
    agent = to_float64(agent_class(config, vector(OBS), spec))
    twin = with_scalars(Twin(agent))
    rows = minibatches(kind, agent)
    for call in range(2):
        noise = {k: x.double() for k, x in agent.update_noise(STEPS).items()}
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
