"""Tuned settings per algorithm and environment family, in plain sight.

A preset is what a run starts from; anything given explicitly wins. A family is recognised by the environment's id.
The figures that the settings were chosen by are in docs/presets.md.
"""

from __future__ import annotations

from typing import Any

MUJOCO = ("HalfCheetah", "Hopper", "Walker2d", "Ant-", "Humanoid", "Swimmer", "Reacher", "Pusher", "Inverted")

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "CartPole"): {
        "num_envs": 32,
        "rollout_steps": 32,
        "epochs": 10,
        "minibatches": 2,
        "learning_rate": 2e-3,
        "learning_rate_schedule": "linear",
        "clip_schedule": "linear",
        "gamma": 0.98,
    },
    ("ppo", "Acrobot"): {
        "total_steps": 500_000,
        "num_envs": 16,
        "rollout_steps": 256,
        "minibatches": 16,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "gae_lambda": 0.94,
        "normalize_obs": True,
    },
    ("ppo", "MountainCar"): {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "rollout_steps": 128,
        "learning_rate": 1e-3,
        "gae_lambda": 0.98,
        "normalize_obs": True,
        "normalize_reward": True,
    },
    ("ppo", "Pendulum"): {
        "total_steps": 200_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "epochs": 10,
        "minibatches": 16,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "gamma": 0.9,
        "normalize_reward": True,
    },
    ("ppo", "LunarLander"): {
        "total_steps": 500_000,
        "num_envs": 16,
        "rollout_steps": 256,
        "epochs": 8,
        "minibatches": 32,
        "learning_rate": 7e-4,
        "learning_rate_schedule": "linear",
        "gamma": 0.995,
        "gae_lambda": 0.98,
        "entropy_coef": 0.01,
        "normalize_obs": True,
        "normalize_reward": True,
    },
    ("ppo", "mujoco"): {
        "total_steps": 1_000_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "initial_std": 0.6,
        "epochs": 10,
        "minibatches": 32,
        "learning_rate_schedule": "linear",
        "normalize_obs": True,
        "normalize_reward": True,
    },
    ("ppo", "atari"): {
        "total_steps": 10_000_000,
        "num_envs": 8,
        "rollout_steps": 128,
        "hidden_sizes": (512,),
        "shared_torso": True,
        "learning_rate": 2.5e-4,
        "learning_rate_schedule": "linear",
        "clip_epsilon": 0.1,
        "entropy_coef": 0.01,
        "atari": {"clip_reward": True},
    },
    ("ppo_kl", "CartPole"): {
        "num_envs": 32,
        "rollout_steps": 32,
        "epochs": 10,
        "minibatches": 4,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "gamma": 0.98,
        "gae_lambda": 0.9,
        "target_kl": 0.02,
    },
    ("ppo_kl", "mujoco"): {
        "total_steps": 1_000_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "initial_std": 0.6,
        "epochs": 10,
        "minibatches": 32,
        "learning_rate_schedule": "linear",
        "normalize_obs": True,
        "normalize_reward": True,
    },
    ("ppo", "steepest/RiverSwim"): {
        "num_envs": 16,
        "objective": "average",
        "learning_rate": 3e-3,
        "learning_rate_schedule": "linear",
        "entropy_coef": 0.01,
        "normalize_advantage": False,
    },
    ("ppo", "steepest/AccessControl"): {
        "total_steps": 200_000,
        "num_envs": 16,
        "objective": "average",
        "learning_rate": 3e-3,
        "learning_rate_schedule": "linear",
    },
    ("actor_critic", "CartPole"): {
        "total_steps": 400_000,
        "num_envs": 16,
        "rollout_steps": 8,
        "learning_rate_schedule": "linear",
        "gamma": 0.98,
        "gae_lambda": 0.95,
        "entropy_coef": 0.01,
    },
    ("actor_critic", "steepest/RiverSwim"): {
        "total_steps": 150_000,
        "num_envs": 16,
        "rollout_steps": 32,
        "objective": "average",
        "learning_rate": 2e-3,
        "learning_rate_schedule": "linear",
        "gae_lambda": 0.95,
        "entropy_coef": 0.01,
    },
    ("reinforce", "CartPole"): {
        "total_steps": 500_000,
        "num_envs": 32,
        "rollout_steps": 64,
        "learning_rate": 3e-3,
        "learning_rate_schedule": "linear",
    },
    ("off_pac", "CartPole"): {
        "total_steps": 200_000,
        "learning_rate_schedule": "linear",
        "behaviour_epsilon": 0.2,
        "auxiliary_learning_rate": 0.01,
    },
    ("trpo", "CartPole"): {
        "num_envs": 16,
        "rollout_steps": 64,
        "gamma": 0.98,
        "gae_lambda": 0.98,
        "cg_damping": 1e-3,
        "minibatches": 8,
    },
    ("trpo", "mujoco"): {
        "total_steps": 1_000_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "initial_std": 0.6,
        "max_kl": 0.04,
        "cg_iterations": 25,
        "epochs": 20,
        "normalize_obs": True,
        "normalize_reward": True,
    },
    # Off-policy algorithms learn after every step of one environment, as they were published; the mujoco settings are
    # the papers', with the warm-up of their authors' code.
    ("sac", "other"): {"num_envs": 1},
    ("sac", "Pendulum"): {
        "total_steps": 20_000,
        "buffer_size": 100_000,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
    },
    ("sac", "mujoco"): {"total_steps": 1_000_000, "num_envs": 1, "learning_starts": 10_000},
    ("sac_v", "other"): {"num_envs": 1},
    ("sac_v", "Pendulum"): {
        "total_steps": 20_000,
        "buffer_size": 100_000,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
    },
    ("sac_v", "mujoco"): {"total_steps": 1_000_000, "num_envs": 1, "learning_starts": 10_000},
    ("td3", "other"): {"num_envs": 1},
    ("td3", "Pendulum"): {"total_steps": 20_000, "buffer_size": 100_000, "gamma": 0.98},
    ("td3", "mujoco"): {
        "total_steps": 1_000_000,
        "num_envs": 1,
        "learning_starts": 25_000,
        "learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
    },
    ("ddpg", "other"): {"num_envs": 1},
    ("ddpg", "Pendulum"): {
        "total_steps": 20_000,
        "buffer_size": 100_000,
        "gamma": 0.98,
        "learning_rate": 1e-3,
        "target_update_rate": 0.005,
    },
    ("ddpg", "mujoco"): {"total_steps": 1_000_000, "num_envs": 1, "learning_starts": 10_000},
    ("dqn", "other"): {"num_envs": 1},
    ("dqn", "CartPole"): {
        "total_steps": 80_000,
        "num_envs": 1,
        "hidden_sizes": (256, 256),
        "learning_rate": 2.3e-3,
        "learning_rate_schedule": "linear",
        "batch_size": 64,
        "buffer_size": 100_000,
        "train_every": 256,
        "update_ratio": 0.5,
        "updates_per_call": 4,
        "target_update_every": 128,
        "n_steps": 3,
        "exploration_fraction": 0.16,
        "final_epsilon": 0.04,
    },
    ("dqn", "LunarLander"): {
        "total_steps": 300_000,
        "num_envs": 4,
        "learning_rate": 6.3e-4,
        "learning_rate_schedule": "linear",
        "buffer_size": 300_000,
        "train_every": 2,
        "update_ratio": 0.5,
        "updates_per_call": 4,
        "target_update_every": 500,
        "exploration_fraction": 0.12,
    },
    # After Mnih et al. 2015 and van Hasselt et al. 2016, but for Adam and a fifth of the steps. Never measured here.
    ("dqn", "atari"): {
        "total_steps": 10_000_000,
        "num_envs": 1,
        "hidden_sizes": (512,),
        "learning_rate": 1e-4,
        "batch_size": 32,
        "learning_starts": 50_000,
        "target_update_every": 10_000,
        "final_epsilon": 0.01,
        "atari": {"clip_reward": True},
    },
}


def family(env_name: str) -> str:
    """The family of an environment id: mujoco, atari, or other."""
    if env_name.startswith("ALE/"):
        return "atari"
    return "mujoco" if env_name.startswith(MUJOCO) else "other"


def preset(algorithm: str, env_name: str) -> dict[str, Any]:
    """Settings to start from: those of the id itself, over those of its family; empty if none were tuned."""
    base = env_name.split("-v")[0]
    return {**PRESETS.get((algorithm, family(env_name)), {}), **PRESETS.get((algorithm, base), {})}
