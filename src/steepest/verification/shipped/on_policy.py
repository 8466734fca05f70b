"""REINFORCE in its forms, the actor-critic, and the average reward (notes 1.2 to 1.5, and 1.8): the agents' own losses.

The rollouts are those of ``agents``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steepest import returns
from steepest.agents import average_reward
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, gradients
from steepest.exact.finite_mdp import softmax_policy
from steepest.verification.random_problems import (
    Process,
    Recording,
    continuing,
    episodic,
    recording,
    undiscounted_episodic,
)
from steepest.verification.shipped.agents import PATH, episodes, expected_gradient, long_run
from steepest.verification.shipped.distributions import F64
from steepest.verification.shipped.policy_gradient import bellman_pull, undiscounted_weighting, value_pull
from steepest.verification.statement import CONTROL, EQUALITY, Sides, Statement

_ONE_STEP: dict[str, Any] = {"advantage": "n_step", "n_steps": 1}


# 1.2 to 1.5: episodes

Values = Callable[[Process], Tensor]


def exact_values(c: Process) -> Tensor:
    """(S,) V^pi."""
    return mdps.state_value(c.mdp, c.policy)


def any_values(c: Process) -> Tensor:
    """(S,) an arbitrary function of the state."""
    return c.baseline


def climbs_the_objective(c: Process, algorithm: str, values: Values, **options: Any) -> Sides:
    """With gamma^t on the states (or gamma = 1), minus the loss's gradient is the gradient of the objective."""
    return Sides(-expected_gradient(algorithm, c, episodes(c), values(c), **options)[0], c.gradient)


def climbs_its_own_sum(c: Process, algorithm: str, values: Values, **options: Any) -> Sides:
    """Without it, minus the loss's gradient is the theorem's sum with states weighted by plain visits."""
    return Sides(-expected_gradient(algorithm, c, episodes(c), values(c), **options)[0], undiscounted_weighting(c))


def monte_carlo_critic(c: Process) -> Sides:
    """The Monte-Carlo critic is pulled to V^pi, as hard as states are visited, whatever the advantage."""
    pull = expected_gradient("actor_critic", c, episodes(c), c.baseline, critic="monte_carlo")[1]
    return Sides(pull, value_pull(c))


def bootstrapped_critic(c: Process) -> Sides:
    """With one step, the bootstrapped critic is pulled to the Bellman backup of its values."""
    pull = expected_gradient("actor_critic", c, episodes(c), c.baseline, **_ONE_STEP)[1]
    return Sides(pull, bellman_pull(c))


def full_return_is_that_of_the_trajectory(c: Process) -> Sides:
    """R(tau), at every decided step of every trajectory."""
    paths = c.paths
    nothing = torch.zeros(paths.state.shape, dtype=F64)
    flags = (paths.terminated, torch.zeros_like(paths.terminated), paths.valid)
    found = returns.full_return(paths.reward, nothing, *flags, c.mdp.gamma)
    return Sides(found * paths.valid, c.returns * paths.valid)


def _unbroken(r: Recording) -> tuple[Tensor, Tensor, Tensor]:
    """terminated, truncated, valid."""
    never = torch.zeros(r.reward.shape, dtype=torch.bool)
    return never, never, ~never


def n_step_is_a_sum_of_errors(r: Recording) -> Sides:
    """A^(3)_t = delta_t + gamma delta_{t+1} + gamma^2 delta_{t+2}, fewer at the end."""
    found = returns.n_step_advantage(r.reward, r.value, *_unbroken(r), r.gamma, 3)
    padded = torch.cat([r.delta, torch.zeros(2, dtype=F64)])
    return Sides(found, padded[:-2] + r.gamma * padded[1:-1] + r.gamma**2 * padded[2:])


# 1.8: the average reward


def _differential_errors(c: Process, gain: Tensor) -> Tensor:
    """(S, A, S) the shipped differential TD errors of every transition, with exact values."""
    v, shape = gains.differential_value(c.mdp, c.policy), c.mdp.transition.shape
    here, there = v.view(-1, 1, 1).expand(shape), v.expand(shape)
    return returns.differential_td_error(c.mdp.reward.unsqueeze(-1).expand(shape), here, there, gain)


def differential_error_has_mean_zero(c: Process) -> Sides:
    """E_{a~pi, s'}[delta] = 0 in every state, with the exact gain and values."""
    chance = c.policy.unsqueeze(-1) * c.mdp.transition
    mean = (chance * _differential_errors(c, gains.gain(c.mdp, c.policy))).sum((1, 2))
    scale = float(gains.differential_value(c.mdp, c.policy).norm())
    return Sides(mean, torch.zeros_like(mean), scale=scale)


