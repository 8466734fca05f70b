"""Settings of DQN."""

from __future__ import annotations

from dataclasses import dataclass

from steepest.agents.config import GreedyConfig
from steepest.fields import Count, Positive


@dataclass(frozen=True, kw_only=True)
class DQNConfig(GreedyConfig):
    """Deep Q-network. Defaults not taken from the papers suit small control problems."""

    max_gradient_norm: Positive | None = 10.0
    """The gradient is scaled down to this norm if it is longer; none leaves it. 10 as for the dueling network."""
    batch_size: Count = 128
    """Transitions per gradient step. The papers take 32; without convolutions a larger one costs little."""
    train_every: Count = 4
    """Steps of every environment between updates, as in the papers."""
    update_ratio: Positive = 0.25
    """Gradient steps per environment step, as in the papers: one in four."""
