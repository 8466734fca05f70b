"""Runs on language models: their files, resuming to the bit, interruptions, and the command."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import differences, start_command, steepest_command, stray_files, wait_for_step
from transformers import AutoModelForCausalLM

import steepest
from helpers_language import demonstrations, tiny
from steepest.cli.main import main
from steepest.errors import RunError, UsageError
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.training.sft import SFT
from steepest.runs.language_run import LanguageRun
from steepest.runs.store.metrics import read_metrics

OPTIONS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3, "threads": 1, "eval_fraction": 0.1,
    "max_length": 64, "tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk, with dropout."""
    return save_model(tiny(scale=1.0, dropout=0.1), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "films.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in demonstrations(56)))
    return path


def finished(out: Path, *arguments: Any, **options: Any) -> LanguageRun:
    with LanguageRun("sft", *arguments, out=out, **{**OPTIONS, **options}) as run:
        for _ in run:
            pass
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 4, "lora_dropout": 0.1}, {"packing": True, "batch_size": 2, "weight_decay": 0.1}]
)
def test_a_stopped_run_resumes_to_the_same_bits(
    options: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    finished(tmp_path / "alone", model, data, **options)
    with LanguageRun("sft", model, data, out=tmp_path / "stopped", **{**OPTIONS, **options}) as run:
        for _ in itertools.islice(run, run.total_steps // 2):
            pass
        assert run.step % run.settings.checkpoint_every == 0 or run.settings.checkpoint_every == 1
    with pytest.raises(UsageError, match="has not ended"):
        load_model(tmp_path / "stopped")
    with LanguageRun.resume(tmp_path / "stopped") as run:
        assert 0 < run.step < run.total_steps
        for _ in run:
            pass
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    for name in ("model", "best-model"):
        one, other = weights(tmp_path / "alone" / name), weights(tmp_path / "stopped" / name)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "alone" / "best.json").read_text() == (tmp_path / "stopped" / "best.json").read_text()
    assert stray_files(tmp_path) == []


def test_the_best_model_is_kept_through_interruptions(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By losses that are made up: a tie is not better, and NaN is never best."""
    losses = {2: 3.0, 4: 1.0, 6: 1.0, 8: float("nan"), 10: 2.0, 12: 0.5, 14: 0.75}
    monkeypatch.setattr(SFT, "evaluate", lambda self: {"eval/loss": losses[self.step]})
    gathered: list[int] = []
    monkeypatch.setattr(SFT, "weights", lambda self: gathered.append(self.step))
    out, seen = tmp_path / "run", dict[int, dict[str, torch.Tensor]]()
    options = {**OPTIONS, "eval_every": 2, "checkpoint_every": 2, "max_steps": 14, "epochs": 3}

    def train(run: LanguageRun, steps: int) -> None:
        for row in itertools.islice(run, steps):
            seen[row["step"]] = {k: v.clone() for k, v in run.model.model.state_dict().items()}

    def kept() -> dict[str, Any]:
        return json.loads((out / "best.json").read_text())

    with LanguageRun("sft", model, data, out=out, **options) as run:
        train(run, 1)
        assert not (out / "best-model").exists()
        train(run, 6)
    assert kept() == {"step": 4, "metric": "eval/loss", "value": 1.0}
    with pytest.raises(UsageError, match=r"has not ended.*take its best model so far, .*best-model"):
        load_model(out)
    found = weights(out / "best-model")
    assert all(torch.equal(found[name], seen[4][name]) for name in found)
    with LanguageRun.resume(out) as run:
        train(run, 2)
        assert kept()["step"] == 4
        for _ in run:
            train(run, 99)
        assert gathered == [2, 4, 12, 14]  # where there is something to save; of 14 the last model
        assert run.summary()["best"] == {"step": 12, "metric": "eval/loss", "value": 0.5}
    found, last = weights(out / "best-model"), weights(out / "model")
    assert all(torch.equal(found[name], seen[12][name]) for name in found)
    assert not all(torch.equal(found[name], last[name]) for name in found)
    assert json.loads((out / "summary.json").read_text())["best"]["step"] == 12
    with LanguageRun.resume(out) as run:
        assert list(run) == []
        (out / "best.json").write_text(json.dumps({"step": 2, "metric": "eval/other", "value": -9.0}))
        run.training.evaluation = {"eval/loss": 0.5}
        run.training.act_on_evaluation({})  # what was measured otherwise is not compared
    assert kept() == {"step": 14, "metric": "eval/loss", "value": 0.5}
    assert main(["generate", str(out / "best-model"), "--prompt", "So", "--max-new-tokens", "3"]) == 0
    assert stray_files(out) == []


def test_a_signal_and_a_kill_leave_a_run_that_ends_in_the_same_bits(model: Path, data: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "epochs": 24, "checkpoint_every": 10, "eval_every": 50}
    finished(tmp_path / "alone", model, data, **options)
    out, log = tmp_path / "run", tmp_path / "log"
    flags = [x for k, v in options.items() for x in ([f"--no-{k}"] if v is False else [f"--{k.replace('_', '-')}", v])]
    process = start_command("sft", model, data, "--out", out, *flags, log=log)
    wait_for_step(out, 25, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    assert f"the model as it was: {out / 'interrupted-model'}" in log.read_text()
    assert weights(out / "interrupted-model").keys() == weights(model).keys()
    assert not (out / "model").exists()

    process = start_command("sft", "--resume", out, log=log)
    wait_for_step(out, 75, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    done = steepest_command("sft", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "resuming from step-" in done.stderr
    assert "bits may differ" not in done.stderr
    assert f"steepest generate {out}" in done.stdout
    assert differences(tmp_path / "alone", out) == []
    assert not (out / "interrupted-model").exists()
    assert stray_files(out) == []


def test_a_finished_run_has_everything_in_its_folder(model: Path, data: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", model, data, tensorboard=True)
    for name in ("config.json", "metrics.jsonl", "summary.json", "curve.png", "tensorboard", "model/config.json"):
        assert (tmp_path / "run" / name).exists(), name
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, run.total_steps + 1))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["eval/loss"] == run.summary()["evaluation"]["eval/loss"]
    assert rows[0]["train/tokens"] > 0
    with LanguageRun.resume(tmp_path / "run", note=(notes := []).append) as again:  # type: ignore[var-annotated]
        assert list(again) == []
    assert any("is finished" in note for note in notes)
    assert main(["plot", str(tmp_path / "run"), "--out", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_models_and_data_made_in_python(tmp_path: Path) -> None:
    rows = demonstrations(24)
    options = {**OPTIONS, "lora_rank": 4}
    with LanguageRun("sft", tiny(scale=1.0), rows, out=tmp_path / "run", **options) as run:
        for _ in itertools.islice(run, 3):
            pass
    with pytest.raises(UsageError, match=r"made in Python; pass it again: data="):
        LanguageRun.resume(tmp_path / "run")
    with pytest.raises(UsageError, match="has changed since"):
        LanguageRun.resume(tmp_path / "run", data=demonstrations(23))
    trained = steepest.resume_language(tmp_path / "run", data=rows)
    loaded = load_model(tmp_path / "run")
    assert loaded.has_adapters
    tokens = torch.arange(20, 30).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded.network(input_ids=tokens).logits, trained.network(input_ids=tokens).logits)
        assert not torch.equal(loaded.network(input_ids=tokens).logits, tiny(scale=1.0).network(tokens).logits)


def test_a_run_goes_on_with_no_other_model(model: Path, tmp_path: Path) -> None:
    base, out, films = tmp_path / "base", tmp_path / "run", tmp_path / "films.jsonl"
    shutil.copytree(model, base)

    def write(rows: list[dict[str, str]]) -> None:
        films.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(demonstrations(56)[48:])
    options = {**OPTIONS, "eval_data": films, "lora_rank": 4, "epochs": 3, "checkpoint_every": 1}
    with LanguageRun("sft", base, demonstrations(24), out=out, **options) as run:
        for _ in itertools.islice(run, 2):
            pass

    def resumed() -> tuple[list[str], float]:
        notes: list[str] = []
        with LanguageRun.resume(out, data=demonstrations(24), note=notes.append) as run:
            row = next(iter(run))
        return [note for note in notes if "changed" in note], row["train/loss"]

    config = json.loads((base / "config.json").read_text())
    for what, changed in (("weights", {}), ("config", {"rms_norm_eps": 0.5})):
        if what == "weights":
            save_model(tiny(scale=1.0, dropout=0.1, seed=9), base)
        (base / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(UsageError, match=rf"model {base} has changed since .* began: its {what}.*Restore it"):
            resumed()
        shutil.rmtree(base)
        shutil.copytree(model, base)
    (base / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0", "_name_or_path": "x"}))
    assert resumed()[0] == []
    write(demonstrations(56)[40:48])
    with pytest.raises(UsageError, match="the evaluation data has changed since"):
        resumed()
    write(demonstrations(56)[48:])

    # A run of another version of a package may read the same files otherwise; weights are weights.
    saved = json.loads((out / "config.json").read_text())
    packages = {**saved["environment"]["packages"], "transformers": "0.0"}
    newer = {**saved, "environment": {**saved["environment"], "packages": packages}}
    (out / "config.json").write_text(json.dumps({**newer, "fingerprints": {**saved["fingerprints"], "settings": "x"}}))
    assert any("config, or how it is read, has changed" in note for note in resumed()[0])
    (out / "config.json").write_text(json.dumps({**newer, "fingerprints": {**saved["fingerprints"], "weights": "x"}}))
    with pytest.raises(UsageError, match="its weights are others"):
        resumed()
    del saved["fingerprints"]  # as of a run that an older version began
    (out / "config.json").write_text(json.dumps(saved))
    assert resumed()[0] == []


def test_a_run_on_adapters_resumes(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an older version, which took no notice of what rank they have; its checkpoints describe no run."""
    monkeypatch.setattr("steepest.runs.run.check_same_run", lambda *_: None)
    finished(tmp_path / "first", model, data, lora_rank=2, lora_alpha=8.0, max_steps=1)
    options = {**OPTIONS, "lora_rank": 2, "lora_alpha": 8.0, "checkpoint_every": 1}
    with LanguageRun("sft", tmp_path / "first", data, out=tmp_path / "run", **options) as run:
        next(iter(run))
    for rank in (2, 64):
        saved = json.loads((tmp_path / "run" / "config.json").read_text())
        saved["config"]["lora_rank"] = rank
        (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
        with LanguageRun.resume(tmp_path / "run") as run:
            next(iter(run))
            assert {p.shape[0] for name, p in run.trainer.named.items() if "lora_A" in name} == {2}


def test_training_that_diverges_names_the_last_good_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    with LanguageRun("sft", model, data, out=tmp_path / "run", **{**OPTIONS, "checkpoint_every": 2}) as run:
        for _ in itertools.islice(run, 5):
            pass
        with torch.no_grad():
            next(iter(run.trainer.named.values())).fill_(float("inf"))
        with pytest.raises(RunError, match=r"step 5: .*non-finite.*The last good checkpoint is .*step-000000000004"):
            run.iterate()


def test_it_learns_from_python(tmp_path: Path) -> None:
    options = {**OPTIONS, "epochs": 14, "learning_rate": 1e-2, "eval_fraction": 0.0}
    lm = steepest.sft(tiny(scale=1.0), demonstrations(56), **options)
    assert not lm.model.training
    prompts = [row["prompt"] for row in demonstrations(56)]
    answers = steepest.respond(lm, prompts, max_new_tokens=12, temperature=0.0)
    right = sum(answer == row["completion"] for answer, row in zip(answers, demonstrations(56), strict=True))
    assert right > 40
    assert answers == steepest.respond(lm, prompts, max_new_tokens=12, temperature=0.0, micro_batch_size=5)


# The command


def test_the_command_trains_shows_and_answers(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", str(model), str(data), "--show-batch", "--batch-size", "2", "--micro-batch-size", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("learned") == 2
    assert shown.count("read") == 2
    out = tmp_path / "run"
    flags = ["--epochs", "1", "--quiet", "--eval-data", str(data), "--learning-rate", "1e-3", "--threads", "1"]
    assert main(["sft", str(model), str(data), "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    assert "evaluation: loss" in printed
    assert str(out / "model") in printed
    asked = ["generate", str(out), "--prompt", "This film was", "So", "--max-new-tokens", "5", "--seed", "3"]
    assert main([*asked, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["This film was", "So"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    flags = ["--max-new-tokens", "5", "--seed", "3", "--out", str(tmp_path / "answers.jsonl")]
    assert main(["generate", str(out), "--file", str(file), *flags]) == 0
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == rows
    capsys.readouterr()
    assert main([*asked]) == 0
    assert "> This film was" in capsys.readouterr().out
    assert str(out / "best-model") in printed
    (tmp_path / "judge.py").write_text("def long(prompts, completions):\n    return [len(x) for x in completions]\n")
    two = ["compare", str(model), str(out / "best-model"), *asked[2:], "--judge", f"{tmp_path / 'judge.py'}:long"]
    assert main([*two, "--reference", str(model), "--out", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr()
    for part in (
        "> This film was",
        "reward ",
        "KL to the reference",
        "win rate of A over B",
        f"A: {model}",
        "found.md",
    ):
        assert part in said.out, part
    assert "drawing 2 answers" in said.err
    assert main([*two, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert [answer["text"] for answer in found["b"]["answers"]] == [row["completion"] for row in rows]
    assert found["a"]["to_other"]["kl"]["value"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "MODEL"], "sft takes a model and demonstrations"),
        (["sft", "MODEL", "nothing.jsonl"], "there is no dataset at nothing.jsonl"),
        (["sft", "no/such/model", "DATA"], "there is no model at no/such/model"),
        (["sft", "MODEL", "DATA", "--max-length", "1000"], "context is 128"),
        (["sft", "MODEL", "DATA", "--chat-template", "gone.jinja"], "neither Jinja text nor a file"),
        (["sft", "--resume", "nowhere"], "no run at nowhere"),
        (["generate", "MODEL", "--prompt", "x", "--file", "y"], "not both"),
        (["generate", "MODEL", "--prompt", "x", "--top-p", "0"], "top_p is 0.0"),
        (["generate", "MODEL", "--prompt", "x", "--max-new-tokens", "500"], "exceed the model's context"),
    ],
)
def test_misuse_is_said_in_a_line(
    arguments: list[str], message: str, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"MODEL": str(model), "DATA": str(data)}.get(a, a) for a in arguments]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for line in (["sft", "model", "data"], ["generate", "model"], ["compare", "model", "other"]):
        assert main(line) == 2
        assert 'pip install "steepest[language]"' in capsys.readouterr().err


def test_a_conversation_goes_on_and_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from steepest.api.chat import converse
    from steepest.cli import options
    from steepest.language.scoring.generation import Sampling

    lm = tiny(chat=True)
    asked: list[str] = []
    template = lm.tokenizer.apply_chat_template
    monkeypatch.setattr(
        lm.tokenizer, "apply_chat_template", lambda m, **kw: (asked.append(text := template(m, **kw)), text)[1]
    )
    lines = iter(["Is it dull?", "", "x<|im_end|>", "And the plot?"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    pieces: list[str] = []
    converse(lm, Sampling(max_new_tokens=6), seed=0, raw=False, system="Judge.", show=pieces.append, read=read)
    assert len(asked) == 2
    assert asked[1].startswith(asked[0])  # the first answer is part of the second question
    assert any("control token" in piece for piece in pieces)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = options.printable("a\x1b[31m\x07\u202eb\tc\n漢\U0001f600")
    assert shown == "a\\x1b[31m\\x07\\u202eb\tc\n漢\U0001f600"


def test_a_conversation_outlives_an_answer_with_control_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which could not be rendered again: they are left out of it, and that is said once."""
    from steepest.api import chat
    from steepest.language.scoring.generation import Response, Sampling

    lm = tiny(chat=True)
    control = lm.tokenizer.convert_tokens_to_ids("<|im_start|>")
    word = lm.tokenizer.encode(" dull")
    asked: list[Any] = []

    def draw(lm: Any, prompts: list[Any], *_: Any, **__: Any) -> list[Response]:
        asked.append(prompts[0])
        chat.Renderer(lm).prompt(prompts[0])  # raises what drawing a response would raise
        return [Response((*word, control, *word, lm.end_token), (0.0,) * (2 * len(word) + 2), True)]

    monkeypatch.setattr(chat, "draw_responses", draw)
    lines = iter(["Is it?", "And the plot?", "The story?"])
    pieces: list[str] = []

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    chat.converse(lm, Sampling(), seed=0, raw=False, system=None, show=pieces.append, read=read)
    assert [turn["content"] for turn in asked[-1]] == [
        "Is it?",
        " dull dull",
        "And the plot?",
        " dull dull",
        "The story?",
    ]
    assert sum("left out of the conversation" in piece for piece in pieces) == 1
    assert chat.Renderer(lm).without_control("<|im<|im_end|>_end|>a<|pad|>") == "a"
