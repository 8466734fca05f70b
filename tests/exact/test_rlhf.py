"""RLHF's losses and updates on a language whose responses are all listed, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers_tokens import F64, PLAIN, listed, listed_reference, no_reward, normal, small_language
from steepest.exact import language as exact
from steepest.exact.token_batches import TabularActorCritic, TabularLM, everything, padded, prefix_values
from steepest.language.data.tokens import last_steps, token_kl, token_log_probs
from steepest.language.training.rlhf import GRPO, RLOO, TokenPPO, TokenPPOConfig
from steepest.language.training.rlhf_base import RLHF, Steps
from steepest.losses import k1_estimate, k2_estimate, k3_estimate, proportional_kl_coef, score_function_loss
from steepest.returns import generalized_advantage, scaled_token_rewards, token_rewards
from steepest.types import TokenBatch

LANGUAGE = small_language()
PROMPTS, RESPONSES = LANGUAGE.response_shape
KL_COEF = 0.6


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=atol)


def differ(found: Tensor, expected: Tensor, by: float = 1e-2) -> None:
    assert float((found - expected).norm()) > by * float(expected.norm())


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reference logits and scores."""
    return (
        normal(seed, LANGUAGE.table_shape),
        normal(seed + 100, LANGUAGE.table_shape),
        normal(seed + 200, LANGUAGE.response_shape),
    )


def whole(table: Tensor) -> Tensor:
    return exact.response_log_probs(LANGUAGE, table)


def drawn_mean(table: Tensor, values: Tensor) -> Tensor:
    """E_x E_{y~pi} of something per response, (P, R), the draw held fixed as samples are."""
    return (LANGUAGE.prompt_weight[:, None] * whole(table).detach().exp() * values).sum()


# Estimates of the KL


