"""TRPO's parts against dense matrices, in float64: the Fisher matrix, the step, what the search leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from helpers import F64, bits, box, discrete, synthetic_rollout, to_float64, vector
from steepest import UsageError
from steepest.agents import natural_step
from steepest.agents.rollout_updates import Batch, batch_inputs
from steepest.algorithms.trpo import TRPO, TRPOConfig
from steepest.exact import finite_mdp as mdps
from steepest.exact import gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.learner.step import State
from steepest.learner.trees import tree_map
from steepest.numerics import line_search_start, weighted_mean
from steepest.types import ActionSpec
from steepest.verification.random_problems import Process, continuing
from steepest.verification.shipped import trpo as rows

POLICIES: dict[str, tuple[ActionSpec, dict[str, Any]]] = {
    "categorical": (discrete(4), {}),
    "factored": (discrete(2, 4, 3), {}),
    "bernoulli": (bits(3), {}),
    "diagonal": (box(2), {}),
    "full": (box(2), {"gaussian": "full"}),
    "tanh": (box(2), {"squash": "tanh"}),
}


def make(name: str, **config: Any) -> TRPO:
    spec, options = POLICIES[name]
    agent = TRPO(TRPOConfig(hidden_sizes=(5,), min_probability=0.01, **options, **config), vector(3), spec)
    to_float64(agent)
    g = torch.Generator().manual_seed(4)
    agent.state["params"] += 0.5 * torch.randn(agent.state["params"].shape, generator=g, dtype=F64)
    return agent


def one(agent: TRPO, rows: int = 12) -> tuple[State, Batch]:
    """A member's state, and states of which a third do not count."""
    g = torch.Generator().manual_seed(5)
    batch = {"obs/obs": torch.randn((rows, 3), generator=g, dtype=F64), "weight": (torch.arange(rows) % 3 > 0).to(F64)}
    return {k: x[0] for k, x in agent.state.items()}, batch


def divergence(agent: TRPO, state: State, batch: Batch, vector: Tensor, *, swapped: bool = False) -> Tensor:
    """Mean KL(pi_old || pi), or KL(pi || pi_old)."""
    old: Any = tree_map(torch.detach, agent.policy(state["params"], state, batch))
    new: Any = agent.policy(vector, state, batch)
    return weighted_mean(new.kl(old) if swapped else old.kl(new), batch["weight"])


@pytest.mark.parametrize("name", POLICIES)
def test_fisher_vector_product_is_the_hessian_of_the_kl(name: str) -> None:
    """Of every kind of policy; zero where the value function's parameters are, so that no step moves them."""
    agent = make(name)
    state, batch = one(agent)
    start = state["params"]
    hessian = torch.autograd.functional.hessian(lambda v: divergence(agent, state, batch, v), start)
    products = vmap(agent.fisher(state, batch))(torch.eye(len(start), dtype=F64))
    torch.testing.assert_close(products, hessian, rtol=1e-9, atol=1e-12)
    assert float(hessian.norm()) > 0.1
    value_alone = {k: torch.zeros_like(x) for k, x in agent.layout.unflatten(start).items()}
    for key, x in value_alone.items():
        if key.startswith("value_head"):
            x.fill_(1.0)
        elif key.startswith("twin_torso"):
            x[1] = 1.0
    places = agent.layout.flatten(value_alone) > 0
    assert 0 < int(places.sum()) < len(start)
    assert torch.equal(products[:, places], torch.zeros_like(products[:, places]))


def test_the_fisher_matrix_is_the_curvature_at_the_old_policy_only() -> None:
    """Negative controls: away from it the two divergences bend differently from each other and from the matrix."""
    agent = make("categorical")
    state, batch = one(agent)
    start = state["params"]
    away = start + 0.5
    there = {**state, "params": away}
    eye = torch.eye(len(start), dtype=F64)
    fisher = vmap(agent.fisher(state, batch))(eye)
    for swapped in (False, True):
        here, elsewhere = (
            torch.autograd.functional.hessian(lambda v, s=swapped: divergence(agent, state, batch, v, swapped=s), at)
            for at in (start, away)
        )
        torch.testing.assert_close(fisher, here, rtol=1e-9, atol=1e-12)
        assert float((fisher - elsewhere).norm() / fisher.norm()) > 1e-2
    assert float((fisher - vmap(agent.fisher(there, batch))(eye)).norm()) > 1e-2


def dense_fisher(c: Process) -> Tensor:
    """Scores of a softmax enumerated, states as the policy visits them."""
    return gradients.fisher_matrix(mdps.state_distribution(c.mdp, c.policy), softmax_policy, c.theta)


