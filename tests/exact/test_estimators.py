"""The gradient laboratory: its figures are right, wrong estimators are found, variances are ordered as in the notes."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import steepest
from steepest import losses, problems, returns
from steepest.cli import main
from steepest.errors import UsageError
from steepest.estimators import (
    ESTIMATORS,
    PROBLEMS,
    Comparison,
    Context,
    Estimator,
    Row,
    Trajectories,
    compare,
    comparison,
    sample,
    surrogate_loss,
)
from steepest.exact import finite_mdp as mdps
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy
from steepest.problems import Problem

F64 = torch.float64
UNBIASED = [
    *("full_return", "reward_to_go", "constant_baseline", "learned_baseline", "exact_baseline", "optimal_baseline"),
    *("actor_critic_exact", "importance_per_decision", "importance_trajectory"),
]


def contains_zero(row: Row) -> bool:
    return row.bias_interval[0] == 0.0


@pytest.fixture(scope="module")
def walked() -> Comparison:
    names = [*UNBIASED, "actor_critic", "gae_0.5", "gae_0.98"]
    return compare("walk", None, names, repeats=600, seed=3)


# Bias


def test_unbiased_estimators_are_unbiased(walked: Comparison) -> None:
    for name in UNBIASED:
        assert contains_zero(walked[name]), walked[name]
    # narrow enough to mean something
    assert walked["actor_critic_exact"].bias_interval[1] < 0.06
    assert walked["learned_baseline"].bias_interval[1] < 0.12


def test_learned_critics_are_biased_and_less_so_with_longer_traces(walked: Comparison) -> None:
    td, short, long = (walked[name] for name in ("actor_critic", "gae_0.5", "gae_0.98"))
    assert td.bias_interval[0] > 0.0
    assert td.bias > short.bias > long.bias
    assert td.variance < short.variance
    assert short.variance_interval[1] < long.variance_interval[0]


def test_unbiased_for_the_sum_with_undiscounted_states() -> None:
    names = [name for name in UNBIASED if name != "full_return"]
    found = compare("walk", estimators=names, objective="undiscounted", repeats=300, seed=1)
    assert all(contains_zero(row) for row in found.rows)


def test_unbiased_for_the_average_reward() -> None:
    found = compare("riverswim", estimators=["actor_critic_exact", "actor_critic"], repeats=300, seed=1)
    assert found.objective == "average"
    assert contains_zero(found["actor_critic_exact"])
    assert found["actor_critic_exact"].bias_interval[1] < 0.06
    assert not contains_zero(found["actor_critic"])


def test_unbiased_where_recordings_are_cut() -> None:
    found = compare(
        "two_state", estimators=["exact_baseline", "actor_critic_exact"], objective="discounted", repeats=300
    )
    assert all(contains_zero(row) for row in found.rows)


def inside_the_sum(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """The misprint of notes 1.4: sum_{t' >= t} gamma^{t'-t} (r_t' - b(s_t'))."""
    nothing = torch.zeros(data.state.shape, dtype=F64)
    reward = data.reward - context.value[data.state[:-1]]
    to_go = returns.reward_to_go(reward, nothing, data.terminated, data.truncated, data.valid, context.gamma)
    return surrogate_loss(data, theta, to_go)


def missing_gamma(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """States without gamma^t: not the gradient of the discounted return."""
    delta = returns.generalized_advantage(
        data.reward, context.value[data.state], data.terminated, data.truncated, data.valid, context.gamma, 0.0
    )
    return surrogate_loss(data, theta, delta, torch.ones_like(data.weight))


def past_the_end(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """An off-policy estimator that forgets its ratios."""
    return ESTIMATORS["reward_to_go"].function(data, theta, context)


def test_wrong_estimators_are_found() -> None:
    uncorrected = Estimator("uncorrected", past_the_end, data="behaviour")
    behaviour = torch.full((10, 2), 0.5, dtype=F64)
    found = compare("walk", None, [inside_the_sum, missing_gamma, uncorrected], behaviour=behaviour, repeats=300)
    for row in found.rows:
        assert row.bias_interval[0] > 0.05, row
    assert [row.name for row in found.rows] == ["inside_the_sum", "missing_gamma", "uncorrected"]
    assert {row.group for row in found.rows} == {"own"}
    # the same estimator is right for the sum that it is an estimator of
    assert contains_zero(compare("walk", None, [missing_gamma], objective="undiscounted", repeats=300).rows[0])


def test_the_shipped_functions_are_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    right = losses.score_function_loss
    monkeypatch.setattr(losses, "score_function_loss", lambda log_prob, a: 1.3 * right(log_prob, a))
    row = compare("walk", estimators=["actor_critic_exact"], repeats=100).rows[0]
    assert row.bias_interval[0] > 0.2
    assert row.bias_interval[1] < 0.4


# Variance


def test_variances_are_ordered(walked: Comparison) -> None:
    """Full return, causality, baseline, critic: each has less than the one before, with intervals apart."""
    order = ["full_return", "reward_to_go", "constant_baseline", "learned_baseline", "actor_critic_exact"]
    for more, less in pairwise(order):
        assert walked[more].variance_interval[0] > walked[less].variance_interval[1], (more, less)
    assert walked["optimal_baseline"].variance_interval[1] < walked["constant_baseline"].variance_interval[0]
    assert walked["optimal_baseline"].variance < 1.05 * walked["exact_baseline"].variance
    snr = [walked[name].snr for name in order]
    assert snr == sorted(snr)
    cosine = [walked[name].cosine for name in order]
    assert cosine == sorted(cosine)


def bandit() -> Problem:
    """One decision among three, then the end."""
    transition = np.zeros((2, 3, 2))
    transition[:, :, 1] = 1.0
    reward = np.array([[1.0, -0.5, 3.0], [0.0, 0.0, 0.0]])
    return Problem("Bandit", transition, reward, np.array([1.0, 0.0]), 1.0, "Choose once.")


def test_figures_of_a_bandit_by_hand() -> None:
    theta = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.0, 0.0]], dtype=F64)
    policy, reward = softmax_policy(theta)[0], torch.tensor([1.0, -0.5, 3.0], dtype=F64)
    scores = torch.eye(3, dtype=F64) - policy
    g = (policy * reward) @ scores
    second = float((policy * reward.square()) @ scores.square().sum(1))
    variance = (second - float(g @ g)) / 20 / float(g @ g)
    found = compare(bandit(), theta, ["full_return", "reward_to_go"], repeats=1000, steps=20)
    assert found.episodes == 20
    assert math.isclose(found.gradient_norm, float(g.norm()), rel_tol=1e-12)
    for row in found.rows:
        assert row.steps == 20
        low, high = row.variance_interval
        assert low < variance < high
        assert high / low < 1.2
        assert math.isclose(row.snr, variance**-0.5, rel_tol=0.05)
        assert contains_zero(row)


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_bias_intervals_cover(bias: float) -> None:
    """Of 95% intervals, 300 times: 285 expected, 13 more or fewer by chance (3.5 deviations)."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1], dtype=F64)
    hits, squares = 0, 0.0
    for _ in range(300):
        x = torch.randn(100, 5, generator=generator, dtype=F64) * scale
        x[:, 1] += bias
        middle, (low, high) = comparison._distance(x)
        hits += low <= bias <= high
        squares += middle
        assert low <= middle <= high
    assert 272 <= hits <= 298
    # without the correction the noise alone would make it 0.33 on average, or 0.45
    assert abs(squares / 300 - bias) < 0.14


