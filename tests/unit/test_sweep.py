"""Sweeps: what is searched, the study that processes share, and the population of trials."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import steepest
from steepest.algorithms import find_config
from steepest.cli.options import read_config
from steepest.errors import RunError, UsageError
from steepest.runs.options.config import RunConfig
from steepest.runs.run import Run
from steepest.scale.search import SET_HERE, Choices, Interval, Search, read_search
from steepest.scale.study import Study, best_of

pytest.importorskip("optuna")

KINDS = (find_config("ppo"), RunConfig)
TINY: dict[str, Any] = {
    "total_steps": 192, "rollout_steps": 16, "num_envs": 2, "minibatches": 1, "epochs": 1, "eval_episodes": 2,
    "compile": "off", "threads": 1,
}  # fmt: skip
LR: Search = {"learning_rate": Interval(1e-5, 1e-2, log=True)}


def searched(given: Any) -> Search:
    return read_search(given, KINDS, apart=SET_HERE)


def test_what_is_searched_is_read() -> None:
    found = searched(["learning_rate=log:1e-5:1e-2", "gamma=0.9:0.99", "epochs=1:8", "hidden_sizes=[16]|[64, 64]"])
    assert found == {
        "learning_rate": Interval(1e-5, 1e-2, log=True),
        "gamma": Interval(0.9, 0.99),
        "epochs": Interval(1, 8, whole=True),
        "hidden_sizes": Choices(([16], [64, 64])),
    }
    assert searched({"activation": ["tanh", "relu"], "target_kl": [None, 0.02]})["target_kl"] == Choices((None, 0.02))
    assert searched(["target_kl=none|3e-2"])["target_kl"] == Choices(("none", 3e-2))
    again = searched({name: str(dimension) for name, dimension in found.items()})
    assert again == found
    for given, message in (
        ([], "nothing to search"),
        (["learning_rate"], "search has 'learning_rate'; expected NAME=LOW:HIGH"),
        (["learning_rat=0:1"], "no option 'learning_rat'; did you mean learning_rate"),
        (["lr=0:1"], "it is called 'learning_rate' here|it is called learning_rate here"),
        (["seed=0:1"], "seed is set by the sweep itself"),
        (["gamma=0.9:0.8"], "its first number must be the smaller one"),
        (["gamma=0.9"], "expected LOW:HIGH, log:LOW:HIGH, or choices"),
        (["gamma=0.9:high"], "expected LOW:HIGH"),
        (["gamma=log:0:1"], "a logarithmic one begins above 0"),
        (["epochs=1:2.5"], "it takes whole numbers"),
        (["activation=relu|relu"], "has 2 choices; give at least two, all different"),
        (["gamma=0:1", "gamma=0:1"], "search has gamma twice"),
    ):
        with pytest.raises(UsageError, match=message):
            searched(given)


def study(folder: Path, *, trials: int = 6, search: Search = LR, **description: Any) -> Study:
    return Study(folder, {"algorithm": "ppo", **description}, search, trials=trials, seed=0)


def test_who_dies_leaves_trials_to_the_next(tmp_path: Path) -> None:
    """While it works, while it asks, and while it writes down what the trials are worth."""
    one = study(tmp_path / "s")
    first = one.claim(2)
    assert first is not None
    other = study(tmp_path / "s")
    second = other.claim(2)
    assert second is not None
    assert second.place != first.place, "the first one is being worked on"
    first.leave()  # what the kernel does at the end of a process
    again = other.claim(2)
    assert again is not None
    assert again.place == first.place
    other.tell(again, {t.number: 1.0 for t in again.trials})
    other.optuna.ask({})  # asked, and killed before it was written down
    asked = other.optuna.trials[-1].number
    third = other.claim(2)
    assert third is not None
    assert [t.number for t in third.trials] == [asked, asked + 1]
    other.tell(second, {t.number: 2.0 for t in second.trials})
    second.leave()
    (second.place / "values.json").unlink()  # killed between the journal and the file
    second = other.claim(2)
    assert second is not None
    other.tell(second, {t.number: 2.0 for t in second.trials})
    other.tell(third, {third.trials[0].number: None, third.trials[1].number: 3.0})
    assert other.claim(2) is None, "six trials in all"
    assert sorted(t.number for g in other.generations for t in g.trials) == list(range(6))
    assert best_of(other.generations) == (third.trials[1], 3.0)


def test_the_next_trials_follow_from_those_before(tmp_path: Path) -> None:
    """The sampler is seeded by the study and the generation, so that one process gives the same trials again."""
    found = []
    for name in ("a", "b"):
        made = study(tmp_path / name, trials=30)
        while (generation := made.claim(5)) is not None:
            made.tell(generation, {t.number: -abs(t.settings["learning_rate"] - 1e-3) for t in generation.trials})
        found.append([t.settings["learning_rate"] for g in made.generations for t in g.trials])
    assert found[0] == found[1]
    assert len(set(found[0])) == 30


def test_a_half_written_record_is_cut_and_a_damaged_one_said(tmp_path: Path) -> None:
    made = study(tmp_path / "s")
    generation = made.claim(2)
    assert generation is not None
    made.tell(generation, {t.number: 1.0 for t in generation.trials})
    journal = tmp_path / "s" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    assert study(tmp_path / "s").claim(2) is not None
    assert journal.read_bytes().startswith(whole)
    journal.write_bytes(whole.replace(b"\n{", b"\n", 1))
    with pytest.raises(RunError, match=r"journal.log is damaged: "):
        study(tmp_path / "s")


def test_another_study_is_refused(tmp_path: Path) -> None:
    study(tmp_path / "s", env="CartPole-v1")
    with pytest.raises(UsageError, match='has env "CartPole-v1", but "Pendulum-v1" is given'):
        study(tmp_path / "s", env="Pendulum-v1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="holds no study, but file; choose an empty folder"):
        study(tmp_path / "other")


def test_a_sweep_ends_with_the_best_settings_on_fresh_seeds(tmp_path: Path) -> None:
    """Shapes apart, a trial whose numbers overflow, and the same result when it is started again."""
    search = {"learning_rate": [1e-3, 1e25], "hidden_sizes": [[4], [8]]}
    given: dict[str, Any] = {"search": search, "study": tmp_path / "s", "trials": 6, "seeds": 2, "population": 3}
    notes: list[str] = []
    found = steepest.sweep("ppo", "CartPole-v1", **given, final_seeds=2, note=notes.append, **TINY)
    assert len(found.trials) == 6
    failed = {t.number for t, value in found.trials if value is None}
    assert failed == {t.number for t, _ in found.trials if t.settings["learning_rate"] == 1e25}
    assert 0 < len(failed) < 6, "the case that this test is of"
    assert found.best is not None
    assert found.best["learning_rate"] == 1e-3
    assert found.found is not None
    assert found.default is not None
    assert len(found.found.values) == len(found.default.values) == 2
    again = steepest.sweep("ppo", "CartPole-v1", **given, final_seeds=2, **TINY)
    assert (again.trials, again.best, again.found) == (found.trials, found.best, found.found)
    known = json.loads((tmp_path / "s" / "result.json").read_text())
    assert known["best"] == found.best
    assert (tmp_path / "s" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    options = read_config(tmp_path / "s" / "best.yaml")
    with Run("ppo", "CartPole-v1", **options) as run:
        assert run.agent.config.learning_rate == 1e-3


def test_trials_of_one_shape_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its members have the trials' settings, each as many seeds as there are; half-way it goes on where it was."""
    given: dict[str, Any] = {"search": {"learning_rate": "log:1e-4:1e-2", "gamma": "0.9:0.99"}, "trials": 3, "seeds": 2}
    iterate, count = Run.iterate, 0

    def iterate_or_end(run: Run) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return iterate(run)

    monkeypatch.setattr(Run, "iterate", iterate_or_end)
    with pytest.raises(KeyboardInterrupt):
        steepest.sweep("ppo", "CartPole-v1", **given, study=tmp_path / "s", final_seeds=1, **TINY)
    left = sorted(os.listdir(tmp_path / "s" / "generation-0001" / "run-0" / "checkpoints"))
    assert left, "it stopped after a checkpoint"
    found = steepest.sweep("ppo", "CartPole-v1", **given, study=tmp_path / "s", final_seeds=1, **TINY)
    alone = steepest.sweep("ppo", "CartPole-v1", **given, study=tmp_path / "t", final_seeds=1, **TINY)
    assert found.trials == alone.trials
    assert found.found == alone.found
    (run,) = (tmp_path / "s" / "generation-0001").glob("run-*")
    population = steepest.load(run).population
    expected = [t.settings["learning_rate"] for t, _ in found.trials for _ in range(2)]
    assert list(population.varied["learning_rate"]) == expected


