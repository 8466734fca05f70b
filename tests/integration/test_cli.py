"""The command, end to end: train, evaluate, plot, list, and what they leave behind."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import COMMAND, ENVIRONMENT, steepest_command, stray_files
from safetensors import safe_open

import steepest
from steepest.algorithms import ALGORITHMS, find
from steepest.cli import agents, main, train
from steepest.runs.options.config import RunConfig
from steepest.runs.store.metrics import read_metrics

TINY: list[Any] = [
    *("--total-steps", 1024, "--num-envs", 4, "--rollout-steps", 32, "--hidden-sizes", 8, "--compile", "off"),
    *("--eval-every", 512, "--eval-episodes", 3, "--quiet"),
]


def run_cli(*arguments: object) -> int:
    """The command in this process: what it prints is captured by pytest."""
    return main.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    done = steepest_command("train", "ppo", "CartPole-v1", *TINY, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "learning curve:" in done.stdout
    assert "steepest evaluate" in done.stdout
    return out


def test_training_leaves_files_that_parse(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert config["algorithm"] == "ppo"
    assert config["env"] == "CartPole-v1"
    assert config["run"]["num_envs"] == 4
    assert config["run"]["compile"] in ("on", "off")
    assert config["run"]["device"] in ("cpu", "cuda")
    assert config["config"]["hidden_sizes"] == [8]
    assert config["environment"]["packages"]["torch"]
    assert "git" in config["environment"]

    rows = read_metrics(trained)
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["step"] >= 1024
    assert {"train/return_mean", "health/approx_kl", "time/steps_per_second", "wall_seconds"} <= rows[-1].keys()
    evaluated = [row for row in rows if "eval/return_mean" in row]
    assert len(evaluated) == 2
    assert evaluated[-1] is rows[-1]

    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"][0] == rows[-1]["step"]
    assert summary["evaluation"][0]["episodes"] == 3
    assert summary["evaluation"][0]["mean"] == evaluated[-1]["eval/return_mean"]

    for path in (trained / "checkpoints").iterdir():
        with safe_open(str(path), framework="np") as file:
            assert any(name.startswith("params/") for name in file.keys())  # noqa: SIM118
    assert (trained / "checkpoints" / "best.safetensors").is_file()
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((trained / "tensorboard").iterdir())
    assert stray_files(trained) == []


def test_evaluate_says_what_the_python_call_says(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, options in (
        ((), {}),
        (("--seed", 4, "--stochastic"), {"seed": 4, "deterministic": False}),
        (("--which", "best"), {"which": "best"}),
        (("--env", "CartPole-v0"), {"env": "CartPole-v0"}),
    ):
        assert run_cli("evaluate", trained, "--episodes", 5, "--json", *arguments) == 0
        printed = json.loads(capsys.readouterr().out)
        (result,) = steepest.evaluate(trained, episodes=5, **options)
        assert printed == result.summary()
    assert run_cli("evaluate", "--episodes", 5, trained) == 0
    assert "5 episodes" in capsys.readouterr().out


def test_evaluate_records_a_video(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio")
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    done = steepest_command("evaluate", trained, "--episodes", 1, "--video", tmp_path / "new" / "episode.mp4", "--json")
    assert done.returncode == 0, done.stderr
    length = json.loads(done.stdout)["mean_length"]
    frames, _ = ffmpeg.count_frames_and_secs(str(tmp_path / "new" / "episode.mp4"))
    assert abs(frames - (length + 1)) <= 2
    assert stray_files(tmp_path) == []


def test_plot_draws_several_runs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert run_cli("train", "reinforce", "CartPole-v1", *TINY, "--out", other) == 0
    capsys.readouterr()
    for i, options in enumerate([[], ["--statistic", "mean", "--x", "steps"], ["--metric", "eval/return_mean"]]):
        picture = tmp_path / f"curves-{i}.png"
        assert run_cli("plot", trained, other, "--out", picture, *options) == 0
        assert capsys.readouterr().out.strip() == str(picture)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_config_file_sets_what_the_line_does_not(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "total-steps: 1e3\nlearning_rate: 3e-3\nhidden_sizes: [8, 4]\ncompile: off\nnum_envs: 4\nquiet: true\n"
        "rollout_steps: 32\neval_episodes: 2\ntarget_kl: none\nnormalize_obs: true\n"
    )
    assert run_cli("train", "ppo", "CartPole-v1", "--config", file, "--num-envs", 2, "--out", tmp_path / "run") == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["run"]["total_steps"] == 1000
    assert saved["run"]["num_envs"] == 2
    assert saved["run"]["compile"] == "off"
    assert saved["config"]["learning_rate"] == 3e-3
    assert saved["config"]["hidden_sizes"] == [8, 4]
    assert saved["config"]["target_kl"] is None
    assert saved["config"]["normalize_obs"] is True


def test_a_run_is_repeated_from_its_own_config(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert run_cli("train", "ppo", "CartPole-v1", "--config", trained / "config.json", "--quiet", "--out", again) == 0
    one, other = (json.loads((run / "summary.json").read_text()) for run in (trained, again))
    assert one["evaluation"] == other["evaluation"]
    assert one["steps"] == other["steps"]


def test_seeds_give_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run_cli("train", "ppo", "CartPole-v1", *TINY, "--seeds", 3, "--seed", 10, "--out", out) == 0
    rows = read_metrics(out)
    curves = {seed: [row["train/return_mean"] for row in rows if row["seed"] == seed][-3:] for seed in (10, 11, 12)}
    assert {row["seed"] for row in rows} == {10, 11, 12}
    assert curves[10] != curves[11] != curves[12] != curves[10]
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["evaluation"]) == 3
    assert sorted(p.name for p in (out / "tensorboard").iterdir()) == ["seed-10", "seed-11", "seed-12"]
    done = steepest_command("evaluate", out, "--episodes", 2, "--json")
    assert [e["episodes"] for e in json.loads(done.stdout)] == [2, 2, 2]
    assert run_cli("evaluate", out, "--episodes", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:3] for line in lines[-3:]] == [["seed", f"{s}:", "return"] for s in (10, 11, 12)]


def test_stops_at_the_return_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--total-steps", 50_000, "--eval-every", 256, "--stop-at-return", 5]
    assert run_cli("train", "ppo", "CartPole-v1", *TINY, *options, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped_at_return"]
    assert summary["steps"][0] < 1000
    assert summary["evaluation"][0]["mean"] >= 5


def test_without_a_folder_given_it_finds_one_that_is_free(tmp_path: Path) -> None:
    for _ in range(2):
        done = steepest_command("train", "ppo", "CartPole-v1", *TINY, "--total-steps", 128, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "ppo-CartPole-v1-seed0",
        "ppo-CartPole-v1-seed0-2",
    ]


def test_spellings_that_people_expect(tmp_path: Path) -> None:
    options = ["--total-steps", "2.56e2", "--normalize-obs", "True", "--no-tensorboard", "--normalize-advantage=False"]
    assert run_cli("train", "ppo", "CartPole-v1", *TINY, *options[:5], "--out", tmp_path / "run") == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["run"]["total_steps"] == 256
    assert saved["run"]["tensorboard"] is False
    assert saved["config"]["normalize_obs"] is True
    assert not (tmp_path / "run" / "tensorboard").exists()


def flags(kind: type[Any]) -> list[str]:
    """Every option as the help writes it; what is on by default can be switched off."""
    names = {f.name.replace("_", "-"): f.default is True for f in dataclasses.fields(kind)}
    return [f"--[no-]{name}" if on else f"--{name}" for name, on in names.items()]


def words_of_docs(kind: type[Any]) -> list[str]:
    """The first words of every field's documentation, which the help has to show."""
    source = "".join(inspect.getsource(cls) for cls in kind.__mro__ if cls is not object)
    found = []
    for field in dataclasses.fields(kind):
        after = source.split(f"\n    {field.name}: ", 1)
        if len(after) == 2 and '"""' in after[1].split("\n    ", 2)[1]:
            found.append(" ".join(after[1].split('"""')[1].split()[:3]).strip('"'))
    return found


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_help_of_train_lists_every_option(algorithm: str) -> None:
    done = steepest_command("train", algorithm, "CartPole-v1", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    kinds = [RunConfig, find(algorithm).Config, train.AgentOutputOptions]
    assert [flag for kind in kinds for flag in flags(kind) if flag not in text] == ["--atari"]  # for Atari games only
    assert "--atari" not in text
    documented = [words for kind in kinds for words in words_of_docs(kind)]
    assert len(documented) > 25
    assert [words for words in documented if words not in text] == ["Preprocessing of Atari", "How they are"]
    assert text.count("(default") > 25
    assert all(f"\n{group}:\n" in done.stdout for group in ("common", "evaluation", "output", "advanced"))
    assert "--config" in text


@pytest.mark.parametrize(("verb", "kind"), [("evaluate", agents.EvaluateOptions), ("plot", agents.PlotOptions)])
def test_help_of_the_other_verbs_lists_every_option(verb: str, kind: type[Any]) -> None:
    done = steepest_command(verb, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert [flag for flag in flags(kind) if flag not in text] == []
    assert [words for words in words_of_docs(kind) if words not in text] == []
    assert "RUN" in text


def test_help_and_list_answer_without_torch() -> None:
    for arguments in (["--help"], ["list"], ["--version"], ["train", "--help"], ["rlhf", "--help"], ["evaluate", "-h"]):
        script = (
            "import sys; from steepest.cli.main import main; code = main(sys.argv[1:]);"
            "slow = {'torch', 'gymnasium', 'matplotlib', 'numpy'} & set(sys.modules);"
            "sys.exit(f'imported {slow}' if slow else code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "steepest", "list"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1" in done.stdout


def test_list_names_every_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("list") == 0
    text = capsys.readouterr().out
    for name, (_, line) in ALGORITHMS.items():
        assert name in text
        assert line in text
    assert "HalfCheetah-v5" in text


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = subprocess.Popen([*COMMAND, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_configs_are_plain_yaml_too(tmp_path: Path) -> None:
    """Every option of a config file may be written as the config dataclass has it by default."""
    defaults = dataclasses.asdict(find("ppo").Config()) | {"total_steps": 256, "eval_episodes": 0, "quiet": True}
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}))
    assert run_cli("train", "ppo", "CartPole-v1", "--config", file, "--out", tmp_path / "run") == 0
