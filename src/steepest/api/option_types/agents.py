"""The options of agents, for editors and type checkers.

Written from the configs by `make options`; tests/unit/test_option_types.py fails where it is not current. What an
option means stands in its config, and in the help of the command.
"""

# fmt: off
# ruff: noqa: D101, E501

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, overload

from steepest.api.option_types.shared import SharedOptions

if TYPE_CHECKING:
    import os

    from steepest.agents.agent import Agent
    from steepest.environments.config import AtariOptions
    from steepest.networks.config import NetworkFactory

class TrainArguments(TypedDict, total=False):
    out: str | os.PathLike[str] | None
    network: NetworkFactory | None
    agent: Agent | None
    eval_env: Any
    env_kwargs: dict[str, Any] | None
    data: Any
    reward: Any
    quiet: bool

class RunOptions(SharedOptions, total=False):
    total_steps: int
    num_envs: int
    vary: tuple[str, ...] | list[str]
    vectorization: Literal["auto", "native", "sync", "async", "envpool"]
    device: Literal["auto", "cpu", "cuda"]
    compile: Literal["auto", "on", "off"]
    stop_at_return: float | None
    eval_episodes: int
    eval_episode_steps: int | None
    data_share: float | None
    max_episode_steps: int | None
    step_timeout: float | None
    info_keys: tuple[str, ...] | list[str]
    atari: AtariOptions | Mapping[str, Any] | None

class NetworkOptions(TypedDict, total=False):
    hidden_sizes: tuple[int, ...] | list[int]
    activation: Literal["tanh", "relu"]
    normalize_obs: bool

class PolicyOptions(NetworkOptions, total=False):
    shared_torso: bool
    recurrent: Literal["none", "gru", "lstm"]
    recurrent_size: int
    sequence_length: int
    gaussian: Literal["diagonal", "full"]
    initial_std: float
    squash: Literal["clip", "tanh"]
    min_probability: float
    min_std: float
    normalize_reward: bool

class OnPolicyOptions(PolicyOptions, total=False):
    rollout_steps: int
    learning_rate: float
    gamma: float
    normalize_advantage: bool

class LossOptions(OnPolicyOptions, total=False):
    learning_rate_schedule: Literal["constant", "linear"]
    value_coef: float
    entropy_coef: float
    max_gradient_norm: float

class AdvantageOptions(OnPolicyOptions, total=False):
    objective: Literal["discounted", "average"]
    gain_rate: float
    gae_lambda: float

class ActorCriticOptions(AdvantageOptions, LossOptions, TrainArguments, RunOptions, total=False):
    advantage: Literal["gae", "n_step"]
    n_steps: int | None
    critic: Literal["bootstrapped", "monte_carlo"]
    state_weighting: Literal["discounted", "undiscounted"]

class OffPolicyOptions(NetworkOptions, total=False):
    learning_rate: float
    learning_rate_schedule: Literal["constant", "linear"]
    max_gradient_norm: float | None
    gamma: float
    batch_size: int
    buffer_size: int
    learning_starts: int
    warm_up: Literal["uniform", "policy"]
    train_every: int
    update_ratio: float
    updates_per_call: int
    asynchronous: bool
    target_update_rate: float
    n_steps: int
    prioritized: bool
    priority_exponent: float
    importance_exponent: float
    precision: Literal["float32", "bfloat16"]
    steps_per_iteration: int

class PolicyAndCriticOptions(OffPolicyOptions, total=False):
    critic_learning_rate: float

class StochasticPolicyOptions(PolicyAndCriticOptions, total=False):
    min_log_std: float
    max_log_std: float
    min_probability: float

class WeightedOptions(StochasticPolicyOptions, total=False):
    num_critics: int
    layer_norm: bool
    max_weight: float

class AWACOptions(WeightedOptions, TrainArguments, RunOptions, total=False):
    temperature: float

class BCOptions(StochasticPolicyOptions, TrainArguments, RunOptions, total=False):
    best_fraction: float

