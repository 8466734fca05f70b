"""Direct preference optimisation of small language models: references, the choice of a loss, what changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_language import assert_same, preferences, slopes, tiny
from steepest import losses
from steepest.errors import UsageError
from steepest.language.data.batching import pad, responses
from steepest.language.data.datasets import load_preferences
from steepest.language.models.adapters import add_adapters
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.scoring import reference as reference_module
from steepest.language.scoring.pairs import joined, pair_log_probs
from steepest.language.scoring.reference import Reference, load_cached, reference_key, save_cached
from steepest.language.scoring.scoring import token_log_probs
from steepest.language.training import dpo as module
from steepest.language.training.dpo import DPO, DPOConfig, ScoredPairs
from steepest.types import PreferenceBatch


def trainer(lm: LanguageModel | None = None, rows: int = 16, **options: Any) -> DPO:
    lm = lm or tiny(scale=1.0)
    options = {"batch_size": 8, "learning_rate": 1e-3, "max_length": 64, "warmup": 0.0, **options}
    pairs = load_preferences(lm, preferences(rows + 4))[0]
    return DPO(lm, DPOConfig(**options), pairs[:rows], eval_data=pairs[rows:], seed=5)


def test_one_pass_equals_two() -> None:
    """The two sides, padded to one length and scored together, say what each says alone."""
    made = trainer()
    (batch,) = made.micro_batches(0)
    shorter = batch.pairs.rejected
    longest = int(shorter.attended.sum(-1).max())
    uneven = PreferenceBatch(batch.pairs.chosen, type(shorter)(*(x[:, :longest] for x in shorter)))  # type: ignore[index]
    both = joined(uneven)
    assert both.tokens.shape[0] == 16
    found = made.policy_log_probs(uneven)
    for log_prob, side in zip(found, uneven, strict=True):
        torch.testing.assert_close(log_prob, token_log_probs(made.lm, side).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"reference": "on_the_fly"}, {"lora_rank": 4},
                                     {"lora_rank": 4, "reference": "on_the_fly"}])  # fmt: skip
def test_at_first_the_loss_is_ln_2(options: dict[str, Any]) -> None:
    """Policy and reference are the same text and the same model; later the reference has stayed where it was."""
    made = trainer(tiny(scale=1.0, dropout=0.5), **{"micro_batch_size": 3, "learning_rate": 1e-2, **options})
    made.lm.model.train()  # as it may come from elsewhere
    first = made.update()
    assert first["train/loss"] == pytest.approx(math.log(2.0), abs=1e-5)
    assert first["train/rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first["train/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["train/pairs"] == 8
    for _ in range(3):
        made.update()
    before = trainer(tiny(scale=1.0))
    (batch,) = before._cut(range(4))
    expected = before.policy_log_probs(batch.pairs)
    ref = made._precomputed()[:4] if made.config.reference == "precomputed" else None
    if ref is None:
        found = made.reference_log_probs(batch.pairs)
        torch.testing.assert_close(found, tuple(x.detach() for x in expected), rtol=1e-5, atol=1e-4)
    else:
        order = sorted(range(4), key=lambda i: (before.data[i].length, i))
        torch.testing.assert_close(ref[order, 0], expected[0].detach(), rtol=1e-5, atol=1e-4)
    moved = made.policy_log_probs(batch.pairs)[0]
    assert float((moved - expected[0]).abs().max().detach()) > 1e-2


def test_adapters_from_before_belong_to_the_reference() -> None:
    """A policy that comes with adapters starts from them, not from the model under them."""
    lm = trainer(lora_rank=4).lm
    with torch.no_grad():
        for name, p in lm.parameters().items():
            p.add_(0.1 if "lora_B" in name else 0.0)
    for reference in ("precomputed", "on_the_fly"):
        made = trainer(lm, lora_rank=4, reference=reference)
        assert made.update()["train/loss"] == pytest.approx(math.log(2.0), abs=1e-5)
        assert made.lm is lm


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "smoothed", "robust", "length_normalized"])
def test_the_chosen_loss_is_descended(name: Any) -> None:
    """Every name is the function of that name; training on one batch orders its pairs."""
    made = trainer(loss=name, learning_rate=1e-2, kl_coef=0.5, flip_probability=0.2, rows=8, epochs=16)
    first = made.update()
    at_reference = {"ipo": 1.0, "hinge": 1.0, "robust": (0.8 - 0.2) / 0.6 * math.log(2.0)}
    assert first["train/loss"] == pytest.approx(at_reference.get(name, math.log(2.0)), rel=1e-4)
    (batch,) = made.micro_batches(0)
    assert batch.ref_log_prob is not None
    function: Any = getattr(losses, {"dpo": "dpo_loss", "ipo": "ipo_loss"}.get(name, f"{name}_dpo_loss"))
    more: list[Any] = [0.5]
    if name in ("smoothed", "robust"):
        more = [0.5, 0.2]
    elif name == "length_normalized":
        more = [side.response_mask.sum(-1).float() for side in batch.pairs] + [0.5]
    expected = function(*made.policy_log_probs(batch.pairs), *batch.ref_log_prob, *more)
    torch.testing.assert_close(made.losses(batch)[0], expected)
    while not made.done:
        last = made.update()
    assert last["train/loss"] < first["train/loss"]
    assert last["train/rewards/accuracies"] == 1.0
    assert last["train/rewards/margins"] > 0.0
    assert made.evaluate()["eval/rewards/accuracies"] == 1.0


def test_micro_batches_do_not_change_the_gradient() -> None:
    whole = slopes(trainer())
    for size in (1, 3):
        assert_same(whole, slopes(trainer(micro_batch_size=size)))
    assert_same(whole, slopes(trainer(gradient_checkpointing=True)), rtol=1e-5)
    made = trainer(micro_batch_size=3)
    (batch, *_) = made.micro_batches(0)
    made.gradient([batch])
    with pytest.raises(AssertionError):
        assert_same(whole, {n: p.grad for n, p in made.named.items() if p.grad is not None}, rtol=1e-2)


def test_the_cache_is_used_and_anything_changed_recomputes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    score_all = DPO._score_all
    monkeypatch.setattr(DPO, "_score_all", lambda self, pairs: (scored.append(1), score_all(self, pairs))[1])

    def first(**options: Any) -> Tensor:
        return trainer(reference_cache=str(tmp_path / "cache"), **options)._precomputed()

    one = first()
    assert torch.equal(first(), one)
    assert len(scored) == 1
    first(rows=12)
    first(precision="bfloat16")
    first(lm=tiny(scale=1.01))
    lm = tiny(scale=1.0)
    lm.tokenizer.chat_template, before = "{{ 1 }}", lm.tokenizer.chat_template
    try:
        first(lm=lm)
    finally:
        lm.tokenizer.chat_template = before
    assert len(scored) == 5
    made = trainer(reference_cache=str(tmp_path / "cache"))
    made.why_not_shared = "told to"
    apart = made._precomputed()
    assert len(scored) == 6  # by the other path, which rounds otherwise
    torch.testing.assert_close(apart, one)
    (file, *_) = sorted((tmp_path / "cache").iterdir())
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(file.read_bytes()[:40])
    assert torch.equal(first(), one)
    assert len(scored) == 7  # a damaged file is no reason to stop
    lm = tiny(scale=1.0)
    keys = {reference_key(lm, "x", precision="float32", temperature=t) for t in (1.0, 0.5)}
    with torch.no_grad():
        next(iter(lm.model.parameters()))[0, 0] += 1e-6
    assert len(keys | {reference_key(lm, "x", precision="float32")}) == 3
    assert reference_key(lm, "x", precision="float32") != reference_key(lm, "y", precision="float32")
    assert reference_key(lm, "x", precision="float32") != reference_key(
        lm, "x", precision="float32", share_prompts=True
    )
    save_cached(tmp_path, "key", [torch.zeros(3, 2)])
    assert load_cached(tmp_path, "key", [(3, 2)]) is not None
    assert load_cached(tmp_path, "key", [(4, 2)]) is None


def test_the_key_holds_the_settings_and_no_bookkeeping(tmp_path: Path) -> None:
    """Equal weights compute something else with another config, and the same wherever they come from."""

    def key(lm: LanguageModel) -> str:
        return reference_key(lm, "x", precision="float32")

    def adapted(alpha: float) -> LanguageModel:
        return add_adapters(load_model(tmp_path / "tiny"), rank=2, alpha=alpha, dropout=0.0, seed=0)

    save_model(tiny(), tmp_path / "tiny")
    loaded = load_model(tmp_path / "tiny")
    assert key(loaded) == key(tiny())
    others = [tiny(), tiny()]
    others[0].network.config.rms_norm_eps = 0.5
    others[1].network.config.rope_parameters = {**others[1].network.config.rope_parameters, "rope_theta": 7.0}
    assert len({key(lm) for lm in (loaded, *others)}) == 3
    save_model(adapted(8.0), tmp_path / "adapters")
    assert key(load_model(tmp_path / "adapters")) == key(adapted(8.0))
    assert key(adapted(8.0)) != key(adapted(32.0))


def test_fresh_adapters_share_the_cache_of_their_base(tmp_path: Path) -> None:
    """They are switched off in the reference; adapters that were there before are part of it."""

    def cached(lm: LanguageModel, seed: int, **options: Any) -> int:
        config = DPOConfig(lora_rank=4, reference_cache=str(tmp_path), max_length=64, **options)
        DPO(lm, config, load_preferences(lm, preferences(4))[0], seed=seed)._precomputed()
        return len(list(tmp_path.iterdir()))

    assert [cached(tiny(), seed) for seed in (0, 1)] == [1, 1]
    assert cached(tiny(), 0, lora_alpha=8.0) == 1
    assert [cached(trainer(lora_rank=4).lm, seed) for seed in (0, 1)] == [2, 2]


@pytest.mark.parametrize("options", [{}, {"reference": "on_the_fly"}, {"lora_rank": 4, "reference": "on_the_fly"}])
def test_the_reference_reads_prompts_as_the_policy_does(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool] = []

    def noted(lm: LanguageModel, batch: PreferenceBatch, *, share_prompts: bool = False) -> tuple[Tensor, Tensor]:
        passes.append(share_prompts)
        return pair_log_probs(lm, batch, share_prompts=share_prompts)

    monkeypatch.setattr(module, "pair_log_probs", noted)
    monkeypatch.setattr(reference_module, "pair_log_probs", noted)
    for why in (None, "told to"):
        made = trainer(**options)
        assert made.why_not_shared is None
        made.why_not_shared = why
        passes.clear()
        made.update()
        assert len(passes) > 1
        assert set(passes) == {why is None}


def test_state_comes_back_to_the_bit() -> None:
    whole, first = trainer(epochs=2), trainer(epochs=2)
    rows = [whole.update() for _ in range(4)]
    for _ in range(2):
        first.update()
    saved = {k: v.clone() for k, v in first.tensors().items()}
    second = trainer(tiny(scale=1.0, seed=9), epochs=2)  # whose own opinions of the pairs must not count
    second.load_tensors(saved, 2)
    assert [second.update() for _ in range(2)] == rows[2:]
    assert all(torch.equal(v, whole.tensors()[k]) for k, v in second.tensors().items())


def test_a_trained_policy_is_not_taken_for_its_reference() -> None:
    made = trainer()
    made.step = 1
    with pytest.raises(RuntimeError, match="no longer its reference"):
        made._precomputed()


@pytest.mark.parametrize(("name", "value"), [("kl_coef", 0.0), ("flip_probability", 0.5), ("sft_coef", -1.0)])
def test_bad_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        DPOConfig(**{name: value})  # type: ignore[arg-type]


def test_pairs_without_reference_are_scored_as_they_come() -> None:
    made = trainer(reference="on_the_fly")
    (batch,) = made.micro_batches(0)
    assert batch.ref_log_prob is None
    given = ScoredPairs(batch.pairs, made.reference_log_probs(batch.pairs))
    torch.testing.assert_close(made.losses(batch)[0], made.losses(given)[0], rtol=0, atol=0)


def test_the_reference_has_no_dropout() -> None:
    """Whatever mode the model is in that its adapters are switched off in."""
    lm = add_adapters(tiny(dropout=0.5), rank=2, alpha=8, dropout=0.0, seed=0)
    rows = pad(responses([(260, 270, 280)] * 2, [(261, 262), (263, 264)]), lm.pad_token)
    expected = Reference(lm, adapters_are_fresh=True).log_probs(rows)
    lm.model.train()
    assert torch.equal(Reference(lm, adapters_are_fresh=True).log_probs(rows), expected)
    assert not torch.equal(token_log_probs(lm, rows), expected)
