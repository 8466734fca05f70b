"""SBX, Stable-Baselines3's algorithms in JAX, timed as its users run it: ``model.learn`` on the CPU.

The random actions, compilation and the first gradient steps are timed apart.
"""

from __future__ import annotations

from timing import LEARNING_STARTS, arguments, learn_off_policy, limit_threads, report

CASES = {
    "sac_halfcheetah": {
        "env_id": "HalfCheetah-v5",
        "total_steps": 5_000,
        "settings": {
            "learning_rate": 3e-4,
            "qf_learning_rate": 3e-4,
            "learning_starts": LEARNING_STARTS,
            "batch_size": 256,
            "buffer_size": 1_000_000,
            "train_freq": 1,
            "gradient_steps": 1,
            "gamma": 0.99,
            "tau": 0.005,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    },
}


def main() -> None:
    args = arguments(__doc__, sorted(CASES))
    limit_threads(args.threads)

    from importlib.metadata import version

    import jax
    from sbx import SAC
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    case = CASES[args.case]
    envs = make_vec_env(case["env_id"], n_envs=1, seed=args.seed)
    model = SAC("MlpPolicy", envs, seed=args.seed, **case["settings"])
    figures = learn_off_policy(
        model,
        args.total_steps or case["total_steps"],
        lambda: jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params)),
    )
    final_return, _ = evaluate_policy(model, envs, n_eval_episodes=5, warn=False)
    report(
        peer="sbx",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        **figures,
        final_return=float(final_return),
        versions={name: version(name) for name in ("sbx-rl", "stable_baselines3", "jax", "jaxlib", "flax", "optax")},
    )


if __name__ == "__main__":
    main()
