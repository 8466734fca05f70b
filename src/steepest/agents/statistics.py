"""Running statistics of observations and returns, in float64; pure, one member."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.learner.step import Hyper, State
from steepest.numerics import are_equal, forward_recurrence, merge_moments, weighted_range, weighted_variance
from steepest.types import ObsSpec, Rollout

F64 = torch.float64


def initial_observation_statistics(spec: ObsSpec, members: int, device: torch.device) -> State:
    """Return mean 0 and variance 1 of every vector field, from no observation."""
    state: State = {}
    for field in spec.fields:
        if field.kind == "vector":
            state[f"obs_mean/{field.name}"] = torch.zeros((members, *field.shape), dtype=F64, device=device)
            state[f"obs_variance/{field.name}"] = torch.ones((members, *field.shape), dtype=F64, device=device)
    return {**state, "obs_count": torch.zeros(members, dtype=F64, device=device)}


def initial_return_statistics(members: int, num_envs: int, device: torch.device) -> State:
    """Return mean 0 and variance 1 of the discounted return, from no reward."""
    return {
        "return_mean": torch.zeros(members, dtype=F64, device=device),
        "return_variance": torch.ones(members, dtype=F64, device=device),
        "return_count": torch.zeros(members, dtype=F64, device=device),
        "return_carry": torch.zeros((members, num_envs), device=device),
    }


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
    weight = rollout.valid.to(rollout.reward.dtype)
    returns = forward_recurrence(rollout.reward * weight, discount, state["return_carry"])
    mean, variance, count = merge_moments(
        state["return_mean"], state["return_variance"], state["return_count"], returns.flatten(), weight.flatten()
    )
    carry = returns[-1] * (~done[-1]).to(returns.dtype)
    new = {"return_mean": mean, "return_variance": variance, "return_count": count, "return_carry": carry}
    return new, scaled_rewards(new, rollout)


def scaled_rewards(state: State, rollout: Rollout) -> Tensor:
    """A rollout's rewards divided by the deviation in the statistics, which ``scale_rewards`` has merged it into."""
    if "return_variance" not in state:
        return rollout.reward
    return rollout.reward * torch.rsqrt(state["return_variance"] + 1e-8).to(rollout.reward.dtype)


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


def state_weights(step: Tensor, gamma: Tensor) -> Tensor:
    """gamma^t (T, N), t counted from the episode's beginning: what an unbiased discounted gradient weighs states by.

    Source:    errata to notes 1.1 to 1.4; Nota & Thomas 2020.
    Args:      step (T, N) of the episode, from 0
    Verified:  tests/exact/test_reinforce.py::test_discounted_weighting_climbs_the_discounted_objective
    """
    return gamma ** step.to(gamma.dtype)


def explained_variance(target: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Return the share of the targets' variance that the values explain: 1 is all, 0 what a constant does.

    Equation:  1 - Var(target - value) / Var(target); no number where targets are equal, to rounding
    Verified:  tests/unit/test_on_policy.py::test_explained_variance_by_hand
    """
    spread = weighted_variance(target, weight)
    explained = 1.0 - weighted_variance(target - value, weight) / spread
    return torch.where(are_equal(*weighted_range(target, weight)), torch.full_like(spread, torch.nan), explained)
