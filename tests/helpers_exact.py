"""Agents whose policy and values are tables, and the gradients that they follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers import F64, LayeredMDP, discrete, to_float64, vector
from steepest.learner.step import autograd_gradient

PROBABILITIES = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=F64).repeat(3, 1)  # by state


def tabular(kind: Any, mdp: LayeredMDP, values: Tensor, probabilities: Tensor = PROBABILITIES, **config: Any) -> Any:
    """An agent without hidden layers: its logits are the log-probabilities, its values those given, both exactly."""
    settings = {"hidden_sizes": (), "min_probability": 0.0, "normalize_advantage": False, **config}
    agent = to_float64(kind(kind.Config(**settings), vector(mdp.states), discrete(2)))
    parameters = {
        "policy_head.weight": probabilities.log().T,
        "policy_head.bias": torch.zeros(2, dtype=F64),
        "value_head.weight": values.unsqueeze(0),
        "value_head.bias": torch.zeros(1, dtype=F64),
    }
    assert set(parameters) == set(agent.layout.names)
    agent.state["params"] = agent.layout.flatten({k: x.unsqueeze(0) for k, x in parameters.items()})
    return agent


def caught(agent: Any, step: Callable[[Any], Any]) -> dict[str, Tensor]:
    """The gradient, by parameter, that a step differentiates: caught on its way to Adam."""
    slopes: list[Tensor] = []

    def spy(loss: Any, vector: Tensor) -> Any:
        slope, rest = autograd_gradient(loss, vector)
        slopes.append(slope)
        return slope, rest

    step(spy)
    (slope,) = slopes
    return agent.layout.unflatten(slope)


def random_values(mdp: LayeredMDP) -> Tensor:
    """(S,) values that have nothing to do with the process."""
    return torch.randn(mdp.states, generator=torch.Generator().manual_seed(5), dtype=F64)
