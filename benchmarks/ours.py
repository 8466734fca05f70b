"""Our side of every case, through the public API and the command, as a user would run them.

Throughput cases iterate over a run. The first iterations, which compile the update, are timed apart; what follows runs
every environment step and every update. Nothing is evaluated, logged or saved meanwhile, as on the peers' side.
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

SOLVED_RETURN = 475
SOLVED_EPISODES = 100


def throughput(case: dict[str, Any], seed: int, threads: int, total_steps: int) -> dict[str, Any]:
    import steepest

    algorithm = case.get("algorithm", "ppo")
    settings = {**COMMON, **case["settings"]} if algorithm == "ppo" else case["settings"]
    per_iteration = settings["num_envs"] * settings["rollout_steps"]
    timed_steps = total_steps or case["total_steps"]
    planned = timed_steps + WARM_UP_ITERATIONS * per_iteration

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
        **settings,
    )
    first_step, last_step, timed_from, timed_to = 0, 0, start, start
    for iteration, row in enumerate(run, start=1):
        timed_to, last_step = time.perf_counter(), int(row["step"])
        if iteration == WARM_UP_ITERATIONS:
            timed_from, first_step = timed_to, last_step

    steps, seconds = last_step - first_step, timed_to - timed_from
    evaluations = steepest.evaluate(run.agent, case["env_id"], episodes=20, seed=seed)
    return {
        "steps": steps,
        "seconds": seconds,
        "steps_per_second": steps / seconds,
        "warm_up_seconds": timed_from - start,
        "final_return": evaluations[0].mean,
    }


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