# Equal steps, sampling, determinism


def test_steps_are_equal(walked: Comparison) -> None:
    on_policy = {row.steps for row in walked.rows if row.data == "policy"}
    assert len(on_policy) == 1
    (steps,) = on_policy
    assert abs(steps / walked.steps - 1.0) < 0.05
    for row in walked.rows:
        assert abs(row.steps / steps - 1.0) < 0.05
    continuing = compare("two_state", estimators=["actor_critic", "gae_0.5"], steps=77, repeats=10)
    assert {row.steps for row in continuing.rows} == {77.0}


def test_estimators_see_the_same_trajectories() -> None:
    seen: dict[str, list[float]] = {"first": [], "second": []}

    def spy(name: str) -> Estimator:
        def function(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
            seen[name].append(float((data.reward * data.valid).sum()))
            return surrogate_loss(data, theta, data.reward)

        return Estimator(name, function)

    compare("walk", None, [spy("first"), spy("second")], repeats=10)
    assert seen["first"] == seen["second"]
    assert len(set(seen["first"])) > 5


def test_sampled_frequencies() -> None:
    problem = PROBLEMS["garnet"]()
    mdp, generator = FiniteMDP.from_problem(problem), torch.Generator().manual_seed(0)
    policy = softmax_policy(torch.randn(9, 3, generator=generator, dtype=F64))
    data = sample(problem, policy, recordings=20_000, length=200, generator=generator)
    assert not bool(data.truncated.any())
    assert int(data.terminated.sum()) == 20_000
    assert not bool(data.valid[data.state[:-1] == 8].any())
    visits = torch.zeros(9, dtype=F64).index_add(0, data.state[:-1].flatten(), (data.weight * data.valid).flatten())
    torch.testing.assert_close(visits / 20_000, mdps.expected_visits(mdp, policy), rtol=0.03, atol=0.01)
    discounted = (data.weight * data.reward).sum(0)
    error = 4 * float(discounted.std()) / 20_000**0.5
    assert abs(float(discounted.mean()) - float(mdps.objective(mdp, policy))) < error
    torch.testing.assert_close(data.log_prob, policy.log()[data.state[:-1], data.action])
    cut = sample(problem, policy, recordings=50, length=3, generator=generator)
    assert len(cut.action) == 3
    assert torch.equal(cut.truncated[-1], cut.valid[-1] & ~cut.terminated[-1])
    assert bool(cut.truncated[-1].any())


def test_rewards_may_depend_on_the_next_state() -> None:
    problem, generator = PROBLEMS["walk"](), torch.Generator().manual_seed(0)
    data = sample(problem, torch.full((10, 2), 0.5, dtype=F64), recordings=200, length=500, generator=generator)
    earned = data.reward[data.valid]
    assert set(earned.unique().tolist()) == {-0.1, 0.0, 1.0}
    assert set(data.reward[data.terminated].unique().tolist()) == {0.0, 1.0}


def test_same_seed_same_numbers() -> None:
    def run(seed: int) -> dict[str, Any]:
        return compare("garnet", estimators=["gae_0.9", "importance_trajectory"], repeats=20, seed=seed).to_json()

    assert run(4) == run(4)
    assert run(4)["rows"] != run(5)["rows"]


# Your own estimator


def test_a_loss_and_a_gradient_are_the_same() -> None:
    def as_loss(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
        return surrogate_loss(data, theta, data.reward)

    def as_gradient(data: Trajectories, theta: Tensor, context: Context) -> Tensor:
        return -torch.autograd.grad(as_loss(data, theta, context), theta)[0]

    first, second = compare("walk", None, [as_loss, as_gradient], repeats=10).rows
    assert {**vars(first), "name": ""} == {**vars(second), "name": ""}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda data, theta, context: theta[0], "returned shape (2,); expected a loss"),
        (lambda data, theta, context: 1.0, "returned a float; expected a loss"),
        (lambda data, theta, context: data.reward.sum(), "a loss that does not depend on theta"),
        (lambda data, theta, context: theta * math.nan, "not finite"),
    ],
)
def test_a_bad_estimator_is_one_clear_error(function: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compare("walk", None, [Estimator("mine", function)], repeats=10)
    assert "mine" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "cliffwalking"}, "did you mean cliff_walking?"),
        ({"problem": "zzz"}, "no problem is called 'zzz'. Known: walk"),
        ({"estimators": ["reward_togo"]}, "did you mean reward_to_go?"),
        ({"estimators": ["gae_0.5", "gae_0.5"]}, "two estimators are called gae_0.5"),
        ({"estimators": []}, "no estimators were given"),
        ({"estimators": [3]}, "3 is no estimator"),
        ({"policy": torch.zeros(3, 2)}, "policy has shape (3, 2)"),
        ({"policy": torch.full((10, 2), -math.inf)}, "not finite"),
        ({"behaviour": torch.ones(3, 2)}, "behaviour has shape (3, 2)"),
        ({"behaviour": torch.eye(2).repeat(5, 1)}, "every action some chance"),
        ({"behaviour": torch.ones(10, 2)}, "probabilities must sum to 1"),
        ({"repeats": 9}, "repeats is 9"),
        ({"steps": 0}, "steps is 0"),
        ({"objective": "average"}, "has an end"),
        ({"objective": "total"}, "objective is 'total'"),
        ({"problem": "riverswim", "estimators": ["full_return"]}, "does not estimate the average objective"),
        ({"problem": problems.random_walk()}, "the exact gradient is 0"),
        ({"problem": problems.cliff_walking(), "policy": torch.zeros(48, 4)}, "more than 20000 steps"),
    ],
)
def test_misuse_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compare(**{"problem": "walk", "repeats": 10, **arguments})
    assert message in str(caught.value)


