"""Whole updates of SAC, TD3, DDPG and DQN, written out with torch.optim: several steps in a row, to the last digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from exact.written_out import (
    ACTIONS,
    BATCH,
    CHOICES,
    ByHand,
    Rows,
    Twin,
    backup,
    check_update,
    huber,
    importance,
    regression,
    small_agent,
    squashed,
)


def soft_policy(twin: Twin, obs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities (B, choices), and their logarithms, 0 where an action is illegal."""
    log_probs = twin.log_probs(obs, mask)
    return log_probs.exp(), torch.where(log_probs > -1e29, log_probs, 0.0)


def sac(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    temperature = twin.temperature.exp() if config.temperature is None else config.temperature
    continuous = twin.agent.action_spec.kind == "box"

    def q(prefix: str, at: Tensor, action: Tensor | None, use: int) -> Tensor:
        dropped = noise["dropout/0"][use] < config.dropout if config.dropout else None
        return twin.ensemble(prefix, at, action, dropped)

    def least(values: Tensor) -> Tensor:
        return (values[noise["subset"]] if "subset" in noise else values).min(0).values

    if continuous:
        draw, log_density, _ = squashed(twin, after, noise["next_action"])
        value = least(q("target/", after, torch.tanh(draw), 0)) - temperature * log_density
        data = q("critic/", obs, torch.tanh(rows["action"]), 1)
    else:
        share, logs = soft_policy(twin, after, rows.get("next_action_mask"))
        value = (share * (least(q("target/", after, None, 0)) - temperature * logs)).sum(-1)
        data = q("critic/", obs, None, 1)[:, torch.arange(BATCH), rows["action"]]
    twin.step("critic/", regression(data, backup(rows, value), rows))
    if step % config.policy_delay == config.policy_delay - 1:
        mask = rows.get("action_mask")
        if continuous:
            draw, logs, _ = squashed(twin, obs, noise["action"])
            values = q("critic/", obs, torch.tanh(draw), 2)
        else:
            share, logs = soft_policy(twin, obs, mask)
            values = q("critic/", obs, None, 2).detach()
        values = values.min(0).values if config.policy_q == "min" else values.mean(0)
        if continuous:
            loss, entropy = temperature * logs - values, -logs.mean()
        else:
            loss, entropy = -(share * (values - temperature * logs)).sum(-1), -(share * logs).sum(-1).mean()
        twin.step("", loss.mean())
        if config.temperature is None:
            legal = torch.full((BATCH,), float(CHOICES)) if mask is None else mask.sum(-1).float()
            goal = -float(ACTIONS) if continuous else 0.5 * legal.log().mean()  # in float32, as there
            goal = goal if config.target_entropy is None else config.target_entropy
            twin.temperature.move(entropy - goal)
    twin.follow({"target/": "critic/"}, config.target_update_rate)


def sac_v(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    """All three losses at the parameters before the step."""
    del step
    config, obs, temperature = twin.config, rows["obs/obs"], twin.config.temperature
    if twin.agent.action_spec.kind == "box":
        draw, logs, _ = squashed(twin, obs, noise["action"])
        q = twin.ensemble("critic/", obs, torch.tanh(draw)).min(0).values
        policy_loss, soft_value = (temperature * logs - q).mean(), (q - temperature * logs).detach()
        data = twin.ensemble("critic/", obs, torch.tanh(rows["action"]))
    else:
        share, logs = soft_policy(twin, obs, rows.get("action_mask"))
        every = twin.ensemble("critic/", obs)
        value = (share * (every.min(0).values.detach() - temperature * logs)).sum(-1)
        policy_loss, soft_value = -value.mean(), value.detach()
        data = every[:, torch.arange(BATCH), rows["action"]]
    value_loss = (0.5 * (twin.ensemble("value/", obs)[0] - soft_value) ** 2).mean()
    target = backup(rows, twin.ensemble("target/", rows["next_obs/obs"])[0])
    critic_loss = regression(data, target, rows)
    losses = {"": policy_loss, "value/": value_loss, "critic/": critic_loss}
    slopes = {
        prefix: torch.autograd.grad(loss, list(twin.p[prefix].values()), retain_graph=True)
        for prefix, loss in losses.items()
    }
    for prefix, slope in slopes.items():
        twin.descend(prefix, slope)
    twin.follow({"target/": "value/"}, config.target_update_rate)


def td3(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    config, obs, after = twin.config, rows["obs/obs"], rows["next_obs/obs"]
    blur = (config.target_noise * noise["next_action"]).clamp(-config.target_noise_clip, config.target_noise_clip)
    action = (torch.tanh(twin.policy_out(after, "target_policy/")) + blur).clamp(-1.0, 1.0)
    target = backup(rows, twin.ensemble("target/", after, action).min(0).values)
    twin.step("critic/", regression(twin.ensemble("critic/", obs, rows["action"].clamp(-1.0, 1.0)), target, rows))
    if step % config.policy_delay == config.policy_delay - 1:
        twin.step("", -twin.ensemble("critic/", obs, torch.tanh(twin.policy_out(obs)))[0].mean())
        twin.follow({"target/": "critic/", "target_policy/": ""}, config.target_update_rate)


def ddpg(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise, step
    obs, after = rows["obs/obs"], rows["next_obs/obs"]
    action = torch.tanh(twin.policy_out(after, "target_policy/"))
    target = backup(rows, twin.ensemble("target/", after, action)[0])
    twin.step("critic/", regression(twin.ensemble("critic/", obs, rows["action"].clamp(-1.0, 1.0)), target, rows))
    twin.step("", -twin.ensemble("critic/", obs, torch.tanh(twin.policy_out(obs)))[0].mean())
    twin.follow({"target/": "critic/", "target_policy/": ""}, twin.config.target_update_rate)


def dqn(twin: Twin, rows: Rows, noise: Rows, step: int) -> None:
    del noise
    config, after, legal = twin.config, rows["next_obs/obs"], rows.get("next_action_mask")
    there = twin.q_values("target/", after)
    picked = twin.q_values("", after) if config.double else there
    picked = picked if legal is None else picked.masked_fill(~legal, -torch.inf)
    target = backup(rows, there[torch.arange(BATCH), picked.argmax(-1)])
    q = twin.q_values("", rows["obs/obs"])[torch.arange(BATCH), rows["action"]]
    twin.step("", (importance(rows) * huber(q - target, config.huber_threshold)).mean())
    if step % config.target_update_every == config.target_update_every - 1:
        twin.follow({"target/": ""}, config.target_update_rate)


UNLIMITED = {"max_gradient_norm": None, "updates_per_call": 4}
CASES: list[tuple[str, str, dict[str, Any], ByHand]] = [
    ("sac", "box", {}, sac),
    ("sac", "box", {"temperature": 0.3, "num_critics": 3, "policy_q": "mean", "target_critics": 3}, sac),
    ("sac", "box", {"policy_delay": 2, "target_entropy": 0.5, "layer_norm": True, "dropout": 0.3}, sac),
    ("sac", "box", {"num_critics": 4, "target_critics": 2, "max_log_std": -0.2}, sac),
    ("sac", "discrete", {"min_probability": 0.02}, sac),
    ("sac", "discrete", {"policy_delay": 2, "target_entropy": 0.4, "num_critics": 3}, sac),
    ("sac_v", "box", {}, sac_v),
    ("sac_v", "discrete", {"temperature": 0.5, "num_critics": 3}, sac_v),
    ("td3", "box", {"target_noise": 0.4, "target_noise_clip": 0.3}, td3),
    ("td3", "box", {"policy_delay": 1}, td3),
    ("td3", "box", {"policy_delay": 4}, td3),
    ("ddpg", "box", {"exploration_std": 0.1}, ddpg),
    ("dqn", "discrete", UNLIMITED, dqn),
    ("dqn", "discrete", {**UNLIMITED, "double": False, "huber_threshold": None, "target_update_every": 1}, dqn),
]


@pytest.mark.parametrize(("algorithm", "kind", "options", "by_hand"), CASES)
def test_updates_written_out(algorithm: str, kind: str, options: dict[str, Any], by_hand: ByHand) -> None:
    """Four gradient steps in a call, and four more: every parameter as torch.optim's, in float64."""
    check_update(algorithm, kind, options, by_hand)


@pytest.mark.parametrize(
    ("algorithm", "kind", "by_hand"),
    [
        ("sac", "box", sac),
        ("sac", "discrete", sac),
        ("sac_v", "box", sac_v),
        ("sac_v", "discrete", sac_v),
        ("td3", "box", td3),
        ("ddpg", "box", ddpg),
        ("dqn", "discrete", dqn),
    ],
)
def test_updates_with_weights_and_masks(algorithm: str, kind: str, by_hand: ByHand) -> None:
    """Rows count by their importance weights, as prioritised drawing gives them; illegal actions have no part."""
    options = UNLIMITED if algorithm == "dqn" else {}
    check_update(algorithm, kind, options, by_hand, masks=kind == "discrete", weights=True)


def test_a_subset_of_critics_is_drawn_without_repetition() -> None:
    """Every pair of four critics occurs, equally often within chance, and none twice in one draw."""
    agent = small_agent("sac", "box", {"num_critics": 4, "target_critics": 2})
    subset = agent.update_noise(3_000)["subset"][0]
    assert bool((subset[:, 0] != subset[:, 1]).all())
    counts = torch.bincount(subset.sort(-1).values @ torch.tensor([4, 1]), minlength=16)
    assert counts.count_nonzero() == 6
    assert int(counts[counts > 0].min()) > 400


def test_masks_do_not_move_a_target_entropy_that_is_given() -> None:
    check_update("sac", "discrete", {"target_entropy": 0.4}, sac, masks=True)
