"""What is tried, by kind: each function draws one case from a seeded generator, runs it, and says what was wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from helpers_runs import differences, stray_files

from fuzz import damage, hostile
from fuzz.harness import SECONDS, Call, Outcome, call, readable


class Tried(NamedTuple):
    """One case: what it was, in words, and what was wrong about it."""

    what: str
    faults: list[str]
    code: int


SMALL = [
    "--hidden-sizes",
    "8",
    "--compile",
    "off",
    "--threads",
    "1",
    "--eval-episodes",
    "1",
    "--no-tensorboard",
    "--seed",
    "3",
]
SMALL_ON: list[Any] = [
    *SMALL,
    *["--num-envs", "2", "--rollout-steps", "16", "--total-steps", "320", "--checkpoint-every", "64"],
]
SMALL_REPLAY: list[Any] = [
    *SMALL,
    *[
        "--total-steps",
        "240",
        "--checkpoint-every",
        "60",
        "--learning-starts",
        "40",
        "--batch-size",
        "8",
        "--buffer-size",
        "150",
    ],
    *["--steps-per-iteration", "20", "--train-every", "2"],
]
SMALL_OFFLINE: list[Any] = [
    *SMALL,
    *["--total-steps", "60", "--checkpoint-every", "20", "--batch-size", "8", "--steps-per-iteration", "10"],
]
SMALL_LANGUAGE: list[Any] = [
    *[
        "--batch-size",
        "4",
        "--micro-batch-size",
        "4",
        "--max-length",
        "64",
        "--threads",
        "1",
        "--no-tensorboard",
        "--seed",
        "3",
    ],
    *["--checkpoint-every", "1"],
]
SEEDS, KEEP = ("--seeds", 3), ("--keep-checkpoints", 1)
PPO = ("--epochs", 2, "--minibatches", 2)

RUNS: dict[str, list[Any]] = {
    "ppo": ["train", "ppo", "CartPole-v1", *SMALL_ON, *PPO, *KEEP],
    "ppo 3 seeds": ["train", "ppo", "Pendulum-v1", *SMALL_ON, *PPO, *SEEDS, "--normalize-obs", "--normalize-reward"],
    "ppo recurrent": [
        *("train", "ppo", "CartPole-v1", *SMALL_ON, *PPO, "--recurrent", "gru", "--recurrent-size", 4),
        *("--sequence-length", 8, "--vectorization", "sync"),
    ],
    "ppo compiled": [*("train", "ppo", "CartPole-v1", *SMALL_ON, *PPO, *SEEDS, *KEEP, "--compile", "on")],
    "ppo_kl": ["train", "ppo_kl", "CartPole-v1", *SMALL_ON, *PPO, "--eval-every", 100],
    "trpo": ["train", "trpo", "Pendulum-v1", *SMALL_ON, *KEEP],
    "reinforce": ["train", "reinforce", "CartPole-v1", *SMALL_ON, *SEEDS],
    "actor_critic": ["train", "actor_critic", "CartPole-v1", *SMALL_ON, "--vectorization", "async"],
    "dpg": ["train", "dpg", "Pendulum-v1", *SMALL_ON],
    "off_pac": ["train", "off_pac", "CartPole-v1", *SMALL_ON, *KEEP],
    "sac": ["train", "sac", "Pendulum-v1", *SMALL_REPLAY, *KEEP, "--eval-every", 100],
    "sac 3 seeds": ["train", "sac", "Pendulum-v1", *SMALL_REPLAY, *SEEDS, "--prioritized", "--n-steps", 3],
    "sac discrete": ["train", "sac", "CartPole-v1", *SMALL_REPLAY, "--num-envs", 3, "--asynchronous"],
    "sac_v": ["train", "sac_v", "Pendulum-v1", *SMALL_REPLAY, "--normalize-obs"],
    "td3": ["train", "td3", "Pendulum-v1", *SMALL_REPLAY, "--num-envs", 2, "--noise-correlation", 0.5, *SEEDS, *KEEP],
    "td3 compiled": ["train", "td3", "Pendulum-v1", *SMALL_REPLAY, "--compile", "on", *KEEP],
    "ddpg": ["train", "ddpg", "Pendulum-v1", *SMALL_REPLAY, "--vectorization", "async"],
    "dqn": ["train", "dqn", "CartPole-v1", *SMALL_REPLAY, *KEEP, "--prioritized"],
    **{
        name: ["train", name, "{data}/pendulum.npz", *SMALL_OFFLINE, *(SEEDS if name in ("iql", "bc") else KEEP)]
        for name in ("bc", "iql", "awac", "cql", "td3_bc", "rebrac")
    },
    "discrete_cql": ["train", "discrete_cql", "{data}/cartpole.npz", *SMALL_OFFLINE],
    "sft": ["sft", "{data}/model", "{data}/films.jsonl", *SMALL_LANGUAGE, *KEEP],
    "sft adapters": ["sft", "{data}/model", "{data}/films.jsonl", *SMALL_LANGUAGE, "--lora-rank", 2],
    "reward": ["reward", "{data}/model", "{data}/pairs.jsonl", *SMALL_LANGUAGE],
    "dpo": ["dpo", "{data}/model", "{data}/pairs.jsonl", *SMALL_LANGUAGE, *KEEP],
    **{
        f"rlhf {name}": [
            *("rlhf", name, "{data}/model", "{data}/films.jsonl", "--reward", "{data}/reward.py:score"),
            *(*SMALL_LANGUAGE, "--max-new-tokens", 4, *(() if name == "ppo" else ("--group-size", 2))),
        ]
        for name in ("ppo", "rloo", "grpo")
    },
}
"""Short runs of everything that trains; "{data}" is a folder of data sets and a model, "--keep-checkpoints 1" the
narrowest way to resume."""

HALF = 3
"""Iterations after which a run in stock was killed."""


def die_after(iterations: int) -> None:
    """Let this process be killed when a run has made so many iterations."""
    from steepest.runs.run import Run

    iterate, count = Run.iterate, iter(range(iterations))

    @functools.wraps(iterate)
    def counted(*arguments: Any, **options: Any) -> Any:
        row = iterate(*arguments, **options)
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    Run.iterate = counted  # pyright: ignore[reportAttributeAccessIssue]


def make_data(folder: Path) -> None:
    """Data sets, a tiny model and a reward, as files."""
    import steepest
    from helpers_language import demonstrations, preferences, tiny
    from steepest.language.models.saving import save_model

    folder.mkdir()
    for name, env in (("pendulum", "Pendulum-v1"), ("cartpole", "CartPole-v1")):
        steepest.collect("random", env, steps=400, seed=1, out=folder / f"{name}.npz", reference=(-1500.0, -100.0))
        shutil.copyfile(folder / f"{name}.npz", folder / f"{name}-again.npz")
    steepest.collect("random", "Pendulum-v1", steps=400, seed=1, out=folder / "pendulum.hdf5")
    save_model(tiny(scale=1.0, dropout=0.1), folder / "model")
    for name, rows in (("films", demonstrations(16)), ("pairs", preferences(16))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(
        "def score(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )


@dataclasses.dataclass
class Stock:
    """What cases begin from, made once for all of them."""

    folder: Path

    @property
    def data(self) -> Path:
        if not (self.folder / "data").exists():
            make_data(self.folder / "data")
        return self.folder / "data"

    def command(self, name: str) -> list[Any]:
        return [str(a).replace("{data}", str(self.data)) for a in RUNS[name]]

    def half(self, name: str) -> Path:
        """A run that was killed after ``HALF`` iterations."""
        place = self.folder / "half" / name.replace(" ", "-")
        if not place.exists():
            arguments = [*self.command(name), "--out", place, "--quiet"]
            outcome = call(arguments, self.folder / "streams", seconds=300, prepare=functools.partial(die_after, HALF))
            assert outcome.code == -signal.SIGKILL, f"{name} was to be killed, and {outcome}"
        return place

    def whole(self, name: str) -> Path:
        """The same run, resumed to its end."""
        place = self.folder / "whole" / name.replace(" ", "-")
        if not place.exists():
            shutil.copytree(self.half(name), place)
            outcome = call([RUNS[name][0], "--resume", place, "--quiet"], self.folder / "streams", seconds=300)
            assert outcome.code == 0, f"{name} was to resume, and {outcome}"
        return place

    def alone(self, name: str) -> Path:
        """The same run, never stopped."""
        place = self.folder / "alone" / name.replace(" ", "-")
        if not place.exists():
            outcome = call([*self.command(name), "--out", place, "--quiet"], self.folder / "streams", seconds=300)
            assert outcome.code == 0, f"{name} was to train, and {outcome}"
        return place


def _tried(what: str, outcome: Outcome, more: list[str] | None = None) -> Tried:
    return Tried(what, outcome.faults() + (more or []), outcome.code)


def _state(found: list[str]) -> list[str]:
    """Of all differences, those of what was learned."""
    return [f"other {d}" for d in found if d.startswith(("tensor", "metadata"))]


def _resumed(stock: Stock, name: str, run: Path, what: str, folder: Path) -> Tried:
    """Resume a spoiled run: it says no, or it ends in the bits of the run that was not spoiled."""
    outcome = call([RUNS[name][0], "--resume", run, "--quiet"], folder / "streams")
    wrong = stray_files(run)
    if outcome.code == 0:
        wrong += _state(differences(stock.whole(name), run))
    return _tried(f"{name}: {what}; resumed", outcome, wrong)


def _copy(stock: Stock, rng: random.Random, folder: Path, names: list[str]) -> tuple[str, Path]:
    name = rng.choice(names)
    run = folder / "run"
    shutil.copytree(stock.half(name), run)
    return name, run


ANY_RUN = ["ppo", "ppo 3 seeds", "trpo", "sac", "td3", "dqn", "iql", "sft", "dpo", "rlhf ppo"]
CHEAP = ["ppo", "sac", "sac 3 seeds", "dqn", "iql"]


def spoiled_config(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """config.json of a run."""
    name, run = _copy(stock, rng, folder, ANY_RUN)
    what = damage.spoil_file(rng, run / "config.json", damage.spoil_json)
    verb = rng.choice(("resume", "resume", "evaluate", "plot"))
    if verb == "resume" or RUNS[name][0] != "train":
        return _resumed(stock, name, run, what, folder)
    more = ["--episodes", 1] if verb == "evaluate" else ["--out", folder / "curves.png"]
    return _tried(f"{name}: {what}; {verb}", call([verb, run, *more], folder / "streams"))


def spoiled_metrics(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """metrics.jsonl of a run."""
    name, run = _copy(stock, rng, folder, ANY_RUN)
    what = damage.spoil_file(rng, run / "metrics.jsonl", damage.spoil_lines)
    if rng.random() < 0.5:
        return _resumed(stock, name, run, what, folder)
    return _tried(f"{name}: {what}; plot", call(["plot", run, "--out", folder / "curves.png"], folder / "streams"))


def spoiled_checkpoint(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A checkpoint, or whatever else lies beside it."""
    name, run = _copy(stock, rng, folder, ANY_RUN)
    files = sorted(p for p in (run / "checkpoints").rglob("*") if p.is_file())
    path = rng.choice(files)
    text = damage.spoil_json if path.suffix == ".json" else None
    what = damage.spoil_file(rng, path, text)
    if rng.random() < 0.7 or RUNS[name][0] != "train":
        return _resumed(stock, name, run, what, folder)
    return _tried(f"{name}: {what}; evaluate", call(["evaluate", path, "--episodes", 1], folder / "streams"))


