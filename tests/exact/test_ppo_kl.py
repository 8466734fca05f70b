"""PPO with the adaptive KL penalty: the loss by enumeration, the coefficient case by case and over whole runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import (
    F64,
    LayeredMDP,
    box,
    discrete,
    expected_rollout,
    layered_mdp,
    quarters_mdp,
    ragged,
    synthetic_rollout,
    to_float64,
    vector,
)
from helpers_exact import PROBABILITIES, tabular
from steepest.agents.rollout_updates import Batch, all_sequences, batch_inputs
from steepest.algorithms.ppo_kl import PPOKL, PPOKLConfig
from steepest.learner.step import Gradient, Hyper, Metrics, State
from steepest.losses import adapt_kl_coef, penalised_surrogate_loss
from steepest.types import Rollout

DIRECTIONS = ("old_new", "new_old")


def kl_by_state(p: Tensor, q: Tensor) -> Tensor:
    """(S,) KL(p || q) of two tables of probabilities."""
    return (p * (p / q).log()).sum(-1)


def divergences(old: Tensor, new: Tensor) -> dict[str, Tensor]:
    return {"old_new": kl_by_state(old, new), "new_old": kl_by_state(new, old)}


# The loss


def penalised(mdp: LayeredMDP, old: Tensor, logits: Tensor, direction: str, kl_coef: float) -> Tensor:
    """The loss over states as visited and actions of the old policy."""
    log_prob = torch.log_softmax(logits, -1)
    advantage = mdp.q_values(old) - mdp.values(old).unsqueeze(-1)
    kl = divergences(old, log_prob.exp())[direction].unsqueeze(-1)
    weight = mdp.discounted_visits(old).unsqueeze(-1) * old
    return (weight * penalised_surrogate_loss(log_prob, old.log(), advantage, kl, kl_coef)).sum()


def random_logits(mdp: LayeredMDP, seed: int) -> Tensor:
    return torch.randn((mdp.states, 2), generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kl_coef", [0.0, 1.0, 50.0])
def test_gradient_at_the_old_policy(direction: str, kl_coef: float) -> None:
    """Minus the exact policy gradient, whatever the penalty costs further on; and only there."""
    for seed in range(3):
        mdp = layered_mdp(seed, 0.8)
        logits = random_logits(mdp, seed)
        old = torch.softmax(logits, -1)
        slopes = []
        for start in (logits, logits + 0.5 * random_logits(mdp, 100 + seed)):
            leaf = start.clone().requires_grad_()
            slopes.append(torch.autograd.grad(penalised(mdp, old, leaf, direction, kl_coef), leaf)[0])
        torch.testing.assert_close(-slopes[0], mdp.gradient(logits), rtol=1e-10, atol=1e-12)
        # Elsewhere it is another one, by more than a hundredth: a wide tolerance asks for more here.
        assert not torch.allclose(-slopes[1], mdp.gradient(logits), rtol=1e-2)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_penalty_away_from_the_old_policy(direction: str) -> None:
    """-(L(pi') - beta E[KL]) / (1 - gamma), by sums over states; the other direction is another number."""
    mdp = layered_mdp(1, 0.8)
    old, logits = torch.softmax(random_logits(mdp, 1), -1), random_logits(mdp, 2)
    new = torch.softmax(logits, -1)
    advantage = mdp.q_values(old) - mdp.values(old).unsqueeze(-1)
    visits = mdp.discounted_visits(old)
    surrogate = (visits.unsqueeze(-1) * new * advantage).sum()
    costs = {k: float(visits @ kl) for k, kl in divergences(old, new).items()}
    other = {"old_new": "new_old", "new_old": "old_new"}[direction]
    found = float(penalised(mdp, old, logits, direction, 3.0))
    assert found == pytest.approx(-float(surrogate) + 3.0 * costs[direction], rel=1e-10)
    assert found != pytest.approx(-float(surrogate) + 3.0 * costs[other], rel=1e-2)


CASES = [
    # ratio, advantage, KL, loss at beta 3, derivative with respect to log_prob (-rho A, however far)
    (1.0, 2.0, 0.0, -2.0, -2.0),
    (1.5, 2.0, 0.1, -2.7, -3.0),
    (0.5, -2.0, 0.1, 1.3, 1.0),
    (4.0, 2.0, 0.2, -7.4, -8.0),
    (1.5, 0.0, 0.5, 1.5, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "kl", "loss", "slope"), CASES)
def test_penalised_surrogate_by_cases(ratio: float, advantage: float, kl: float, loss: float, slope: float) -> None:
    old = torch.tensor(-1.3, dtype=F64, requires_grad=True)
    log_prob = (old.detach() + math.log(ratio)).requires_grad_()
    a, d = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (advantage, kl))
    for kl_coef in (3.0, torch.tensor(3.0, dtype=F64)):
        found = penalised_surrogate_loss(log_prob, old, a, d, kl_coef)
        assert found.item() == pytest.approx(loss, abs=1e-12)
        slopes = torch.autograd.grad(found, (log_prob, old, a, d), allow_unused=True)
        assert float(slopes[0]) == pytest.approx(slope, abs=1e-12)
        assert slopes[1] is slopes[2] is None
        assert float(slopes[3]) == pytest.approx(3.0)


def test_kl_coef_may_not_be_negative() -> None:
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="must be zero or more"):
        penalised_surrogate_loss(zero, zero, zero, zero, -1.0)


