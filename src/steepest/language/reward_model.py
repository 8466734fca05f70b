"""A reward model: a language model's last hidden state and a linear head, trained on preferences.

Source: notes 2.2.1; Bradley & Terry 1952; Stiennon et al. 2020 for the head's initial size,
whose N(0, 1 / (D + 1)) is read as the deviation 1 / (D + 1).

    r(x, y) = w . h + b,  h the hidden state at the last real token of (x, y)              RewardModel
    repeat, for every batch of pairs: one step of Adam on the mean of
      -log sigmoid(r(x, y_w) - r(x, y_l))                                                  losses.bradley_terry_loss
      + c (r(x, y_w) + r(x, y_l))^2                                                        losses.score_centring_loss

The last real token is found by the attention mask. Found as the last one whose id differs from the padding's, a
response with EOS and one without it would have the same score wherever padding has the id of EOS. Preferences leave a
function of the prompt open: only differences of scores of one prompt mean anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from steepest.language.gradient import Figures, mean_gradient_step
from steepest.language.pairs import check_pairs, joined, rows_of
from steepest.language.tokens import last_token
from steepest.losses import bradley_terry_loss, score_centring_loss
from steepest.networks import Schedule, require, schedule_factor
from steepest.types import PreferenceBatch


class Torso(Protocol):
    """A language model without its head."""

    def __call__(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) int64 and (B, L) bool to hidden states (B, L, D)."""
        ...


