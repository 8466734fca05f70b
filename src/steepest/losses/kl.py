"""The KL from a reference policy, estimated from what the policy itself drew.

Each estimate is a function of l = log pi(y) - log ref(y), where y is a token given what precedes it or a whole response
(log-probabilities summed first). As values, k1 and k3 are unbiased for KL(pi || ref) and k2 is not. As losses they
differ, since the gradient reaches the integrand and not the draw:

    estimate  of a value   E_pi[its gradient], one decision     tokens of a response, summed
    k1        unbiased     0: useless as a loss                 0
    k2        biased       grad KL(pi || ref)                   each token's own KL, with what precedes it held fixed
    k3        unbiased     grad KL(ref || pi), the other KL     the same of the other KL

So a KL of whole responses is penalised either in the reward (-kl_coef l per token, detached: unbiased) or by k2 of the
summed log-probabilities. Summed over tokens, k2 and the KL of the whole vocabulary (``Categorical.kl``) leave out that
a token changes which prefixes follow. All this holds for responses drawn from the present policy alone.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from steepest.losses.trust_region import kl_estimate


def k1_estimate(log_prob: Float[Tensor, "*#shape"], ref_log_prob: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """The plain estimate of KL(pi || ref) from draws of pi: unbiased, of either sign.

    Equation:  k1 = log pi(y) - log ref(y);  E_pi[k1] = KL(pi || ref);  E_pi[grad k1] = 0
    Source:    notes 2.2.1, Eq. 2; Schulman 2020, "Approximating KL divergence". For rewards and figures, not a loss.
    Args:      log_prob (...) nats, carries gradient; ref_log_prob (...) nats, detached here
    Returns:   (...) nats
    Verified:  tests/exact/test_rlhf.py::test_kl_estimates_as_values,
               tests/exact/test_rlhf.py::test_kl_estimates_as_losses
    """
    return log_prob - ref_log_prob.detach()


def k2_estimate(log_prob: Float[Tensor, "*#shape"], ref_log_prob: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """The loss whose gradient is that of KL(pi || ref), for draws of the present pi; as a value it is biased.

    Equation:  k2 = 1/2 (log pi(y) - log ref(y))^2;  E_pi[grad k2] = grad KL(pi || ref)
    Source:    Schulman 2020; the gradient is that of the score function with reward -k1.
    Args:      log_prob (...) nats, carries gradient; ref_log_prob (...) nats, detached here
    Returns:   (...) nats, never negative
    Verified:  tests/exact/test_rlhf.py::test_kl_estimates_as_losses
    """
    return 0.5 * (log_prob - ref_log_prob.detach()).square()


def k3_estimate(log_prob: Float[Tensor, "*#shape"], ref_log_prob: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """The estimate of KL(pi || ref) that is unbiased and never negative; its gradient is that of KL(ref || pi).

    Equation:  k3 = ref(y)/pi(y) - 1 + log pi(y) - log ref(y);  E_pi[k3] = KL(pi || ref);
               E_pi[grad k3] = grad KL(ref || pi)
    Source:    Schulman 2020. For metrics; GRPO (Shao et al. 2024, Eq. 4) has it in the loss.
    Args:      log_prob (...) nats, carries gradient; ref_log_prob (...) nats, detached here
    Returns:   (...) nats, never negative
    Verified:  tests/exact/test_rlhf.py::test_kl_estimates_as_values,
               tests/exact/test_rlhf.py::test_kl_estimates_as_losses
    """
    return kl_estimate(ref_log_prob.detach(), log_prob)


def proportional_kl_coef(kl_coef: float, kl: float, target_kl: float, responses: int, horizon: float) -> float:
    """The KL coefficient after a batch: a proportional controller in log space, its error clipped.

    Equation:  kl_coef (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)
    Source:    Ziegler et al. 2019, section 2.2, where K = 0.1 stands for n / horizon.
    Args:      kl_coef > 0; kl mean KL of the batch's whole responses, nats; target_kl > 0, nats; responses n in the
               batch; horizon >= n, the number of responses after which a full error changes kl_coef by a fifth
    Returns:   the next kl_coef, positive
    Raises:    ValueError if target_kl <= 0, or horizon < responses
    Verified:  tests/exact/test_rlhf.py::test_proportional_kl_coef
    """
    if target_kl <= 0.0:
        raise ValueError(f"target_kl is {target_kl}; it must be positive")
    if horizon < responses:
        raise ValueError(f"horizon is {horizon} for batches of {responses} responses; it must be at least as large")
    error = min(max(kl / target_kl - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * responses / horizon)
