"""Recurrent cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.networks.config import Recurrence
from steepest.networks.torsos import orthogonal


class Cell(nn.Module):
    """A GRU or LSTM cell with its state in one tensor, unrolled step by step.

    Written out, because ``nn.LSTM`` does not compile whole and ``nn.GRUCell`` has no batching rule under vmap.
    Gates are those of Cho et al. 2014 and Gers et al. 2000 as PyTorch defines them.
    """

    def __init__(self, kind: Recurrence, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.lstm = kind == "lstm"
        gates = 4 if self.lstm else 3
        self.from_input = orthogonal(nn.Linear(inputs, gates * size), 1.0)
        self.from_hidden = orthogonal(nn.Linear(size, gates * size), 1.0)
        self.memory_size = 2 * size if self.lstm else size

    def _step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Projected input (B, gates H) and memory (B, K) -> output (B, H), new memory (B, K)."""
        h = memory[..., : self.size]
        if self.lstm:
            i, f, g, o = (x + self.from_hidden(h)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * memory[..., self.size :] + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            return h, torch.cat([h, c], dim=-1)
        xr, xz, xn = x.chunk(3, dim=-1)
        hr, hz, hn = self.from_hidden(h).chunk(3, dim=-1)
        z = torch.sigmoid(xz + hz)
        candidate = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        h = (1.0 - z) * candidate + z * h
        return h, h

    def forward(self, features: Tensor, episode_start: Tensor, valid: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """features (L, B, F), episode_start and valid (L, B), memory (B, K) -> outputs (L, B, H), memory (B, K)."""
        outputs: list[Tensor] = []
        projected = self.from_input(features)
        for x, start, counts in zip(projected.unbind(0), episode_start.unbind(0), valid.unbind(0), strict=True):
            memory = torch.where(start.unsqueeze(-1), torch.zeros_like(memory), memory)
            h, new = self._step(x, memory)
            outputs.append(h)
            memory = torch.where(counts.unsqueeze(-1), new, memory)
        return torch.stack(outputs), memory
