"""What surrounds the preference losses: batches of pairs, parts that fit memory, the choice of a loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_tokens import TinyLM
from steepest import losses
from steepest.errors import UsageError
from steepest.language.dpo import DPO, DPOConfig, pair_log_probs, reference_log_probs
from steepest.language.gradient import mean_gradient_step
from steepest.language.pairs import joined
from steepest.language.tokens import response_log_probs
from steepest.types import PreferenceBatch, TokenBatch


def responses(seed: int, lengths: list[int], width: int) -> TokenBatch:
    """Prompts of two tokens, responses of these lengths, padding of id 3 on the right."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 5, (len(lengths), width), generator=g)
    place, ends = torch.arange(width), torch.tensor(lengths).unsqueeze(-1) + 2
    attention = place < ends
    return TokenBatch(torch.where(attention, tokens, 3), attention, attention & (place >= 2))


def pairs() -> PreferenceBatch:
    return PreferenceBatch(responses(0, [1, 4, 2, 3, 2], 6), responses(1, [5, 1, 3, 2, 6], 9))


def test_one_pass_equals_two() -> None:
    """The two sides, padded to one length and scored together, say what each says alone."""
    model = TinyLM(5).double()
    batch = pairs()
    both = joined(batch)
    assert both.tokens.shape == (10, 9)
    assert [m.sum().item() for m in both[1:3]] == [sum(int(s[i].sum()) for s in batch) for i in (1, 2)]
    for found, side in zip(pair_log_probs(model, batch), batch, strict=True):
        alone = response_log_probs(model(side.tokens, side.attention_mask), side)
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)


def test_parts_add_up() -> None:
    """Whatever the size of the parts, the last one being smaller: the gradient of the mean, and means of figures."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for size in (None, 1, 3, 100):
        w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=9.0)

        def loss(part: Tensor, w: Tensor = w) -> tuple[Tensor, dict[str, Tensor]]:
            y = (x[part] @ w).square()
            return y, {"y": y}

        figures = mean_gradient_step(
            optimizer, loss, torch.arange(7), microbatch_size=size, learning_rate=0.1, max_gradient_norm=1.0
        )
        found.append((w.detach(), figures))
    gradient = 2.0 * (x.sum(-1, keepdim=True) * x).mean(0)
    assert float(gradient.norm()) > 1.0
    for w, figures in found:
        torch.testing.assert_close(w, 1.0 - 0.1 * gradient / gradient.norm(), rtol=1e-5, atol=0)  # clip adds 1e-6
        torch.testing.assert_close(figures["gradient_norm"], gradient.norm(), rtol=1e-12, atol=0)
        torch.testing.assert_close(figures["y"], x.sum(-1).square().mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "smoothed", "robust", "length_normalized"])
def test_the_chosen_loss_is_descended(name: Any) -> None:
    """Every name is the function of that name; training on one batch orders its pairs."""
    policy, batch = TinyLM(5), pairs()
    ref = reference_log_probs(TinyLM(5), batch)
    trainer = DPO(
        DPOConfig(loss=name, learning_rate=1e-2, kl_coef=0.5, flip_probability=0.2, microbatch_size=2), policy
    )
    first = trainer.update(batch, ref)
    at_reference = {"ipo": 1.0, "hinge": 1.0, "robust": (0.8 - 0.2) / 0.6 * math.log(2.0)}
    assert first["loss"] == pytest.approx(at_reference.get(name, math.log(2.0)), rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    function: Any = getattr(losses, {"dpo": "dpo_loss", "ipo": "ipo_loss"}.get(name, f"{name}_dpo_loss"))
    more: list[Any] = []
    if name in ("smoothed", "robust"):
        more = [0.5, 0.2]
    elif name == "length_normalized":
        more = [torch.tensor([1.0, 4, 2, 3, 2]), torch.tensor([5.0, 1, 3, 2, 6]), 0.5]
    else:
        more = [0.5]
    expected = function(*pair_log_probs(policy, batch), *ref, *more)
    torch.testing.assert_close(trainer.loss(batch, *ref)[0], expected)
    for _ in range(20):
        last = trainer.update(batch, ref)
    assert last["loss"] < first["loss"]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] > 0.0


def test_dropout_is_off() -> None:
    """The same policy twice: the margin is 0 though its dropout was on."""

    class Dropping(TinyLM):
        def hidden(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.nn.functional.dropout(super().hidden(tokens, attention_mask), 0.5, self.training)

    policy, reference, batch = Dropping(5).train(), Dropping(5).train(), pairs()
    ref = reference_log_probs(reference, batch)
    assert DPO(DPOConfig(), policy).update(batch, ref)["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_bad_pairs_and_settings_are_refused() -> None:
    batch, trainer = pairs(), DPO(DPOConfig(), TinyLM(5))
    uneven = batch._replace(rejected=batch.rejected.rows(slice(3)))
    with pytest.raises(UsageError, match="5 chosen and 3 rejected"):
        reference_log_probs(TinyLM(5), uneven)
    with pytest.raises(UsageError, match="for 5 pairs"):
        trainer.update(batch, (torch.zeros(5), torch.zeros(4)))
    for name, value in (("kl_coef", 0.0), ("flip_probability", 0.5), ("microbatch_size", 0), ("learning_rate", -1.0)):
        with pytest.raises(UsageError, match=name):
            DPOConfig(**{name: value})


def test_training_goes_on_where_it_was_saved() -> None:
    batch = pairs()
    ref = reference_log_probs(TinyLM(5), batch)
    config = DPOConfig(learning_rate=1e-2)
    one = DPO(config, TinyLM(5))
    one.update(batch, ref)
    other = DPO(config, TinyLM(5))
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for trainer in (one, other):
        trainer.update(batch, ref)
    for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(a, b)
