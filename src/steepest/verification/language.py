"""The score function of language models (notes 2.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest import distributions, losses
from steepest.exact import language as languages
from steepest.exact.theorems import (
    CONTROL,
    EQUALITY,
    Preferences,
    Sides,
    Statement,
    gradient,
    preferences,
)

# 2.2.1: the score function of language models


def rlhf_score_function(p: Preferences) -> Sides:
    """The same loss with the shaped reward, over every response, has the gradient of the RLHF objective."""
    return Sides(_rlhf_slope(p, p.kl_coef), _rlhf_gradient(p))


def rlhf_without_the_penalty(p: Preferences) -> Sides:
    """Negative control: the score alone as reward."""
    return Sides(_rlhf_slope(p, 0.0), _rlhf_gradient(p))


def _rlhf_gradient(p: Preferences) -> Tensor:
    return languages.rlhf_gradient(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)


def _rlhf_slope(p: Preferences, kl_coef: float) -> Tensor:
    """(P, S, V) minus the expected gradient of the score-function loss, tokens scored by the shipped Categorical."""
    language = p.language
    shaped = p.score - kl_coef * (p.log_policy - p.log_reference)
    weight = language.prompt_weight.unsqueeze(-1) * p.log_policy.exp()

    def expected_loss(logits: Tensor) -> Tensor:
        policy = distributions.Categorical(torch.log_softmax(logits, -1)[:, language.prefix])
        token = policy.log_prob(language.tokens.expand(len(language.prompts), -1, -1))
        log_prob = (token * language.mask).sum(-1)
        return (weight * losses.score_function_loss(log_prob, shaped)).sum()

    return -gradient(expected_loss, p.logits)


# The rows

_SCORE = "losses.score_function_loss"

ROWS: tuple[Statement, ...] = (
    Statement("2.2.1", "RLHF by the score function", EQUALITY, preferences, rlhf_score_function, _SCORE),
    Statement("2.2.1", "RLHF without the KL term", CONTROL, preferences, rlhf_without_the_penalty, _SCORE),
)
