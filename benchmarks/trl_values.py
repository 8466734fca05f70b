"""The same losses and gradients as TRL, on the same model and the same texts: ``python benchmarks/trl_values.py``.

Both sides load the same folders, tokenise the same texts themselves, and compute the loss of one batch of 8 rows of
unequal lengths and its gradient in all parameters; each writes them to a file. Where TRL defines a loss differently,
ours is computed in TRL's way too, so that the difference is explained to the last digits and not only stated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import language_cases as shared

HERE = Path(__file__).resolve().parent
BETA, FLIP, SFT_COEF, CENTRING = 0.1, 0.1, 0.5, 0.01
SCORE_HEAD = {"head.weight": "score.weight"}  # TRL's name of it; TRL's has no bias

# Name -> options of TRL's DPOConfig.
TRL_LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["sigmoid"]},
    "hinge": {"loss_type": ["hinge"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": FLIP},
    "length_normalized": {"loss_type": ["sigmoid_norm"]},
    "ipo": {"loss_type": ["ipo"]},
    "smoothed": {"loss_type": ["sigmoid"], "label_smoothing": FLIP},
    "dpo_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, SFT_COEF]},
}

# Name of a comparison -> (our side, TRL's side, what it shows).
COMPARISONS: list[tuple[str, str, str, str]] = [
    ("DPO", "dpo", "dpo", "same definition"),
    ("hinge", "hinge", "hinge", "same definition"),
    ("robust", "robust", "robust", "same definition"),
    ("length-normalised", "length_normalized", "length_normalized", "same definition"),
    ("IPO", "ipo", "ipo", "differs: TRL averages log-ratios over tokens, the paper (and ours) sums them"),
    ("IPO, means over tokens", "ipo_means", "ipo", "ours on TRL's means"),
    ("cDPO", "smoothed", "smoothed", "differs: TRL ignores label_smoothing for its loss 'sigmoid'"),
    ("cDPO, unsmoothed", "dpo", "smoothed", "our DPO without smoothing is what TRL computes"),
    ("DPO + SFT term", "dpo_sft", "dpo_sft", "differs: TRL averages over the batch's tokens, ours over responses"),
    ("DPO + SFT term, over tokens", "dpo_sft_tokens", "dpo_sft", "ours averaged in TRL's way"),
    ("SFT", "sft", "sft", "same definition"),
    ("reward model", "reward", "reward", "same definition"),
    ("reward model, centred", "reward_centred", "reward_centred", "same definition"),
    ("scores where padding is the end token", "scores", "scores", "differs: TRL reads before the end token"),
    ("the same without the end token", "scores_before_the_end", "scores", "ours on texts cut before it"),
]


def write_inputs(folder: Path) -> None:
    """Models (a policy, a reference near it, and the policy with the end token as padding), a head, and texts."""
    import torch
    from safetensors.torch import save_file

    for name, end_is_padding in (("policy", False), ("reference", False), ("end_is_padding", True)):
        shared.save_scratch(folder / name, scale=3.0, end_is_padding=end_is_padding)
    weights = folder / "reference" / "model.safetensors"
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(1)
    near = {k: v * (1 + 0.02 * torch.randn(v.shape, generator=generator)) for k, v in load_file(weights).items()}
    save_file(near, weights, {"format": "pt"})
    save_file({"weight": 0.05 * torch.randn((1, 256), generator=generator)}, folder / "head.safetensors")
    rng = random.Random(0)

    def some(low: int, high: int) -> str:
        return " " + " ".join(f"w{rng.randrange(2000)}" for _ in range(rng.randint(low, high)))

    pairs = [{"prompt": some(8, 16), "chosen": some(4, 32), "rejected": some(4, 32)} for _ in range(8)]
    shared.write_texts(folder / "pairs.jsonl", pairs)
    shared.write_texts(folder / "demos.jsonl", [{"prompt": p["prompt"], "completion": p["chosen"]} for p in pairs])


# ---------------------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------------------


def ours(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from steepest import losses
    from steepest.language import DPOConfig, RewardModelConfig, SFTConfig, load_model, load_preferences, load_sft
    from steepest.language.scoring.pairs import joined
    from steepest.language.scoring.reference import Reference
    from steepest.language.training.dpo import DPO
    from steepest.language.training.reward_model import RewardTrainer
    from steepest.language.training.sft import SFT

    found: dict[str, Any] = {}
    common: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 8}

    def keep(name: str, trainer: Any, loss: float) -> None:
        found[f"{name}/loss"] = torch.tensor(loss)
        for parameter, p in trainer.named.items():
            if p.grad is not None:
                found[f"{name}/grad/{SCORE_HEAD.get(parameter, parameter)}"] = p.grad.clone()

    def whole(name: str, trainer: Any) -> None:
        figures, _ = trainer.gradient(trainer.micro_batches(0))
        keep(name, trainer, figures["loss"])

    def dpo(**options: Any) -> DPO:
        lm, ref = load_model(folder / "policy", device="cpu"), load_model(folder / "reference", device="cpu")
        pairs, _ = load_preferences(lm, str(folder / "pairs.jsonl"))
        config = DPOConfig(kl_coef=BETA, flip_probability=FLIP, reference="on_the_fly", **common, **options)
        return DPO(lm, config, pairs, reference=Reference(ref, adapters_are_fresh=False))

    for name in ("dpo", "hinge", "robust", "length_normalized", "ipo", "smoothed"):
        whole(name, dpo(loss=name))
    whole("dpo_sft", dpo(sft_coef=SFT_COEF))

    # In TRL's way.
    for name in ("ipo_means", "dpo_sft_tokens"):
        trainer = dpo()
        (batch,) = trainer.micro_batches(0)
        ref = trainer.reference_log_probs(batch.pairs)
        now = trainer.policy_log_probs(batch.pairs)
        lengths = [side.response_mask.sum(-1) for side in batch.pairs]
        if name == "ipo_means":
            means = [x / n for pair in (now, ref) for x, n in zip(pair, lengths, strict=True)]
            loss = losses.ipo_loss(*means, BETA).mean()
        else:
            loss = losses.dpo_loss(*now, *ref, BETA).mean() - SFT_COEF * now[0].sum() / lengths[0].sum()
        loss.backward()
        keep(name, trainer, float(loss.detach()))

    lm = load_model(folder / "policy", device="cpu")
    examples, _ = load_sft(lm, str(folder / "demos.jsonl"))
    whole("sft", SFT(lm, SFTConfig(**common), examples))

    def reward(model: str, coef: float, **options: Any) -> RewardTrainer:
        lm = load_model(folder / model, device="cpu")
        head = nn.Linear(256, 1)
        with torch.no_grad():
            head.weight.copy_(load_file(folder / "head.safetensors")["weight"])
            head.bias.zero_()
        pairs, _ = load_preferences(lm, str(folder / "pairs.jsonl"))
        return RewardTrainer(lm, RewardModelConfig(centring_coef=coef, **common), pairs, head=head, **options)

    whole("reward", reward("policy", 0.0))
    whole("reward_centred", reward("policy", CENTRING))
    trainer = reward("end_is_padding", 0.0)
    pairs = trainer.pairs  # in the order of the file, as TRL's
    for name, cut in (("scores", 0), ("scores_before_the_end", 1)):
        from steepest.language.data.batching import pad_pairs

        shorter = [p._replace(chosen=p.chosen[: len(p.chosen) - cut], rejected=p.rejected[: len(p.rejected) - cut])
                   for p in pairs]  # fmt: skip
        with torch.no_grad():
            found[f"{name}/values"] = trainer.model.scores(joined(pad_pairs(shorter, trainer.lm.pad_token)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# TRL
# ---------------------------------------------------------------------------------------------------------------------


def theirs(folder: Path) -> dict[str, Any]:
    import datasets
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    found: dict[str, Any] = {}
    common: dict[str, Any] = {
        "output_dir": str(folder / "trained"), "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8, "max_length": None,
        "dataloader_pin_memory": False,
    }  # fmt: skip

    def load(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)

    def rows(name: str) -> Any:
        return datasets.load_dataset("json", data_files=str(folder / name), split="train", cache_dir=str(folder / "hf"))

    def inputs(trainer: Any) -> Any:
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        return trainer._prepare_inputs(batch)

    def keep(name: str, trainer: Any) -> None:
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, inputs(trainer))
        loss.backward()
        found[f"{name}/loss"] = loss.detach()
        for parameter, p in trainer.model.named_parameters():
            if p.grad is not None:
                found[f"{name}/grad/{parameter}"] = p.grad.clone()

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    for name, options in TRL_LOSSES.items():
        config = DPOConfig(beta=BETA, **common, **options)
        keep(name, DPOTrainer(load("policy"), load("reference"), args=config, train_dataset=rows("pairs.jsonl"),
                              processing_class=tokenizer))  # fmt: skip
    config = SFTConfig(completion_only_loss=True, **common)
    keep("sft", SFTTrainer(load("policy"), args=config, train_dataset=rows("demos.jsonl"), processing_class=tokenizer))

    def reward(model: str, coef: float | None) -> Any:
        made = AutoModelForSequenceClassification.from_pretrained(folder / model, num_labels=1, dtype=torch.float32)
        with torch.no_grad():
            made.score.weight.copy_(load_file(folder / "head.safetensors")["weight"])
        config = RewardConfig(center_rewards_coefficient=coef, **common)
        own = AutoTokenizer.from_pretrained(folder / model)
        return RewardTrainer(made, args=config, train_dataset=rows("pairs.jsonl"), processing_class=own)

    keep("reward", reward("policy", None))
    keep("reward_centred", reward("policy", CENTRING))
    trainer = reward("end_is_padding", None)
    with torch.no_grad():
        found["scores/values"] = trainer.model(**inputs(trainer), use_cache=False).logits.squeeze(-1)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Side by side
# ---------------------------------------------------------------------------------------------------------------------


def compare(mine: dict[str, Any], peer: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for title, our_name, trl_name, shows in COMPARISONS:
        row: dict[str, Any] = {"what": title, "shows": shows}
        if f"{trl_name}/values" in peer:
            a, b = mine[f"{our_name}/values"], peer[f"{trl_name}/values"]
            row |= {"ours": float(a.mean()), "trl": float(b.mean()), "difference": float((a - b).abs().max())}
        else:
            a, b = float(mine[f"{our_name}/loss"]), float(peer[f"{trl_name}/loss"])
            slopes = {k.split("/grad/")[1]: v for k, v in mine.items() if k.startswith(f"{our_name}/grad/")}
            others = {k.split("/grad/")[1]: v for k, v in peer.items() if k.startswith(f"{trl_name}/grad/")}
            named = set(slopes) - {"head.bias"}
            if named != set(others):
                raise SystemExit(f"{title}: gradients of different parameters: {sorted(named ^ set(others))[:4]}")
            largest = max(float(v.abs().max()) for v in others.values())
            worst = max(float((slopes[name] - others[name]).abs().max()) for name in named)
            row |= {"ours": a, "trl": b, "difference": abs(a - b), "largest_gradient": largest,
                    "gradient_difference": worst}  # fmt: skip
        out.append(row)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | ours | TRL | difference | gradient: largest difference / largest | |", "|---|---|---|---|---|---|"]
    for row in rows:
        slope = f"{row['gradient_difference'] / row['largest_gradient']:.1e}" if "gradient_difference" in row else ""
        cells = (row["what"], f"{row['ours']:.7f}", f"{row['trl']:.7f}", f"{row['difference']:.1e}", slope)
        lines.append("| " + " | ".join((*cells, row["shows"])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-side", type=Path, metavar="FOLDER", help="compute TRL's part, within its environment")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if args.trl_side:
        from safetensors.torch import save_file

        save_file(theirs(args.trl_side), args.trl_side / "trl.safetensors")
        return

    from safetensors.torch import load_file

    from run import interpreter, machine, packages

    python = interpreter("trl")
    described = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        mine = ours(folder)
        subprocess.run([python, HERE / "trl_values.py", "--trl-side", folder], check=True, stdout=subprocess.DEVNULL)
        rows = compare(mine, load_file(folder / "trl.safetensors"))
    print(table(rows))
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": described,
        "packages": {"ours": packages(Path(sys.executable)), "trl": packages(python)},
        "settings": {
            "beta": BETA,
            "label_smoothing": FLIP,
            "sft_coef": SFT_COEF,
            "centring": CENTRING,
            "dtype": "float32",
        },
        "rows": rows,
    }
    path = HERE / "results" / "trl-values.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