class ConservativeOptions(OffPolicyOptions, total=False):
    conservative_weight: float
    gap_threshold: float | None
    regulariser: str

class SquashedOptions(StochasticPolicyOptions, total=False):
    num_critics: int

class SoftOptions(SquashedOptions, total=False):
    temperature: float | None
    target_entropy: float | None
    policy_q: Literal["min", "mean"]
    policy_delay: int
    layer_norm: bool

class CQLOptions(SoftOptions, ConservativeOptions, TrainArguments, RunOptions, total=False):
    proposals: int
    calibrated: bool
    entropy_backup: bool

class DDPGOptions(PolicyAndCriticOptions, TrainArguments, RunOptions, total=False):
    exploration_std: float
    noise_correlation: float

class GreedyOptions(OffPolicyOptions, total=False):
    target_update_every: int
    double: bool
    dueling: bool
    huber_threshold: float | None
    initial_epsilon: float
    final_epsilon: float
    exploration_fraction: float

class DiscreteCQLOptions(GreedyOptions, ConservativeOptions, TrainArguments, RunOptions, total=False):
    pass

class StepwiseOptions(PolicyOptions, total=False):
    rollout_steps: int
    steps_per_call: int
    policy_learning_rate: float
    value_learning_rate: float
    auxiliary_learning_rate: float
    learning_rate_schedule: Literal["constant", "linear"]
    gamma: float
    max_gradient_norm: float

class DPGOptions(StepwiseOptions, TrainArguments, RunOptions, total=False):
    critic: Literal["sarsa", "q_learning", "gradient_q"]
    advantage_learning_rate: float

class DQNOptions(GreedyOptions, TrainArguments, RunOptions, total=False):
    pass

class IQLOptions(WeightedOptions, TrainArguments, RunOptions, total=False):
    expectile: float
    temperature: float

class OffPACOptions(StepwiseOptions, TrainArguments, RunOptions, total=False):
    trace_decay: float
    emphasis_decay: float
    state_weighting: Literal["discounted", "undiscounted"]
    behaviour_epsilon: float
    behaviour_agent: str | None
    max_ratio: float

class SurrogateOptions(AdvantageOptions, LossOptions, total=False):
    epochs: int
    minibatches: int
    off_policy_correction: Literal["none", "vtrace"]

class PPOOptions(SurrogateOptions, TrainArguments, RunOptions, total=False):
    clip_epsilon: float
    clip_schedule: Literal["constant", "linear"]
    value_clip: float | None
    target_kl: float | None

class PPOKLOptions(SurrogateOptions, TrainArguments, RunOptions, total=False):
    target_kl: float
    kl_coef: float
    kl_direction: Literal["old_new", "new_old"]

class DelayedPolicyOptions(PolicyAndCriticOptions, total=False):
    exploration_std: float
    noise_correlation: float
    target_noise: float
    target_noise_clip: float
    policy_delay: int

class ReBRACOptions(DelayedPolicyOptions, TrainArguments, RunOptions, total=False):
    policy_penalty: float
    critic_penalty: float
    policy_q: Literal["min", "first"]
    average_components: bool
    layer_norm: bool

class REINFORCEOptions(LossOptions, TrainArguments, RunOptions, total=False):
    estimator: Literal["full_return", "reward_to_go"]
    baseline: Literal["none", "average_return", "value"]
    at_cut: Literal["bootstrap", "drop"]
    state_weighting: Literal["discounted", "undiscounted"]

class SACOptions(SoftOptions, TrainArguments, RunOptions, total=False):
    target_critics: int
    dropout: float

class SACVOptions(SquashedOptions, TrainArguments, RunOptions, total=False):
    temperature: float

class TD3Options(DelayedPolicyOptions, TrainArguments, RunOptions, total=False):
    pass

class TD3BCOptions(ReBRACOptions, total=False):
    pass

