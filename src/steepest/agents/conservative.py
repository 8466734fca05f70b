"""Conservative critics: the choice of what is pushed down, rho fitted to the data, and the penalty's weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from steepest.agents.agent import normalization
from steepest.agents.config import ConservativeConfig
from steepest.agents.replay_updates import Batch, ReplayAgent, batch_obs, descend
from steepest.distributions import Distribution
from steepest.errors import UsageError, require
from steepest.files.functions import load_function, said_by
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_state
from steepest.losses import best_response_value, conservative_weight_loss, score_function_loss
from steepest.networks.inputs import PolicyInput
from steepest.types import Obs

Regulariser = Callable[[Tensor, Tensor], Tensor]
"""From values and log importance weights (..., n) to probabilities (..., n)."""
MAX_WEIGHT = 1e6
"""A learned weight rises no further, as in the authors' code."""


def read_regulariser(config: ConservativeConfig, *built_in: str) -> Regulariser | None:
    """Return a regulariser of the user's own; None for one that is built in.

    Raises:    UsageError where it is neither, fails, or gives no probabilities
    Verified:  tests/unit/test_conservative.py::test_a_regulariser_from_a_file
    """
    if config.regulariser in built_in:
        return None
    wish = f"one of {', '.join(built_in)}, or FILE.py:FUNCTION"
    require(".py:" in config.regulariser, "regulariser", config.regulariser, wish)
    function = load_function(config.regulariser, "regulariser")
    q_value = torch.tensor([[-1.0, 0.0, 2.0], [0.5, 0.5, 0.0]])
    try:
        given = function(q_value, torch.zeros_like(q_value))
    except Exception as error:  # it is the user's program
        raise UsageError(f"regulariser {config.regulariser} failed on values (2, 3): {said_by(error)}") from error
    is_policy = isinstance(given, Tensor) and given.shape == q_value.shape and bool((given >= 0.0).all())
    if not is_policy or not torch.allclose(given.sum(-1), torch.ones(2), atol=1e-4):
        raise UsageError(
            f"regulariser {config.regulariser} gave {given} for values (2, 3); expected probabilities of that shape, "
            "which sum to 1 over the last axis"
        )
    return function


def own_pushed_down(regulariser: Regulariser, q_value: Tensor, log_ratio: Tensor) -> Tensor:
    """Return the mean of Q (..., n) under the probabilities that a user's regulariser gives, (...)."""
    return best_response_value(q_value, regulariser(q_value.detach(), log_ratio))


def initial_weight(configs: Sequence[ConservativeConfig], device: torch.device) -> State:
    """Return the state of a learned weight: its logarithm, and Adam's moments; nothing where it is given.

    Args:      configs: of every member
    """
    if configs[0].gap_threshold is None:
        return {}
    start = torch.tensor([[max(config.conservative_weight, 1e-3)] for config in configs], device=device).log()
    return {f"conservative/{k}": v for k, v in adam_state(start).items()}


def conservative_weight(state: State, hyper: Hyper) -> Tensor:
    """Return the weight of the penalty as it is now, ()."""
    if "conservative/params" not in state:
        return hyper["conservative_weight"]
    return state["conservative/params"].exp().clamp(max=MAX_WEIGHT).squeeze(-1)


def weight_step(gradient: Gradient, hyper: Hyper, state: State, gap: Tensor) -> State:
    """Take one step of Adam on a learned weight's loss; pure, one member."""
    if "conservative/params" not in state:
        return state

    def loss(vector: Tensor, gap: Tensor) -> tuple[Tensor, Metrics]:
        return conservative_weight_loss(vector.squeeze(-1), gap, hyper["gap_threshold"]), {}

    slope, _ = gradient(partial(loss, gap=gap), state["conservative/params"])
    rate = hyper["critic_learning_rate" if "critic_learning_rate" in hyper else "learning_rate"]
    return descend(state, "conservative/", slope, rate, hyper["max_gradient_norm"])[0]


def rho(agent: ReplayAgent, vector: Tensor, state: State, obs: Obs, mask: Tensor | None = None) -> Distribution:
    """Return the policy (B,) that is fitted to the data, the network "behaviour/"; pure, one member."""
    inputs = PolicyInput(obs, mask, None, None, None)
    return agent.calls["behaviour/"](vector, state, inputs, normalization(state), False).distribution


def rho_step(
    agent: ReplayAgent, gradient: Gradient, hyper: Hyper, state: State, batch: Batch, action: Tensor
) -> tuple[State, Metrics]:
    """Take one step of Adam on the mean of -log rho(a|s), a (B, ...) of the data; nothing where there is no rho."""
    if "behaviour/params" not in state:
        return state, {}

    def loss(vector: Tensor) -> tuple[Tensor, Metrics]:
        log_prob = rho(agent, vector, state, batch_obs(batch, "obs/"), batch.get("action_mask")).log_prob(action)
        return score_function_loss(log_prob, torch.ones_like(log_prob)).mean(), {"data_log_prob": log_prob.mean()}

    slope, (_, metrics) = gradient(loss, state["behaviour/params"])
    return descend(state, "behaviour/", slope, hyper["learning_rate"], hyper["max_gradient_norm"])[0], metrics
