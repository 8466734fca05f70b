"""Networks: preprocessing, torsos, recurrent cells, and the policy and value heads over them.

Everything is an ordinary ``nn.Module``; the learner calls it functionally. Raw observations come in; normalisation
happens inside the forward pass with the statistics that are passed to it, so that one set of statistics serves a
whole collect-and-update cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    Factored,
    FullGaussian,
    TanhGaussian,
    floored_log_probs,
    floored_log_std,
)
from steepest.errors import require
from steepest.types import BARE_OBS, ActionSpec, Obs, ObsSpec

NetworkFactory = Callable[[ObsSpec], nn.Module]
"""Builds a torso: a module from preprocessed observations to features.

The module is called with one float tensor (batch, ...) for a bare space, or a dict of them for a Dict space (vectors
normalised if asked, images scaled to [0, 1], discrete components one-hot), and returns (batch, features). It is called
once for the policy and once for the value function, unless the torso is shared.
"""

Recurrence = Literal["none", "gru", "lstm"]
Schedule = Literal["constant", "linear"]
OBS_CLIP = 10.0


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """What a scheduled quantity is multiplied by when a fraction ``progress`` of the run is over."""
    return 1.0 - progress if schedule == "linear" else 1.0


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How observations enter the networks; shared by every algorithm."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers (after the convolutions, for images)."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the hidden layers. Tanh learns more steadily on low-dimensional control."""
    normalize_obs: bool = False
    """Scale vector observations by their running mean and standard deviation, clipped at 10."""

    def __post_init__(self) -> None:
        require(all(h > 0 for h in self.hidden_sizes), "hidden_sizes", self.hidden_sizes, "positive widths")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(NetworkConfig):
    """How observations become actions and values; shared by every on-policy algorithm."""

    shared_torso: bool = False
    """Whether policy and value function share all but their heads (images: worth it; vectors: separate is better)."""
    recurrent: Recurrence = "none"
    """Recurrent cell after the torso, for partially observed tasks."""
    recurrent_size: int = 64
    """Units of the recurrent cell."""
    sequence_length: int = 16
    """Steps of truncated backpropagation through time. Used only with a recurrent cell."""
    gaussian: Literal["diagonal", "full"] = "diagonal"
    """Covariance of the Gaussian policy on continuous actions."""
    initial_std: float = 1.0
    """Standard deviation of a Gaussian policy at the start, in units of the policy's action (see squash)."""
    squash: Literal["clip", "tanh"] = "clip"
    """How an unbounded action meets the bounds of a box: clipped after the draw, or passed through tanh."""
    min_probability: float = 1e-6
    """No legal discrete action's probability falls below this: the policy is mixed with the uniform one."""
    min_std: float = 1e-3
    """No standard deviation falls below this (std^2 + min_std^2)."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return (never centred)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.recurrent_size > 0, "recurrent_size", self.recurrent_size, "a positive width")
        require(self.sequence_length > 0, "sequence_length", self.sequence_length, "at least 1")
        require(self.initial_std > 0, "initial_std", self.initial_std, "a positive number")
        require(0 <= self.min_probability < 0.5, "min_probability", self.min_probability, "in [0, 0.5)")
        require(self.min_std > 0, "min_std", self.min_std, "a positive number")
        require(
            not (self.squash == "tanh" and self.gaussian == "full"),
            "gaussian",
            self.gaussian,
            '"diagonal" where squash is "tanh"',
        )


class Normalization(NamedTuple):
    """Statistics of vector observations by field name; empty where nothing is normalised."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]


class PolicyInput(NamedTuple):
    """What a policy sees. Feed-forward: any leading axes. Recurrent: leading (L, B), with memory (B, K)."""

    obs: Obs
    action_mask: Tensor | None  # (..., mask_size) bool
    episode_start: Tensor | None  # (L, B) bool: forget the memory before this step
    valid: Tensor | None  # (L, B) bool: an invalid row leaves the memory as it was
    memory: Tensor | None  # (B, K)


