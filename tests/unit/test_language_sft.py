"""Supervised fine-tuning: its gradient, its invariances, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers_language import EXAMPLES, assert_same, demonstrations, slopes, tiny
from steepest.errors import RunError, UsageError
from steepest.language.data.batching import pad
from steepest.language.data.datasets import load_sft
from steepest.language.models.adapters import add_adapters
from steepest.language.models.language_model import LanguageModel
from steepest.language.training.config import schedule_factor
from steepest.language.training.sft import SFT, SFTConfig, first_prompt
from steepest.language.training.trainer import hold_out


def trainer(lm: LanguageModel | None = None, rows: int = 24, **options: Any) -> SFT:
    lm = lm or tiny(scale=1.0)
    options = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "max_length": 64, **options}
    return SFT(lm, SFTConfig(**options), load_sft(lm, demonstrations(rows))[0], seed=5)


def test_the_gradient_is_that_of_cross_entropy_on_responses() -> None:
    """Against the loss that the model itself computes from labels."""
    lm, reference = tiny(scale=1.0), tiny(scale=1.0)
    made = SFT(lm, SFTConfig(batch_size=4, max_length=64), EXAMPLES)
    batch = pad(EXAMPLES, lm.pad_token)
    figures, count = made.gradient([batch])
    labels = batch.tokens.masked_fill(~batch.response_mask, -100)
    output = reference.network(input_ids=batch.tokens, attention_mask=batch.attention_mask, labels=labels)
    output.loss.backward()
    assert count == 16
    assert figures["loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    expected = {n: p.grad for n, p in reference.model.named_parameters()}
    assert_same(expected, {n: p.grad for n, p in lm.model.named_parameters()})
    # The control: prompts learned too.
    reference.network.zero_grad()
    everything = batch.tokens.masked_fill(~batch.attention_mask, -100)
    reference.network(input_ids=batch.tokens, attention_mask=batch.attention_mask, labels=everything).loss.backward()
    with pytest.raises(AssertionError):
        assert_same(expected, {n: p.grad for n, p in reference.model.named_parameters()}, rtol=1e-2)


def test_micro_batches_do_not_change_the_gradient() -> None:
    whole = slopes(trainer())
    for size in (1, 3):
        made = trainer(micro_batch_size=size)
        batches = made.micro_batches(0)
        assert len(batches) == -(-8 // size)
        assert len({made.count(b) for b in batches}) > 1  # or a mean of means would do as well
        assert_same(whole, slopes(made))
    # The control: the mean over micro-batches of their means.
    made = trainer(micro_batch_size=1)
    parts = []
    for batch in made.micro_batches(0):
        made.gradient([batch])
        parts.append({n: p.grad.clone() for n, p in made.named.items() if p.grad is not None})
    mean = {n: torch.stack([part[n] for part in parts]).mean(0) for n in whole}
    with pytest.raises(AssertionError):
        assert_same(whole, mean, rtol=1e-3)


def test_packing_does_not_change_the_gradient() -> None:
    plain, packed = trainer(rows=8), trainer(rows=8, packing=True, max_length=40, batch_size=8)
    assert len(packed.rows) < 8
    assert packed.epoch_steps == 1
    assert packed.count(packed.micro_batches(0)[0]) == sum(plain.count(b) for b in plain.micro_batches(0))
    assert_same(slopes(plain), slopes(packed), rtol=1e-3)  # the sums run over rows of other lengths


def test_checkpointing_does_not_change_the_gradient() -> None:
    assert_same(slopes(trainer()), slopes(trainer(gradient_checkpointing=True)), rtol=1e-6)
    noisy = [slopes(trainer(tiny(scale=1.0, dropout=0.3), gradient_checkpointing=c)) for c in (False, True)]
    assert_same(noisy[0], noisy[1], rtol=1e-6)  # the masks of dropout are drawn again the same


def test_dropout_is_drawn_from_the_seed_and_the_step() -> None:
    state = torch.random.get_rng_state()
    noisy = [slopes(trainer(tiny(scale=1.0, dropout=0.3))) for _ in range(2)]
    assert all(torch.equal(noisy[0][n], noisy[1][n]) for n in noisy[0])
    with pytest.raises(AssertionError):
        assert_same(slopes(trainer()), noisy[0], rtol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state)
    later = trainer(tiny(scale=1.0, dropout=0.3))
    batches = later.micro_batches(0)
    later.step = 1
    later.gradient(batches)
    with pytest.raises(AssertionError):
        assert_same(noisy[0], {n: p.grad for n, p in later.named.items() if p.grad is not None}, rtol=1e-3)


def test_bfloat16_layers_give_nearly_the_same_gradient() -> None:
    exact, rounded = slopes(trainer()), slopes(trainer(precision="bfloat16"))
    one, other = (torch.cat([g.flatten() for g in s.values()]) for s in (exact, rounded))
    assert not torch.equal(one, other)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.999
    assert all(p.dtype == torch.float32 for p in rounded.values())


def test_it_learns_and_evaluation_sees_it() -> None:
    lm = tiny(scale=1.0)
    examples, _ = load_sft(lm, demonstrations(56))
    config = SFTConfig(
        epochs=14, batch_size=8, micro_batch_size=4, learning_rate=1e-2, weight_decay=0.01, max_length=64
    )
    made = SFT(lm, config, [e for i, e in enumerate(examples) if i % 7], eval_data=examples[::7])
    before = made.evaluate()["eval/loss"]
    losses = [made.update()["train/loss"] for _ in range(made.total_steps)]
    assert made.done
    assert losses[0] == pytest.approx(before, rel=0.05)
    assert before > 5.5  # about log 320
    assert losses[-1] < 0.5
    assert made.evaluate()["eval/loss"] < 1.0  # the same nouns in other sentences


def test_evaluation_is_without_dropout() -> None:
    losses: list[float] = []
    for dropout in (0.0, 0.5):
        made = trainer(tiny(scale=1.0, dropout=dropout))
        made.eval_data = EXAMPLES
        made.lm.model.train()
        losses.append(made.evaluate()["eval/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_packing_is_tried_on_the_model_first() -> None:
    lm = tiny()
    forward = lm.backbone.forward
    lm.backbone.forward = lambda **kw: forward(**{**kw, "attention_mask": torch.ones_like(kw["input_ids"])})
    with pytest.raises(UsageError, match="packing does not work"):
        trainer(lm, packing=True)


def test_evaluation_is_the_mean_over_tokens() -> None:
    made = trainer()
    made.eval_data = EXAMPLES
    figures, _ = made.gradient([pad(EXAMPLES, made.lm.pad_token)])
    assert made.evaluate()["eval/loss"] == pytest.approx(figures["loss"], rel=1e-5)


def test_state_comes_back_to_the_bit() -> None:
    whole, first = trainer(epochs=2), trainer(epochs=2)
    rows = [whole.update() for _ in range(6)]
    for _ in range(2):
        first.update()
    saved = {k: v.clone() for k, v in first.tensors().items()}
    second = trainer(tiny(scale=1.0, seed=9), epochs=2)
    second.load_tensors(saved, 2)
    assert [second.update() for _ in range(4)] == rows[2:]
    assert all(torch.equal(v, whole.tensors()[k]) for k, v in second.tensors().items())
    with pytest.raises(ValueError, match="there is no"):
        second.load_tensors({"params/other": torch.zeros(1)}, 0)


def test_only_adapters_are_trained_and_saved() -> None:
    made = trainer(lora_rank=4)
    frozen = {n: p.clone() for n, p in made.lm.model.named_parameters() if not p.requires_grad}
    made.update()
    made.update()  # B is 0 at first, and so is the gradient of A
    for name, p in made.lm.model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name])
    assert all("lora" in name for name in made.tensors())
    assert any("lora_B" in n and p.abs().sum() > 0 for n, p in made.named.items())


def test_a_non_finite_loss_leaves_the_parameters_as_they_were() -> None:
    made = trainer()
    made.update()
    with torch.no_grad():
        next(iter(made.named.values()))[:] = float("nan")
    before = {k: v.clone() for k, v in made.tensors().items()}
    with pytest.raises(RunError, match=r"step 1: .*loss.* became non-finite"):
        made.update()
    after = made.tensors()
    assert all(torch.equal(v, after[k]) or v.isnan().any() for k, v in before.items())


def test_schedules() -> None:
    factors = {s: [schedule_factor(s, i, 10, 2) for i in range(10)] for s in ("constant", "linear", "cosine")}
    for values in factors.values():
        assert values[:3] == [0.5, 1.0, 1.0]
    assert factors["constant"][2:] == [1.0] * 8
    assert factors["linear"][6] == pytest.approx(0.5)
    assert factors["cosine"][6] == pytest.approx(0.5)
    assert factors["cosine"][9] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 7 / 8)).item()))
    made = trainer(schedule="linear", warmup=0.0, rows=80, batch_size=8, learning_rate=None)
    assert made.learning_rate() == 2e-5
    assert trainer(lora_rank=2, learning_rate=None, warmup=0.0).learning_rate() == 2e-4


def test_an_update_is_adamw_with_decay_of_matrices() -> None:
    """The first step of Adam is the sign of the gradient; the norm is limited before, which leaves signs alone."""
    rate, decay = 1e-3, 0.5
    made = trainer(learning_rate=rate, weight_decay=decay, warmup=0.0, max_gradient_norm=0.1)
    before = {n: p.detach().clone() for n, p in made.named.items()}
    figures = made.update()
    assert figures["health/gradient_norm"] > 0.1
    assert figures["health/learning_rate"] == rate
    for name, p in made.named.items():
        kept = before[name] * (1 - rate * decay) if p.ndim >= 2 else before[name]
        assert p.grad is not None
        large = p.grad.abs() > 1e-5  # beside Adam's epsilon of 1e-8
        assert bool(large.any())
        torch.testing.assert_close(p.detach()[large], (kept - rate * p.grad.sign())[large], rtol=1e-5, atol=2e-6)


def test_other_adapters_than_there_are_is_an_error() -> None:
    lm = add_adapters(tiny(), rank=2, alpha=8.0, dropout=0.0, seed=0)
    for options in ({}, {"lora_rank": 2, "lora_alpha": 8.0}, {"lora_alpha": 1.0}):
        assert trainer(lm, **options).lm is lm
    for options in ({"lora_rank": 64, "lora_alpha": 8.0}, {"lora_rank": 2, "lora_alpha": 1.0}):
        with pytest.raises(UsageError, match="goes on with its adapters of rank 2 and alpha 8"):
            trainer(lm, **options)


def test_no_prompt_is_held_out_and_trained_on() -> None:
    said: list[str] = []

    def split(rows: list[str], prompt: Any = str.split, fraction: float = 0.25) -> tuple[list[str], list[str]]:
        return hold_out(rows, lambda row: prompt(row)[:1], fraction, seed=3, note=said.append)

    rows = [f"{prompt} {answer}" for answer in range(5) for prompt in "abcdefgh"]
    kept, held = split(rows)
    assert sorted(kept + held) == sorted(rows)
    assert {row[0] for row in kept} | {row[0] for row in held} == set("abcdefgh")
    assert len({row[0] for row in held}) == 2
    assert not {row[0] for row in kept} & {row[0] for row in held}
    assert (kept, held) == split(rows)
    assert said[0] == "evaluation data: 10 rows of 2 prompts held out"
    # Rows without a prompt, and prompts that come once, are held out one by one, alike.
    assert split(rows, lambda row: []) == split(rows, lambda row: [row])
    assert said[-1] == "evaluation data: 10 rows held out"
    with pytest.raises(UsageError, match=r"eval_fraction 0.25 of 3 rows of 1 prompts leaves none to train on"):
        split(["a 0", "a 1", "a 2"])


def test_the_prompt_of_a_demonstration() -> None:
    lm = tiny(chat=True)
    turns = [{"role": r, "content": c} for r, c in (("user", "So?"), ("assistant", "No."), ("user", "Why?"))]
    rows = [[*turns[:1], {"role": "assistant", "content": "Yes."}], [*turns, {"role": "assistant", "content": "A."}]]
    one, other = (first_prompt(e) for e in load_sft(lm, [{"messages": row} for row in rows])[0])
    assert one == other != ()
    assert {first_prompt(e) for e in load_sft(lm, [{"text": "This film"}, {"text": "This movie"}])[0]} == {()}


def test_half_precision_weights_are_not_trained() -> None:
    lm = tiny()
    lm.model.to(torch.bfloat16)
    with pytest.raises(UsageError, match="not float32"):
        trainer(lm)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"warmup": 1.0},
        {"eval_fraction": 1.0},
        {"lora_rank": -1},
        {"max_steps": 0},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        SFTConfig(**bad)
