"""Our side of every case, through the public API and the command, as a user would run them.

Throughput cases iterate over a run. The first iterations, which compile the update, are timed apart; what follows runs
every environment step and every update. Nothing is evaluated, logged or saved meanwhile, as on the peers' side. The
off-policy cases say besides how much of a gradient step its matrix products alone would take.
The ``solve`` case runs ``steepest train`` and takes the wall time of the whole command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import offline_cases
from timing import arguments, limit_threads, report

WARM_UP_ITERATIONS = 3

# Everything that matters is spelled out, so that no preset of ours can change what is compared.
NETWORK: dict[str, Any] = {
    "normalize_obs": False,
    "normalize_reward": False,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
}
ACTOR_CRITIC: dict[str, Any] = {
    **NETWORK,
    "learning_rate_schedule": "constant",
    "max_gradient_norm": 0.5,
    "value_coef": 0.5,
}
COMMON: dict[str, Any] = {**ACTOR_CRITIC, "clip_epsilon": 0.2, "clip_schedule": "constant"}

CASES: dict[str, dict[str, Any]] = {
    "cartpole_rejax": {
        "env_id": "CartPole-v1",
        "total_steps": 2_097_152,
        "settings": {
            "num_envs": 256,
            "rollout_steps": 64,
            "epochs": 4,
            "minibatches": 4,
            "learning_rate": 1e-3,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "entropy_coef": 0.01,
            "value_clip": 0.2,
        },
    },
    "cartpole_sb3": {
        "env_id": "CartPole-v1",
        "total_steps": 100_000,
        "settings": {
            "num_envs": 8,
            "rollout_steps": 32,
            "epochs": 20,
            "minibatches": 1,
            "learning_rate": 1e-3,
            "learning_rate_schedule": "linear",
            "clip_schedule": "linear",
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "entropy_coef": 0.0,
        },
    },
    "halfcheetah_sb3": {
        "env_id": "HalfCheetah-v5",
        "total_steps": 40_960,
        "settings": {
            "num_envs": 1,
            "rollout_steps": 2048,
            "epochs": 10,
            "minibatches": 32,
            "learning_rate": 3e-4,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "entropy_coef": 0.0,
        },
    },
    "halfcheetah_tianshou": {
        "env_id": "HalfCheetah-v5",
        "total_steps": 40_960,
        "settings": {
            "num_envs": 8,
            "rollout_steps": 256,
            "epochs": 10,
            "minibatches": 32,
            "learning_rate": 3e-4,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "entropy_coef": 0.0,
        },
    },
    "a2c_cartpole": {
        "algorithm": "actor_critic",
        "env_id": "CartPole-v1",
        "total_steps": 100_000,
        "settings": {
            **ACTOR_CRITIC,
            "num_envs": 8,
            "rollout_steps": 5,
            "learning_rate": 7e-4,
            "gamma": 0.99,
            "gae_lambda": 1.0,
            "entropy_coef": 0.0,
        },
    },
    "trpo_halfcheetah": {
        "algorithm": "trpo",
        "env_id": "HalfCheetah-v5",
        "total_steps": 40_960,
        "settings": {
            **NETWORK,
            "num_envs": 1,
            "rollout_steps": 2048,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "max_kl": 0.01,
            "cg_iterations": 15,
            "cg_damping": 0.1,
            "line_search_steps": 10,
            "line_search_backtrack": 0.8,
            "epochs": 10,
            "minibatches": 16,
            "learning_rate": 1e-3,
        },
    },
}

OFF_POLICY: dict[str, Any] = {
    "normalize_obs": False,
    "hidden_sizes": (256, 256),
    "activation": "relu",
    "learning_rate_schedule": "constant",
    "max_gradient_norm": None,
    "gamma": 0.99,
    "num_envs": 1,
    "batch_size": 256,
    "buffer_size": 1_000_000,
    "learning_starts": 1_000,
    "train_every": 1,
    "update_ratio": 1.0,
    "steps_per_iteration": 100,
    "target_update_rate": 0.005,
}
"""One gradient step on 256 transitions for every environment step, as all off-policy peers take."""

DETERMINISTIC: dict[str, Any] = {
    **OFF_POLICY,
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "exploration_std": 0.1,
    "noise_correlation": 0.0,
}

CASES |= {
    "sac_halfcheetah": {
        "algorithm": "sac",
        "env_id": "HalfCheetah-v5",
        "total_steps": 5_000,
        "settings": {**OFF_POLICY, "learning_rate": 3e-4, "critic_learning_rate": 3e-4, "updates_per_call": 1},
    },
    "td3_halfcheetah": {
        "algorithm": "td3",
        "env_id": "HalfCheetah-v5",
        "total_steps": 5_000,
        "settings": {**DETERMINISTIC, "policy_delay": 2, "updates_per_call": 2},
    },
    "ddpg_halfcheetah": {
        "algorithm": "ddpg",
        "env_id": "HalfCheetah-v5",
        "total_steps": 5_000,
        "settings": {**DETERMINISTIC, "updates_per_call": 1},
    },
}

for name in ("sac", "td3"):
    case = CASES[f"{name}_halfcheetah"]
    CASES[f"{name}_halfcheetah_bfloat16"] = {**case, "settings": {**case["settings"], "precision": "bfloat16"}}

OFFLINE: dict[str, Any] = {
    **{k: OFF_POLICY[k] for k in ("normalize_obs", "hidden_sizes", "activation", "learning_rate_schedule")},
    **{k: OFF_POLICY[k] for k in ("max_gradient_norm", "gamma", "batch_size", "target_update_rate")},
    "updates_per_call": 2,
    "steps_per_iteration": offline_cases.WARM_UP,
}
"""d3rlpy's defaults."""

