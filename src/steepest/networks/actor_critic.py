"""Policy and value function over a shared or two separate torsos."""

from __future__ import annotations

import math

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
from steepest.networks.cells import Cell
from steepest.networks.config import NetworkFactory, PolicyConfig
from steepest.networks.inputs import Normalization, PolicyInput, PolicyOutput, as_user_sees, preprocess
from steepest.networks.torsos import Torso, TwinTorso, orthogonal, output_size
from steepest.types import ActionSpec, Obs, ObsSpec


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
