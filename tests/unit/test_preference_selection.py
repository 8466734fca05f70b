"""Which pairs are asked about: the disputed ones, and reserved ones uniformly."""

from __future__ import annotations

import pytest
import torch

from steepest import UsageError
from steepest.preferences.selection import choose_pairs, preference_disagreement, reserved_groups


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_disagreement_by_hand() -> None:
    first = torch.tensor([[0.0, 50.0, 1.0], [0.0, -50.0, 1.0], [0.0, 50.0, 1.0]], dtype=torch.float64)
    second = torch.zeros_like(first)
    found = preference_disagreement(first, second)
    expected = torch.tensor([0.0, 2 / 9, 0.0], dtype=torch.float64)  # all equally unsure; 1, 0, 1; all of one mind
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(preference_disagreement(second, first), found, rtol=0, atol=1e-12)
    shifted = preference_disagreement(first + 7.0, second + 7.0)
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-12)
    assert preference_disagreement(first.view(3, 3, 1), second.view(3, 3, 1)).shape == (3, 1)


def test_whole_groups_are_reserved() -> None:
    group = torch.arange(2000) // 4
    found = reserved_groups(group, 0.2, seed=1)
    by_group = found.view(-1, 4)
    assert bool((by_group.all(-1) == by_group.any(-1)).all())
    assert 0.14 < float(found.float().mean()) < 0.26
    # One group's fate does not depend on which others there are, nor on the order.
    some = torch.randperm(2000, generator=generator())[:50]
    assert torch.equal(reserved_groups(group[some], 0.2, seed=1), found[some])
    assert not torch.equal(reserved_groups(group, 0.2, seed=2), found)
    assert not reserved_groups(group, 0.0, seed=1).any()
    assert bool(reserved_groups(group, 1.0, seed=1).all())
    assert reserved_groups(group[:0], 0.2, seed=1).shape == (0,)
    with pytest.raises(UsageError, match=r"share is 1\.5"):
        reserved_groups(group, 1.5, seed=1)


def test_the_most_disputed_are_asked_first() -> None:
    disagreement = torch.tensor([0.1, 0.24, 0.0, 0.2, 0.15])
    reserved = torch.tensor([False, True, False, False, False])
    found = choose_pairs(disagreement, reserved, 3, generator(), uniform_share=0.0)
    assert found.pairs.tolist() == [3, 4, 0]
    assert found.evaluation.tolist() == [False] * 3
    everything = choose_pairs(disagreement, reserved, 50, generator(), uniform_share=0.0)
    assert sorted(everything.pairs.tolist()) == [0, 2, 3, 4]  # what is reserved is never learned from
    nothing = choose_pairs(disagreement[:0], reserved[:0], 3, generator())
    assert nothing.pairs.shape == nothing.evaluation.shape == (0,)


def test_equal_ones_are_chosen_by_chance() -> None:
    """Before anything is known, every pair is as likely as any other."""
    counts = torch.zeros(10)
    for seed in range(300):
        found = choose_pairs(torch.zeros(10), torch.zeros(10, dtype=torch.bool), 2, generator(seed), uniform_share=0.0)
        counts[found.pairs] += 1
    assert float(counts.min()) > 30
    assert float(counts.max()) < 95


def test_reserved_pairs_are_drawn_uniformly() -> None:
    """A fifth of what is asked, whatever the ensemble thinks of them."""
    disagreement = torch.linspace(0.0, 0.25, 40)
    reserved = torch.arange(40) % 2 == 0
    counts, asked, apart = torch.zeros(40), 0, 0
    for seed in range(400):
        found = choose_pairs(disagreement, reserved, 10, generator(seed))
        assert len(set(found.pairs.tolist())) == len(found.pairs) == 10
        assert torch.equal(reserved[found.pairs], found.evaluation)
        counts[found.pairs[found.evaluation]] += 1
        asked, apart = asked + 10, apart + int(found.evaluation.sum())
    assert apart / asked == pytest.approx(0.2, abs=0.02)
    each = counts[reserved]  # 40 expected of each
    assert float(each.min()) > 20
    assert float(each.max()) < 62
    one = [bool(choose_pairs(disagreement, reserved, 1, generator(seed)).evaluation.any()) for seed in range(400)]
    assert sum(one) / 400 == pytest.approx(0.2, abs=0.06)  # one at a time, as a page asks
    with pytest.raises(UsageError, match="uniform_share"):
        choose_pairs(disagreement, reserved, 1, generator(), uniform_share=-0.1)
