"""Policies without a value function: squashed Gaussians, masked categoricals, deterministic ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from steepest.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    TanhGaussian,
    floored_log_probs,
)
from steepest.networks.config import NetworkConfig, NetworkFactory
from steepest.networks.inputs import Normalization, PolicyInput, PolicyOutput, as_user_sees, preprocess
from steepest.networks.torsos import PreciseLinear, Torso, orthogonal, output_size
from steepest.types import ActionSpec, ObsSpec


class PolicyNetwork(nn.Module):
    """A torso and a linear head; what the head's outputs mean is up to the subclass. Called as ``ActorCritic`` is."""

    memory_size = 0

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        network: NetworkFactory | None,
        out: int,
    ) -> None:
        super().__init__()
        self.obs_spec = obs_spec
        self.action_spec = action_spec
        self.torso = network(obs_spec) if network else Torso(obs_spec, config.hidden_sizes, config.activation)
        # A hundredth of the usual scale: the first policy is the same in every state.
        self.head = orthogonal(PreciseLinear(output_size(self.torso, obs_spec), out), 0.01)

    def forward(self, inputs: PolicyInput, normalization: Normalization, with_value: bool) -> PolicyOutput:
        obs = preprocess(self.obs_spec, inputs.obs, normalization)
        out = self.head(self.torso(as_user_sees(self.obs_spec, obs)))
        return PolicyOutput(self.distribution(out, inputs.action_mask), None, None)

    def distribution(self, out: Tensor, mask: Tensor | None) -> Distribution:
        """The policy (B,) of the head's outputs (B, out)."""
        raise NotImplementedError


class SquashedPolicy(PolicyNetwork):
    """A Gaussian squashed by tanh, mean and deviation both functions of the state; or a Categorical."""

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        network: NetworkFactory | None,
        *,
        log_std: tuple[float, float],
        min_probability: float,
    ) -> None:
        box = action_spec.kind == "box"
        super().__init__(
            config, obs_spec, action_spec, network, 2 * action_spec.dimension if box else action_spec.sizes[0]
        )
        self.log_std = log_std
        self.min_probability = min_probability

    def distribution(self, out: Tensor, mask: Tensor | None) -> Distribution:
        if self.action_spec.kind == "discrete":
            return Categorical(floored_log_probs(out, self.min_probability, mask))
        mean, log_std = out.chunk(2, dim=-1)
        return TanhGaussian(mean, log_std.clamp(*self.log_std))


class DeterministicPolicy(PolicyNetwork):
    """An action in [-1, 1] per state, with Gaussian noise around it for exploring: its mode is the policy itself."""

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        network: NetworkFactory | None,
        *,
        exploration_std: float,
    ) -> None:
        super().__init__(config, obs_spec, action_spec, network, action_spec.dimension)
        self.exploration_std = exploration_std

    def distribution(self, out: Tensor, mask: Tensor | None) -> Distribution:
        action = torch.tanh(out)
        return DiagonalGaussian(action, torch.full_like(action, math.log(self.exploration_std)))


class BoundedPolicy(PolicyNetwork):
    """A Gaussian whose mean lies in [-1, 1], with one deviation per component for all states; or a Categorical.

    Its density is of the action before clipping, so that actions at their bounds, of which data is full, have one.
    """

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        network: NetworkFactory | None,
        *,
        log_std: tuple[float, float],
        min_probability: float,
    ) -> None:
        box = action_spec.kind == "box"
        super().__init__(config, obs_spec, action_spec, network, action_spec.dimension if box else action_spec.sizes[0])
        self.bounds = log_std
        self.min_probability = min_probability
        self.log_std = nn.Parameter(torch.zeros(action_spec.dimension)) if box else None

    def distribution(self, out: Tensor, mask: Tensor | None) -> Distribution:
        if self.log_std is None:
            return Categorical(floored_log_probs(out, self.min_probability, mask))
        return DiagonalGaussian(torch.tanh(out), self.log_std.clamp(*self.bounds).expand_as(out))


def unit_action(spec: ActionSpec, action: Tensor) -> Tensor:
    """The action (..., D) in [-1, 1] that a squashed policy's draw stands for."""
    return torch.tanh(action) if spec.kind == "box" else action
