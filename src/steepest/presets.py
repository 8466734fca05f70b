"""Tuned settings per algorithm and environment family, in plain sight.

A preset is what a run starts from; anything given explicitly wins. A family is recognised by the environment's id.
The figures that the settings were chosen by are in docs/presets.md.
"""

from __future__ import annotations

from typing import Any

CLASSIC = ("CartPole", "Acrobot", "MountainCar-")
BOX2D = ("LunarLander", "BipedalWalker")
MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Ant-", "Humanoid", "Swimmer", "Reacher", "Pusher", "Inverted")

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "classic"): {
        "num_envs": 8,
        "rollout_steps": 32,
        "epochs": 20,
        "minibatches": 1,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "clip_schedule": "linear",
        "gamma": 0.98,
        "gae_lambda": 0.8,
    },
    ("ppo", "mujoco"): {
        "total_steps": 1_000_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "initial_std": 0.6,
        "epochs": 10,
        "minibatches": 32,
        "learning_rate": 3e-4,
        "learning_rate_schedule": "linear",
        "normalize_obs": True,
        "normalize_reward": True,
    },
}


def family(env_name: str) -> str:
    """The family of an environment id: classic, box2d, mujoco, atari, or other."""
    if env_name.startswith("ALE/"):
        return "atari"
    for name, prefixes in (("classic", CLASSIC), ("box2d", BOX2D), ("mujoco", MUJOCO)):
        if env_name.startswith(prefixes):
            return name
    return "other"


def preset(algorithm: str, env_name: str) -> dict[str, Any]:
    """Settings to start from: those of the id itself, over those of its family; empty if none were tuned."""
    base = env_name.split("-v")[0]
    return {**PRESETS.get((algorithm, family(env_name)), {}), **PRESETS.get((algorithm, base), {})}
