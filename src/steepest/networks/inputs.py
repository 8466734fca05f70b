"""Inputs and outputs of policies, and the normalisation of observations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steepest.distributions import (
    Distribution,
)
from steepest.types import BARE_OBS, Obs, ObsSpec

OBS_CLIP = 10.0


class Normalization(NamedTuple):
    """Statistics of vector observations by field name; empty where nothing is normalised."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]


class PolicyInput(NamedTuple):
    """Inputs of a policy. Feed-forward: any leading axes. Recurrent: leading (L, B), with memory (B, K)."""

    obs: Obs
    action_mask: Tensor | None  # (..., mask_size) bool
    episode_start: Tensor | None  # (L, B) bool: forget the memory before this step
    valid: Tensor | None  # (L, B) bool: an invalid row leaves the memory as it was
    memory: Tensor | None  # (B, K)


class PolicyOutput(NamedTuple):
    """Outputs of a policy."""

    distribution: Distribution
    value: Tensor | None  # (...) reward units
    memory: Tensor | None  # (B, K)


def preprocess(spec: ObsSpec, obs: Obs, normalization: Normalization) -> Obs:
    """Float tensors for a torso: vectors normalised, images in [0, 1], discrete components one-hot."""
    out: Obs = {}
    for field in spec.fields:
        x = obs[field.name]
        if field.kind == "image":
            out[field.name] = x.to(torch.float32) / 255.0 if field.dtype == "uint8" else x
        elif field.kind == "discrete":
            parts = x.reshape(*x.shape[: x.ndim - len(field.shape)], -1).unbind(-1)
            # Not F.one_hot, which looks at the values and so cannot be traced inside a gradient.
            choices = [torch.arange(size, device=x.device) for size in field.sizes]
            hot = [part.unsqueeze(-1) == choice for part, choice in zip(parts, choices, strict=True)]
            out[field.name] = torch.cat(hot, dim=-1).to(torch.float32)
        elif field.name in normalization.mean:
            scaled = (x - normalization.mean[field.name]) * torch.rsqrt(normalization.variance[field.name] + 1e-8)
            out[field.name] = scaled.clamp(-OBS_CLIP, OBS_CLIP)
        else:
            out[field.name] = x
    return out


def as_user_sees(spec: ObsSpec, obs: Obs) -> Tensor | Obs:
    """Return the argument of a torso: the tensor itself for a bare space, the dict for a Dict space."""
    return obs if spec.is_dict else obs[BARE_OBS]


def zeros(spec: ObsSpec, leading: tuple[int, ...], device: torch.device | str = "cpu") -> Obs:
    """An all-zero observation, for shapes."""
    return {f.name: torch.zeros((*leading, *f.shape), dtype=f.torch_dtype, device=device) for f in spec.fields}


NO_STATISTICS = Normalization({}, {})
