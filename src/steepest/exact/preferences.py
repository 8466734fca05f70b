"""Preferences between enumerated responses: Bradley-Terry, the reward model's loss and DPO's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from steepest.errors import UsageError
from steepest.exact.checks import check_tensor
from steepest.exact.language import EnumerableLanguage, check_kl_coef, check_matrix, prompt_mean


def preference_probs(score: Tensor) -> Tensor:
    """Bradley-Terry probabilities of all pairs.

    Equation:  p(y1 > y2 | x) = sigmoid(r(x, y1) - r(x, y2))
    Source:    notes 2.2.1, conditioned on the prompt.
    Args:      score (P, R), carries gradient
    Returns:   (P, R, R), the first response first
    Raises:    UsageError if score is not a float64 matrix
    Verified:  tests/exact/test_language_exact.py::test_bradley_terry
    """
    return torch.sigmoid(_margins(score))


def pair_weights(log_prob: Tensor) -> Tensor:
    """Probability of each ordered pair, both responses drawn independently from the policy.

    Equation:  w(y1, y2 | x) = pi(y1|x) pi(y2|x)
    Source:    notes 2.2.1, (y1, y2) ~ pi_SFT.
    Args:      log_prob (P, R) nats
    Returns:   (P, R, R)
    Raises:    UsageError if log_prob is not a float64 matrix
    Verified:  tests/exact/test_language_exact.py::test_population_losses_by_listing
    """
    check_matrix("log_prob", log_prob)
    return torch.exp(log_prob[:, :, None] + log_prob[:, None, :])


def preference_loss(language: EnumerableLanguage, score: Tensor, preference: Tensor, weight: Tensor) -> Tensor:
    """Population negative log-likelihood of a reward model: soft labels, infinitely many pairs.

    Equation:  L = -E_x sum_{y1,y2} w(y1, y2|x) [p log sigmoid(d) + (1 - p) log sigmoid(-d)],  d = r(x,y1) - r(x,y2)
    Source:    notes 2.2.1, L_R.
    Args:      score (P, R) of the model, carries gradient; preference (P, R, R), p(y1 > y2 | x) in [0, 1]; weight
               (P, R, R), such as pair_weights
    Returns:   0-d, nats
    Raises:    UsageError on wrong shapes, or preferences outside [0, 1]
    Verified:  tests/exact/test_language_exact.py::test_population_losses_by_listing,
               tests/exact/test_language_exact.py::test_reward_model_optimum
    """
    prompts, responses = language.response_shape
    check_tensor("score", score, (prompts, responses))
    check_tensor("preference", preference, (prompts, responses, responses))
    check_tensor("weight", weight, (prompts, responses, responses))
    if float(preference.detach().min()) < 0.0 or float(preference.detach().max()) > 1.0:
        raise UsageError("preference has entries outside [0, 1]; give the probabilities p(y1 > y2 | x)")
    margin = _margins(score)
    likelihood = preference * functional.logsigmoid(margin) + (1.0 - preference) * functional.logsigmoid(-margin)
    return -prompt_mean(language, (weight * likelihood).sum((-2, -1)))


def implied_reward(log_prob: Tensor, ref_log_prob: Tensor, kl_coef: float) -> Tensor:
    """The reward whose optimum this policy is, up to a function of the prompt.

    Equation:  r(x, y) = kl_coef log(pi(y|x) / ref(y|x)) [+ f(x)]
    Source:    notes 2.2.2. An identity for pi*, not for any pi_theta; unique only up to f(x).
    Args:      log_prob, ref_log_prob (P, R) nats, both carry gradient; kl_coef > 0
    Returns:   (P, R) reward units
    Raises:    UsageError on shapes that differ, or kl_coef <= 0
    Verified:  tests/exact/test_language_exact.py::test_implied_reward
    """
    check_kl_coef(kl_coef, positive=True)
    check_matrix("log_prob", log_prob)
    check_tensor("ref_log_prob", ref_log_prob, tuple(log_prob.shape))
    return kl_coef * (log_prob - ref_log_prob)


def dpo_loss(
    language: EnumerableLanguage, log_prob: Tensor, ref_log_prob: Tensor, preference: Tensor, kl_coef: float
) -> Tensor:
    """The population DPO loss: over all pairs drawn from the reference, with soft labels.

    Equation:  -E_x sum_{y1,y2} ref(y1|x) ref(y2|x) [p log sigmoid(d) + (1 - p) log sigmoid(-d)],
               d = kl_coef (log pi(y1|x)/ref(y1|x) - log pi(y2|x)/ref(y2|x))
    Source:    notes 2.2.2; Rafailov et al. 2023, Eq. 7, in expectation.
    Args:      log_prob (P, R) nats, carries gradient; ref_log_prob (P, R) nats; preference (P, R, R); kl_coef > 0
    Returns:   0-d, nats
    Raises:    UsageError as preference_loss and implied_reward
    Verified:  tests/exact/test_language_exact.py::test_population_losses_by_listing,
               tests/exact/test_language_exact.py::test_dpo_optimum_is_the_rlhf_optimum
    """
    reward = implied_reward(log_prob, ref_log_prob, kl_coef)
    return preference_loss(language, reward, preference, pair_weights(ref_log_prob.detach()))


def _margins(score: Tensor) -> Tensor:
    check_matrix("score", score)
    return score[:, :, None] - score[:, None, :]
