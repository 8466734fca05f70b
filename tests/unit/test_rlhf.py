"""RLHF's updates with a recurrent language model in float32, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers_tokens import TinyActorCritic, TinyLM
from steepest.errors import UsageError
from steepest.language.rlhf import GRPO, RLHF, RLOO, GRPOConfig, RLOOConfig, TokenPPO, TokenPPOConfig
from steepest.types import TokenBatch

KINDS: dict[str, tuple[type[RLHF], Any, type[TinyLM]]] = {
    "ppo": (TokenPPO, TokenPPOConfig, TinyActorCritic),
    "rloo": (RLOO, RLOOConfig, TinyLM),
    "grpo": (GRPO, GRPOConfig, TinyLM),
}
each = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **config: Any) -> RLHF:
    trainer, settings, model = KINDS[kind]
    groups = {} if kind == "ppo" else {"group_size": 4}
    return trainer(settings(**(groups | config)), model(5), model(5))


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


def likelihood(trainer: RLHF, b: TokenBatch) -> Tensor:
    """Mean log-probability of token 2 over that of the other tokens, where the response is decided."""
    output: Any = trainer.policy(b.tokens, b.attention_mask)
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits[:, :-1].log_softmax(-1)[..., 2][b.response_mask[:, 1:]].mean()


@each
def test_updates_favour_what_scores(kind: str) -> None:
    """Off-policy here, the same batch again and again, but the direction is known; the first ratio is 1."""
    trainer, b = make(kind, learning_rate=1e-2, kl_coef=0.01), batch(64)
    before = float(likelihood(trainer, b).detach())
    first = trainer.update(b, wanted(b), generator=torch.Generator().manual_seed(0))
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["score"] == pytest.approx(float(wanted(b).mean()), rel=1e-5)
    for _ in range(5):
        last = trainer.update(b, wanted(b), generator=torch.Generator().manual_seed(0))
    assert float(likelihood(trainer, b).detach()) > before + 0.1
    assert last["kl_k3"] > 0.0
    assert all(torch.isfinite(torch.tensor(list(last.values()))))


@each
def test_the_size_of_parts_changes_nothing(kind: str) -> None:
    found: list[Tensor] = []
    for size in (None, 3):
        trainer, b = make(kind, learning_rate=1e-2, microbatch_size=size, minibatches=2, epochs=2), batch()
        trainer.update(b, wanted(b), generator=torch.Generator().manual_seed(0))
        found.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
    # 2e-4: Adam's first steps are of size lr whatever the gradient's, which float32 rounds differently in other parts.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-4)


@each
def test_padding_changes_nothing(kind: str) -> None:
    """More of it on either side, of another id: the same losses."""
    b = batch()
    wide = TokenBatch(
        nn.functional.pad(b.tokens, (3, 2), value=4),
        nn.functional.pad(b.attention_mask, (3, 2)),
        nn.functional.pad(b.response_mask, (3, 2)),
    )
    found: list[Tensor] = []
    for x in (b, wide):
        trainer = make(kind)
        steps = trainer.steps(x)
        fixed = trainer.targets(steps, wanted(b))
        found.append(trainer.sequence_loss(*trainer.forward(x), steps, fixed)[0].detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@each
def test_training_goes_on_where_it_was_saved(kind: str) -> None:
    one = make(kind, learning_rate=1e-2, target_kl=0.1)
    one.update(batch(), wanted(batch()), generator=torch.Generator().manual_seed(0))
    other = make(kind, learning_rate=1e-2, target_kl=0.1)
    other.policy.load_state_dict(one.policy.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    b = batch(seed=1)
    figures = [t.update(b, wanted(b), generator=torch.Generator().manual_seed(1)) for t in (one, other)]
    assert figures[0] == figures[1]
    assert all(torch.equal(p, q) for p, q in zip(one.policy.parameters(), other.policy.parameters(), strict=True))


def test_dropout_is_off() -> None:
    """The old policy and the new one are the same before the first step, though dropout was on."""

    class Dropping(TinyActorCritic):
        def hidden(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            return nn.functional.dropout(super().hidden(tokens, attention_mask), 0.5, self.training)

    policy, reference = Dropping(5).train(), Dropping(5).train()
    trainer, b = TokenPPO(TokenPPOConfig(epochs=1, minibatches=1), policy, reference), batch()
    found = trainer.update(b, wanted(b), generator=torch.Generator())
    assert found["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["kl"] == pytest.approx(0.0, abs=1e-5)


def test_minibatches_are_drawn_from_the_generator() -> None:
    found: list[Tensor] = []
    for seed in (0, 0, 1):
        trainer, b = make("ppo", learning_rate=1e-2, epochs=1, minibatches=2), batch()
        trainer.update(b, wanted(b), generator=torch.Generator().manual_seed(seed))
        found.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=0, atol=1e-4)


def test_what_is_not_trained_stays() -> None:
    policy = TinyLM(5)
    policy.embedding.weight.requires_grad_(False)
    before = policy.embedding.weight.clone()
    trainer, b = RLOO(RLOOConfig(learning_rate=1e-2), policy, TinyLM(5)), batch()
    trainer.update(b, wanted(b), generator=torch.Generator().manual_seed(0))
    assert torch.equal(policy.embedding.weight, before)


def test_misuse_is_explained() -> None:
    b, g = batch(6), torch.Generator()
    with pytest.raises(UsageError, match="one each"):
        make("ppo").update(b, torch.zeros(5), generator=g)
    with pytest.raises(UsageError, match="not finite"):
        make("ppo").update(b, torch.full((6,), float("nan")), generator=g)
    with pytest.raises(UsageError, match="do not fill"):
        make("ppo", minibatches=7).update(b, wanted(b), generator=g)
    with pytest.raises(UsageError, match="groups of 4"):
        make("rloo").update(b, wanted(b), generator=g)
    with pytest.raises(UsageError, match="needs values"):
        TokenPPO(TokenPPOConfig(), TinyLM(5), TinyLM(5)).update(b, wanted(b), generator=g)
    for kind, name, value in (
        ("ppo", "kl_coef", -1.0),
        ("ppo", "gae_lambda", 1.5),
        ("rloo", "group_size", 1),
        ("grpo", "group_size", 1),
        ("grpo", "temperature", 0.0),
        ("ppo", "target_kl", 0.0),
        ("ppo", "epochs", 0),
    ):
        with pytest.raises(UsageError, match=name):
            KINDS[kind][1](**{name: value})
