"""What on-policy algorithms share: turning a rollout into training sequences, and the running statistics.

All functions are pure and see one member: axes (T, N). A batch is a dict of tensors over S sequences: for a
feed-forward policy every step is a sequence of its own and the axes are (S, ...); for a recurrent one they are
(S, L, ...), with the memory (S, K) at the start of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.learner import Hyper, Metrics, State
from steepest.networks import PolicyInput, PolicyOutput
from steepest.numerics import forward_recurrence, merge_moments, weighted_mean, weighted_variance
from steepest.types import Obs, Rollout

Batch = dict[str, Tensor]

Objective = Literal["discounted", "average"]
"""What is maximised: the expected discounted return, or the average reward per step (the gain) of a problem that never
ends."""

StateWeighting = Literal["discounted", "undiscounted"]
"""Whether the score of step t is weighted by gamma^t, which the gradient of the discounted objective asks for."""

VALUE_PIN = 0.1
"""Share of the mean differential value that a critic's targets are lowered by; see ``pinned_target``."""


def scale_rewards(state: State, rollout: Rollout, gamma: Tensor) -> tuple[State, Tensor]:
    """The running statistics of the discounted return with this rollout merged, and rewards divided by its deviation.

    Equation:  R_t = r_t + gamma (1 - done_{t-1}) R_{t-1};  r_t / sqrt(Var R + 1e-8)
    Source:    Engstrom et al. 2020, section 2. Never centred: a shift would change an episodic problem.
    Returns:   the statistics that changed, and the rewards; {} and the rewards as they are where nothing is normalised
    Verified:  tests/unit/test_on_policy.py::test_reward_scaling_against_a_loop
    """
    if "return_variance" not in state:
        return {}, rollout.reward
    done = rollout.terminated | rollout.truncated
    alive_before = torch.cat([torch.ones_like(done[:1]), ~done[:-1]]).to(rollout.reward.dtype)
    discount = torch.where(rollout.valid, gamma, torch.ones_like(gamma)) * alive_before
    returns = forward_recurrence(rollout.reward, discount, state["return_carry"])
    weight = rollout.valid.to(rollout.reward.dtype)
    mean, variance, count = merge_moments(
        state["return_mean"], state["return_variance"], state["return_count"], returns.flatten(), weight.flatten()
    )
    carry = returns[-1] * (~done[-1]).to(returns.dtype)
    new = {"return_mean": mean, "return_variance": variance, "return_count": count, "return_carry": carry}
    return new, rollout.reward * torch.rsqrt(variance + 1e-8)


def update_observations(state: State, rollout: Rollout, hyper: Hyper) -> State:
    """Observation statistics with this rollout's decided steps merged; call it after the update."""
    names = [k.removeprefix("obs_mean/") for k in state if k.startswith("obs_mean/")]
    if not names:
        return state
    new = dict(state)
    weight = rollout.valid.to(torch.float32).flatten()
    for name in names:
        rows = rollout.obs[name][:-1].flatten(0, 1)
        mean, variance, count = merge_moments(
            state[f"obs_mean/{name}"], state[f"obs_variance/{name}"], state["obs_count"], rows, weight
        )
        new |= {f"obs_mean/{name}": mean, f"obs_variance/{name}": variance, "obs_count": count}
    return new


def initial_gain(members: int, device: torch.device) -> State:
    """What a member knows of its average reward before its first rollout: nothing."""
    return {"gain": torch.zeros(members, device=device), "gain_rollouts": torch.zeros(members, device=device)}


def update_gain(state: State, rollout: Rollout, gain_rate: Tensor) -> State:
    """The running estimate of the average reward per step, with this rollout's decided steps in it.

    Equation:  gain <- gain + max(gain_rate, 1/k) (mean r - gain),  k rollouts so far: at first the plain mean
    Source:    Ma et al. 2021 (moving average over rollouts); Zhang & Ross 2021, where gain_rate is 1.
    Args:      gain_rate in [0, 1]; the gain is in reward units per step
    Returns:   the statistics that changed
    Verified:  tests/unit/test_on_policy.py::test_running_gain_against_a_loop
    """
    count = state["gain_rollouts"] + 1.0
    mean = weighted_mean(rollout.reward, rollout.valid.to(rollout.reward.dtype))
    gain = state["gain"] + torch.maximum(gain_rate, 1.0 / count) * (mean - state["gain"])
    return {"gain": gain, "gain_rollouts": count}


