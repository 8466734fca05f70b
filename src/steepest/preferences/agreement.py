"""How far labellers agree: with each other, with themselves, and with chance. Pure functions of arrays.

An answer is a whole number whose order means something: 0 the first is better, 1 a tie, 2 the second is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steepest.preferences.answers import MISSING, answers_of
from steepest.preferences.judged import Judged, left_preferred, repeated_answers

F64 = torch.float64


class Proportion(NamedTuple):
    """A share of a number of answers, and the ends of its 95% interval."""

    share: float
    low: float
    high: float
    number: int


def krippendorff_alpha(values: Int[Tensor, "labellers units"]) -> Float[Tensor, ""]:
    """Return Krippendorff's alpha of ordinal answers: 1 where all agree, 0 where they agree as by chance.

    Equation:  alpha = 1 - (n - 1) sum_ck o_ck d_ck / sum_ck n_c n_k d_ck,  o_ck = sum_u #(c, k pairs in u) / (m_u - 1),
               n_c = sum_k o_ck,  n = sum_c n_c,  d_ck = (n_c / 2 + n_{c+1} + ... + n_{k-1} + n_k / 2)^2
    Source:    Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections D and E. Units that fewer than
               two labellers answered say nothing.
    Args:      values (labellers, units) zero or more, in their order; negative where missing
    Returns:   0-d float64, at most 1; NaN where one answer is all that was given, which no chance could miss
    Raises:    ValueError where no unit has two answers
    Verified:  tests/unit/test_preference_agreement.py::test_krippendorff_s_own_example,
               tests/unit/test_preference_agreement.py::test_alpha_by_listing_all_pairs
    """
    given = values >= 0
    kinds = int(values.max()) + 1 if bool(given.any()) else 0
    counts = torch.stack([((values == kind) & given).sum(0) for kind in range(kinds)], -1).to(F64) if kinds else None
    enough = given.sum(0) >= 2
    if counts is None or not bool(enough.any()):
        raise ValueError("no unit has answers of two labellers; agreement needs at least one that has")
    counts = counts[enough]  # (units, kinds)
    together = counts.unsqueeze(-1) * counts.unsqueeze(-2) - torch.diag_embed(counts)
    observed = (together / (counts.sum(-1) - 1.0).view(-1, 1, 1)).sum(0)
    n = observed.sum(0)
    middle = n.cumsum(0) - 0.5 * n
    distance = (middle.unsqueeze(-1) - middle).square()
    expected = (n.unsqueeze(-1) * n * distance).sum()
    return 1.0 - (n.sum() - 1.0) * (observed * distance).sum() / expected


def cohen_kappa(first: Int[Tensor, " n"], second: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return Cohen's kappa of two labellers, which takes answers as names without an order.

    Equation:  kappa = (p_o - p_c) / (1 - p_c),  p_o the share of equal answers, p_c = sum_k p_k q_k that of chance
    Source:    Cohen 1960, Eq. 1.
    Args:      first, second (N,) the answers of each, on the same units
    Returns:   0-d float64, at most 1; NaN where both gave one and the same answer throughout
    Raises:    ValueError where there are no answers
    Verified:  tests/unit/test_preference_agreement.py::test_cohen_s_own_example,
               tests/unit/test_preference_agreement.py::test_kappa_by_counting
    """
    if len(first) == 0:
        raise ValueError("two labellers have no unit in common; kappa needs at least one")
    kinds = torch.unique(torch.cat([first, second]))
    p, q = ((x.unsqueeze(-1) == kinds).to(F64).mean(0) for x in (first, second))
    chance = (p * q).sum()
    equal = (first == second).to(F64).mean()
    return (equal - chance) / (1.0 - chance)


def proportion(hits: Bool[Tensor, " n"]) -> Proportion:
    """Return a share with its 95% interval, which stays within [0, 1] for few answers too.

    Equation:  (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n),  z = 1.96
    Source:    Wilson 1927; Newcombe 1998, method 3.
    Args:      hits (N,)
    Returns:   Proportion
    Raises:    ValueError where there are none
    Verified:  tests/unit/test_preference_agreement.py::test_newcombe_s_intervals
    """
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no answers is no number; give at least one")
    z, p = 1.959963984540054, float(hits.to(F64).mean())
    half = z * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    centre, scale = p + z * z / (2.0 * n), 1.0 + z * z / n
    return Proportion(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), n)


class Agreement(NamedTuple):
    """What a project's judgements say of its labellers. None: nothing to measure it by."""

    labellers: tuple[str, ...]
    judged: int  # without skips and repeats
    skipped: int
    ties: int
    alpha: float | None  # Krippendorff's, over all labellers
    kappa: float | None  # Cohen's, where exactly two have judged
    consistency: Proportion | None  # of repeats, the share answered as before
    left: Proportion | None  # of strict preferences, the share for the left side; 1/2 but for position bias


def agreement(judgements: Sequence[Judged]) -> Agreement:
    """Return all measures of agreement that judgements allow.

    Verified:  tests/unit/test_preference_agreement.py::test_a_project_s_agreement,
               tests/unit/test_preference_agreement.py::test_too_little_to_measure
    """
    table = answers_of(judgements)
    known = table.values != MISSING
    shared = known.sum(0) >= 2
    alpha = float(krippendorff_alpha(table.values)) if bool(shared.any()) else None
    kappa = None
    if len(table.labellers) == 2 and bool(shared.any()):
        kappa = float(cohen_kappa(*table.values[:, shared]))
    same = [first == again for first, again in repeated_answers(judgements)]
    left = left_preferred(judgements)
    answered = [j for j in judgements if j.kind not in ("skip", "retract") and not j.repeat]
    return Agreement(
        labellers=table.labellers,
        judged=len(answered),
        skipped=sum(j.kind == "skip" for j in judgements),
        ties=sum(j.kind == "tie" for j in answered),
        alpha=None if alpha is None or math.isnan(alpha) else alpha,
        kappa=None if kappa is None or math.isnan(kappa) else kappa,
        consistency=proportion(torch.tensor(same)) if same else None,
        left=proportion(torch.tensor(left)) if left else None,
    )
