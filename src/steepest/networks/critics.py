"""Q-functions: ensembles of them, and of all discrete actions at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.distributions import (
    epsilon_greedy,
)
from steepest.networks.config import NetworkConfig, NetworkFactory
from steepest.networks.inputs import Normalization, PolicyInput, PolicyOutput, as_user_sees, preprocess
from steepest.networks.torsos import MLP, PreciseLinear, Torso, orthogonal, output_size, precisely
from steepest.types import ActionSpec, Obs, ObsSpec


class EnsembleLinear(nn.Module):
    """C linear layers of one shape, over inputs (C, B, in) or one input (B, in) for all, as one batched product."""

    def __init__(self, members: int, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        layers = [orthogonal(nn.Linear(inputs, outputs), gain) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([x.weight.detach().T for x in layers]))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            x = x.expand(len(self.weight), *x.shape)
        if self.weight.shape[-1] == 1:
            # One number a row is a weighted sum: as matrix products, forward and back, a layer of 256 units took a
            # tenth of SAC's gradient step.
            return (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """Layer normalisation with a scale and a shift of every member's own."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class QEnsemble(nn.Module):
    """C critics of one shape over an encoder that they share (a CNN, or a custom torso; nothing for vectors).

    Of continuous actions (``actions`` components) it values the one that it is called with; of discrete ones all
    ``choices``; with neither it values the state alone.
    """

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        network: NetworkFactory | None,
        *,
        critics: int,
        actions: int = 0,
        choices: int | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        outputs = choices or 1
        self.obs_spec = obs_spec
        self.scalar = choices is None
        self.dropout = dropout
        self.encoder = network(obs_spec) if network else Torso(obs_spec, (), "relu")
        width = output_size(self.encoder, obs_spec)
        sizes = config.hidden_sizes or (outputs,)
        gain = math.sqrt(2)
        self.first = EnsembleLinear(critics, width, sizes[0], gain)
        # Apart from the observation's, so that a policy's loss differentiates in the action alone.
        self.first_action: nn.Parameter | None = None
        if actions:
            both = [orthogonal(nn.Linear(width + actions, sizes[0]), gain).weight.detach().T for _ in range(critics)]
            with torch.no_grad():
                self.first.weight.copy_(torch.stack([w[:width] for w in both]))
            self.first_action = nn.Parameter(torch.stack([w[width:] for w in both]))
        widths = [*config.hidden_sizes[1:], outputs] if config.hidden_sizes else []
        pairs = list(zip(sizes, widths, strict=False))
        self.layers = nn.ModuleList(
            EnsembleLinear(critics, i, o, 1.0 if n == len(pairs) - 1 else gain) for n, (i, o) in enumerate(pairs)
        )
        norms = config.hidden_sizes if layer_norm else ()
        self.norms = nn.ModuleList(EnsembleNorm(critics, h) for h in norms)
        self.activation = nn.Tanh() if config.activation == "tanh" else nn.ReLU()

    def forward(
        self, obs: Obs, normalization: Normalization, action: Tensor | None, dropout: Sequence[Tensor] = ()
    ) -> Tensor:
        """obs (B, ...), action (B, A) in [-1, 1] or None, dropout: uniform noise (C, B, H) per hidden layer.

        Returns (C, B), or (C, B, choices) where there are choices. Of actions (N, B, A), N for every observation, the
        values are (C, N, B), and the observations' part of the first layer is computed once for all N.
        """
        features = self.encoder(as_user_sees(self.obs_spec, preprocess(self.obs_spec, obs, normalization)))
        x = precisely(self.first_layer, features, action)
        for i, layer in enumerate(self.layers):
            if dropout:
                x = x * (dropout[i] >= self.dropout) / (1.0 - self.dropout)
            if len(self.norms):
                x = self.norms[i](x)
            x = self.activation(x)
            x = precisely(layer, x) if i == len(self.layers) - 1 else layer(x)
        x = x.squeeze(-1) if self.scalar else x
        return x.unflatten(1, action.shape[:2]) if action is not None and action.ndim == 3 else x

    def first_layer(self, features: Tensor, action: Tensor | None) -> Tensor:
        """Outputs of the first layer, (C, B, H), or (C, N B, H) of N actions for every observation."""
        x = self.first(features)
        if self.first_action is None:
            return x
        assert action is not None
        if action.ndim == 2:
            return torch.baddbmm(x, action.expand(len(x), *action.shape), self.first_action)
        flat = action.flatten(0, 1)
        product = torch.bmm(flat.expand(len(x), *flat.shape), self.first_action)
        return (x.unsqueeze(1) + product.unflatten(1, action.shape[:2])).flatten(1, 2)


