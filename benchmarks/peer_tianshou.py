"""Tianshou's PPO, timed as its own examples run it: ``algorithm.run_training`` on the CPU, no tests meanwhile.

Its environments step one after the other in this process (DummyVectorEnv), which is faster than its worker processes
for environments as cheap as these. One warm-up iteration is timed apart.
"""

from __future__ import annotations

import time

from timing import arguments, limit_threads, report

CASES = {
    "ppo_halfcheetah": {"env_id": "HalfCheetah-v5", "num_envs": 8, "rollout_steps": 256, "total_steps": 40_960},
}


def main() -> None:
    args = arguments(__doc__, sorted(CASES))
    limit_threads(args.threads)

    import gymnasium
    import numpy as np
    import tianshou
    import torch
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - the generator that its minibatches come from
    case = CASES[args.case]
    total_steps = args.total_steps or case["total_steps"]
    per_iteration = case["num_envs"] * case["rollout_steps"]

    one = gymnasium.make(case["env_id"])
    envs = DummyVectorEnv([lambda: gymnasium.make(case["env_id"]) for _ in range(case["num_envs"])])
    envs.seed(args.seed)
    shape = {"state_shape": one.observation_space.shape, "hidden_sizes": (64, 64), "activation": torch.nn.Tanh}
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(**shape), action_shape=one.action_space.shape, unbounded=True
    )
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
        action_space=one.action_space,
        action_bound_method="clip",
        deterministic_eval=True,
    )
    algorithm = PPO(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=Net(**shape)),
        optim=AdamOptimizerFactory(lr=3e-4),
        eps_clip=0.2,
        value_clip=False,
        advantage_normalization=True,
        vf_coef=0.5,
        ent_coef=0.0,
        max_grad_norm=0.5,
        gae_lambda=0.95,
        gamma=0.99,
        max_batchsize=per_iteration,
    )
    collector = Collector(algorithm, envs, VectorReplayBuffer(per_iteration, case["num_envs"]))

    def train(steps: int) -> float:
        start = time.perf_counter()
        algorithm.run_training(
            OnPolicyTrainerParams(
                training_collector=collector,
                test_collector=None,
                max_epochs=1,
                epoch_num_steps=steps,
                collection_step_num_env_steps=per_iteration,
                update_step_num_repetitions=10,
                batch_size=64,
                verbose=False,
                show_progress=False,
            )
        )
        return time.perf_counter() - start

    warm_up_seconds = train(per_iteration)
    before = collector.collect_step
    seconds = train(total_steps)
    steps = collector.collect_step - before

    test = Collector(algorithm, DummyVectorEnv([lambda: gymnasium.make(case["env_id"])]))
    test.reset()
    final = test.collect(n_episode=5)
    report(
        peer="tianshou",
        case=args.case,
        threads=args.threads,
        seed=args.seed,
        steps=steps,
        seconds=seconds,
        steps_per_second=steps / seconds,
        warm_up_seconds=warm_up_seconds,
        final_return=float(final.returns.mean()),
        versions={"tianshou": tianshou.__version__, "torch": torch.__version__, "gymnasium": gymnasium.__version__},
    )


if __name__ == "__main__":
    main()
