"""Help, and what is wrong with an argument, come without torch: importing it takes seconds that nobody should wait."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import ENVIRONMENT

from steepest.algorithms import ALGORITHMS, find, find_config
from steepest.cli import checks, main
from steepest.estimators import PROBLEMS
from steepest.runs.options.language import TRAINERS, find_trainer, find_trainer_config
from steepest.verification import statements

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "peft")

HELP = [
    *([verb, "--help"] for verb in ("train", "evaluate", "sft", "reward", "dpo", "rlhf", "generate", "compare")),
    *([verb, "--help"] for verb in ("plot", "verify", "collect", "dataset", "ope", "estimators", "list")),
    *([verb, "--help"] for verb in ("sample", "label", "labels")),
    ["dataset", "show", "--help"],
    ["sample", "MODEL", "PROMPTS", "--help"],
    ["sample", "RUN", "--clips", "2", "--help"],
    *(["labels", verb, "--help"] for verb in ("show", "export", "import")),
    *(["train", algorithm, "--help"] for algorithm in ALGORITHMS),
    *(["rlhf", algorithm, "--help"] for algorithm in ("ppo", "rloo", "grpo")),
    ["train", "ppo", "CartPole-v1", "--help"],
    ["train", "sac", "HalfCheetah-v5", "-h"],
    ["train", "cql", "missing.npz", "--help"],
    ["sft", "MODEL", "DATA", "--help"],
    ["train", "--resume", "--help"],
    ["sweep", "--help"],
    ["sweep", "ppo", "--help"],
    ["sweep", "sac", "Pendulum-v1", "--help"],
]

PPO = ["train", "ppo", "CartPole-v1"]
WRONG = [
    (["train", "pppo", "CartPole-v1"], "did you mean ppo"),
    (["train", "ppo", "CartPol-v1"], "The nearest names are CartPole-v1"),
    (["train", "ppo", "none:such-v0"], "cannot be imported"),
    ([*PPO, "--lr", "1"], "has no option --lr; it is called --learning-rate here"),
    ([*PPO, "--learnin-rate", "1"], "did you mean --learning-rate"),
    ([*PPO, "--learning-rate", "-1"], "learning_rate is -1.0; expected a positive number"),
    ([*PPO, "--learning-rate", "fast"], "learning_rate is 'fast'; expected a finite number"),
    ([*PPO, "--gamma", "1.5"], "gamma is 1.5; expected in [0, 1]"),
    ([*PPO, "--device", "gpu"], "device is 'gpu'; expected one of 'auto', 'cpu', 'cuda'"),
    ([*PPO, "--seed"], "--seed needs a value"),
    ([*PPO, "--config", "missing.yaml"], "there is no config file missing.yaml"),
    ([*PPO, "--data", "missing.npz"], "there is no data at missing.npz"),
    ([*PPO, "--from", "missing"], "there is nothing at missing"),
    ([*PPO, "--label-live"], "needs the preference project that labels go to: --reward FILE"),
    ([*PPO, "--reward", "p", "--live.clip-steps", "0"], "clip_steps is 0; expected at least 1"),
    ([*PPO, "--reward", "p", "--label-live", "--live.host", "0.0.0.0"], "say who may label"),
    (["train", "cql", "missing.npz"], "there is no data at missing.npz"),
    (["train", "td3", "Pendulum-v1", "--policy-delay", "3"], "updates_per_call is 2; expected a multiple"),
    (["train", "--resume", "missing"], "no run at missing"),
    (["sweep", "ppo"], "sweep takes an algorithm and an environment or a dataset"),
    (["sweep", "ppo", "CartPol-v1", "--search", "gamma=0:1", "--study", "s"], "The nearest names are CartPole-v1"),
    (["sweep", "ppo", "CartPole-v1", "--search", "gamma=0:1"], "needs --study FOLDER"),
    (["sweep", "ppo", "CartPole-v1", "--study", "s"], "nothing to search"),
    (["sweep", "ppo", "CartPole-v1", "--study", "s", "--search", "lr=0:1"], "it is called learning_rate here"),
    (["sweep", "ppo", "CartPole-v1", "--study", "s", "--search", "gamma=0:1", "--seeds", "0"], "seeds is 0"),
    (["sweep", "iql", "missing.npz", "--study", "s", "--search", "gamma=0:1"], "there is no data at missing.npz"),
    (["evaluate", "missing"], "there is nothing at missing"),
    (["evaluate", "empty"], "no run at empty"),
    (["evaluate", "file", "--env", "Pendulun-v1"], "Pendulum-v1"),
    (["evaluate", "file", "--episodes", "0"], "episodes is 0"),
    (["evaluate", "file", "--video", "film.avi"], "ending in .mp4"),
    (["plot", "missing"], "no run at"),
    (["plot", "empty", "--out", "curve.bmp"], "must be .png, .pdf or .svg"),
    (["sft", "no/such/model", "data.jsonl"], "there is no model at no/such/model"),
    (["sft", "empty", "data.jsonl"], "no model in empty"),
    (["dpo", "some/model", "missing.jsonl"], "there is no dataset at missing.jsonl"),
    (["reward", "some/model", "data.jsonl", "--learning-rate", "0"], "learning_rate is 0.0; expected positive"),
    (["rlhf", "rloo", "some/model", "data.jsonl", "--lr", "1"], "called --learning-rate here"),
    (["rlhf", "grpo", "some/model", "data.jsonl", "--group-size", "1"], "group_size is 1; expected at least 2"),
    (["generate", "no/such/model"], "there is no model"),
    (["generate", "some/model", "--top-p", "0"], "top_p is 0.0"),
    (["compare", "some/model"], "needs MODEL_A MODEL_B"),
    (["compare", "some/model", "other/model", "--file", "missing.jsonl"], "there is no dataset at missing.jsonl"),
    (["collect", "missing", "--steps", "10", "--out", "x.npz"], "there is nothing at missing"),
    (["collect", "random", "CartPol-v1", "--steps", "10", "--out", "x.npz"], "CartPole-v1"),
    (["collect", "random", "CartPole-v1", "--steps", "10"], "needs --out"),
    (["dataset", "show", "missing.npz"], "there is no data at missing.npz"),
    (["ope", "missing", "data.npz"], "there is nothing at missing"),
    (["ope", "file", "missing.npz"], "there is no data at missing.npz"),
    (["sample", "some/model"], "needs MODEL PROMPTS"),
    (["sample", "some/model", "data.jsonl"], "needs --project"),
    (["sample", "some/model", "missing.jsonl", "--project", "p"], "there is no dataset at missing.jsonl"),
    (["sample", "no/such/model", "data.jsonl", "--project", "p"], "there is no model at no/such/model"),
    (["sample", "some/model", "data.jsonl", "--project", "p", "-n", "0"], "n is 0; expected at least 1"),
    (["sample", "missing", "--clips", "2", "--project", "p"], "there is nothing at missing"),
    (["sample", "random", "--clips", "2", "--project", "p", "--env", "CartPol-v1"], "CartPole-v1"),
    (["sample", "random", "--clips", "0", "--project", "p"], "clips is 0; expected at least 1"),
    (["label", "missing.db"], "there is no preference project at missing.db"),
    (["label", "file", "--host", "0.0.0.0"], "say who may label"),
    (["label", "data.jsonl"], "an empty database"),
    (["label", "file", "--repeat-share", "2"], "repeat_share is 2.0; expected in [0, 1]"),
    (["labels", "all", "p"], "which verb of labels"),
    (["labels", "show", "missing.db"], "there is no preference project at missing.db"),
    (["labels", "export", "file"], "needs --out"),
    (["verify", "--section", "9.9"], "no statement of section '9.9'"),
    (["verify", "--seeds", "0"], "seeds is 0; expected at least 1"),
    (["estimators", "--problem", "nowhere"], "expected one of 'walk'"),
    (["estimators", "--repeats", "1"], "repeats is 1; expected at least 10"),
]

SCRIPT = """
import contextlib, io, json, sys
from steepest.cli.main import main
found = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    heavy = sorted({HEAVY} & set(sys.modules))
    found.append([code, out.getvalue(), err.getvalue(), heavy])
    if heavy:
        break
