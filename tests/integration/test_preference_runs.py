"""Runs that learn from preferences and from rewards: resuming to the bit, killed or stopped, and the command."""

from __future__ import annotations

import itertools
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import differences, start_command, steepest_command, stray_files, wait_for_step
from transformers import AutoModelForCausalLM

import steepest
from helpers_language import demonstrations, preferences, shout, tiny
from steepest.cli.main import main
from steepest.errors import UsageError
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.training.reward_model import RewardModel, load_reward_model, reward_head, save_reward_model
from steepest.runs.language_run import LanguageRun
from steepest.runs.store.metrics import read_metrics

OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3, "threads": 1, "max_length": 64,
    "tensorboard": False,
}  # fmt: skip
RLHF: dict[str, Any] = {**OPTIONS, "max_new_tokens": 6, "batch_size": 8, "target_kl": 0.1, "eval_fraction": 0.2}
PPO: dict[str, Any] = {**RLHF, "update_epochs": 2, "minibatches": 2}
REWARD = """\
def letters(prompts, completions, rows):
    return [text.count("e") / (1 + len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk, with dropout."""
    return save_model(tiny(scale=1.0, dropout=0.1), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("pairs", preferences(24)), ("prompts", demonstrations(20))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


def given(algorithm: str, data: Path) -> tuple[Path, dict[str, Any]]:
    """Data and options of an algorithm."""
    if algorithm in ("dpo", "reward"):
        return data / "pairs.jsonl", {**OPTIONS, "eval_fraction": 0.2}
    options = PPO if algorithm == "ppo" else {**RLHF, "group_size": 2}
    return data / "prompts.jsonl", {**options, "reward": f"{data / 'reward.py'}:letters"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("dpo", {}),
        ("dpo", {"lora_rank": 4}),
        ("reward", {}),
        ("ppo", {}),
        ("ppo", {"lora_rank": 4}),
        ("rloo", {}),
        ("grpo", {}),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    algorithm: str, more: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    rows, options = given(algorithm, data)
    options |= {"checkpoint_every": 1, **more}
    with LanguageRun(algorithm, model, rows, out=tmp_path / "alone", **options) as run:
        assert len(list(run)) == run.total_steps > 2
    with LanguageRun(algorithm, model, rows, out=tmp_path / "stopped", **options) as run:
        for _ in itertools.islice(run, run.total_steps // 2):
            pass
    with LanguageRun.resume(tmp_path / "stopped") as run:
        assert 0 < run.step < run.total_steps
        for _ in run:
            pass
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    one, other = weights(tmp_path / "alone" / "model"), weights(tmp_path / "stopped" / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)
    trained = any(not torch.equal(one[name], value) for name, value in weights(model).items() if name in one)
    assert trained != ("lora_rank" in more)  # the model under adapters stays
    best = json.loads((tmp_path / "alone" / "best.json").read_text())
    assert best["metric"] == ("eval/loss" if algorithm in ("dpo", "reward") else "eval/objective")
    values = [row[best["metric"]] for row in read_metrics(tmp_path / "alone")]
    assert best["value"] == (min if algorithm in ("dpo", "reward") else max)(values)
    assert best == json.loads((tmp_path / "stopped" / "best.json").read_text())
    load = load_reward_model if algorithm == "reward" else load_model
    load(tmp_path / "alone" / "best-model")
    assert stray_files(tmp_path) == []


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_a_killed_run_ends_in_the_same_bits(algorithm: str, model: Path, data: Path, tmp_path: Path) -> None:
    rows, options = given(algorithm, data)
    options |= {"epochs": 12 if algorithm == "dpo" else 8, "checkpoint_every": 3, "eval_every": 10}
    with LanguageRun(algorithm, model, rows, out=tmp_path / "alone", **options) as run:
        for _ in run:
            pass
    out, log = tmp_path / "run", tmp_path / "log"
    flags = [x for k, v in options.items() for x in ([f"--no-{k}"] if v is False else [f"--{k.replace('_', '-')}", v])]
    verb = [algorithm] if algorithm == "dpo" else ["rlhf", algorithm]
    process = start_command(*verb, model, rows, "--out", out, *flags, log=log)
    wait_for_step(out, 4, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = steepest_command(verb[0], "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-" in done.stderr
    assert "bits may differ" not in done.stderr
    assert differences(tmp_path / "alone", out) == []
    assert stray_files(out) == []


def test_the_whole_chain_by_the_command(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reward model from pairs, PPO from that reward model, DPO from the pairs."""
    flags = ["--epochs", "2", "--quiet", "--learning-rate", "1e-3", "--threads", "1", "--batch-size", "8"]
    pairs, prompts = str(data / "pairs.jsonl"), str(data / "prompts.jsonl")
    judge = str(tmp_path / "judge")
    assert main(["reward", str(model), pairs, "--out", judge, "--eval-data", pairs, *flags]) == 0
    printed = capsys.readouterr().out
    assert "evaluation: loss" in printed
    assert f"--reward {judge}" in printed
    assert load_reward_model(judge).head.in_features == 32
    rlhf = ["--max-new-tokens", "5", "--eval-data", prompts, *flags]
    out = str(tmp_path / "ppo")
    assert main(["rlhf", "ppo", str(model), prompts, "--reward", judge, "--out", out, *rlhf]) == 0
    row = read_metrics(Path(out))[-1]
    for name in ("score", "kl", "kl_coef", "entropy", "response_length", "ended", "repetition", "value_loss"):
        assert f"train/{name}" in row, name
    assert row["train/responses"] == 8
    assert "eval/score" in row
    assert (tmp_path / "ppo" / "curve.png").stat().st_size > 5_000
    assert load_model(out).vocabulary == load_model(model).vocabulary
    assert main(["dpo", str(model), pairs, "--out", str(tmp_path / "dpo"), "--kl-coef", "0.2", *flags]) == 0
    assert "steepest generate" in capsys.readouterr().out
    assert main(["dpo", str(model), pairs, "--show-batch", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out.count("learned") == 4


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["MODEL", "DATA", "--help"]])
def test_the_algorithms_are_named_by_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rlhf", *arguments]) == 0
    said = capsys.readouterr()
    assert all(re.search(rf"^  {name} ", said.out, re.MULTILINE) for name in ("ppo", "rloo", "grpo"))
    assert said.err == ""


def test_checkpointing_does_not_stay_with_the_model() -> None:
    lm = steepest.sft(tiny(scale=1.0), preferences(8), max_steps=1, gradient_checkpointing=True, threads=1)
    notes: list[str] = []
    LanguageRun("dpo", lm, preferences(8), max_steps=1, note=notes.append)
    assert notes
    assert not any("checkpointing" in note for note in notes)


def test_what_becomes_of_evaluation_data_is_told() -> None:
    """As of training data: what was cut, and what was left out."""
    long = {"prompt": "This movie was dull. " * 20, "completion": " a", "chosen": " a", "rejected": " b"}
    cut = {"prompt": "So", "completion": " dull" * 99, "chosen": " dull" * 99, "rejected": " great"}
    rows, options = preferences(8), {"max_length": 60, "max_steps": 1, "batch_size": 4}
    rlhf = {"max_new_tokens": 9, "group_size": 2, "reward": shout}
    for algorithm, more in (("sft", {}), ("dpo", {}), ("reward", {}), ("rloo", rlhf)):
        notes: list[str] = []
        LanguageRun(algorithm, tiny(), rows, eval_data=[*rows, long, cut], note=notes.append, **options, **more)
        told = notes[notes.index("evaluation data: 9 of 10 rows") :]
        assert any("1 left out: the prompt" in line for line in told), algorithm
        assert any("1 truncated at max_length" in line for line in told) == (algorithm != "rloo"), algorithm


def test_from_python_with_models_and_functions_of_ones_own(tmp_path: Path) -> None:
    rows = preferences(16)
    judge = steepest.reward_model(tiny(scale=1.0), rows, **{**OPTIONS, "epochs": 8})
    steepest.rlhf(tiny(scale=1.0), rows, judge, algorithm="rloo", **{**RLHF, "group_size": 2})
    policy = steepest.dpo(tiny(scale=1.0), rows, out=tmp_path / "dpo", **OPTIONS)
    assert load_model(tmp_path / "dpo").vocabulary == policy.vocabulary
    options = {**RLHF, "group_size": 2, "out": tmp_path / "run"}
    with LanguageRun("grpo", tiny(scale=1.0), rows, reward=shout, **options) as run:
        for _ in itertools.islice(run, 2):
            pass
    with pytest.raises(UsageError, match="a reward made in Python; pass it again: reward="):
        LanguageRun.resume(tmp_path / "run", data=rows)
    steepest.resume_language(tmp_path / "run", data=rows, reward=shout)
    assert (tmp_path / "run" / "summary.json").exists()


def test_what_else_has_changed_is_refused_or_said(model: Path, tmp_path: Path) -> None:
    rows, judge = tmp_path / "rows.jsonl", tmp_path / "judge.py"
    judges: dict[str, Any] = {"by_file": f"{judge}:letters", "by_model": tmp_path / "judge"}

    def write(answer: str) -> None:
        rows.write_text("".join(json.dumps({**row, "answer": answer}) + "\n" for row in preferences(24)))

    def resumed(name: str) -> list[str]:
        notes: list[str] = []
        with LanguageRun.resume(tmp_path / name, note=notes.append) as run:
            next(iter(run))
        return [note for note in notes if "changed" in note]

    write("right")
    judge.write_text(REWARD)
    save_reward_model(RewardModel(tiny(scale=1.0), reward_head(32, seed=0)), tmp_path / "judge")
    options = {**RLHF, "group_size": 2, "eval_fraction": 0.0, "checkpoint_every": 1, "epochs": 3}
    for name, reward in judges.items():
        with LanguageRun("rloo", model, rows, reward=reward, out=tmp_path / name, **options) as run:
            next(iter(run))
    with LanguageRun("dpo", model, rows, eval_data=rows, out=tmp_path / "dpo", **OPTIONS, checkpoint_every=1) as run:
        next(iter(run))
    assert resumed("by_file") == resumed("by_model") == []
    write("wrong")
    with pytest.raises(UsageError, match=r"has changed since .* its rows hold something else"):
        resumed("by_file")
    assert resumed("dpo") == []  # which reads no answers
    write("right")
    judge.write_text(REWARD.replace('"e"', '"o"'))
    save_reward_model(RewardModel(tiny(scale=1.0), reward_head(32, seed=1)), tmp_path / "judge")
    for name in judges:
        (note,) = resumed(name)
        assert "the reward has changed since the run began: from here on" in note

    saved = json.loads((tmp_path / "dpo" / "config.json").read_text())
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for row in preferences(56)[24:]))
    (tmp_path / "dpo" / "config.json").write_text(json.dumps({**saved, "eval_data": str(others)}))
    with pytest.raises(
        UsageError, match=r"the evaluation data has changed since .* best-model was chosen by the old one"
    ):
        resumed("dpo")


def test_a_reward_model_goes_on_with_its_head(model: Path, data: Path, tmp_path: Path) -> None:
    rows, options = data / "pairs.jsonl", {**OPTIONS, "checkpoint_every": 1}
    first, notes = tmp_path / "first", list[str]()
    with LanguageRun("reward", model, rows, out=first, **options) as run:
        for _ in run:
            pass
    head = load_reward_model(first).head.weight
    for name, steps in (("alone", 99), ("stopped", 2), ("stopped before a checkpoint", 0)):
        with LanguageRun("reward", first, rows, out=tmp_path / name, note=notes.append, **options) as run:
            assert torch.equal(run.trainer.model.head.weight, head)
            for _ in itertools.islice(run, steps):
                pass
    assert any("going on with the head of the reward model" in note for note in notes)
    for name in ("stopped", "stopped before a checkpoint"):
        with LanguageRun.resume(tmp_path / name) as run:
            for _ in run:
                pass
        assert differences(tmp_path / "alone", tmp_path / name) == []
    notes.clear()
    LanguageRun("dpo", first, rows, note=notes.append, **OPTIONS)
    LanguageRun("reward", load_model(first), rows, note=notes.append, **OPTIONS)  # whose weights may have changed since
    assert sum("is a reward model: its head is left out" in note for note in notes) == 2


def test_held_out_pairs_are_of_other_prompts(model: Path) -> None:
    rows = [{**row, "rejected": f" It was {n}."} for row in preferences(8) for n in range(4)]
    for algorithm, options in (("dpo", {}), ("reward", {}), ("grpo", {"max_new_tokens": 4, "reward": shout})):
        notes: list[str] = []
        run = LanguageRun(algorithm, model, rows, eval_fraction=0.25, note=notes.append, max_length=64, **options)
        made = run.trainer
        prompts: Any = [[p.tokens for p in rows] for rows in (made.data, made.eval_data)] if options else [
            [p.prompt for p in rows] for rows in (made.data, made.eval_data)]  # fmt: skip
        assert [len(rows) for rows in prompts] == [24, 8]
        assert not set(prompts[0]) & set(prompts[1])
        assert "evaluation data: 8 rows of 2 prompts held out" in notes


SHORT = ("--max-new-tokens", "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rlhf", "MODEL", "PROMPTS"], "rlhf takes one of ppo, rloo, grpo"),
        (["rlhf", "ppo", "MODEL", "PROMPTS"], "reward is missing"),
        (["rlhf", "ppo", "MODEL", "PROMPTS", "--reward", "nowhere"], "there is no reward at nowhere"),
        (["rlhf", "ppo", "MODEL", "PROMPTS", "--reward", "MODEL", *SHORT], "no reward model in"),
        (["rlhf", "ppo", "MODEL", "PROMPTS", "--reward", "REWARD:no", *SHORT], "has no function no"),
        (["rlhf", "rloo", "MODEL", "PROMPTS", "--batch-size", "6"], "a multiple of group_size, 4"),
        (["rlhf", "ppo", "MODEL", "PROMPTS", "--reward", "REWARD:letters", "--max-new-tokens", "500"], "no room"),
        (["dpo", "MODEL", "PROMPTS"], "expected prompt, chosen and rejected"),
        (["dpo", "MODEL", "PAIRS", "--kl-coef", "0"], "kl_coef is 0.0"),
        (["reward", "MODEL"], "reward takes a model and preferences"),
    ],
)
def test_misuse_is_said_in_a_line(
    arguments: list[str], message: str, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "MODEL": model, "PAIRS": data / "pairs.jsonl", "PROMPTS": data / "prompts.jsonl",
        "REWARD:no": f"{data / 'reward.py'}:no", "REWARD:letters": f"{data / 'reward.py'}:letters",
    }  # fmt: skip
    assert main([str(names.get(a, a)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


class Stop(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_ends_in_an_evaluation_by_a_program_resumes_with_it(
    at: int, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, options = given("rloo", data)
    options |= {"eval_every": 1, "checkpoint_every": 1}
    with LanguageRun("rloo", str(model), prompts, out=tmp_path / "whole", **options) as run:
        list(run)
    made = 0
    broken = LanguageRun("rloo", str(model), prompts, out=tmp_path / "broken", **options)
    evaluate = broken.training.evaluate

    def evaluate_or_end() -> Any:
        nonlocal made
        made += 1
        if made == at:
            raise Stop
        return evaluate()

    monkeypatch.setattr(broken.training, "evaluate", evaluate_or_end)
    with broken, pytest.raises(Stop):
        list(broken)
    with LanguageRun.resume(tmp_path / "broken") as resumed:
        assert resumed.step == at
        assert resumed.iterate()["step"] == at
        assert resumed.evaluation
        list(resumed)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
