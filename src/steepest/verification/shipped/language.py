"""Language models as policies, and RLHF (notes 2.2.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from steepest import distributions, losses, returns
from steepest.exact import language as languages
from steepest.exact import token_batches
from steepest.language.data import tokens
from steepest.language.models import function_model
from steepest.language.models.language_model import LanguageModel
from steepest.language.scoring.reference import Reference
from steepest.language.training import rlhf, rlhf_base
from steepest.types import TokenBatch
from steepest.verification.random_problems import Preferences, preferences
from steepest.verification.statement import F64, Rows, Sides, gradient, loss, vanishing

rows = Rows()

# Responses as padded rows of tokens


@lru_cache(maxsize=4)
def _everything(language: languages.EnumerableLanguage) -> TokenBatch:
    """Every response to every prompt, P * R rows."""
    return token_batches.everything(language)


def _logits(p: Preferences, table: Tensor, batch: TokenBatch) -> Tensor:
    """(B, L, V) what the tabular model says about a batch, differentiable in its table."""
    model = token_batches.TabularLM(p.language, p.logits)
    return functional_call(model, {"table": table}, (batch.tokens, batch.attention_mask))


def _by_response(p: Preferences, rows: Tensor) -> Tensor:
    """(P * R,) as (P, R)."""
    return rows.reshape(p.language.response_shape)


@rows.equality("2.2.1", "log pi(y|x) of padded rows", preferences, tested="language.data.tokens.response_log_probs")
@rows.control(
    "2.2.1", "padded rows masked by token id", preferences, tested="language.data.tokens.response_log_probs", by_id=True
)
def log_probs_of_padded_rows(p: Preferences, by_id: bool = False) -> Sides:
    """Gather, masks and sums over a padded batch give log pi(y|x) of every response.

    Negative control: padding has the id of EOS, and the mask is made from ids.
    """
    batch = _everything(p.language)
    logits = _logits(p, p.logits, batch)
    if by_id:
        batch = batch._replace(response_mask=batch.response_mask & (batch.tokens != p.language.eos))
    return Sides(_by_response(p, tokens.response_log_probs(logits, batch)), p.log_policy)


# The objective's gradient: the score function of whole responses


def _drawn(p: Preferences) -> Tensor:
    """(P, R) probability of each prompt and response."""
    return p.language.prompt_weight.unsqueeze(-1) * p.log_policy.exp()


def _rlhf_gradient(p: Preferences) -> Tensor:
    return languages.rlhf_gradient(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)


def _score_slope(p: Preferences, reward: Tensor) -> Tensor:
    """(P, S, V) minus the expected gradient of the score-function loss, tokens scored by the shipped Categorical."""
    language = p.language

    def expected_loss(logits: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(logits, -1)[:, language.prefix])
        token = policy.log_prob(language.tokens.expand(len(language.prompts), -1, -1))
        log_prob = (token * language.mask).sum(-1)
        return (_drawn(p) * losses.score_function_loss(log_prob, reward)).sum()

    return -gradient(expected_loss, p.logits)


@rows.equality("2.2.1", "RLHF by the score function", preferences, tested="losses.score_function_loss")
@rows.control("2.2.1", "RLHF without the KL term", preferences, tested="losses.score_function_loss", penalised=False)
def rlhf_score_function(p: Preferences, penalised: bool = True) -> Sides:
    """The same loss with the shaped reward, over every response, has the gradient of the RLHF objective.

    Negative control: the score alone as reward.
    """
    shaped = p.score - p.kl_coef * (p.log_policy - p.log_reference)
    return Sides(_score_slope(p, shaped if penalised else p.score), _rlhf_gradient(p))


# Rewards of tokens


def _token_rewards(p: Preferences, last: Callable[[Tensor], Tensor], score: Tensor) -> tuple[Tensor, Tensor]:
    """(T, P * R) rewards of the tokens of every response, and which steps decide one."""
    batch = _everything(p.language)
    valid = batch.response_mask[:, 1:]
    new, ref = (tokens.token_log_probs(_logits(p, table, batch), batch.tokens).T for table in (p.logits, p.ref_logits))
    return returns.token_rewards(score.flatten(), new, ref, valid.T, last(valid).T, p.kl_coef), valid.T


@rows.equality("2.2.1", "reward per token, score on the last", preferences, tested="returns.token_rewards")
def token_rewards(p: Preferences) -> Sides:
    """The reward of every token is the penalty, plus the score on the last one."""
    found, valid = _token_rewards(p, tokens.last_steps, p.score)
    exact = languages.shaped_token_rewards(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)
    return Sides(found.T[valid.T], exact[:, p.language.mask].flatten())


@rows.control("2.2.1", "score on the slot after the end", preferences, tested="returns.token_rewards")
def score_after_the_end(p: Preferences) -> Sides:
    """Negative control: the score on the slot after the last token, where no token is decided."""
    found, _ = _token_rewards(p, lambda valid: functional.pad(tokens.last_steps(valid), (1, -1)), p.score)
    return Sides(_score_slope(p, _by_response(p, found.sum(0))), _rlhf_gradient(p))


@rows.equality("2.2.1", "score and penalty scaled as one", preferences, tested="returns.scaled_token_rewards")
def rewards_scaled_as_one(p: Preferences) -> Sides:
    """Score and penalty divided by the deviation of responses' totals: the gradient, but for that factor."""
    found, _ = _token_rewards(p, tokens.last_steps, p.score)
    total = p.score - p.kl_coef * (p.log_policy - p.log_reference)
    factor = total.std(correction=0) + 1e-4
    return Sides(
        _score_slope(p, _by_response(p, returns.scaled_token_rewards(found).sum(0))) * factor, _rlhf_gradient(p)
    )


