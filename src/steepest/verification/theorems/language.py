"""Preferences, RLHF and DPO (notes 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.exact import language as languages
from steepest.exact import preferences as exact_preferences
from steepest.verification.random_problems import Preferences, preferences
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()


def _margins(score: Tensor) -> Tensor:
    """(P, R, R) score of the first response less that of the second."""
    return score.unsqueeze(-1) - score.unsqueeze(-2)


@rows.equality("2.2.1", "Bradley-Terry = sigma(r1 - r2)", preferences)
def bradley_terry(p: Preferences) -> Sides:
    """The Bradley-Terry model is a sigmoid of the difference in reward.

    Equation:  exp r(x, y1) / (exp r(x, y1) + exp r(x, y2)) = sigma(r(x, y1) - r(x, y2))
    Source:    notes 2.2.1, conditioned on the prompt x.
    """
    e = p.score.exp()
    return Sides(e.unsqueeze(-1) / (e.unsqueeze(-1) + e.unsqueeze(-2)), exact_preferences.preference_probs(p.score))


@rows.control("2.2.1", "preferences across prompts", preferences)
def bradley_terry_across_prompts(p: Preferences) -> Sides:
    """Negative control: compared across prompts, a reward's shift f(x) changes the preference."""
    first, second = (r[0] - r[1] for r in (p.score, p.score + p.shift))
    return Sides(torch.sigmoid(first), torch.sigmoid(second))


def _preference_loss(p: Preferences, score: Tensor) -> Tensor:
    """The reward model's population loss, preferences being those of the true score, pairs drawn from pi_ref."""
    weight = exact_preferences.pair_weights(p.log_reference)
    return exact_preferences.preference_loss(p.language, score, exact_preferences.preference_probs(p.score), weight)


@rows.inequality("2.2.1", "L_R(r*) <= L_R(r)", preferences)
def reward_model(p: Preferences) -> Sides:
    """The reward model's loss is smallest at the reward that made the preferences.

    Equation:  L_R(r*) <= L_R(r), r = log pi_theta being as good as any, and r* + log pi_theta / 10 near
    Source:    notes 2.2.1 (Gibbs).
    """
    others = torch.stack([_preference_loss(p, r) for r in (p.log_policy, p.score + 0.1 * p.log_policy)])
    return Sides(_preference_loss(p, p.score).expand_as(others), others)


@rows.equality("2.2.1", "gradient of L_R", preferences)
def reward_model_gradient(p: Preferences) -> Sides:
    """The gradient of the reward model's loss is the error of its preferences.

    Equation:  dL_R/dr(x, y1) = -2 p(x) sum_{y2} w(y1, y2|x) (p*(y1 > y2|x) - sigma(r(x, y1) - r(x, y2)))
    Source:    notes 2.2.1. Twice, since every pair is met in both orders.
    """
    error = torch.sigmoid(_margins(p.score)) - torch.sigmoid(_margins(p.log_policy))
    reference = p.log_reference.exp()
    weight = reference.unsqueeze(-1) * reference.unsqueeze(-2)
    right = -2.0 * p.language.prompt_weight.unsqueeze(-1) * (weight * error).sum(-1)
    return Sides(gradient(lambda r: _preference_loss(p, r), p.log_policy), right)


@rows.equality("2.2.1", "per-token rewards sum to the printed one", preferences)
def shaped_reward_per_token(p: Preferences, by_token_id: bool = False) -> Sides:
    """Per-token rewards, with the score on the last token, sum to the printed reward of the response.

    Negative control: real tokens told from padding by their id lose the EOS, and with it the score.

    Equation:  sum_t [-beta (log pi(y_t|y_<t) - log pi_ref(y_t|y_<t))] + r(x, y) = r - beta (log pi(y) - log pi_ref(y))
    Source:    notes 2.2.1.
    """
    reward = languages.shaped_token_rewards(p.language, p.logits, p.ref_logits, p.score, p.kl_coef)
    if by_token_id:
        reward = reward * (p.language.tokens != p.language.eos).to(F64)
    return Sides(reward.sum(-1), p.score - p.kl_coef * (p.log_policy - p.log_reference))


