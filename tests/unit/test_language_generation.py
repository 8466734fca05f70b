"""Sampling: from the distribution that scoring sees, the same in any micro-batch, and to every end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers_language import tiny, tokenizer
from steepest.errors import RunError, UsageError
from steepest.language.data.batching import check_isolation, pad, responses
from steepest.language.models.language_model import LanguageModel, language_model
from steepest.language.scoring.generation import Response, Sampling, draw_uniforms, generate
from steepest.language.scoring.scoring import token_log_probs

RNG = np.random.default_rng(1)
PROMPTS = [tuple(int(t) for t in RNG.integers(258, 320, n)) for n in (3, 11, 7, 1, 5, 2, 9, 4)]


def sampled(lm: LanguageModel, sampling: Sampling, *, micro: int = 64, seed: int = 0) -> list[Response]:
    uniforms = draw_uniforms(len(PROMPTS), sampling, torch.Generator().manual_seed(seed))
    return generate(lm, PROMPTS, sampling, uniforms, micro_batch_size=micro)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},  # positions are learned
    "gpt_neox": {**SMALL, "max_position_embeddings": 128},
    "qwen3": {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128},
    # Logits are capped after the head, and every other layer looks only 8 tokens back.
    "gemma2": {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8, "final_logit_softcapping": 5.0},
}


def model_of(architecture: str) -> LanguageModel:
    if architecture == "llama":
        return tiny(scale=4.0)
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer()),
        bos_token_id=None,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
        **ARCHITECTURES[architecture],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.mul_(4.0)
    return language_model(model, tokenizer())


@pytest.mark.parametrize(("architecture", "temperature"), [("llama", 0.6), *((name, 1.0) for name in ARCHITECTURES)])
def test_generation_and_scoring_agree(architecture: str, temperature: float) -> None:
    lm = model_of(architecture)
    assert lm.splits == (architecture != "gemma2")
    check_isolation(lm)
    answers = sampled(lm, Sampling(max_new_tokens=20, temperature=temperature))
    batch = pad(responses(PROMPTS, [a.tokens for a in answers]), lm.pad_token)
    with torch.no_grad():
        scored = token_log_probs(lm, batch, temperature=temperature)
        wrong = token_log_probs(lm, batch, temperature=2.0)
    generated = torch.zeros_like(scored)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        generated[i, len(prompt) : len(prompt) + len(answer.tokens)] = torch.tensor(answer.log_probs)
    assert (generated - scored).abs().max() < 1e-5  # nats, of every token
    assert (generated - wrong).abs().max() > 0.1


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, temperature=1.5, top_k=40)]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_token_is_the_inverse_of_its_own_uniform(architecture: str, sampling: Sampling) -> None:
    """A row at a time, without cache and padding; some responses end early, and their rows leave the batch."""
    lm = dataclasses.replace(model_of(architecture), end_tokens=tuple(range(0, 320, 16)))
    uniforms = draw_uniforms(len(PROMPTS), sampling, torch.Generator().manual_seed(2))
    drawn = generate(lm, PROMPTS, sampling, uniforms)
    assert len({len(response.tokens) for response in drawn}) > 1  # some leave the batch before others
    for prompt, response, u in zip(PROMPTS, drawn, uniforms, strict=True):
        tokens = list(prompt)
        for step, token in enumerate(response.tokens):
            with torch.no_grad():
                logits = lm.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double()
            p = torch.softmax(logits / sampling.temperature, 0)
            if sampling.top_k:
                p = torch.where(p >= p.sort(descending=True).values[sampling.top_k - 1], p, 0.0)
            below = float(p[:token].sum() / p.sum())
            assert below - 1e-5 <= float(u[step]) <= below + float(p[token] / p.sum()) + 1e-5
            tokens.append(token)


@pytest.mark.parametrize("architecture", ["mamba", "openai-gpt"])
def test_models_that_forget_are_not_sampled_from(architecture: str) -> None:
    """Mamba passes over the cache in silence, and would go on from its last token alone; GPT-1 takes none."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2} if architecture == "openai-gpt" else {"num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model(architecture, vocab_size=len(tokenizer()), **sizes)
    lm = language_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer())
    with pytest.raises(UsageError, match=r"cannot be sampled from here: it does not go on from a cache"):
        sampled(lm, Sampling(max_new_tokens=2))