def action_critics(
    config: NetworkConfig,
    obs_spec: ObsSpec,
    action_spec: ActionSpec,
    network: NetworkFactory | None,
    *,
    critics: int,
    layer_norm: bool = False,
    dropout: float = 0.0,
) -> QEnsemble:
    """Build the Q-functions: of an action in a box, or of all discrete choices."""
    box = action_spec.kind == "box"
    return QEnsemble(
        config,
        obs_spec,
        network,
        critics=critics,
        actions=action_spec.dimension if box else 0,
        choices=None if box else action_spec.sizes[0],
        layer_norm=layer_norm,
        dropout=dropout,
    )


def subset_minimum(q_value: Tensor, subset: Tensor | None) -> Tensor:
    """The least of C critics' values (C, ...), or of those whose numbers (K,) are given: (...).

    Source:    Fujimoto et al. 2018, Eq. 10 (two); Chen et al. 2021, Algorithm 1 (a random subset of many).
    Verified:  tests/unit/test_q_networks.py::test_subset_minimum
    """
    return (q_value if subset is None else q_value.index_select(0, subset)).amin(0)


class QNetwork(nn.Module):
    """The values of all discrete actions, and the policy that acts on them. Called as ``ActorCritic`` is.

    How much is explored is a buffer, so that it is saved with the parameters and acting after a load goes on alike.
    """

    memory_size = 0
    epsilon: Tensor

    def __init__(
        self,
        config: NetworkConfig,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        network: NetworkFactory | None,
        *,
        dueling: bool,
    ) -> None:
        super().__init__()
        self.obs_spec = obs_spec
        sizes, choices = config.hidden_sizes, action_spec.sizes[0]
        # Dueling, the streams part before the last hidden layer, as in its paper; a torso of one's own comes before it.
        shared, apart = (sizes[:-1], sizes[-1:]) if dueling else (sizes, ())
        self.torso = network(obs_spec) if network else Torso(obs_spec, shared, config.activation)
        width = output_size(self.torso, obs_spec)
        self.head = (
            DuelingHead(width, apart, choices, config.activation)
            if dueling
            else orthogonal(PreciseLinear(width, choices), 1.0)
        )
        self.register_buffer("epsilon", torch.ones(()))

    def forward(self, inputs: PolicyInput, normalization: Normalization, with_value: bool) -> PolicyOutput:
        q = self.q_values(inputs.obs, normalization)
        return PolicyOutput(epsilon_greedy(q, self.epsilon, inputs.action_mask), None, None)

    def q_values(self, obs: Obs, normalization: Normalization) -> Tensor:
        """(B, choices) in raw observations (B, ...), reward units."""
        return self.head(self.torso(as_user_sees(self.obs_spec, preprocess(self.obs_spec, obs, normalization))))


class DuelingHead(nn.Module):
    """Streams of their own for the value of a state and the advantages of actions there (B, choices)."""

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], choices: int, activation: str) -> None:
        super().__init__()

        def stream(outputs: int) -> nn.Sequential:
            hidden = MLP(inputs, hidden_sizes, activation)
            return nn.Sequential(*hidden, orthogonal(PreciseLinear(hidden.output_size, outputs), 1.0))

        self.value = stream(1)
        self.advantage = stream(choices)

    def forward(self, features: Tensor) -> Tensor:
        return dueling_q_value(self.value(features).squeeze(-1), self.advantage(features))


def dueling_q_value(value: Tensor, advantage: Tensor) -> Tensor:
    """Action values from a state's value and the actions' advantages, of which only differences count.

    Equation:  Q(s, a) = V(s) + A(s, a) - mean_b A(s, b), so that V is the mean of Q
    Source:    Wang et al. 2016, Eq. 9. Not in the notes.
    Args:      value (...), advantage (..., k), reward units, both carry gradient
    Returns:   (..., k) reward units
    Verified:  tests/unit/test_q_networks.py::test_dueling_streams_are_identified
    """
    return value.unsqueeze(-1) + advantage - advantage.mean(-1, keepdim=True)
