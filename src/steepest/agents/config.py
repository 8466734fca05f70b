"""Settings that several algorithms share, and how they follow their schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from steepest.errors import require
from steepest.fields import (
    AtLeastTwo,
    BelowHalf,
    Count,
    NonNegative,
    PartialShare,
    Positive,
    PositiveShare,
    Share,
    Whole,
    checked_options,
)
from steepest.networks.config import NetworkConfig, PolicyConfig

Schedule = Literal["constant", "linear"]

Objective = Literal["discounted", "average"]
"""The objective: the expected discounted return, or the average reward per step (the gain) of a problem that never
ends."""

StateWeighting = Literal["discounted", "undiscounted"]
"""Weights of states: gamma^t, as the gradient of the discounted objective asks for, or 1."""


def scheduled(config: Any, name: str, progress: float) -> float:
    """Return a field's value when a fraction ``progress`` of the run is over; infinity where the field is None.

    ``clip_schedule`` is that of ``clip_epsilon``, ``learning_rate_schedule`` that of every learning rate. A "linear"
    schedule goes to 0 over the run.

    Verified:  tests/unit/test_agent.py::test_schedules_scale_what_they_name
    """
    value = getattr(config, name)
    of = "clip_schedule" if name == "clip_epsilon" else "learning_rate_schedule"
    follows = name == "clip_epsilon" or name.endswith("learning_rate")
    linear = follows and getattr(config, of, "constant") == "linear"
    return math.inf if value is None else value * (1.0 - progress) if linear else value


def config_from_json(kind: type[NetworkConfig], data: dict[str, Any]) -> NetworkConfig:
    """Return a config from its fields as JSON gives them back (tuples have become lists); UsageError for bad ones."""
    return kind(**checked_options(kind, data))


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(PolicyConfig):
    """Settings of every algorithm that learns from a rollout and forgets it."""

    rollout_steps: Count = 128
    """Steps that every environment plays between updates (T)."""
    learning_rate: Positive = 3e-4
    """Adam's step size at the start."""
    gamma: Share = 0.99
    """Discount factor."""
    normalize_advantage: bool = True
    """Standardise advantages in every minibatch."""


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig(OnPolicyConfig):
    """Settings of those that estimate advantages by GAE, of the discounted return or the average reward."""

    objective: Objective = "discounted"
    """Maximise the discounted return, or the average reward per step of a problem that never terminates."""
    gamma: Share = 0.99
    """Discount factor. Not used where the objective is the average reward."""
    gain_rate: Share = 0.1
    """Weight of a new rollout in the running average reward. Used only where that is the objective."""
    gae_lambda: Share = 0.95
    """GAE's trade of bias (0) against variance (1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = self.objective == "discounted" or not self.normalize_reward  # what scales is a discounted return
        require(allowed, "normalize_reward", self.normalize_reward, 'False where objective is "average"')


@dataclass(frozen=True, kw_only=True)
class LossConfig(OnPolicyConfig):
    """Settings of those that minimise one loss of policy, value function and entropy."""

    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    value_coef: NonNegative = 0.5
    """Weight of the value loss; matters where policy and value function share a torso or the gradient is clipped."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: Positive = 0.5
    """The gradient is scaled down to this norm if it is longer."""


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig(AdvantageConfig, LossConfig):
    """Settings of those that pass over a rollout several times, in minibatches (PPO)."""

    epochs: Count = 4
    """Passes over a rollout. More reuse samples better and strain the old policy's data more."""
    minibatches: Count = 4
    """Gradient steps per epoch."""
    off_policy_correction: Literal["none", "vtrace"] = "none"
    """Correct advantages and targets by V-trace at the beginning of every epoch after the first."""