@rows.equality("2.2.1", "KL of responses = E[sum of KLs of tokens]", preferences)
def divergence_per_token(p: Preferences) -> Sides:
    """The divergence of responses is the expected sum of the divergences of their tokens.

    Equation:  KL(pi(.|x) || pi_ref(.|x)) = E_{y~pi}[sum_t KL(pi(.|x, y_<t) || pi_ref(.|x, y_<t))]
    Source:    notes 2.2.1, Eq. 2: why the shaped reward may be paid token by token.
    """
    return Sides(
        languages.kl_divergence(p.log_policy, p.log_reference),
        languages.token_kl_divergence(p.language, p.logits, p.ref_logits),
    )


rows.control("2.2.1", "tokens told from padding by id", preferences, by_token_id=True)(shaped_reward_per_token)


@rows.equality("2.2.1", "gradient of (2) by scores", preferences)
def score_function_of_rlhf(p: Preferences) -> Sides:
    """The gradient through the samples exists: the score times the shaped reward, held fixed.

    Equation:  grad (E_pi[r] - beta KL(pi || pi_ref)) = E_{x, y~pi}[grad log pi (r - beta (log pi - log pi_ref))]
    Source:    notes 2.2.1; the gradient of the reward's own log pi has mean zero.
    """
    given = (p.language, p.logits, p.ref_logits, p.score, p.kl_coef)
    return Sides(languages.rlhf_gradient(*given), languages.rlhf_score_gradient(*given))


@rows.equality("2.2.2", "Lemma 7: optimum and its value", preferences)
def lemma_7(p: Preferences) -> Sides:
    """The optimum of the KL-constrained objective reaches beta E_x log Z(x), and the gradient vanishes there.

    Equation:  max_pi E[r] - beta KL(pi || pi_ref) = beta E_x[log Z(x)], at pi_r = pi_ref exp(r / beta) / Z(x)
    Source:    notes 2.2.2, Lemma 7. The gradient is that of the tabular policy of tokens which pi_r is.
    """
    optimum = p.log_reference + p.score / p.kl_coef - p.partition.log().unsqueeze(-1)
    logits = languages.policy_logits(p.language, optimum)
    slope = languages.rlhf_gradient(p.language, logits, p.ref_logits, p.score, p.kl_coef)
    reached = languages.rlhf_objective(p.language, optimum, p.log_reference, p.score, p.kl_coef)
    best = p.kl_coef * (p.language.prompt_weight @ p.partition.log())
    return Sides(
        torch.cat([optimum.flatten(), reached.view(1), slope.flatten()]),
        torch.cat([p.log_optimum.flatten(), best.view(1), torch.zeros(slope.numel(), dtype=F64)]),
    )


def _objective_by_prompt(p: Preferences, log_policy: Tensor) -> Tensor:
    """(P,) E_{y~pi}[r] - beta KL(pi || pi_ref)."""
    kl = languages.kl_divergence(log_policy, p.log_reference)
    return languages.expected_score(log_policy, p.score) - p.kl_coef * kl


def _near_the_optimum(p: Preferences) -> Tensor:
    """(P, R) log-probabilities of pi* tilted a little."""
    return torch.log_softmax(p.log_optimum + 0.1 * p.log_policy, -1)


@rows.inequality("2.2.2", "Lemma 7: no policy is better", preferences)
def lemma_7_is_a_maximum(p: Preferences) -> Sides:
    """No policy does better than the optimum, at any prompt: neither a random one nor one nearby.

    Equation:  exp((E_pi[r] - beta KL(pi || pi_ref)) / beta) <= Z(x)
    Source:    notes 2.2.2, Lemma 7. Exponentials make both sides positive.
    """
    found = torch.stack([_objective_by_prompt(p, log_pi) for log_pi in (p.log_policy, _near_the_optimum(p))])
    return Sides((found / p.kl_coef).exp(), p.partition.expand_as(found))


@rows.equality("2.2.2", "Lemma 7: the gap is beta KL(pi||pi*)", preferences)
def lemma_7_gap(p: Preferences) -> Sides:
    """What a policy misses of the optimum is its divergence from it.

    Equation:  E_pi[r] - beta KL(pi || pi_ref) = beta log Z(x) - beta KL(pi || pi*), for every x
    Source:    notes 2.2.2, the proof of Lemma 7.
    """
    right = p.kl_coef * (p.partition.log() - languages.kl_divergence(p.log_policy, p.log_optimum))
    return Sides(_objective_by_prompt(p, p.log_policy), right, scale=float(p.score.norm()))


