"""Settings of DPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from steepest.errors import require
from steepest.fields import NonNegative, Positive
from steepest.language.training.config import TrainingConfig

PreferenceLoss = Literal["dpo", "ipo", "hinge", "smoothed", "robust", "length_normalized"]


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Direct preference optimisation."""

    learning_rates: ClassVar[tuple[float, float]] = (1e-6, 1e-5)

    kl_coef: Positive = 0.1
    """Price of a nat of KL from the reference (beta): small lets the policy go far."""
    loss: PreferenceLoss = "dpo"
    """Which of losses.preference is minimised."""
    flip_probability: float = 0.1
    """Probability that a label is wrong, for the losses "smoothed" and "robust"."""
    sft_coef: NonNegative = 0.0
    """Weight of the mean loss per token of the chosen response, which keeps its probability from falling."""
    max_gradient_norm: Positive = 10.0
    """The gradient is scaled down to this norm if it is longer."""
    reference: Literal["precomputed", "on_the_fly"] = "precomputed"
    """Score all pairs under the reference before training, or each batch during it."""
    reference_cache: str | None = None
    """Folder that keeps precomputed log-probabilities for other runs; used where model and data are the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.flip_probability < 0.5, "flip_probability", self.flip_probability, "in [0, 1/2)")
