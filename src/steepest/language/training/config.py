"""Settings that every trainer of language models has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from steepest.errors import require
from steepest.fields import Checked, Count, NonNegative, PartialShare, Positive, Whole
from steepest.language.data.rows import named_columns

if TYPE_CHECKING:
    from steepest.language.models.language_model import LanguageModel

DEFAULT_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """Settings that every language trainer has."""

    learning_rates: ClassVar[tuple[float, float]] = (2e-5, 2e-4)
    """Default learning rates: for all of a model, and for adapters."""
    has_dropout: ClassVar[bool] = False
    """True where dropout is on in training."""

    epochs: Count = 1
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many updates, where the epochs would make more."""
    batch_size: Count = 16
    """Sequences (packed rows, pairs) per update."""
    micro_batch_size: Count = 8
    """Sequences (packed rows, pairs) in a process's memory at once; changes nothing but speed and memory."""
    max_length: int | None = None
    """Longest sequence in tokens, prompt and response; by default the model's context, and at most 1024."""
    learning_rate: float | None = None
    """AdamW's step size. By default, of a whole model: 2e-5 (SFT), 1e-5 (reward model, RLHF) or 1e-6 (DPO); of
    adapters ten times as much."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay of the learning rate after the warm-up: constant, or linear or cosine to 0."""
    warmup: float = 0.05
    """Fraction of the updates over which the learning rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay, of weight matrices alone."""
    adam_beta2: PartialShare = 0.999
    """AdamW's memory of squared gradients."""
    max_gradient_norm: Positive = 1.0
    """The gradient is scaled down to this norm if it is longer."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the layers (autocast); weights, logits and optimiser stay in float32."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping what is in them: less memory, a third more time."""
    lora_rank: Whole = 0
    """Train adapters of this rank (LoRA) and freeze the model; 0 trains all of the model."""
    lora_alpha: Positive = 32.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: PartialShare = 0.0
    """Dropout before the adapters, in SFT only: everywhere else dropout is off."""
    eval_fraction: float = 0.0
    """Hold out this fraction of the prompts, with all their rows, where no evaluation data is given."""
    drop_bad_rows: bool = False
    """Leave out rows that cannot be used, and count them, instead of refusing the dataset."""
    columns: tuple[str, ...] = ()
    """Columns of the data that have other names, as OURS=THEIRS: prompt=question completion=answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_steps", "max_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.learning_rate is None or self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "a fraction, in [0, 1)")
        require(self.has_dropout or not self.lora_dropout, "lora_dropout", self.lora_dropout,
                "0: dropout is off here, only sft has it")  # fmt: skip
        named_columns(self.columns)
        require(0 <= self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a fraction, in [0, 1)")


def schedule_factor(schedule: Literal["constant", "linear", "cosine"], step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at an update, counted from 0.

    Equation:  (step + 1) / warmup up to the warm-up's end; then 1, or 1 - x, or (1 + cos pi x) / 2,
               x = (step - warmup) / (steps - warmup)
    Verified:  tests/unit/test_language_sft.py::test_schedules
    """
    if step < warmup:
        return (step + 1) / warmup
    x = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1.0 - x, "cosine": 0.5 * (1 + math.cos(math.pi * x))}[schedule]


def sequence_limit(lm: LanguageModel, config: TrainingConfig) -> int:
    """The longest sequence that a run takes."""
    return config.max_length or min(lm.context or DEFAULT_LENGTH, DEFAULT_LENGTH)
