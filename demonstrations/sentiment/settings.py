"""What the two variants are, which methods are compared, and what all of it costs before anything has run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROMPT_TOKENS, RESPONSE_TOKENS = 8, 24
LENGTH = PROMPT_TOKENS + RESPONSE_TOKENS
FRACTIONS = (0.1, 0.2, 0.5, 1.0)
"""A method is measured after these shares of its training."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One size of the experiment."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int = 4096
    lm_reviews: int
    """Reviews that the language model and its tokenizer learn from."""
    judge_reviews: int
    """Reviews that each of the two classifiers learns from; they share none."""
    lm_steps: int
    """Updates of the language model, of LM_OPTIONS' batch size."""
    prompts: int
    """Prompts to learn from; four responses to each are sampled, and make two pairs."""
    held_out: int
    """Prompts that every policy is measured on."""
    best_of: int
    """Responses to each of them that best-of-n chooses from."""
    rl_responses: int
    """Responses that PPO and RLOO learn from."""
    seeds: tuple[int, ...]


FULL = Variant(
    name="full",
    layers=4,
    width=192,
    heads=6,
    lm_reviews=14_000,
    judge_reviews=4_000,
    lm_steps=1_000,
    prompts=3_000,
    held_out=256,
    best_of=64,
    rl_responses=4_608,
    seeds=(0, 1, 2),
)
QUICK = Variant(
    name="quick",
    layers=2,
    width=128,
    heads=4,
    lm_reviews=8_000,
    judge_reviews=4_000,
    lm_steps=600,
    prompts=1_500,
    held_out=256,
    best_of=32,
    rl_responses=2_560,
    seeds=(0,),
)
VARIANTS = {v.name: v for v in (FULL, QUICK)}

DRAWN, SAMPLES = 8, 4
"""Responses sampled to each prompt; and how many of them are used, since some cannot be given as texts."""

