"""What a type checker says of options: read by pyright in `make lint`, never run.

Every line that is wrong is marked; a mark that pyright does not need is an error, too.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import steepest

# Right

steepest.train("ppo", "CartPole-v1", total_steps=100, learning_rate=3e-4, minibatches=4, clip_epsilon=0.1)
steepest.train("sac", "Pendulum-v1", out="runs/one", batch_size=64, hidden_sizes=(64, 64), temperature=None)
steepest.train("td3_bc", None, data="data.npz", policy_q="min", quiet=False)
steepest.train("ppo", "ALE/Pong-v5", atari={"clip_reward": True}, normalize_obs=True)
steepest.train_seeds("trpo", "CartPole-v1", seeds=3, max_kl=0.02)
for name in ("ppo", "sac"):
    steepest.train(name, "Pendulum-v1", total_steps=100, hidden_sizes=[64])
steepest.sft("model", "data.jsonl", epochs=2, lora_rank=8)
steepest.dpo("model", "data.jsonl", loss="ipo")
steepest.reward_model("model", "data.jsonl", centring_coef=0.1)
steepest.rlhf("model", "data.jsonl", "runs/reward", max_new_tokens=16)
steepest.rlhf("model", "data.jsonl", "runs/reward", algorithm="grpo", group_size=4)

# Wrong

steepest.train("ppo", "CartPole-v1", lr=3e-4)  # pyright: ignore[reportCallIssue]
steepest.train("ppo", "CartPole-v1", batch_size=64)  # pyright: ignore[reportCallIssue, reportArgumentType]
steepest.train("sac", "Pendulum-v1", clip_epsilon=0.1)  # pyright: ignore[reportArgumentType]
steepest.train("ppo", "CartPole-v1", total_steps="many")  # pyright: ignore[reportCallIssue, reportArgumentType]
steepest.train("ppo", "CartPole-v1", device="tpu")  # pyright: ignore[reportCallIssue, reportArgumentType]
steepest.train_seeds("ppo", "CartPole-v1")  # pyright: ignore[reportCallIssue]
steepest.train_seeds("trpo", "CartPole-v1", seeds=3, clip_epsilon=0.1)  # pyright: ignore[reportArgumentType]
steepest.sft("model", "data.jsonl", lr=1e-4)  # pyright: ignore[reportCallIssue]
steepest.dpo("model", "data.jsonl", loss="bpo")  # pyright: ignore[reportArgumentType]
steepest.rlhf("model", "data.jsonl", "runs/reward", group_size="four")  # pyright: ignore[reportArgumentType]