@rows.control("2.2.2", "Lemma 7: the chain's value, without log Z", preferences)
def lemma_7_chain_as_printed(p: Preferences) -> Sides:
    """Negative control: the chain's last line for the value, its sign and factor put back: it has lost log Z(x)."""
    return Sides(
        _objective_by_prompt(p, p.log_policy), -p.kl_coef * languages.kl_divergence(p.log_policy, p.log_optimum)
    )


@rows.equality("2.2.2", "r = beta log(pi*/pi_ref) + beta log Z", preferences)
@rows.control("2.2.2", "the same with pi_theta", preferences, as_printed=True)
def reparametrised_reward(p: Preferences, as_printed: bool = False) -> Sides:
    """The reward in terms of its optimal policy. Negative control: with pi_theta, as printed, in the place of pi*.

    Equation:  r(x, y) = beta log(pi*(y|x) / pi_ref(y|x)) + beta log Z(x)
    Source:    notes 2.2.2, with pi*.
    """
    log_policy = p.log_policy if as_printed else p.log_optimum
    implied = exact_preferences.implied_reward(log_policy, p.log_reference, p.kl_coef)
    return Sides(p.score, implied + p.kl_coef * p.partition.log().unsqueeze(-1))


@rows.equality("2.2.2", "invariance to f(x)", preferences)
def invariant_to_a_shift(p: Preferences) -> Sides:
    """A function of the prompt added to the reward changes neither the optimal policy nor the preferences.

    Equation:  pi_{r + f(x)} = pi_r,  p*_{r + f(x)} = p*_r
    Source:    notes 2.2.2; Rafailov et al. 2023, Lemmas 1 and 2.
    """
    shifted = p._replace(score=p.score + p.shift)
    left, right = (
        torch.cat([q.log_optimum.flatten(), exact_preferences.preference_probs(q.score).flatten()])
        for q in (shifted, p)
    )
    return Sides(left, right)


@rows.equality("2.2.2", "preferences of pi*", preferences)
def preferences_of_the_optimum(p: Preferences) -> Sides:
    """The preferences in terms of the optimal policy alone: Z(x) cancels.

    Equation:  p*(y1 > y2|x) = 1 / (1 + exp(beta log pi*(y2)/pi_ref(y2) - beta log pi*(y1)/pi_ref(y1)))
    Source:    notes 2.2.2.
    """
    ratio = p.kl_coef * (p.log_optimum - p.log_reference)
    return Sides(exact_preferences.preference_probs(p.score), 1.0 / (1.0 + torch.exp(-_margins(ratio))))


def _dpo_loss(p: Preferences, log_policy: Tensor) -> Tensor:
    return exact_preferences.dpo_loss(
        p.language, log_policy, p.log_reference, exact_preferences.preference_probs(p.score), p.kl_coef
    )


@rows.equality("2.2.2", "L_DPO(pi*) = L_R(r), stationary", preferences)
def dpo_loss_is_the_reward_loss(p: Preferences) -> Sides:
    """The DPO loss of the optimal policy is the reward model's loss at its reward, and stationary there.

    Equation:  L_DPO(pi*; pi_ref) = L_R(r),  grad L_DPO at pi* = 0
    Source:    notes 2.2.2.
    """
    slope = gradient(lambda logits: _dpo_loss(p, torch.log_softmax(logits, -1)), p.log_optimum)
    left = torch.cat([_dpo_loss(p, p.log_optimum).view(1), slope.flatten()])
    return Sides(left, torch.cat([_preference_loss(p, p.score).view(1), torch.zeros(slope.numel(), dtype=F64)]))


@rows.inequality("2.2.2", "L_DPO(pi*) <= L_DPO(pi)", preferences)
def dpo_is_smallest_at_the_optimum(p: Preferences) -> Sides:
    """No policy has a smaller DPO loss than the optimal one: neither a random one nor one nearby.

    Equation:  L_DPO(pi*; pi_ref) <= L_DPO(pi; pi_ref)
    Source:    notes 2.2.2.
    """
    others = torch.stack([_dpo_loss(p, log_pi) for log_pi in (p.log_policy, _near_the_optimum(p))])
    return Sides(_dpo_loss(p, p.log_optimum).expand_as(others), others)