def differential_gae(r: Recording) -> Sides:
    """A_t = sum_l lambda^l delta_{t+l}, delta = r - gain + v(s') - v(s), to the recording's end."""
    gain = 0.3
    _, cut, valid = _unbroken(r)
    found = returns.differential_generalized_advantage(r.reward, r.value, cut, valid, gain, r.trace_decay)
    delta = r.reward - gain + r.value[1:] - r.value[:-1]
    powers = r.trace_decay ** torch.arange(len(delta), dtype=F64)
    return Sides(found, torch.stack([(powers[: len(delta) - t] * delta[t:]).sum() for t in range(len(delta))]))


def climbs_the_gain(c: Process, algorithm: str, **options: Any) -> Sides:
    """Theorem 4: with exact differential values, minus the loss's gradient per step is the gradient of the gain."""
    value, gain = gains.differential_value(c.mdp, c.policy), gains.gain(c.mdp, c.policy)
    settings = {"objective": "average", **options}
    found = -expected_gradient(algorithm, c, long_run(c), value, gain, **settings)[0] / PATH
    return Sides(found, gradients.gain_gradient(c.mdp, softmax_policy, c.theta))


def _differential_pull(
    c: Process, v: Tensor, gain: Tensor | float, algorithm: str = "actor_critic", **options: Any
) -> Sides:
    """The pull of a one-step critic at values v with that gain, beside mu (v - backup) and what the pin adds."""
    settings = {"objective": "average", **(options or _ONE_STEP)}
    found = expected_gradient(algorithm, c, long_run(c), v, gain, **settings)[1] / PATH
    mu = gains.stationary_distribution(c.mdp, c.policy)
    p, r = mdps.policy_transition(c.mdp, c.policy), mdps.policy_reward(c.mdp, c.policy)
    # Every path is in the rollout once, so that the mean over its rows is the one over states alike.
    pin = average_reward.VALUE_PIN * v.mean()
    return Sides(found, mu * (v - (r - gains.gain(c.mdp, c.policy) + p @ v) + pin))


def differential_critic(c: Process) -> Sides:
    """The critic is pulled to r - gain + v(s'), less a share of the mean value."""
    return _differential_pull(c, c.baseline, gains.gain(c.mdp, c.policy))


def differential_critic_of_trpo(c: Process) -> Sides:
    """And so is TRPO's, at lambda = 0."""
    return _differential_pull(c, c.baseline, gains.gain(c.mdp, c.policy), "trpo", gae_lambda=0.0)


def differential_critic_without_the_gain(c: Process) -> Sides:
    """Negative control: the gain left out, at the values where the critic should rest."""
    v = gains.differential_value(c.mdp, c.policy)
    return _differential_pull(c, v - v.mean(), 0.0)


# The rows

_REINFORCE = "algorithms.reinforce.REINFORCE.loss"
_ACTOR_CRITIC = "algorithms.actor_critic.ActorCritic.loss"
_PPO = "algorithms.ppo.PPO.loss"
_FULL: dict[str, Any] = {"estimator": "full_return", "baseline": "none"}
_TWO_STEPS: dict[str, Any] = {"advantage": "n_step", "n_steps": 2}
_WEIGHTED: dict[str, Any] = {"state_weighting": "discounted"}


def _reinforce(section: str, claim: str, **options: Any) -> Statement:
    sides = partial(climbs_the_objective, algorithm="reinforce", values=any_values, **options)
    return Statement(section, claim, EQUALITY, episodic, sides, _REINFORCE)


def _actor(claim: str, values: Values, **options: Any) -> Statement:
    sides = partial(climbs_the_objective, algorithm="actor_critic", values=values, **_WEIGHTED, **options)
    return Statement("1.5", claim, EQUALITY, episodic, sides, _ACTOR_CRITIC)


