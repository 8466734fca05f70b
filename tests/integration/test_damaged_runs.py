"""Files of a run that somebody edited or damaged: each is one sentence that names the file and the place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import stray_files

import steepest
from helpers_language import demonstrations, tiny
from steepest import RunError, UsageError
from steepest.api.agents import load
from steepest.cli import main
from steepest.language.models.saving import save_model
from steepest.runs.store.metrics import read_metrics

TINY = {"rollout_steps": 16, "hidden_sizes": (8,), "num_envs": 2, "eval_episodes": 2, "compile": "off"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, of an agent and of a language model, which no test may change."""
    place = tmp_path_factory.mktemp("runs")
    steepest.train("ppo", "CartPole-v1", out=place / "ppo", total_steps=128, minibatches=1, checkpoint_every=64, **TINY)
    options = {"batch_size": 8, "threads": 1, "tensorboard": False, "eval_fraction": 0.2}
    steepest.sft(tiny(scale=1.0), demonstrations(16), out=place / "sft", **options)
    save_model(tiny(scale=1.0), place / "model")
    return place


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("ppo", "sft", "model"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


def edit(run: str, /, **changes: Any) -> None:
    """Change config.json: "run__seed" is an option within "run", None a null, ``...`` takes an entry away."""
    path = Path(run, "config.json")
    data = json.loads(path.read_text())
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        part = data[outer] if inner else data
        if value is ...:
            del part[inner or outer]
        else:
            part[inner or outer] = value
    path.write_text(json.dumps(data))


AGENT_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"run": None}, "run is null; expected an object"),
    ({"run": [1]}, "run is [1]; expected an object"),
    ({"run__seed": "x"}, "seed is 'x'; expected a whole number"),
    ({"run__total_steps": None}, "total_steps is None; expected a whole number"),
    ({"run__atari": 3}, "atari is 3; expected AtariOptions"),
    ({"config": "big"}, 'config is "big"; expected an object'),
    ({"config__hidden_sizes": 8}, "hidden_sizes is 8; expected a list, such as [64, 64]"),
    ({"config__hidden_sizes": [[8]]}, "hidden_sizes is [8]; expected a whole number"),
    ({"config__gamma": {}}, "gamma is {}; expected a finite number"),
    ({"config__gamma": 10**250}, "gamma is"),
    ({"config__activation": 3}, "activation is 3; expected one of 'tanh', 'relu'"),
    ({"environment": {}}, "environment has no packages, cpu"),
    ({"environment__packages": None}, "environment.packages is null; expected an object"),
    ({"environment__packages": {"torch": 2}}, "environment.packages.torch is 2; expected text"),
    ({"algorithm": ["ppo"]}, 'algorithm is ["ppo"]; expected text'),
    ({"algorithm": "pppo"}, "no algorithm is called 'pppo'"),
    ({"env": 3}, "env is 3; expected text"),
    ({"env_kwargs": [1]}, "env_kwargs is [1]; expected an object"),
    ({"custom_network": "no"}, 'custom_network is "no"; expected true or false'),
    ({"name": "half \ud83d"}, r"name holds half a character (\ud83d at place 6)"),
    ({"name": ..., "env": ...}, "it has no name"),
    ({"data": 3}, "data is 3; expected text"),
]


@pytest.mark.parametrize(("changes", "message"), AGENT_CHANGES, ids=[str(c)[:40] for c, _ in AGENT_CHANGES])
def test_what_a_config_must_hold_is_checked_at_the_door(
    changes: dict[str, Any], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit("ppo", **changes)
    refuses(capsys, ["train", "--resume", "ppo", "--total-steps", "256"], "ppo/config.json", message)


MODEL_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"run": None}, "run is null; expected an object"),
    ({"run__warp": 9}, "LanguageRunConfig has no option 'warp'"),
    ({"config__batch_size": [8]}, "batch_size is [8]; expected a whole number"),
    ({"config__columns": "prompt"}, "columns is 'prompt'; expected a list"),
    ({"environment": {}}, "environment has no packages, cpu"),
    ({"algorithm": ["sft"]}, 'algorithm is ["sft"]; expected text'),
    ({"algorithm": "sftt"}, "algorithm is 'sftt'; expected one of sft, dpo"),
    ({"model": 3}, "model is 3; expected text"),
    ({"fingerprints": []}, "fingerprints is []; expected an object"),
    ({"fingerprint": None}, "fingerprint is null; expected text"),
    ({"data": None}, "data is null; expected text"),
    ({"name": "\udfff"}, "name holds half a character"),
    ({"eval_data": ...}, "it has no eval_data"),
]


