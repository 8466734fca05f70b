"""What exact solutions ask of the tensors that they are given."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.errors import UsageError


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise UsageError unless the tensor has this shape, is float64 and finite."""
    if tuple(tensor.shape) != shape:
        raise UsageError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.dtype != torch.float64:
        raise UsageError(f"{name} has dtype {tensor.dtype}; exact solutions are computed in torch.float64: convert it")
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise UsageError(f"{name} has entries that are not finite")