def pinned_target(target: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """Targets of differential values, drawn towards the solution whose mean is zero.

    Differential values are defined up to a constant. Advantages do not see it, but nothing would hold it: every error
    of the gain would add to it, rollout after rollout. Lowering the targets by a share of the values' own mean leaves
    exactly one fixed point, the values with mean zero over the states that are visited.

    Equation:  target_t - VALUE_PIN mean_t v(s_t)
    Source:    Ma et al. 2021, average value constraint; here with the mean of the rollout at hand.
    Args:      target, value (T, N) reward units; valid (T, N) bool
    Verified:  tests/exact/test_average_reward.py::test_the_critic_comes_to_rest_at_the_values_of_mean_zero
    """
    return target - VALUE_PIN * weighted_mean(value, valid.to(value.dtype))


def refuse_termination(rollout: Rollout) -> None:
    """UsageError if an episode has terminated: where the process ends, there is no average reward per step."""
    ended = int(rollout.terminated.sum())
    if ended:
        raise UsageError(
            f"objective is 'average', but the environment has terminated {ended} episode{'s' if ended > 1 else ''}; an "
            "average reward per step is that of a problem which never does (time limits are fine: they truncate). "
            "Use objective 'discounted' here"
        )


def state_weights(rollout: Rollout, gamma: Tensor) -> Tensor:
    """gamma^t (T, N), t counted from the episode's beginning: what an unbiased discounted gradient weighs states by.

    Source:    errata to notes 1.1 to 1.4; Nota & Thomas 2020.
    Verified:  tests/exact/test_reinforce.py::test_discounted_weighting_climbs_the_discounted_objective
    """
    return gamma ** rollout.episode_step[:-1].to(gamma.dtype)


def score_rollout(
    forward: Callable[[PolicyInput], PolicyOutput], rollout: Rollout, length: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, N) of the actions and values (T+1, N) of the observations under the policy that acted.

    Computed here in one pass rather than while acting: acting is then as cheap as it can be, and the old
    log-probabilities come from the very forward pass that training differentiates.
    """
    steps = rollout.action.shape[0]
    if length == 0:
        output = forward(PolicyInput(rollout.obs, rollout.action_mask, None, None, None))
        assert output.value is not None
        policy = cast(Any, type(output.distribution))(*(x[:steps] for x in output.distribution))
        return policy.log_prob(rollout.action), output.value
    log_probs: list[Tensor] = []
    values: list[Tensor] = []
    memory: Tensor | None = None
    for first in range(0, steps, length):
        rows = slice(first, first + length)
        assert rollout.memory is not None
        output = forward(_sequence_input(rollout, rows, rollout.valid[rows], rollout.memory[first // length]))
        assert output.value is not None
        log_probs.append(output.distribution.log_prob(rollout.action[rows]))
        values.append(output.value)
        memory = output.memory
    last = slice(steps, steps + 1)
    output = forward(_sequence_input(rollout, last, torch.ones_like(rollout.valid[-1:]), memory))
    assert output.value is not None
    return torch.cat(log_probs), torch.cat([*values, output.value])


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
    error = weighted_variance(target - value[:-1], weight)
    metrics = {
        "explained_variance": 1.0 - error / weighted_variance(target, weight).clamp(min=1e-12),
        "value_mean": weighted_mean(value[:-1], weight),
    }
    return batch, metrics


def to_sequences(x: Tensor, length: int) -> Tensor:
    """(T, N, ...) -> (S, ...) with S = T N for length 0 (feed-forward), else (S, L, ...) with S = T N / L."""
    if length == 0:
        return x.flatten(0, 1)
    steps, envs = x.shape[:2]
    return x.reshape(steps // length, length, envs, *x.shape[2:]).transpose(1, 2).flatten(0, 1)


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


def gather(batch: Batch, index: Tensor) -> Batch:
    """The sequences of a minibatch; time comes first where there are sequences: (L, B, ...), memory (B, K)."""
    return all_sequences({k: x[index] for k, x in batch.items()})


def sequences_per_rollout(num_envs: int, rollout_steps: int, length: int, minibatches: int) -> int:
    """Number of training sequences in a rollout; UsageError where lengths or minibatches do not divide it."""
    if length and rollout_steps % length:
        raise UsageError(f"rollout_steps is {rollout_steps}; expected a multiple of sequence_length ({length})")
    sequences = num_envs * rollout_steps // max(length, 1)
    if sequences % minibatches:
        unit = f"sequences of {length} steps" if length else "steps"
        raise UsageError(
            f"a rollout of {num_envs} environments x {rollout_steps} steps has {sequences} {unit}, which {minibatches} "
            "minibatches do not divide; change num_envs, rollout_steps or minibatches"
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