@pytest.mark.parametrize("seed", [0, 1])
def test_kl_estimates_as_values(seed: int) -> None:
    """k1 and k3 are unbiased, of whole responses and summed over tokens; k2 is not; k1 alone takes either sign."""
    table, reference, _ = problem(seed)
    new, ref = whole(table), whole(reference)
    expected = exact.prompt_mean(LANGUAGE, exact.kl_divergence(new, ref))
    tokens = [exact.token_log_probs(LANGUAGE, t) for t in (table, reference)]
    for estimate in (k1_estimate, k3_estimate):
        close(drawn_mean(table, estimate(new, ref)), expected)
        close(drawn_mean(table, estimate(*tokens).sum(-1)), expected)
    differ(drawn_mean(table, k2_estimate(new, ref)), expected)
    assert float(k1_estimate(new, ref).min()) < 0.0
    assert float(k2_estimate(new, ref).min()) >= 0.0
    assert float(k3_estimate(new, ref).min()) >= 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_kl_estimates_as_losses(seed: int) -> None:
    """Differentiated on samples, k1 teaches nothing, k2 has the gradient of KL(pi||ref), k3 that of KL(ref||pi)."""
    table, reference, _ = problem(seed)
    ref = whole(reference)

    def sampled(estimate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return slope(lambda t: drawn_mean(t, estimate(whole(t), ref)), table)

    def mean(divergence: Callable[[Tensor], Tensor]) -> Tensor:
        return slope(lambda t: exact.prompt_mean(LANGUAGE, divergence(whole(t))), table)

    reverse = mean(lambda new: exact.kl_divergence(new, ref))
    forward = mean(lambda new: exact.kl_divergence(ref, new))
    close(sampled(k1_estimate), torch.zeros_like(table))
    close(sampled(k2_estimate), reverse)
    close(sampled(k3_estimate), forward)
    differ(forward, reverse)
    # Held fixed and used as a reward, k1 has the right gradient.
    close(slope(lambda t: drawn_mean(t, score_function_loss(whole(t), -k1_estimate(whole(t), ref))), table), reverse)


def test_kl_estimates_summed_over_tokens() -> None:
    """k2 and the whole vocabulary's KL, summed over tokens, miss that tokens decide what follows: the same half."""
    table, reference, _ = problem(0)
    refs = exact.token_log_probs(LANGUAGE, reference)
    batch = everything(LANGUAGE)
    read = TabularLM(LANGUAGE, reference)(*batch[:2]).detach()

    def by_token(t: Tensor) -> Tensor:
        return drawn_mean(t, k2_estimate(exact.token_log_probs(LANGUAGE, t), refs).sum(-1))

    def by_vocabulary(t: Tensor) -> Tensor:
        logits = torch.func.functional_call(TabularLM(LANGUAGE, table), {"table": t}, batch[:2])
        kl = torch.where(batch.response_mask[:, 1:], token_kl(logits, read), 0.0)
        return drawn_mean(t, kl.sum(-1).reshape(PROMPTS, RESPONSES))

    kl = slope(lambda t: exact.prompt_mean(LANGUAGE, exact.kl_divergence(whole(t), whole(reference))), table)
    close(slope(by_token, table), slope(by_vocabulary, table))
    differ(slope(by_token, table), kl)
    # Where nothing follows that could depend on it, at the last prefixes, the two agree.
    last = [i for i, p in enumerate(LANGUAGE.prefixes) if len(p) == LANGUAGE.max_length - 1]
    close(slope(by_token, table)[:, last], kl[:, last])


def test_kl_of_the_whole_vocabulary() -> None:
    """Summed over the tokens of responses drawn from pi it is unbiased for the KL of responses, at any temperature."""
    table, reference, _ = problem(1)
    batch = everything(LANGUAGE)
    logits, refs = (TabularLM(LANGUAGE, t)(*batch[:2]).detach() for t in (table, reference))
    for temperature in (1.0, 0.7):
        kl = torch.where(batch.response_mask[:, 1:], token_kl(logits, refs, temperature), 0.0).sum(-1)
        new, ref = table / temperature, reference / temperature
        expected = exact.prompt_mean(LANGUAGE, exact.token_kl_divergence(LANGUAGE, new, ref))
        close(drawn_mean(new, kl.reshape(PROMPTS, RESPONSES)), expected)


def test_proportional_kl_coef() -> None:
    cases = [
        # KL, target, responses, horizon, factor
        (6.0, 6.0, 64, 1000, 1.0),
        (6.6, 6.0, 64, 1000, 1.0 + 0.1 * 0.064),
        (60.0, 6.0, 64, 1000, 1.0 + 0.2 * 0.064),
        (5.7, 6.0, 100, 1000, 1.0 - 0.05 * 0.1),
        (-1.0, 6.0, 1000, 1000, 0.8),
    ]
    for kl, target, responses, horizon, factor in cases:
        found = proportional_kl_coef(0.3, kl, target, responses, float(horizon))
        assert found == pytest.approx(0.3 * factor, rel=1e-12)
    for bad in ({"target_kl": 0.0}, {"horizon": 10.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            proportional_kl_coef(0.1, 1.0, **({"target_kl": 1.0, "responses": 64, "horizon": 100.0} | bad))


# Rewards of tokens


def listed_steps(table: Tensor, reference: Tensor) -> tuple[TokenBatch, Tensor, Tensor]:
    """The batch of everything, and its log-probabilities (B, T) under both, noise where no response is."""
    batch = everything(LANGUAGE)
    new, ref = (token_log_probs(TabularLM(LANGUAGE, t)(*batch[:2]).detach(), batch.tokens) for t in (table, reference))
    return batch, new, ref


def test_token_rewards_are_the_exact_ones() -> None:
    table, reference, score = problem(0)
    batch, new, ref = listed_steps(table, reference)
    valid = batch.response_mask[:, 1:]
    found = token_rewards(score.flatten(), new.T, ref.T, valid.T, last_steps(valid).T, KL_COEF).T
    expected = exact.shaped_token_rewards(LANGUAGE, table, reference, score, KL_COEF)
    close(found[valid], expected[:, LANGUAGE.mask].flatten())
    assert not found[~valid].any()
    close(found.sum(-1).reshape(score.shape), score - KL_COEF * (whole(table) - whole(reference)))


def objective_slope(table: Tensor, reference: Tensor, reward: Tensor) -> Tensor:
    """The gradient for rewards (P, R) held fixed."""
    return -slope(lambda t: drawn_mean(t, score_function_loss(whole(t), reward)), table)


def test_scaling_rewards() -> None:
    """Score and penalty divided by one number: the same gradient but for it. Scaled or shifted apart: another one."""
    table, reference, score = problem(0)
    batch, new, ref = listed_steps(table, reference)
    valid = batch.response_mask[:, 1:].T
    reward = token_rewards(score.flatten(), new.T, ref.T, valid, last_steps(valid.T).T, KL_COEF)
    deviation = reward.sum(0).std(correction=0) + 1e-4
    scaled = scaled_token_rewards(reward)
    close(scaled, reward / deviation)
    right = exact.rlhf_gradient(LANGUAGE, table, reference, score, KL_COEF)
    close(objective_slope(table, reference, scaled.sum(0).reshape(score.shape)), right / deviation)
    # The score alone: in effect another kl_coef.
    first = token_rewards((score / 3.0).flatten(), new.T, ref.T, valid, last_steps(valid.T).T, KL_COEF)
    wrong = objective_slope(table, reference, first.sum(0).reshape(score.shape)) * 3.0
    differ(wrong, right)
    close(wrong, exact.rlhf_gradient(LANGUAGE, table, reference, score, 3.0 * KL_COEF))
    # A mean subtracted from every token: pays by the token.
    shifted = torch.where(valid, reward - reward[valid].mean(), 0.0)
    differ(objective_slope(table, reference, shifted.sum(0).reshape(score.shape)), right)


# The gradient of the objective


def ppo(table: Tensor, value: Tensor, reference: Tensor, **config: Any) -> TokenPPO:
    settings = {"kl_coef": KL_COEF, "normalize_advantage": False, "gae_lambda": 1.0, "value_coef": 0.0, **PLAIN}
    return TokenPPO(
        listed(TabularActorCritic(LANGUAGE, table, value)),
        TokenPPOConfig(**(settings | config)),
        (),
        no_reward,
        reference=listed_reference(TabularLM(LANGUAGE, reference)),
        head=nn.Identity(),
    )


def grouping(kind: type[RLHF[Any]], table: Tensor, reference: Tensor, **config: Any) -> RLHF[Any]:
    """RLOO or GRPO, groups of two."""
    settings = kind.Config(**{"kl_coef": KL_COEF, "group_size": 2, **PLAIN, **config})
    model, ref = listed(TabularLM(LANGUAGE, table)), listed_reference(TabularLM(LANGUAGE, reference))
    return kind(model, settings, (), no_reward, reference=ref)


def parameter(trainer: RLHF[Any], name: str = "table") -> Tensor:
    return trainer.named[f"function.{name}"]


def expected_slope(trainer: RLHF[Any], batch: TokenBatch, score: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Minus the gradient of the weighted sum of the losses, by parameter: the first step of an update."""
    steps = trainer.steps(batch)
    fixed = trainer.targets(steps, score)
    log_prob, value = trainer.forward(batch)
    loss, _ = trainer.sequence_loss(log_prob, value, steps, fixed)
    names, parameters = zip(*trainer.named.items(), strict=True)
    found = torch.autograd.grad((weight * loss).sum(), parameters, allow_unused=True)
    return {
        name.removeprefix("function."): -g if g is not None else torch.zeros(())
        for name, g in zip(names, found, strict=True)
    }


def drawn(table: Tensor) -> Tensor:
    """(P * R,) probability of each prompt and response."""
    return (LANGUAGE.prompt_weight[:, None] * whole(table).exp()).flatten()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("exact_values", [False, True])
def test_ppo_gradient_over_all_responses(seed: int, exact_values: bool) -> None:
    """Any values at lambda = 1, or exact values at any lambda: the gradient of RLHF's objective, tokens summed."""
    table, reference, score = problem(seed)
    value = normal(seed + 300, LANGUAGE.table_shape[:2])
    if exact_values:
        reward = exact.shaped_token_rewards(LANGUAGE, table, reference, score, KL_COEF)
        value = prefix_values(LANGUAGE, whole(table), exact.token_log_probs(LANGUAGE, table), reward)
    right = exact.rlhf_gradient(LANGUAGE, table, reference, score, KL_COEF)
    for lam in (0.0, 0.6, 1.0) if exact_values else (1.0,):
        trainer = ppo(table, value, reference, gae_lambda=lam)
        found = expected_slope(trainer, everything(LANGUAGE), score.flatten(), drawn(table))
        close(found["table"], right)
    if not exact_values:
        trainer = ppo(table, value, reference, gae_lambda=0.6)
        found = expected_slope(trainer, everything(LANGUAGE), score.flatten(), drawn(table))
        differ(found["table"], right)


def test_ppo_critic_is_at_rest_at_the_exact_values() -> None:
    table, reference, score = problem(2)
    reward = exact.shaped_token_rewards(LANGUAGE, table, reference, score, KL_COEF)
    value = prefix_values(LANGUAGE, whole(table), exact.token_log_probs(LANGUAGE, table), reward)
    for lam in (0.0, 0.7, 1.0):
        trainer = ppo(table, value, reference, gae_lambda=lam, value_coef=1.0)
        found = expected_slope(trainer, everything(LANGUAGE), score.flatten(), drawn(table))
        close(found["value"], torch.zeros_like(value))
    reach = torch.zeros_like(value)  # at lambda = 1 the pull back is the number of visits
    for t in range(LANGUAGE.max_length):
        here = LANGUAGE.mask[:, t]
        reach.index_add_(1, LANGUAGE.prefix[here, t], drawn(table).reshape(PROMPTS, RESPONSES)[:, here])
    for coef in (1.0, 0.3):
        away = ppo(table, value + 1.0, reference, value_coef=coef)
        found = expected_slope(away, everything(LANGUAGE), score.flatten(), drawn(table))
        close(found["value"], -coef * reach)


def wrong_gradient(table: Tensor, reference: Tensor, score: Tensor, **parts: Any) -> Tensor:
    """PPO's gradient at lambda = 1 with some part of it replaced by a known mistake."""
    batch, new, ref = listed_steps(table, reference)
    chosen = parts.get("response_mask", batch.response_mask)[:, 1:]
    valid = chosen.T
    last = parts.get("last", last_steps)(chosen).T
    reward = token_rewards(score.flatten(), new.T, ref.T, valid, last, KL_COEF)
    terminated = parts.get("terminated", lambda x: x)(last)
    value = parts.get("value", torch.zeros((valid.shape[0] + 1, valid.shape[1]), dtype=F64))
    advantage = generalized_advantage(reward, value, terminated, last & ~terminated, valid, 1.0, 1.0).T

    def expected_loss(t: Tensor) -> Tensor:
        logits = torch.func.functional_call(TabularLM(LANGUAGE, table), {"table": t}, batch[:2])
        loss = score_function_loss(token_log_probs(logits, batch.tokens), advantage)
        return (drawn(table) * torch.where(chosen, loss, 0.0).sum(-1)).sum()

    return -slope(expected_loss, table)


def after_the_last(chosen: Tensor) -> Tensor:
    """The step after each response's last one."""
    last = last_steps(chosen)
    return torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], -1)


def test_known_mistakes_are_not_the_gradient() -> None:
    table, reference, score = problem(0)
    right = exact.rlhf_gradient(LANGUAGE, table, reference, score, KL_COEF)
    close(wrong_gradient(table, reference, score), right)
    batch = everything(LANGUAGE)
    ends = batch.tokens[:, 1:].eq(LANGUAGE.eos) & last_steps(batch.response_mask[:, 1:])
    mistakes: dict[str, dict[str, Any]] = {
        "the score on the slot after the end": {"last": after_the_last},
        "EOS taken for padding by its id": {"response_mask": batch.response_mask & (batch.tokens != LANGUAGE.eos)},
        "bootstrapping past the token limit": {
            "terminated": lambda last: last & ends.T,
            "value": normal(5, (batch.tokens.shape[1], len(batch.tokens))),
        },
        "bootstrapping past every end": {
            "terminated": torch.zeros_like,
            "value": normal(5, (batch.tokens.shape[1], len(batch.tokens))),
        },
    }
    for name, parts in mistakes.items():
        if name == "EOS taken for padding by its id":
            # A response of EOS alone has no token left; the others lose their last one.
            assert (~parts["response_mask"].any(-1)).sum() == PROMPTS
        error = (wrong_gradient(table, reference, score, **parts) - right).norm() / right.norm()
        assert float(error) > 0.1, name


def pairs(table: Tensor) -> tuple[TokenBatch, Tensor, Tensor]:
    """Every group of two responses to a prompt: rows, their numbers, and each row's share of the expectation."""
    x, one, other = (i.flatten() for i in torch.meshgrid(*(torch.arange(n) for n in (2, 15, 15)), indexing="ij"))
    rows = torch.stack([x * RESPONSES + one, x * RESPONSES + other], -1).flatten()
    p = whole(table).exp()
    share = LANGUAGE.prompt_weight[x] * p[x, one] * p[x, other] / 2.0
    return padded(LANGUAGE, rows // RESPONSES, rows % RESPONSES), rows, share.repeat_interleave(2)


@pytest.mark.parametrize("seed", [0, 1])
def test_rloo_gradient_over_all_groups(seed: int) -> None:
    """In expectation over groups of two it is the gradient of RLHF's objective; less their mean, it is half of it."""
    table, reference, score = problem(seed)
    right = exact.rlhf_gradient(LANGUAGE, table, reference, score, KL_COEF)
    batch, rows, share = pairs(table)
    trainer = grouping(RLOO, table, reference)
    found = expected_slope(trainer, batch, score.flatten()[rows], share)["table"]
    close(found, right)
    steps = trainer.steps(batch)
    fixed = trainer.targets(steps, score.flatten()[rows])
    mean = {"advantage": fixed["advantage"] / 2.0}  # r - mean of both = half of r - the other one
    loss, _ = trainer.sequence_loss(*trainer.forward(batch), steps, mean)
    (half,) = torch.autograd.grad((share * loss).sum(), list(trainer.named.values()))
    close(-half, right / 2.0)


def test_grpo_gradient_over_all_groups() -> None:
    """It is what it says, computed from the listed log-probabilities; and it is not the gradient of the objective."""
    table, reference, score = problem(0)
    batch, rows, share = pairs(table)
    trainer = grouping(GRPO, table, reference)
    found = expected_slope(trainer, batch, score.flatten()[rows], share)["table"]
    refs = exact.token_log_probs(LANGUAGE, reference)
    p = whole(table).exp()

    def written(t: Tensor) -> Tensor:
        new, tokens = whole(t), exact.token_log_probs(LANGUAGE, t)
        gap = torch.where(LANGUAGE.mask, refs - tokens, 0.0)
        k3 = (torch.exp(gap) - 1.0 - gap).sum(-1)
        total = torch.zeros((), dtype=F64)
        for x in range(PROMPTS):
            for i in range(RESPONSES):
                for j in range(RESPONSES):
                    d = 0.5 * (score[x, i] - score[x, j])  # the group's deviation is |d|
                    advantage = d / (d.abs() + 1e-4)
                    value = advantage * new[x, i] - KL_COEF * k3[x, i]
                    total = total + LANGUAGE.prompt_weight[x] * p[x, i] * p[x, j] * value
        return total

    close(found, slope(written, table))
    differ(found, exact.rlhf_gradient(LANGUAGE, table, reference, score, KL_COEF))


# Updates


def draw(table: Tensor, prompts: int, each: int, generator: torch.Generator) -> tuple[TokenBatch, Tensor]:
    """Responses of the policy to random prompts, ``each`` to one, and their numbers (P * R)."""
    x = torch.multinomial(LANGUAGE.prompt_weight, prompts, replacement=True, generator=generator)
    p = whole(table.detach()).exp()
    y = torch.multinomial(p[x], each, replacement=True, generator=generator).flatten()
    x = x.repeat_interleave(each)
    return padded(LANGUAGE, x, y), x * RESPONSES + y


def distance(table: Tensor, reference: Tensor, score: Tensor) -> float:
    """The larger of the two prompts' KL(pi || pi*)."""
    optimum = exact.optimal_log_probs(whole(reference), score, KL_COEF)
    return float(exact.kl_divergence(whole(table.detach()), optimum).max())


SAMPLED: dict[str, Any] = {**PLAIN, "kl_coef": KL_COEF, "schedule": "linear"}


@pytest.mark.parametrize(("algorithm", "updates"), [("ppo", 200), ("rloo", 500)])
def test_sampled_updates_reach_the_optimum(algorithm: str, updates: int) -> None:
    """From the reference, on samples alone: KL(pi || pi*) below 1e-3 nats, and the objective at kl_coef E[log Z]."""
    _, reference, score = problem(0)
    generator = torch.Generator().manual_seed(0)
    trainer: RLHF[Any]
    if algorithm == "ppo":
        settings = {"learning_rate": 0.05, "value_coef": 1.0, "update_epochs": 2, "minibatches": 2}
        value = torch.zeros(LANGUAGE.table_shape[:2], dtype=F64)
        trainer = ppo(reference, value, reference, gae_lambda=0.95, epochs=updates, **{**SAMPLED, **settings})
    else:
        trainer = grouping(RLOO, reference, reference, learning_rate=0.1, group_size=4, epochs=updates, **SAMPLED)
    assert distance(reference, reference, score) > 0.1
    for _ in range(updates):
        batch, rows = draw(parameter(trainer), 64, 4, generator)
        figures = trainer.improve(batch, score.flatten()[rows])
        trainer.step += 1
    assert trainer.done
    table = parameter(trainer).detach()
    assert distance(table, reference, score) < 1e-3
    best = float(exact.optimal_value(LANGUAGE, whole(reference), score, KL_COEF))
    found = exact.rlhf_objective(LANGUAGE, whole(table), whole(reference), score, KL_COEF)
    assert float(found) == pytest.approx(best, abs=KL_COEF * 1e-3)
    # At the optimum every response's shaped reward is kl_coef log Z(x), so that samples hardly vary: 64 prompts.
    assert figures["objective"] == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("micro_batch_size", [1000, 7])
def test_an_update_is_the_written_one(micro_batch_size: int) -> None:
    """One epoch, one minibatch, without clipping of norms: AdamW on the mean over responses, whatever the parts."""
    table, reference, score = problem(1)
    value = normal(9, LANGUAGE.table_shape[:2])
    settings = {"update_epochs": 1, "minibatches": 1, "learning_rate": 0.01, "value_coef": 0.3}
    trainer = ppo(table, value, reference, micro_batch_size=micro_batch_size, gae_lambda=0.9, **settings)
    batch, rows = draw(table, 20, 1, torch.Generator().manual_seed(3))
    again = ppo(table, value, reference, gae_lambda=0.9, **settings)
    mean = torch.full((20,), 1.0 / 20.0, dtype=F64)
    ascent = expected_slope(again, batch, score.flatten()[rows], mean)
    found = trainer.improve(batch, score.flatten()[rows])
    for name, start in (("table", table), ("value", value)):
        g = -ascent[name]
        close(parameter(trainer, name).detach(), start - 0.01 * g / (g.abs() + 1e-8), atol=1e-9)  # Adam's first step
    norm = math.sqrt(sum(float(g.square().sum()) for g in ascent.values()))
    assert found["gradient_norm"] == pytest.approx(norm, rel=1e-10)
    k1 = (whole(table) - whole(reference)).flatten()[rows]
    assert found["kl"] == pytest.approx(float(k1.mean()), rel=1e-10)
    assert found["objective"] == pytest.approx(float((score.flatten()[rows] - KL_COEF * k1).mean()), rel=1e-10)
    assert found["entropy"] == pytest.approx(-float(whole(table).flatten()[rows].mean()), rel=1e-10)
    assert found["response_length"] == pytest.approx(float(LANGUAGE.mask.sum(-1)[rows % RESPONSES].double().mean()))
    assert found["approx_kl"] == pytest.approx(0.0, abs=1e-14)
    assert found["clip_fraction"] == 0.0


def test_temperature_is_that_of_the_draw() -> None:
    """Trained at temperature 2, the gradient is that of the policy and the reference at temperature 2."""
    table, reference, score = problem(1)
    trainer = ppo(table, torch.zeros(LANGUAGE.table_shape[:2], dtype=F64), reference, temperature=2.0)
    found = expected_slope(trainer, everything(LANGUAGE), score.flatten(), drawn(table / 2.0))["table"]
    close(found, exact.rlhf_gradient(LANGUAGE, table / 2.0, reference / 2.0, score, KL_COEF) / 2.0)


def test_kl_coef_follows_its_target() -> None:
    table, reference, score = problem(1)
    trainer = ppo(table, torch.zeros(LANGUAGE.table_shape[:2], dtype=F64), reference, target_kl=0.05, kl_horizon=100.0)
    batch, rows = draw(table, 50, 1, torch.Generator().manual_seed(3))
    found = trainer.improve(batch, score.flatten()[rows])
    assert found["kl"] > 0.06
    assert found["kl_coef"] == KL_COEF
    assert trainer.kl_coef == pytest.approx(KL_COEF * 1.1, rel=1e-6)
    other = ppo(table, torch.zeros(LANGUAGE.table_shape[:2], dtype=F64), reference)
    other.load_tensors(trainer.tensors(), 1)
    assert other.kl_coef == trainer.kl_coef


def test_standardised_advantages_are_those_of_the_response() -> None:
    """Mean 0 and deviation 1 over the tokens that were decided, whatever stands elsewhere."""
    table, reference, score = problem(1)
    trainer = ppo(table, normal(4, LANGUAGE.table_shape[:2]), reference, normalize_advantage=True, gae_lambda=0.9)
    batch = everything(LANGUAGE)
    steps = trainer.steps(batch)
    advantage = trainer.targets(steps, score.flatten())["advantage"][steps.valid]
    assert float(advantage.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(advantage.var(correction=0)) == pytest.approx(1.0, rel=1e-6)


def test_rewards_scaled_within_an_update() -> None:
    table, reference, score = problem(1)
    batch = everything(LANGUAGE)
    for make in (
        lambda **c: ppo(table, torch.zeros(LANGUAGE.table_shape[:2], dtype=F64), reference, **c),
        lambda **c: grouping(RLOO, table, reference, **c),
    ):
        plain, scaled = make(), make(scale_rewards=True)
        steps = plain.steps(batch)
        total = (score - KL_COEF * (whole(table) - whole(reference))).flatten()
        one, other = (t.targets(steps, score.flatten())["advantage"] for t in (plain, scaled))
        close(other, one / (total.std(correction=0) + 1e-4))


def test_steps_hold_no_gradient() -> None:
    table, reference, _ = problem(1)
    steps = ppo(table, normal(4, LANGUAGE.table_shape[:2]), reference).steps(everything(LANGUAGE))
    assert isinstance(steps, Steps)
    assert not any(x.requires_grad for x in steps if x is not None)
