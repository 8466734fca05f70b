"""What on-policy algorithms share: turning a rollout into training sequences, and the running statistics.

All functions are pure and see one member, axes (T, N), but for the two that say so. A batch is a dict of tensors over S
sequences: for a feed-forward policy every step is a sequence of its own and the axes are (S, ...); for a recurrent one
they are (S, L, ...), with the memory (S, K) at the start of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from steepest.agents.average_reward import objective_rewards, pinned_target
from steepest.agents.statistics import scaled_rewards
from steepest.distributions import Distribution
from steepest.errors import UsageError
from steepest.learner.step import Hyper, Metrics, State
from steepest.learner.trees import mean_metrics
from steepest.networks.inputs import PolicyInput, PolicyOutput
from steepest.numerics import weighted_mean, weighted_variance
from steepest.returns import generalized_advantage, vtrace
from steepest.types import Obs, Rollout

Batch = dict[str, Tensor]

StateWeighting = Literal["discounted", "undiscounted"]
"""Whether the score of step t is weighted by gamma^t, which the gradient of the discounted objective asks for."""


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


def state_weights(step: Tensor, gamma: Tensor) -> Tensor:
    """gamma^t (T, N), t counted from the episode's beginning: what an unbiased discounted gradient weighs states by.

    Source:    errata to notes 1.1 to 1.4; Nota & Thomas 2020.
    Args:      step (T, N) of the episode, from 0
    Verified:  tests/exact/test_reinforce.py::test_discounted_weighting_climbs_the_discounted_objective
    """
    return gamma ** step.to(gamma.dtype)


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
    Returns:   the batch; health figures of the critic before the update
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


def explained_variance(target: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """How much of the targets' variance the values account for: 1 is all, 0 what a constant does.

    Equation:  1 - Var(target - value) / Var(target); no number where targets are equal, to rounding
    Verified:  tests/unit/test_on_policy.py::test_explained_variance_by_hand
    """
    spread = weighted_variance(target, weight)
    rounding = (8.0 * torch.finfo(target.dtype).eps) ** 2 * weighted_mean(target.square(), weight)
    explained = 1.0 - weighted_variance(target - value, weight) / spread
    return torch.where(spread > rounding, explained, torch.full_like(spread, torch.nan))


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
