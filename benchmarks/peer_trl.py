"""TRL, timed as its users run it: a trainer's ``train``, on the CPU.

Of its defaults these are changed, since they would slow it down here or make it do something else than we do: no bf16
unless the case asks for it, no gradient checkpointing, no progress bar and no reports, no checkpoints, a constant
learning rate. What remains is its own: the fused AdamW, the fused head, a line of metrics every 10 updates.
"""

from __future__ import annotations

import os
import time
from typing import Any

import language_cases as shared
from timing import arguments, limit_threads, report


def settings(case: dict[str, Any], updates: int, seed: int) -> dict[str, Any]:
    return {
        "output_dir": "trained",
        "per_device_train_batch_size": case["batch_size"],
        "gradient_accumulation_steps": 1,
        "max_steps": updates,
        "learning_rate": case["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta2": shared.ADAM_BETA2,
        "max_grad_norm": shared.MAX_GRADIENT_NORM,
        "bf16": case.get("precision") == "bfloat16",
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "model_init_kwargs": {"dtype": "float32"},
    }


def lora(case: dict[str, Any]) -> Any:
    if not case["lora_rank"]:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=case["lora_rank"], lora_alpha=shared.LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip


def train(case: dict[str, Any], updates: int, seed: int) -> dict[str, Any]:
    import datasets
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    model, data = shared.prepare(case, updates, seed, os.environ.get("SMOLLM2"))
    clock = shared.Clock()
    precompute: list[float] = []
    precompute_cpu: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.update_done()

    class TimedDPOTrainer(DPOTrainer):
        def _precompute_ref_logps(self, *arguments: Any, **more: Any) -> Any:
            began, before = time.perf_counter(), time.process_time()
            found = super()._precompute_ref_logps(*arguments, **more)
            precompute.append(time.perf_counter() - began)
            precompute_cpu.append(time.process_time() - before)
            return found

    start = time.perf_counter()
    planned = settings(case, shared.WARM_UP_UPDATES + updates, seed)
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir="datasets")
    options = {"model": str(model), "train_dataset": rows, "peft_config": lora(case), "callbacks": [Watch()]}
    if case["algorithm"] == "dpo":
        config = DPOConfig(beta=shared.KL_COEF, precompute_ref_log_probs=case["cached"], **planned)
        trainer: Any = TimedDPOTrainer(args=config, **options)
    else:
        trainer = SFTTrainer(args=SFTConfig(completion_only_loss=True, **planned), **options)
    prepared = time.perf_counter()
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        **clock.figures(case, updates),
        "setup_seconds": prepared - start - sum(precompute),
        "precompute_seconds": sum(precompute) if precompute else None,
        "precompute_cpu_seconds": sum(precompute_cpu) if precompute else None,
        "peak_memory_mb": shared.peak_memory_mb(),
        "final_loss": losses[-1] if losses else None,
        "tokens_seen": trainer._total_train_tokens,
    }


def main() -> None:
    args = arguments(__doc__, sorted(shared.CASES))
    limit_threads(args.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    import torch

    torch.set_num_threads(args.threads)
    case = shared.CASES[args.case]
    figures = train(case, args.total_steps or case["updates"], args.seed)

    from importlib.metadata import version

    names = ("trl", "torch", "transformers", "accelerate", "datasets", "peft", "numpy")
    figures = {"peer": "trl", "case": args.case, "threads": args.threads, "seed": args.seed, **figures}
    report(**figures, versions={name: version(name) for name in names})


if __name__ == "__main__":
    main()
