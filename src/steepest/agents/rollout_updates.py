"""Updates from a rollout: what on-policy algorithms share.

``RolloutAgent`` orders an update; the functions below are its steps. They are pure and see one member, axes (T, N), but
for the two that say so. A batch is a dict of tensors over S sequences: for a feed-forward policy every step is a
sequence of its own and the axes are (S, ...); for a recurrent one they are (S, L, ...), with the memory (S, K) at the
start of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.agents.agent import Agent
from steepest.agents.average_reward import (
    gain_of,
    initial_gain,
    objective_rewards,
    pinned_target,
    refuse_termination,
)
from steepest.agents.config import OnPolicyConfig, SurrogateConfig
from steepest.agents.statistics import explained_variance, scaled_rewards, update_observations
from steepest.distributions import Distribution
from steepest.errors import UsageError
from steepest.learner.lifting import Lift
from steepest.learner.step import Gradient, Hyper, Metrics, State, adam_step
from steepest.learner.trees import mean_metrics, to_host
from steepest.losses import score_function_loss, value_loss
from steepest.networks.inputs import PolicyInput, PolicyOutput
from steepest.numerics import weighted_mean
from steepest.returns import generalized_advantage, vtrace
from steepest.types import Obs, Rollout

Batch = dict[str, Tensor]


class RolloutAgent(Agent):
    """An agent that learns from the rollout just played and then forgets it.

    An algorithm adds ``loss`` and ``gradient_step``, and what it alone does between data and loss.
    """

    lifts: ClassVar[Mapping[str, Lift]] = {
        "prepare": Lift("prepare", unrolls=True),
        "steps": Lift("gradient_steps", differentiates=True),
        "correct": Lift("correct", unrolls=True),
        "merge": Lift(update_observations, compiles=False),
    }
    hyper_fields = (
        "gamma", "gain_rate", "gae_lambda", "learning_rate", "value_coef", "entropy_coef", "max_gradient_norm",
    )  # fmt: skip

    def __init__(self, config: OnPolicyConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.sequences = sequences_per_rollout(
            self.num_envs,
            config.rollout_steps,
            self.sequence_length,
            getattr(config, "minibatches", 1),
            standardizes=self.standardizes,
        )
        if getattr(config, "objective", "discounted") == "average":
            self.state |= initial_gain(self.members, self.device)

    @property
    def standardizes(self) -> bool:
        """Return whether advantages are standardised over every minibatch."""
        return cast(OnPolicyConfig, self.config).normalize_advantage

    @classmethod
    def planned_work(cls, config: Any, total_steps: int, num_envs: int) -> tuple[int, int]:
        rows = num_envs * config.rollout_steps
        minibatches = getattr(config, "minibatches", 1)
        return rows // minibatches, total_steps // rows * getattr(config, "epochs", 1) * minibatches

    def update(self, rollout: Rollout, progress: float) -> dict[str, NDArray[np.float64]]:
        """Learn from a rollout (M, T, N) at a progress in [0, 1], which drives schedules; return metrics (M,)."""
        if "gain" in self.state:
            refuse_termination(rollout)
        self.state, metrics = self.learn(rollout, self.hyperparameters(progress))
        return to_host(metrics)

    def learn(self, rollout: Rollout, hyper: Hyper) -> tuple[State, Metrics]:
        """Prepare a batch, improve policy and value function on it, then merge what was observed."""
        statistics, batch, critic = self.over_members["prepare"](self.state, rollout, hyper)
        state, metrics = self.improve({**self.state, **statistics}, rollout, batch, hyper)
        state = self.over_members["merge"](state, rollout, hyper)
        return state, {**metrics, **critic, **gain_of(state)}

    def prepare(self, state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Batch, Metrics]:
        """Return advantages, value targets, old log-probabilities and old values of a rollout; pure, one member."""
        policy, value = replay_rollout(partial(self.forward, state["params"], state), rollout, self.sequence_length)
        log_prob = policy.log_prob(rollout.action)
        statistics, advantage, target = gae_and_target(state, rollout, value, hyper)
        batch, metrics = training_batch(rollout, self.sequence_length, log_prob, value, advantage, target)
        return statistics, {**batch, **self.remember(policy)}, metrics

    def remember(self, policy: Distribution) -> Batch:
        """Return what gradient steps need of the policy that acted, besides log-probabilities: nothing, by default."""
        del policy
        return {}

    def improve(self, state: State, rollout: Rollout, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take the gradient steps of all members, epoch after epoch."""

        def correct(state: State) -> Batch:
            return self.over_members["correct"](state, rollout, batch["log_prob"], hyper)

        config, indices = cast(SurrogateConfig, self.config), self.draw_indices()
        epochs = indices.chunk(config.epochs, dim=1) if config.off_policy_correction == "vtrace" else (indices,)
        return run_epochs(self.over_members["steps"], state, batch, epochs, hyper, correct)

    def draw_indices(self) -> Tensor:
        """Draw the minibatches of all epochs, (members, epochs * minibatches, sequences of each)."""
        config = cast(SurrogateConfig, self.config)
        return members_indices(self.sequences, config.minibatches, config.epochs, self.generators).to(self.device)

    def gradient_steps(
        self, gradient: Gradient, state: State, batch: Batch, indices: Tensor, hyper: Hyper
    ) -> tuple[State, Metrics]:
        """Take one gradient step for each row of indices (K, B); pure, one member."""
        return each_minibatch(partial(self.gradient_step, gradient, hyper=hyper), state, batch, indices)

    def gradient_step(self, gradient: Gradient, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """Take one step of Adam on a minibatch; pure, one member."""
        slope, (_, metrics) = gradient(partial(self.loss, state=state, batch=batch, hyper=hyper), state["params"])
        state, norm = adam_step(state, slope, hyper["learning_rate"], hyper["max_gradient_norm"])
        return state, {**metrics, "gradient_norm": norm}

    def loss(self, vector: Tensor, state: State, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
        """Return the mean loss of a minibatch and its metrics; gradient through ``vector`` alone."""
        raise NotImplementedError

    def correct(self, state: State, rollout: Rollout, old_log_prob: Tensor, hyper: Hyper) -> Batch:
        """Return advantages and value targets for the policy as it is now; pure, one member."""
        forward = partial(self.forward, state["params"], state)
        return corrected_batch(forward, state, rollout, old_log_prob, self.sequence_length, hyper)


def mean_loss(
    policy_loss: Tensor, regression: Tensor, entropy: Tensor, weight: Tensor, hyper: Hyper
) -> tuple[Tensor, Metrics]:
    """Return the mean of one loss of policy, value function and entropy over the decided steps, and its parts.

    Equation:  mean of policy_loss + c_v value_loss - c_e H
    Source:    Mnih et al. 2016; Schulman et al. 2017, Eq. 9.
    Args:      policy_loss, regression, entropy, weight (...,), one entry per step
    Verified:  tests/exact/test_updates.py::test_updates_are_those_of_the_written_algorithm
    """
    per_step = policy_loss + hyper["value_coef"] * regression - hyper["entropy_coef"] * entropy
    metrics = {
        "policy_loss": weighted_mean(policy_loss, weight),
        "value_loss": weighted_mean(regression, weight),
        "entropy": weighted_mean(entropy, weight),
    }
    return weighted_mean(per_step, weight), metrics


def score_loss(output: PolicyOutput, advantage: Tensor, batch: Batch, hyper: Hyper) -> tuple[Tensor, Metrics]:
    """Return ``mean_loss`` with the score function's policy loss, weighted by gamma^t where the batch says so.

    Verified:  tests/exact/test_updates.py::test_updates_are_those_of_the_written_algorithm
    """
    policy_loss = score_function_loss(output.distribution.log_prob(batch["action"]), advantage)
    if "state_weight" in batch:
        policy_loss = batch["state_weight"] * policy_loss
    regression = value_loss(value_of(output), batch["target"])
    return mean_loss(policy_loss, regression, output.distribution.entropy(), batch["weight"], hyper)


def value_of(output: PolicyOutput) -> Tensor:
    """Return the values of an output that was asked for them."""
    assert output.value is not None
    return output.value


def gae_and_target(state: State, rollout: Rollout, value: Tensor, hyper: Hyper) -> tuple[State, Tensor, Tensor]:
    """Advantages of a rollout's actions by GAE under the agent's objective, and what the value function is fitted to.

    Equation:  A_t = sum_l (gamma lambda)^l delta_{t+l},  target_t = A_t + V(s_t); rewards and gamma as
               ``objective_rewards`` has them, the target of differential values pinned
    Source:    Schulman et al. 2016, Eq. 16; notes 1.8 for the average reward.
    Args:      value (T+1, N) of the policy that acted, in the units of the rewards that the objective counts
    Returns:   the statistics that changed, advantages (T, N), targets (T, N)
    Verified:  tests/exact/test_updates.py::test_updates_are_those_of_the_written_algorithm
    """
    statistics, reward, gamma = objective_rewards(state, rollout, hyper)
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    advantage = generalized_advantage(reward, value, *flags, gamma, hyper["gae_lambda"])
    target = advantage + value[:-1]
    if "gain" in state:
        target = pinned_target(target, value[:-1], rollout.valid)
    return statistics, advantage, target


def score_rollout(
    forward: Callable[[PolicyInput], PolicyOutput], rollout: Rollout, length: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, N) of the actions and values (T+1, N) of the observations under the policy that acted.

    Computed here in one pass rather than while acting: acting is then as cheap as it can be, and the old
    log-probabilities come from the very forward pass that training differentiates.
    """
    policy, value = replay_rollout(forward, rollout, length)
    return policy.log_prob(rollout.action), value


def replay_rollout(
    forward: Callable[[PolicyInput], PolicyOutput], rollout: Rollout, length: int
) -> tuple[Distribution, Tensor]:
    """Distributions of the T decided steps, fields (T, N, ...), and values (T+1, N) of the observations.

    Args:      length: steps per sequence, each replayed from its stored memory; 0 for a feed-forward policy
    """
    steps = rollout.action.shape[0]
    if length == 0:
        output = forward(PolicyInput(rollout.obs, rollout.action_mask, None, None, None))
        assert output.value is not None
        return cast(Any, type(output.distribution))(*(x[:steps] for x in output.distribution)), output.value
    policies: list[Distribution] = []
    values: list[Tensor] = []
    memory: Tensor | None = None
    for first in range(0, steps, length):
        rows = slice(first, first + length)
        assert rollout.memory is not None
        output = forward(_sequence_input(rollout, rows, rollout.valid[rows], rollout.memory[first // length]))
        assert output.value is not None
        policies.append(output.distribution)
        values.append(output.value)
        memory = output.memory
    last = slice(steps, steps + 1)
    output = forward(_sequence_input(rollout, last, torch.ones_like(rollout.valid[-1:]), memory))
    assert output.value is not None
    fields = zip(*policies, strict=True)
    return cast(Any, type(policies[0]))(*(torch.cat(x) for x in fields)), torch.cat([*values, output.value])


def _sequence_input(rollout: Rollout, rows: slice, valid: Tensor, memory: Tensor | None) -> PolicyInput:
    mask = None if rollout.action_mask is None else rollout.action_mask[rows]
    obs = {k: x[rows] for k, x in rollout.obs.items()}
    return PolicyInput(obs, mask, rollout.episode_step[rows] == 0, valid, memory)


def training_batch(
    rollout: Rollout, length: int, log_prob: Tensor, value: Tensor, advantage: Tensor, target: Tensor
) -> tuple[Batch, Metrics]:
    """Everything that gradient steps need of a rollout, cut into sequences.

    Args:      length: steps per sequence, 0 for a feed-forward policy; log_prob (T, N) and value (T+1, N) of the policy
               that acted; advantage (T, N); target (T, N) of the value function
    Returns:   the batch; metrics of the critic before the update
    """
    steps = {
        "action": rollout.action,
        "log_prob": log_prob,
        "value": value[:-1],
        "advantage": advantage,
        "target": target,
        "weight": rollout.valid.to(value.dtype),
    }
    if rollout.action_mask is not None:
        steps["action_mask"] = rollout.action_mask[:-1]
    batch = obs_to_sequences(rollout.obs, length)
    if length > 0:
        assert rollout.memory is not None
        steps["episode_start"] = rollout.episode_step[:-1] == 0
        batch["memory"] = rollout.memory.flatten(0, 1)
    batch |= {k: to_sequences(x, length) for k, x in steps.items()}
    weight = steps["weight"]
    metrics = {
        "explained_variance": explained_variance(target, value[:-1], weight),
        "value_mean": weighted_mean(value[:-1], weight),
    }
    return batch, metrics


def distribution_to_batch(name: str, policy: Distribution, length: int) -> Batch:
    """The distributions (T, N) of a rollout, under keys that a batch can hold beside other things."""
    return {f"{name}/{field}": to_sequences(x, length) for field, x in policy._asdict().items()}


def batch_distribution(name: str, batch: Batch, kind: type[Distribution]) -> Distribution:
    """The distributions that a batch holds under a name."""
    return cast(Any, kind)(*(batch[f"{name}/{field}"] for field in kind._fields))


def to_sequences(x: Tensor, length: int) -> Tensor:
    """(T, N, ...) -> (S, ...) with S = T N for length 0 (feed-forward), else (S, L, ...) with S = T N / L."""
    if length == 0:
        return x.flatten(0, 1)
    steps, envs = x.shape[:2]
    return x.reshape(steps // length, length, envs, *x.shape[2:]).transpose(1, 2).flatten(0, 1)


def from_sequences(x: Tensor, length: int, envs: int) -> Tensor:
    """The inverse of ``to_sequences``: (T, N, ...) again."""
    rows = x.unflatten(0, (-1, envs))
    return rows if length == 0 else rows.movedim(2, 1).flatten(0, 1)


def obs_to_sequences(obs: Obs, length: int) -> Batch:
    """The observations of the T decided steps, under keys that a batch can hold beside other things."""
    return {f"obs/{k}": to_sequences(x[:-1], length) for k, x in obs.items()}


def batch_inputs(batch: Batch) -> PolicyInput:
    """Policy input of a minibatch."""
    obs = {k.removeprefix("obs/"): x for k, x in batch.items() if k.startswith("obs/")}
    start = batch.get("episode_start")
    valid = None if start is None else batch["weight"] > 0
    return PolicyInput(obs, batch.get("action_mask"), start, valid, batch.get("memory"))


def minibatch_indices(sequences: int, minibatches: int, epochs: int, generator: torch.Generator) -> Tensor:
    """(epochs * minibatches, sequences / minibatches): every epoch sees every sequence once, in a new order."""
    orders = [torch.randperm(sequences, generator=generator) for _ in range(epochs)]
    return torch.stack(orders).view(epochs * minibatches, sequences // minibatches)


def members_indices(sequences: int, minibatches: int, epochs: int, generators: Sequence[torch.Generator]) -> Tensor:
    """``minibatch_indices`` of every member, (members, epochs * minibatches, sequences / minibatches)."""
    return torch.stack([minibatch_indices(sequences, minibatches, epochs, g) for g in generators])


def gather(batch: Batch, index: Tensor) -> Batch:
    """The sequences of a minibatch; time comes first where there are sequences: (L, B, ...), memory (B, K)."""
    return all_sequences({k: x[index] for k, x in batch.items()})


def each_minibatch(
    step: Callable[[State, Batch], tuple[State, Metrics]], state: State, batch: Batch, indices: Tensor
) -> tuple[State, Metrics]:
    """A gradient step on every minibatch in turn, unrolled so that K of them cost one call.

    Args:      step: (state, minibatch) -> (state, figures); indices (K, B) of the batch's sequences
    Returns:   the state after the last step, the mean of every figure
    """
    totals: Metrics = {}
    for index in indices.unbind(0):
        state, metrics = step(state, gather(batch, index))
        totals = {k: totals.get(k, 0.0) + v for k, v in metrics.items()}
    return state, {k: v / indices.shape[0] for k, v in totals.items()}


def run_epochs(
    steps: Callable[[State, Batch, Tensor, Hyper], tuple[State, Metrics]],
    state: State,
    batch: Batch,
    epochs: Sequence[Tensor],
    hyper: Hyper,
    correct: Callable[[State], Batch] | None = None,
) -> tuple[State, Metrics]:
    """The gradient steps of all members on a rollout, several to a call, with a corrected batch from epoch to epoch.

    Args:      steps: (state, batch, indices (members, K, B), hyper) -> (state, figures), K steps; epochs: indices of
               each, or of all as one where nothing is corrected between them; correct: state -> what replaces the same
               entries of the batch
    Returns:   the state after the last step, the mean of every figure over the calls
    """
    history: list[Metrics] = []
    for number, indices in enumerate(epochs):
        if correct is not None and number > 0:  # until the first step the policy is the one that acted
            batch = {**batch, **correct(state)}
        for chunk in indices.split(steps_per_call(indices.shape[1], indices.shape[0]), dim=1):
            state, metrics = steps(state, batch, chunk, hyper)
            history.append(metrics)
    return state, mean_metrics(history)


def corrected_batch(
    forward: Callable[[PolicyInput], PolicyOutput],
    state: State,
    rollout: Rollout,
    old_log_prob: Tensor,
    length: int,
    hyper: Hyper,
) -> Batch:
    """Advantages and value targets of a rollout under the policy and value function as they are now, by V-trace.

    Equation:  target = v_t,  advantage = q_t - V(s_t), both with ratios to the policy that acted, clipped at 1
    Source:    Espeholt et al. 2018, section 4. The advantage goes without the factor rho_t of their policy gradient:
               the surrogate's own ratio is that factor.
    Args:      old_log_prob (S, ...) as in the batch, of the policy that acted; length: steps per sequence, or 0
    Returns:   what takes the place of the same entries of the batch
    Verified:  tests/unit/test_on_policy.py::test_corrected_batch_is_vtrace_of_the_present_policy
    """
    log_prob, value = score_rollout(forward, rollout, length)
    log_ratio = log_prob - from_sequences(old_log_prob, length, rollout.reward.shape[1])
    flags = (rollout.terminated, rollout.truncated, rollout.valid)
    if "gain" in state:
        reward, gamma = rollout.reward - state["gain"], torch.ones_like(hyper["gamma"])
    else:
        reward, gamma = scaled_rewards(state, rollout), hyper["gamma"]
    estimate = vtrace(log_ratio, reward, value, *flags, gamma, hyper["gae_lambda"])
    advantage, target = estimate.q_value - value[:-1], estimate.target
    if "gain" in state:
        target = pinned_target(target, value[:-1], rollout.valid)
    return {"advantage": to_sequences(advantage, length), "target": to_sequences(target, length)}


def sequences_per_rollout(
    num_envs: int, rollout_steps: int, length: int, minibatches: int, *, standardizes: bool
) -> int:
    """Number of training sequences in a rollout; UsageError where lengths or minibatches do not divide it.

    Args:      length: steps per sequence, 0 for a feed-forward policy; standardizes: whether advantages are, over every
               minibatch, which then has to hold more than one
    Verified:  tests/unit/test_on_policy.py::test_sequences_per_rollout
    """
    if length and rollout_steps % length:
        raise UsageError(f"rollout_steps is {rollout_steps}; expected a multiple of sequence_length ({length})")
    sequences = num_envs * rollout_steps // max(length, 1)
    if sequences % minibatches:
        unit = f"sequences of {length} steps" if length else "steps"
        raise UsageError(
            f"a rollout of {num_envs} environments x {rollout_steps} steps has {sequences} {unit}, which {minibatches} "
            "minibatches do not divide; change num_envs, rollout_steps or minibatches"
        )
    if standardizes and num_envs * rollout_steps == minibatches:
        raise UsageError(
            f"a rollout of {num_envs} environments x {rollout_steps} steps gives each of {minibatches} minibatches a "
            "single step, whose advantage normalize_advantage turns into 0: the policy would never learn; change "
            "num_envs, rollout_steps or minibatches, or set normalize_advantage to False"
        )
    return sequences


def steps_per_call(steps: int, members: int) -> int:
    """Gradient steps to fuse into one call: two spread its cost, and longer graphs take longer to compile.

    Args:      steps: in all; members: trained together, whose steps are fused already
    """
    return 2 if members == 1 and steps % 2 == 0 else 1


def all_sequences(batch: Batch) -> Batch:
    """A whole rollout as one minibatch; time comes first where there are sequences."""
    if "memory" not in batch:
        return batch
    return {k: x if k == "memory" else x.transpose(0, 1) for k, x in batch.items()}