# The coefficient


def test_adaptation_by_cases() -> None:
    """Halved below target / 1.5, doubled above 1.5 target, kept in between and at both ends; each member by itself."""
    target = torch.tensor(0.75, dtype=F64)
    kl = torch.tensor([0.0, 0.49, 0.5, 0.75, 1.125, 1.13, 40.0], dtype=F64)
    expected = torch.tensor([1.5, 1.5, 3.0, 3.0, 3.0, 6.0, 6.0], dtype=F64)
    assert torch.equal(adapt_kl_coef(torch.full_like(kl, 3.0), kl, target), expected)
    assert torch.equal(adapt_kl_coef(torch.full_like(kl, 3.0), kl, 0.75), expected)


def test_the_coefficient_stays_a_positive_number() -> None:
    """A hundred updates that do not move, then a hundred that move too far, and back."""
    kl_coef = torch.tensor(1.0)
    seen = []
    for kl in (0.0, 1.0, 0.0):
        for _ in range(100):
            kl_coef = adapt_kl_coef(kl_coef, torch.tensor(kl), 0.01)
        seen.append(float(kl_coef))
    assert seen == pytest.approx([1e-8, 1e8, 1e-8])


# The agent


def make(mdp: LayeredMDP, probabilities: Tensor, **config: Any) -> PPOKL:
    return tabular(PPOKL, mdp, torch.zeros(mdp.states, dtype=F64), probabilities, minibatches=1, **config)


def hyper() -> dict[str, Tensor]:
    values = {"gamma": 1.0, "gae_lambda": 1.0, "value_coef": 1.0, "entropy_coef": 0.0, "target_kl": 0.125}
    return {k: torch.tensor(x, dtype=F64) for k, x in values.items()}


def one(agent: PPOKL) -> State:
    return {k: x[0] for k, x in agent.state.items()}


