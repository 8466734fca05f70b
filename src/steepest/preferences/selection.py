"""Which pair to ask about next: where an ensemble of rewards disagrees, with a share kept aside for evaluation.

Pairs that were chosen because a model is unsure of them say nothing about how good it is in general. So a share of the
pairs is drawn uniformly from groups (prompts, episodes) that are reserved: no label of theirs is ever learned from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steepest.errors import require


def preference_disagreement(
    first_score: Float[Tensor, "members *pairs"], second_score: Float[Tensor, "members *pairs"]
) -> Float[Tensor, "*pairs"]:
    """Return the variance over an ensemble of the probability that the first of two is preferred.

    Equation:  Var_c[sigmoid(r_c(1) - r_c(2))], the population's
    Source:    Christiano et al. 2017, section 2.2.4. A pair of which all members are equally unsure has none: it is
               what more labels can change, not what is close.
    Args:      first_score, second_score (C, ...) reward units, of C members
    Returns:   (...) in [0, 1/4]
    Verified:  tests/unit/test_preference_selection.py::test_disagreement_by_hand
    """
    return torch.sigmoid(first_score - second_score).var(0, correction=0)


def reserved_groups(group: Int[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Return which members belong to groups that are reserved for evaluation, the same in every call.

    A group's fate follows from its number and the seed alone, whatever other groups there are.

    Args:      group (N,) number of each member's prompt or episode; share of groups to reserve
    Returns:   (N,) bool
    Raises:    UsageError unless share is in [0, 1]
    Verified:  tests/unit/test_preference_selection.py::test_whole_groups_are_reserved
    """
    require(0.0 <= share <= 1.0, "share", share, "a share in [0, 1]")
    numbers, place = torch.unique(group, return_inverse=True)
    draws = [
        torch.rand((), generator=torch.Generator().manual_seed((seed * 1_000_003 + int(number)) % 2**63))
        for number in numbers
    ]
    return torch.stack(draws)[place] < share if draws else torch.zeros(0, dtype=torch.bool)


class Chosen(NamedTuple):
    """Pairs to ask about, and what their labels are for."""

    pairs: Tensor  # (n,) int64: places among those that were offered
    evaluation: Tensor  # (n,) bool: drawn uniformly from reserved groups, never to be learned from


def choose_pairs(
    disagreement: Float[Tensor, " pairs"],
    reserved: Bool[Tensor, " pairs"],
    count: int,
    generator: torch.Generator,
    *,
    uniform_share: float = 0.2,
) -> Chosen:
    """Choose which of the offered pairs to ask about, none of them twice.

    Each of the ``count`` is for evaluation with probability ``uniform_share``: one drawn uniformly from the reserved
    pairs, as long as there are any. The others are those of the rest that the ensemble disagrees most about, equal ones
    by chance.

    Source:    Christiano et al. 2017, section 2.2.4, which keeps nothing aside.
    Args:      disagreement (P,) of every pair; reserved (P,) both members belong to reserved groups; leave out pairs of
               which one does; generator of the caller
    Raises:    UsageError unless uniform_share is in [0, 1]
    Verified:  tests/unit/test_preference_selection.py::test_the_most_disputed_are_asked_first,
               tests/unit/test_preference_selection.py::test_reserved_pairs_are_drawn_uniformly
    """
    require(0.0 <= uniform_share <= 1.0, "uniform_share", uniform_share, "a share in [0, 1]")
    apart = int((torch.rand(count, generator=generator) < uniform_share).sum())
    shuffled = torch.randperm(len(disagreement), generator=generator)
    evaluation = shuffled[reserved[shuffled]][:apart]
    rest = shuffled[~reserved[shuffled]]
    disputed = rest[torch.argsort(disagreement[rest], descending=True, stable=True)][: count - len(evaluation)]
    return Chosen(
        torch.cat([evaluation, disputed]),
        torch.arange(len(evaluation) + len(disputed)) < len(evaluation),
    )