@rows.control("2.2.1", "score scaled before the penalty", preferences, tested="returns.token_rewards")
def score_scaled_alone(p: Preferences) -> Sides:
    """Negative control: the score divided by thrice its deviation before the penalty: another kl_coef."""
    factor = 3.0 * p.score.std(correction=0)
    found, _ = _token_rewards(p, tokens.last_steps, p.score / factor)
    return Sides(_score_slope(p, _by_response(p, found.sum(0))) * factor, _rlhf_gradient(p))


@rows.control("2.2.1", "mean of the rewards subtracted per token", preferences, tested="returns.token_rewards")
def rewards_shifted(p: Preferences) -> Sides:
    """Negative control: the mean subtracted from every token's reward, which pays by the token."""
    found, valid = _token_rewards(p, tokens.last_steps, p.score)
    shifted = torch.where(valid, found - found[valid].mean(), torch.zeros_like(found))
    return Sides(_score_slope(p, _by_response(p, shifted.sum(0))), _rlhf_gradient(p))


# The algorithms, from the model's logits to the gradient of their loss


_WHOLE_BATCH = 1_000_000
"""Rows of a micro-batch: all that there are."""


def _no_reward(_prompts: object, _completions: object) -> list[float]:
    """Scores are given here, not computed."""
    return []


def _model(p: Preferences, function: nn.Module) -> LanguageModel:
    return function_model.as_language_model(function, vocab_size=p.language.vocab_size, end_token=p.language.eos)


def _reference(p: Preferences) -> Reference:
    return Reference(_model(p, token_batches.TabularLM(p.language, p.ref_logits)), adapters_are_fresh=False)


def _slope(trainer: rlhf_base.RLHF[Any], batch: TokenBatch, score: Tensor, weight: Tensor) -> Tensor:
    """(P, S, V) minus the gradient of the weighted sum of the losses of an update's first step."""
    experience = trainer.experience(batch, score)
    each, _ = trainer.sequence_loss(*trainer.forward(batch), experience.steps, experience.fixed)
    return -torch.autograd.grad((weight * each).sum(), trainer.named["function.table"])[0]


_TRAINERS = "language.training.rlhf."


