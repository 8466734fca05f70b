"""Stable-Baselines3 and its contrib package, timed as their users run them: ``model.learn`` on the CPU.

PPO's and A2C's CartPole settings are the tuned ones that the library's own model zoo publishes; the HalfCheetah cases
use the defaults, off-policy with 256-256 networks, a batch of 256, one gradient step per step and an early start. One
warm-up iteration, off-policy the random actions and some hundred gradient steps, is timed apart, so that imports,
allocation and the first calls do not count against it.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from timing import LEARNING_STARTS, arguments, learn_off_policy, limit_threads, report


def linear(initial: float):
    """The zoo's ``lin_x``: falls from x to zero over the run (its argument is the remaining fraction)."""
    return lambda remaining: remaining * initial


OFF_POLICY = {
    "learning_starts": LEARNING_STARTS,
    "batch_size": 256,
    "buffer_size": 1_000_000,
    "train_freq": 1,
    "gradient_steps": 1,
    "gamma": 0.99,
    "tau": 0.005,
    "policy_kwargs": {"net_arch": [256, 256]},
}

CASES = {
    "cartpole": {
        "algorithm": "PPO",
        "env_id": "CartPole-v1",
        "num_envs": 8,
        "total_steps": 100_000,
        "settings": {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": linear(0.001),
            "clip_range": linear(0.2),
        },
    },
    "halfcheetah": {
        "algorithm": "PPO",
        "env_id": "HalfCheetah-v5",
        "num_envs": 1,
        "total_steps": 40_960,
        "settings": {},
    },
    "a2c_cartpole": {
        "algorithm": "A2C",
        "env_id": "CartPole-v1",
        "num_envs": 8,
        "total_steps": 100_000,
        "settings": {"n_steps": 5, "ent_coef": 0.0},
    },
    "trpo_halfcheetah": {
        "algorithm": "TRPO",
        "env_id": "HalfCheetah-v5",
        "num_envs": 1,
        "total_steps": 40_960,
        "settings": {},
    },
    "sac_halfcheetah": {
        "algorithm": "SAC",
        "env_id": "HalfCheetah-v5",
        "num_envs": 1,
        "total_steps": 5_000,
        "settings": {**OFF_POLICY, "learning_rate": 3e-4},
    },
    "td3_halfcheetah": {
        "algorithm": "TD3",
        "env_id": "HalfCheetah-v5",
        "num_envs": 1,
        "total_steps": 5_000,
        "settings": {**OFF_POLICY, "learning_rate": 1e-3, "policy_delay": 2},
    },
    "ddpg_halfcheetah": {
        "algorithm": "DDPG",
        "env_id": "HalfCheetah-v5",
        "num_envs": 1,
        "total_steps": 5_000,
        "settings": {**OFF_POLICY, "learning_rate": 1e-3},
    },
}


def learn_on_policy(model: Any, num_envs: int, total_steps: int, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    model.learn(model.n_steps * num_envs)
    warm_up_seconds = time.perf_counter() - start

    model.set_random_seed(seed)
    start = time.perf_counter()
    model.learn(total_steps)
    seconds = time.perf_counter() - start
    return {
        "steps": model.num_timesteps,
        "seconds": seconds,
        "steps_per_second": model.num_timesteps / seconds,
        "warm_up_seconds": warm_up_seconds,
    }


def main() -> None:
    args = arguments(__doc__, sorted(CASES))
    limit_threads(args.threads)

    import gymnasium
    import numpy as np
    import sb3_contrib
    import stable_baselines3
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    torch.set_num_threads(args.threads)
    case = CASES[args.case]
    total_steps = args.total_steps or case["total_steps"]
    envs = make_vec_env(case["env_id"], n_envs=case["num_envs"], seed=args.seed)
    kinds: list[type[BaseAlgorithm]] = [PPO, A2C, TRPO, SAC, TD3, DDPG]
    algorithm = {kind.__name__: kind for kind in kinds}[case["algorithm"]]
    settings = copy.deepcopy(case["settings"])  # the library writes into them
    if algorithm in (TD3, DDPG):
        size = envs.action_space.shape
        settings["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, 0.1))
    model = algorithm("MlpPolicy", envs, device="cpu", seed=args.seed, **settings)
    if isinstance(model, OffPolicyAlgorithm):
        figures, episodes = learn_off_policy(model, total_steps, lambda: None), 5
    else:
        figures, episodes = learn_on_policy(model, case["num_envs"], total_steps, args.seed), 20

    final_return, _ = evaluate_policy(model, envs, n_eval_episodes=episodes, warn=False)
    report(
        peer="stable-baselines3",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        **figures,
        final_return=float(final_return),
        versions={
            "stable-baselines3": stable_baselines3.__version__,
            "sb3-contrib": sb3_contrib.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    )


if __name__ == "__main__":
    main()
