"""Two processes that train together, with gloo on the CPU, come to what one comes to alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_distributed import CASES, SHARDED, arguments, make, outcome
from helpers_runs import ENVIRONMENT, differences, final_state, stray_files, timeless_rows
from transformers import AutoModelForCausalLM

from helpers_language import demonstrations, tiny
from steepest.errors import UsageError
from steepest.files.tensors import load_tensors
from steepest.language.models.saving import save_model
from steepest.runs.language_run import LanguageRun
from steepest.runs.store.metrics import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HELPER = Path(__file__).with_name("helpers_distributed.py")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they came to; started once, since it takes seconds."""
    folder = tmp_path_factory.mktemp("together")
    save_model(tiny(scale=1.0, dropout=0.1), folder / "model")
    (folder / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demonstrations(22)))
    done = subprocess.run(
        [*TORCHRUN, HELPER, folder], env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative to the largest component of each tensor."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp(min=1e-30)) for k in one)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, together: Path) -> None:
    """Parameters, moments and all figures, after batches of which some leave a process nothing to do."""
    tensors, figures = outcome(make(case))
    for place in [f"{case} 0", f"{case} 1", *([f"{case} sharded 0"] if case in SHARDED else [])]:
        if place == "dpo sharded 0":  # does not share prompts, which rounds otherwise
            trainer: Any = make(case)
            trainer.why_not_shared = "compared with one that does not"
            tensors, figures = outcome(trainer)
        found, metadata = load_tensors(together / f"{place}.safetensors")
        assert largest_difference(tensors, found) < 1e-10, place
        assert metadata["figures"] == pytest.approx(figures, rel=1e-10, abs=1e-12), place
    if case == "sft":  # the control: what a mean over processes of their means would have done
        found, _ = load_tensors(together / "sft mean of means 0.safetensors")
        assert largest_difference(tensors, found) > 1e-2


def test_copies_stay_the_same_to_the_bit(together: Path) -> None:
    for case in CASES:
        one, other = (load_tensors(together / f"{case} {rank}.safetensors")[0] for rank in (0, 1))
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["copies", "sharded"])
def test_a_signal_stops_all_processes_and_they_resume_to_the_same_bits(name: str, together: Path) -> None:
    """One of them alone is told to stop."""
    for rank in (0, 1):
        codes = json.loads((together / f"report {rank}.json").read_text())["codes"]
        assert [codes[name], codes[f"{name}-resumed"]] == [0, 0]
        assert codes[f"{name}-stopped"] == 143
    unfinished = together / f"{name}-unfinished"
    assert [row["step"] for row in read_metrics(unfinished)] == [1, 2, 3, 4, 5, 6]
    assert AutoModelForCausalLM.from_pretrained(unfinished / "interrupted-model") is not None
    assert differences(together / name, together / f"{name}-stopped") == []
    one, other = (
        AutoModelForCausalLM.from_pretrained(together / run / "model").state_dict() for run in (name, f"{name}-stopped")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert stray_files(together) == []
    assert json.loads((together / name / "config.json").read_text())["processes"] == 2


def test_copies_and_a_model_spread_out_are_saved_alike(together: Path) -> None:
    """Checkpoints and models; with dropout, whose masks the processes draw for themselves."""
    (one, _), (other, _) = (final_state(together / name) for name in ("copies", "sharded"))
    assert largest_difference(one, other) < 1e-3  # float32, and AdamW divides by its own small numbers
    saved = [AutoModelForCausalLM.from_pretrained(together / name / "model") for name in ("copies", "sharded")]
    assert largest_difference(saved[0].state_dict(), saved[1].state_dict()) < 1e-4
    sizes = [(together / name / "model" / "model.safetensors").stat().st_size for name in ("copies", "sharded")]
    assert sizes[0] == sizes[1]  # tied weights once


def test_the_processes_speak_with_one_voice(together: Path) -> None:
    lines = (together / "log").read_text().splitlines()
    assert sum("steepest generate" in line for line in lines) == 4  # four runs that ended
    assert sum(line == "steepest: terminated" for line in lines) == 1  # why a launch ended is said once
    assert sum("interrupted at step 6" in line for line in lines) == 2
    assert sum("resuming from step-000000000004" in line for line in lines) == 2
    assert not any("Traceback" in line or "bits may differ" in line for line in lines)


def test_a_run_may_go_on_with_another_number_of_processes(together: Path) -> None:
    notes: list[str] = []
    with LanguageRun.resume(together / "copies-unfinished", note=notes.append) as run:
        for _ in run:
            pass
    assert any("processes were 2, are 1" in note for note in notes)
    # Dropout's masks are others; without any, the two would be the same but for rounding.
    steps = [row["step"] for row in timeless_rows(together / "copies-unfinished")]
    assert steps == list(range(1, run.total_steps + 1))
    with pytest.raises(UsageError, match="fsdp spreads a model over several processes; start them: torchrun"):
        LanguageRun.resume(together / "sharded-unfinished")


def test_processes_with_different_data_are_refused(together: Path) -> None:
    for rank in (0, 1):
        said = json.loads((together / f"report {rank}.json").read_text())["refusals"]
        assert "the data differs between the processes" in said["data"]
        assert "batch_size is 5; expected a multiple of the 2 processes" in said["batch"]
        assert "reward cannot be trained with fsdp" in said["algorithm"]
        assert "fsdp is for training all of a model" in said["adapters"]
        assert 'the reference has to be "precomputed"' in said["reference"]
        assert "batch_size is 12; expected a multiple of 8, group_size times the number of processes" in said["groups"]


def test_an_error_in_one_process_is_raised_in_all(together: Path) -> None:
    """With its words, so that none waits for one that has gone on to something else, and all can go on."""
    said = [json.loads((together / f"report {rank}.json").read_text())["failures"] for rank in (0, 1)]
    for found in said:
        assert found["none"] == "2 updates"
        for name, words in (
            ("file", "UsageError: there is no"),
            ("option", "UsageError: epochs is 0"),
            ("model", "UsageError: there is no model"),
            ("reward", "RunError: the reward gave nan"),
        ):
            assert found[name].startswith(words), found[name]
    assert said[0]["bug"] == "RunError: OSError: no space left No checkpoint had been saved yet."
    assert said[1]["bug"] == "OSError: no space left"


def test_a_second_interrupt_does_not_wait_for_the_update(together: Path, tmp_path: Path) -> None:
    """Of two processes that torchrun started, one waits for the other, whose reward takes its time."""
    (tmp_path / "reward.py").write_text(
        "import os, pathlib, time\ndef score(prompts, completions):\n"
        "    if os.environ['RANK'] == '1':\n"
        f"        pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "        time.sleep(100)\n"
        "    return [0.0 for _ in completions]\n"
    )
    command = arguments(together / "model", together / "films.jsonl", tmp_path / "run", "--max-new-tokens", "4")
    command[:1] = ["rlhf", "rloo"]
    command += ["--group-size", "2"]
    with subprocess.Popen(
        [*TORCHRUN, "-m", "steepest", *command, "--reward", f"{tmp_path / 'reward.py'}:score"],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as launched:  # fmt: skip
        while not (tmp_path / "begun").exists():
            assert launched.poll() is None
            time.sleep(0.1)
        launched.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            launched.wait(3)
        launched.send_signal(signal.SIGINT)
        launched.communicate(timeout=20)  # torchrun would kill it after 30 seconds
        assert launched.returncode != 0


def test_an_error_in_one_process_ends_all_with_one_message(together: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import os\ndef score(prompts, completions):\n"
        "    return [float('nan') if os.environ['RANK'] == '1' else 0.0 for _ in completions]\n"
    )
    command = arguments(together / "model", together / "films.jsonl", tmp_path / "run", "--max-new-tokens", "4")
    command[:1] = ["rlhf", "rloo"]
    command += ["--group-size", "2"]
    done = subprocess.run(
        [*TORCHRUN, "-m", "steepest", *command, "--reward", f"{tmp_path / 'reward.py'}:score"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("steepest:")]
    assert done.returncode != 0
    assert len(said) == 1
    assert "the reward gave" in said[0]
    assert done.stdout == ""