class RewardModel(nn.Module):
    """Scores whole responses: one number at the last real token.

    Verified:  tests/unit/test_reward_model.py::test_score_is_read_at_the_last_real_token
    """

    def __init__(self, torso: nn.Module, width: int, *, generator: torch.Generator | None = None) -> None:
        """``torso`` maps (tokens, attention_mask) to hidden states (B, L, width)."""
        super().__init__()
        self.torso = torso
        self.head = nn.Linear(width, 1)
        # Small enough for scores near 0, so that the first steps are not spent on undoing the initial ones.
        nn.init.normal_(self.head.weight, std=1.0 / (width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) int64 and (B, L) bool to scores (B,), in float32 at least."""
        hidden: Tensor = self.torso(tokens, attention_mask)
        last = hidden[torch.arange(len(tokens), device=tokens.device), last_token(attention_mask)]
        return self.head(last.to(self.head.weight.dtype)).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Training a reward model on preferences."""

    centring_coef: float = 0.01
    """Weight of the loss that keeps scores near zero."""
    learning_rate: float = 1e-5
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "linear"
    """"linear" goes to 0 over the run."""
    microbatch_size: int | None = None
    """Pairs per forward and backward pass, to fit memory; changes nothing else."""
    max_gradient_norm: float = 1.0
    """The gradient is scaled down to this norm if it is longer."""

    def __post_init__(self) -> None:
        require(self.centring_coef >= 0, "centring_coef", self.centring_coef, "zero or more")
        for name in ("learning_rate", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        size = self.microbatch_size
        require(size is None or size > 0, "microbatch_size", size, "a positive number or none")


def pair_scores(model: nn.Module, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and the rejected responses (B,), in one forward pass."""
    both = joined(batch)
    score: Tensor = model(both.tokens, both.attention_mask)
    return score[: len(batch.chosen.tokens)], score[len(batch.chosen.tokens) :]


class RewardModelling:
    """A reward model that learns from pairs. ``model`` maps (tokens, attention_mask) to scores (B,)."""

    Config = RewardModelConfig

    def __init__(self, config: RewardModelConfig, model: nn.Module) -> None:
        self.config = config
        self.model = model.eval()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, Figures]:
        """The loss of every pair (B,), and figures (B,) to watch."""
        chosen, rejected = pair_scores(self.model, batch)
        likelihood = bradley_terry_loss(chosen, rejected)
        loss = likelihood + self.config.centring_coef * score_centring_loss(chosen, rejected)
        margin = (chosen - rejected).detach()
        figures = {
            "loss": likelihood.detach(),
            "accuracy": (margin > 0.0).to(margin.dtype),
            "margin": margin,
            "score_mean": 0.5 * (chosen + rejected).detach(),
        }
        return loss, figures

    def update(self, batch: PreferenceBatch, *, progress: float = 0.0) -> dict[str, float]:
        """One step of Adam on a batch of pairs.

        Args:      batch: B pairs; progress 0 to 1 through the run, for the schedule
        Returns:   means over the batch, before the step
        Raises:    UsageError for pairs that are none, or masks that cannot be meant
        Verified:  tests/exact/test_reward_model.py::test_differences_of_the_true_reward_are_recovered
        """
        check_pairs(batch)
        rows = len(batch.chosen.tokens)

        def loss(part: Tensor) -> tuple[Tensor, Figures]:
            return self.loss(rows_of(batch, part))

        figures = mean_gradient_step(
            self.optimizer,
            loss,
            torch.arange(rows, device=batch.chosen.tokens.device),
            microbatch_size=self.config.microbatch_size,
            learning_rate=self.config.learning_rate * schedule_factor(self.config.learning_rate_schedule, progress),
            max_gradient_norm=self.config.max_gradient_norm,
        )
        return {k: float(x) for k, x in figures.items()}

    def state_dict(self) -> dict[str, Any]:
        """What continues this besides the model's own parameters."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.optimizer.load_state_dict(state["optimizer"])


class Calibration(NamedTuple):
    """How far a reward model's confidence can be believed, on pairs that it was not trained on."""

    accuracy: float  # share of pairs with the chosen response scored higher; a tie is not right
    loss: float  # mean -log sigmoid(margin), nats
    expected_error: float  # mean over pairs of |confidence - accuracy| of their bin
    confidence: Tensor  # (bins,) mean predicted probability of the response that the model prefers; NaN where empty
    observed: Tensor  # (bins,) how often that one was chosen
    pairs: Tensor  # (bins,) how many


def calibration(chosen_score: Tensor, rejected_score: Tensor, bins: int = 10) -> Calibration:
    """Accuracy and calibration of scores on held-out pairs.

    Equation:  p = sigmoid(|r_w - r_l|) in [1/2, 1], in bins of equal width; observed = share with r_w > r_l, a tie
               counting half; expected error = sum_b n_b/n |mean p - observed|
    Source:    Guo et al. 2017 (expected calibration error), of the Bradley-Terry probability.
    Args:      chosen_score, rejected_score (N,) of held-out pairs, N >= 1; bins >= 1
    Returns:   see Calibration
    Raises:    UsageError for no pairs, or bins < 1
    Verified:  tests/unit/test_reward_model.py::test_calibration_by_hand,
               tests/unit/test_reward_model.py::test_true_scores_are_calibrated
    """
    require(bins >= 1, "bins", bins, "at least 1")
    require(chosen_score.numel() >= 1, "the number of held-out pairs", chosen_score.numel(), "at least 1")
    margin = (chosen_score - rejected_score).detach().double()
    probability = torch.sigmoid(margin.abs())
    right = 0.5 * (1.0 + torch.sign(margin))
    index = ((probability - 0.5) * (2.0 * bins)).long().clamp(max=bins - 1)
    count, confidence, observed = (
        torch.zeros(bins, dtype=torch.float64, device=margin.device).index_add(0, index, x)
        for x in (torch.ones_like(margin), probability, right)
    )
    gap = (confidence - observed).abs().sum() / margin.numel()
    loss = bradley_terry_loss(margin, torch.zeros_like(margin)).mean()
    accuracy = float((margin > 0.0).double().mean())
    empty = torch.where(count > 0.0, count, torch.full_like(count, math.nan))
    return Calibration(accuracy, float(loss), float(gap), confidence / empty, observed / empty, count.long())
