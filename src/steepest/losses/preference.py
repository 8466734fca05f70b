"""Learning from pairs of which one is preferred: reward models (Bradley-Terry) and direct preference optimisation.

``chosen`` is the preferred response and ``rejected`` the other one. A log-probability is that of a whole response,
summed over its tokens and never averaged unless the name says so. ``kl_coef`` is the beta of RLHF and of DPO. Every
loss of a policy here is a function of the margin, but for the length-normalised one:

    h = (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x))
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen_score: Float[Tensor, "*#shape"], rejected_score: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Negative log-likelihood of a preference under the Bradley-Terry model.

    Equation:  L = -log sigmoid(r(x, y_w) - r(x, y_l))
    Source:    notes 2.2.1, L_R; Bradley & Terry 1952. Depends on differences only: r + f(x) is as good as r.
    Args:      chosen_score, rejected_score (...) reward units, both carry gradient
    Returns:   (...) nats
    Verified:  tests/exact/test_preference.py::test_reward_losses_over_all_pairs
    """
    return -logsigmoid(chosen_score - rejected_score)


def score_centring_loss(
    chosen_score: Float[Tensor, "*#shape"], rejected_score: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """Keeps a reward model's scores near zero, which preferences leave open.

    Equation:  L = (r(x, y_w) + r(x, y_l))^2
    Source:    Eisenstein et al. 2023, "Helping or herding?"; not in the notes. Where the shift f(x) is free it moves
               the shift alone; a small weight (0.01) leaves the differences almost as they were.
    Args:      chosen_score, rejected_score (...) reward units, both carry gradient
    Returns:   (...) reward units squared
    Verified:  tests/exact/test_preference.py::test_centring_by_hand
    """
    return (chosen_score + rejected_score).square()


def implicit_reward(
    log_prob: Float[Tensor, "*#shape"], ref_log_prob: Float[Tensor, "*#shape"], kl_coef: float | Tensor
) -> Float[Tensor, "*shape"]:
    """The reward that a policy stands for in DPO, up to a function of the prompt.

    Equation:  r(x, y) = beta (log pi(y|x) - log ref(y|x))  [+ beta log Z(x)]
    Source:    notes 2.2.2; Rafailov et al. 2023, Eq. 5. An identity for pi = pi* only.
    Args:      log_prob (...) nats, carries gradient; ref_log_prob (...) nats, detached here; kl_coef > 0
    Returns:   (...) reward units
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_implicit_reward_of_the_optimum
    """
    _check_kl_coef(kl_coef)
    return kl_coef * (log_prob - ref_log_prob.detach())


def dpo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Direct preference optimisation: the Bradley-Terry loss of the policy's own implicit reward.

    Equation:  L = -log sigmoid(beta h)
    Source:    notes 2.2.2, L_DPO; Rafailov et al. 2023, Eq. 7. Differences: none.
    Args:      chosen_log_prob, rejected_log_prob (...) nats, carry gradient; chosen_ref_log_prob,
               rejected_ref_log_prob (...) nats, detached here; kl_coef > 0
    Returns:   (...) nats; ln 2 where the policy is the reference
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_dpo_over_all_pairs,
               tests/exact/test_preference.py::test_dpo_reaches_the_rlhf_optimum
    """
    chosen = implicit_reward(chosen_log_prob, chosen_ref_log_prob, kl_coef)
    rejected = implicit_reward(rejected_log_prob, rejected_ref_log_prob, kl_coef)
    return bradley_terry_loss(chosen, rejected)


def ipo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """Identity preference optimisation: the margin is drawn to 1 / (2 beta) and no further.

    Equation:  L = (h - 1 / (2 beta))^2
    Source:    Azar et al. 2023, Eq. 17, where beta is tau. Sum convention: h has log-probabilities summed over tokens,
               as in the paper and in the reference code of DPO; per-token means need another beta.
    Args:      as dpo_loss
    Returns:   (...) nats squared
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_ipo_optimum,
               tests/exact/test_preference.py::test_variants_by_hand
    """
    _check_kl_coef(kl_coef)
    h = _margin(chosen_log_prob, rejected_log_prob, chosen_ref_log_prob, rejected_ref_log_prob)
    return (h - 1.0 / (2.0 * kl_coef)).square()


def hinge_dpo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """A margin loss: pairs further apart than 1 / beta in the right order have no gradient.

    Equation:  L = max(0, 1 - beta h)
    Source:    Zhao et al. 2023 (SLiC-HF), in the form of Liu et al. 2024 (RSO) with the implicit reward.
    Args:      as dpo_loss
    Returns:   (...) reward units
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_variants_by_hand
    """
    _check_kl_coef(kl_coef)
    h = _margin(chosen_log_prob, rejected_log_prob, chosen_ref_log_prob, rejected_ref_log_prob)
    return torch.relu(1.0 - kl_coef * h)


def smoothed_dpo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
    flip_probability: float | Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """Conservative DPO: cross-entropy with soft labels, for labels that are wrong with a known probability.

    Equation:  L = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)
    Source:    Mitchell 2023, "A note on DPO with noisy preferences". With eps = 1 - p(y_w > y_l|x) of each pair it is
               DPO on soft labels.
    Args:      as dpo_loss; flip_probability in [0, 1/2) as a number, or one per pair (...) in [0, 1], detached here
    Returns:   (...) nats
    Raises:    ValueError if kl_coef is a number <= 0, or flip_probability a number outside [0, 1/2)
    Verified:  tests/exact/test_preference.py::test_dpo_over_all_pairs,
               tests/exact/test_preference.py::test_variants_by_hand
    """
    _check_kl_coef(kl_coef)
    eps = _flip_probability(flip_probability)
    h = _margin(chosen_log_prob, rejected_log_prob, chosen_ref_log_prob, rejected_ref_log_prob)
    return -(1.0 - eps) * logsigmoid(kl_coef * h) - eps * logsigmoid(-kl_coef * h)


def robust_dpo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
    flip_probability: float | Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """DPO from labels flipped with a known probability: on average over the flips it is the loss on the true labels.

    Equation:  L = [-(1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h)] / (1 - 2 eps)
    Source:    Chowdhury, Kini & Natarajan 2024, "Provably robust DPO". Unlike the smoothed loss it is unbiased, and
               it may be negative.
    Args:      as smoothed_dpo_loss, a tensor of flip probabilities in [0, 1/2) too
    Returns:   (...) nats
    Raises:    ValueError if kl_coef is a number <= 0, or flip_probability a number outside [0, 1/2)
    Verified:  tests/exact/test_preference.py::test_robust_loss_is_unbiased,
               tests/exact/test_preference.py::test_variants_by_hand
    """
    _check_kl_coef(kl_coef)
    eps = _flip_probability(flip_probability)
    h = _margin(chosen_log_prob, rejected_log_prob, chosen_ref_log_prob, rejected_ref_log_prob)
    return (-(1.0 - eps) * logsigmoid(kl_coef * h) + eps * logsigmoid(-kl_coef * h)) / (1.0 - 2.0 * eps)


def length_normalized_dpo_loss(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    chosen_length: Float[Tensor, "*#shape"],
    rejected_length: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> Float[Tensor, "*shape"]:
    """DPO on log-ratios per token, so that a long response cannot win by its length.

    Equation:  L = -log sigmoid(beta (h_w / |y_w| - h_l / |y_l|)),  h_w = log pi(y_w|x) - log ref(y_w|x), h_l alike
    Source:    Lambert et al. 2024 (Tulu 3). Its optimum is not that of RLHF, and beta is larger by about a
               response's length for an equal effect.
    Args:      log-probabilities as dpo_loss, summed over tokens; chosen_length, rejected_length (...) tokens, the
               ending one included
    Returns:   (...) nats
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_variants_by_hand
    """
    chosen = implicit_reward(chosen_log_prob, chosen_ref_log_prob, kl_coef) / chosen_length
    rejected = implicit_reward(rejected_log_prob, rejected_ref_log_prob, kl_coef) / rejected_length
    return bradley_terry_loss(chosen, rejected)


def preference_metrics(
    chosen_log_prob: Float[Tensor, "*#shape"],
    rejected_log_prob: Float[Tensor, "*#shape"],
    chosen_ref_log_prob: Float[Tensor, "*#shape"],
    rejected_ref_log_prob: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
) -> dict[str, Tensor]:
    """Return metrics to watch while a policy learns from preferences, per pair.

    Equation:  reward = beta (log pi - log ref);  margin = reward_chosen - reward_rejected;  accuracy = [margin > 0]
    Source:    Rafailov et al. 2023, reference code. A policy equal to its reference has accuracy 0: it orders no pair.
    Args:      as dpo_loss; nothing carries gradient
    Returns:   rewards/chosen, rewards/rejected, rewards/margins (reward units), rewards/accuracies (0 or 1),
               logps/chosen, logps/rejected (nats), each (...)
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at)
    Verified:  tests/exact/test_preference.py::test_metrics_by_hand,
               tests/exact/test_preference.py::test_at_the_reference
    """
    chosen_log_prob, rejected_log_prob = chosen_log_prob.detach(), rejected_log_prob.detach()
    chosen = implicit_reward(chosen_log_prob, chosen_ref_log_prob, kl_coef)
    rejected = implicit_reward(rejected_log_prob, rejected_ref_log_prob, kl_coef)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": chosen_log_prob,
        "logps/rejected": rejected_log_prob,
    }


def _margin(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor) -> Tensor:
    return (chosen - chosen_ref.detach()) - (rejected - rejected_ref.detach())


def _check_kl_coef(kl_coef: float | Tensor) -> None:
    if not isinstance(kl_coef, Tensor) and kl_coef <= 0.0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be positive")


def _flip_probability(eps: float | Tensor) -> float | Tensor:
    if isinstance(eps, Tensor):
        return eps.detach()
    if not 0.0 <= eps < 0.5:
        raise ValueError(f"flip_probability is {eps}; it must be in [0, 1/2)")
    return eps