# The command


def test_the_command_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--repeats", "10", "--steps", "50"]
    assert main.main(["estimators", "--problem", "walk", "riverswim", *few]) == 0
    out = capsys.readouterr().out
    for name in ESTIMATORS:
        assert f"\n{name} " in out
    assert "Walk: estimates of the gradient of the discounted return (gamma 0.95)" in out
    assert "RiverSwim: estimates of the gradient of the average reward" in out
    assert out.endswith("picture: estimators.png\n")
    assert Path("estimators.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["estimators.png"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    assert main.main(["estimators", "--problem", "walk", *few, "--out", "elsewhere/picture"]) == 0
    assert "│" in capsys.readouterr().out
    assert Path("elsewhere/picture.png").exists()


def test_json_says_what_the_python_call_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["estimators", "--problem", "walk", "--repeats", "10", "--seed", "2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(steepest.estimators.compare("walk", repeats=10, seed=2).to_json()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "wlak"], "expected one of 'walk'"),
        (["--out", "picture.bmp"], "the ending must be .png, .pdf or .svg"),
        (["--repeats", "1"], "repeats is 1"),
        (["--problem", "walk", "--objective", "average"], "has an end"),
    ],
)
def test_misuse_of_the_command(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["estimators", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_help_names_the_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["estimators", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in PROBLEMS:
        assert name in out
