"""Needs of disk and memory, compared with what is free."""

from __future__ import annotations

import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import steepest
from helpers_language import demonstrations, tiny
from steepest import UsageError
from steepest.cli import checks
from steepest.cli.main import main
from steepest.estimators.comparison import compare as compare_estimators
from steepest.files import space
from steepest.language.training.trainer import trained_bytes


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a margin; a folder need not exist yet."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 2 * 10**9))
    folder = tmp_path / "not" / "yet"
    space.require_space(2 * 10**9 - space.KEPT_FREE, "it", "help", folder)
    with pytest.raises(UsageError, match=r"^it needs 1.73 GB on the disk of .*not/yet, where 1.73 GB are free for it"):
        space.require_space(2 * 10**9 - space.KEPT_FREE + 1, "it", "help", folder)
    monkeypatch.setattr(space, "free_memory", lambda: 10**9 + space.KEPT_FREE)
    space.require_space(10**9, "it", "help")
    with pytest.raises(UsageError, match=r"^it needs 15 TB of memory, where 1 GB are free for it; help$"):
        space.require_space(15 * 10**12, "it", "help")
    monkeypatch.setattr(space, "free_memory", lambda: None)
    space.require_space(15 * 10**11, "it", "help")


def test_the_least_of_all_limits_counts() -> None:
    """The machine's, and the process's own."""
    whole = space.free_memory()
    assert whole is not None
    assert 2**20 < whole < 2**50
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
        limited = space.free_memory()
        assert limited is not None
        assert limited <= min(2**40, whole + 2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (12_345, "12.3 kB"), (3 * 10**9, "3 GB")],
)
def test_sizes_are_said_as_people_read_them(number: int, text: str) -> None:
    assert space.in_bytes(number) == text


@pytest.fixture
def one_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """So much is free, wherever the tests run."""
    monkeypatch.setattr(space, "free_memory", lambda: 10**9 + space.KEPT_FREE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**9 + space.KEPT_FREE))


