"""Reward models: where the score is read, and whether confidence can be believed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from helpers_tokens import TinyLM
from steepest.errors import UsageError
from steepest.language.reward_model import RewardModel, RewardModelConfig, calibration

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
    model = RewardModel(Hidden(), 16)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    text = [1, 2, 4, EOS]

    def scored(length: int, left: int, right: int) -> float:
        tokens = torch.tensor([[EOS] * left + text[:length] + [EOS] * right])
        attention = torch.tensor([[False] * left + [True] * length + [False] * right])
        return float(model(tokens, attention).detach())

    with_eos, without = scored(4, 0, 0), scored(3, 0, 0)
    assert abs(with_eos - without) > 1e-3
    for left, right in ((2, 0), (0, 2), (1, 3)):
        assert scored(4, left, right) == pytest.approx(with_eos, rel=1e-5)
        assert scored(3, left, right) == pytest.approx(without, rel=1e-5)
    hidden = model.torso(torch.tensor([text]), torch.ones(1, 4, dtype=torch.bool))
    assert with_eos == pytest.approx(float(model.head(hidden[:, 3]).detach()), rel=1e-6)


def test_the_head_begins_small() -> None:
    """Deviation 1 / (d + 1), no bias."""
    head = RewardModel(Hidden(), 4095, generator=torch.Generator().manual_seed(0)).head
    assert float(head.weight.detach().std()) == pytest.approx(1 / 4096, rel=0.05)  # 4095 draws: known to 1.1 %
    assert not head.bias.any()


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
