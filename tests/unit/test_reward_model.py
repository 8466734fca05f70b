"""Reward models: where the score is read, training them, saving them, and whether confidence can be believed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers_language import preferences, tiny
from helpers_tokens import TinyLM
from steepest.errors import UsageError
from steepest.language.data.batching import pad
from steepest.language.data.datasets import load_preferences
from steepest.language.data.examples import Example
from steepest.language.models.function_model import as_language_model
from steepest.language.models.language_model import LanguageModel
from steepest.language.training.reward_model import (
    RewardModel,
    RewardModelConfig,
    RewardTrainer,
    calibration,
    load_reward_model,
    pair_scores,
    reward_head,
    save_reward_model,
)
from steepest.types import TokenBatch

EOS = 0


class Hidden(nn.Module):
    """Hidden states of a tiny language model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyLM(5)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.hidden(tokens, attention_mask)


def test_score_is_read_at_the_last_real_token() -> None:
    """With padding of EOS's id, a response with EOS and the same without it have different scores, on either side."""
    torso, head = Hidden(), reward_head(16, seed=0)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    model = RewardModel(as_language_model(torso, vocab_size=5), head)
    text = [1, 2, 4, EOS]

    def scored(length: int, left: int, right: int) -> float:
        tokens = torch.tensor([[EOS] * left + text[:length] + [EOS] * right])
        attention = torch.tensor([[False] * left + [True] * length + [False] * right])
        return float(model.scores(TokenBatch(tokens, attention, attention)).detach())

    with_eos, without = scored(4, 0, 0), scored(3, 0, 0)
    assert abs(with_eos - without) > 1e-3
    for left, right in ((2, 0), (0, 2), (1, 3)):
        assert scored(4, left, right) == pytest.approx(with_eos, rel=1e-5)
        assert scored(3, left, right) == pytest.approx(without, rel=1e-5)
    hidden = torso(torch.tensor([text]), torch.ones(1, 4, dtype=torch.bool))
    assert with_eos == pytest.approx(float(head(hidden[:, 3]).detach()), rel=1e-6)


def test_the_head_begins_small() -> None:
    """Deviation 1 / (d + 1), no bias."""
    head = reward_head(4095, seed=0)
    assert float(head.weight.detach().std()) == pytest.approx(1 / 4096, rel=0.05)  # 4095 draws: known to 1.1 %
    assert not head.bias.any()


def trainer(lm: LanguageModel | None = None, **options: Any) -> RewardTrainer:
    lm = lm or tiny(scale=1.0)
    options = {"batch_size": 8, "learning_rate": 3e-3, "max_length": 64, "warmup": 0.0, **options}
    pairs = load_preferences(lm, preferences(24))[0]
    return RewardTrainer(lm, RewardModelConfig(**options), pairs[:16], eval_data=pairs[16:], seed=5)


def test_it_learns_and_evaluation_sees_it() -> None:
    made = trainer(tiny(scale=1.0, dropout=0.3), epochs=6, micro_batch_size=3)
    made.lm.model.train()
    first = made.update()
    assert first["train/likelihood_loss"] == pytest.approx(math.log(2.0), abs=0.05)
    while not made.done:
        last = made.update()
    assert last["train/accuracy"] == 1.0
    assert last["train/likelihood_loss"] < 0.3
    found = made.evaluate()
    assert found["eval/accuracy"] == 1.0
    assert found["eval/loss"] < 0.4
    assert 0.0 <= found["eval/calibration_error"] < 0.5
    (batch, *_) = made.micro_batches(0)
    again = [pair_scores(made.model, batch) for _ in range(2)]
    assert torch.equal(again[0][0], again[1][0])  # dropout is off


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}])
def test_saving_and_loading_gives_the_same_scores(options: dict[str, Any], tmp_path: Path) -> None:
    from steepest.language.models.loading import load_model
    from steepest.language.models.saving import save_model

    lm = load_model(save_model(tiny(scale=1.0), tmp_path / "base"))
    made = trainer(lm, **options)
    made.update()
    save_reward_model(made.model, tmp_path / "run" / "model")
    batch = pad([Example(tuple(range(260, 270)), (False,) * 5 + (True,) * 5)], 0)
    with torch.no_grad():
        expected = made.model.scores(batch)
        for place in (tmp_path / "run" / "model", tmp_path / "run"):
            loaded = load_reward_model(place)
            assert torch.equal(loaded.scores(batch), expected)
            assert not loaded.head.weight.requires_grad
        assert not torch.equal(RewardModel(made.lm, reward_head(32, seed=9)).scores(batch), expected)
    with pytest.raises(UsageError, match="no reward model in"):
        load_reward_model(tmp_path / "base")


def test_state_comes_back_to_the_bit() -> None:
    whole, first = trainer(epochs=2), trainer(epochs=2)
    rows = [whole.update() for _ in range(4)]
    for _ in range(2):
        first.update()
    saved = {k: v.clone() for k, v in first.tensors().items()}
    assert "params/head.weight" in saved
    second = trainer(tiny(scale=1.0, seed=9), epochs=2)
    second.load_tensors(saved, 2)
    assert [second.update() for _ in range(2)] == rows[2:]


def test_calibration_by_hand() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1.0 - p))

    margins = torch.tensor([logit(p) for p in (0.62, 0.38, 0.65, 0.95, 0.95, 0.5)], dtype=torch.float64)
    found = calibration(3.0 + margins, torch.full_like(margins, 3.0), bins=5)
    assert found.pairs.tolist() == [1, 3, 0, 0, 2]
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.confidence[[0, 1, 4]].tolist() == pytest.approx([0.5, (0.62 + 0.62 + 0.65) / 3, 0.95])
    assert found.observed[[0, 1, 4]].tolist() == pytest.approx([0.5, 2 / 3, 1.0])
    assert found.confidence[[2, 3]].isnan().all()
    gap = 3 * abs((0.62 + 0.62 + 0.65) / 3 - 2 / 3) + 2 * 0.05
    assert found.expected_error == pytest.approx(gap / 6)
    logs = [0.62, 0.38, 0.65, 0.95, 0.95, 0.5]
    assert found.loss == pytest.approx(-sum(math.log(p) for p in logs) / 6)


def test_true_scores_are_calibrated() -> None:
    """On pairs labelled by the scores themselves; twice the scores are overconfident, half of them underconfident."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20_000, generator=g, dtype=torch.float64)
    first = torch.rand(20_000, generator=g, dtype=torch.float64) < torch.sigmoid(a - b)
    chosen, rejected = torch.where(first, a, b), torch.where(first, b, a)
    right = calibration(chosen, rejected)
    # Ten bins of 2000 pairs: each share is known to about 0.011.
    assert right.expected_error < 0.012
    over, under = (calibration(c * chosen, c * rejected) for c in (2.0, 0.5))
    assert over.expected_error > 0.05
    assert under.expected_error > 0.05
    assert float((over.confidence - over.observed).nanmean()) > 0.0
    assert float((under.confidence - under.observed).nanmean()) < 0.0
    assert right.loss < min(over.loss, under.loss)
    assert right.accuracy == over.accuracy == under.accuracy


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="bins"):
        calibration(torch.zeros(2), torch.zeros(2), bins=0)
    with pytest.raises(UsageError, match="held-out"):
        calibration(torch.zeros(0), torch.zeros(0))
    for name, value in (("centring_coef", -1.0), ("learning_rate", 0.0), ("max_gradient_norm", 0.0)):
        with pytest.raises(UsageError, match=name):
            RewardModelConfig(**{name: value})
