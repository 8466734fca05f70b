"""A reward model trained through the whole path recovers the differences of the true reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers_tokens import F64, PLAIN, listed, normal, small_language
from steepest.exact import preferences
from steepest.exact.token_batches import padded
from steepest.language.training.reward_model import (
    RewardModelConfig,
    RewardTrainer,
    pair_scores,
    reward_head,
    score_losses,
)
from steepest.types import PreferenceBatch

LANGUAGE = small_language()
PROMPTS, RESPONSES = LANGUAGE.response_shape


class TextTorso(nn.Module):
    """A free hidden state for every text that the mask has let through so far."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Parameter(0.5 * normal(8, (4**5, 3)))

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        code = torch.zeros_like(tokens[:, 0])
        codes: list[Tensor] = []
        for t in range(tokens.shape[1]):
            code = torch.where(attention_mask[:, t], 4 * code + tokens[:, t] + 1, code)
            codes.append(code)
        return self.hidden[torch.stack(codes, -1)]


def trainer_of(**config: Any) -> RewardTrainer:
    head = reward_head(3, seed=0).double()
    return RewardTrainer(listed(TextTorso()), RewardModelConfig(**{**PLAIN, **config}), (), head=head)


def test_differences_of_the_true_reward_are_recovered() -> None:
    """Over all pairs, each as often as it is labelled so, the trained scores differ as the true ones do."""
    score = 0.7 * normal(3, LANGUAGE.response_shape)
    preference = preferences.preference_probs(score)
    x, one, other = (i.flatten() for i in torch.meshgrid(*(torch.arange(n) for n in (2, 15, 15)), indexing="ij"))
    p = preference[x, one, other]
    batch = PreferenceBatch(padded(LANGUAGE, x, one), padded(LANGUAGE, x, other))
    trainer = trainer_of(centring_coef=0.0)
    optimizer = torch.optim.LBFGS(
        list(trainer.named.values()),
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (p * score_losses(trainer.config, *pair_scores(trainer.model, batch))[0]).mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found = trainer.model.scores(batch.chosen).reshape(PROMPTS, RESPONSES, RESPONSES)[:, :, 0]
    torch.testing.assert_close(found - found[:, :1], score - score[:, :1], rtol=1e-6, atol=1e-6)


def test_updates_learn_from_labelled_pairs() -> None:
    """Steps of AdamW on 4000 labelled pairs: differences right to the error of the labels, and scores centred."""
    score = normal(3, LANGUAGE.response_shape)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(PROMPTS, (4000,), generator=g)
    y = torch.randint(RESPONSES, (4000, 2), generator=g)
    first = torch.rand(4000, generator=g, dtype=F64) < preferences.preference_probs(score)[x, y[:, 0], y[:, 1]]
    chosen, rejected = torch.where(first, y[:, 0], y[:, 1]), torch.where(first, y[:, 1], y[:, 0])
    batch = PreferenceBatch(padded(LANGUAGE, x, chosen), padded(LANGUAGE, x, rejected))
    trainer = trainer_of(learning_rate=0.1, centring_coef=0.001, schedule="linear", epochs=100)
    for _ in range(100):
        figures, count = trainer.descend([batch])
        trainer.step += 1
    assert count == 4000
    rows = torch.arange(PROMPTS * RESPONSES)
    with torch.no_grad():
        found = trainer.model.scores(padded(LANGUAGE, rows // RESPONSES, rows % RESPONSES))
        found = found.reshape(PROMPTS, RESPONSES)
    centred, true = (r - r.mean(-1, keepdim=True) for r in (found, score))
    # A response occurs in about 270 pairs, which tell its score to about 2 / sqrt(270) = 0.12.
    assert float((centred - true).square().mean().sqrt()) < 0.2
    assert float(found.mean(-1).abs().max()) < 0.2
    best = float((-torch.log(preferences.preference_probs(score)[x, chosen, rejected])).mean())
    assert figures["likelihood_loss"] == pytest.approx(best, abs=0.01)  # the labels' own entropy, nearly
