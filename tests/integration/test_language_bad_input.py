"""Misuse and mishaps of language models: one clear message, exit code 2 or 1, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import start_command, stray_files
from safetensors.torch import load_file

from helpers_language import demonstrations, preferences, tiny, tokenizer
from steepest.cli import main
from steepest.language.models.adapters import add_adapters
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.training.reward_model import RewardModel, load_reward_model, reward_head, save_reward_model

CODE_OF_ITS_OWN = """\
from pathlib import Path
Path({ran!r}).write_text("ran")
from transformers import LlamaConfig as OwnConfig, LlamaForCausalLM as OwnModel
"""
REWARDS = {
    "reward.py": "def letters(prompts, completions):\n    return [len(text) for text in completions]\n",
    "syntax.py": "def letters(:\n",
    "raises.py": "def letters(prompts, completions):\n    return [1 / 0 for _ in completions]\n",
    "few.py": "def letters(prompts, completions):\n    return [1.0]\n",
    "nan.py": "def letters(prompts, completions):\n    return [float('nan') for _ in completions]\n",
}
DATA: dict[str, list[Any]] = {
    "demos.jsonl": demonstrations(16),
    "pairs.jsonl": preferences(16),
    "long.jsonl": [{**row, "prompt": row["prompt"] * 40} for row in preferences(4)],
    "silent.jsonl": [*demonstrations(3), {"prompt": "So?", "completion": " "}, {"prompt": "And?", "completion": ""}],
    "silent-pairs.jsonl": [*preferences(3), {"prompt": "So?", "chosen": "", "rejected": " no"}],
    "equal.jsonl": [*preferences(3), {"prompt": "So?", "chosen": " yes", "rejected": " yes"}],
    "unknown.jsonl": [{"question": "So?", "respons": " yes"}],
    "misspelled.jsonl": [{"prompt": "So?", "choosen": " yes", "rejected": " no"}],
    "gaps.jsonl": [*demonstrations(2), {"prompt": "So?"}],
    "no-prompt.jsonl": [{"prompt": "So?"}, {"answer": 3}],
    "numbers.jsonl": [{"prompt": 3, "completion": 4}],
    "lists.jsonl": [["So?", " yes"]],
    "chat.jsonl": [{"messages": [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "Yes."}]}],
    "halves.jsonl": [{"prompt": [{"role": "user", "content": "So?"}], "completion": " yes"}],
}


def edited(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, most of them not what they should be. No test may change them."""
    place = tmp_path_factory.mktemp("models")
    save_model(tiny(scale=1.0), place / "model")
    save_reward_model(RewardModel(tiny(scale=1.0), reward_head(32, seed=0)), place / "judge")
    save_reward_model(RewardModel(tiny(scale=1.0, chat=True), reward_head(32, seed=0)), place / "foreign-judge")
    save_model(tiny(scale=1.0, chat=True), place / "other")
    names = (
        "no-end",
        "cut",
        "noise",
        "no-weights",
        "broken-config",
        "empty-config",
        "no-tokenizer",
        "pickle",
        "remote",
    )
    for name in (*names, "no-head", "cut-head"):
        shutil.copytree(place / ("judge" if "head" in name else "model"), place / name)
    edited(place / "no-end" / "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        edited(place / "no-end" / name, eos_token_id=None)
    weights = place / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    (place / "noise" / "model.safetensors").write_bytes(bytes(range(256)) * 20)
    (place / "no-weights" / "model.safetensors").unlink()
    (place / "broken-config" / "config.json").write_text("{")
    (place / "empty-config" / "config.json").write_text("{}")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (place / "no-tokenizer" / file).unlink()
    torch.save(load_file(place / "pickle" / "model.safetensors"), place / "pickle" / "pytorch_model.bin")
    (place / "pickle" / "model.safetensors").unlink()
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edited(place / "remote" / "config.json", model_type="own", architectures=["OwnModel"], auto_map=own)
    (place / "remote" / "own.py").write_text(CODE_OF_ITS_OWN.format(ran=str(place / "ran")))
    (place / "no-head" / "reward_head.safetensors").unlink()
    (place / "cut-head" / "reward_head.safetensors").write_bytes(b"cut")
    save_model(add_adapters(load_model(place / "model"), rank=2, alpha=4, dropout=0.0, seed=0), place / "adapters")
    for name in ("cut-adapters", "homeless-adapters"):
        shutil.copytree(place / "adapters", place / name)
    (place / "cut-adapters" / "adapter_model.safetensors").write_bytes(b"cut")
    edited(place / "homeless-adapters" / "adapter_config.json", base_model_name_or_path="/no/such/model")
    (place / "nothing").mkdir()
    (place / "weights.bin").write_bytes(b"weights")
    return place


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with data and rewards in it and the models below ``m``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    Path("m").symlink_to(models)
    for name, rows in DATA.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in REWARDS.items():
        Path(name).write_text(text)
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text('{"prompt": "So?", "completion": " yes"}\n\n{"prompt": "And?", "comple\n')
    Path("broken.json").write_text("[1,")
    Path("object.json").write_text('{"prompt": "So?"}')
    Path("binary.jsonl").write_bytes(b"\xff\xfe\x00")
    Path("binary.parquet").write_bytes(b"PAR1 no")
    Path("table.csv").write_text("prompt,completion\n")
    Path("folder").mkdir()
    return tmp_path


SFT, DPO, REWARD = ["sft", "m/model"], ["dpo", "m/model"], ["reward", "m/model"]
PPO = ["rlhf", "ppo", "m/model", "demos.jsonl", "--max-new-tokens", "4"]
ASK = ["--prompt", "So?", "--max-new-tokens", "4"]
COMPARE = ["compare", "m/model", "m/model"]

LINES: list[tuple[list[str], int, str]] = [
    # models
    (["sft", "m/no-end", "demos.jsonl"], 2, "m/no-end has no end token"),
    (["generate", "m/no-end", *ASK], 2, "m/no-end has no end token"),
    (["sft", "m/cut", "demos.jsonl"], 2, "the model m/cut cannot be loaded: its weights are damaged"),
    (["generate", "m/cut", *ASK], 2, "the model m/cut cannot be loaded: its weights are damaged"),
    (["compare", "m/model", "m/cut", *ASK], 2, "the model m/cut cannot be loaded: its weights are damaged"),
    (["sft", "m/noise", "demos.jsonl"], 2, "the model m/noise cannot be loaded: its weights are damaged"),
    (
        ["sft", "m/no-weights", "demos.jsonl"],
        2,
        "the model m/no-weights cannot be loaded: Error no file named model.safetensors",
    ),
    (["sft", "m/broken-config", "demos.jsonl"], 2, "the model m/broken-config cannot be loaded: "),
    (["sft", "m/empty-config", "demos.jsonl"], 2, "the model m/empty-config cannot be loaded: "),
    (
        ["sft", "m/no-tokenizer", "demos.jsonl"],
        2,
        "the tokenizer of m/no-tokenizer cannot be loaded: there is no tokenizer in it",
    ),
    (["sft", "m/pickle", "demos.jsonl"], 2, "the model m/pickle cannot be loaded: its weights are pickled"),
    (["dpo", "m/pickle", "pairs.jsonl"], 2, "the model m/pickle cannot be loaded: its weights are pickled"),
    (["generate", "m/pickle", *ASK], 2, "the model m/pickle cannot be loaded: its weights are pickled"),
    (
        ["sft", "m/remote", "demos.jsonl"],
        2,
        "the model m/remote cannot be loaded: it comes with code of its own, which is never run",
    ),
    (
        ["generate", "m/remote", *ASK],
        2,
        "the model m/remote cannot be loaded: it comes with code of its own, which is never run",
    ),
    (["generate", "m/cut-adapters", *ASK], 2, "cut-adapters cannot be loaded: its weights are damaged"),
    (["generate", "m/homeless-adapters", *ASK], 2, "there is no model at /no/such/model"),
    (["sft", "m/nothing", "demos.jsonl"], 2, "no model in m/nothing"),
    (["sft", "m/weights.bin", "demos.jsonl"], 2, "m/weights.bin is a file, but no .gguf"),
    (["sft", "./m/gone", "demos.jsonl"], 2, "there is no model at ./m/gone"),
    # data
    ([*SFT, "empty.jsonl"], 2, "the dataset empty.jsonl is empty"),
    ([*DPO, "empty.jsonl"], 2, "the dataset empty.jsonl is empty"),
    (["rlhf", "rloo", "m/model", "empty.jsonl", "--reward", "reward.py:letters", "--max-new-tokens", "4"], 2, "empty"),
    (["generate", "m/model", "--file", "empty.jsonl"], 2, "the dataset empty.jsonl is empty"),
    ([*COMPARE, "--file", "empty.jsonl"], 2, "the dataset empty.jsonl is empty"),
    ([*SFT, "broken.jsonl"], 2, "line 3 of broken.jsonl cannot be read as JSON: "),
    ([*DPO, "broken.jsonl"], 2, "line 3 of broken.jsonl cannot be read as JSON: "),
    ([*COMPARE, "--file", "broken.jsonl"], 2, "line 3 of broken.jsonl cannot be read as JSON: "),
    ([*SFT, "broken.json"], 2, "broken.json cannot be read as JSON: "),
    ([*SFT, "object.json"], 2, "object.json holds a JSON dict; expected a list of objects"),
    ([*SFT, "binary.jsonl"], 2, "binary.jsonl: it cannot be read as UTF-8 text"),
    ([*SFT, "binary.parquet"], 2, "binary.parquet cannot be read as Parquet"),
    ([*SFT, "table.csv"], 2, "table.csv has an unknown ending; expected .jsonl, .json, .parquet"),
    ([*SFT, "folder"], 2, "no data in folder"),
    ([*SFT, "lists.jsonl"], 2, "row 1 of lists.jsonl is a list; expected an object with columns"),
    ([*SFT, "unknown.jsonl"], 2, "has the columns question, respons; expected prompt and completion, or messages"),
    ([*DPO, "misspelled.jsonl"], 2, "'choosen' is close to 'chosen'"),
    ([*COMPARE, "--file", "unknown.jsonl"], 2, "has the columns question, respons; expected prompt"),
    ([*SFT, "gaps.jsonl"], 2, "1 of 3 rows cannot be used: row 3 of gaps.jsonl: it has no 'completion'"),
    (["generate", "m/model", "--file", "no-prompt.jsonl"], 2, "row 2 of the dataset no-prompt.jsonl has no prompt"),
    ([*COMPARE, "--file", "no-prompt.jsonl"], 2, "row 2 of the dataset no-prompt.jsonl has no prompt"),
    ([*SFT, "numbers.jsonl"], 2, "row 1 of numbers.jsonl: prompt is an int"),
    ([*COMPARE, "--file", "numbers.jsonl"], 2, "prompt 1: prompt is an int"),
    (
        [*SFT, "halves.jsonl"],
        2,
        "row 1 of halves.jsonl: completion is a str; expected a list of messages, or strings throughout",
    ),
    ([*SFT, "chat.jsonl"], 2, "the model's tokenizer has no chat template"),
    (
        [*SFT, "silent.jsonl"],
        2,
        "2 of 5 rows cannot be used: row 4 of silent.jsonl: the response is empty; row 5 of silent.jsonl: the",
    ),
    ([*DPO, "silent-pairs.jsonl"], 2, "row 4 of silent-pairs.jsonl: the response is empty"),
    ([*REWARD, "silent-pairs.jsonl"], 2, "row 4 of silent-pairs.jsonl: the response is empty"),
    ([*DPO, "equal.jsonl"], 2, "1 of 4 rows cannot be used: row 4 of equal.jsonl: chosen and rejected are the same"),
    ([*REWARD, "equal.jsonl"], 2, "row 4 of equal.jsonl: chosen and rejected are the same"),
    ([*SFT, "demos.jsonl", "--eval-data", "unknown.jsonl"], 2, "has the columns question, respons"),
    ([*SFT, "demos.jsonl", "--eval-fraction", "0.99"], 2, "leaves none to train on"),
    # prompts longer than the context
    ([*SFT, "long.jsonl"], 2, "no row of the dataset can be used: 4 left out: the prompt alone fills max_length"),
    (
        [*DPO, "long.jsonl"],
        2,
        "no row of the dataset can be used: 4 left out: the prompt alone fills max_length",
    ),
    (
        [*PPO[:3], "long.jsonl", *PPO[4:], "--reward", "reward.py:letters"],
        2,
        "4 left out: the prompt leaves less than max_new_tokens (4) of max_length",
    ),
    (
        ["generate", "m/model", "--file", "long.jsonl"],
        2,
        "a prompt of 240 tokens fills the model's context of 128; shorten it",
    ),
    ([*COMPARE, "--file", "long.jsonl"], 2, "fills the model's context of 128; shorten it"),
    # options that would do nothing
    ([*SFT, "demos.jsonl", "--show-batch", "--eval-data", "gone.jsonl"], 2, "there is no dataset at gone.jsonl"),
    ([*DPO, "pairs.jsonl", "--lora-dropout", "0.1"], 2, "lora_dropout is 0.1; expected 0: dropout is off here"),
    ([*REWARD, "pairs.jsonl", "--lora-dropout", "0.1"], 2, "expected 0: dropout is off here, only sft has it"),
    ([*PPO, "--reward", "reward.py:letters", "--lora-dropout", "0.1"], 2, "expected 0: dropout is off here"),
    (["generate", "m/model", *ASK, "--system", "Be kind."], 2, "system is given, but m/model has no chat template"),
    (["generate", "m/other", *ASK, "--system", "Be kind.", "--raw"], 2, "but raw leaves out the chat template"),
    ([*COMPARE, *ASK, "--system", "Be kind.", "--quiet"], 2, "system is given, but m/model has no chat template"),
    (["generate", "m/gone-too", *ASK, "--out", "folder"], 2, "folder is a folder; give a name of a file in it"),
    # rewards
    ([*PPO, "--reward", "reward.py"], 2, "reward is reward.py; expected FILE.py:FUNCTION, such as reward.py:letters"),
    ([*COMPARE, *ASK, "--judge", "reward.py"], 2, "expected FILE.py:FUNCTION, such as reward.py:letters"),
    ([*PPO, "--reward", "m/foreign-judge"], 2, "the reward model has another tokenizer than the policy"),
    ([*PPO, "--reward", "m/model"], 2, "no reward model in "),
    ([*PPO, "--reward", "m/no-head"], 2, "no reward model in "),
    ([*PPO, "--reward", "m/cut-head"], 2, "is no head of a reward model"),
    (
        [*PPO, "--reward", "syntax.py:letters"],
        2,
        "syntax.py cannot be imported: SyntaxError: invalid syntax (syntax.py, line 1)",
    ),
    ([*PPO, "--reward", "gone.py:letters"], 2, "there is no reward at gone.py"),
    # compare
    (["compare", "m/model"], 2, "compare needs MODEL_A MODEL_B"),
    (
        ["compare", "m/model", "m/model", "m/model", *ASK],
        2,
        "m/model is too much: steepest compare takes MODEL_A MODEL_B",
    ),
    (COMPARE, 2, "which prompts? Give --prompt or --file"),
    ([*COMPARE, *ASK, "--file", "demos.jsonl"], 2, "which prompts? Give --prompt or --file, and not both"),
    ([*COMPARE, *ASK, "--out", "found.txt"], 2, "out is found.txt; expected a name ending in .json"),
    ([*COMPARE, *ASK, "--judge", "m/model"], 2, "no reward model in m/model"),
    ([*COMPARE, *ASK, "--judge", "nowhere"], 2, "no reward model in nowhere"),
    ([*COMPARE, *ASK, "--judge", "reward.py:none"], 2, "reward.py has no function none"),
    ([*COMPARE, *ASK, "--judge", "raises.py:letters", "--quiet"], 1, "the reward failed: ZeroDivisionError"),
    ([*COMPARE, *ASK, "--judge", "nan.py:letters", "--quiet"], 1, "the reward gave nan to the response"),
    ([*COMPARE, *ASK, "--reference", "m/other"], 2, "there is no KL from the reference: m/model and m/other have diff"),
    ([*COMPARE, *ASK, "--reference", "m/model", "--temperature", "0"], 2, "at temperature 0"),
    ([*COMPARE, *ASK, "--temperature", "-1"], 2, "temperature is -1.0; expected zero or more"),
]


@pytest.mark.parametrize(("line", "code", "message"), LINES, ids=[" ".join(line) for line, _, _ in LINES])
def test_the_command_says_what_is_wrong(
    line: list[str], code: int, message: str, place: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for f in (place, models) for p in f.rglob("*")}
    assert main.main(line) == code
    said = capsys.readouterr()
    print(said.err)
    assert message in " ".join(said.err.replace(str(models), "m").split())
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    assert len(said.err) < 700, "a message, not a report"
    assert said.out == ""
    after = {p: p.stat().st_mtime_ns for f in (place, models) for p in f.rglob("*")}
    assert after == before, "nothing may be written, changed or lost"


def test_no_code_of_a_model_is_run(place: Path, models: Path) -> None:
    assert main.main(["generate", "m/remote", *ASK]) == 2
    assert not (models / "ran").exists()


def test_padding_that_is_the_end_token_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Many tokenizers have one token for both. Rewards still see whether a response ended."""
    lm = tiny(scale=1.0)
    before = lm.tokenizer.pad_token
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    try:
        save_model(lm, place / "one-token")
    finally:
        tokenizer().pad_token = before
    assert load_model(place / "one-token").pad_token == load_model(place / "one-token").end_token
    flags = ["--epochs", "1", "--quiet", "--threads", "1", "--batch-size", "8", "--no-tensorboard", "--out"]
    losses: list[float] = []
    for model in ("one-token", "m/model"):
        name = Path(model).name
        for verb, data in (("sft", "demos.jsonl"), ("reward", "pairs.jsonl"), ("dpo", "pairs.jsonl")):
            assert main.main([verb, model, data, *flags, f"{name}-{verb}"]) == 0
            rows = Path(f"{name}-{verb}", "metrics.jsonl").read_text().splitlines()
            losses.append(json.loads(rows[-1])["train/loss"])
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-6)
    judge = load_reward_model("one-token-reward")
    from steepest.language.data.batching import pad, responses

    end = judge.lm.end_token
    scores = judge.scores(pad(responses([(300, 301)] * 2, [(302,), (302, end)]), judge.lm.pad_token))
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("verb", "data", "more"),
    [
        ("sft", "demos.jsonl", []),
        ("dpo", "pairs.jsonl", []),
        ("reward", "pairs.jsonl", []),
        ("rlhf", "demos.jsonl", ["--reward", "reward.py:letters", "--max-new-tokens", "4"]),
    ],
)
def test_training_that_diverges_stops_with_the_last_good_checkpoint(
    verb: str, data: str, more: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [verb, *(["ppo"] if verb == "rlhf" else []), "m/model", data, "--out", "run", "--quiet", *more]
    options = [
        "--learning-rate",
        "1e9",
        "--warmup",
        "0",
        "--epochs",
        "20",
        "--batch-size",
        "8",
        "--checkpoint-every",
        "1",
    ]
    assert main.main([*line, *options, "--no-tensorboard", "--threads", "1"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "became non-finite" in said
    assert "A smaller learning_rate" in said
    assert "The last good checkpoint is" in said or "No checkpoint had been saved yet." in said
    assert "Traceback" not in said
    assert stray_files(place / "run") == []
    assert not (place / "run" / "model").exists()


@pytest.mark.parametrize("reward", ["raises", "few", "nan"])
def test_a_reward_that_fails_is_named(reward: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*PPO, "--reward", f"{reward}.py:letters", "--quiet", "--out", "run", "--no-tensorboard"]) == 1
    said = capsys.readouterr().err
    assert {"raises": "the reward failed: ZeroDivisionError: division by zero (raises.py, line 2)",
            "few": "the reward gave 1 numbers for 16 responses; expected one for each",
            "nan": "the reward gave nan to the response"}[reward] in said  # fmt: skip
    assert "internal error" not in said
    assert stray_files(place / "run") == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_comparison_that_is_interrupted_writes_nothing(number: int, code: int, place: Path) -> None:
    many = place / "many.jsonl"
    many.write_text("".join(json.dumps({"prompt": f"Film {i} was"}) + "\n" for i in range(20_000)))
    log, out = place / "log", place / "found.json"
    flags = ["--file", many, "--max-new-tokens", "100", "--micro-batch-size", "1", "--out", out]
    process = start_command("compare", place / "m" / "model", place / "m" / "model", *flags, log=log)
    give_up = time.monotonic() + 120
    while "drawing" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code, log.read_text()
    assert "Traceback" not in log.read_text()
    assert log.read_text().rstrip().endswith("interrupted" if number == signal.SIGINT else "terminated")
    assert not out.exists()
    assert stray_files(place) == []