@pytest.mark.parametrize("seed", range(5))
def test_fisher_vector_product_is_the_dense_fisher_matrix(seed: int) -> None:
    """A tabular softmax, states weighted by their visits, scores enumerated; another policy's is another."""
    c = continuing(seed)
    for theta, right in ((c.theta, True), (c.other_theta, False)):
        at = rows.setting(c, theta)
        parts = at.agent.layout.unflatten(torch.zeros_like(at.state["params"]))
        v = at.agent.layout.flatten({**parts, "policy_head.weight": c.function.T})
        found = at.agent.layout.unflatten(at.agent.fisher(at.state, at.batch)(v))["policy_head.weight"].T
        exact = (dense_fisher(c) @ c.function.flatten()).view_as(found)
        off = float((found - exact).norm() / exact.norm())
        assert off < 1e-10 if right else off > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_step_is_the_exact_natural_step(seed: int) -> None:
    """No damping, conjugate gradients to the end, against the pseudo-inverse of a singular matrix."""
    c = continuing(seed)
    at = rows.setting(c, c.theta)
    step = rows.logits(at, at.state["params"] + rows.step(at))
    exact = torch.log_softmax(c.theta + gradients.natural_step(c.gradient, dense_fisher(c), rows.MAX_KL), -1)
    torch.testing.assert_close(step, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 7, 10, 13])
def test_iterations_may_be_split_over_any_calls(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one call, one in each, or the most that share a graph and what is left over: the same point."""

    def updated(most: int, iterations: int) -> tuple[Tensor, int]:
        monkeypatch.setattr(natural_step, "MOST_ITERATIONS_PER_CALL", most)
        small: dict[str, Any] = {"hidden_sizes": (5,), "rollout_steps": 12, "minibatches": 2, "epochs": 1}
        # Hardly damped, so that every iteration counts.
        agent = TRPO(TRPOConfig(**small, cg_iterations=iterations, cg_damping=1e-4), vector(3), discrete(3), num_envs=4)
        to_float64(agent)
        agent.update(synthetic_rollout(agent, 12, dtype=F64), 0.0)
        calls = sum(agent.over_members[name].calls for name in ("solve", "solve_rest") if name in agent.over_members)
        return agent.state["params"], calls

    whole, calls = updated(100, iterations)
    assert calls == 1
    for most in (1, 2, 5):
        found, calls = updated(most, iterations)
        assert calls == -(-iterations // most)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(updated(5, iterations + 1)[0], whole, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_failed_search_restores_every_bit(seed: int) -> None:
    at = rows.setting(continuing(seed), continuing(seed).theta, checked=True)
    start = at.state["params"]
    hyper = {**at.hyper, "kl_limit": torch.tensor(-1.0, dtype=F64)}
    step, search = rows.step(at), line_search_start(start)
    assert float(step.norm()) > 1e-3
    for _ in range(5):
        search = at.agent.search(search, step, at.state, at.batch, hyper)
    assert torch.equal(search.point, start)
    assert float(search.accepted) == 0.0
    assert float(search.trials) == 5.0
    found = rows.updated(at)
    assert not torch.equal(found, start)
    value = [k for k in at.agent.layout.names if k.startswith("value_head")]
    before, after = (at.agent.layout.unflatten(v) for v in (start, found))
    assert value
    assert all(torch.equal(before[k], after[k]) for k in value)


def test_the_step_does_not_depend_on_the_scale_of_the_advantages() -> None:
    """Which is what makes max_kl mean the same everywhere. A plain gradient step would be ten times as long."""
    c = continuing(0)
    at = rows.setting(c, c.theta)
    scaled = at._replace(batch={**at.batch, "advantage": 10.0 * at.batch["advantage"]})
    torch.testing.assert_close(rows.step(scaled), rows.step(at), rtol=1e-9, atol=1e-12)


def test_fitting_the_values_leaves_the_policy_where_the_search_put_it() -> None:
    """To the last bit, and the step leaves the values where they were: the two share one vector and nothing else."""
    agent = TRPO(TRPOConfig(hidden_sizes=(5,), rollout_steps=12, minibatches=2), vector(3), discrete(3), num_envs=4)
    to_float64(agent)
    rollout = synthetic_rollout(agent, 12, dtype=F64)
    batch = {"obs/obs": rollout.obs["obs"][0, 0]}
    points: list[Tensor] = []
    search = agent.over_members["search"]

    def watched(*arguments: Any) -> Any:
        found = search(*arguments)
        points.append(found.point[0])
        return found

    agent.over_members["search"] = watched  # type: ignore[assignment]
    before = agent.state["params"][0]
    agent.update(rollout, 0.0)
    state = {k: x[0] for k, x in agent.state.items()}
    after = state["params"]
    policies = [agent.policy(v, state, batch).log_probs for v in (before, points[-1], after)]  # type: ignore[union-attr]
    assert torch.equal(policies[1], policies[2])
    assert not torch.equal(policies[0], policies[1])
    values = [agent.forward(v, state, batch_inputs(batch)).value for v in (before, points[-1], after)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


@pytest.mark.parametrize(("option", "value"), [("shared_torso", True), ("recurrent", "gru"), ("recurrent", "lstm")])
def test_what_trpo_does_not_have_is_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"\b{option} is .*TRPO"):
        TRPOConfig(**{option: value})
