"""Prompts that both responses of a pair read from one cache: the same values and gradients as reading them twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers_language import preferences, tiny
from steepest.language.data.batching import pad_pairs
from steepest.language.data.datasets import load_preferences
from steepest.language.data.examples import Pair
from steepest.language.models.adapters import add_adapters
from steepest.language.models.function_model import as_language_model
from steepest.language.models.language_model import LanguageModel, checkpoint_activations
from steepest.language.scoring import pairs as module
from steepest.language.scoring.pairs import pair_log_probs, share, why_not_shared
from steepest.language.training.dpo import DPO, DPOConfig
from steepest.types import PreferenceBatch

PAIRS = [
    Pair((300, 301, 302, 303, 304), (261, 262, 263, 0), (264, 0)),
    Pair((305, 306), (265,), (266, 267, 268, 269, 0)),
    Pair((307,) * 7, (270, 271, 0), (272, 273, 0)),
    Pair((308,), (274, 0), (275,)),
]
"""Prompts and responses of unequal lengths, some of one token."""


def exact() -> LanguageModel:
    """A GPT-2 in float64. Unlike a Llama's, none of its layers falls back to float32; its positions are learned."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.mul_(5.0)
    return LanguageModel(model, tiny().tokenizer, (0,))


def adapted() -> LanguageModel:
    lm = add_adapters(tiny(scale=3.0), rank=4, alpha=8.0, dropout=0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in lm.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return lm


def scored(lm: LanguageModel, batch: PreferenceBatch, *, shared: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities, and the gradient of a mixture of them that treats every response differently."""
    lm.model.zero_grad()
    found = pair_log_probs(lm, batch, share_prompts=shared)
    weight = torch.linspace(-1.0, 2.0, 2 * len(found[0]), dtype=found[0].dtype)
    (torch.cat(found) * weight).sum().backward()
    slopes = {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}
    return [x.detach() for x in found], slopes


@pytest.mark.parametrize(
    ("make", "rtol"), [(exact, 1e-9), (lambda: tiny(scale=3.0), 1e-5), (adapted, 1e-5)], ids=["exact", "llama", "lora"]
)
def test_shared_prompts_change_neither_value_nor_gradient(make: Callable[[], LanguageModel], rtol: float) -> None:
    lm = make()
    assert why_not_shared(lm) is None
    batch = pad_pairs(PAIRS, lm.pad_token)
    plain, slopes = scored(lm, batch, shared=False)
    passes: list[tuple[int, ...]] = []
    lm.backbone.register_forward_pre_hook(
        lambda _m, _a, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    shared, shared_slopes = scored(lm, batch, shared=True)
    assert passes == [(4, 7), (8, 4)]  # 60 tokens instead of 8 rows of 10
    torch.testing.assert_close(shared, plain, rtol=rtol, atol=rtol)
    assert shared_slopes.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(shared_slopes[name], slope, rtol=rtol, atol=10 * rtol * float(slope.abs().max()))


def test_the_gradient_through_the_prompt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is cut off from the graph gives the same values and another gradient."""
    from transformers import DynamicCache

    lm = tiny(scale=3.0)
    batch = pad_pairs(PAIRS, lm.pad_token)
    values, slopes = scored(lm, batch, shared=True)
    repeat = DynamicCache.batch_repeat_interleave

    def cut(self: Any, repeats: int) -> None:
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        repeat(self, repeats)

    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", cut)
    same, other = scored(lm, batch, shared=True)
    torch.testing.assert_close(same, values)
    name = next(name for name in slopes if "v_proj" in name)
    assert float((other[name] - slopes[name]).abs().max()) > 0.05 * float(slopes[name].abs().max())


def test_pairs_without_a_common_prompt_are_not_shared() -> None:
    lm = tiny()
    batch = pad_pairs(PAIRS, lm.pad_token)
    shared = share(batch)
    assert shared is not None
    assert shared.response[1::2][1].tolist() == [266, 267, 268, 269, 0]
    assert shared.response_mask.sum(1).tolist() == [4, 2, 1, 5, 3, 3, 2, 1]
    other = batch.rejected.tokens.clone()
    other[2, 3] += 1
    assert share(batch._replace(rejected=batch.rejected._replace(tokens=other))) is None
    moved = batch.rejected.response_mask.clone()
    moved[0, 5] = False
    different = batch._replace(rejected=batch.rejected._replace(response_mask=moved))
    assert share(different) is None
    for value, expected in zip(
        pair_log_probs(lm, different, share_prompts=True), pair_log_probs(lm, different), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_what_is_not_fewer_tokens_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long prompt with short responses, one short prompt with long ones: apart, both would be padded."""
    lm = tiny()
    batch = pad_pairs([Pair((300,) * 9, (261,), (262,)), Pair((301,), (263,) * 9, (264,) * 9)], lm.pad_token)
    shared = share(batch)
    assert shared is not None
    assert shared.size == 2 * 9 + 4 * 8
    assert 2 * batch.chosen.tokens.numel() == 40
    monkeypatch.setattr(module, "_shared_log_probs", lambda *_: pytest.fail("shared"))
    pair_log_probs(lm, batch, share_prompts=True)


def test_models_that_cannot_share_say_why() -> None:
    import transformers

    lm = tiny()
    assert why_not_shared(lm) is None
    checkpoint_activations(lm)
    assert "checkpointing" in str(why_not_shared(lm))
    listed = torch.nn.Embedding(5, 5)
    assert "head" in str(why_not_shared(as_language_model(listed, vocab_size=5)))
    config = transformers.MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    sliding = LanguageModel(transformers.MistralForCausalLM(config).eval(), lm.tokenizer, (0,))
    assert "part of what they have read" in str(why_not_shared(sliding))


def gpt_neo() -> Any:
    """Every other layer sees twelve tokens back, which its cache does not say."""
    import transformers

    config = transformers.GPTNeoConfig(
        vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=12, max_position_embeddings=64, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return transformers.GPTNeoForCausalLM(config)


def dynamic_llama() -> Any:
    """Its rotations depend on how long the longest sequence of a pass is, from 17 tokens."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, eos_token_id=0, pad_token_id=1,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("make", [gpt_neo, dynamic_llama])
def test_models_that_cannot_share_long_pairs_are_found_out(make: Callable[[], Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(5.0)
    lm = LanguageModel(model, tiny().tokenizer, (0,))
    long = [Pair(tuple(range(280, 294)), tuple(range(260, 279)), (279, 0)), Pair((300, 301), (302, 0), (303, 0))]
    batch = pad_pairs(long, lm.pad_token)
    shared = share(batch)
    assert shared is not None
    whole = torch.stack(pair_log_probs(lm, batch), 1).flatten()
    assert float((module._shared_log_probs(lm, shared).sum(-1) - whole).abs().max().detach()) > 0.05
    assert why_not_shared(lm) is None
    assert "cached prompt differently" in str(why_not_shared(lm, long))
    # A run asks with its own longest pair.
    trainer = DPO(lm, DPOConfig(), [*PAIRS, *long])
    assert "cached prompt differently" in str(trainer.why_not_shared)
    assert DPO(lm, DPOConfig(), PAIRS[:1]).why_not_shared is None


def test_positions_counted_by_place_are_found_out() -> None:
    """An MPT's attention falls with the distance of the places, of which those between prompt and response count."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MptForCausalLM(transformers.MptConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=2))
    lm = LanguageModel(model.eval(), tiny().tokenizer, (0,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    assert "cached prompt differently" in str(why_not_shared(lm))


def test_a_cache_without_its_gradient_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are right, and the prompt would learn nothing from the responses."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update
    monkeypatch.setattr(DynamicLayer, "update", lambda self, k, v, *more: update(self, k.detach(), v.detach(), *more))
    assert "does not reach the cached prompt" in str(why_not_shared(tiny(scale=3.0)))


def test_a_model_that_fails_on_a_cache_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    forward = lm.backbone.forward

    def without(*args: Any, past_key_values: Any = None, **more: Any) -> Any:
        if past_key_values is not None:
            raise TypeError("an unexpected keyword")
        return forward(*args, **more)

    monkeypatch.setattr(lm.backbone, "forward", without)
    assert "cannot go on from a cached prompt (TypeError)" in str(why_not_shared(lm))


def test_trying_leaves_no_trace() -> None:
    """Nothing is drawn, nothing has a gradient, dropout is as it was; half precision and no gradient around it."""
    lm = tiny(dropout=0.5)
    lm.model.train()
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not_shared(lm, PAIRS[:2]) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in lm.model.parameters())
    assert not lm.network.get_input_embeddings()._forward_hooks
    assert all(module.training for module in lm.model.modules())


def test_a_model_that_reads_a_cache_differently_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny()
    forward = lm.backbone.forward

    def forgetful(*args: Any, past_key_values: Any = None, use_cache: bool = False, **more: Any) -> Any:
        return forward(*args, use_cache=False, **{**more, "attention_mask": None})

    monkeypatch.setattr(lm.backbone, "forward", forgetful)
    assert "cached prompt differently" in str(why_not_shared(lm))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_run_says_when_prompts_are_computed_twice(checkpointed: bool) -> None:
    said: list[str] = []
    config = DPOConfig(gradient_checkpointing=checkpointed, max_length=64)
    trainer = DPO.from_data(tiny(), config, preferences(4), note=said.append)
    trainer.prepare(said.append)
    assert any("both of its responses" in line for line in said) == checkpointed
    assert load_preferences(trainer.lm, preferences(4))[0] == trainer.data
