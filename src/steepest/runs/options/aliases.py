"""Options by the names that other libraries give them, so that an error can say what they are called here."""

from __future__ import annotations

from collections.abc import Collection

ALIASES: dict[str, tuple[str, ...]] = {
    "activation_fn": ("activation",),
    "actor_lr": ("learning_rate", "policy_learning_rate"),
    "alpha": ("temperature", "conservative_weight"),
    "batch_size": ("minibatches",),
    "beta": ("kl_coef",),
    "clip_coef": ("clip_epsilon",),
    "clip_range": ("clip_epsilon",),
    "clip_range_vf": ("value_clip",),
    "cliprange": ("clip_epsilon",),
    "cql_alpha": ("conservative_weight",),
    "critic_lr": ("critic_learning_rate", "value_learning_rate"),
    "discount": ("gamma",),
    "discount_factor": ("gamma",),
    "ent_coef": ("entropy_coef", "temperature"),
    "eval_freq": ("eval_every",),
    "exploration_final_eps": ("final_epsilon",),
    "exploration_initial_eps": ("initial_epsilon",),
    "gradient_accumulation_steps": ("micro_batch_size",),
    "gradient_steps": ("update_ratio",),
    "hidden_dim": ("hidden_sizes",),
    "hidden_units": ("hidden_sizes",),
    "init_kl_coef": ("kl_coef",),
    "kl_coeff": ("kl_coef",),
    "lam": ("gae_lambda",),
    "lambda_": ("gae_lambda",),
    "lora_r": ("lora_rank",),
    "lr": ("learning_rate", "policy_learning_rate"),
    "lr_schedule": ("learning_rate_schedule", "schedule"),
    "lr_scheduler_type": ("schedule", "learning_rate_schedule"),
    "max_completion_length": ("max_new_tokens",),
    "max_episode_length": ("max_episode_steps",),
    "max_grad_norm": ("max_gradient_norm",),
    "max_seq_length": ("max_length",),
    "memory_size": ("buffer_size",),
    "mini_batch_size": ("minibatches", "micro_batch_size"),
    "n_envs": ("num_envs",),
    "n_epochs": ("epochs", "update_epochs"),
    "n_eval_episodes": ("eval_episodes",),
    "n_steps": ("rollout_steps",),
    "n_timesteps": ("total_steps",),
    "net_arch": ("hidden_sizes",),
    "nminibatches": ("minibatches",),
    "norm_adv": ("normalize_advantage",),
    "noptepochs": ("epochs",),
    "num_generations": ("group_size",),
    "num_minibatches": ("minibatches",),
    "num_ppo_epochs": ("update_epochs",),
    "num_steps": ("rollout_steps",),
    "num_train_epochs": ("epochs",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "policy_freq": ("policy_delay",),
    "policy_frequency": ("policy_delay",),
    "policy_lr": ("learning_rate", "policy_learning_rate"),
    "polyak": ("target_update_rate",),
    "q_lr": ("critic_learning_rate",),
    "random_state": ("seed",),
    "replay_size": ("buffer_size",),
    "response_length": ("max_new_tokens",),
    "rloo_k": ("group_size",),
    "rollout_length": ("rollout_steps",),
    "save_freq": ("checkpoint_every",),
    "start_steps": ("learning_starts",),
    "target_network_frequency": ("target_update_every",),
    "target_update_interval": ("target_update_every",),
    "tau": ("target_update_rate",),
    "timesteps": ("total_steps",),
    "total_timesteps": ("total_steps",),
    "train_freq": ("train_every",),
    "train_frequency": ("train_every",),
    "update_epochs": ("epochs",),
    "utd_ratio": ("update_ratio",),
    "vf_coef": ("value_coef",),
}
"""Name elsewhere -> names here, of which an algorithm has the first that it has."""

MEANINGS: dict[tuple[str, str], str] = {
    ("batch_size", "minibatches"): "the number of minibatches in a rollout, not the rows of one",
    ("mini_batch_size", "minibatches"): "the number of minibatches in a rollout, not the rows of one",
    ("gradient_steps", "update_ratio"): "gradient steps per environment step",
    ("gradient_accumulation_steps", "micro_batch_size"): "the rows in memory at once, not the number of such parts",
    ("ent_coef", "temperature"): "none learns it",
}
"""What an option counts, where it is something else than under its name elsewhere."""


def called_here(name: str, known: Collection[str]) -> tuple[str, str] | None:
    """Return what an option of another library is called here and what it means, if it means something else.

    None where no option of ``known`` is meant.

    Verified:  tests/unit/test_options.py::test_names_of_other_libraries_are_explained
    """
    lower = name.lower().replace("-", "_")
    found = next((here for here in ALIASES.get(lower, ()) if here in known), None)
    return None if found is None else (found, MEANINGS.get((lower, found), ""))
