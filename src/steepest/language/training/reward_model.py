"""A reward model: a language model's last hidden state and a linear head, trained on preferences.

Source: notes 2.2.1; Bradley & Terry 1952; Stiennon et al. 2020 for the head's initial size,
whose N(0, 1 / (D + 1)) is read as the deviation 1 / (D + 1).

    r(x, y) = w . h + b,  h the hidden state at the last real token of (x, y)              RewardModel
    repeat, for every batch of pairs: one step of AdamW on the mean of
      -log sigmoid(r(x, y_w) - r(x, y_l))                                                  losses.bradley_terry_loss
      + c (r(x, y_w) + r(x, y_l))^2                                                        losses.score_centring_loss

The last real token is found by the attention mask. Found as the last one whose id differs from the padding's, a
response with EOS and one without it would have the same score wherever padding has the id of EOS. Preferences leave a
function of the prompt open: only differences of scores of one prompt mean anything.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.errors import UsageError, require
from steepest.language.data.batching import pad_pairs
from steepest.language.data.datasets import load_preferences
from steepest.language.data.examples import Pair
from steepest.language.data.tokens import last_token
from steepest.language.models.language_model import LanguageModel, hidden_states, without_dropout
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.parallel import processes
from steepest.language.scoring.pairs import joined
from steepest.language.training.configs.reward_model import RewardModelConfig
from steepest.language.training.trainer import Sums, Trainer
from steepest.losses import bradley_terry_loss, score_centring_loss
from steepest.seeding import stream_seed
from steepest.types import PreferenceBatch, TokenBatch

HEAD_FILE, DESCRIPTION_FILE = "reward_head.safetensors", "reward_model.json"


@dataclass(frozen=True)
class RewardModel:
    """Scores whole responses: one number at the last real token."""

    lm: LanguageModel
    head: nn.Linear

    def scores(self, batch: TokenBatch) -> Tensor:
        """Scores (B,) of whole sequences, prompts and responses; carries gradient. Dropout is off.

        Verified:  tests/unit/test_reward_model.py::test_score_is_read_at_the_last_real_token
        """
        with without_dropout(self.lm):
            hidden = hidden_states(self.lm, batch)
        last = hidden[torch.arange(len(batch.tokens), device=hidden.device), last_token(batch.attended)]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(last.to(self.head.weight.dtype)).squeeze(-1)


def reward_head(width: int, *, seed: int) -> nn.Linear:
    """A fresh head: weights of deviation 1 / (width + 1), no bias."""
    head = nn.Linear(width, 1)
    # Small enough for scores near 0, so that the first steps are not spent on undoing the initial ones.
    nn.init.normal_(head.weight, std=1.0 / (width + 1), generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    return head


def hidden_width(lm: LanguageModel) -> int:
    """Size of a hidden state."""
    return int(lm.network.config.get_text_config().hidden_size)


def save_reward_model(model: RewardModel, folder: Path, *, merge: bool = False) -> Path:
    """Save a plain Hugging Face folder with the head (safetensors) and a description (JSON) beside the model.

    Verified:  tests/unit/test_reward_model.py::test_saving_and_loading_gives_the_same_scores
    """
    from safetensors.torch import save_file

    def write_head(place: Path) -> None:
        save_file({name: p.detach().cpu().contiguous() for name, p in model.head.state_dict().items()},
                  str(place / HEAD_FILE))  # fmt: skip
        description = {"kind": "reward model", "width": model.head.in_features, "read_at": "last attended token"}
        (place / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")

    return save_model(model.lm, folder, merge=merge, write_more=write_head)


def load_reward_model(source: str | Path, **options: Any) -> RewardModel:
    """Load what ``save_reward_model`` or ``steepest reward`` wrote: a folder, or the folder of a run.

    Args:      options as for ``load_model``
    Raises:    UsageError where there is no reward model
    Verified:  tests/unit/test_reward_model.py::test_saving_and_loading_gives_the_same_scores
    """
    folder = Path(source).expanduser()
    folder = folder if os.path.isfile(folder / HEAD_FILE) else folder / "model"
    if not os.path.isfile(folder / HEAD_FILE):
        raise UsageError(f"no reward model in {source}: expected a folder with {HEAD_FILE} in it, such as one that "
                         "steepest reward wrote")  # fmt: skip
    lm, head = load_model(folder, **options), load_head(folder)
    if head.in_features != hidden_width(lm):
        raise UsageError(
            f"{folder / HEAD_FILE} reads {head.in_features} numbers, but the hidden states of the model beside it have "
            f"{hidden_width(lm)}: they do not belong together"
        )
    return RewardModel(lm, head.to(lm.device).requires_grad_(False))


def has_head(lm: LanguageModel) -> bool:
    """Return whether the model was loaded from the folder of a reward model."""
    return bool(lm.source) and (Path(lm.source) / HEAD_FILE).is_file()


def load_head(folder: Path) -> nn.Linear:
    """The head in the folder of a reward model. UsageError where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(str(folder / HEAD_FILE))
        head = nn.Linear(weights["weight"].shape[1], 1)
        head.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise UsageError(f"{folder / HEAD_FILE} is no head of a reward model: {error}") from error
    return head


