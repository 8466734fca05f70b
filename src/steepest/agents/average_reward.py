"""The average reward as an objective: its running estimate, and what it does to rewards and targets."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest.agents.statistics import scale_rewards
from steepest.errors import UsageError
from steepest.learner.step import Hyper, Metrics, State
from steepest.numerics import weighted_mean
from steepest.types import Rollout

VALUE_PIN = 0.1
"""Share of the mean differential value that a critic's targets are lowered by; see ``pinned_target``."""


def initial_gain(members: int, device: torch.device) -> State:
    """Return the estimate of the average reward before the first rollout: nothing is known."""
    return {"gain": torch.zeros(members, device=device), "gain_rollouts": torch.zeros(members, device=device)}


def gain_of(state: State) -> Metrics:
    """Return the average reward per step as a metric, where that is the objective."""
    return {"gain": state["gain"]} if "gain" in state else {}


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


def objective_rewards(state: State, rollout: Rollout, hyper: Hyper) -> tuple[State, Tensor, Tensor]:
    """Return the rewards (T, N) that the objective counts and their discount, with the statistics that both rest on.

    Equation:  discounted: r_t, scaled where rewards are normalised, and gamma; average: r_t - gain, and 1
    Source:    notes 1.8. TD errors and GAE of rewards less the gain, without a discount, are the differential ones
               (``returns.differential_generalized_advantage``).
    Returns:   the statistics that changed, the rewards, the discount
    Verified:  tests/unit/test_on_policy.py::test_rewards_of_both_objectives
    """
    if "gain" not in state:
        return *scale_rewards(state, rollout, hyper["gamma"]), hyper["gamma"]
    new = update_gain(state, rollout, hyper["gain_rate"])
    return new, rollout.reward - new["gain"], torch.ones_like(hyper["gamma"])


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
