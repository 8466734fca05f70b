"""Several processes: what can be said of them in one. Two of them work together in the integration tests."""

from __future__ import annotations

import signal
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from steepest.cli.main import main
from steepest.errors import RunError, UsageError
from steepest.files.terminal import ENDING
from steepest.language.parallel import processes
from steepest.language.parallel.torchrun import Launch, launch

TOLD = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("third_of_four")
def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() == Launch(rank=3, local_rank=1, world_size=4)
    monkeypatch.delenv("MASTER_PORT")
    assert launch() == Launch(rank=0, local_rank=0, world_size=1)


@pytest.mark.parametrize(("count", "size", "together"), [(7, 3, 1), (12, 2, 4), (12, 5, 2), (2, 4, 1), (0, 2, 1)])
def test_shares_are_disjoint_and_complete(
    count: int, size: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.share(count, together))
    assert sorted(i for rows in shares for i in rows) == list(range(count))
    groups = [{i // together for i in rows} for rows in shares]
    assert sum(len(g) for g in groups) == len(set().union(*groups))  # a group is in one share
    assert max(len(g) for g in groups) - min(len(g) for g in groups) <= 1


def test_alone_nothing_changes() -> None:
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.share(4) == [0, 1, 2, 3]
    assert processes.total(2.5) == 2.5
    assert processes.totals({"loss": 1.0}) == {"loss": 1.0}
    assert processes.decided("x") == "x"
    processes.check_same(1, "the data")
    assert processes.whole_list(["b", "a", "c"], [1, 0, 2]) == ["a", "b", "c"]
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(processes.whole_rows(rows[[2, 0, 1]], [2, 0, 1], 3), rows)
    module = nn.Linear(2, 1)
    module.weight.grad = torch.ones(1, 2)
    processes.copy_from_main(module)
    processes.sum_gradients(list(module.parameters()))
    assert torch.equal(module.weight.grad, torch.ones(1, 2))
    assert module.bias.grad is None
    with processes.interrupts_together() as stop:
        stop()


def test_gradients_travel_in_pieces_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BUCKET_ELEMENTS", 10)
    sizes = [4, 5, 2, 30, 1, 1]
    tensors = [torch.zeros(n, dtype=torch.float64 if i == 5 else torch.float32) for i, n in enumerate(sizes)]
    assert [[len(t) for t in bucket] for bucket in processes._buckets(tensors)] == [[4, 5], [2], [30], [1], [1]]


class Other(NamedTuple):
    """The other one of two processes."""

    heard: list[Any]
    answers: list[Any]  # what it says next; after that, the same as this one


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Other:
    process = Other([], [])

    def all_gather_object(found: list[Any], value: Any) -> None:
        process.heard.append(value)
        found[:] = [value, process.answers.pop(0) if process.answers else value]

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    return process


def test_who_fails_tells_and_who_is_told_does_not_tell_again(other: Other) -> None:
    for error, kind, text in (
        (UsageError("no such file"), UsageError, "no such file"),
        (RunError("NaN"), RunError, "NaN"),
        (KeyError("x"), RunError, "KeyError: 'x'"),
    ):
        with pytest.raises(type(error)), processes.failing_together():
            raise error
        (told,) = other.heard
        other.heard.clear()
        other.answers.append(told)
        with pytest.raises(kind, match=text), processes.failing_together():
            processes.total(1.0)
        assert other.heard == [1.0]
        other.heard.clear()
        other.answers.append(told)
        with pytest.raises(kind, match=text), processes.failing_together():
            pass  # all is well here, and the other has failed
        assert other.heard == [None]
        other.heard.clear()
    with pytest.raises(RunError), processes.failing_together(tells=False):
        raise RunError("in a model in parts")
    assert other.heard == []
    with pytest.raises(KeyboardInterrupt), processes.failing_together():
        raise KeyboardInterrupt
    assert other.heard == []


def test_models_of_other_shapes_are_refused_before_weights_travel(other: Other) -> None:
    other.answers.append([((3, 2), "torch.float32"), ((3,), "torch.float32")])
    with pytest.raises(UsageError, match="the model differs between the processes"):
        processes.copy_from_main(nn.Linear(2, 1))


def test_a_second_signal_ends_a_process_where_it_stands(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: clock[0])
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with processes.interrupts_together() as stop:
        stop()
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGINT)  # passed on by what started this process
        with pytest.raises(KeyboardInterrupt):
            stop()
        assert other.heard == [0, signal.SIGINT]
        clock[0] += 1.0
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)  # into which torchrun turns a second Ctrl-C
        assert ended.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_ends_one_process_waits_for_all(number: signal.Signals, other: Other) -> None:
    """A closed terminal, and a batch system, send more than SIGTERM."""
    with processes.interrupts_together() as stop:
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            stop()
    assert other.heard == [number]


@pytest.mark.usefixtures("third_of_four")
def test_a_python_without_gloo_and_a_machine_without_enough_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with pytest.raises(UsageError, match="built without gloo"):
        processes.join()
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"process 2 of this machine has no GPU: there is 1\."):
        processes.take_gpu()


@pytest.mark.usefixtures("third_of_four")
def test_verbs_of_one_process_are_refused_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "ppo", "CartPole-v1"]) == 2
    assert main(["sft", "--help"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "ppo", "CartPole-v1"]) == 2
    assert "train runs in one process; start it without torchrun" in capsys.readouterr().err
