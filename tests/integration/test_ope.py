"""Off-policy evaluation of saved agents: against what is known exactly, against played episodes, and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest import UsageError
from steepest.cli.main import main
from steepest.evaluation.fitted_q import policy_on
from steepest.experience.datasets.dataset import Dataset, from_episodes
from steepest.experience.datasets.sampling import DatasetRows

SMALL: dict[str, Any] = {"updates": 300, "hidden_sizes": (32,), "resamples": 200}


@pytest.fixture(scope="module")
def agents() -> list[Any]:
    settings = {"compile": "off", "eval_episodes": 0, "hidden_sizes": (32,)}
    return [steepest.train("ppo", "CartPole-v1", total_steps=n, seed=i, **settings) for i, n in enumerate((4096, 8192))]


@pytest.fixture(scope="module")
def data(agents: list[Any]) -> Dataset:
    """Whole episodes alone: what the recording cut is left out."""
    recorded = steepest.collect(agents[0], "CartPole-v1", steps=4000, seed=3)
    return from_episodes([e for e in recorded.episodes() if e.terminated], env="CartPole-v1")


def test_log_probabilities_are_those_that_were_recorded(agents: list[Any], data: Dataset) -> None:
    """Of the policy that played, at every row of its data."""
    rows = DatasetRows(data, agents[0].obs_spec, agents[0].action_spec)
    policy: Any = policy_on(agents[0], rows).distribution
    valid = data.valid
    found = policy.log_probs.numpy()[np.arange(len(valid)), np.asarray(data.drawn).astype(int)]
    np.testing.assert_allclose(found[valid], np.asarray(data.log_prob)[valid], rtol=1e-4, atol=1e-5)


def test_the_policy_of_the_data_is_worth_what_the_data_says(agents: list[Any], data: Dataset) -> None:
    """All weights are 1: every weighted estimator without a model is the data's own mean discounted return."""
    found = steepest.ope([agents[0]], data, **SMALL)
    own = found.behaviour.value
    estimates = found.policies[0].estimates
    for name in ("is", "pdis", "wis", "wpdis"):
        assert estimates[name].value == pytest.approx(own, rel=1e-5), name
    assert found.policies[0].effective_episodes == pytest.approx(found.episodes, rel=1e-5)
    assert found.selection() == {}


def test_estimates_meet_the_true_value(agents: list[Any], data: Dataset) -> None:
    """Doubly robust of another policy, close enough for weights: its interval has what playing gives."""
    found = steepest.ope(agents, data, true_episodes=60, updates=1500, hidden_sizes=(64,), resamples=500)
    for policy in found.policies:
        assert policy.true is not None
        assert policy.true.low < policy.true.value < policy.true.high
        low, high = policy.estimates["dr"].low, policy.estimates["dr"].high
        assert low < policy.true.high
        assert policy.true.low < high
        assert policy.estimates["conservative"].value < policy.estimates["fqe"].value
    assert set(found.selection()) == set(found.policies[0].estimates)


def test_what_has_no_probabilities_is_refused() -> None:
    """Deterministic policies of continuous actions, data without log_prob, and actions of another kind of draw."""
    settings = {"compile": "off", "eval_episodes": 0, "hidden_sizes": (16,), "total_steps": 300, "learning_starts": 100}
    td3, sac = (steepest.train(name, "Pendulum-v1", **settings) for name in ("td3", "sac"))
    data = steepest.collect(sac, "Pendulum-v1", steps=600, seed=1)
    (by_td3, by_sac) = steepest.ope([td3, sac], data, **SMALL, conservative_weight=0.0).policies
    assert by_td3.refused == "a deterministic policy of continuous actions has no probabilities"
    assert set(by_td3.estimates) == {"fqe"}
    assert by_sac.refused is None
    assert "dr" in by_sac.estimates
    clipped = steepest.collect("random", "Pendulum-v1", steps=600, seed=1)
    (again,) = steepest.ope([sac], clipped, **SMALL).policies
    assert again.refused is not None
    assert again.refused.startswith("the data's actions were not drawn as this policy draws")


def test_the_command_prints_a_table_and_json(
    agents: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for agent, path in zip(agents, saved, strict=True):
        agent.save(path)
    steepest.collect(agents[0], "CartPole-v1", steps=1500, out=tmp_path / "data.npz")
    arguments = [
        "ope",
        *map(str, saved),
        str(tmp_path / "data.npz"),
        "--updates",
        "50",
        "--hidden-sizes",
        "8",
        "--quiet",
    ]
    assert main([*arguments, "--true-episodes", "5"]) == 0
    text = capsys.readouterr().out
    for words in ("the data itself", "fitted Q evaluation", "doubly robust", "true, by playing", "rank correlation"):
        assert words in text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["policy"] for p in found["policies"]] == [str(p) for p in saved]
    assert main(["ope", str(saved[0])]) == 2
    assert "steepest ope needs RUN... DATA" in capsys.readouterr().err
    with pytest.raises(UsageError, match="which policies"):
        steepest.ope([], tmp_path / "data.npz")


def test_online_selection_ends_with_the_better_policy(
    agents: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At first by chance, so the mean of both; in the end the better one. The command prints the same."""
    data = steepest.collect(agents[0], "CartPole-v1", steps=600, seed=3, reference=(20.0, 500.0))
    found = steepest.select_online(agents, data, tries=200, episodes=30, repeats=400)
    means = sorted(found.policies.values())
    assert len(means) == 2
    assert means[1] - means[0] > 5.0, "policies that can be told apart"
    for agent, mean in zip(agents, found.policies.values(), strict=True):
        played = steepest.evaluate(agent, "CartPole-v1", episodes=30)[0].mean
        assert mean == pytest.approx(100.0 * (played - 20.0) / 480.0, rel=1e-9)
    assert found.kept[0] == pytest.approx(sum(means) / 2, abs=0.15 * (means[1] - means[0]))
    assert found.kept[-1] > means[0] + 0.9 * (means[1] - means[0])
    assert found.low[0] == pytest.approx(means[0])
    assert found.high[-1] == pytest.approx(means[1])

    saved = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for agent, path in zip(agents, saved, strict=True):
        agent.save(path)
    steepest.write_dataset(data, tmp_path / "data.npz")
    arguments = ["ope", *map(str, saved), str(tmp_path / "data.npz"), "--bandit", "20", "--true-episodes", "30"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["policies"].values()) == pytest.approx(list(found.policies.values()))
    assert len(printed["kept"]) == 20
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "after      1 online episode " in text
    assert "after     20 online episodes" in text
    assert "mean score of 30 episodes" in text


def test_online_selection_says_what_is_missing(agents: list[Any], data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 policy leaves nothing to choose"):
        steepest.select_online(agents[:1], data, tries=5)
    with pytest.raises(UsageError, match="candidates is 3; expected 1 to 2, the number of policies"):
        steepest.select_online(agents, data, tries=5, candidates=3)
    with pytest.raises(UsageError, match="names no environment"):
        steepest.select_online(agents, from_episodes(list(data.episodes())), tries=5)
    assert main(["ope", "a", "b", "data.npz", "--candidates", "2"]) == 2
