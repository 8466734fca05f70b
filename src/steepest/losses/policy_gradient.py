"""The score-function (likelihood-ratio) policy gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def score_function_loss(
    log_prob: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    """A loss whose gradient is minus the policy-gradient estimate.

    Equation:  L = -log pi(a|s) A;  its mean gradient over on-policy samples is -grad V (A detached)
    Source:    notes 1.2 to 1.5 (A is the return, the reward-to-go, or either less a baseline); Williams 1992.
    Args:      log_prob (...) nats, carries gradient; advantage (...) reward units, detached here
    Returns:   (...) reward units
    Verified:  tests/exact/test_policy_gradient.py::test_score_function_gradient_is_the_exact_gradient
    """
    return -log_prob * advantage.detach()