# A model of a few million weights takes learning rates a hundred times those of large ones, which are the defaults.
LM_TEXT_LENGTH = 128
LM_OPTIONS: dict[str, Any] = {
    "batch_size": 64,
    "micro_batch_size": 32,
    "max_length": LM_TEXT_LENGTH,
    "learning_rate": 2e-3,
    "adam_beta2": 0.98,
    "weight_decay": 0.1,
    "epochs": 100,  # lm_steps ends it
}
# One pass over the pairs learns too little of them. In a pilot on one seed's pairs, the best of 64 responses by the
# reward model had a true reward of 0.35 after one pass, 0.66 after two and 0.69 after three, the last overconfident.
REWARD_OPTIONS: dict[str, Any] = {
    "batch_size": 32,
    "micro_batch_size": 32,
    "learning_rate": 3e-4,
    "epochs": 2,
    "eval_fraction": 0.1,
}
PAIR_OPTIONS: dict[str, Any] = {"batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-4}
PPO_OPTIONS: dict[str, Any] = {
    "batch_size": 128,
    "micro_batch_size": 32,
    "generation_batch_size": 128,
    "max_new_tokens": RESPONSE_TOKENS,
    "update_epochs": 2,
    "minibatches": 4,
    "learning_rate": 2e-4,
    "epochs": 100,  # rl_responses ends it
}
RLOO_OPTIONS: dict[str, Any] = {
    "batch_size": 64,
    "group_size": 4,
    "micro_batch_size": 32,
    "generation_batch_size": 64,
    "max_new_tokens": RESPONSE_TOKENS,
    "learning_rate": 2e-4,
    "epochs": 100,
}


@dataclass(frozen=True)
class Method:
    """One way to learn from the judgements."""

    name: str
    family: str
    """What it is called in the picture; methods of one family differ in kl_coef."""
    algorithm: str
    reward: str = ""
    """Where scores come from: "learned" or "true"; none where it learns from pairs."""
    kl_coef: float | None = None

    def options(self, variant: Variant) -> dict[str, Any]:
        """Options of its run."""
        kl = {} if self.kl_coef is None else {"kl_coef": self.kl_coef}
        if self.algorithm == "sft":
            return {**PAIR_OPTIONS, "max_length": LENGTH}
        if self.algorithm == "dpo":
            return {**PAIR_OPTIONS, "max_length": LENGTH, **kl}
        rl = PPO_OPTIONS if self.algorithm == "ppo" else RLOO_OPTIONS
        return {**rl, "max_length": LENGTH, "max_steps": variant.rl_responses // rl["batch_size"], **kl}


METHODS = (
    Method("dpo-0.05", "DPO", "dpo", kl_coef=0.05),
    Method("dpo-0.2", "DPO", "dpo", kl_coef=0.2),
    Method("dpo-1", "DPO", "dpo", kl_coef=1.0),
    Method("ppo-learned-0.05", "PPO, learned reward", "ppo", "learned", 0.05),
    Method("ppo-learned-0.2", "PPO, learned reward", "ppo", "learned", 0.2),
    Method("ppo-true-0.05", "PPO, true reward", "ppo", "true", 0.05),
    Method("ppo-true-0.2", "PPO, true reward", "ppo", "true", 0.2),
    Method("rloo-learned-0.05", "RLOO, learned reward", "rloo", "learned", 0.05),
    Method("preferred-sft", "Preferred-SFT", "sft"),
)

# ---------------------------------------------------------------------------------------------------------------------
# What it costs
# ---------------------------------------------------------------------------------------------------------------------

FLOPS_PER_SECOND = 50e9
"""Of one core in float32, all that is not a product of matrices included."""


def parameters(variant: Variant) -> int:
    """Weights that every token is multiplied by; the embedding counts once, as the head."""
    hidden = variant.width * 8 // 3
    block = 4 * variant.width**2 + 3 * variant.width * hidden
    return variant.vocabulary * variant.width + variant.layers * block


def budget(variant: Variant) -> dict[str, float]:
    """Core-seconds of every stage: 2 FLOPs a weight and token forward, 4 more backward, at FLOPS_PER_SECOND.

    Texts of the language model are taken to fill three quarters of their length.
    """
    forward = 2 * parameters(variant) / FLOPS_PER_SECOND  # seconds a token
    training = 3 * forward
    pairs, seeds = 2 * variant.prompts, len(variant.seeds)
    judged = REWARD_OPTIONS["epochs"] * pairs * 2
    # Sampling, policy and reference over the batch, the reward model, and the passes that learn.
    ppo = RESPONSE_TOKENS * forward + 3 * LENGTH * forward + PPO_OPTIONS["update_epochs"] * LENGTH * training
    rloo = RESPONSE_TOKENS * forward + 3 * LENGTH * forward + LENGTH * training
    dpo = 2 * LENGTH * (training + forward)
    measured = variant.held_out * (RESPONSE_TOKENS + 3 * LENGTH) * forward
    count = {a: sum(m.algorithm == a for m in METHODS) for a in ("dpo", "ppo", "rloo", "sft")}
    return {
        "language model": variant.lm_steps * LM_OPTIONS["batch_size"] * 0.75 * LM_TEXT_LENGTH * training,
        "samples": (DRAWN * variant.prompts + variant.best_of * variant.held_out) * RESPONSE_TOKENS * forward,
        "reward models": seeds * (judged * training + variant.best_of * variant.held_out * forward) * LENGTH,
        "DPO": seeds * count["dpo"] * pairs * dpo,
        "PPO": seeds * count["ppo"] * variant.rl_responses * ppo,
        "RLOO": seeds * count["rloo"] * variant.rl_responses * rloo,
        "Preferred-SFT": seeds * count["sft"] * pairs * LENGTH * training,
        "measuring": seeds * len(METHODS) * len(FRACTIONS) * measured,
    }
