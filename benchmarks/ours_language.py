"""Our side of the language cases, through the public API: a run is iterated over, as a user would.

The first updates are timed apart. Nothing is evaluated, logged or saved meanwhile.
"""

from __future__ import annotations

import os
import time
from typing import Any

import language_cases as shared
from timing import arguments, limit_threads, report

RLHF_UPDATES = 12


def train(case: dict[str, Any], updates: int, seed: int, threads: int) -> dict[str, Any]:
    from steepest.runs.language_run import LanguageRun

    model, data = shared.prepare(case, updates, seed, os.environ.get("SMOLLM2"))
    start = time.perf_counter()
    settings = {
        "batch_size": case["batch_size"],
        "micro_batch_size": case["batch_size"],
        "learning_rate": case["learning_rate"],
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "adam_beta2": shared.ADAM_BETA2,
        "max_gradient_norm": shared.MAX_GRADIENT_NORM,
        "precision": case.get("precision", "float32"),
        "lora_rank": case["lora_rank"],
        "lora_alpha": shared.LORA_ALPHA,
        "max_steps": shared.WARM_UP_UPDATES + updates,
    }
    if case["algorithm"] == "dpo":
        settings |= {"kl_coef": shared.KL_COEF, "reference": "precomputed" if case["cached"] else "on_the_fly"}
    run = LanguageRun(
        case["algorithm"], str(model), str(data), seed=seed, threads=threads, device="cpu",
        eval_every=0, checkpoint_every=0, **settings,
    )  # fmt: skip
    prepared, before = time.perf_counter(), time.process_time()
    run.trainer.micro_batches(0)  # computes the reference's log-probabilities where they are cached
    precomputed, after = time.perf_counter(), time.process_time()
    clock = shared.Clock()
    losses: list[float] = []
    for row in run:
        clock.update_done()
        losses.append(row["train/loss"])
    return {
        **clock.figures(case, updates),
        "setup_seconds": prepared - start,
        "precompute_seconds": precomputed - prepared if case.get("cached") else None,
        "precompute_cpu_seconds": after - before if case.get("cached") else None,
        "peak_memory_mb": shared.peak_memory_mb(),
        "first_loss": losses[0],
        "final_loss": sum(losses[-10:]) / len(losses[-10:]),
    }


def iterate_rlhf(updates: int, seed: int) -> dict[str, Any]:
    """PPO on 64 responses of 32 tokens to prompts of 16: seconds of an iteration's three parts."""
    import torch

    from steepest.language import TokenPPOConfig, load_model, load_prompts
    from steepest.language.training.rlhf import TokenPPO
    from steepest.learner.memory import keep_freed_memory

    keep_freed_memory()  # as every run does
    case = {**shared.SCRATCH, "algorithm": "sft"}
    model, data = shared.prepare(case, updates + 1, seed, None)
    lm = load_model(model)
    prompts, _ = load_prompts(lm, str(data))
    config = TokenPPOConfig(
        batch_size=64,
        micro_batch_size=16,
        generation_batch_size=64,
        max_new_tokens=shared.RESPONSE_TOKENS,
        update_epochs=4,
        minibatches=4,
        learning_rate=1e-5,
        max_steps=updates + 1,
    )

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        return [text.count("1") / 32.0 for text in completions]

    trainer = TokenPPO(lm, config, prompts, score, seed=seed)
    parts = {"generation": 0.0, "scoring": 0.0, "update": 0.0}
    tokens = 0
    for iteration in range(updates + 1):
        began = time.perf_counter()
        drawn = trainer.collect(iteration)
        generated = time.perf_counter()
        experience = trainer.experience(drawn.batch, drawn.score)
        scored = time.perf_counter()
        trainer.improve(drawn.batch, drawn.score)  # scores once more, which is subtracted
        ended = time.perf_counter()
        trainer.step += 1
        if iteration:  # the first warms up
            parts["generation"] += generated - began
            parts["scoring"] += scored - generated
            parts["update"] += (ended - scored) - (scored - generated)
            tokens += int(experience.batch.response_mask.sum())
    seconds = sum(parts.values())
    return {
        "updates": updates,
        "seconds": seconds,
        "per_second": tokens / seconds,
        "seconds_per_iteration": {name: x / updates for name, x in parts.items()},
        "response_tokens": tokens,
        "gradient_steps_per_iteration": config.update_epochs * config.minibatches,
        "peak_memory_mb": shared.peak_memory_mb(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    args = arguments(__doc__, [*sorted(shared.CASES), "rlhf_ppo"])
    limit_threads(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.case == "rlhf_ppo":
        figures = iterate_rlhf(args.total_steps or RLHF_UPDATES, args.seed)
    else:
        case = shared.CASES[args.case]
        figures = train(case, args.total_steps or case["updates"], args.seed, args.threads)

    from importlib.metadata import version

    names = ("steepest", "torch", "transformers", "peft", "numpy")
    figures = {"peer": "steepest", "case": args.case, "threads": args.threads, "seed": args.seed, **figures}
    report(**figures, versions={name: version(name) for name in names})


if __name__ == "__main__":
    main()