ROWS: tuple[Statement, ...] = (
    Statement(
        "1.2",
        "the full return is R(tau) at every step",
        EQUALITY,
        episodic,
        full_return_is_that_of_the_trajectory,
        "returns.full_return",
    ),
    _reinforce("1.2", "REINFORCE, full return", **_FULL),
    _reinforce("1.2", "REINFORCE, full return, from the episode's first step", **_FULL, **_WEIGHTED),
    Statement(
        "1.2",
        "REINFORCE, full return, gamma = 1",
        EQUALITY,
        undiscounted_episodic,
        partial(climbs_the_objective, algorithm="reinforce", values=any_values, **_FULL),
        _REINFORCE,
    ),
    _reinforce("1.3", "REINFORCE, reward-to-go, gamma^t", baseline="none", **_WEIGHTED),
    _reinforce("1.4", "REINFORCE less the average return, gamma^t", baseline="average_return", **_WEIGHTED),
    _reinforce("1.4", "REINFORCE less v, gamma^t", baseline="value", **_WEIGHTED),
    _actor("actor-critic, GAE, V exact", exact_values),
    _actor("actor-critic, one step, V exact", exact_values, **_ONE_STEP),
    _actor("actor-critic, two steps, V exact", exact_values, **_TWO_STEPS),
    _actor("actor-critic, lambda = 1, any V", any_values, gae_lambda=1.0),
    Statement(
        "1.5",
        "actor-critic, one step, any V",
        CONTROL,
        episodic,
        partial(climbs_the_objective, algorithm="actor_critic", values=any_values, **_WEIGHTED, **_ONE_STEP),
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.5",
        "actor-critic with a discount: its own sum",
        EQUALITY,
        episodic,
        partial(climbs_its_own_sum, algorithm="actor_critic", values=exact_values),
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.5", "actor-critic: Monte-Carlo critic pulled to V^pi", EQUALITY, episodic, monte_carlo_critic, _ACTOR_CRITIC
    ),
    Statement(
        "1.5",
        "actor-critic: bootstrapped critic pulled to the backup",
        EQUALITY,
        episodic,
        bootstrapped_critic,
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.10",
        "n-step advantage by TD errors",
        EQUALITY,
        recording,
        n_step_is_a_sum_of_errors,
        "returns.n_step_advantage",
    ),
    Statement(
        "1.8",
        "differential TD error has mean zero",
        EQUALITY,
        continuing,
        differential_error_has_mean_zero,
        "returns.differential_td_error",
    ),
    Statement(
        "1.8",
        "differential GAE by its sum",
        EQUALITY,
        recording,
        differential_gae,
        "returns.differential_generalized_advantage",
    ),
    Statement(
        "1.8",
        "actor-critic, average reward: grad r(pi)",
        EQUALITY,
        continuing,
        partial(climbs_the_gain, algorithm="actor_critic"),
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.8",
        "actor-critic, average reward, n steps: grad r(pi)",
        EQUALITY,
        continuing,
        partial(climbs_the_gain, algorithm="actor_critic", **_TWO_STEPS),
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.8",
        "PPO, average reward: grad r(pi)",
        EQUALITY,
        continuing,
        partial(climbs_the_gain, algorithm="ppo"),
        _PPO,
    ),
    Statement(
        "1.8",
        "PPO-KL, average reward: grad r(pi)",
        EQUALITY,
        continuing,
        partial(climbs_the_gain, algorithm="ppo_kl"),
        "algorithms.ppo_kl.PPOKL.loss",
    ),
    Statement(
        "1.8",
        "TRPO, average reward: grad r(pi)",
        EQUALITY,
        continuing,
        partial(climbs_the_gain, algorithm="trpo"),
        "algorithms.trpo.TRPO.policy_gradient",
    ),
    Statement(
        "1.8",
        "TRPO, discount kept: grad r(pi)",
        CONTROL,
        continuing,
        partial(climbs_the_gain, algorithm="trpo", objective="discounted", gamma=0.5),
        "algorithms.trpo.TRPO.policy_gradient",
    ),
    Statement(
        "1.8",
        "actor-critic, discount kept: grad r(pi)",
        CONTROL,
        continuing,
        partial(climbs_the_gain, algorithm="actor_critic", objective="discounted", gamma=0.5),
        _ACTOR_CRITIC,
    ),
    Statement(
        "1.8", "critic pulled to r - gain + v(s'), pinned", EQUALITY, continuing, differential_critic, _ACTOR_CRITIC
    ),
    Statement(
        "1.8",
        "TRPO's critic pulled to r - gain + v(s'), pinned",
        EQUALITY,
        continuing,
        differential_critic_of_trpo,
        "algorithms.trpo.TRPO.loss",
    ),
    Statement(
        "1.8",
        "critic, the gain left out",
        CONTROL,
        continuing,
        differential_critic_without_the_gain,
        _ACTOR_CRITIC,
    ),
)