@dataclass(frozen=True, kw_only=True)
class StepwiseConfig(PolicyConfig):
    """Settings of those that update their weights at every time step."""

    rollout_steps: Count = 16
    """Steps that every environment plays before the weights follow, one time step after the other (T)."""
    steps_per_call: Count = 2
    """Time steps fused into one call; more of them take longer to compile."""
    policy_learning_rate: Positive = 0.1
    """Step size of the policy (alpha)."""
    value_learning_rate: Positive = 0.1
    """Step size of the value function (alpha_v)."""
    auxiliary_learning_rate: NonNegative = 0.05
    """Step size of the critic's auxiliary weights (alpha_w)."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" takes every step size to 0 over the run."""
    gamma: Share = 0.99
    """Discount factor."""
    max_gradient_norm: Positive = 1.0
    """Each direction is scaled down to this norm if it is longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wish = f"a divisor of rollout_steps ({self.rollout_steps})"
        require(self.rollout_steps % self.steps_per_call == 0, "steps_per_call", self.steps_per_call, wish)
        wish = '"none": updates at every time step need a policy without memory'
        require(self.recurrent == "none", "recurrent", self.recurrent, wish)


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(NetworkConfig):
    """Settings of every algorithm that learns from a replay buffer."""

    hidden_sizes: tuple[Count, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics (after the convolutions, for images)."""
    activation: Literal["tanh", "relu"] = "relu"
    """Non-linearity of the hidden layers."""
    learning_rate: Positive = 3e-4
    """Adam's step size at the start."""
    learning_rate_schedule: Schedule = "constant"
    """"linear" goes to 0 over the run."""
    max_gradient_norm: Positive | None = None
    """Each network's gradient is scaled down to this norm if it is longer; none leaves it."""
    gamma: Share = 0.99
    """Discount factor."""
    batch_size: Count = 256
    """Transitions per gradient step."""
    buffer_size: AtLeastTwo = 1_000_000
    """Latest transitions to learn from, per seed, counting rows that only restart an environment."""
    learning_starts: Whole = 1_000
    """Environment steps before the first gradient step, per seed; uniformly random ones, unless warm_up says else. Here
    and in ``update_ratio`` a row that only restarts an environment counts as one."""
    warm_up: Literal["uniform", "policy"] = "uniform"
    """Policy of these first steps: uniform, or the agent's own, for one that has been trained before."""
    train_every: Count = 1
    """Steps of every environment between updates."""
    update_ratio: Positive = 1.0
    """Gradient steps per environment step."""
    updates_per_call: Count = 1
    """Gradient steps fused into one call, from one set of samples; they wait until so many are due."""
    asynchronous: bool = False
    """Take gradient steps while the environments step in processes of their own (vectorization async). Learning then
    lags ``train_every`` steps behind; the same seed still gives the same bits."""
    target_update_rate: PositiveShare = 0.005
    """Weight of the new in the moving average that the target networks are."""
    n_steps: Count = 1
    """Rewards summed before the target bootstraps. More than 1 speeds up credit, and ignores that the policy has
    changed since the actions in between."""
    prioritized: bool = False
    """Draw transitions in proportion to their last TD error."""
    priority_exponent: Share = 0.6
    """Exponent of priorities; 0 draws uniformly."""
    importance_exponent: Share = 0.4
    """Exponent of the weights that undo prioritised drawing, at the start; it goes to 1 over the run."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the hidden layers in gradient steps: bfloat16 is faster where the processor multiplies in it.
    Weights, targets, losses, first and last layers, and Adam stay in float32, as does acting."""
    steps_per_iteration: Count = 1_000
    """Environment steps between rows of metrics; evaluations and checkpoints fall on these too."""


@dataclass(frozen=True, kw_only=True)
class PolicyAndCriticConfig(OffPolicyConfig):
    """Settings of those that learn a policy beside their critics."""

    learning_rate: Positive = 3e-4
    """Adam's step size of the policy at the start."""
    critic_learning_rate: Positive = 3e-4
    """Adam's step size of the critics at the start; follows the same schedule."""