def test_a_setting_that_is_off_in_one_trial_splits_the_run(tmp_path: Path) -> None:
    search = ["huber_threshold=none|0.5|1"]  # it is on by default
    given: dict[str, Any] = {"search": search, "trials": 6, "seeds": 1, "population": 6, "final_seeds": 1}
    given |= {"total_steps": 128, "num_envs": 2, "buffer_size": 200, "learning_starts": 32, "batch_size": 8}
    given |= {"hidden_sizes": (8,), "eval_episodes": 1, "compile": "off", "threads": 1}
    found = steepest.sweep("dqn", "CartPole-v1", study=tmp_path / "s", **given)
    assert {t.settings["huber_threshold"] for t, _ in found.trials} > {"none"}, "the case that this test is of"
    assert all(value is not None for _, value in found.trials)


def test_what_a_sweep_cannot_do_is_said_before_it_begins(tmp_path: Path) -> None:
    given: dict[str, Any] = {"study": tmp_path / "s", "trials": 2}
    for options, message in (
        ({"search": {"learning_rate": "-1:1"}}, "learning_rate is -1.0; expected a positive number"),
        ({"search": {"gamma": "0.9:1.5"}}, "gamma is 1.5"),
        ({"search": {"gamma": "0.9:0.95"}, "gamma": 0.9}, "gamma is both given and searched"),
        ({"search": {"gamma": "0.9:0.95"}, "vary": ["learning_rate=1,2"]}, "vary is set by the sweep itself"),
        ({"search": {"gamma": "0.9:0.95"}, "seeds": 0}, "seeds is 0; expected at least 1"),
        ({"search": {"gamma": "0.9:0.95"}, "nonsense": 1}, "has no option 'nonsense'"),
    ):
        with pytest.raises(UsageError, match=message):
            steepest.sweep("ppo", "CartPole-v1", **{**given, **options})
    assert list(tmp_path.iterdir()) == []
