"""Tile coding."""

from __future__ import annotations

import pytest
import torch

from steepest.errors import UsageError
from steepest.networks.tile_coding import TileCoding


def test_one_tile_of_every_tiling() -> None:
    """Everywhere, beyond the bounds too, exactly one feature per tiling is 1, and the constant."""
    coder = TileCoding((-1.0, 0.0), (1.0, 4.0), tiles=4, tilings=8)
    obs = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 8.0]) - 2.0
    features = coder(obs)
    assert features.shape == (500, 8 * 25 + 1) == (500, coder.output_size)
    per_tiling = features[:, :-1].view(500, 8, 25)
    assert torch.equal(per_tiling.sum(-1), torch.ones(500, 8))
    assert torch.equal(features[:, -1], torch.ones(500))


def test_tiles_by_hand() -> None:
    """Two tiles of width 1 over [0, 2], two tilings, the second shifted by half a tile."""
    coder = TileCoding((0.0,), (2.0,), tiles=2, tilings=2)
    found = coder(torch.tensor([[0.2], [0.7], [1.2], [1.7]]))
    assert found.tolist() == [
        [1, 0, 0, 1, 0, 0, 1],
        [1, 0, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 0, 1, 1],
    ]


def test_near_points_share_tiles_and_far_ones_do_not() -> None:
    coder = TileCoding((0.0, 0.0), (1.0, 1.0), tiles=5, tilings=10)
    here, near, far = coder(torch.tensor([[0.5, 0.5], [0.52, 0.51], [0.95, 0.05]]))[:, :-1]
    assert 5 <= float(here @ near) < 10
    assert float(here @ far) == 0.0


@pytest.mark.parametrize(
    ("low", "high", "tiles", "tilings", "said"),
    [
        ((0.0,), (0.0,), 4, 4, "every low must be below its high"),
        ((0.0,), (1.0, 2.0), 4, 4, "every low must be below its high"),
        ((0.0,), (1.0,), 0, 4, "0 tiles"),
        ((0.0,), (1.0,), 4, 0, "0 tilings"),
    ],
)
def test_what_is_no_tiling_is_refused(low: tuple[float, ...], high: tuple[float, ...], tiles: int, tilings: int,
                                      said: str) -> None:  # fmt: skip
    with pytest.raises(UsageError, match=said):
        TileCoding(low, high, tiles, tilings)
