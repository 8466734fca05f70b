"""Choosing among policies: rank correlation, regret, and what a few online tries find."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from helpers import F64
from steepest.evaluation.selection import (
    mean_absolute_error,
    mid_ranks,
    online_selection,
    rank_correlation,
    regret_at_k,
)


def close(found: Tensor, expected: Tensor | float | list[float], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), rtol=tolerance, atol=tolerance)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def test_ranks_by_sorting() -> None:
    close(mid_ranks(vector(3.0, 1.0, 2.0)), [3.0, 1.0, 2.0])
    close(mid_ranks(vector(5.0, 1.0, 5.0, 5.0, 0.0)), [4.0, 2.0, 4.0, 4.0, 1.0])
    x = torch.randint(0, 6, (3, 40), generator=torch.Generator().manual_seed(0)).to(F64)
    for row, ranks in zip(x, mid_ranks(x), strict=True):
        ordered = sorted(row.tolist())
        for value, rank in zip(row.tolist(), ranks.tolist(), strict=True):
            places = [i + 1 for i, y in enumerate(ordered) if y == value]
            assert rank == sum(places) / len(places)


def test_rank_correlation_by_hand() -> None:
    """Without ties 1 - 6 sum d^2 / (P (P^2 - 1)); with ties the correlation of mid-ranks; any increasing scale."""
    true = vector(1.0, 2.0, 3.0, 4.0, 5.0)
    close(rank_correlation(true.exp(), true), 1.0)
    close(rank_correlation(-true, true), -1.0)
    estimated = vector(0.3, -1.0, 7.0, 2.0, 5.0)
    d = [2 - 1, 1 - 2, 5 - 3, 3 - 4, 4 - 5]
    close(rank_correlation(estimated, true), 1.0 - 6.0 * sum(x**2 for x in d) / (5 * 24))
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5, sums of squares 1.5 and 2.
    close(rank_correlation(vector(0.0, 0.0, 9.0), vector(1.0, 2.0, 3.0)), 1.5 / math.sqrt(3.0))
    both = rank_correlation(torch.stack([true, -true]), true.expand(2, -1))
    close(both, [1.0, -1.0])
    assert torch.isnan(rank_correlation(torch.zeros(3, dtype=F64), vector(1.0, 2.0, 3.0)))
    with pytest.raises(ValueError, match="at least two policies"):
        rank_correlation(vector(1.0), vector(1.0))


def test_regret_by_hand() -> None:
    estimated, true = vector(4.0, 9.0, 1.0, 7.0), vector(2.0, 1.0, 5.0, 3.0)
    close(torch.stack([regret_at_k(estimated, true, k) for k in (1, 2, 3, 4)]), [4.0, 2.0, 2.0, 0.0])
    rows = regret_at_k(torch.stack([estimated, true]), true.expand(2, -1), 1)
    close(rows, [4.0, 0.0])
    tied = torch.zeros(4, dtype=F64)
    close(torch.stack([regret_at_k(tied, true, k) for k in (1, 2, 3)]), [3.0, 3.0, 0.0])
    close(mean_absolute_error(estimated, true), (2.0 + 8.0 + 4.0 + 4.0) / 4.0)
    for k in (0, 5):
        with pytest.raises(ValueError, match="expected 1 to 4, the number of policies"):
            regret_at_k(estimated, true, k)


def test_online_selection_without_noise() -> None:
    """One return per policy: after k < C tries the best of k drawn at random, after C tries the best of C."""
    worth = vector(0.1, 0.5, 0.2, 0.9, 0.6)
    g = torch.Generator().manual_seed(0)
    found = online_selection(worth.unsqueeze(-1), 7, g, repeats=20_000)
    for k in range(1, 8):
        best = [max(float(worth[i]) for i in chosen) for chosen in itertools.combinations(range(5), min(k, 5))]
        expected = sum(best) / len(best)
        error = 5.0 * float(torch.tensor(best).std(unbiased=False)) / math.sqrt(20_000) + 1e-9
        assert abs(float(found[:, k - 1].mean()) - expected) < error, k
    three = online_selection(worth.unsqueeze(-1), 6, g, candidates=3, repeats=20_000)
    best = [max(float(worth[i]) for i in chosen) for chosen in itertools.combinations(range(5), 3)]
    assert abs(float(three[:, -1].mean()) - sum(best) / len(best)) < 5.0 * 0.2 / math.sqrt(20_000)
    assert bool((three[:, 1:] >= three[:, :-1]).all())


def test_online_selection_against_a_loop() -> None:
    """The same draws, one repeat and one try at a time; more exploration changes what is tried."""
    returns = torch.rand((6, 9), generator=torch.Generator().manual_seed(1), dtype=F64) - 0.7
    different = 0
    for candidates, exploration in ((4, 2.0), (None, 0.3), (6, 0.0)):
        found = online_selection(
            returns, 40, torch.Generator().manual_seed(2), candidates=candidates, repeats=5, exploration=exploration
        )
        g = torch.Generator().manual_seed(2)
        order = torch.rand((5, 6), generator=g).argsort(-1)[:, : candidates or 6]
        episode = torch.randint(9, (5, 40), generator=g)
        for row in range(5):
            chosen = order[row].tolist()
            seen: dict[int, list[float]] = {i: [] for i in chosen}
            for t in range(40):
                new = [i for i in chosen if not seen[i]]
                if new:
                    tried = new[0]
                else:
                    score = [
                        sum(seen[i]) / len(seen[i]) + math.sqrt(exploration * math.log(t) / len(seen[i]))
                        for i in chosen
                    ]
                    tried = chosen[score.index(max(score))]
                seen[tried].append(float(returns[tried, episode[row, t]]))
                means = [sum(seen[i]) / len(seen[i]) if seen[i] else -math.inf for i in chosen]
                kept = chosen[means.index(max(means))]
                close(found[row, t], float(returns[kept].mean()), 1e-10)
                different += kept != int(returns.mean(-1).argmax())
    assert different > 0


def test_more_tries_find_better_policies() -> None:
    g = torch.Generator().manual_seed(3)
    returns = torch.linspace(0.0, 1.0, 10, dtype=F64).unsqueeze(-1) + torch.randn((10, 500), generator=g, dtype=F64)
    found = online_selection(returns, 300, g, repeats=300).mean(0)
    assert float(found[0]) < float(found[30]) < float(found[-1])
    assert float(found[-1]) > 0.8


def test_misuse_of_online_selection_is_explained() -> None:
    returns, g = torch.zeros((3, 2), dtype=F64), torch.Generator()
    for candidates, tries, repeats in ((0, 1, 1), (4, 1, 1), (2, 0, 1), (2, 1, 0)):
        with pytest.raises(ValueError, match="expected 1 to 3 candidates"):
            online_selection(returns, tries, g, candidates=candidates, repeats=repeats)