def score_losses(config: RewardModelConfig, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Sums]:
    """The loss of every pair (B,) from its scores, and metrics (B,) to watch."""
    likelihood = bradley_terry_loss(chosen, rejected)
    loss = likelihood + config.centring_coef * score_centring_loss(chosen, rejected)
    margin = (chosen - rejected).detach()
    return loss, {
        "likelihood_loss": likelihood.detach(),
        "accuracy": (margin > 0.0).to(margin.dtype),
        "margin": margin,
        "score_mean": 0.5 * (chosen + rejected).detach(),
    }


def pair_scores(model: RewardModel, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and the rejected responses (B,), in one forward pass."""
    score = model.scores(joined(batch))
    return score[: len(batch.chosen.tokens)], score[len(batch.chosen.tokens) :]


class RewardTrainer(Trainer[PreferenceBatch]):
    """A reward model that learns from pairs."""

    algorithm = "reward"
    Config = RewardModelConfig
    load_rows = load_preferences
    prompt_of = attrgetter("prompt")
    terms = "pairs"
    config: RewardModelConfig
    data: list[Pair]
    eval_data: list[Pair]

    def __init__(
        self,
        lm: LanguageModel,
        config: RewardModelConfig,
        data: Sequence[Pair],
        *,
        eval_data: Sequence[Pair] = (),
        head: nn.Linear | None = None,
        seed: int = 0,
    ) -> None:
        """``head`` is by default a fresh one."""
        if head is None:
            head = reward_head(hidden_width(lm), seed=stream_seed(seed, "reward head")).to(lm.device)
        super().__init__(lm, config, data, eval_data=eval_data, seed=seed, head=head)
        self.model = RewardModel(self.lm, head)
        self.lengths = [pair.length for pair in self.data]

    def micro_batches(self, step: int) -> list[PreferenceBatch]:
        return self._cut(self.data, self.rows_of(step))

    def _cut(self, pairs: Sequence[Pair], rows: Sequence[int]) -> list[PreferenceBatch]:
        """This process's share of some rows of pairs, in parts that fit memory and are of similar length."""
        parts = self.parts(rows, lambda i: pairs[i].length)
        return [pad_pairs([pairs[i] for i in part], self.lm.pad_token).to(self.lm.device) for part in parts]

    def shown(self) -> list[TokenBatch]:
        return [side for batch in self.micro_batches(0) for side in batch]

    def count(self, batch: PreferenceBatch) -> int:
        return len(batch.chosen.tokens)

    def loss(self, batch: PreferenceBatch) -> tuple[Tensor, Sums]:
        loss, figures = score_losses(self.config, *pair_scores(self.model, batch))
        return loss.sum(), {name: value.sum() for name, value in figures.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracy, loss and calibration on the held-out pairs."""
        if not self.eval_data:
            return {}
        scores: list[Tensor] = []
        count = len(self.eval_data)
        for batch in self._cut(self.eval_data, range(count)):
            with self.autocast():
                scores.append(torch.stack(pair_scores(self.model, batch), -1))
        every = processes.whole_rows(torch.cat(scores) if scores else None, processes.share(count), count)
        found = calibration(every[:, 0], every[:, 1])
        return {
            "eval/loss": found.loss,
            "eval/accuracy": found.accuracy,
            "eval/calibration_error": found.expected_error,
        }

    def save(self, folder: Path, *, merge: bool, weights: dict[str, Tensor] | None = None) -> Path:
        return save_reward_model(self.model, folder, merge=merge)


class Calibration(NamedTuple):
    """Return the calibration of a reward model on pairs that it was not trained on."""

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
