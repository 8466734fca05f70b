"""RLHF of small language models: what changes nothing, what is learned, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers_language import demonstrations, shout, tiny
from helpers_tokens import TinyActorCritic, TinyLM, no_reward
from steepest.errors import RunError, UsageError
from steepest.language.data.datasets import load_prompts
from steepest.language.models.function_model import as_language_model
from steepest.language.models.language_model import LanguageModel
from steepest.language.parallel import processes
from steepest.language.scoring.generation import Response
from steepest.language.training.rlhf import GRPO, RLOO, GRPOConfig, RLOOConfig, TokenPPO, TokenPPOConfig
from steepest.language.training.rlhf_base import RLHF
from steepest.language.training.rlhf_watch import alarms, response_figures
from steepest.runs.language_run import LanguageRun
from steepest.types import TokenBatch

KINDS: dict[str, tuple[Any, Any]] = {
    "ppo": (TokenPPO, TokenPPOConfig),
    "rloo": (RLOO, RLOOConfig),
    "grpo": (GRPO, GRPOConfig),
}
each = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **config: Any) -> RLHF[Any]:
    """A recurrent model of five tokens, its old self as reference."""
    trainer, settings = KINDS[kind]
    groups = {} if kind == "ppo" else {"group_size": 4}
    model = as_language_model(TinyActorCritic(5) if kind == "ppo" else TinyLM(5), vocab_size=5)
    more = {"head": nn.Identity()} if kind == "ppo" else {}
    return trainer(model, settings(**({"warmup": 0.0} | groups | config)), (), no_reward, **more)


def batch(rows: int = 8, seed: int = 0) -> TokenBatch:
    """Prompts of two tokens, responses of 1 to 4 out of 5 tokens, padding on both sides."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 5, (rows, 8), generator=g)
    place, ends = torch.arange(8), torch.randint(4, 8, (rows, 1), generator=g)
    attention = (place >= 1) & (place < ends)
    return TokenBatch(torch.where(attention, tokens, 0), attention, attention & (place >= 3))


def wanted(b: TokenBatch) -> Tensor:
    """A score: the share of token 2 among the response's tokens."""
    return ((b.tokens == 2) & b.response_mask).sum(-1) / b.response_mask.sum(-1)


def likelihood(trainer: RLHF[Any], b: TokenBatch) -> float:
    """Mean log-probability of token 2 where the response is decided."""
    logits: Tensor = trainer.lm.network(b.tokens, b.attention_mask).logits
    return float(logits[:, :-1].log_softmax(-1)[..., 2][b.response_mask[:, 1:]].mean().detach())


def parameters(trainer: RLHF[Any]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.named.values()])


@each
def test_updates_favour_what_scores(kind: str) -> None:
    """Off-policy here, the same batch again and again, but the direction is known; the first ratio is 1."""
    trainer, b = make(kind, learning_rate=1e-2, kl_coef=0.01), batch(64)
    before = likelihood(trainer, b)
    first = trainer.improve(b, wanted(b))
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["score"] == pytest.approx(float(wanted(b).mean()), rel=1e-5)
    for _ in range(5):
        last = trainer.improve(b, wanted(b))
    assert likelihood(trainer, b) > before + 0.1
    assert last["kl_k3"] > 0.0
    assert all(torch.isfinite(torch.tensor(list(last.values()))))


@each
def test_the_size_of_parts_changes_nothing(kind: str) -> None:
    found: list[Tensor] = []
    for size in (100, 3):
        trainer = make(kind, learning_rate=1e-2, micro_batch_size=size, minibatches=2, update_epochs=2)
        trainer.improve(batch(), wanted(batch()))
        found.append(parameters(trainer))
    # 2e-4: Adam's first steps are of size lr whatever the gradient's, which float32 rounds differently in other parts.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-4)


