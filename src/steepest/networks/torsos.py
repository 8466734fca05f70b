"""From observations to features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.networks.inputs import NO_STATISTICS, as_user_sees, preprocess, zeros
from steepest.types import BARE_OBS, Obs, ObsSpec


class PreciseLinear(nn.Linear):
    """A linear layer that computes in float32, whatever the layers around it do.

    First layers are such, since observations may differ in their last digits, and so are last layers, since losses do.
    """

    def forward(self, input: Tensor) -> Tensor:
        return precisely(super().forward, input)


def precisely(layer: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Tensor:
    """Return ``layer(x, ...)``, computed in float32 where an autocast is on."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):  # an exported program cannot hold what is entered below
        return layer(x, *arguments)
    with torch.autocast(kind, enabled=False):
        return layer(x.float(), *arguments)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Linear | nn.Conv2d:
    """Orthogonal weights and zero bias, what policy-gradient code has used since Baselines."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Linear layers with a non-linearity after each."""

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], activation: str) -> None:
        layers: list[nn.Module] = []
        for n, width in enumerate(hidden_sizes):
            kind = nn.Linear if n else PreciseLinear
            layers += [
                orthogonal(kind(inputs, width), math.sqrt(2)),
                nn.Tanh() if activation == "tanh" else nn.ReLU(),
            ]
            inputs = width
        super().__init__(*layers)
        self.output_size = inputs


class NatureCNN(nn.Sequential):
    """The convolutional network of Mnih et al. 2015, for (C, H, W) images of at least 36 x 36."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        if min(height, width) < 36:
            raise ValueError(f"an image observation is {height} x {width}; the built-in CNN needs at least 36 x 36")
        gain = math.sqrt(2)
        super().__init__(
            orthogonal(nn.Conv2d(channels, 32, 8, 4), gain),
            nn.ReLU(),
            orthogonal(nn.Conv2d(32, 64, 4, 2), gain),
            nn.ReLU(),
            orthogonal(nn.Conv2d(64, 64, 3, 1), gain),
            nn.ReLU(),
            nn.Flatten(),
        )
        side = [(((x - 8) // 4 + 1 - 4) // 2 + 1 - 3) + 1 for x in (height, width)]
        self.output_size = 64 * side[0] * side[1]


class Torso(nn.Module):
    """The built-in torso: a CNN per image field, everything concatenated, then an MLP."""

    def __init__(self, spec: ObsSpec, hidden_sizes: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.spec = spec
        images = {_safe(f.name): NatureCNN(f.shape) for f in spec.fields if f.kind == "image"}
        self.images = nn.ModuleDict(images)
        width = sum(cnn.output_size for cnn in images.values())
        for field in spec.fields:
            if field.kind == "vector":
                width += math.prod(field.shape)
            elif field.kind == "discrete":
                width += sum(field.sizes)
        if width == 0:
            raise ValueError("the observation space is empty")
        # ReLU is what convolutions are followed by throughout; vectors keep the configured activation.
        self.mlp = MLP(width, hidden_sizes, "relu" if images else activation)
        self.output_size = self.mlp.output_size

    def forward(self, obs: Tensor | Obs) -> Tensor:
        named = obs if isinstance(obs, dict) else {BARE_OBS: obs}
        parts: list[Tensor] = []
        for field in self.spec.fields:
            x = named[field.name]
            if field.kind == "image":
                parts.append(self.images[_safe(field.name)](x))
            elif field.kind == "vector":
                parts.append(x if len(field.shape) == 1 else x.reshape(x.shape[0], -1))
            else:
                parts.append(x)
        return self.mlp(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))


class TwinLinear(nn.Module):
    """Two linear layers of one shape, over inputs (2, B, in), as one batched matrix product."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([first.weight, second.weight]).detach())
        self.bias = nn.Parameter(torch.stack([first.bias, second.bias]).detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight.transpose(1, 2)) + self.bias.unsqueeze(1)

    def alone(self, which: int, x: Tensor) -> Tensor:
        """One of the two on its own, over inputs (B, in)."""
        return F.linear(x, self.weight[which], self.bias[which])


class TwinTorso(nn.Module):
    """The built-in torsos of policy and value function where both are MLPs.

    They see the same observations and have the same shape, so each layer of both is one product: small products cost
    more in calls than in arithmetic, and this halves the calls.
    """

    def __init__(self, spec: ObsSpec, hidden_sizes: tuple[int, ...], activation: str) -> None:
        super().__init__()
        torsos = [Torso(spec, hidden_sizes, activation) for _ in range(2)]
        pairs = zip(*([x for x in torso.mlp if isinstance(x, nn.Linear)] for torso in torsos), strict=True)
        self.spec = spec
        self.layers = nn.ModuleList(TwinLinear(policy, value) for policy, value in pairs)
        self.activation = nn.Tanh() if activation == "tanh" else nn.ReLU()
        self.output_size = torsos[0].output_size

    def forward(self, obs: Obs) -> Tensor:
        """Features of policy and value function, (2, B, H)."""
        x = concatenated(self.spec, obs)
        x = x.expand(2, *x.shape)
        for layer in self.layers:
            x = self.activation(layer(x))
        return x

    def alone(self, which: int, obs: Obs) -> Tensor:
        """Features of the policy (0) or the value function (1) alone, (B, H)."""
        x = concatenated(self.spec, obs)
        for layer in self.layers:
            x = self.activation(cast(TwinLinear, layer).alone(which, x))
        return x


def concatenated(spec: ObsSpec, obs: Obs) -> Tensor:
    """Vectors and one-hot components of all fields as one vector (B, F)."""
    parts = [obs[field.name] for field in spec.fields]
    flat = [x.reshape(x.shape[0], -1) if len(f.shape) != 1 else x for f, x in zip(spec.fields, parts, strict=True)]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def _safe(name: str) -> str:
    return name.replace(".", "_").replace("/", "__")


def output_size(torso: nn.Module, spec: ObsSpec) -> int:
    """The number of features that a torso gives. ValueError if it fails, or gives something else than (B, features)."""
    obs = as_user_sees(spec, preprocess(spec, zeros(spec, (2,)), NO_STATISTICS))
    try:
        with torch.no_grad():
            features = torso(obs)
    except Exception as error:
        shapes = {k: tuple(x.shape) for k, x in obs.items()} if isinstance(obs, dict) else tuple(obs.shape)
        raise ValueError(f"the network fails on a batch of shape {shapes}: {error}") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the network returned {got} for a batch of 2 observations; expected (2, features)")
    return features.shape[1]
