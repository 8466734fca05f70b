"""How well estimates choose among policies, and what a few online tries would choose.

Arrays are (..., P) over P policies, returns in reward units.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mid_ranks(x: Float[Tensor, "*batch p"]) -> Float[Tensor, "*batch p"]:
    """Return the ranks from 1 to P, equal values sharing the mean of their ranks.

    Equation:  rank_i = #{j: x_j < x_i} + (#{j: x_j = x_i} + 1) / 2
    Source:    Kendall 1945.
    Verified:  tests/unit/test_policy_selection.py::test_ranks_by_sorting
    """
    other, here = x.unsqueeze(-2), x.unsqueeze(-1)
    return (other < here).to(x.dtype).sum(-1) + ((other == here).to(x.dtype).sum(-1) + 1.0) / 2.0


def rank_correlation(estimated: Float[Tensor, "*batch p"], true: Float[Tensor, "*batch p"]) -> Float[Tensor, "*batch"]:
    """Return Spearman's correlation between estimated and true returns.

    Equation:  the correlation coefficient of the mid-ranks
    Source:    Spearman 1904; Fu et al. 2021 (DOPE).
    Args:      estimated, true (..., P) reward units; P >= 2
    Returns:   (...) in [-1, 1]; NaN where one side does not distinguish any two policies
    Raises:    ValueError if there are fewer than two policies
    Verified:  tests/unit/test_policy_selection.py::test_rank_correlation_by_hand
    """
    if estimated.shape[-1] < 2:
        raise ValueError("a rank correlation needs at least two policies")
    x, y = (mid_ranks(side) for side in (estimated, true))
    x, y = (ranks - ranks.mean(-1, keepdim=True) for ranks in (x, y))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def regret_at_k(
    estimated: Float[Tensor, "*batch p"], true: Float[Tensor, "*batch p"], k: int
) -> Float[Tensor, "*batch"]:
    """Return how much the best of the k policies that look best falls short of the best of all.

    Equation:  max_i J_i - max_{i in top k of J^} J_i
    Source:    Fu et al. 2021 (DOPE). Equal estimates count in the order in which they are given.
    Args:      estimated, true (..., P) reward units; k of P policies
    Returns:   (...) reward units, >= 0
    Raises:    ValueError unless 1 <= k <= P
    Verified:  tests/unit/test_policy_selection.py::test_regret_by_hand
    """
    if not 1 <= k <= estimated.shape[-1]:
        raise ValueError(f"k is {k}; expected 1 to {estimated.shape[-1]}, the number of policies")
    chosen = estimated.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return true.amax(-1) - true.gather(-1, chosen).amax(-1)


def mean_absolute_error(
    estimated: Float[Tensor, "*batch p"], true: Float[Tensor, "*batch p"]
) -> Float[Tensor, "*batch"]:
    """Return the mean distance of the estimates from the true returns.

    Equation:  1/P sum_i |J^_i - J_i|
    Source:    Fu et al. 2021 (DOPE).
    Returns:   (...) reward units
    Verified:  tests/unit/test_policy_selection.py::test_regret_by_hand
    """
    return (estimated - true).abs().mean(-1)


def online_selection(
    returns: Float[Tensor, "p n"],
    tries: int,
    generator: torch.Generator,
    *,
    candidates: int | None = None,
    repeats: int = 1000,
    exploration: float = 2.0,
) -> Float[Tensor, "repeats tries"]:
    """Return what the policy is worth that a user ends with after every online try, by an upper-confidence bandit.

    Equation:  try i = argmax_i m_i + sqrt(exploration log t / n_i), each candidate once first; then keep argmax_i m_i;
               m_i, n_i: mean and number of the returns seen of policy i, t their number
    Source:    Jackson et al. 2025 (Unifloral), offline policy selection under a stated number of online episodes;
               Auer et al. 2002, UCB1. Theirs: 8 candidates, 1,000 repeats, exploration 2, 200 tries.
    Args:      returns (P, N), N episodes of each of P trained policies, in units in which the bonus makes sense (UCB1
               assumes a range of about 1); tries; candidates, drawn without replacement from the P policies in every
               repeat (None: all, in random order); generator of the caller
    Returns:   (repeats, tries) the mean of all N returns of the policy kept; try k in column k - 1
    Raises:    ValueError unless 1 <= candidates <= P, and tries, repeats >= 1
    Verified:  tests/unit/test_policy_selection.py::test_online_selection_without_noise,
               tests/unit/test_policy_selection.py::test_online_selection_against_a_loop
    """
    policies, episodes = returns.shape
    number = policies if candidates is None else candidates
    if not 1 <= number <= policies or tries < 1 or repeats < 1:
        raise ValueError(
            f"candidates is {candidates}, tries {tries}, repeats {repeats}; expected 1 to {policies} candidates (the "
            "policies), and at least 1 try and repeat"
        )
    device = returns.device
    order = torch.rand((repeats, policies), generator=generator, device=device).argsort(-1)[:, :number]
    true = returns.mean(-1)[order]
    episode = torch.randint(episodes, (repeats, tries), generator=generator, device=device)
    total, count = torch.zeros_like(true), torch.zeros_like(true)
    kept: list[Tensor] = []
    for t in range(tries):
        mean = total / count.clamp(min=1.0)
        bonus = (exploration * torch.log(count.sum(-1, keepdim=True).clamp(min=1.0)) / count.clamp(min=1.0)).sqrt()
        tried = torch.where(count == 0.0, torch.inf, mean + bonus).argmax(-1, keepdim=True)
        seen = returns[order.gather(-1, tried), episode[:, t : t + 1]]
        total, count = total.scatter_add(-1, tried, seen), count.scatter_add(-1, tried, torch.ones_like(seen))
        best = torch.where(count == 0.0, -torch.inf, total / count.clamp(min=1.0)).argmax(-1, keepdim=True)
        kept.append(true.gather(-1, best))
    return torch.cat(kept, -1)
