"""Rows survive being killed, and a resumed run repeats none."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from steepest.errors import RunError, UsageError
from steepest.runs.store.metrics import MetricsLog, read_metrics


def row(step: int, seed: int = 0, **values: Any) -> dict[str, Any]:
    return {"step": step, "wall_seconds": step / 10, "seed": seed, "train/return_mean": float(step), **values}


def events(folder: Path, tag: str = "train/return_mean") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_rows_come_back(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(row(10))
        assert read_metrics(tmp_path) == [row(10)]  # readable at once
        log.write({"step": np.int64(20), "wall_seconds": np.float32(0.5), "seed": 1, "health/kl": torch.tensor(0.25)})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        row(10),
        {"step": 20, "wall_seconds": 0.5, "seed": 1, "health/kl": 0.25},
    ]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(
            row(1, **{"health/a": math.nan, "health/b": -math.inf, "health/c": np.float64("nan"), "health/d": None})
        )
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert [line[f"health/{name}"] for name in "abcd"] == [None] * 4
    assert events(tmp_path / "tensorboard") == [(1, 1.0)]


def test_malformed_rows_are_refused_unwritten(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        with pytest.raises(KeyError, match="wall_seconds"):
            log.write({"step": 1, "seed": 0})
        with pytest.raises(TypeError, match=r"'health/x' must be a number.*str"):
            log.write(row(1, **{"health/x": "high"}))
    assert read_metrics(tmp_path) == []


def test_resuming_drops_what_will_come_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (10, 20, 30, 40):
            log.write(row(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "wall_sec')  # torn by kill -9
    with MetricsLog(tmp_path, resume_step=20, tensorboard=False) as log:
        log.write(row(30, **{"eval/return_mean": 7.0}))
    assert read_metrics(tmp_path) == [row(10), row(20), row(30, **{"eval/return_mean": 7.0})]


def test_resuming_mends_a_torn_last_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(10)) + "\n" + json.dumps(row(20)))  # whole, but no newline
    with MetricsLog(tmp_path, resume_step=1000, tensorboard=False) as log:
        log.write(row(30))
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]


def test_resuming_without_metrics_starts_them(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resume_step=5, tensorboard=False) as log:
        log.write(row(6))
    assert read_metrics(tmp_path) == [row(6)]


def test_a_new_run_never_overwrites(tmp_path: Path) -> None:
    MetricsLog(tmp_path).close()
    with pytest.raises(UsageError, match=r"exists already.*--resume"):
        MetricsLog(tmp_path)


def test_reading_tolerates_only_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RunError, match="no metrics"):
        read_metrics(tmp_path)
    path.write_text("")
    assert read_metrics(path) == []
    path.write_text(json.dumps(row(1)) + '\n{"step": 2, "wall')
    assert read_metrics(path) == [row(1)]
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + b"\0" * 100)  # what a power cut can leave
    assert read_metrics(path) == [row(1)]
    path.write_text('{"step": 1\n' + json.dumps(row(2)) + "\n")
    with pytest.raises(RunError, match="line 1 of"):
        read_metrics(path)


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(row(step))
    with MetricsLog(tmp_path, resume_step=20) as log:
        log.write(row(30, **{"train/return_mean": -1.0}))
    assert events(tmp_path / "tensorboard") == [(10, 10.0), (20, 20.0), (30, -1.0)]


def test_several_seeds_have_a_tensorboard_folder_each(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, seeds=(3, 4)) as log:
        for step in (10, 20):
            log.write(row(step, seed=3))
            log.write(row(step, seed=4, **{"train/return_mean": 0.5}))
    assert events(tmp_path / "tensorboard" / "seed-3") == [(10, 10.0), (20, 20.0)]
    assert events(tmp_path / "tensorboard" / "seed-4") == [(10, 0.5), (20, 0.5)]


def test_killed_after_a_write_nothing_is_lost(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from steepest.runs.store.metrics import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "for step in (1, 2, 3):\n"
        "    log.write({'step': step, 'wall_seconds': 0.0, 'seed': 0, 'train/return_mean': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert [step for step, _ in events(tmp_path / "tensorboard")] == [1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog.__new__(MetricsLog)
    log.path = tmp_path / "metrics.jsonl"
    log._file = log.path.open("ab", buffering=0)
    log._events = log._wandb = None
    with pytest.raises(RunError, match=r"No space left.*--resume"):
        log.write(row(1))
    log.close()


def test_weights_and_biases_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r'pip install "steepest\[wandb\]"'):
        MetricsLog(tmp_path, wandb=True)
    assert os.listdir(tmp_path) == []


class FakeWandb:
    """Records what the library is asked for; the real one needs an account."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Any:
        self.started.append(settings)
        return SimpleNamespace(define_metric=lambda *a, **k: None, log=self.logged.append, finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLog(tmp_path, wandb=True, seeds=(0, 1), tensorboard=False) as log:
        log.write(row(10, seed=1, **{"health/a": math.nan}))
    MetricsLog(tmp_path, resume_step=10, wandb=True, tensorboard=False).close()
    assert fake.logged == [{"step": 10, "wall_seconds": 1.0, "seed-1/train/return_mean": 10.0}]
    assert fake.started[0]["id"] == fake.started[1]["id"]
    assert fake.finished == 2


def test_weights_and_biases_that_does_not_start_leaves_room_for_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Any:
        raise ValueError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(RunError, match=r"did not start: api_key not configured \(no-tty\)\. .*WANDB_MODE=offline"):
        MetricsLog(tmp_path, wandb=True)
    MetricsLog(tmp_path).close()


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_weights_and_biases_that_fails_ends_no_run(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a mirror: metrics.jsonl has all rows; and it is asked no more."""
    calls: list[str] = []

    def call(name: str) -> Any:
        def do(*_: Any, **__: Any) -> None:
            calls.append(name)
            if name == fails:
                raise BrokenPipeError("the service\nhas gone")

        return do

    run = SimpleNamespace(define_metric=lambda *a, **k: None, log=call("log"), finish=call("finish"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    log = MetricsLog(tmp_path, wandb=True, tensorboard=False)

    def to_the_end() -> None:
        log.write(row(10))
        log.write(row(20))
        log.close()
        log.close()

    with pytest.warns(RuntimeWarning, match="Weights & Biases takes no more rows: the service has gone"):
        to_the_end()
    assert [r["step"] for r in read_metrics(tmp_path)] == [10, 20]
    assert calls == (["log"] if fails == "log" else ["log", "log", "finish"])