class PolicyOutput(NamedTuple):
    """What a policy answers."""

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
        for width in hidden_sizes:
            layers += [
                orthogonal(nn.Linear(inputs, width), math.sqrt(2)),
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
        x = _concatenated(self.spec, obs)
        x = x.expand(2, *x.shape)
        for layer in self.layers:
            x = self.activation(layer(x))
        return x

    def alone(self, which: int, obs: Obs) -> Tensor:
        """Features of the policy (0) or the value function (1) alone, (B, H)."""
        x = _concatenated(self.spec, obs)
        for layer in self.layers:
            x = self.activation(cast(TwinLinear, layer).alone(which, x))
        return x


def _concatenated(spec: ObsSpec, obs: Obs) -> Tensor:
    """Vectors and one-hot components of all fields as one vector (B, F)."""
    parts = [obs[field.name] for field in spec.fields]
    flat = [x.reshape(x.shape[0], -1) if len(f.shape) != 1 else x for f, x in zip(spec.fields, parts, strict=True)]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def _safe(name: str) -> str:
    return name.replace(".", "_").replace("/", "__")


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


class ActorCritic(nn.Module):
    """Policy and value function over a shared or two separate torsos."""

    def __init__(
        self, config: PolicyConfig, obs_spec: ObsSpec, action_spec: ActionSpec, network: NetworkFactory | None = None
    ) -> None:
        super().__init__()
        choices = max((2 if action_spec.kind == "multi_binary" else n) for n in action_spec.sizes or (1,))
        require(
            config.min_probability * choices < 1,
            "min_probability",
            config.min_probability,
            f"below 1/{choices}, as there are {choices} actions to share it",
        )
        self.config = config
        self.obs_spec = obs_spec
        self.action_spec = action_spec
        build = network or (lambda spec: Torso(spec, config.hidden_sizes, config.activation))
        images = any(field.kind == "image" for field in obs_spec.fields)
        self.twin_torso: TwinTorso | None = None
        if network is None and not config.shared_torso and config.hidden_sizes and not images:
            self.twin_torso = TwinTorso(obs_spec, config.hidden_sizes, config.activation)
            width = self.twin_torso.output_size
        else:
            self.policy_torso = build(obs_spec)
            self.value_torso = self.policy_torso if config.shared_torso else build(obs_spec)
            width = output_size(self.policy_torso, obs_spec)
        self.policy_cell: Cell | None = None
        self.value_cell: Cell | None = None
        if config.recurrent != "none":
            self.policy_cell = Cell(config.recurrent, width, config.recurrent_size)
            self.value_cell = (
                self.policy_cell if config.shared_torso else Cell(config.recurrent, width, config.recurrent_size)
            )
            width = config.recurrent_size
        self.policy_head = orthogonal(nn.Linear(width, _head_size(action_spec)), 0.01)
        self.value_head = orthogonal(nn.Linear(width, 1), 1.0)
        if action_spec.kind == "box":
            d = action_spec.dimension
            self.log_std = nn.Parameter(torch.full((d,), math.log(config.initial_std)))
            if config.gaussian == "full":
                self.tril = nn.Parameter(torch.zeros(d, d))

    @property
    def memory_size(self) -> int:
        """Length of the recurrent state, 0 for a feed-forward policy."""
        if self.policy_cell is None or self.value_cell is None:
            return 0
        return self.policy_cell.memory_size * (1 if self.config.shared_torso else 2)

    def _features(self, obs: Obs, leading: tuple[int, ...], with_value: bool) -> tuple[Tensor, Tensor | None]:
        """Features of policy and value function, (*leading, H). Torsos see exactly one batch axis."""
        if len(leading) != 1:
            obs = {k: x.reshape(-1, *x.shape[len(leading) :]) for k, x in obs.items()}
        if self.twin_torso is not None and with_value:
            policy, value = self.twin_torso(obs).unbind(0)
        elif self.twin_torso is not None:
            policy, value = self.twin_torso.alone(0, obs), None
        else:
            seen = as_user_sees(self.obs_spec, obs)
            policy = self.policy_torso(seen)
            value = policy if self.config.shared_torso else self.value_torso(seen) if with_value else None
        if len(leading) != 1:
            policy = policy.view(*leading, -1)
            value = None if value is None else value.view(*leading, -1)
        return policy, value

    def forward(self, inputs: PolicyInput, normalization: Normalization, with_value: bool) -> PolicyOutput:
        first = self.obs_spec.fields[0]
        x = inputs.obs[first.name]
        leading = tuple(x.shape[: x.ndim - len(first.shape)])
        obs = preprocess(self.obs_spec, inputs.obs, normalization)
        shared = self.config.shared_torso
        memory: Tensor | None = None
        # A separate value function has a memory of its own, which has to advance while acting too.
        policy_features, value_features = self._features(obs, leading, with_value or self.value_cell is not None)
        if self.policy_cell is not None and self.value_cell is not None:
            assert inputs.memory is not None
            assert inputs.episode_start is not None
            assert inputs.valid is not None
            size = self.policy_cell.memory_size
            flags = (inputs.episode_start, inputs.valid)
            policy_features, policy_memory = self.policy_cell(policy_features, *flags, inputs.memory[..., :size])
            if shared:
                value_features, memory = policy_features, policy_memory
            else:
                assert value_features is not None
                value_features, value_memory = self.value_cell(value_features, *flags, inputs.memory[..., size:])
                memory = torch.cat((policy_memory, value_memory), dim=-1)
        distribution = self._distribution(self.policy_head(policy_features), inputs.action_mask)
        value = self.value_head(value_features).squeeze(-1) if with_value else None
        return PolicyOutput(distribution, value, memory)

    def value(self, inputs: PolicyInput, normalization: Normalization) -> Tensor:
        """The value function on its own, (B,), for a feed-forward network and one batch axis.

        Verified:  tests/unit/test_networks.py::test_the_value_on_its_own_is_the_value
        """
        obs = preprocess(self.obs_spec, inputs.obs, normalization)
        if self.twin_torso is not None:
            features = self.twin_torso.alone(1, obs)
        else:
            features = self.value_torso(as_user_sees(self.obs_spec, obs))
        return self.value_head(features).squeeze(-1)

    def _distribution(self, out: Tensor, mask: Tensor | None) -> Distribution:
        spec, config = self.action_spec, self.config
        if spec.kind == "discrete":
            return Categorical(floored_log_probs(out, config.min_probability, mask))
        if spec.kind == "multi_discrete":
            return Factored(_factored_log_probs(out, spec, config.min_probability, mask))
        if spec.kind == "multi_binary":
            logits = torch.stack([torch.zeros_like(out), out], dim=-1)
            return Bernoulli(floored_log_probs(logits, config.min_probability))
        log_std = floored_log_std(self.log_std, config.min_std)
        if config.squash == "tanh":
            return TanhGaussian(out, log_std.expand_as(out))
        if config.gaussian == "full":
            scale_tril = torch.tril(self.tril, -1) + torch.diag(log_std.exp())
            return FullGaussian(out, scale_tril.expand(*out.shape, out.shape[-1]))
        return DiagonalGaussian(out, log_std.expand_as(out))


def output_size(torso: nn.Module, spec: ObsSpec) -> int:
    """The number of features that a torso gives. ValueError if it fails, or gives something else than (B, features)."""
    obs = as_user_sees(spec, preprocess(spec, zeros(spec, (2,)), _NO_STATISTICS))
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


def as_user_sees(spec: ObsSpec, obs: Obs) -> Tensor | Obs:
    """What a torso is called with: the tensor itself for a bare space, the dict for a Dict space."""
    return obs if spec.is_dict else obs[BARE_OBS]


def _head_size(spec: ActionSpec) -> int:
    if spec.kind in ("discrete", "multi_discrete"):
        return sum(spec.sizes)
    return spec.dimension


def _factored_log_probs(out: Tensor, spec: ActionSpec, floor: float, mask: Tensor | None) -> Tensor:
    """Split flat logits into components, padded with impossible choices to the widest."""
    widest = max(spec.sizes)
    logits = out.split(list(spec.sizes), dim=-1)
    masks: tuple[Tensor | None, ...] = (None,) * len(spec.sizes)
    if mask is not None:
        masks = mask.split(list(spec.sizes), dim=-1)
    impossible = torch.finfo(out.dtype).min
    parts = [
        F.pad(floored_log_probs(part, floor, legal), (0, widest - part.shape[-1]), value=impossible)
        for part, legal in zip(logits, masks, strict=True)
    ]
    return torch.stack(parts, dim=-2)


def zeros(spec: ObsSpec, leading: tuple[int, ...], device: torch.device | str = "cpu") -> Obs:
    """An all-zero observation, for shapes."""
    return {f.name: torch.zeros((*leading, *f.shape), dtype=f.torch_dtype, device=device) for f in spec.fields}


_NO_STATISTICS = Normalization({}, {})