@torch.no_grad()
def test_under_autocast_logits_are_float32_too() -> None:
    """What a run in bfloat16 draws from is rounded in its hidden states alone, as what it scores is."""
    lm, sampling = tiny(scale=4.0), Sampling(max_new_tokens=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (drawn,) = generate(lm, PROMPTS[:1], sampling, draw_uniforms(1, sampling, torch.Generator().manual_seed(0)))
        hidden = lm.backbone(input_ids=torch.tensor(PROMPTS[:1])).last_hidden_state[:, -1]
        rounded = lm.head(hidden).float().log_softmax(-1)[0, drawn.tokens[0]]
    exact = lm.head(hidden.float()).log_softmax(-1)[0, drawn.tokens[0]]
    assert abs(drawn.log_probs[0] - float(exact)) < 1e-5
    assert abs(float(rounded) - float(exact)) > 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_numbers_are_an_error(temperature: float) -> None:
    lm = tiny()
    assert lm.remembers
    with torch.no_grad():
        lm.head.weight[7] = float("nan")
    with pytest.raises(RunError, match="logits are not finite"):
        sampled(lm, Sampling(max_new_tokens=2, temperature=temperature))


def test_samples_do_not_depend_on_the_micro_batches() -> None:
    lm = tiny()
    sampling = Sampling(max_new_tokens=16)
    whole = sampled(lm, sampling)
    for micro in (1, 3):
        assert [a.tokens for a in sampled(lm, sampling, micro=micro)] == [a.tokens for a in whole]
    assert [a.tokens for a in sampled(lm, sampling, seed=1)] != [a.tokens for a in whole]


def test_samples_follow_the_policy() -> None:
    """Frequencies of the first token against its probabilities, by the chi-squared statistic."""
    lm = tiny(scale=15.0)
    count = 4000
    prompts = [PROMPTS[0]] * count
    with torch.no_grad():
        logits = lm.network(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    for temperature, mistaken in ((1.0, 1.2), (1.5, 1.0)):
        sampling = Sampling(max_new_tokens=1, temperature=temperature)
        uniforms = draw_uniforms(count, sampling, torch.Generator().manual_seed(5))
        drawn = [r.tokens[0] for r in generate(lm, prompts, sampling, uniforms, micro_batch_size=1000)]
        seen = np.bincount(drawn, minlength=lm.vocabulary)

        def statistic(t: float, seen: np.ndarray = seen) -> tuple[float, int]:
            expected = count * torch.softmax(logits.double() / t, 0).numpy()
            common = expected >= 5
            cells = np.append(seen[common], seen[~common].sum()), np.append(expected[common], expected[~common].sum())
            return float(((cells[0] - cells[1]) ** 2 / cells[1]).sum()), int(common.sum())

        value, freedom = statistic(temperature)
        assert value < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations above the mean
        assert statistic(mistaken)[0] > 2 * value


def test_greedy_takes_the_most_probable() -> None:
    lm = tiny()
    answer = sampled(lm, Sampling(max_new_tokens=8, temperature=0.0))[1]
    tokens = list(PROMPTS[1])
    for token in answer.tokens:
        with torch.no_grad():
            logits = lm.network(input_ids=torch.tensor([tokens])).logits[0, -1]
        assert token == int(logits.argmax())
        tokens.append(token)


def test_every_end_token_ends() -> None:
    lm = tiny(scale=1.0)
    lm = dataclasses.replace(lm, end_tokens=tuple(range(0, 320, 20)))  # one in twenty tokens
    answers = sampled(lm, Sampling(max_new_tokens=64))
    assert {a.tokens[-1] for a in answers if a.ended} <= set(lm.end_tokens)
    assert sum(a.ended for a in answers) >= 4
    assert len({a.tokens[-1] for a in answers if a.ended}) > 1
    for answer in answers:
        assert not set(answer.tokens[:-1]) & set(lm.end_tokens)
        assert answer.ended or len(answer.tokens) == 64
        assert len(answer.log_probs) == len(answer.tokens)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=8, top_k=2), Sampling(max_new_tokens=8, top_p=0.3)])
def test_top_k_and_top_p_leave_the_rest_out(sampling: Sampling) -> None:
    lm = tiny(scale=3.0)
    unlikely = last = 0
    for prompt, answer in zip(PROMPTS, sampled(lm, sampling), strict=True):
        tokens = list(prompt)
        for token, log_prob in zip(answer.tokens, answer.log_probs, strict=True):
            with torch.no_grad():
                probability = torch.softmax(lm.network(input_ids=torch.tensor([tokens])).logits[0, -1].double(), 0)
            above = probability[probability > probability[token]]
            if sampling.top_k:
                assert len(above) < sampling.top_k
                last += len(above) == sampling.top_k - 1
            else:
                assert float(above.sum()) < sampling.top_p + 1e-6
                last += float(above.sum() + probability[token]) >= sampling.top_p
            unlikely += len(above) > 0
            assert log_prob == pytest.approx(float(probability[token].log()), abs=1e-4)  # of the whole policy
            tokens.append(token)
    assert unlikely > 0
    assert last > 0, "the token that fills the number, or the mass, belongs to it"


def test_a_uniform_at_its_edges_draws_a_possible_token() -> None:
    lm = tiny()
    sampling = Sampling(max_new_tokens=1, top_k=1)
    for u in (0.0, 1 - 2.0**-53):
        uniforms = torch.full((1, 1), u, dtype=torch.float64)
        with torch.no_grad():
            best = int(lm.network(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())
        assert generate(lm, PROMPTS[:1], sampling, uniforms)[0].tokens == (best,)


def test_dropout_is_off_while_sampling() -> None:
    noisy, quiet = tiny(dropout=0.9), tiny()
    noisy.model.train()
    sampling = Sampling(max_new_tokens=8)
    assert [a.tokens for a in sampled(noisy, sampling)] == [a.tokens for a in sampled(quiet, sampling)]
    assert noisy.model.training


def test_what_cannot_be_generated_is_said_so() -> None:
    lm = tiny()
    sampling = Sampling(max_new_tokens=100)
    with pytest.raises(UsageError, match="context of 128"):
        generate(lm, [range(40)], sampling, torch.zeros(1, 100, dtype=torch.float64))
    with pytest.raises(UsageError, match="a prompt of 128 tokens fills the model's context of 128; shorten it"):
        generate(lm, [range(128)], sampling, torch.zeros(1, 100, dtype=torch.float64))
    with pytest.raises(UsageError, match="empty"):
        generate(lm, [()], sampling, torch.zeros(1, 100, dtype=torch.float64))
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            Sampling(**bad)