class TRPOOptions(AdvantageOptions, TrainArguments, RunOptions, total=False):
    max_kl: float
    cg_iterations: int
    cg_damping: float
    fisher_subsample: int
    line_search_steps: int
    line_search_backtrack: float
    epochs: int
    minibatches: int

class AnyOptions(NetworkOptions, TrainArguments, RunOptions, total=False):
    pass

class Train(Protocol):
    """``steepest.train``: an algorithm by its name has its own options, any other text those that all algorithms share."""
    @overload
    def __call__(self, algorithm: Literal["actor_critic"], env: Any, **options: Unpack[ActorCriticOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["awac"], env: Any, **options: Unpack[AWACOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["bc"], env: Any, **options: Unpack[BCOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["cql"], env: Any, **options: Unpack[CQLOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["ddpg"], env: Any, **options: Unpack[DDPGOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["discrete_cql"], env: Any, **options: Unpack[DiscreteCQLOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["dpg"], env: Any, **options: Unpack[DPGOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["dqn"], env: Any, **options: Unpack[DQNOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["iql"], env: Any, **options: Unpack[IQLOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["off_pac"], env: Any, **options: Unpack[OffPACOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["ppo"], env: Any, **options: Unpack[PPOOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["ppo_kl"], env: Any, **options: Unpack[PPOKLOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["rebrac"], env: Any, **options: Unpack[ReBRACOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["reinforce"], env: Any, **options: Unpack[REINFORCEOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["sac"], env: Any, **options: Unpack[SACOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["sac_v"], env: Any, **options: Unpack[SACVOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["td3"], env: Any, **options: Unpack[TD3Options]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["td3_bc"], env: Any, **options: Unpack[TD3BCOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: Literal["trpo"], env: Any, **options: Unpack[TRPOOptions]) -> Agent: ...
    @overload
    def __call__(self, algorithm: str, env: Any, **options: Unpack[AnyOptions]) -> Agent: ...

class TrainSeeds(Protocol):
    """``steepest.train_seeds``: an algorithm by its name has its own options, any other text those that all algorithms share."""
    @overload
    def __call__(self, algorithm: Literal["actor_critic"], env: Any, *, seeds: int, **options: Unpack[ActorCriticOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["awac"], env: Any, *, seeds: int, **options: Unpack[AWACOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["bc"], env: Any, *, seeds: int, **options: Unpack[BCOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["cql"], env: Any, *, seeds: int, **options: Unpack[CQLOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["ddpg"], env: Any, *, seeds: int, **options: Unpack[DDPGOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["discrete_cql"], env: Any, *, seeds: int, **options: Unpack[DiscreteCQLOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["dpg"], env: Any, *, seeds: int, **options: Unpack[DPGOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["dqn"], env: Any, *, seeds: int, **options: Unpack[DQNOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["iql"], env: Any, *, seeds: int, **options: Unpack[IQLOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["off_pac"], env: Any, *, seeds: int, **options: Unpack[OffPACOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["ppo"], env: Any, *, seeds: int, **options: Unpack[PPOOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["ppo_kl"], env: Any, *, seeds: int, **options: Unpack[PPOKLOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["rebrac"], env: Any, *, seeds: int, **options: Unpack[ReBRACOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["reinforce"], env: Any, *, seeds: int, **options: Unpack[REINFORCEOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["sac"], env: Any, *, seeds: int, **options: Unpack[SACOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["sac_v"], env: Any, *, seeds: int, **options: Unpack[SACVOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["td3"], env: Any, *, seeds: int, **options: Unpack[TD3Options]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["td3_bc"], env: Any, *, seeds: int, **options: Unpack[TD3BCOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: Literal["trpo"], env: Any, *, seeds: int, **options: Unpack[TRPOOptions]) -> list[Agent]: ...
    @overload
    def __call__(self, algorithm: str, env: Any, *, seeds: int, **options: Unpack[AnyOptions]) -> list[Agent]: ...
