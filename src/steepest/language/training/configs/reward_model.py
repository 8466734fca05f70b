"""Settings of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steepest.fields import NonNegative
from steepest.language.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(TrainingConfig):
    """Training a reward model on preferences."""

    learning_rates: ClassVar[tuple[float, float]] = (1e-5, 1e-4)

    centring_coef: NonNegative = 0.01
    """Weight of the loss that keeps scores near zero."""