@rows.equality("2.2.1", "RLHF by PPO, lambda = 1, any V", preferences, tested=f"{_TRAINERS}TokenPPO", trace_decay=1.0)
@rows.equality("2.2.1", "RLHF by PPO, lambda 0.7, V exact", preferences, tested=f"{_TRAINERS}TokenPPO", exact=True)
@rows.control("2.2.1", "RLHF by PPO, lambda 0.7, any V", preferences, tested=f"{_TRAINERS}TokenPPO")
def ppo_over_tokens(p: Preferences, trace_decay: float = 0.7, exact: bool = False) -> Sides:
    """PPO over tokens, every response as often as it is drawn: with lambda = 1 whatever the critic says.

    With lambda 0.7 and the exact critic too: values are read where each token's logits are. Negative control: lambda
    0.7 and a critic that knows nothing.
    """
    value = torch.cos(3.0 * p.logits).sum(-1)
    if exact:
        reward = languages.shaped_token_rewards(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)
        token = languages.token_log_probs(p.language, p.logits)
        value = token_batches.prefix_values(p.language, p.log_policy, token, reward)
    settings: dict[str, Any] = {"gae_lambda": trace_decay, "value_coef": 0.0, "normalize_advantage": False}
    config = rlhf.TokenPPOConfig(kl_coef=p.kl_coef, micro_batch_size=_WHOLE_BATCH, **settings)
    policy = _model(p, token_batches.TabularActorCritic(p.language, p.logits, value))
    trainer = rlhf.TokenPPO(policy, config, (), _no_reward, reference=_reference(p), head=nn.Identity())
    slope = _slope(trainer, _everything(p.language), p.score.flatten(), _drawn(p).flatten())
    return Sides(slope, _rlhf_gradient(p))


@rows.control("2.2.1", "bootstrapped past the token limit", preferences, tested="returns.generalized_advantage")
def ppo_past_the_limit(p: Preferences) -> Sides:
    """Negative control: a response cut by the token limit is taken for truncated and bootstrapped past its end."""
    batch = _everything(p.language)
    reward, valid = _token_rewards(p, tokens.last_steps, p.score)
    last = tokens.last_steps(valid.T).T
    by_eos = last & batch.tokens[:, 1:].T.eq(p.language.eos)
    value = torch.cos(torch.arange(reward.numel() + reward.shape[1], dtype=F64)).reshape(-1, reward.shape[1])
    advantage = returns.generalized_advantage(reward, value, by_eos, last & ~by_eos, valid, 1.0, 1.0)

    def expected_loss(table: Tensor) -> Tensor:
        log_prob = tokens.token_log_probs(_logits(p, table, batch), batch.tokens)
        each = losses.score_function_loss(log_prob, advantage.T)
        return (_drawn(p).flatten() * torch.where(valid.T, each, torch.zeros_like(each)).sum(-1)).sum()

    return Sides(-gradient(expected_loss, p.logits), _rlhf_gradient(p))


def _groups(p: Preferences) -> tuple[TokenBatch, Tensor, Tensor]:
    """Every group of two responses to a prompt: rows, their numbers (P * R), each row's share of the expectation."""
    prompts, responses = p.language.response_shape
    axes = (torch.arange(prompts), torch.arange(responses), torch.arange(responses))
    x, one, other = (i.flatten() for i in torch.meshgrid(*axes, indexing="ij"))
    chance = p.log_policy.exp()
    share = p.language.prompt_weight[x] * chance[x, one] * chance[x, other] / 2.0
    prompt, response = x.repeat_interleave(2), torch.stack([one, other], -1).flatten()
    return token_batches.padded(p.language, prompt, response), prompt * responses + response, share.repeat_interleave(2)


@rows.equality("2.2.1", "RLHF by RLOO, all groups of two", preferences, tested=f"{_TRAINERS}RLOO", algorithm="RLOO")
@rows.control("2.2.1", "RLHF by GRPO, all groups of two", preferences, tested=f"{_TRAINERS}GRPO", algorithm="GRPO")
def groups_of_two(p: Preferences, algorithm: str) -> Sides:
    """RLOO, every group of two responses as often as it is drawn, has the gradient of the RLHF objective.

    Negative control: GRPO divides by the group's deviation and penalises the other KL.
    """
    batch, rows, share = _groups(p)
    config = getattr(rlhf, f"{algorithm}Config")(kl_coef=p.kl_coef, group_size=2, micro_batch_size=_WHOLE_BATCH)
    policy = _model(p, token_batches.TabularLM(p.language, p.logits))
    trainer = getattr(rlhf, algorithm)(policy, config, (), _no_reward, reference=_reference(p))
    return Sides(_slope(trainer, batch, p.score.flatten()[rows], share), _rlhf_gradient(p))


# Estimates of the KL

Estimate = Callable[[Tensor, Tensor], Tensor]


def _kl(p: Preferences, log_prob: Tensor) -> Tensor:
    """KL(pi || ref) over prompts, of whole responses."""
    return languages.prompt_mean(p.language, languages.kl_divergence(log_prob, p.log_reference))


