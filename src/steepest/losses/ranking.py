"""Learning from what people say beyond a plain preference: rankings (Plackett-Luce), ties (Davidson) and thumbs (KTO).

A score is a reward r(x, y) of a response or of a clip, known up to a constant: every loss of scores here depends on
their differences only. The plain preference, Bradley-Terry's, is ``losses.preference.bradley_terry_loss``, and both
models of scores become it: Plackett-Luce for two candidates, Davidson where nothing ties.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from steepest.losses.preference import bradley_terry_loss


def plackett_luce_loss(
    score: Float[Tensor, "*#shape k"],
    *,
    places: int | Int[Tensor, "*#shape"] | None = None,
    candidates: int | Int[Tensor, "*#shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Negative log-likelihood of a ranking, whole or of its first places only.

    Equation:  L = -sum_{i < m} [r_i - log sum_{i <= j < n} exp(r_j)],  r_0 of the best, m places, n candidates
    Source:    Plackett 1975; Luce 1959. The best is drawn among all by softmax, the next among the rest, and so on. For
               n = 2 it is the Bradley-Terry loss, and over all n! orders the likelihoods sum to 1.
    Args:      score (..., k) reward units, best first, carries gradient; places (...) in order, the candidates after
               them in any order, None: all; candidates (...) that were ranked, the entries after them padding (finite,
               without gradient), None: k
    Returns:   (...) nats
    Raises:    ValueError unless 1 <= places <= candidates <= k, where these are numbers (tensors are not looked at)
    Verified:  tests/exact/test_ranking.py::test_plackett_luce_sums_to_one,
               tests/exact/test_ranking.py::test_partial_rankings_are_sums_over_the_rest,
               tests/exact/test_ranking.py::test_plackett_luce_gradient_against_differences
    """
    size = score.shape[-1]
    candidates = size if candidates is None else candidates
    places = candidates if places is None else places
    _check_counts(places, candidates, size)
    place = torch.arange(size, device=score.device)
    real = place < _column(candidates)  # (..., k)
    # Row i: who was left when place i was given. Padding stands for itself, so that no row is empty.
    left = (place.unsqueeze(-1) <= place) & (
        real.unsqueeze(-2) | torch.eye(size, dtype=torch.bool, device=score.device)
    )
    rest = torch.logsumexp(score.unsqueeze(-2).masked_fill(~left, -math.inf), -1)
    return torch.where(place < _column(places), rest - score, torch.zeros_like(score)).sum(-1)