def loss_gradient(agent: PPOKL, batch: Batch, kl_coef: float) -> Tensor:
    """(S, 2) the gradient of the loss over the whole rollout in the logits."""
    state = {**one(agent), "kl_coef": torch.tensor(kl_coef, dtype=F64)}
    leaf = state["params"].clone().requires_grad_()
    loss, _ = agent.loss(leaf, state, all_sequences(batch), hyper())
    return agent.layout.unflatten(torch.autograd.grad(loss, leaf)[0])["policy_head.weight"].T


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_first_gradient_is_the_policy_gradient(direction: Any) -> None:
    mdp = quarters_mdp(0, 1.0)
    rollout, trajectories = expected_rollout(mdp, PROBABILITIES)
    agent = make(mdp, PROBABILITIES, kl_direction=direction)
    with torch.no_grad():
        _, batch, _ = agent.prepare(one(agent), rollout, hyper())
    found = -loss_gradient(agent, batch, 7.0) * int(rollout.valid.sum()) / trajectories
    torch.testing.assert_close(found, mdp.gradient(PROBABILITIES.log()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_the_penalty_adds_is_the_gradient_of_the_kl(direction: Any) -> None:
    """Away from the old policy: beta times the gradient of the mean KL over the states that were decided in."""
    mdp = quarters_mdp(0, 1.0)
    rollout, _ = expected_rollout(mdp, PROBABILITIES)
    assert not rollout.valid.all()
    old = make(mdp, PROBABILITIES, kl_direction=direction)
    with torch.no_grad():
        _, batch, _ = old.prepare(one(old), rollout, hyper())
    logits = random_logits(mdp, 3)
    new = make(mdp, torch.softmax(logits, -1), kl_direction=direction)
    added = loss_gradient(new, batch, 2.0) - loss_gradient(new, batch, 0.0)
    visits = (rollout.obs["obs"][:-1] * rollout.valid.unsqueeze(-1)).sum((0, 1)) / rollout.valid.sum()
    exact = {}
    for name in DIRECTIONS:
        leaf = logits.clone().requires_grad_()
        kl = visits @ divergences(PROBABILITIES, torch.softmax(leaf, -1))[name]
        exact[name] = 2.0 * torch.autograd.grad(kl, leaf)[0]
    torch.testing.assert_close(added, exact.pop(direction), rtol=1e-9, atol=1e-12)
    (other,) = exact.values()
    # The other direction's is off by more than a hundredth, far beyond rounding.
    assert not torch.allclose(added, other, rtol=1e-2)
    # What beta is adapted by is the same KL.
    with torch.no_grad():
        adapted, figures = new.adapt({**one(new), "kl_coef": torch.tensor(3.0, dtype=F64)}, batch, hyper())
    distance = visits @ divergences(PROBABILITIES, torch.softmax(logits, -1))[direction]
    torch.testing.assert_close(figures["kl"], distance, rtol=1e-10, atol=1e-12)
    assert float(distance) > 1.5 * 0.125
    assert float(figures["kl_coef"]) == 3.0
    assert float(adapted["kl_coef"]) == 6.0


ACTIONS = {
    "discrete": (discrete(3), {}),
    "multi-discrete": (discrete(3, 2), {}),
    "diagonal": (box(2), {}),
    "full": (box(2), {"gaussian": "full"}),
    "tanh": (box(2), {"squash": "tanh"}),
}


@pytest.mark.parametrize("recurrent", ["none", "gru"])
@pytest.mark.parametrize("name", ACTIONS)
def test_old_distributions_belong_to_their_steps(name: str, recurrent: Any) -> None:
    """With the old parameters the KL is zero at every step, and the mean over steps; with others it is not."""
    action_spec, options = ACTIONS[name]
    config = {"rollout_steps": 8, "minibatches": 2, "hidden_sizes": (5,), "sequence_length": 4, "recurrent_size": 3}
    agent = to_float64(PPOKL(PPOKLConfig(**config, recurrent=recurrent, **options), vector(2), action_spec, num_envs=3))
    g = torch.Generator().manual_seed(0)
    agent.state["params"] += 0.5 * torch.randn(agent.state["params"].shape, generator=g, dtype=F64)
    data = ragged(0, steps=8, envs=3)
    drawn = torch.randn((8, 3) if name == "discrete" else (8, 3, 2), generator=g, dtype=F64)
    starts = torch.cat([torch.ones_like(data.valid[:1]), data.terminated | data.truncated])
    rollout = Rollout(
        obs={"obs": torch.randn((9, 3, 2), generator=g, dtype=F64)},
        action=drawn if action_spec.kind == "box" else (drawn > 0).long(),
        reward=data.reward,
        terminated=data.terminated,
        truncated=data.truncated,
        valid=data.valid,
        episode_step=(~starts).long(),
        action_mask=None,
        memory=torch.randn((2, 3, agent.memory_size), generator=g, dtype=F64) if agent.memory_size else None,
    )
    state = one(agent)
    with torch.no_grad():
        _, batch, _ = agent.prepare(state, rollout, hyper())
        whole = all_sequences(batch)
        for parameters, moved in ((state["params"], False), (state["params"] + 0.1, True)):
            other = {**state, "params": parameters}
            policy = agent.forward(parameters, other, batch_inputs(whole), with_value=False).distribution
            kl = agent.divergence(policy, whole)
            assert kl.shape == whole["weight"].shape
            mean = agent.adapt(other, batch, hyper())[1]["kl"]
            expected = (kl * whole["weight"]).sum() / rollout.valid.sum()
            torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
            assert (float(kl.abs().max()) > 1e-4) is moved


# The trace of the coefficient over a run

TARGET = 2.0**-7
RUN: dict[str, Any] = {"rollout_steps": 12, "hidden_sizes": (6,), "epochs": 3, "minibatches": 2, "learning_rate": 0.05}


class PerMinibatch(PPOKL):
    """The mistake: the coefficient follows the KL of every minibatch."""

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        state, figures = super().gradient_step(gradient, state, batch, hyper)
        return {**state, "kl_coef": adapt_kl_coef(state["kl_coef"], figures["approx_kl"], hyper["target_kl"])}, figures


def traces(kind: type[PPOKL], updates: int = 16, **options: Any) -> tuple[Tensor, Tensor]:
    """(KL, coefficient in force) as reported, each (updates, members), of a population on made-up experience."""
    config = PPOKLConfig(**{**RUN, "target_kl": TARGET, "kl_coef": 0.5, **options})
    agent = to_float64(kind(config, vector(3), discrete(3), num_envs=4, seeds=(0, 1)))
    rows = [agent.update(synthetic_rollout(agent, 12, seed=10 * i, dtype=F64), i / updates) for i in range(updates)]
    kl, kl_coef = (torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in ("kl", "kl_coef"))
    return kl, kl_coef


def by_hand(kl: Tensor, start: float) -> Tensor:
    """The coefficients that these distances lead to, one change an update."""
    rows = []
    for member in kl.T.tolist():
        kl_coef, row = start, []
        for distance in member:
            row.append(kl_coef)
            if distance < TARGET / 1.5:
                kl_coef = kl_coef / 2.0
            elif distance > TARGET * 1.5:
                kl_coef = kl_coef * 2.0
        rows.append(row)
    return torch.tensor(rows, dtype=F64).T


@pytest.mark.parametrize("options", [{}, {"kl_direction": "new_old", "off_policy_correction": "vtrace"}])
def test_the_coefficient_changes_once_per_update(options: dict[str, Any]) -> None:
    """It follows from the reported distances by hand, in both directions and for each member by itself."""
    kl, kl_coef = traces(PPOKL, learning_rate_schedule="linear", **options)
    assert torch.equal(kl_coef, by_hand(kl, 0.5))
    steps = (kl_coef[1:] / kl_coef[:-1]).unique().tolist()
    assert set(steps) >= {0.5, 2.0}
    assert not torch.equal(kl_coef[:, 0], kl_coef[:, 1])


def test_changing_it_with_every_minibatch_is_another_trace() -> None:
    kl, kl_coef = traces(PerMinibatch)
    # A single halving too many is a factor of two, which a tenth tells from none.
    assert not torch.allclose(kl_coef, by_hand(kl, 0.5), rtol=0.1)
    assert not torch.allclose(kl_coef, traces(PPOKL)[1], rtol=0.1)


def test_the_distance_is_that_of_the_whole_update() -> None:
    """Measured after the last step: it is larger than the mean over the steps on the way."""
    agent = to_float64(PPOKL(PPOKLConfig(**RUN), vector(3), discrete(3), num_envs=4))
    figures = agent.update(synthetic_rollout(agent, 12, dtype=F64), 0.0)
    assert float(figures["kl"][0]) > float(figures["approx_kl"][0]) > 0.0


def test_a_dear_penalty_keeps_the_policy_near() -> None:
    distances = []
    for kl_coef in (1e-3, 1e3):
        agent = to_float64(PPOKL(PPOKLConfig(**{**RUN, "kl_coef": kl_coef}), vector(3), discrete(3), num_envs=4))
        rows = [agent.update(synthetic_rollout(agent, 12, seed=10 * i, dtype=F64), 0.0) for i in range(3)]
        distances.append(sum(float(row["kl"][0]) for row in rows))
    assert distances[1] < 0.3 * distances[0]