@pytest.mark.parametrize(("changes", "message"), MODEL_CHANGES, ids=[str(c)[:40] for c, _ in MODEL_CHANGES])
def test_so_is_that_of_a_language_model(
    changes: dict[str, Any], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit("sft", **changes)
    for line in (["sft", "--resume", "sft"], ["train", "--resume", "sft"]):
        refuses(capsys, line, "sft/config.json", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "cannot be read as JSON: it has lists or objects more than 100 deep"),
        ('{"run": ' * 5000 + "1" + "}" * 5000, "more than 100 deep"),
        ('{"algorithm": "ppo", "algorithm": "trpo"}', "it has 'algorithm' twice"),
        ('{"seed": ' + "9" * 5000 + "}", "a whole number of 5,000 digits"),
        ("[]", "holds a JSON list; an object was expected"),
        ("\ufeff{}", "it has no algorithm"),
        ("\x00", "cannot be read as JSON"),
    ],
    ids=lambda text: text[:20],
)
def test_a_config_of_another_form_is_one_sentence(
    text: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ppo", "config.json").write_text(text, encoding="utf-8")
    for line in (["train", "--resume", "ppo"], ["plot", "ppo"]):
        refuses(capsys, line, message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"step": 1, "wall_seconds": 1}', "it has no seed"),
        ('{"step": "1", "wall_seconds": 1, "seed": 0}', 'step is "1"; expected a whole number'),
        ('{"step": 1, "wall_seconds": null, "seed": 0}', "wall_seconds is null; expected a number"),
        ('{"step": 1, "wall_seconds": 1, "seed": 0, "train/loss": [1]}', "train/loss is [1]; expected a number"),
        ('{"step": 1, "wall_seconds": 1, "seed": 0, "train/loss": true}', "train/loss is true; expected a number"),
        ("[1]", "it is [1]; expected an object"),
        ("[" * 5000 + "]" * 5000, "is not a JSON object"),
        ('{"step": 1, "step": 2, "wall_seconds": 1, "seed": 0}', "is not a JSON object"),
        ('{"step": ' + "9" * 5000 + "}", "is not a JSON object"),
    ],
    ids=lambda text: text[:40],
)
def test_a_row_of_metrics_that_cannot_be_used_is_named(
    row: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("ppo", "metrics.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], row, *lines[1:]]) + "\n")
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl") as error:
        read_metrics(Path("ppo"))
    assert message in str(error.value)
    assert "delete that line to go on" in str(error.value)
    refuses(capsys, ["train", "--resume", "ppo", "--total-steps", "256"], message)
    refuses(capsys, ["plot", "ppo"], message)


def test_a_row_of_another_seed_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("ppo", "metrics.jsonl")
    path.write_text(path.read_text() + '{"step": 1, "wall_seconds": 1.0, "seed": 7}\n')
    refuses(capsys, ["train", "--resume", "ppo", "--total-steps", "256"], "has a row of seed 7; this run has 0")


@pytest.mark.parametrize("text", ["{", "[" * 5000, "[]", '{"steps": "\\ud800"}'])
def test_what_is_mere_output_blocks_nothing(text: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A summary is written again; the best model so far is chosen anew."""
    Path("ppo", "summary.json").write_text(text)
    assert main.main(["train", "--resume", "ppo", "--total-steps", "160", "--quiet"]) == 0
    assert json.loads(Path("ppo", "summary.json").read_text())["algorithm"] == "ppo"
    Path("sft", "summary.json").unlink()
    Path("sft", "best.json").write_text(text)
    with pytest.warns(RuntimeWarning, match="ignoring the best model"):
        run = steepest.resume_language("sft", data=demonstrations(16))
    assert run is not None
    assert stray_files(place) == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize(("name", "code"), [("metrics.jsonl", 1), ("summary.json", 0), ("config.json", 2)])
def test_what_is_no_file_is_never_waited_for(
    name: str, code: int, make: Callable[[Path], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe in the place of a file would be read for ever."""
    path = Path("ppo", name)
    path.unlink()
    make(path)
    assert main.main(["train", "--resume", "ppo", "--quiet"]) == (
        1 if name == "summary.json" and path.is_dir() else code
    )
    if code:
        assert "no ordinary file" in capsys.readouterr().err or name == "config.json"


def test_a_run_of_the_other_kind_is_told_apart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb says what the run is, and which verbs are for it."""
    of_model = "sft is a run of a language model, by sft: steepest sft --resume sft resumes it"
    of_agents = "ppo is a run of agents, by ppo: steepest train --resume ppo resumes it"
    for line, message in (
        (["evaluate", "sft"], f"there is no agent in sft. {of_model}"),
        (["dpo", "--resume", "sft"], of_model),
        (["reward", "--resume", "sft"], of_model),
        (["rlhf", "--resume", "sft"], of_model),
        (["sft", "--resume", "ppo"], of_agents),
        (["rlhf", "--resume", "ppo"], of_agents),
        (["generate", "ppo", "--prompt", "x"], "ppo is a run of agents, which holds no language model"),
        (["collect", "sft", "--steps", "10", "--out", "data"], of_model),
        (["plot", "model"], "model: its config.json is that of a model"),
        (["sft", "model", "sft"], "no data in sft: it is the folder of a run or a model"),
        (["evaluate", "model"], "there is no agent in model: its config.json is not that of a run"),
    ):
        refuses(capsys, line, message, code=2)
    with pytest.raises(UsageError, match="by sft"):
        load("sft")
    with pytest.raises(UsageError, match=r"load_model"):
        load("model")
    edit("sft", data=str(place / "none.jsonl"))
    refuses(capsys, ["train", "--resume", "sft"], "none.jsonl", code=2)  # any run resumes under train


def test_what_a_killed_writer_left_is_put_back(place: Path) -> None:
    """Killed between the two renames of its best model, a run finds the old one again."""
    best, holder = Path("sft", "best-model"), Path("sft", ".best-model.4711-0.tmp")
    holder.mkdir()
    (holder / "best-model").mkdir()
    best.rename(holder / "best-model.old")
    Path("sft", ".model.4711-3.tmp").mkdir()
    Path("sft", "summary.json").unlink()
    steepest.resume_language("sft", data=demonstrations(16))
    assert (best / "model.safetensors").is_file()
    assert [p.name for p in Path("sft").iterdir() if p.name.startswith(".") and p.name != ".lock"] == []


def refuses(capsys: pytest.CaptureFixture[str], line: list[str], *parts: str, code: int | None = None) -> None:
    """The command says all of this in one message, and changes nothing."""
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.name != ".lock"}
    assert main.main(line) in ((1, 2) if code is None else (code,))
    said = " ".join(capsys.readouterr().err.split())
    for part in parts:
        assert part in said
    assert "Traceback" not in said
    assert "internal error" not in said
    assert len(said) < 900
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.name != ".lock"} == before