@rows.equality("2.2.1", "E[k1] = KL(pi||ref)", preferences, **loss("k1_estimate"))
@rows.control("2.2.1", "E[k2] = KL(pi||ref)", preferences, **loss("k2_estimate"))
@rows.equality("2.2.1", "E[k3] = KL(pi||ref)", preferences, **loss("k3_estimate"))
def value_of_an_estimate(p: Preferences, name: str) -> Sides:
    """k1 and k3 are unbiased. Negative control: k2 is biased."""
    found = getattr(losses, name)(p.log_policy, p.log_reference)
    return Sides((_drawn(p) * found).sum(), _kl(p, p.log_policy))


def _whole(p: Preferences, table: Tensor) -> Tensor:
    return languages.response_log_probs(p.language, table)


def _estimate_slope(p: Preferences, estimate: Estimate) -> Tensor:
    """(P, S, V) the expected gradient of an estimate, draws held fixed."""
    return gradient(lambda table: (_drawn(p) * estimate(_whole(p, table), p.log_reference)).sum(), p.logits)


def _kl_slope(p: Preferences) -> Tensor:
    return gradient(lambda table: _kl(p, _whole(p, table)), p.logits)


@rows.equality("2.2.1", "E[grad k1] = 0", preferences, tested="losses.k1_estimate")
def k1_slope(p: Preferences) -> Sides:
    """As a loss, k1 teaches nothing."""
    return vanishing(_estimate_slope(p, losses.k1_estimate), _kl_slope(p))


@rows.equality("2.2.1", "E[grad k2] = grad KL(pi||ref)", preferences, **loss("k2_estimate"))
@rows.equality("2.2.1", "E[grad k3] = grad KL(ref||pi)", preferences, **loss("k3_estimate"), other=True)
@rows.control("2.2.1", "E[grad k3] = grad KL(pi||ref)", preferences, **loss("k3_estimate"))
def slope_of_an_estimate(p: Preferences, name: str, other: bool = False) -> Sides:
    """As a loss of whole responses, k2 has the gradient of KL(pi || ref), and k3 that of KL(ref || pi).

    Negative control: k3 as a loss for KL(pi || ref).
    """

    def other_kl(table: Tensor) -> Tensor:
        return languages.prompt_mean(p.language, languages.kl_divergence(p.log_reference, _whole(p, table)))

    right = gradient(other_kl, p.logits) if other else _kl_slope(p)
    return Sides(_estimate_slope(p, getattr(losses, name)), right)


@rows.control("2.2.1", "grad k2 summed over tokens = grad KL", preferences, tested="losses.k2_estimate")
def k2_by_token(p: Preferences) -> Sides:
    """Negative control: k2 of each token, summed, leaves out that a token decides what follows."""
    ref = languages.token_log_probs(p.language, p.ref_logits)

    def summed(table: Tensor) -> Tensor:
        each = losses.k2_estimate(languages.token_log_probs(p.language, table), ref)
        return (_drawn(p) * each.sum(-1)).sum()

    return Sides(gradient(summed, p.logits), _kl_slope(p))


def _vocabulary_kl(p: Preferences, table: Tensor) -> Tensor:
    """The expected sum of the KLs of next-token distributions along responses drawn from pi, draws held fixed."""
    batch = _everything(p.language)
    each = tokens.token_kl(_logits(p, table, batch), _logits(p, p.ref_logits, batch))
    summed = torch.where(batch.response_mask[:, 1:], each, torch.zeros_like(each)).sum(-1)
    return (_drawn(p) * _by_response(p, summed)).sum()


@rows.equality("2.2.1", "KL of the vocabulary, summed over tokens", preferences, tested="language.data.tokens.token_kl")
def vocabulary_kl(p: Preferences) -> Sides:
    """The KL of the whole vocabulary, summed over the tokens of drawn responses, is unbiased for that of responses."""
    return Sides(_vocabulary_kl(p, p.logits), _kl(p, p.log_policy))


@rows.control("2.2.1", "its gradient = grad KL(pi||ref)", preferences, tested="language.data.tokens.token_kl")
def vocabulary_kl_slope(p: Preferences) -> Sides:
    """Negative control: as a loss it leaves out that a token decides what follows."""
    return Sides(gradient(lambda table: _vocabulary_kl(p, table), p.logits), _kl_slope(p))