for name, settings in {
    "cql": {"learning_rate": 1e-4, "critic_learning_rate": 3e-4, "proposals": 10, "gap_threshold": 10.0},
    "iql": {"learning_rate": 3e-4, "critic_learning_rate": 3e-4},
    "td3_bc": {"learning_rate": 3e-4, "critic_learning_rate": 3e-4, "policy_delay": 2},
}.items():
    for precision in ("float32", "bfloat16"):
        CASES[f"{name}_offline_{precision}"] = {
            "algorithm": name,
            "env_id": "HalfCheetah-v5",
            "total_steps": offline_cases.UPDATES[name],
            "offline": True,
            "settings": {**OFFLINE, **settings, "precision": precision},
        }

SOLVED_RETURN = 475
SOLVED_EPISODES = 100


def throughput(case: dict[str, Any], seed: int, threads: int, total_steps: int) -> dict[str, Any]:
    import steepest

    algorithm = case.get("algorithm", "ppo")
    settings = {**COMMON, **case["settings"]} if algorithm == "ppo" else case["settings"]
    off_policy, offline = "learning_starts" in settings, "offline" in case
    steps_each = settings["steps_per_iteration" if off_policy or offline else "rollout_steps"]
    per_iteration = steps_each * settings.get("num_envs", 1)
    # Only steps with gradient steps are timed.
    warm_up = WARM_UP_ITERATIONS + (settings["learning_starts"] // per_iteration if off_policy else 0)
    timed_steps = total_steps or case["total_steps"]
    planned = timed_steps + warm_up * per_iteration

    start = time.perf_counter()
    run = steepest.Run(
        algorithm,
        case["env_id"],
        total_steps=planned,
        seed=seed,
        threads=threads,
        device="cpu",
        compile="on",
        eval_every=0,
        eval_episodes=0,
        checkpoint_every=0,
        **({"data": random_data()} if offline else {}),
        **settings,
    )
    first_step, last_step, timed_from, timed_to = 0, 0, start, start
    cpu_from = cpu_to = time.process_time()
    for iteration, row in enumerate(run, start=1):
        timed_to, last_step, cpu_to = time.perf_counter(), int(row["step"]), time.process_time()
        if iteration == warm_up:
            timed_from, first_step, cpu_from = timed_to, last_step, cpu_to

    steps, seconds = last_step - first_step, timed_to - timed_from
    if offline:  # random numbers teach nothing
        from matrix_products import share_of_products

        figures = {"updates_per_second": steps / seconds, **share_of_products(run, threads)}
        return {**figures, "steps": steps, "seconds": seconds, "warm_up_seconds": timed_from - start}
    evaluations = steepest.evaluate(run.agent, case["env_id"], episodes=5 if off_policy else 20, seed=seed)
    figures: dict[str, Any] = {}
    if off_policy:
        from matrix_products import share_of_products

        figures = share_of_products(run, threads)
        figures |= {"step_ms": 1e3 * seconds / steps, "step_cpu_ms": 1e3 * (cpu_to - cpu_from) / steps}
    return {
        **figures,
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "warm_up_seconds": timed_from - start,
        "final_return": evaluations[0].mean,
    }


def random_data() -> Any:
    import numpy as np

    import steepest

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "random.npz"
        np.savez(place, **offline_cases.arrays())
        return steepest.read_dataset(place)


def solve(seed: int, total_steps: int) -> dict[str, Any]:
    """Wall seconds of the whole command: start, imports, compilation, training, evaluation, picture, exit."""
    command = Path(sys.executable).parent / "steepest"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        arguments = [
            *("train", "ppo", "CartPole-v1"),
            *("--seed", str(seed)),
            *("--total-steps", str(total_steps or 200_000)),
            *("--stop-at-return", str(SOLVED_RETURN)),
            *("--eval-every", "10000"),
            *("--eval-episodes", str(SOLVED_EPISODES)),
            *("--out", str(out)),
        ]
        start = time.perf_counter()
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"steepest {' '.join(arguments)} exited with {done.returncode}:\n{done.stderr}")
        summary = json.loads((out / "summary.json").read_text())
    evaluation = summary["evaluation"][0]
    if evaluation["episodes"] != SOLVED_EPISODES:
        raise RuntimeError(f"evaluated over {evaluation['episodes']} episodes; the case asks for {SOLVED_EPISODES}")
    return {
        "steps": summary["steps"][0],
        "seconds": seconds,
        "training_seconds": summary["wall_seconds"],
        "solved": evaluation["mean"] >= SOLVED_RETURN,
        "final_return": evaluation["mean"],
    }


def main() -> None:
    args = arguments(__doc__, [*sorted(CASES), "solve"])
    limit_threads(args.threads)
    if args.case == "solve":
        # The compiler's on-disk cache would make every run but the first faster than a user's own first run.
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            figures = solve(args.seed, args.total_steps)
    else:
        figures = throughput(CASES[args.case], args.seed, args.threads, args.total_steps)

    from importlib.metadata import version

    report(
        peer="steepest",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        **figures,
        versions={name: version(name) for name in ("steepest", "torch", "gymnasium", "numpy")},
    )


if __name__ == "__main__":
    main()