@each
def test_padding_changes_nothing(kind: str) -> None:
    """More of it on either side, of another id: the same losses."""
    b = batch()
    wide = TokenBatch(
        nn.functional.pad(b.tokens, (3, 2), value=4),
        nn.functional.pad(b.attended, (3, 2)),
        nn.functional.pad(b.response_mask, (3, 2)),
    )
    found: list[Tensor] = []
    for x in (b, wide):
        trainer = make(kind)
        experience = trainer.experience(x, wanted(b))
        found.append(trainer.sequence_loss(*trainer.forward(x), experience.steps, experience.fixed)[0].detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@each
def test_training_goes_on_where_it_was_saved(kind: str) -> None:
    one = make(kind, learning_rate=1e-2, target_kl=0.1)
    one.improve(batch(), wanted(batch()))
    one.step = 1
    other = make(kind, learning_rate=1e-2, target_kl=0.1)
    other.load_tensors({k: v.clone() for k, v in one.tensors().items()}, 1)
    b = batch(seed=1)
    figures = [t.improve(b, wanted(b)) for t in (one, other)]
    assert figures[0] == figures[1]
    assert torch.equal(parameters(one), parameters(other))
    assert one.kl_coef == other.kl_coef != one.config.kl_coef


def test_dropout_is_off() -> None:
    """The old policy and the new one are the same before the first step, though dropout was on."""

    class Dropping(TinyActorCritic):
        def hidden(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            return nn.functional.dropout(super().hidden(tokens, attention_mask), 0.5, self.training)

    policy, b = as_language_model(Dropping(5).train(), vocab_size=5), batch()
    config = TokenPPOConfig(update_epochs=1, minibatches=1, warmup=0.0)
    found = TokenPPO(policy, config, (), no_reward, head=nn.Identity()).improve(b, wanted(b))
    assert found["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["kl"] == pytest.approx(0.0, abs=1e-5)


def test_minibatches_are_drawn_from_the_seed_and_the_step() -> None:
    found: list[Tensor] = []
    for step in (0, 0, 1):
        trainer = make("ppo", learning_rate=1e-2, update_epochs=1, minibatches=2, schedule="constant")
        trainer.step = step
        trainer.improve(batch(), wanted(batch()))
        found.append(parameters(trainer))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=0, atol=1e-4)


def test_what_is_not_trained_stays() -> None:
    policy = TinyLM(5)
    policy.embedding.weight.requires_grad_(False)
    before = policy.embedding.weight.clone()
    model = as_language_model(policy, vocab_size=5)
    trainer = RLOO(model, RLOOConfig(learning_rate=1e-2, warmup=0.0), (), no_reward)
    trainer.improve(batch(), wanted(batch()))
    assert torch.equal(policy.embedding.weight, before)


def test_misuse_is_explained() -> None:
    b = batch(6)
    with pytest.raises(UsageError, match="one each"):
        make("ppo").improve(b, torch.zeros(5))
    with pytest.raises(UsageError, match="not finite"):
        make("ppo").improve(b, torch.full((6,), float("nan")))
    with pytest.raises(UsageError, match="do not fill"):
        make("ppo", minibatches=7).improve(b, wanted(b))
    with pytest.raises(UsageError, match="groups of 4"):
        make("rloo").improve(b, wanted(b))
    for kind, name, value in (
        ("ppo", "kl_coef", -1.0),
        ("ppo", "gae_lambda", 1.5),
        ("rloo", "group_size", 1),
        ("grpo", "group_size", 1),
        ("grpo", "temperature", 0.0),
        ("ppo", "target_kl", 0.0),
        ("ppo", "update_epochs", 0),
        ("ppo", "missing_eos_penalty", -1.0),
    ):
        with pytest.raises(UsageError, match=name):
            KINDS[kind][1](**{name: value})


# With a language model that draws its own responses


def full(kind: str, lm: LanguageModel | None = None, reward: Any = shout, rows: int = 8, **config: Any) -> RLHF[Any]:
    lm = lm or tiny(scale=1.0)
    prompts = load_prompts(lm, demonstrations(rows + 2))[0]
    groups = {} if kind == "ppo" else {"group_size": 2}
    settings = {"batch_size": 8, "max_new_tokens": 6, "learning_rate": 1e-3, "warmup": 0.0, "minibatches": 1}
    trainer, kind_config = KINDS[kind]
    options = kind_config(**{**settings, **groups, **config})
    return trainer(lm, options, prompts[:rows], reward, eval_data=prompts[rows:], seed=3)


@each
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_the_first_ratio_is_one_and_the_reference_stays(kind: str, lora_rank: int) -> None:
    """Responses by the generator, log-probabilities by the pass that training differentiates."""
    made = full(kind, tiny(scale=1.0, dropout=0.5), lora_rank=lora_rank, update_epochs=1, micro_batch_size=3,
                epochs=4, learning_rate=1e-2)  # fmt: skip
    first = made.update()
    assert first["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["train/clip_fraction"] == 0.0
    assert first["train/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["train/responses"] == 8.0
    for _ in range(2):
        last = made.update()
    assert last["train/kl_k3"] > 1e-5
    fresh, drawn = full(kind), made.collect(9)
    same = fresh.forward(drawn.batch)[0].detach()
    torch.testing.assert_close(made.reference.log_probs(drawn.batch), same, rtol=1e-4, atol=1e-4)


def test_responses_are_a_function_of_the_seed_and_the_step() -> None:
    made = full("rloo", epochs=3)
    assert made.epoch_steps == 2
    assert made.total_steps == 6
    one, again, other = made.collect(1), made.collect(1), made.collect(2)
    assert torch.equal(one.batch.tokens, again.batch.tokens)
    assert one.responses != other.responses
    prompts = [tuple(row[attention & ~response].tolist()) for row, attention, response in
               zip(one.batch.tokens, one.batch.attended, one.batch.response_mask, strict=True)]  # fmt: skip
    assert prompts[::2] == prompts[1::2]  # groups of two follow each other
    assert len(set(prompts)) == 4
    before = made.evaluate()
    made.step += 1
    assert made.evaluate() == before  # by the same random numbers, however far training is
    assert {"eval/score", "eval/kl", "eval/ended", "eval/repetition"} <= set(made.evaluate())


def test_evaluations_are_compared_at_one_price_of_the_kl() -> None:
    """However the coefficient was adapted; the best model of a run is the one of the highest objective."""
    made = full("rloo", kl_coef=0.5, target_kl=1.0, epochs=2, learning_rate=1e-2)
    assert made.best_by == ("eval/objective", "highest")
    while not made.done:
        made.update()
    made.kl_coef = 3.0
    found = made.evaluate()
    assert abs(found["eval/kl"]) > 0.01
    assert found["eval/objective"] == pytest.approx(found["eval/score"] - 0.5 * found["eval/kl"], rel=1e-5)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_every_process_draws_whole_groups(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a reward that compares the responses to a prompt would see parts of groups, or none."""
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    full(kind, batch_size=8, group_size=4)
    with pytest.raises(UsageError, match="batch_size is 12; expected a multiple of 8, group_size times the number of"):
        full(kind, batch_size=12, group_size=4)


def test_a_missing_end_costs() -> None:
    plain, dear = full("rloo"), full("rloo", missing_eos_penalty=2.5)
    one, other = plain.collect(0), dear.collect(0)
    cut = torch.tensor([not response.ended for response in one.responses])
    assert bool(cut.any())
    torch.testing.assert_close(one.score - other.score, 2.5 * cut.float())


def test_ppo_learns_a_reward() -> None:
    """The letter e is praised; the mean score of held-out prompts rises."""
    made = full("ppo", batch_size=32, rows=32, learning_rate=1e-2, epochs=12, kl_coef=0.001, update_epochs=4)
    before = made.evaluate()["eval/score"]
    scores = [made.update()["train/score"] for _ in range(made.total_steps)]
    assert sum(scores[-3:]) / 3 > scores[0] + 0.05
    assert made.evaluate()["eval/kl"] > 0.1
    assert before < 0.2


def test_a_reward_that_fails_stops_the_run() -> None:
    for wrong in (lambda prompts, texts: [1.0], lambda prompts, texts: [float("nan")] * len(texts)):
        with pytest.raises(RunError, match="the reward gave"):
            full("rloo", reward=wrong).update()


def test_alarms_by_hand() -> None:
    drawn = [Response((1, 2, 3, 4, 1, 2, 3, 4, 0), (0.0,) * 9, True), Response((5, 5, 5, 5, 5), (0.0,) * 5, False)]
    found = response_figures([*drawn, Response((1, 0), (0.0,) * 2, True)])
    assert found["ended"] == pytest.approx(2 / 3)
    assert found["repetition"] == pytest.approx((1 / 6 + 1 / 2 + 0.0) / 3)
    fine = {"ended": 0.06, "repetition": 0.29, "response_length": 39.0}
    assert alarms(fine, 20.0, 64) == {}
    for change, kind, said in (
        ({"ended": 0.04}, "ended", r"4% of the responses end by themselves; max_new_tokens \(64\) cuts the rest"),
        ({"repetition": 0.31}, "repetition", r"repeat themselves: 31% of their stretches of 4 tokens"),
        ({"response_length": 41.0}, "length", r"have 41 tokens on average; at first they had 20"),
        ({"response_length": 9.0}, "length", r"have 9 tokens on average; at first they had 20"),
    ):
        text = alarms({**fine, **change}, 20.0, 64)
        assert list(text) == [kind]
        assert re.search(said, text[kind])


def test_alarms_are_said_once() -> None:
    """By means over 64 responses, here of eight updates, and the length by that of the first eight."""
    notes: list[str] = []
    made = full("rloo", epochs=9, batch_size=8)
    made.prepare(notes.append)
    fine = {"ended": 1.0, "repetition": 0.0, "response_length": 10.0}
    told: list[int] = []
    for step in range(28):
        made.step = step
        made.watch({**fine, "response_length": 10.0 if step < 8 else 30.0, "ended": float(step < 8)})
        told.append(len(notes))
        if step == 7:
            restored = full("rloo", epochs=9, batch_size=8)
            restored.load_tensors(made.tensors(), 8)
            assert restored.first_length == made.first_length == pytest.approx(10.0)
    assert told.index(1) == 12  # (3 * 10 + 5 * 30) / 8 > 20, and three of eight still ended
    assert notes[0].startswith("update 13: responses have 22 tokens")
    assert told.index(2) == 15  # none of eight ended
    assert len(notes) == 2
    older = made.tensors()
    del older["state/first_length"]
    restored.load_tensors(older, 28)
    restored.prepare(notes.append)
    for _ in range(8):
        restored.watch({**fine, "response_length": 99.0})
    assert len(notes) == 2  # nothing to compare with


def test_a_run_that_never_ends_its_responses_says_so() -> None:
    said: list[str] = []
    settings = {"batch_size": 8, "group_size": 2, "max_new_tokens": 4, "max_steps": 10, "epochs": 9, "threads": 1}
    lm = dataclasses.replace(tiny(scale=1.0), end_tokens=(319,))
    run = LanguageRun("rloo", lm, demonstrations(8), reward=shout, note=lambda text: None, **settings)
    run.training.note = said.append  # as a display that takes over from the notes of the start
    for _ in run:
        pass
    assert len([text for text in said if "end by themselves" in text]) == 1
