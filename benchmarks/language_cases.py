"""What both sides of the language cases start from: the same model, tokenizer and texts, and the same settings.

A word is a token, so both tokenise every text alike and all sequences have one length: nobody gains by padding less.
Needs torch and transformers alone, which both sides have in the same versions.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = 2002
PROMPT_TOKENS, RESPONSE_TOKENS = 16, 32
WARM_UP_UPDATES = 5

SCRATCH: dict[str, Any] = {"batch_size": 8, "updates": 60, "learning_rate": 1e-5, "lora_rank": 0}
SMOLLM2: dict[str, Any] = {**SCRATCH, "model": "smollm2", "updates": 12, "lora_rank": 16, "learning_rate": 1e-4}
CASES: dict[str, dict[str, Any]] = {
    "dpo_on_the_fly": {**SCRATCH, "algorithm": "dpo", "cached": False},
    "dpo_cached": {**SCRATCH, "algorithm": "dpo", "cached": True},
    "dpo_cached_bf16": {**SCRATCH, "algorithm": "dpo", "cached": True, "precision": "bfloat16"},
    "sft": {**SCRATCH, "algorithm": "sft", "batch_size": 16, "learning_rate": 1e-4},
    "sft_bf16": {**SCRATCH, "algorithm": "sft", "batch_size": 16, "learning_rate": 1e-4, "precision": "bfloat16"},
    "smollm2_dpo_on_the_fly": {**SMOLLM2, "algorithm": "dpo", "cached": False},
    "smollm2_dpo_cached": {**SMOLLM2, "algorithm": "dpo", "cached": True},
}
LORA_ALPHA = 32.0
KL_COEF = 0.1
MAX_GRADIENT_NORM = 1.0
ADAM_BETA2 = 0.999

# Words that are one token each, with the space before them, in the vocabularies that descend from GPT-2's.
COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "was",
    "on",
    "are",
    "with",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
    "people",
    "my",
    "made",
    "over",
    "did",
    "down",
    "only",
    "way",
    "find",
    "use",
    "may",
    "water",
    "long",
    "little",
    "very",
    "after",
    "words",
    "called",
    "just",
    "where",
    "most",
    "know",
]


def unit(case: dict[str, Any]) -> str:
    """What is counted per second."""
    return "pairs" if case["algorithm"] == "dpo" else "tokens"


def units_per_update(case: dict[str, Any]) -> int:
    """Pairs, or tokens of prompts and responses."""
    return case["batch_size"] * (1 if unit(case) == "pairs" else PROMPT_TOKENS + RESPONSE_TOKENS)


def texts(case: dict[str, Any], count: int, seed: int) -> list[dict[str, str]]:
    """Rows of random words: prompts of 16 tokens, responses of 31 and the end token, which both sides add."""
    rng = random.Random(seed)
    words = COMMON if case.get("model") == "smollm2" else [f"w{i}" for i in range(VOCABULARY - 2)]

    def some(number: int) -> str:
        return " " + " ".join(rng.choice(words) for _ in range(number))

    answers = ("chosen", "rejected") if case["algorithm"] == "dpo" else ("completion",)
    return [
        {"prompt": some(PROMPT_TOKENS), **{name: some(RESPONSE_TOKENS - 1) for name in answers}} for _ in range(count)
    ]


def write_texts(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def word_tokenizer(*, end_is_padding: bool = False) -> Any:
    """A word, a token: 2000 words, an end token and a padding token."""
    import tokenizers
    import transformers

    names = ["<end>", "<pad>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<end>", pad_token="<end>" if end_is_padding else "<pad>"
    )


def scratch_model(tokenizer: Any, *, seed: int = 0, scale: float = 1.0) -> Any:
    """A Llama of 4.4 million parameters: 4 layers, width 256, head apart from the embedding."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    return model


def save_scratch(folder: Path, *, seed: int = 0, scale: float = 1.0, end_is_padding: bool = False) -> Path:
    """The model and its tokenizer as a folder that both sides load."""
    tokenizer = word_tokenizer(end_is_padding=end_is_padding)
    scratch_model(tokenizer, seed=seed, scale=scale).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare(case: dict[str, Any], updates: int, seed: int, smollm2: str | None) -> tuple[Path, Path]:
    """The folder of the case's model and the file of its texts, in the folder that the process runs in."""
    rows = texts(case, (WARM_UP_UPDATES + updates) * case["batch_size"], seed)
    data = Path("texts.jsonl").resolve()
    write_texts(data, rows)
    if case.get("model") == "smollm2":
        if smollm2 is None:
            raise SystemExit("set SMOLLM2 to the folder of SmolLM2-135M-Instruct; benchmarks/run.py does")
        return Path(smollm2), data
    return save_scratch(Path("model").resolve()), data


class Clock:
    """Wall and processor seconds at the end of every update."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def update_done(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def figures(self, case: dict[str, Any], updates: int) -> dict[str, Any]:
        """Of the updates after the warm-up. Processor seconds suffer less from what else the machine does."""
        assert len(self.wall) == WARM_UP_UPDATES + updates, "another number of updates than planned"
        seconds, cpu = (x[-1] - x[WARM_UP_UPDATES - 1] for x in (self.wall, self.cpu))
        total = updates * units_per_update(case)
        return {"updates": updates, "seconds": seconds, "cpu_seconds": cpu, "per_second": total / seconds,
                "per_cpu_second": total / cpu}  # fmt: skip


def peak_memory_mb() -> float:
    """The largest resident set that this process has had, libraries and all."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
