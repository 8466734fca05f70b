"""Fitted Q evaluation on finite processes: the value on the empirical model, and the conservative fixed points."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import F64
from steepest.algorithms.bc import BC, BCConfig
from steepest.evaluation.fitted_q import FittedQ, FittedQConfig, TargetPolicy, policy_on
from steepest.exact import finite_mdp, offline
from steepest.exact.finite_mdp import FiniteMDP
from steepest.experience.datasets.dataset import RecordedEpisode, from_episodes
from steepest.experience.datasets.sampling import DatasetRows
from steepest.types import ActionSpec, ObsField, ObsSpec
from steepest.verification.random_problems import episodic

GAMMA = 0.8


class Case(NamedTuple):
    """A process and data of it, a target policy, and what the data makes of the process."""

    agent: BC
    rows: DatasetRows
    policy: TargetPolicy
    table: Tensor  # (S, A) of the target policy
    model: FiniteMDP
    behaviour: Tensor  # (S, A)


@cache
def case(seed: int = 1) -> Case:
    """Episodes of at most 12 steps by the uniform policy: some terminate, others are cut."""
    mdp = dataclasses.replace(episodic(seed).mdp, gamma=GAMMA)
    rng, states, actions = np.random.default_rng(seed), mdp.num_states, mdp.num_actions
    live = (~mdp.absorbing).nonzero().squeeze(-1).numpy()
    transition, reward, over = mdp.transition.numpy(), mdp.reward.numpy(), mdp.absorbing.numpy()
    episodes, counts = [], torch.zeros((states, actions, states), dtype=F64)
    for _ in range(700):
        state, seen, taken, paid = int(rng.choice(live)), [], [], []
        while len(taken) < 12 and not over[state]:
            action = int(rng.integers(actions))
            following = int(rng.choice(states, p=transition[state, action]))
            counts[state, action, following] += 1.0
            seen.append(state)
            taken.append(action)
            paid.append(reward[state, action])
            state = following
        obs = np.array([*seen, state])
        episodes.append(RecordedEpisode(obs, np.array(taken), np.array(paid), bool(over[state]), not over[state]))
    obs_spec = ObsSpec((ObsField("obs", "discrete", (), "int64", (states,), (0,)),), is_dict=False)
    agent = BC(BCConfig(hidden_sizes=(8,)), obs_spec, ActionSpec("discrete", (), "int64", (actions,), (0,)))
    agent.state["params"] = 3.0 * agent.state["params"]
    agent.state["params"] += torch.randn(agent.state["params"].shape, generator=torch.Generator().manual_seed(seed))
    rows = DatasetRows(from_episodes(episodes), agent.obs_spec, agent.action_spec)
    policy = policy_on(agent, rows)
    first = {int(s): i for i, s in reversed(list(enumerate(rows.flat["obs/obs"])))}
    log_probs: Any = policy.distribution[0]
    table = torch.full((states, actions), 1.0 / actions, dtype=F64)
    for s, row in first.items():
        table[s] = log_probs[row].double().exp()
    table = table / table.sum(-1, keepdim=True)
    model, behaviour = offline.empirical_model(mdp, counts)
    return Case(agent, rows, policy, table, model, behaviour)


def fitted(policy: TargetPolicy | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Q (S, A) that was found, by the rows that show each pair; and which states are not terminal."""
    c = case()
    settings = {"hidden_sizes": (), "updates": 4_000, "learning_rate": 0.05, "target_update_rate": 0.05}
    found = FittedQ(c.agent, c.rows, policy or c.policy, FittedQConfig(**{**settings, "gamma": GAMMA, **options}))
    found.fit()
    q = torch.zeros(c.model.num_states, c.model.num_actions)
    with torch.no_grad():
        for row in c.rows.decided:
            s, a = int(c.rows.flat["obs/obs"][row]), int(c.rows.flat["action"][row])
            if not q[s, a]:
                q[s, a] = found.q_values(np.array([row]))[0]
    return q.double(), ~c.model.absorbing


def off(found: Tensor, exact: Tensor, live: Tensor) -> float:
    return float((found - exact)[live].norm() / exact[live].norm())


def test_it_finds_the_value_on_the_empirical_model() -> None:
    """Q^pi of the process that the data suggests, within the noise of minibatches; not that of the mode."""
    c = case()
    exact = finite_mdp.action_value(c.model, c.table)
    found, live = fitted()
    assert off(found, exact, live) < 0.02
    greedy, _ = fitted(c.policy._replace(deterministic=True))
    mode = torch.nn.functional.one_hot(c.table.argmax(-1), c.model.num_actions).to(F64)
    assert off(greedy, finite_mdp.action_value(c.model, mode), live) < 0.02
    assert off(greedy, exact, live) > 0.05


@pytest.mark.parametrize("bound", ["expectation", "pointwise"])
def test_conservative_forms_find_their_fixed_points(bound: str) -> None:
    """Q <- B Q - alpha (pi / beta - 1) and Q <- B Q - alpha pi / beta on the empirical model."""
    c = case()
    exact = (
        offline.conservative_evaluation_in_expectation if bound == "expectation" else offline.conservative_evaluation
    )
    expected = exact(c.model, c.table, c.behaviour, c.table, 0.2)
    found, live = fitted(conservative_weight=0.2, bound=bound)
    assert off(found, expected, live) < 0.03
    value = finite_mdp.action_value(c.model, c.table)
    assert off(found, value, live) > 0.1
    mean, true = (c.table * found).sum(-1), (c.table * value).sum(-1)
    assert bool((mean < true)[live].all())


def test_values_are_means_of_q_under_the_policy() -> None:
    """Of the network as it is: the sum over actions, by the table of the policy."""
    c = case()
    found = FittedQ(c.agent, c.rows, c.policy, FittedQConfig(hidden_sizes=(4,)))
    row = c.rows.decided[:50]
    obs = {"obs": torch.from_numpy(c.rows.flat["obs/obs"][row])}
    with torch.no_grad():
        q = found.q_network(obs, found.statistics, None)[0].double()
    expected = (c.table[obs["obs"]] * q).sum(-1)
    torch.testing.assert_close(found.values(row).double(), expected, rtol=1e-5, atol=1e-6)


def test_next_actions_at_the_present_observation_are_seen() -> None:
    """Negative control: the fault of a peer, the policy's action at s valued at s'."""
    c = case()
    shifted = TargetPolicy(type(c.policy.distribution)(*(torch.roll(x, 1, 0) for x in c.policy.distribution)), False)
    exact = finite_mdp.action_value(c.model, c.table)
    found, live = fitted(shifted)
    assert off(found, exact, live) > 0.03
