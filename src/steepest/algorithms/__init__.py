"""The algorithms, one file each."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from steepest.errors import UsageError

if TYPE_CHECKING:
    from steepest.agents.agent import Agent

ALGORITHMS: dict[str, tuple[str, str]] = {
    "actor_critic": ("ActorCritic", "synchronous advantage actor-critic, A2C (notes 1.5)"),
    "ddpg": ("DDPG", "deep deterministic policy gradient (notes 1.11)"),
    "dpg": ("DPG", "deterministic policy gradient with a compatible critic (notes 1.11)"),
    "dqn": ("DQN", "deep Q-network: double, dueling, n-step, prioritised (what 2.1 makes conservative)"),
    "off_pac": ("OffPAC", "off-policy actor-critic with traces and gradient-TD critic (notes 1.6)"),
    "ppo": ("PPO", "proximal policy optimisation, clipped objective (notes 1.10)"),
    "ppo_kl": ("PPOKL", "proximal policy optimisation, adaptive KL penalty (notes 1.10)"),
    "reinforce": ("REINFORCE", "score-function gradient: full return, reward-to-go, baseline (notes 1.2 to 1.4)"),
    "sac": ("SAC", "soft actor-critic, twin Q-functions, learned temperature (notes 1.7)"),
    "sac_v": ("SACV", "soft actor-critic with a value network (notes 1.7)"),
    "td3": ("TD3", "twin delayed deep deterministic policy gradient (notes 1.11)"),
    "trpo": ("TRPO", "trust-region policy optimisation; without a line search, natural policy gradient (notes 1.10)"),
}
"""Name -> (class, one line). A table rather than imports: listing algorithms does not load torch."""


def find(name: str) -> type[Agent]:
    """The agent class of an algorithm; UsageError with the nearest names if there is none."""
    if name not in ALGORITHMS:
        lower = name.lower()
        near = [lower] if lower in ALGORITHMS else difflib.get_close_matches(lower, ALGORITHMS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UsageError(f"no algorithm is called {name!r}{hint} Known: {', '.join(sorted(ALGORITHMS))}")
    return getattr(importlib.import_module(f"steepest.algorithms.{name}"), ALGORITHMS[name][0])
