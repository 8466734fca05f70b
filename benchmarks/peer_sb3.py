"""Stable-Baselines3 and its contrib package, timed as their users run them: ``model.learn`` on the CPU.

PPO's and A2C's CartPole settings are the tuned ones that the library's own model zoo publishes; the HalfCheetah cases
use the defaults. One warm-up iteration is timed apart, so that imports, allocation and the first calls do not count
against it.
"""

from __future__ import annotations

import time

from timing import arguments, limit_threads, report


def linear(initial: float):
    """The zoo's ``lin_x``: falls from x to zero over the run (its argument is the remaining fraction)."""
    return lambda remaining: remaining * initial


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
}


def main() -> None:
    args = arguments(__doc__, sorted(CASES))
    limit_threads(args.threads)

    import gymnasium
    import sb3_contrib
    import stable_baselines3
    import torch
    from sb3_contrib import TRPO
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.set_num_threads(args.threads)
    case = CASES[args.case]
    total_steps = args.total_steps or case["total_steps"]
    envs = make_vec_env(case["env_id"], n_envs=case["num_envs"], seed=args.seed)
    algorithm = {"PPO": PPO, "A2C": A2C, "TRPO": TRPO}[case["algorithm"]]
    model = algorithm("MlpPolicy", envs, device="cpu", seed=args.seed, **case["settings"])

    start = time.perf_counter()
    model.learn(model.n_steps * case["num_envs"])
    warm_up_seconds = time.perf_counter() - start

    model.set_random_seed(args.seed)
    start = time.perf_counter()
    model.learn(total_steps)
    seconds = time.perf_counter() - start

    final_return, _ = evaluate_policy(model, envs, n_eval_episodes=20, warn=False)
    report(
        peer="stable-baselines3",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        steps=model.num_timesteps,
        seconds=seconds,
        steps_per_second=model.num_timesteps / seconds,
        warm_up_seconds=warm_up_seconds,
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