def spoiled_replay(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A file of the replay buffer."""
    name, run = _copy(stock, rng, folder, ["sac", "sac 3 seeds", "td3", "dqn"])
    path = rng.choice(sorted(p for p in (run / "replay").rglob("*") if p.is_file()))
    return _resumed(stock, name, run, damage.spoil_file(rng, path, None), folder)


def spoiled_summary(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """summary.json of a run that has ended."""
    name = rng.choice(CHEAP)
    run = folder / "run"
    shutil.copytree(stock.whole(name), run)
    what = damage.spoil_file(rng, run / "summary.json", damage.spoil_json)
    verb = rng.choice(
        (["train", "--resume", run], ["plot", run, "--out", folder / "c.png"], ["evaluate", run, "--episodes", 1])
    )
    return _tried(f"{name}: {what}; {verb[0]}", call(verb, folder / "streams"))


def spoiled_data(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A data set in a file, of numbers or of text."""
    folder.mkdir(parents=True, exist_ok=True)
    name = rng.choice(("pendulum.npz", "cartpole.npz", "pendulum.hdf5", "films.jsonl", "films.jsonl", "pairs.jsonl"))
    path = folder / name
    shutil.copyfile(stock.data / name, path)
    what = damage.spoil_file(rng, path, damage.spoil_lines if path.suffix == ".jsonl" else None)
    if path.suffix == ".jsonl":
        verb = rng.choice(("sft", "rlhf ppo")) if name == "films.jsonl" else rng.choice(("dpo", "reward"))
        arguments = [str(a).replace(str(stock.data / name), str(path)) for a in stock.command(verb)]
        arguments += ["--max-steps", 1, "--quiet", *rng.choice(((), ("--drop-bad-rows",)))]
        arguments += ["--out", folder / "out"]
    elif rng.random() < 0.5:
        arguments = ["dataset", "show", path]
    else:
        arguments = ["train", "bc", path, *SMALL_OFFLINE, "--out", folder / "out", "--quiet"]
    before = path.read_bytes() if path.is_file() else None
    outcome = call(arguments, folder / "streams")
    altered = before is not None and path.read_bytes() != before
    return _tried(f"{what}: {readable(arguments[:3])}", outcome, ["altered the data"] if altered else [])


def spoiled_arrays(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A data set of arrays of which one is of another kind, length or content."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    with np.load(stock.data / rng.choice(("pendulum.npz", "cartpole.npz"))) as stored:
        arrays = {k: stored[k] for k in stored.files}
    name = rng.choice(sorted(arrays))
    x = arrays[name]
    ways: dict[str, Callable[[], Any]] = {
        "missing": lambda: None,
        "shorter": lambda: x[:-1] if x.ndim else x,
        "empty": lambda: x[:0] if x.ndim else x,
        "flat": x.ravel,
        "text": lambda: x.astype(str),
        "objects": lambda: np.array([None] * max(1, x.size), dtype=object),
        "complex": lambda: x.astype(complex) if x.dtype.kind in "biuf" else x,
        "half": lambda: x.astype(np.float16) if x.dtype.kind in "biuf" else x,
        "integers": lambda: x.astype(np.int64) if x.dtype.kind in "biuf" else x,
        "huge": lambda: x.astype(np.float64) * 1e300 if x.dtype.kind in "biuf" else x,
        "nan": lambda: (
            np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, np.nan, x) if x.dtype.kind == "f" else x
        ),
        "ones": lambda: np.ones_like(x) if x.dtype.kind in "biuf" else x,
        "zeros": lambda: np.zeros_like(x) if x.dtype.kind in "biuf" else x,
        "twice": lambda: np.concatenate([x, x]) if x.ndim else x,
        "extra axis": lambda: x[..., None],
        "scalar": lambda: x.ravel()[0] if x.size else x,
    }
    way = rng.choice(sorted(ways))
    arrays[name] = ways[way]()
    np.savez(folder / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
    show = ["dataset", "show", folder / "data.npz"]
    learn = [
        "train",
        rng.choice(("bc", "iql")),
        folder / "data.npz",
        *SMALL_OFFLINE,
        "--quiet",
        "--out",
        folder / "out",
    ]
    arguments = rng.choice((show, learn))
    return _tried(f"{name} {way}: {readable(arguments[:3])}", call(arguments, folder / "streams"))


def spoiled_model(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A file of a language model's folder."""
    model = folder / "model"
    shutil.copytree(stock.data / "model", model)
    path = rng.choice(sorted(p for p in model.rglob("*") if p.is_file()))
    what = damage.spoil_file(rng, path, damage.spoil_json if path.suffix == ".json" else None)
    verb = rng.choice(("sft", "generate"))
    if verb == "sft":
        arguments: list[Any] = ["sft", model, stock.data / "films.jsonl", *SMALL_LANGUAGE, "--max-steps", 1]
        arguments += ["--out", folder / "out", "--quiet"]
    else:
        arguments = ["generate", model, "--prompt", "This film was", "--max-new-tokens", 4]
    return _tried(f"{what}: {verb}", call(arguments, folder / "streams"))


YAML = (
    *("total_steps: &a [*a]", "total_steps: " + "9" * 5000, "!!python/object/apply:os.system ['true']"),
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)),
    *("\ufefftotal_steps: 100", "total_steps: 100\n" * 2, "{" * 3000, "- 1\n- 2", "total_steps: {a: 1}", "seed: 0x10"),
    *("hidden_sizes: 8", "hidden_sizes: [8, x]", "seed: 2021-01-01", "learning_rate: 1e-3", "learning_rate: .inf"),
    *("learning_rate: yes", "\x00", "\tseed: 1", "seed: !!binary aGVsbG8=", "<<: 3", "? [1]\n: 2", "null: 3"),
    *("env_kwargs: {x: 1}", "seed: 1\n---\nseed: 2", "%YAML 9.9\n---\nseed: 1", "total_steps: -5"),
)


def hostile_options(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """Options of a training, as a mistyping, a script or a mischievous person gives them."""
    from steepest.algorithms import ALGORITHMS, find
    from steepest.runs.options.config import RunConfig

    algorithm = rng.choice(sorted(ALGORITHMS))
    fields = {f.name for config in (find(algorithm).Config, RunConfig) for f in dataclasses.fields(config)}
    fields -= {"wandb", "atari", "device"}
    values = (
        *(
            "",
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1",
            "2",
            "3",
            "7",
            "0.5",
            "-0.5",
            "1e308",
            "1e-320",
            "1e30",
            "99999999999",
        ),
        *(
            "true",
            "None",
            "null",
            "x",
            "[1,2",
            "8 8",
            "../..",
            "/dev/null",
            "\udcff",
            "é" * 300,
            "\x1b[2J",
            "auto",
            "off",
        ),
        *("on", "linear", "tanh", "sync", "async", "4294967296", "1_000", "0x10", "١٢", "1,5", "--", "-", "%s", "{}"),
    )
    given: list[Any] = []
    for name in rng.sample(sorted(fields), rng.choice((1, 1, 2, 3))):
        option = name.replace("_", "-")
        chosen = rng.choice(values).split(" ")
        given += rng.choice(
            ([f"--{option}", *chosen], [f"--{option}={chosen[0]}"], [f"--{option}"], [f"--no-{option}"])
        )
    if rng.random() < 0.15:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "c.yaml").write_text(rng.choice(YAML), errors="surrogateescape")
        given += ["--config", folder / "c.yaml"]
    env = rng.choice(
        ("CartPole-v1", "Pendulum-v1", "CartPole-v1", "Pendulum-v1", "CartPole", "x:y", "", stock.data / "pendulum.npz")
    )
    base = ["train", algorithm, env, "--total-steps", 64, "--out", folder / "out", "--quiet"]
    if rng.random() < 0.1:
        base.pop(rng.randrange(len(base)))
    outcome = call([*base, *given], folder / "streams", seconds=SECONDS / 2)
    wrong = stray_files(folder / "out") if (folder / "out").exists() else []
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if outcome.code in (1, 2) and size > 50 << 20:
        wrong.append(f"left {size >> 20} MiB after a failure")
    return _tried(readable([*base, *given]), outcome, wrong)


def hostile_environment(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """An environment that misbehaves once."""
    del stock
    vectorization = rng.choice(("sync", "async", "auto"))
    act = rng.choice([*hostile.ACTS, *(hostile.ENDS[:2] if vectorization == "async" else ())])
    plan = {
        "call": rng.choice(("step", "step", "step", "reset", "init", "close", "render")),
        "at": rng.choice((1, 2, 7, 20, 40)),
        "act": act,
        "discrete": rng.random() < 0.7,
    }
    algorithms = ("ppo", "trpo", "dqn", "sac") if plan["discrete"] else ("ppo", "sac", "td3", "dpg")
    algorithm = rng.choice(algorithms)
    small = SMALL_REPLAY if algorithm in ("dqn", "sac", "td3") else SMALL_ON
    arguments = ["train", algorithm, "fuzz.hostile:Hostile-v0", *small, "--vectorization", vectorization]
    arguments += ["--num-envs", 2, "--total-steps", 100, "--out", folder / "out", "--quiet"]
    outcome = call(arguments, folder / "streams", environment={"HOSTILE": json.dumps(plan)})
    wrong = stray_files(folder / "out") if (folder / "out").exists() else []
    if outcome.code == 1 and plan["call"] in ("step", "reset") and "Hostile-v0" not in outcome.err:
        wrong.append("does not name the environment")
    if outcome.code == 1 and act.startswith("raise SystemExit") and "SystemExit" not in outcome.err:
        wrong.append("does not say what was raised")
    if outcome.code == 0 and not (folder / "out" / "summary.json").exists():
        wrong.append("ended with 0, but wrote no summary")
    return _tried(f"{algorithm}, {vectorization}, {json.dumps(plan)}", outcome, wrong)


def close_stdout() -> None:
    os.close(1)


def close_stderr() -> None:
    os.close(2)


def close_both() -> None:
    os.closerange(1, 3)


def fill(*numbers: int) -> None:
    """Let these streams lead to a full device."""
    full = os.open("/dev/full", os.O_WRONLY)
    for number in numbers:
        os.dup2(full, number)


def broken_pipe() -> None:
    read, write = os.pipe()
    os.dup2(write, 1)
    os.close(read)


STREAMS: dict[str, Callable[[], None] | None] = {
    "as usual": None,
    "stdout closed": close_stdout,
    "stderr closed": close_stderr,
    "both closed": close_both,
    "stdout full": functools.partial(fill, 1),
    "both full": functools.partial(fill, 1, 2),
    "nobody reads": broken_pipe,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def streams_and_signals(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """A signal at some moment, with streams that fail; then the run resumes and ends in the same bits."""
    name = rng.choice(sorted(RUNS))
    alone = stock.alone(name)
    streams, number = rng.choice(sorted(STREAMS)), rng.choice(SIGNALS)
    began = Call([*stock.command(name), "--out", folder / "run"], folder / "streams", prepare=STREAMS[streams])
    began.process.join(rng.uniform(0.05, 1.5))
    sent = began.process.is_alive()
    began.signal(number)
    first = began.wait()
    first = first._replace(asked=first.asked or sent)
    wrong = [f for f in first.faults(killed=sent and number == signal.SIGKILL) if "without a word" not in f]
    allowed = {0, 1 if streams != "as usual" else 0, 143 if number != signal.SIGINT else 130, -signal.SIGKILL}
    if first.code not in allowed:
        wrong.append(f"ended with {first.code} after signal {number}")
    what = f"{name}, {streams}, signal {number}"
    return _end_and_compare(what, name, stock, alone, folder, first, wrong)


def kills(rng: random.Random, stock: Stock, folder: Path) -> Tried:
    """SIGKILL at some moments, resumed each time, and in the end the bits of a run that was never stopped."""
    name = rng.choice(sorted(RUNS))
    alone = stock.alone(name)
    at: list[float] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        started = (folder / "run" / "config.json").exists()
        arguments = (
            [RUNS[name][0], "--resume", folder / "run"] if started else [*stock.command(name), "--out", folder / "run"]
        )
        one = Call([*arguments, "--quiet"], folder / "streams")
        delay = rng.uniform(0.0, 1.2)
        one.process.join(delay)
        if one.process.is_alive():
            at.append(round(delay, 2))
        one.signal(signal.SIGKILL)
        first = one.wait()
        wrong = first.faults(killed=True)
        if wrong:
            return Tried(f"{name}, killed at {at}", wrong, first.code)
    return _end_and_compare(f"{name}, killed at {at}", name, stock, alone, folder, None, [])


def _end_and_compare(
    what: str, name: str, stock: Stock, alone: Path, folder: Path, first: Outcome | None, wrong: list[str]
) -> Tried:
    run = folder / "run"
    code = first.code if first is not None else 0
    if not (run / "summary.json").exists():
        started = (run / "config.json").exists()
        arguments = [RUNS[name][0], "--resume", run] if started else [*stock.command(name), "--out", run]
        last = call([*arguments, "--quiet"], folder / "streams", seconds=120)
        wrong = wrong + last.faults() + ([] if last.code == 0 else [f"did not resume: {last.err.strip()[-300:]}"])
        code = last.code
    if not wrong:
        wrong = [f"other {d}" for d in differences(alone, run)] + stray_files(run)
    return Tried(what, wrong, code)


KINDS: dict[str, Callable[[random.Random, Stock, Path], Tried]] = {
    "options": hostile_options,
    "config": spoiled_config,
    "metrics": spoiled_metrics,
    "checkpoint": spoiled_checkpoint,
    "replay": spoiled_replay,
    "summary": spoiled_summary,
    "data": spoiled_data,
    "arrays": spoiled_arrays,
    "model": spoiled_model,
    "environment": hostile_environment,
    "signals": streams_and_signals,
    "kills": kills,
}
