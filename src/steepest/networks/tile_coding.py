"""Tile coding: binary features of a bounded vector, for linear policies and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.errors import UsageError


class TileCoding(nn.Module):
    """One active feature per tiling, and a last one that is always 1. Nothing is hashed: every tile has its own.

    Equation:  cell_i = floor((x_i - low_i) / (high_i - low_i) * tiles + shift_ki),
               shift_ki = (2 i + 1) k / tilings mod 1 in tiling k
    Source:    Sutton & Barto 2018, Section 9.5.4; displacements of Miller & Glanz 1996.
    Args:      low, high: bounds, beyond which the outermost tiles go on; tiles: per dimension; tilings: how many grids
    Raises:    UsageError on bounds that are no intervals, or fewer than one tile or tiling
    Verified:  tests/unit/test_tile_coding.py::test_one_tile_of_every_tiling
    """

    low: Tensor
    width: Tensor
    shift: Tensor
    stride: Tensor
    cells: Tensor

    def __init__(self, low: tuple[float, ...], high: tuple[float, ...], tiles: int = 10, tilings: int = 10) -> None:
        super().__init__()
        if len(low) != len(high) or not low or any(a >= b for a, b in zip(low, high, strict=True)):
            raise UsageError(f"tile coding got the bounds {low} and {high}; every low must be below its high")
        if tiles < 1 or tilings < 1:
            raise UsageError(f"tile coding got {tiles} tiles and {tilings} tilings; both must be at least 1")
        dimensions = len(low)
        self.edge = tiles + 1  # a shifted grid needs one more to cover the same box
        self.output_size = tilings * self.edge**dimensions + 1
        grid = torch.arange(tilings).unsqueeze(-1) * (2 * torch.arange(dimensions) + 1)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("width", (torch.tensor(high) - torch.tensor(low)) / tiles)
        self.register_buffer("shift", (grid % tilings) / tilings)
        self.register_buffer("stride", self.edge ** torch.arange(dimensions))
        self.register_buffer("cells", torch.arange(self.edge**dimensions))

    def forward(self, obs: Tensor) -> Tensor:
        """(B, D) -> (B, output_size)."""
        position = ((obs - self.low) / self.width).unsqueeze(-2) + self.shift
        cell = position.floor().clamp(0, self.edge - 1).to(torch.int64)
        active = (cell * self.stride).sum(-1, keepdim=True) == self.cells
        return torch.cat([active.to(obs.dtype).flatten(-2), torch.ones_like(obs[..., :1])], dim=-1)
