"""Settings of ReBRAC and TD3+BC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steepest.agents.config import DelayedPolicyConfig
from steepest.errors import require
from steepest.fields import Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(DelayedPolicyConfig):
    """ReBRAC. Defaults are the paper's for locomotion, with penalties that suit data of medium quality."""

    hidden_sizes: tuple[Count, ...] = (256, 256, 256)
    """Widths of the hidden layers of policy and critics (after the convolutions, for images)."""
    batch_size: Count = 1024
    """Transitions per gradient step."""
    policy_penalty: NonNegative = 0.01
    """Weight of the policy's squared distance to the action of the data; the paper tunes it from 0.001 to 0.1."""
    critic_penalty: NonNegative = 0.01
    """Reward units taken from the next value per squared distance of the next action to that of the data; the paper
    tunes it from 0 to 0.1."""
    policy_q: Literal["min", "first"] = "min"
    """Let the policy climb the least of both Q-functions, or the first."""
    average_components: bool = False
    """Average the policy's squared distance over the components of an action instead of summing."""
    layer_norm: bool = True
    """Normalise the hidden layers of the critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        single = self.n_steps == 1 or self.critic_penalty == 0.0
        require(single, "n_steps", self.n_steps, "1 where critic_penalty is not 0: it is of the very next action")


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(ReBRACConfig):
    """TD3+BC. Defaults are the paper's."""

    hidden_sizes: tuple[Count, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics (after the convolutions, for images)."""
    normalize_obs: bool = True
    """Scale vector observations by the mean and standard deviation of the data, clipped at 10."""
    learning_rate: Positive = 3e-4
    """Adam's step size of the policy at the start."""
    critic_learning_rate: Positive = 3e-4
    """Adam's step size of the critics at the start."""
    batch_size: Count = 256
    """Transitions per gradient step."""
    policy_penalty: NonNegative = 0.4
    """Weight of the policy's mean squared distance to the action of the data: 1 / alpha, alpha = 2.5 in the paper."""
    critic_penalty: NonNegative = 0.0
    """Reward units taken from the next value per squared distance of the next action to that of the data."""
    policy_q: Literal["min", "first"] = "first"
    """Let the policy climb the least of both Q-functions, or the first."""
    average_components: bool = True
    """Average the policy's squared distance over the components of an action instead of summing."""
    layer_norm: bool = False
    """Normalise the hidden layers of the critics."""
