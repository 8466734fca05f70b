"""Direct preference optimisation: a policy from pairs of responses, without a reward model and without sampling.

Source: notes 2.2.2; Rafailov et al. 2023.

    once:  log ref(y_w|x), log ref(y_l|x) of every pair                                    reference_log_probs
    repeat, for every batch of pairs (x, y_w preferred to y_l)
      1. log pi(y_w|x), log pi(y_l|x), summed over the response's tokens                   language.tokens
      2. one step of Adam on the mean of -log sigmoid(beta h)                              losses.dpo_loss
         h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))

Differences from the paper: Adam instead of RMSprop. Beyond it: the losses of IPO, SLiC-HF, label smoothing, robust DPO
and length-normalised DPO, each a function of its own in losses.preference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steepest.errors import UsageError
from steepest.language.gradient import Figures, mean_gradient_step
from steepest.language.pairs import check_pairs, joined, rows_of
from steepest.language.tokens import TokenModel, response_log_probs
from steepest.losses import (
    dpo_loss,
    hinge_dpo_loss,
    ipo_loss,
    length_normalized_dpo_loss,
    preference_metrics,
    robust_dpo_loss,
    smoothed_dpo_loss,
)
from steepest.networks import Schedule, require, schedule_factor
from steepest.types import PreferenceBatch

PreferenceLoss = Literal["dpo", "ipo", "hinge", "smoothed", "robust", "length_normalized"]


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Direct preference optimisation."""

    kl_coef: float = 0.1
    """Price of a nat of KL from the reference (beta): small lets the policy go far."""
    loss: PreferenceLoss = "dpo"
    """Which of losses.preference is minimised."""
    flip_probability: float = 0.1
    """Probability that a label is wrong, for the losses "smoothed" and "robust"."""
    learning_rate: float = 1e-6
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    microbatch_size: int | None = None
    """Pairs per forward and backward pass, to fit memory; changes nothing else."""
    max_gradient_norm: float = 10.0
    """The gradient is scaled down to this norm if it is longer."""

    def __post_init__(self) -> None:
        for name in ("kl_coef", "learning_rate", "max_gradient_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(0 <= self.flip_probability < 0.5, "flip_probability", self.flip_probability, "in [0, 1/2)")
        size = self.microbatch_size
        require(size is None or size > 0, "microbatch_size", size, "a positive number or none")


def pair_log_probs(model: TokenModel, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and the rejected responses (B,), in one forward pass."""
    both = joined(batch)
    log_prob = response_log_probs(model(both.tokens, both.attended), both)
    return log_prob[: len(batch.chosen.tokens)], log_prob[len(batch.chosen.tokens) :]


@torch.no_grad()
def reference_log_probs(reference: TokenModel, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """What the reference says about a batch: computed once, it serves every epoch.

    A module is put in evaluation mode, as the policy is.
    """
    check_pairs(batch)
    if isinstance(reference, nn.Module):
        reference.eval()
    return pair_log_probs(reference, batch)


class DPO:
    """A policy that learns from pairs. ``policy`` maps (tokens, attention_mask) to logits.

    It is put in evaluation mode: dropout would make the margin of a policy to itself differ from 0.
    """

    Config = DPOConfig

    def __init__(self, config: DPOConfig, policy: nn.Module) -> None:
        self.config = config
        self.policy = policy.eval()
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate)

    def loss(self, batch: PreferenceBatch, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Figures]:
        """The loss of every pair (B,), and figures (B,) to watch."""
        chosen, rejected = pair_log_probs(self.policy, batch)
        four = (chosen, rejected, ref_chosen, ref_rejected)
        beta = self.config.kl_coef
        match self.config.loss:
            case "dpo":
                loss = dpo_loss(*four, beta)
            case "ipo":
                loss = ipo_loss(*four, beta)
            case "hinge":
                loss = hinge_dpo_loss(*four, beta)
            case "smoothed":
                loss = smoothed_dpo_loss(*four, beta, self.config.flip_probability)
            case "robust":
                loss = robust_dpo_loss(*four, beta, self.config.flip_probability)
            case "length_normalized":
                tokens = [x.response_mask.sum(-1).to(chosen.dtype) for x in (batch.chosen, batch.rejected)]
                loss = length_normalized_dpo_loss(*four, tokens[0], tokens[1], beta)
        return loss, {"loss": loss.detach(), **preference_metrics(*four, beta)}

    def update(
        self, batch: PreferenceBatch, ref_log_prob: tuple[Tensor, Tensor], *, progress: float = 0.0
    ) -> dict[str, float]:
        """One step of Adam on a batch of pairs.

        Args:      batch: B pairs; ref_log_prob of the chosen and the rejected responses (B,), of reference_log_probs;
                   progress 0 to 1 through the run, for the schedule
        Returns:   means over the batch, before the step
        Raises:    UsageError for pairs that are none, or masks that cannot be meant
        Verified:  tests/exact/test_dpo.py::test_updates_descend_the_population_loss
        """
        check_pairs(batch)
        rows = len(batch.chosen.tokens)
        if any(x.shape != (rows,) for x in ref_log_prob):
            raise UsageError(f"ref_log_prob has shapes {[tuple(x.shape) for x in ref_log_prob]} for {rows} pairs")

        def loss(part: Tensor) -> tuple[Tensor, Figures]:
            return self.loss(rows_of(batch, part), ref_log_prob[0][part], ref_log_prob[1][part])

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
        """What continues this besides the policy's own parameters."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of state_dict."""
        self.optimizer.load_state_dict(state["optimizer"])
