"""Settings of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.language.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations."""

    has_dropout: ClassVar[bool] = True

    packing: bool = False
    """Put several sequences into each row of max_length tokens, kept apart by their positions."""
    group_by_length: bool = True
    """Make batches of sequences of similar length, which saves padding. Means nothing with packing."""
