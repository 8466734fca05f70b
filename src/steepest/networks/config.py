"""Settings of networks, and the type of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from steepest.errors import require
from steepest.fields import BelowHalf, Checked, Count, Positive

if TYPE_CHECKING:
    from torch import nn

    from steepest.types import ObsSpec

NetworkFactory = Callable[["ObsSpec"], "nn.Module"]
"""Builds a torso: a module from preprocessed observations to features.

The module is called with one float tensor (batch, ...) for a bare space, or a dict of them for a Dict space (vectors
normalised if asked, images scaled to [0, 1], discrete components one-hot), and returns (batch, features). It is called
once for the policy and once for the value function, unless the torso is shared.
"""

Recurrence = Literal["none", "gru", "lstm"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Checked):
    """Settings of how observations enter the networks; shared by every algorithm."""

    hidden_sizes: tuple[Count, ...] = (64, 64)
    """Widths of the hidden layers (after the convolutions, for images)."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the hidden layers. Tanh learns more steadily on low-dimensional control."""
    normalize_obs: bool = False
    """Scale vector observations by their running mean and standard deviation, clipped at 10."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(NetworkConfig):
    """Settings of how observations become actions and values; shared by every on-policy algorithm."""

    shared_torso: bool = False
    """Let policy and value function share all but their heads (images: worth it; vectors: separate is better)."""
    recurrent: Recurrence = "none"
    """Recurrent cell after the torso, for partially observed tasks."""
    recurrent_size: Count = 64
    """Units of the recurrent cell."""
    sequence_length: Count = 16
    """Steps of truncated backpropagation through time. Used only with a recurrent cell."""
    gaussian: Literal["diagonal", "full"] = "diagonal"
    """Covariance of the Gaussian policy on continuous actions."""
    initial_std: Positive = 1.0
    """Standard deviation of a Gaussian policy at the start, in units of the policy's action (see squash)."""
    squash: Literal["clip", "tanh"] = "clip"
    """Clip an unbounded action to the bounds of a box after the draw, or pass it through tanh."""
    min_probability: BelowHalf = 1e-6
    """No legal discrete action's probability falls below this: the policy is mixed with the uniform one."""
    min_std: Positive = 1e-3
    """No standard deviation falls below this (std^2 + min_std^2)."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return (never centred)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.squash == "tanh" and self.gaussian == "full"),
            "gaussian",
            self.gaussian,
            '"diagonal" where squash is "tanh"',
        )