print(json.dumps(found))
"""


def run_all(lines: list[list[str]], folder: Path) -> list[Any]:
    """Exit code, output, errors and heavy modules after each line, one after another in one fresh process."""
    script = SCRIPT.replace("{HEAVY}", repr(set(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(lines), capture_output=True, text=True, env=ENVIRONMENT, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_of_every_verb_comes_without_torch(tmp_path: Path) -> None:
    found = run_all(HELP, tmp_path)
    for line, (code, out, err, heavy) in zip(HELP, found, strict=False):
        assert heavy == [], line
        assert (code, err) == (0, ""), line
        assert out.startswith("usage: steepest "), line
    assert len(found) == len(HELP)


def test_no_verb_is_left_out() -> None:
    with pytest.raises(Exception, match="no verb is called") as caught:
        main._dispatch(["nothing"])
    known = str(caught.value).partition("Known: ")[2].partition(" (")[0].split(", ")
    assert set(known) == {line[0] for line in HELP}


def test_wrong_arguments_are_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("file", "data.jsonl", "data.npz"):
        (tmp_path / name).touch()
    lines = [line for line, _ in WRONG]
    found = run_all(lines, tmp_path)
    for (line, message), (code, out, err, heavy) in zip(WRONG, found, strict=False):
        assert message in " ".join(err.split()), (line, err)
        assert (code, out) == (2, ""), line
        assert heavy == [], line
    assert len(found) == len(WRONG)


def test_settings_are_those_of_the_agents() -> None:
    for name in ALGORITHMS:
        assert find_config(name) is find(name).Config
    for name in TRAINERS:
        assert find_trainer_config(name) is find_trainer(name).Config


def test_what_is_known_without_torch_is_right() -> None:
    """Sections and problems stand twice: once beside what they name, and once where an argument is checked."""
    assert set(checks.SECTIONS) == {s.section for s in statements()}
    assert checks.Problem.__args__ == tuple(PROBLEMS)
    assert {f.name for f in dataclasses.fields(checks.VerifyOptions)} == {"section", "seeds", "json"}
