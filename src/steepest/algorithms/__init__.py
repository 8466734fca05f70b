"""The algorithms, one file each."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from steepest.errors import UsageError, require

if TYPE_CHECKING:
    from steepest.agents.agent import Agent
    from steepest.networks.config import NetworkConfig

ALGORITHMS: dict[str, tuple[str, str]] = {
    "actor_critic": ("ActorCritic", "synchronous advantage actor-critic, A2C (notes 1.5)"),
    "awac": ("AWAC", "advantage-weighted actor-critic, for data"),
    "bc": ("BC", "behaviour cloning, of all episodes of the data or of the best"),
    "cql": ("CQL", "conservative Q-learning for continuous actions, also calibrated (notes 2.1)"),
    "ddpg": ("DDPG", "deep deterministic policy gradient (notes 1.11)"),
    "discrete_cql": ("DiscreteCQL", "conservative Q-learning for discrete actions (notes 2.1)"),
    "dpg": ("DPG", "deterministic policy gradient with a compatible critic (notes 1.11)"),
    "dqn": ("DQN", "deep Q-network: double, dueling, n-step, prioritised"),
    "iql": ("IQL", "implicit Q-learning, for data"),
    "off_pac": ("OffPAC", "off-policy actor-critic with traces and gradient-TD critic (notes 1.6)"),
    "ppo": ("PPO", "proximal policy optimisation, clipped objective (notes 1.10)"),
    "ppo_kl": ("PPOKL", "proximal policy optimisation, adaptive KL penalty (notes 1.10)"),
    "rebrac": ("ReBRAC", "TD3 held close to the data, in policy and critics"),
    "reinforce": ("REINFORCE", "score-function gradient: full return, reward-to-go, baseline (notes 1.2 to 1.4)"),
    "sac": ("SAC", "soft actor-critic, twin Q-functions, learned temperature (notes 1.7)"),
    "sac_v": ("SACV", "soft actor-critic with a value network (notes 1.7)"),
    "td3": ("TD3", "twin delayed deep deterministic policy gradient (notes 1.11)"),
    "td3_bc": ("rebrac:TD3BC", "TD3 with behaviour cloning, for data"),
    "trpo": ("TRPO", "trust-region policy optimisation; without a line search, natural policy gradient (notes 1.10)"),
}
"""Name -> (class, one line); FILE:CLASS where the file has another name. A table rather than imports: listing
algorithms does not load torch."""


def find(name: str) -> type[Agent]:
    """The agent class of an algorithm; UsageError with the nearest names if there is none."""
    module, kind = _home(name)
    return getattr(importlib.import_module(f"steepest.algorithms.{module}"), kind)


def find_config(name: str) -> type[NetworkConfig]:
    """The Config of an algorithm, without loading torch; UsageError with the nearest names if there is none.

    Verified:  tests/integration/test_light.py::test_settings_are_those_of_the_agents
    """
    module, kind = _home(name)
    return getattr(importlib.import_module(f"steepest.algorithms.configs.{module}"), f"{kind}Config")


def _home(name: str) -> tuple[str, str]:
    """The file and the class of an algorithm."""
    require(isinstance(name, str), "algorithm", name, "the name of one, such as 'ppo'")  # pyright: ignore[reportUnnecessaryIsInstance]
    if name not in ALGORITHMS:
        lower = name.lower()
        near = [lower] if lower in ALGORITHMS else difflib.get_close_matches(lower, ALGORITHMS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise UsageError(f"no algorithm is called {name!r}{hint} Known: {', '.join(sorted(ALGORITHMS))}")
    module, _, kind = ALGORITHMS[name][0].rpartition(":")
    return module or name, kind
