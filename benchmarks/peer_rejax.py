"""rejax's PPO on gymnax's CartPole, timed as its users run it: one ``jax.jit(algorithm.train)`` for the whole loop.

Compilation is timed apart (ahead-of-time ``lower().compile()``); the timed call then runs every environment step and
every update. rejax would also evaluate 128 episodes at each evaluation point: the callback is replaced by one that
returns zero and is called once, so that evaluation does not count against it.
"""

from __future__ import annotations

import math
import time

from timing import arguments, limit_threads, report

CASES = {
    "cartpole": {
        "total_steps": 2_097_152,
        "settings": {
            "env": "CartPole-v1",
            "num_envs": 256,
            "num_steps": 64,
            "num_epochs": 4,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip_eps": 0.2,
            "ent_coef": 0.01,
            "vf_coef": 0.5,
            "max_grad_norm": 0.5,
            "agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        },
    },
}


def main() -> None:
    args = arguments(__doc__, sorted(CASES))
    limit_threads(args.threads)

    from importlib.metadata import version

    import jax
    import jax.numpy as jnp
    from rejax import get_algo

    case = CASES[args.case]
    settings = case["settings"]
    iteration = settings["num_envs"] * settings["num_steps"]
    total_steps = math.ceil((args.total_steps or case["total_steps"]) / iteration) * iteration
    algorithm = get_algo("ppo").create(
        **settings, total_timesteps=total_steps, eval_freq=total_steps, skip_initial_evaluation=True
    )
    evaluate = algorithm.eval_callback
    algorithm = algorithm.replace(eval_callback=lambda *_: jnp.zeros(()))
    key = jax.random.PRNGKey(args.seed)

    start = time.perf_counter()
    train = jax.jit(algorithm.train).lower(key).compile()
    compile_seconds = time.perf_counter() - start

    start = time.perf_counter()
    state, _ = jax.block_until_ready(train(key))
    seconds = time.perf_counter() - start

    steps = int(state.global_step)
    if steps != total_steps:
        raise RuntimeError(f"rejax ran {steps} environment steps where {total_steps} were asked for")
    _, returns = evaluate(algorithm, state, key)
    report(
        peer="rejax",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        steps=steps,
        seconds=seconds,
        steps_per_second=steps / seconds,
        compile_seconds=compile_seconds,
        final_return=float(returns.mean()),
        versions={name: version(name) for name in ("rejax", "gymnax", "jax", "jaxlib", "flax", "optax")},
    )


if __name__ == "__main__":
    main()
