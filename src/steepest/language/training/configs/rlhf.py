"""Settings of PPO, RLOO and GRPO over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from steepest.errors import require
from steepest.fields import AtLeastTwo, Count, NonNegative, Positive, Share
from steepest.language.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RLHFConfig(TrainingConfig):
    """Settings that PPO, RLOO and GRPO share."""

    learning_rates: ClassVar[tuple[float, float]] = (1e-5, 1e-4)

    reward: str | None = None
    """Reward of responses: the folder of a reward model, or FILE.py:FUNCTION. From Python, any function."""
    epochs: Count = 1
    """Passes over the prompts."""
    batch_size: Count = 64
    """Responses per update."""
    group_size: Count = 1
    """Responses to each prompt."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay of the learning rate after the warm-up: constant, or linear or cosine to 0."""
    max_new_tokens: Count = 128
    """Longest response, its end token included."""
    generation_batch_size: Count = 64
    """Responses that are drawn at once."""
    temperature: Positive = 1.0
    """Temperature at which responses are drawn; the policy is trained, and the reference read, at it too."""
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted from the score of a response that max_new_tokens cut off."""
    kl_coef: NonNegative = 0.05
    """Price of a nat of KL from the reference (beta), in units of the score."""
    target_kl: Positive | None = None
    """Adapt kl_coef after every batch towards this KL per response, in nats; none leaves it as it is."""
    kl_horizon: Positive = 10_000.0
    """Responses after which a KL far off target has changed kl_coef by a fifth."""
    update_epochs: Count = 1
    """Passes over a batch of responses."""
    minibatches: Count = 1
    """Gradient steps per pass over a batch."""
    clip_epsilon: Positive = 0.2
    """Distance of the probability ratio from 1 beyond which its gradient is cut (epsilon)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size % self.group_size == 0, "batch_size", self.batch_size,
                f"a multiple of group_size, {self.group_size}")  # fmt: skip
        require(self.batch_size >= self.minibatches, "batch_size", self.batch_size,
                f"at least minibatches, {self.minibatches}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenPPOConfig(RLHFConfig):
    """PPO over tokens, with a value head."""

    update_epochs: Count = 4
    minibatches: Count = 4
    gamma: Share = 1.0
    """Discount factor; below 1 it prices length."""
    gae_lambda: Share = 0.95
    """GAE's trade of bias (0) against variance (1)."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss."""
    normalize_advantage: bool = True
    """Standardise advantages over the batch's tokens."""
    scale_rewards: bool = False
    """Divide rewards, score and penalty together, by the deviation of the responses' totals."""


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(RLHFConfig):
    """REINFORCE with a leave-one-out baseline: no critic."""

    group_size: AtLeastTwo = 4
    """Responses to each prompt."""
    scale_rewards: bool = False
    """Divide rewards, score and penalty together, by the deviation of the responses' totals."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RLHFConfig):
    """Group-relative policy optimisation: no critic, the KL in the loss."""

    group_size: AtLeastTwo = 8
    """Responses to each prompt."""
