"""Misuse and mishaps: one clear message, exit code 2 for misuse and 1 for failure, nothing lost, no traceback."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers_runs import ENVIRONMENT, differences, start_command, steepest_command, stray_files
from safetensors.torch import save_file

import steepest
from steepest import Run, RunError, UsageError
from steepest.cli import main
from steepest.files.tensors import CheckpointError

TINY = {"rollout_steps": 16, "hidden_sizes": (8,), "num_envs": 2, "eval_episodes": 2, "compile": "off"}

PPO = ["train", "ppo", "CartPole-v1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test may change."""
    out = tmp_path_factory.mktemp("finished") / "run"
    steepest.train("ppo", "CartPole-v1", out=out, total_steps=256, minibatches=1, checkpoint_every=64, **TINY)
    return out


@pytest.fixture
def place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of things that are not what they should be; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    shutil.copytree(run, tmp_path / "run")
    whole = next(iter((run / "checkpoints").glob("step-*"))).read_bytes()
    Path("whole.safetensors").write_bytes(whole)
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("flipped.safetensors").write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    Path("empty.safetensors").touch()
    Path("noise.safetensors").write_bytes(bytes(range(256)) * 20)
    save_file({"weights": torch.zeros(3)}, "foreign.safetensors")
    for name, text in {
        "list.yaml": "- 1",
        "misspelled.yaml": "learnin_rate: 1e-3",
        "text.yaml": "learning_rate: fast",
        "broken.yaml": "{a: [",
        "range.yaml": "gamma: 2",
        "choice.yaml": "device: tpu",
        "bool.yaml": "normalize_obs: maybe",
        "output.yaml": "quiet: loudly",
        "deep.yaml": "[" * 5000 + "]" * 5000,
        "self.yaml": "seed: &seed [*seed]",
        "bomb.yaml": "a0: &a0 [1, 1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "digits.yaml": "seed: " + "9" * 5000,
        "large.yaml": "seed: 1" + "0" * 299 + "e9",
        "twice.yaml": "seed: 1\nseed: 2",
        "spelled-twice.yaml": "batch-size: 1\nbatch_size: 2",
        "dots.yaml": "learning_rate: 1.2.3e-4",
        "half.yaml": 'out: "\\ud83d"',
        "twice.json": '{"seed": 1, "seed": 2}',
        "plain.txt": "nothing",
    }.items():
        Path(name).write_text(text)
    for name, text in {"no-run": None, "empty-config": "{}", "broken-config": "{", "newer-config": None}.items():
        Path(name).mkdir()
        if text is not None:
            Path(name, "config.json").write_text(text)
    newer = json.loads((run / "config.json").read_text())
    newer["config"]["warp_factor"] = 9
    Path("newer-config", "config.json").write_text(json.dumps(newer))
    shutil.copytree(run, tmp_path / "damaged")
    for path in Path("damaged", "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:500])
    return tmp_path


LINES: list[tuple[list[str], int, str]] = [
    ([], 2, ""),
    (["trian", "ppo", "CartPole-v1"], 2, "no verb is called 'trian'; did you mean train?"),
    (["list", "everything"], 2, "list takes no arguments"),
    # train: what
    (["train"], 2, "train takes an algorithm and an environment"),
    (["train", "ppo"], 2, "train takes an algorithm and an environment"),
    (["train", "--seed", "1", "ppo", "CartPole-v1"], 2, "train takes an algorithm and an environment"),
    (["train", "pppo", "CartPole-v1"], 2, "no algorithm is called 'pppo'; did you mean ppo or ppo_kl or trpo?"),
    (["train", "PPO", "CartPole-v1"], 2, "did you mean ppo?"),
    (["train", "muzero", "CartPole-v1"], 2, "no algorithm is called 'muzero'. Known: "),
    (["train", "ppo", "CartPol-v1"], 2, "The nearest names are CartPole-v1"),
    (["train", "ppo", "CartPole"], 2, "CartPole-v1"),
    (["train", "ppo", "nothing like it"], 2, "No name comes near it"),
    (["train", "ppo", "no_such_module:Env-v0"], 2, "cannot be imported"),
    ([*PPO, "Acrobot-v1"], 2, "Acrobot-v1 is too much"),
    # train: options
    ([*PPO, "--learnin-rate", "1"], 2, "--learning-rate"),
    ([*PPO, "--learning-rate", "fast"], 2, "learning_rate is 'fast'; expected a finite number"),
    ([*PPO, "--learning-rate"], 2, "--learning-rate needs a value"),
    ([*PPO, "--learning-rate", "-1"], 2, "learning_rate is -1.0; expected a positive number"),
    ([*PPO, "--learning-rate", "nan"], 2, "learning_rate is nan"),
    ([*PPO, "--learning-rate", "inf"], 2, "learning_rate is inf"),
    ([*PPO, "--gamma", "1.5"], 2, "gamma is 1.5; expected in [0, 1]"),
    ([*PPO, "--num-envs", "0"], 2, "num_envs is 0; expected at least 1"),
    ([*PPO, "--num-envs", "2.5"], 2, "num_envs is 2.5; expected a whole number"),
    ([*PPO, "--total-steps", "1e-3"], 2, "total_steps is 0.001; expected a whole number"),
    ([*PPO, "--total-steps", "-5"], 2, "total_steps is -5"),
    ([*PPO, "--seed", "-1"], 2, "seed is -1"),
    ([*PPO, "--num-envs", "2", "--rollout-steps", "16", "--minibatches", "7"], 2, "7 minibatches do not divide"),
    ([*PPO, "--recurrent", "gru", "--rollout-steps", "20"], 2, "a multiple of sequence_length"),
    ([*PPO, "--device", "gpu"], 2, "device is 'gpu'; expected one of 'auto', 'cpu', 'cuda'"),
    ([*PPO, "--squash", "tanh", "--gaussian", "full"], 2, "gaussian is 'full'"),
    (["train", "ppo", "FrozenLake-v1", "--vectorization", "native"], 2, "no native vector environment"),
    # train: --config
    ([*PPO, "--config"], 2, "--config needs a value"),
    ([*PPO, "--config", "missing.yaml"], 2, "there is no config file missing.yaml"),
    ([*PPO, "--config", "list.yaml"], 2, "list.yaml holds a list"),
    ([*PPO, "--config", "plain.txt"], 2, "plain.txt holds a str"),
    ([*PPO, "--config", "broken.yaml"], 2, "broken.yaml cannot be read as YAML"),
    ([*PPO, "--config", "whole.safetensors"], 2, "cannot be read as YAML"),
    ([*PPO, "--config", "no-run"], 2, "Is a directory"),
    (
        [*PPO, "--config", "misspelled.yaml"],
        2,
        "misspelled.yaml: ppo has no option 'learnin_rate'; did you mean learning_rate",
    ),
    ([*PPO, "--config", "text.yaml"], 2, "text.yaml: learning_rate is 'fast'; expected a finite number"),
    ([*PPO, "--config", "range.yaml"], 2, "range.yaml: gamma is 2"),
    ([*PPO, "--config", "choice.yaml"], 2, "device is 'tpu'; expected one of 'auto', 'cpu', 'cuda'"),
    ([*PPO, "--config", "bool.yaml"], 2, "normalize_obs is 'maybe'; expected True or False"),
    (
        [*PPO, "--config", "deep.yaml"],
        2,
        "deep.yaml cannot be read as YAML: it has lists or objects more than 100 deep",
    ),
    ([*PPO, "--config", "self.yaml"], 2, "self.yaml cannot be read as YAML: it has lists or objects"),
    ([*PPO, "--config", "bomb.yaml"], 2, "it stands for more than 100,000 values, its aliases written out"),
    ([*PPO, "--config", "digits.yaml"], 2, "it has a whole number of 5,000 digits"),
    ([*PPO, "--config", "large.yaml"], 2, "large.yaml: seed is a whole number of 1,024 bits; expected"),
    ([*PPO, "--config", "twice.yaml"], 2, "twice.yaml cannot be read as YAML: it has 'seed' twice"),
    ([*PPO, "--config", "spelled-twice.yaml"], 2, "spelled-twice.yaml: it has 'batch_size' twice"),
    ([*PPO, "--config", "dots.yaml"], 2, "dots.yaml: learning_rate is '1.2.3e-4'; expected a finite number"),
    ([*PPO, "--config", "half.yaml"], 2, "half.yaml cannot be read as YAML: out holds half a character"),
    ([*PPO, "--config", "twice.json"], 2, "twice.json cannot be read as JSON: it has 'seed' twice"),
    ([*PPO, "--total-steps", "1.2.3e4"], 2, "total_steps is '1.2.3e4'; expected a whole number"),
    ([*PPO, "--seed", "9" * 400], 2, "seed is a whole number of 1,329 bits"),
    ([*PPO, "--config", "output.yaml"], 2, "output.yaml: quiet is 'loudly'"),
    # train: --out
    ([*PPO, "--out", "run"], 2, "run already holds a run. To continue it: --resume run"),
    ([*PPO, "--out", "plain.txt"], 2, "the output directory plain.txt cannot be made"),
    ([*PPO, "--out", "plain.txt/below"], 2, "the output directory plain.txt/below cannot be made"),
    ([*PPO, "--out", "/proc/nowhere"], 2, "the output directory /proc/nowhere cannot be made"),
    # train: --resume
    (["train", "--resume"], 2, "--resume needs a value"),
    (["train", "--resume", "missing"], 2, "no run at missing: it does not exist"),
    (["train", "--resume", "no-run"], 2, "no run at no-run: it has no config.json"),
    (["train", "--resume", "plain.txt"], 2, "no run at plain.txt"),
    (["train", "--resume", "empty-config"], 1, "config.json is not as steepest wrote it: it has no algorithm"),
    (["train", "--resume", "broken-config"], 1, "cannot be read as JSON"),
    (["train", "--resume", "newer-config"], 1, "options that this version does not know: warp_factor"),
    (["train", "--resume", "damaged"], 1, "checkpoints in damaged/checkpoints can be read"),
    (["train", "--resume", "run", "--total-steps", "3"], 2, "total_steps is 3, but the run has done"),
    (["train", "--resume", "run", "--seed", "3"], 2, "has no option --seed"),
    ([*PPO, "--resume", "run"], 2, "--resume takes the algorithm, environment and settings from the run itself"),
    # evaluate
    (["evaluate"], 2, "RUN"),
    (["evaluate", "missing"], 2, "there is nothing at missing"),
    (["evaluate", "no-run"], 2, "no run at no-run"),
    (["evaluate", "run", "run"], 2, "run is too much"),
    (["evaluate", "cut.safetensors"], 1, "cut.safetensors is damaged (truncated or corrupted)"),
    (["evaluate", "flipped.safetensors"], 1, "flipped.safetensors is damaged (truncated or corrupted)"),
    (["evaluate", "empty.safetensors"], 1, "empty.safetensors is damaged (truncated or corrupted)"),
    (["evaluate", "noise.safetensors"], 1, "noise.safetensors is not a safetensors file"),
    (["evaluate", "foreign.safetensors"], 1, "steepest did not write it"),
    (["evaluate", "plain.txt"], 1, "plain.txt is "),
    (["evaluate", "damaged"], 1, "can be read"),
    (
        ["evaluate", "run", "--env", "Acrobot-v1"],
        2,
        "the agent does not fit Acrobot-v1: it was trained on observations",
    ),
    (["evaluate", "run", "--env", "Pendulum-v1"], 2, "the agent does not fit Pendulum-v1"),
    (["evaluate", "run", "--env", "Pendulun-v1"], 2, "Pendulum-v1"),
    (["evaluate", "run", "--episodes", "0"], 2, "episodes is 0"),
    (["evaluate", "run", "--seed", "-1"], 2, "seed is -1"),
    (["evaluate", "run", "--which", "interrupted"], 2, "holds no interrupted agent: it was never interrupted"),
    (["evaluate", "run", "--which", "beste"], 2, "which is 'beste'; expected one of 'latest', 'best', 'interrupted'"),
    (["evaluate", "run", "--video", "film.avi"], 2, "a name ending in .mp4"),
    # plot
    (["plot"], 2, "plot needs RUN..."),
    (["plot", "missing"], 2, "no run at"),
    (["plot", "no-run"], 2, "no run at"),
    (["plot", "run", "--metric", "nothing"], 2, "has no metric 'nothing'. It has: "),
    (["plot", "run", "--out", "curves.xyz"], 2, "must be .png, .pdf or .svg"),
    (["plot", "run", "--out", "/proc/curves.png"], 1, "could not write /proc/curves.png"),
]


@pytest.mark.parametrize(
    ("line", "code", "message"), LINES, ids=[" ".join(line)[:80] or "(nothing)" for line, _, _ in LINES]
)
@pytest.mark.filterwarnings("default:.*Trying the checkpoint before it:RuntimeWarning")
def test_the_command_says_what_is_wrong(
    line: list[str], code: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file() and p.name != ".lock"}
    assert main.main(line) == code
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    assert said.out == "" if line else said.out.startswith("usage")
    after = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before, "nothing may be written, changed or lost"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*PPO, "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "PyTorch sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_real_process_gives_the_same_codes(tmp_path: Path) -> None:
    for arguments, code in ((["train", "ppo", "CartPol-v1"], 2), (["evaluate", "nowhere"], 2), (["--help"], 0)):
        done = steepest_command(*arguments, cwd=tmp_path)
        assert done.returncode == code
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "line"),
    [
        ("mujoco", ["train", "ppo", "HalfCheetah-v5"], 'pip install "steepest[mujoco]"'),
        ("Box2D", ["train", "ppo", "LunarLander-v3"], 'pip install "steepest[box2d]"'),
        ("ale_py", ["train", "ppo", "ALE/Pong-v5"], 'pip install "steepest[atari]"'),
        ("envpool", ["train", "ppo", "CartPole-v1", "--vectorization", "envpool"], 'pip install "steepest[envpool]"'),
        ("wandb", ["train", "ppo", "CartPole-v1", "--wandb"], 'pip install "steepest[wandb]"'),
        ("imageio", ["evaluate", "RUN", "--video", "film.mp4"], 'pip install "steepest[video]"'),
    ],
)
def test_a_missing_extra_names_the_line_that_installs_it(
    module: str, arguments: list[str], line: str, run: Path, tmp_path: Path
) -> None:
    """The package is made impossible to import, as if it were not installed."""
    script = textwrap.dedent(f"""
        import importlib.util, sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {module!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == {module!r} else find_spec(name, package)
        from steepest.cli.main import main
        sys.exit(main(sys.argv[1:]))
    """)
    arguments = [str(run) if a == "RUN" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    # A folder that was made for the run may stay, but holds nothing in the way of another try.
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"] == []


# Environments that misbehave, while training


class Misbehaving(gym.Env[Any, Any]):
    """Well for ``after`` steps over all its episodes, then not."""

    action_space = spaces.Discrete(2)
    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, fault: str, after: int = 200) -> None:
        self.fault, self.after, self.steps = fault, after, 0

    def _observe(self) -> Any:
        if self.steps >= self.after:
            if self.fault == "nan":
                return np.array([0.0, np.nan], np.float32)
            if self.fault == "shape":
                return np.zeros(3, np.float32)
        return self.np_random.normal(size=2).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset" and self.steps >= self.after:
            raise OSError("the simulator does not start")
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        late = self.steps >= self.after
        if self.fault == "step" and late:
            raise ZeroDivisionError("the wheel came off")
        reward: Any = float(self.np_random.normal())
        if late and self.fault in ("huge", "infinite", "text"):
            reward = {"huge": 1e30, "infinite": np.inf, "text": "lots"}[self.fault]
        return self._observe(), reward, self.steps % 10 == 0, False, {}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "observation that is not finite"),
        ("shape", "wrong observation"),
        ("step", "ZeroDivisionError in step"),
        ("reset", "the simulator does not start"),
        ("infinite", "returned the reward inf"),
        ("text", "step"),
        ("huge", "became non-finite"),
    ],
)
def test_a_failing_environment_stops_the_run_and_loses_nothing(fault: str, message: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    env = Misbehaving(fault)
    options = {**TINY, "num_envs": 1, "minibatches": 1, "checkpoint_every": 64, "eval_episodes": 0}
    with pytest.raises(RunError, match=message) as caught:
        steepest.train("ppo", env, out=out, total_steps=4096, **options)
    found = sorted((out / "checkpoints").glob("step-*"))
    assert found, "there was time for a checkpoint"
    assert f"The last good checkpoint is {found[-1]}" in str(caught.value)
    agent = steepest.load(found[-1])
    assert torch.isfinite(agent.state["params"]).all()
    assert agent.act(np.zeros(2, np.float32))[0] in (0, 1)
    assert stray_files(out) == []
    env.steps = 0  # mended
    steepest.resume(out, env=env, total_steps=max(320, int(found[-1].stem[5:]) + 32))
    assert (out / "summary.json").is_file()


def test_without_a_checkpoint_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No checkpoint had been saved yet"):
        steepest.train(
            "ppo", Misbehaving("step", after=3), out=tmp_path / "run", minibatches=1, **{**TINY, "num_envs": 1}
        )


def test_a_learning_rate_that_explodes(tmp_path: Path) -> None:
    """Adam's steps are bounded by the learning rate, so it has to be absurd."""
    out = tmp_path / "run"
    options = {**TINY, "minibatches": 1, "checkpoint_every": 32, "eval_episodes": 0, "total_steps": 4096}
    with Run("ppo", "CartPole-v1", out=out, learning_rate=1e-3, **options) as healthy:
        healthy.iterate()
        healthy.iterate()
        config = dataclasses.replace(healthy.agent.config, learning_rate=1e38, normalize_advantage=True)
        healthy.agent.population.configs = (config,)
        with pytest.raises(RunError, match="non-finite") as caught:
            list(healthy)
    found = sorted((out / "checkpoints").glob("step-*"))
    assert str(found[-1]) in str(caught.value)
    assert torch.isfinite(steepest.load(out).state["params"]).all()


def test_the_command_reports_a_failure_with_code_1(tmp_path: Path) -> None:
    arguments = ["--learning-rate", 1e38, "--total-steps", 4096, "--checkpoint-every", 32, "--eval-episodes", 0]
    done = steepest_command(*PPO, *arguments, "--out", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "non-finite" in done.stderr
    assert "heckpoint" in done.stderr
    assert "Traceback" not in done.stderr


# Spaces


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Text(5), spaces.Discrete(2), "Text"),
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), "Sequence"),
        (spaces.Box(0, 255, (20, 20, 3), np.uint8), spaces.Discrete(2), "at least 36 x 36"),
        (spaces.Box(-1, 1, (0,), np.float32), spaces.Discrete(2), "empty"),
        (spaces.Dict({}), spaces.Discrete(2), "empty"),
        (spaces.Box(-1, 1, (2,), np.float32), spaces.Dict(a=spaces.Discrete(2)), "Dict"),
        (spaces.Box(-1, 1, (2,), np.float32), spaces.Tuple((spaces.Discrete(2),)), "Tuple"),
        (spaces.Box(-1, 1, (2,), np.float32), spaces.Text(3), "Text"),
    ],
)
def test_an_unsupported_space_is_named(observation: Any, action: Any, message: str, tmp_path: Path) -> None:
    class Odd(Misbehaving):
        observation_space = observation
        action_space = action

    with pytest.raises(UsageError, match=message):
        steepest.train("ppo", lambda: Odd(""), out=tmp_path / "run", total_steps=64, minibatches=1, **TINY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", [None, 3, {"id": "CartPole-v1"}, lambda: 3, object()])
def test_what_is_no_environment_is_refused(env: Any) -> None:
    with pytest.raises(UsageError):
        steepest.train("ppo", env, total_steps=64, minibatches=1, **TINY)


def test_observations_that_do_not_fit_the_agent(run: Path) -> None:
    agent = steepest.load(run)
    for obs in (np.zeros(3), np.zeros((2, 3)), np.zeros((2, 2, 4)), {"state": np.zeros(4)}, None, "left"):
        with pytest.raises(UsageError, match=r"observation"):
            agent.act(obs)


# Files, folders and disks


def test_a_folder_in_use_by_another_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_command(*PPO, "--total-steps", 10_000_000, "--compile", "off", "--out", out)
    try:
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
            assert process.poll() is None
        for arguments in (["train", "--resume", out], [*PPO, "--out", out]):
            done = steepest_command(*arguments)
            assert done.returncode == 2
            assert f"{out} is in use by another process (pid {process.pid}" in done.stderr
        played = steepest_command("plot", out, "--out", tmp_path / "curve.png")
        assert played.returncode == 0, played.stderr
    finally:
        process.kill()
        process.wait()


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = max((copy / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:1000])
    done = steepest_command("evaluate", copy, "--episodes", 2)
    assert done.returncode == 0
    assert f"warning: {newest} is damaged" in done.stderr
    assert ".py" not in done.stderr
    assert steepest_command("train", "--resume", copy).returncode == 0


def test_a_file_that_steepest_wrote_but_that_holds_no_agent(tmp_path: Path) -> None:
    from steepest.files.tensors import save_tensors

    save_tensors(tmp_path / "odd.safetensors", {"a": torch.zeros(1)}, {"some": "thing"})
    with pytest.raises(CheckpointError, match="does not hold an agent"):
        steepest.load(tmp_path / "odd.safetensors")


def test_a_full_disk_stops_the_run_and_spares_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to sync, as it does when there is no room left, from the third checkpoint on."""
    out = tmp_path / "run"
    options = {**TINY, "minibatches": 1, "checkpoint_every": 64, "eval_episodes": 0, "total_steps": 2048}
    with Run("ppo", "CartPole-v1", out=out, **options) as training:
        while len(list((out / "checkpoints").glob("step-*")) if (out / "checkpoints").exists() else []) < 2:
            training.iterate()
        there = {p: p.read_bytes() for p in (out / "checkpoints").iterdir()}

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="the disk is full") as caught:
            list(training)
        monkeypatch.undo()
    assert "The last good checkpoint is" in str(caught.value)
    assert {p: p.read_bytes() for p in (out / "checkpoints").iterdir()} == there
    assert stray_files(out) == []
    steepest.resume(out)
    with Run("ppo", "CartPole-v1", out=tmp_path / "alone", **options) as alone:
        list(alone)
    assert differences(tmp_path / "alone", out) == []


def test_a_small_file_system_fills_up(tmp_path: Path) -> None:
    """The same with a real one, where this test may mount it."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        done = steepest_command(*PPO, "--total-steps", 200_000, "--checkpoint-every", 2048, "--out", small / "run")
        assert done.returncode == 1, done.stderr
        assert "No space left" in done.stderr or "disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr
        assert stray_files(small) == []
        shutil.copytree(small / "run", tmp_path / "moved")
        checkpoints = list((tmp_path / "moved" / "checkpoints").glob("step-*"))
        for path in checkpoints:
            assert steepest.load(path).act(np.zeros(4, np.float32))[0] in (0, 1)
        assert checkpoints
        assert str(small / "run") in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_env_kwargs_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="env_kwargs cannot be saved"):
        steepest.train(
            "ppo",
            lambda note: Misbehaving(""),
            env_kwargs={"note": print},
            out=tmp_path / "run",
            total_steps=64,
            minibatches=1,
            **TINY,
        )


def test_several_seeds_are_for_train_seeds() -> None:
    with pytest.raises(UsageError, match="train_seeds"):
        steepest.train("ppo", "CartPole-v1", seeds=2)
