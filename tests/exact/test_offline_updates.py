"""Whole updates of the offline algorithms, written out with torch.optim: several steps in a row, to the last digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exact.written_out import (
    ACTIONS,
    BATCH,
    STEPS,
    ByHand,
    Rows,
    Twin,
    backup,
    check_update,
    exact_hyper,
    huber,
    importance,
    minibatches,
    regression,
    small_agent,
    squashed,
)
from helpers import F64
from steepest.algorithms import find


def pushed_down(config: Any, q: Tensor, log_weight: Tensor | float) -> Tensor:
    """The soft maximum over the last axis; of the test's own regulariser, E_mu Q with mu fixed."""
    if config.regulariser.endswith(":sharper"):
        mu = (torch.where(q > -1e29, 2.0 * q, q) + log_weight).exp().detach()
        return (mu / mu.sum(-1, keepdim=True) * q).sum(-1)
    return (q + log_weight).exp().sum(-1).log()


def bc(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise, step
    twin.step("", -(importance(rows) * twin.log_prob(rows)).mean())


def iql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise, step
    config, obs = twin.config, rows["obs/obs"]
    q = twin.data_q("target/", rows).min(0).values.detach()
    short = q - twin.ensemble("value/", obs)[0]
    share = config.expectile * (short > 0).double() + (1.0 - config.expectile) * (short <= 0).double()
    twin.step("value/", (importance(rows) * share * 0.5 * short**2).mean())
    advantage = (q - twin.ensemble("value/", obs)[0]).detach()
    weight = (advantage / config.temperature).exp().clamp(max=config.max_weight)
    twin.step("", -(weight * twin.log_prob(rows)).mean())
    target = backup(rows, twin.ensemble("value/", rows["next_obs/obs"])[0])
    twin.step("critic/", regression(twin.data_q("critic/", rows), target, rows))
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def awac(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del step
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]

    def value(critic: str, at: Tensor, prefix: str) -> Tensor:
        if twin.agent.action_spec.kind == "discrete":
            share = twin.log_probs(at, rows.get(f"{prefix}action_mask")).exp()
            return (share * twin.ensemble(critic, at).min(0).values).sum(-1)
        action = torch.tanh(twin.policy_out(at)) + twin.log_std().exp() * noise[f"{prefix}action"]
        return twin.ensemble(critic, at, action.clamp(-1.0, 1.0)).min(0).values

    target = backup(rows, value("target/", after, "next_"))
    twin.step("critic/", regression(twin.data_q("critic/", rows), target, rows))
    advantage = (twin.data_q("critic/", rows).min(0).values - value("critic/", obs, "")).detach()
    weight = (advantage / config.temperature).exp().clamp(max=config.max_weight)
    twin.step("", -(weight * twin.log_prob(rows)).mean())
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def rebrac(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    blur = (config.target_noise * noise["next_action"]).clamp(-config.target_noise_clip, config.target_noise_clip)
    action = (torch.tanh(twin.policy_out(after, "target_policy/")) + blur).clamp(-1.0, 1.0)
    value = twin.ensemble("target/", after, action).min(0).values
    if "next_action" in rows:
        value = value - config.critic_penalty * ((action - rows["next_action"]) ** 2).sum(-1) * rows["next_known"]
    twin.step("critic/", regression(twin.data_q("critic/", rows), backup(rows, value), rows))
    if step % config.policy_delay == config.policy_delay - 1:
        action = torch.tanh(twin.policy_out(obs))
        q = twin.ensemble("critic/", obs, action)
        q = q[0] if config.policy_q == "first" else q.min(0).values
        distance = ((action - rows["action"]) ** 2).sum(-1)
        distance = distance / ACTIONS if config.average_components else distance
        twin.step("", (config.policy_penalty * distance - q / q.abs().mean().detach()).mean())
        twin.follow({"target/": "critic/", "target_policy/": ""}, config.target_update_rate)


def cql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    temperature = twin.temperature.exp() if config.temperature is None else config.temperature
    draw, log_density, _ = squashed(twin, after, noise["next_action"])
    value = twin.ensemble("target/", after, torch.tanh(draw)).min(0).values
    value = value - temperature * log_density if config.entropy_backup else value
    target, number = backup(rows, value), config.proposals
    data = torch.tanh(rows["action"])
    if config.regulariser == "behaviour":
        mean = torch.tanh(twin.policy_out(obs, "behaviour/"))
        proposed = mean + twin.log_std("behaviour/").exp() * noise["proposal"]
        proposed, log_ratio = proposed.clamp(-1.0, 1.0).detach(), torch.zeros(number, BATCH, dtype=F64)
    else:
        draw, _, density = squashed(twin, obs, noise["proposal"])
        if config.regulariser != "previous":
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
    gap = (importance(rows) * (pushed_down(config, others, log_ratio.T - math.log(len(proposed))) - q)).mean(-1)
    weight = twin.weight.exp().clamp(max=1e6) if config.gap_threshold else config.conservative_weight
    twin.step("critic/", regression(q, target, rows) + weight * gap.sum())
    if config.gap_threshold:
        twin.weight.move(config.gap_threshold - gap.mean())
    if config.regulariser == "behaviour":
        twin.step("behaviour/", -twin.gaussian_log_prob(obs, data, "behaviour/").mean())
    if step % config.policy_delay == config.policy_delay - 1:
        draw, log_density, _ = squashed(twin, obs, noise["action"])
        loss = temperature * log_density - twin.ensemble("critic/", obs, torch.tanh(draw)).min(0).values
        twin.step("", loss.mean())
        if config.temperature is None:
            twin.temperature.move(ACTIONS - log_density.mean())
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def discrete_cql(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    legal, legal_after = rows.get("action_mask"), rows.get("next_action_mask")
    there, picked = twin.q_values("target/", after), twin.q_values("", after)
    picked = picked if config.double else there
    picked = picked if legal_after is None else picked.masked_fill(~legal_after, -torch.inf)
    target = backup(rows, there[torch.arange(BATCH), picked.argmax(-1)])
    q = twin.q_values("", obs)
    data = q[torch.arange(BATCH), rows["action"]]
    others = q if legal is None else q.masked_fill(~legal, -1e30)
    rho = config.regulariser == "behaviour"
    prior = twin.log_probs(obs, legal, "behaviour/").detach() if rho else 0.0
    gap = (importance(rows) * (pushed_down(config, others, prior) - data)).mean()
    loss = (importance(rows) * huber(data - target, config.huber_threshold)).mean()
    weight = twin.weight.exp().clamp(max=1e6) if config.gap_threshold else config.conservative_weight
    twin.step("", loss + weight * gap)
    if config.gap_threshold:
        twin.weight.move(config.gap_threshold - gap)
    if rho:
        chosen = twin.log_probs(obs, legal, "behaviour/")[torch.arange(BATCH), rows["action"]]
        twin.step("behaviour/", -chosen.mean())
    if step % config.target_update_every == config.target_update_every - 1:
        twin.follow({"target/": ""}, config.target_update_rate)


OWN = """
import torch

def of_entropy(q, log_ratio):
    return torch.softmax(q + log_ratio, -1)

def sharper(q, log_ratio):
    return torch.softmax(2.0 * q + log_ratio, -1)
"""
"""The maximising mu of CQL(H), whose mean of Q has the gradient of the soft maximum; and that of half the entropy."""

CASES: list[tuple[str, str, dict[str, Any], ByHand]] = [
    ("bc", "box", {}, bc),
    ("bc", "box", {"min_log_std": -0.015, "max_log_std": 0.015}, bc),
    ("bc", "discrete", {"min_probability": 0.05}, bc),
    ("iql", "box", {"expectile": 0.8, "temperature": 0.5, "max_weight": 1.2}, iql),
    ("iql", "discrete", {"layer_norm": True, "num_critics": 3}, iql),
    ("awac", "box", {"max_weight": 1.1, "num_critics": 3}, awac),
    ("awac", "discrete", {"temperature": 0.3}, awac),
    ("rebrac", "box", {"critic_penalty": 0.3, "policy_penalty": 0.2}, rebrac),
    ("rebrac", "box", {"critic_penalty": 0.0, "average_components": True}, rebrac),
    ("td3_bc", "box", {"normalize_obs": False}, rebrac),
    ("cql", "box", {}, cql),
    ("cql", "box", {"regulariser": "previous", "temperature": 0.3, "entropy_backup": True}, cql),
    ("cql", "box", {"regulariser": "behaviour", "layer_norm": True, "max_log_std": -0.2}, cql),
    ("cql", "box", {"calibrated": True, "gap_threshold": 0.5, "policy_delay": 2}, cql),
    ("cql", "box", {"gap_threshold": 0.5, "conservative_weight": 2e6}, cql),
    ("discrete_cql", "discrete", {}, discrete_cql),
    ("discrete_cql", "discrete", {"regulariser": "behaviour", "gap_threshold": 0.4, "double": False}, discrete_cql),
    ("discrete_cql", "discrete", {"gap_threshold": 0.4, "conservative_weight": 0.0}, discrete_cql),
]


@pytest.mark.parametrize(("algorithm", "kind", "options", "by_hand"), CASES)
def test_updates_written_out(algorithm: str, kind: str, options: dict[str, Any], by_hand: ByHand) -> None:
    """Four gradient steps in a call, and four more: every parameter as torch.optim's, in float64."""
    check_update(algorithm, kind, options, by_hand)


@pytest.mark.parametrize(
    ("algorithm", "kind", "by_hand"),
    [
        ("bc", "discrete", bc),
        ("iql", "discrete", iql),
        ("awac", "discrete", awac),
        ("rebrac", "box", rebrac),
        ("cql", "box", cql),
        ("discrete_cql", "discrete", discrete_cql),
    ],
)
def test_updates_with_weights_and_masks(algorithm: str, kind: str, by_hand: ByHand) -> None:
    """Rows count by their importance weights, as prioritised drawing gives them; illegal actions have no part."""
    check_update(algorithm, kind, {}, by_hand, masks=kind == "discrete", weights=True)


def test_rho_sees_legal_actions_alone() -> None:
    check_update("discrete_cql", "discrete", {"regulariser": "behaviour"}, discrete_cql, masks=True)


@pytest.mark.parametrize("function", ["of_entropy", "sharper"])
@pytest.mark.parametrize(
    ("algorithm", "kind", "by_hand"), [("cql", "box", cql), ("discrete_cql", "discrete", discrete_cql)]
)
def test_a_regulariser_of_ones_own(algorithm: str, kind: str, by_hand: ByHand, function: str, tmp_path: Path) -> None:
    """The maximising mu of CQL(H), given as a function, takes the steps of CQL(H); another mu takes its own."""
    (tmp_path / "own.py").write_text(OWN)
    check_update(algorithm, kind, {"regulariser": f"{tmp_path / 'own.py'}:{function}"}, by_hand, masks=kind != "box")


def test_uniform_proposals_fill_the_box() -> None:
    """To its bounds on either side, without reaching them, where a draw before tanh would be infinite."""
    agent = small_agent("cql", "box", {"proposals": 50})
    uniform = agent.update_noise(STEPS)["uniform"]
    assert uniform.shape == (1, STEPS, 50, BATCH, ACTIONS)
    assert -1.0 < float(uniform.min()) < -0.99
    assert 0.99 < float(uniform.max()) < 1.0
    assert abs(float(uniform.mean())) < 4.0 / math.sqrt(3.0 * uniform.numel())
    assert bool(torch.isfinite(torch.atanh(uniform)).all())


@pytest.mark.parametrize("regulariser", ["entropy", "previous", "behaviour"])
def test_weight_zero_is_soft_actor_critic(regulariser: str) -> None:
    """Then CQL takes the very steps of SAC, for the same draws."""
    plain = small_agent("sac", "box", {})
    held = small_agent("cql", "box", {
        "conservative_weight": 0.0, "entropy_backup": True, "regulariser": regulariser, "learning_rate": 0.01,
    })  # fmt: skip
    for name, value in plain.state.items():
        held.state[name] = value.clone()
    noise = {k: x.double() for k, x in held.update_noise(STEPS).items()}
    rows = minibatches(held)
    plain.update(rows, {k: noise[k] for k in ("action", "next_action")}, exact_hyper(plain))
    held.update(rows, noise, exact_hyper(held))
    for name, value in plain.state.items():
        torch.testing.assert_close(held.state[name], value, rtol=1e-9, atol=1e-11)


class Asked:
    """What an algorithm asks of a dataset."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.calls.append((name, given))


@pytest.mark.parametrize(
    ("algorithm", "kind", "options", "calls"),
    [
        ("bc", "box", {"best_fraction": 0.25}, [("keep_best", (0.25,))]),
        ("iql", "box", {}, []),
        ("awac", "box", {}, []),
        ("rebrac", "box", {}, [("add_next_actions", ())]),
        ("rebrac", "box", {"critic_penalty": 0.0}, []),
        ("td3_bc", "box", {}, []),
        ("cql", "box", {}, []),
        ("cql", "box", {"calibrated": True, "gamma": 0.8}, [("add_returns_to_go", (0.8,))]),
        ("discrete_cql", "discrete", {}, []),
    ],
)
def test_what_is_asked_of_the_data(
    algorithm: str, kind: str, options: dict[str, Any], calls: list[tuple[str, Any]]
) -> None:
    asked = Asked()
    small_agent(algorithm, kind, options).prepare_data(asked)
    assert asked.calls == calls


def test_td3_bc_is_rebrac_with_the_settings_of_its_paper() -> None:
    """Its alpha is 2.5, of a mean over components and of the first critic; its networks are smaller and plain."""
    config: Any = find("td3_bc").Config()
    assert config.policy_penalty == 1.0 / 2.5
    assert (config.critic_penalty, config.policy_q, config.average_components) == (0.0, "first", True)
    assert (config.layer_norm, config.normalize_obs, config.hidden_sizes) == (False, True, (256, 256))
    assert (config.target_noise, config.target_noise_clip, config.policy_delay) == (0.2, 0.5, 2)