QUICK = {"num_envs": 2, "total_steps": 64, "hidden_sizes": (8,), "compile": "off", "eval_episodes": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rollout_steps": 128_000_000},
            r"\(128,000,000 steps of 2 environments\) needs .* \(rollout_steps, train_every\)",
        ),
        ({"num_envs": 8_000_000}, r"what is played between updates \(8 steps of 8,000,000 environments\) needs"),
        (
            {"num_envs": 8_000_000, "vectorization": "sync"},
            r"^a batch of 8,000,000 environments needs 32\.8 GB of memory",
        ),
        ({"num_envs": 1_000, "vectorization": "async"}, r"^a batch of 1,000 environments needs 10\.5 GB of memory"),
        ({"num_envs": 10**9, "vectorization": "native"}, r"^a batch of 1,000,000,000 environments needs 64 GB"),
    ],
)
@pytest.mark.usefixtures("one_gigabyte")
def test_what_an_option_asks_for_is_compared_before_it_is_taken(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A million times too many of something is one sentence, and leaves nothing."""
    with pytest.raises(UsageError, match=message):
        steepest.train("ppo", "CartPole-v1", out=tmp_path / "run", **{**QUICK, "rollout_steps": 8, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 256_000_000}, "minibatches of 256,000,000 transitions needs .* smaller batch_size"),
        ({"updates_per_call": 10_000_000}, "10,000,000 gradient steps on minibatches of 64 transitions"),
        ({"train_every": 50_000_000}, "50,000,000 steps of 2 environments"),
        ({"buffer_size": 10**12}, "the replay buffer"),
    ],
)
@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_minibatches(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        steepest.train("dqn", "CartPole-v1", out=tmp_path / "run", **{**QUICK, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_networks(tmp_path: Path) -> None:
    """Those of agents, of several seeds, and of fitted Q evaluation."""
    train, options = partial(steepest.train, out=tmp_path / "run"), {**QUICK, "hidden_sizes": (10**5, 10**5)}
    for algorithm, env in (("ppo", "CartPole-v1"), ("sac", "Pendulum-v1")):
        with pytest.raises(UsageError, match=r"^training networks of hidden_sizes 100000, 100000 needs 160 GB"):
            train(algorithm, env, **options)
    with pytest.raises(UsageError, match=r"hidden_sizes 64, 64 for 100,000 seeds needs 6\.66 GB .* or fewer seeds$"):
        steepest.train_seeds("ppo", "CartPole-v1", seeds=10**5, **{**QUICK, "num_envs": 1, "hidden_sizes": (64, 64)})
    assert list(tmp_path.iterdir()) == []
    agent = steepest.train("ppo", "CartPole-v1", **QUICK)
    data = steepest.collect(agent, "CartPole-v1", steps=40)
    for name, value, said in (("hidden_sizes", (10**5, 10**5), "networks"), ("batch_size", 10**9, "a gradient step")):
        with pytest.raises(UsageError, match=said):
            steepest.ope([agent], data, updates=1, **{name: value})


@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_estimates() -> None:
    with pytest.raises(UsageError, match=r"sampling .* episodes at a time needs .* give fewer repeats or steps"):
        compare_estimators("walk", repeats=10**9)


def test_so_is_a_number_of_threads() -> None:
    """Which would end the process without a word, and leave the folder of a run."""
    with pytest.raises(UsageError, match="threads is 1000000000; expected 1 to 1,024 or none"):
        steepest.train("ppo", "CartPole-v1", threads=10**9)


def test_what_is_not_foreseen_is_said_without_its_place_in_c(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(checks, "estimators", refused)
    assert main(["estimators"]) == 1
    assert capsys.readouterr().err == "steepest: out of memory: 4.61 EB at once are not there\n"


@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_checkpoints_of_agents(tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "num_envs": 1, "rollout_steps": 8, "hidden_sizes": (512, 512)}
    with pytest.raises(UsageError, match=r"the run \(6401 checkpoints of \d\.\d+ MB\) needs .* keep_checkpoints"):
        steepest.train("ppo", "CartPole-v1", out=tmp_path / "run", keep_checkpoints=10**6, checkpoint_every=1,
                       **{**options, "total_steps": 6400})  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_recordings(tmp_path: Path) -> None:
    """In memory, and on the disk that they are to be written to."""
    for steps, message in ((10**12, "a recording|a dataset of"), (10**7, "a recording of 10,000,000 steps needs")):
        for out in (None, tmp_path / "data.npz", tmp_path / "data"):
            with pytest.raises(UsageError, match=message):
                steepest.collect("random", "CartPole-v1", steps=steps, out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gigabyte")
def test_so_are_language_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = tiny(), demonstrations(8)
    with pytest.raises(UsageError, match=r"2 responses of 256,000,000 tokens needs 4\.1 GB of memory"):
        steepest.respond(lm, ["So", "This"], max_new_tokens=256_000_000)
    with pytest.raises(UsageError, match=r"adapters of rank 16,000,000 in training needs .* smaller lora_rank"):
        steepest.sft(lm, rows, out=tmp_path / "run", lora_rank=16_000_000)
    size = trained_bytes(lm.model.parameters())
    options: dict[str, Any] = {"threads": 1, "batch_size": 2, "epochs": 1000, "checkpoint_every": 1}
    # 4,000 updates, each with a checkpoint, of which nearly all are kept.
    with pytest.raises(UsageError, match=r"the run \(4000 checkpoints of .* and 1 saved models\) needs .* on the disk"):
        steepest.sft(lm, rows, out=tmp_path / "run", keep_checkpoints=2_000_000, **options)
    assert 3 * size * 4000 > 10**9
    monkeypatch.setattr(space, "free_memory", lambda: space.KEPT_FREE)
    monkeypatch.setattr(space, "NOT_WORTH_ASKING", 3 * size - 1)
    with pytest.raises(UsageError, match=r"training \(gradients and AdamW's two moments\) needs"):
        steepest.sft(lm, rows, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