@dataclass(frozen=True, kw_only=True)
class StochasticPolicyConfig(PolicyAndCriticConfig):
    """Settings of those whose policy is a Gaussian, squashed or clipped to its bounds, or a categorical one."""

    min_log_std: float = -5.0
    """The Gaussian's log standard deviation is clipped from below here; it is of the draw before tanh or clipping."""
    max_log_std: float = 2.0
    """And from above here."""
    min_probability: BelowHalf = 1e-6
    """No legal discrete action's probability falls below this: the policy is mixed with the uniform one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.min_log_std < self.max_log_std, "min_log_std", self.min_log_std, "below max_log_std")


@dataclass(frozen=True, kw_only=True)
class SquashedConfig(StochasticPolicyConfig):
    """Settings of both forms of SAC: several Q-functions and a squashed policy."""

    num_critics: Count = 2
    """Q-functions."""


@dataclass(frozen=True, kw_only=True)
class DelayedPolicyConfig(PolicyAndCriticConfig):
    """Settings of TD3 and what is built on it: smoothed target actions, and a policy that is updated more rarely."""

    learning_rate: Positive = 1e-3
    """Adam's step size of the policy at the start."""
    critic_learning_rate: Positive = 1e-3
    """Adam's step size of the critics at the start."""
    updates_per_call: Count = 2
    """Gradient steps fused into one call, from one set of samples; a multiple of policy_delay."""
    exploration_std: Positive = 0.1
    """Standard deviation of the noise added while playing, in units of half the action's range."""
    noise_correlation: PartialShare = 0.0
    """Share of that noise that stays in the next step: 0 is white, 0.85 the usual Ornstein-Uhlenbeck process."""
    target_noise: NonNegative = 0.2
    """Standard deviation of the noise that smooths target actions."""
    target_noise_clip: Positive = 0.5
    """No target action moves further than this."""
    policy_delay: Count = 2
    """Gradient steps of the critics per step of the policy and of the targets; divides updates_per_call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.updates_per_call % self.policy_delay == 0
        require(whole, "updates_per_call", self.updates_per_call, f"a multiple of policy_delay ({self.policy_delay})")


@dataclass(frozen=True, kw_only=True)
class SoftConfig(SquashedConfig):
    """Settings of those whose temperature is given or learned."""

    temperature: Positive | None = None
    """Reward that a nat of entropy is worth; none learns it from target_entropy."""
    target_entropy: float | None = None
    """Entropy in nats that a learned temperature aims at; by default -1 per component of a box of actions, as scaled to
    [-1, 1], and half of the uniform policy's where actions are discrete."""
    policy_q: Literal["min", "mean"] = "min"
    """Let the policy climb the least or the mean of all Q-functions."""
    policy_delay: Count = 1
    """Gradient steps of the critics per step of policy and temperature; divides updates_per_call."""
    layer_norm: bool = False
    """Normalise the hidden layers of the critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.updates_per_call % self.policy_delay == 0
        require(whole, "updates_per_call", self.updates_per_call, f"a multiple of policy_delay ({self.policy_delay})")


@dataclass(frozen=True, kw_only=True)
class GreedyConfig(OffPolicyConfig):
    """Settings of those whose policy is the best action of a Q-network."""

    target_update_rate: PositiveShare = 1.0
    """Weight of the new where the target network is moved: 1 copies the network."""
    target_update_every: Count = 250
    """Gradient steps between these moves, by default about 1,000 environment steps. The papers take 10,000 on Atari; 1,
    with a small target_update_rate, makes the target a moving average."""
    double: bool = True
    """The network that learns picks the next action and the target network values it, which takes away most of the
    overestimation of a maximum over errors; else the target network does both."""
    dueling: bool = False
    """State value and advantages in streams of their own from the last hidden layer on: pays with many actions that
    matter little."""
    huber_threshold: Positive | None = 1.0
    """TD errors count by their square up to here and linearly beyond, so that one surprise cannot throw the network;
    none squares them all. In reward units."""
    initial_epsilon: Share = 1.0
    """Share of actions that are drawn uniformly, at the start."""
    final_epsilon: Share = 0.05
    """That share at the end: what is left keeps the buffer from forgetting what bad actions do."""
    exploration_fraction: Share = 0.1
    """Share of the run in which it falls from the one to the other, linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.final_epsilon <= self.initial_epsilon,
            "final_epsilon",
            self.final_epsilon,
            f"at most initial_epsilon ({self.initial_epsilon})",
        )


@dataclass(frozen=True, kw_only=True)
class WeightedConfig(StochasticPolicyConfig):
    """Settings of those whose policy prefers the better actions of the data."""

    num_critics: Count = 2
    """Q-functions, of which the least counts."""
    layer_norm: bool = False
    """Normalise the hidden layers of the critics."""
    max_weight: Positive = 100.0
    """No action counts more than this."""


@dataclass(frozen=True, kw_only=True)
class ConservativeConfig(OffPolicyConfig):
    """Settings of those whose critics are held below what the data supports."""

    conservative_weight: NonNegative = 1.0
    """Weight of the penalty, in units of the critics' halved squared error; where gap_threshold adapts it, at the
    start."""
    gap_threshold: Positive | None = None
    """Reward units by which the penalised values may exceed those of the data before the weight rises; none keeps the
    weight."""
    regulariser: str = "entropy"
    """Choice of the actions that are pushed down: "entropy" (CQL(H)), "behaviour" (CQL(rho), rho fitted to the data),
    for continuous actions "previous" (CQL(rho), rho the policy so far), or FILE.py:FUNCTION, a function from values and
    log importance weights (..., n) to the probabilities of the n actions."""