def davidson_preference_loss(
    chosen_score: Float[Tensor, "*#shape"],
    rejected_score: Float[Tensor, "*#shape"],
    tie_weight: float | Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """Negative log-likelihood of a preference where the labeller might have called a tie.

    Equation:  L = -log p(w beats l),  p = exp(d/2) / (exp(d/2) + exp(-d/2) + nu),  d = r_w - r_l
               = -log sigmoid(d) + log(1 + nu / (exp(d/2) + exp(-d/2)))
    Source:    Davidson 1970, with worths exp(r). nu = 0 is the Bradley-Terry loss; equals tie with nu / (2 + nu).
    Args:      chosen_score, rejected_score (...) reward units; tie_weight nu >= 0, given or learned; all carry gradient
    Returns:   (...) nats
    Raises:    ValueError if tie_weight is a number < 0 (a tensor is not looked at)
    Verified:  tests/exact/test_ranking.py::test_davidson_by_its_definition,
               tests/exact/test_ranking.py::test_without_ties_davidson_is_bradley_terry,
               tests/exact/test_ranking.py::test_the_tie_weight_is_learned
    """
    _check_tie_weight(tie_weight)
    difference = chosen_score - rejected_score
    return bradley_terry_loss(chosen_score, rejected_score) + _room_for_ties(difference, tie_weight)


def davidson_tie_loss(
    first_score: Float[Tensor, "*#shape"],
    second_score: Float[Tensor, "*#shape"],
    tie_weight: float | Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """Negative log-likelihood of a tie.

    Equation:  L = -log p(tie),  p = nu / (exp(d/2) + exp(-d/2) + nu),  d = r_1 - r_2
    Source:    Davidson 1970. A tie says that the two are about equally good, the more clearly the smaller nu is.
    Args:      as davidson_preference_loss, in either order
    Returns:   (...) nats; infinite for nu = 0, which allows no tie
    Raises:    ValueError if tie_weight is a number < 0 (a tensor is not looked at)
    Verified:  tests/exact/test_ranking.py::test_davidson_by_its_definition,
               tests/exact/test_ranking.py::test_the_tie_weight_is_learned
    """
    _check_tie_weight(tie_weight)
    difference = first_score - second_score
    nu = torch.as_tensor(tie_weight, dtype=difference.dtype, device=difference.device)
    return _log_worths(difference) + _room_for_ties(difference, nu) - torch.log(nu)


def kto_loss(
    log_prob: Float[Tensor, "*#shape"],
    ref_log_prob: Float[Tensor, "*#shape"],
    desirable: Bool[Tensor, "*#shape"],
    reference_kl: Float[Tensor, "*#shape"],
    kl_coef: float | Tensor,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Kahneman-Tversky optimisation: a response with a thumb up gains, one with a thumb down loses, beside the usual.

    Equation:  L = lambda_y - v,  v = lambda_D sigmoid(beta (r - z)) for a thumb up,
                                  v = lambda_U sigmoid(beta (z - r)) for a thumb down,
               r = log pi(y|x) - log ref(y|x),  z = KL(pi(.|x) || ref(.|x))
    Source:    Ethayarajh et al. 2024, Eq. 7 and 8; not in the notes. Differences: none.
    Args:      log_prob (...) nats, of whole responses, carries gradient; ref_log_prob (...) nats, reference_kl (...)
               nats, z or its estimate ``kto_reference_point``, both detached here; desirable (...) thumbs up; kl_coef
               beta > 0; desirable_weight lambda_D, undesirable_weight lambda_U >= 0
    Returns:   (...) in [0, lambda]; lambda / 2 where the policy is the reference
    Raises:    ValueError if kl_coef is a number <= 0 (a tensor is not looked at), or a weight is negative
    Verified:  tests/exact/test_ranking.py::test_kto_by_its_definition,
               tests/exact/test_ranking.py::test_kto_gradient_over_all_responses
    """
    if not isinstance(kl_coef, Tensor) and kl_coef <= 0.0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be positive")
    if min(desirable_weight, undesirable_weight) < 0.0:
        raise ValueError(
            f"desirable_weight is {desirable_weight} and undesirable_weight {undesirable_weight}; "
            "both must be zero or more"
        )
    gain = kl_coef * (log_prob - ref_log_prob.detach() - reference_kl.detach())
    # lambda - lambda sigmoid(u) = lambda sigmoid(-u), which loses no digits where the sigmoid is nearly 1.
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def kto_reference_point(
    log_prob: Float[Tensor, "*#shape m"], ref_log_prob: Float[Tensor, "*#shape m"]
) -> Float[Tensor, "*shape"]:
    """Estimate the reference point of KTO, one number for a batch, from responses to other prompts.

    Equation:  z = max(0, 1/m sum_i [log pi(y_j|x_i) - log ref(y_j|x_i)]),  j = i + 1 mod m
    Source:    Ethayarajh et al. 2024, section 4.1. Responses of the data stand for draws from pi, which it saves, so
               that it is biased. TRL's estimate differs in three things: y_j is the response of the neighbouring row of
               the data set before it was shuffled, not of the batch; the mean is over all processes; gradient
               accumulation makes it one per micro-batch.
    Args:      log_prob, ref_log_prob (..., m) nats, of each prompt with another prompt's response; nothing carries
               gradient
    Returns:   (...) nats, zero or more
    Verified:  tests/exact/test_ranking.py::test_the_reference_point_by_hand
    """
    return (log_prob - ref_log_prob).detach().mean(-1).clamp(min=0.0)


def _log_worths(difference: Tensor) -> Tensor:
    """log(exp(d/2) + exp(-d/2)), at least log 2."""
    size = difference.abs()
    return 0.5 * size + softplus(-size)


def _room_for_ties(difference: Tensor, tie_weight: float | Tensor) -> Tensor:
    """log(1 + nu / (exp(d/2) + exp(-d/2))), what a possible tie takes from both preferences; 0 for nu = 0."""
    return torch.log1p(tie_weight * torch.exp(-_log_worths(difference)))


def _column(count: int | Tensor) -> int | Tensor:
    return count.unsqueeze(-1) if isinstance(count, Tensor) else count


def _check_counts(places: int | Tensor, candidates: int | Tensor, size: int) -> None:
    numbers = [x for x in (places, candidates, size) if not isinstance(x, Tensor)]
    if numbers != sorted(numbers) or numbers[0] < 1:
        raise ValueError(
            f"places is {places} and candidates {candidates}, of {size} scores; expected "
            "1 <= places <= candidates <= scores"
        )


def _check_tie_weight(tie_weight: float | Tensor) -> None:
    if not isinstance(tie_weight, Tensor) and tie_weight < 0.0:
        raise ValueError(f"tie_weight is {tie_weight}; it must be zero or more")
