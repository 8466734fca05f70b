"""One call of Off-PAC's and COPDAC's own updates against loops over steps and environments, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import F64, box, discrete, to_float64, vector
from steepest.algorithms.dpg import DPG, DPGConfig
from steepest.algorithms.off_pac import OffPAC, OffPACConfig
from steepest.types import ActionSpec, Rollout

T, N, D, A = 6, 3, 4, 3
LINEAR: dict[str, Any] = {"hidden_sizes": (), "min_probability": 0.0, "rollout_steps": T, "steps_per_call": 2}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rollout(action: Tensor, log_prob: Tensor | None) -> Rollout:
    """Three environments: one goes on, one terminates after two steps and restarts, one is truncated after three."""
    terminated, truncated = torch.zeros(T, N, dtype=torch.bool), torch.zeros(T, N, dtype=torch.bool)
    terminated[1, 1] = truncated[2, 2] = True
    valid = torch.ones(T, N, dtype=torch.bool)
    valid[2, 1] = valid[3, 2] = False
    steps = torch.tensor([[7, 0, 0], [8, 1, 1], [9, 2, 2], [10, 0, 3], [11, 1, 0], [12, 2, 1], [13, 3, 2]])
    reward = torch.where(valid, normal(1, T, N), 0.0)
    one = Rollout({"obs": normal(0, T + 1, N, D)}, action, reward, terminated, truncated, valid, steps, None, None)
    members = [x if x is None else x.unsqueeze(0) for x in (*one[1:9],)]
    given = None if log_prob is None else log_prob.unsqueeze(0)
    return Rollout({"obs": one.obs["obs"].unsqueeze(0)}, *members, given)  # pyright: ignore[reportArgumentType]


def set_weights(agent: Any, seed: int) -> dict[str, Tensor]:
    values = {k: 0.3 * normal(seed + i, *v.shape[1:]) for i, (k, v) in enumerate(agent.parameters.items())}
    agent.state["params"] = agent.layout.flatten(values).unsqueeze(0)
    return {k: v.clone() for k, v in values.items()}


@pytest.mark.parametrize("weighting", ["undiscounted", "discounted"])
def test_off_pac_update_against_a_loop(weighting: Any) -> None:
    """A linear agent: features by hand, traces per environment in plain loops, weights moved after every time step."""
    gamma, decay, emphasis, rates, cap = 0.9, 0.6, 0.7, (0.05, 0.03, 0.02), 2.0
    config = OffPACConfig(
        **LINEAR,
        gamma=gamma,
        trace_decay=decay,
        emphasis_decay=emphasis,
        policy_learning_rate=rates[0],
        value_learning_rate=rates[1],
        auxiliary_learning_rate=rates[2],
        state_weighting=weighting,
        max_ratio=cap,
        max_gradient_norm=1e9,
    )
    agent = to_float64(OffPAC(config, vector(D), discrete(A), num_envs=N))
    agent.hyper = lambda **x: {k: torch.tensor(v, dtype=F64) for k, v in x.items()}
    weights = set_weights(agent, 10)
    action = torch.randint(A, (T, N), generator=torch.Generator().manual_seed(5))
    log_prob = torch.log(0.2 + 0.3 * torch.rand((T, N), generator=torch.Generator().manual_seed(6), dtype=F64))
    data = rollout(action, log_prob)
    agent.update(data, 0.0)

    u = torch.cat([weights["policy_head.weight"], weights["policy_head.bias"].unsqueeze(-1)], -1)  # (A, D+1)
    v = torch.cat([weights["value_head.weight"][0], weights["value_head.bias"]])
    w = torch.zeros(D + 1, dtype=F64)
    e, c = [torch.zeros(D + 1, dtype=F64)] * N, [torch.zeros(A, D + 1, dtype=F64)] * N
    followon, before = [0.0] * N, [0.0] * N
    x = torch.cat([data.obs["obs"][0], torch.ones(T + 1, N, 1, dtype=F64)], -1)
    for t in range(T):
        moves = [torch.zeros_like(v), torch.zeros_like(w), torch.zeros_like(u)]
        decided = 0
        for n in range(N):
            if not data.valid[0, t, n]:
                continue
            decided += 1
            here, following, a = x[t, n], x[t + 1, n], int(action[t, n])
            step, done = int(data.episode_step[0, t, n]), bool(data.terminated[0, t, n])
            probabilities = torch.softmax(u @ here, -1)
            rho = min(float(probabilities[a] / log_prob[t, n].exp()), cap)
            ahead = 0.0 if done else gamma * float(v @ following)
            delta = float(data.reward[0, t, n]) + ahead - float(v @ here)
            interest = gamma**step if weighting == "discounted" else 1.0
            if step == 0:
                e[n], c[n], followon[n] = torch.zeros_like(v), torch.zeros_like(u), 0.0
            followon[n] = gamma * before[n] * followon[n] + interest
            score = torch.outer(torch.eye(A, dtype=F64)[a] - probabilities, here)
            e[n] = rho * (here + gamma * decay * e[n])
            c[n] = rho * (((1 - emphasis) * interest + emphasis * followon[n]) * score + gamma * decay * c[n])
            before[n] = rho
            kept = 1.0 if data.truncated[0, t, n] else 1.0 - decay
            correction = 0.0 if done else gamma * kept * float(e[n] @ w)
            moves[0] = moves[0] + delta * e[n] - correction * following
            moves[1] = moves[1] + delta * e[n] - float(here @ w) * here
            moves[2] = moves[2] + delta * c[n]
        u, v, w = (
            u + rates[0] * moves[2] / decided,
            v + rates[1] * moves[0] / decided,
            w + rates[2] * moves[1] / decided,
        )
    found = {k: x[0] for k, x in agent.parameters.items()}
    auxiliary = {k: x[0] for k, x in agent.layout.unflatten(agent.state["auxiliary"]).items()}
    for one, other in (
        (found["policy_head.weight"], u[:, :D]),
        (found["policy_head.bias"], u[:, D]),
        (found["value_head.weight"][0], v[:D]),
        (found["value_head.bias"], v[D:]),
        (auxiliary["value_head.weight"][0], w[:D]),
        (auxiliary["value_head.bias"], w[D:]),
        (auxiliary["policy_head.weight"], torch.zeros(A, D, dtype=F64)),
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_traces_go_on_between_rollouts() -> None:
    """Two rollouts of three steps are one of six."""
    states = []
    for steps in (6, 3):
        config = OffPACConfig(**{**LINEAR, "rollout_steps": steps, "steps_per_call": 1})
        agent = to_float64(OffPAC(config, vector(D), discrete(A), num_envs=N))
        agent.hyper = lambda **x: {k: torch.tensor(v, dtype=F64) for k, v in x.items()}
        set_weights(agent, 10)
        action = torch.randint(A, (T, N), generator=torch.Generator().manual_seed(5))
        whole = rollout(action, torch.full((T, N), -1.0, dtype=F64))
        for first in range(0, T, steps):
            last = first + steps
            rows = [None if x is None else x[:, first : last + (i == 5)] for i, x in enumerate(whole[1:], start=0)]
            part = Rollout({"obs": whole.obs["obs"][:, first : last + 1]}, *rows)  # pyright: ignore[reportArgumentType]
            agent.update(part, 0.0)
        states.append(agent.state)
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_the_softened_policy_is_scored_as_it_acts(epsilon: float) -> None:
    """The frequencies of its actions are the probabilities that it is scored with: within 5 standard errors."""
    agent = OffPAC(OffPACConfig(**LINEAR, behaviour_epsilon=epsilon), vector(D), discrete(A), num_envs=20_000)
    set_weights(agent, 3)
    agent.state["params"] = 3.0 * agent.state["params"].float()
    obs = {"obs": normal(1, D).float().expand(1, 20_000, D)}
    action, _ = agent.behaviour()(obs, agent.draw_noise((1, 20_000))[0], None, None, None)
    frequency = torch.bincount(action.flatten(), minlength=A) / 20_000
    many = rollout(torch.arange(A).expand(T, A).clone(), None)
    batch_obs = obs["obs"][0, 0].expand(1, T + 1, N, D)
    one = {k: v[0] for k, v in agent.state.items()}
    _, batch = agent.prepare(
        one, Rollout(*[{"obs": batch_obs[0]}, *[None if x is None else x[0] for x in many[1:]]]), agent.hyper(gamma=0.9)
    )
    chance = batch["behaviour_log_prob"][0].exp()
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-5)
    error = (chance * (1.0 - chance) / 20_000).sqrt()
    assert bool(((frequency - chance).abs() < 5.0 * error).all())


@pytest.mark.parametrize("critic", ["sarsa", "q_learning", "gradient_q"])
def test_copdac_update_against_a_loop(critic: Any) -> None:
    """A linear agent in plain loops; SARSA takes the next action where there is one."""
    gamma, rates = 0.9, {"policy": 0.05, "value": 0.03, "advantage": 0.04, "auxiliary": 0.02}
    m = 2
    config = DPGConfig(
        **LINEAR,
        gamma=gamma,
        critic=critic,
        max_gradient_norm=1e9,
        **{f"{k}_learning_rate": v for k, v in rates.items()},
    )
    spec: ActionSpec = box(m)
    agent = to_float64(DPG(config, vector(D), spec, num_envs=N))
    agent.hyper = lambda **x: {k: torch.tensor(v, dtype=F64) for k, v in x.items()}
    weights = set_weights(agent, 10)
    given = {k: 0.2 * normal(30 + i, *x.shape) for i, (k, x) in enumerate(weights.items())}
    policy_only = {k: x if k.startswith("policy_head") else torch.zeros_like(x) for k, x in given.items()}
    agent.state["advantage"] = agent.layout.flatten(policy_only).unsqueeze(0)
    action = normal(5, T, N, m)
    data = rollout(action, None)
    agent.update(data, 0.0)

    def joined(parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts["policy_head.weight"], parts["policy_head.bias"].unsqueeze(-1)], -1)

    k, w = joined(weights), joined(policy_only)  # (m, D+1)
    v = torch.cat([weights["value_head.weight"][0], weights["value_head.bias"]])
    u = torch.zeros((m + 1) * (D + 1), dtype=F64)
    x = torch.cat([data.obs["obs"][0], torch.ones(T + 1, N, 1, dtype=F64)], -1)
    for t in range(T):
        moves = [torch.zeros_like(y) for y in (k, w, v, u)]
        decided = 0
        for n in range(N):
            if not data.valid[0, t, n]:
                continue
            decided += 1
            here, following = x[t, n], x[t + 1, n]
            done = bool(data.terminated[0, t, n])
            feature = torch.outer(action[t, n] - k @ here, here)
            ahead = float(v @ following)
            goes_on = t + 1 < T and not done and not data.truncated[0, t, n]
            if critic == "sarsa" and goes_on:
                ahead += float((w * torch.outer(action[t + 1, n] - k @ following, following)).sum())
            discount = 0.0 if done else gamma
            delta = float(data.reward[0, t, n]) + discount * ahead - float((w * feature).sum() + v @ here)
            both = torch.cat([feature.flatten(), here])
            moves[0] = moves[0] + torch.outer(w @ here, here)
            moves[1] = moves[1] + delta * feature
            moves[2] = moves[2] + delta * here
            if critic == "gradient_q":
                moves[2] = moves[2] - discount * float(both @ u) * following
                moves[3] = moves[3] + delta * both - float(both @ u) * both
        k, w = k + rates["policy"] * moves[0] / decided, w + rates["advantage"] * moves[1] / decided
        v, u = v + rates["value"] * moves[2] / decided, u + rates["auxiliary"] * moves[3] / decided
    found = {name: y[0] for name, y in agent.parameters.items()}
    advantage = {name: y[0] for name, y in agent.layout.unflatten(agent.state["advantage"]).items()}
    torch.testing.assert_close(joined(found), k, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(joined(advantage), w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["value_head.weight"][0], v[:D], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["value_head.bias"], v[D:], rtol=1e-9, atol=1e-12)
    assert np.isfinite(agent.state["auxiliary"].numpy()).all()
