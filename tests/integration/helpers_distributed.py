"""What each trainer comes to after some updates: here in one process, and as a script in all that torchrun starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers_language import demonstrations, preferences, shout, tiny
from steepest.cli.main import main
from steepest.errors import SteepestError, UsageError
from steepest.files.tensors import save_tensors
from steepest.language.data.datasets import load_preferences, load_prompts, load_sft
from steepest.language.models.language_model import LanguageModel
from steepest.language.parallel import processes
from steepest.language.training.dpo import DPO, DPOConfig
from steepest.language.training.reward_model import RewardModelConfig, RewardTrainer, reward_head
from steepest.language.training.rlhf import GRPO, RLOO, GRPOConfig, RLOOConfig, TokenPPO, TokenPPOConfig
from steepest.language.training.sft import SFT, SFTConfig
from steepest.language.training.trainer import Trainer
from steepest.runs.language_run import LanguageRun
from steepest.runs.loops.language import LanguageTraining
from steepest.runs.view.progress import Progress

SHARED: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "max_length": 64}
DRAWN: dict[str, Any] = {**SHARED, "batch_size": 8, "max_new_tokens": 6, "kl_coef": 0.2, "missing_eos_penalty": 0.1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # The last of the batches has one row, and leaves a process nothing to do.
    "sft": ("sft", {**SHARED, "weight_decay": 0.1, "epochs": 2}),
    "sft packed": ("sft", {**SHARED, "packing": True, "max_length": 40, "batch_size": 2, "epochs": 2}),
    "sft adapters": ("sft", {**SHARED, "lora_rank": 4, "precision": "float32"}),
    "dpo": ("dpo", {**SHARED, "sft_coef": 0.1}),
    "dpo adapters": ("dpo", {**SHARED, "lora_rank": 4}),
    "dpo on the fly": ("dpo", {**SHARED, "reference": "on_the_fly"}),
    "reward": ("reward", SHARED),
    "ppo": ("ppo", {**DRAWN, "update_epochs": 2, "minibatches": 2, "target_kl": 0.01, "scale_rewards": True}),
    "rloo": ("rloo", {**DRAWN, "group_size": 4, "scale_rewards": True}),
    "grpo": ("grpo", {**DRAWN, "group_size": 4, "update_epochs": 2, "lora_rank": 4}),
}
SHARDED = ("sft", "sft packed", "dpo")
"""Cases that are also run with the model spread over the processes."""


def double(lm: LanguageModel) -> LanguageModel:
    lm.model.double()
    return lm


def make(case: str, **more: Any) -> Trainer[Any]:
    """The trainer of a case, in float64."""
    algorithm, options = CASES[case]
    options = {**options, **more}
    lm = double(tiny(scale=1.0, seed=1))
    if algorithm == "sft":
        examples = load_sft(lm, demonstrations(13))[0]
        made: Trainer[Any] = SFT(lm, SFTConfig(**options), examples, eval_data=examples[:3], seed=5)
    elif algorithm in ("dpo", "reward"):
        pairs = load_preferences(lm, preferences(9))[0]
        if algorithm == "dpo":
            made = DPO(lm, DPOConfig(**options), pairs, eval_data=pairs[:3], seed=5)
        else:
            head = reward_head(32, seed=3).double()
            made = RewardTrainer(lm, RewardModelConfig(**options), pairs, eval_data=pairs[:3], head=head, seed=5)
    else:
        kind, config = {"ppo": (TokenPPO, TokenPPOConfig), "rloo": (RLOO, RLOOConfig), "grpo": (GRPO, GRPOConfig)}[
            algorithm
        ]
        prompts = load_prompts(lm, demonstrations(24 // options.get("group_size", 1)))[0]
        head = {"head": reward_head(32, seed=3).double()} if algorithm == "ppo" else {}
        made = kind(lm, config(**options), prompts, shout, eval_data=prompts[:3], seed=5, **head)
    double(made.lm)
    return made


def outcome(made: Trainer[Any]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """All that training changes, and all figures, after the last update."""
    figures: dict[str, float] = {}
    while not made.done:
        figures |= {f"{made.step} {name}": value for name, value in made.update().items()}
    figures |= made.evaluate()
    return made.tensors(), figures


def mean_of_means() -> dict[str, torch.Tensor]:
    """SFT as it would be if each process divided by its own tokens, and gradients were averaged."""
    made, total = make("sft"), processes.total
    processes.total = lambda own: max(1, own * processes.world_size())
    try:
        while not made.done:
            made.update()
    finally:
        processes.total = total
    return made.tensors()


# What the processes do together, in this order. Each function is called by all of them.


def train_every_case(out: Path) -> None:
    found = {case: outcome(make(case)) for case in CASES}
    for case in SHARDED:
        trainer = make(case, gradient_checkpointing=case == "dpo")
        trainer.shard(torch.device("cpu"), print)
        found[f"{case} sharded"] = outcome(trainer)
    found["sft mean of means"] = mean_of_means(), {}
    for name, (tensors, figures) in found.items():
        tensors = {key: value.clone() for key, value in tensors.items()}
        save_tensors(out / f"{name} {processes.rank()}.safetensors", tensors, {"figures": figures})


def arguments(model: Path, data: Path, out: Path, *flags: str) -> list[str]:
    options = ["--epochs", "2", "--batch-size", "4", "--micro-batch-size", "2", "--learning-rate", "3e-3"]
    more = ["--threads", "1", "--max-length", "64", "--eval-fraction", "0.2", "--checkpoint-every", "4"]
    return ["sft", str(model), str(data), "--out", str(out), "--no-tensorboard", *options, *more, *flags]


def stop_at(step: int, command: list[str]) -> int:
    """The command, of which the last process alone is told to end after a step."""
    update = Progress.update

    def end(self: Progress, row: Mapping[str, Any]) -> None:
        update(self, row)
        if row["step"] == step and processes.rank() == processes.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Progress.update = end
    try:
        return main(command)
    finally:
        Progress.update = update


def run_stop_and_resume(out: Path) -> dict[str, Any]:
    """Runs by the command: whole, and stopped and resumed; of a model on each process, and of one spread over them."""
    model, data = out / "model", out / "films.jsonl"
    codes: dict[str, Any] = {}
    for name, flags in (("copies", []), ("sharded", ["--fsdp"])):
        codes[name] = main(arguments(model, data, out / name, *flags))
        stopped = out / f"{name}-stopped"
        codes[f"{name}-stopped"] = stop_at(6, arguments(model, data, stopped, *flags))
        if processes.is_main():
            shutil.copytree(stopped, out / f"{name}-unfinished")
        processes.decided(None)
        codes[f"{name}-resumed"] = main(["sft", "--resume", str(stopped)])
    return codes


def refusals(out: Path) -> dict[str, str]:
    """What is said to what cannot work."""
    model, rows = out / "model", demonstrations(8 + processes.rank())
    asked: dict[str, tuple[Any, ...]] = {
        "data": ("sft", rows, {}),
        "batch": ("sft", rows[:8], {"batch_size": 5}),
        "algorithm": ("reward", preferences(8), {"fsdp": True}),
        "adapters": ("sft", rows[:8], {"fsdp": True, "lora_rank": 2}),
        "reference": ("dpo", preferences(8), {"fsdp": True, "reference": "on_the_fly"}),
        "groups": ("rloo", rows[:8], {"batch_size": 12, "max_new_tokens": 4, "reward": shout}),
    }
    said: dict[str, str] = {}
    for name, (algorithm, data, options) in asked.items():
        try:
            LanguageRun(algorithm, model, data, **{"batch_size": 4, **options})
        except UsageError as error:
            said[name] = str(error)
    return said


def failures(out: Path) -> dict[str, str]:
    """What is raised here, of what goes wrong in the last process alone; and that all then go on together."""
    model, films, last = out / "model", out / "films.jsonl", processes.rank() == processes.world_size() - 1

    def failing(prompts: list[str], completions: list[str]) -> list[float]:
        return [float("nan") if last else 0.0 for _ in completions]

    def unwritten(self: LanguageTraining, metadata: dict[str, Any]) -> None:
        raise OSError("no space left")

    prompts = {"batch_size": 8, "max_new_tokens": 4}
    asked: dict[str, tuple[Any, ...]] = {
        "file": ("sft", model, out / "absent.jsonl" if last else films, {}),
        "option": ("sft", model, films, {"epochs": 0 if last else 1}),
        "model": ("sft", out / "absent" if last else model, films, {}),
        "reward": ("rloo", model, films, {**prompts, "reward": failing}),
        "bug": ("sft", model, films, {"eval_every": 1, "eval_fraction": 0.2}),
        "none": ("sft", model, films, {"max_steps": 2}),
    }
    said: dict[str, str] = {}
    kept = LanguageTraining.act_on_evaluation
    for name, (algorithm, base, data, options) in asked.items():
        if name == "bug" and last:
            LanguageTraining.act_on_evaluation = unwritten
        try:
            with LanguageRun(algorithm, base, data, **{"batch_size": 4, "max_length": 64, **options}) as run:
                said[name] = f"{len(list(run))} updates"
        except (SteepestError, OSError) as error:
            said[name] = f"{type(error).__name__}: {error}"
        LanguageTraining.act_on_evaluation = kept
    return said


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    processes.join()
    train_every_case(place)
    report = {"codes": run_stop_and_resume(place), "refusals": refusals(place), "failures": failures(place)}
    (place / f"report {processes.rank()}.json").write_text(json.dumps(report))
