"""REINFORCE, actor-critic, PPO and the average reward (notes 1.2 to 1.5, 1.8, 1.10): the losses of the agents.

The rollouts are those of ``agents``.
"""

from __future__ import annotations

from typing import Any

import torch

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
from steepest.verification.shipped.policy_gradient import bellman_pull, undiscounted_weighting, value_pull
from steepest.verification.statement import F64, Rows, Sides, vanishing

rows = Rows()

# 1.2 to 1.5, 1.10: episodes

_PPO: dict[str, Any] = {"tested": "algorithms.ppo.PPO.loss", "algorithm": "ppo"}
_REINFORCE: dict[str, Any] = {"tested": "algorithms.reinforce.REINFORCE.loss", "algorithm": "reinforce"}
_ACTOR_CRITIC = "algorithms.actor_critic.ActorCritic.loss"
_CRITIC: dict[str, Any] = {"tested": _ACTOR_CRITIC, "algorithm": "actor_critic"}
_WEIGHTED: dict[str, Any] = {"state_weighting": "discounted"}
_FULL: dict[str, Any] = {**_REINFORCE, "estimator": "full_return", "baseline": "none"}
_TO_GO: dict[str, Any] = {**_REINFORCE, **_WEIGHTED}
_ANY: dict[str, Any] = {**_CRITIC, **_WEIGHTED}
_EXACT: dict[str, Any] = {**_ANY, "exact": True}
_ONE_STEP: dict[str, Any] = {"advantage": "n_step", "n_steps": 1}
_TWO_STEPS: dict[str, Any] = {"advantage": "n_step", "n_steps": 2}


@rows.equality("1.2", "the full return is R(tau) at every step", episodic, tested="returns.full_return")
def full_return_is_that_of_the_trajectory(c: Process) -> Sides:
    """R(tau), at every decided step of every trajectory."""
    paths = c.paths
    nothing = torch.zeros(paths.state.shape, dtype=F64)
    found = returns.full_return(paths.reward, nothing, *paths.flags, c.mdp.gamma)
    return Sides(found * paths.valid, c.returns * paths.valid)


def monte_carlo_critic(c: Process, algorithm: str, **options: Any) -> Sides:
    """A critic of whole returns is pulled to V^pi, as hard as states are visited, whatever the advantage."""
    return Sides(expected_gradient(algorithm, c, episodes(c), c.baseline, **options)[1], value_pull(c))


rows.equality("1.4", "REINFORCE's baseline is pulled to V^pi", episodic, **_REINFORCE)(monte_carlo_critic)


@rows.equality("1.10", "PPO, gamma = 1, V exact, lambda 0.7", undiscounted_episodic, **_PPO, exact=True)
@rows.equality("1.10", "PPO, gamma = 1, lambda = 1, any V", undiscounted_episodic, **_PPO, gae_lambda=1.0)
@rows.control("1.10", "PPO, gamma = 1, lambda 0.7, any V", undiscounted_episodic, **_PPO)
@rows.equality("1.10", "PPO with a discount: its own sum", episodic, **_PPO, exact=True, own_sum=True)
@rows.equality("1.3", "REINFORCE at gamma = 1", undiscounted_episodic, **_REINFORCE, baseline="none")
@rows.equality("1.3", "REINFORCE with a discount: its own sum", episodic, **_REINFORCE, baseline="none", own_sum=True)
@rows.control("1.3", "REINFORCE with a discount: the gradient", episodic, **_REINFORCE, baseline="none")
@rows.equality("1.2", "REINFORCE, full return", episodic, **_FULL)
@rows.equality("1.2", "REINFORCE, full return, from the episode's first step", episodic, **_FULL, **_WEIGHTED)
@rows.equality("1.2", "REINFORCE, full return, gamma = 1", undiscounted_episodic, **_FULL)
@rows.equality("1.3", "REINFORCE, reward-to-go, gamma^t", episodic, **_TO_GO, baseline="none")
@rows.equality("1.4", "REINFORCE less the average return, gamma^t", episodic, **_TO_GO, baseline="average_return")
@rows.equality("1.4", "REINFORCE less v, gamma^t", episodic, **_TO_GO, baseline="value")
@rows.equality("1.5", "actor-critic, GAE, V exact", episodic, **_EXACT)
@rows.equality("1.5", "actor-critic, one step, V exact", episodic, **_EXACT, **_ONE_STEP)
@rows.equality("1.5", "actor-critic, two steps, V exact", episodic, **_EXACT, **_TWO_STEPS)
@rows.equality("1.5", "actor-critic, lambda = 1, any V", episodic, **_ANY, gae_lambda=1.0)
@rows.control("1.5", "actor-critic, one step, any V", episodic, **_ANY, **_ONE_STEP)
@rows.equality("1.5", "actor-critic with a discount: its own sum", episodic, **_CRITIC, exact=True, own_sum=True)
def climbs(c: Process, algorithm: str, exact: bool = False, own_sum: bool = False, **options: Any) -> Sides:
    """With gamma^t on the states (or gamma = 1), minus the loss's gradient is the gradient of the objective.

    Without gamma^t it is the theorem's sum with states weighted by plain visits.
    """
    value = mdps.state_value(c.mdp, c.policy) if exact else c.baseline
    found = -expected_gradient(algorithm, c, episodes(c), value, **options)[0]
    return Sides(found, undiscounted_weighting(c) if own_sum else c.gradient)


rows.equality("1.10", "PPO's critic is pulled to V^pi", episodic, **_PPO, gae_lambda=1.0)(monte_carlo_critic)
rows.equality("1.5", "actor-critic: Monte-Carlo critic pulled to V^pi", episodic, **_CRITIC, critic="monte_carlo")(
    monte_carlo_critic
)


@rows.equality("1.5", "actor-critic: bootstrapped critic pulled to the backup", episodic, tested=_ACTOR_CRITIC)
def bootstrapped_critic(c: Process) -> Sides:
    """With one step, the bootstrapped critic is pulled to the Bellman backup of its values."""
    pull = expected_gradient("actor_critic", c, episodes(c), c.baseline, **_ONE_STEP)[1]
    return Sides(pull, bellman_pull(c))


@rows.equality("1.10", "n-step advantage by TD errors", recording, tested="returns.n_step_advantage")
def n_step_is_a_sum_of_errors(r: Recording) -> Sides:
    """A^(3)_t = delta_t + gamma delta_{t+1} + gamma^2 delta_{t+2}, fewer at the end."""
    found = returns.n_step_advantage(r.reward, r.value, *r.flags, r.gamma, 3)
    padded = torch.cat([r.delta, torch.zeros(2, dtype=F64)])
    return Sides(found, padded[:-2] + r.gamma * padded[1:-1] + r.gamma**2 * padded[2:])


# 1.8: the average reward

_TRPO = "algorithms.trpo.TRPO.policy_gradient"
_TRPO_CRITIC: dict[str, Any] = {"tested": "algorithms.trpo.TRPO.loss", "algorithm": "trpo"}
_PPO_KL = "algorithms.ppo_kl.PPOKL.loss"
_DISCOUNTED: dict[str, Any] = {"objective": "discounted", "gamma": 0.5}


@rows.equality("1.8", "differential TD error has mean zero", continuing, tested="returns.differential_td_error")
def differential_error_has_mean_zero(c: Process) -> Sides:
    """E_{a~pi, s'}[delta] = 0 in every state, with the exact gain and values."""
    chance = c.policy.unsqueeze(-1) * c.mdp.transition
    v, shape = gains.differential_value(c.mdp, c.policy), c.mdp.transition.shape
    here, there = v.view(-1, 1, 1).expand(shape), v.expand(shape)
    reward, gain = c.mdp.reward.unsqueeze(-1).expand(shape), gains.gain(c.mdp, c.policy)
    return vanishing((chance * returns.differential_td_error(reward, here, there, gain)).sum((1, 2)), v)


@rows.equality("1.8", "differential GAE by its sum", recording, tested="returns.differential_generalized_advantage")
def differential_gae(r: Recording) -> Sides:
    """A_t = sum_l lambda^l delta_{t+l}, delta = r - gain + v(s') - v(s), to the recording's end."""
    gain = 0.3
    found = returns.differential_generalized_advantage(r.reward, r.value, *r.flags[1:], gain, r.trace_decay)
    delta = r.reward - gain + r.value[1:] - r.value[:-1]
    powers = r.trace_decay ** torch.arange(len(delta), dtype=F64)
    return Sides(found, torch.stack([(powers[: len(delta) - t] * delta[t:]).sum() for t in range(len(delta))]))


@rows.equality("1.8", "actor-critic, average reward: grad r(pi)", continuing, **_CRITIC)
@rows.equality("1.8", "actor-critic, average reward, n steps: grad r(pi)", continuing, **_CRITIC, **_TWO_STEPS)
@rows.equality("1.8", "PPO, average reward: grad r(pi)", continuing, **_PPO)
@rows.equality("1.8", "PPO-KL, average reward: grad r(pi)", continuing, tested=_PPO_KL, algorithm="ppo_kl")
@rows.equality("1.8", "TRPO, average reward: grad r(pi)", continuing, tested=_TRPO, algorithm="trpo")
@rows.control("1.8", "TRPO, discount kept: grad r(pi)", continuing, tested=_TRPO, algorithm="trpo", **_DISCOUNTED)
@rows.control("1.8", "actor-critic, discount kept: grad r(pi)", continuing, **_CRITIC, **_DISCOUNTED)
def climbs_the_gain(c: Process, algorithm: str, **options: Any) -> Sides:
    """Theorem 4: with exact differential values, minus the loss's gradient per step is the gradient of the gain."""
    value, gain = gains.differential_value(c.mdp, c.policy), gains.gain(c.mdp, c.policy)
    settings = {"objective": "average", **options}
    found = -expected_gradient(algorithm, c, long_run(c), value, gain, **settings)[0] / PATH
    return Sides(found, gradients.gain_gradient(c.mdp, softmax_policy, c.theta))


@rows.equality("1.8", "critic pulled to r - gain + v(s'), pinned", continuing, tested=_ACTOR_CRITIC)
@rows.equality("1.8", "TRPO's critic pulled to r - gain + v(s'), pinned", continuing, **_TRPO_CRITIC, gae_lambda=0.0)
@rows.control("1.8", "critic, the gain left out", continuing, tested=_ACTOR_CRITIC, left_out=True)
def differential_critic(c: Process, algorithm: str = "actor_critic", left_out: bool = False, **options: Any) -> Sides:
    """The critic is pulled to r - gain + v(s'), less a share of the mean value; TRPO's, at lambda = 0, too.

    Negative control: the gain left out, at the values where the critic should rest.
    """
    exact = gains.differential_value(c.mdp, c.policy)
    gain = gains.gain(c.mdp, c.policy)
    v, known = (exact - exact.mean(), 0.0) if left_out else (c.baseline, gain)
    settings = {"objective": "average", **(options or _ONE_STEP)}
    found = expected_gradient(algorithm, c, long_run(c), v, known, **settings)[1] / PATH
    mu = gains.stationary_distribution(c.mdp, c.policy)
    p, r = mdps.policy_transition(c.mdp, c.policy), mdps.policy_reward(c.mdp, c.policy)
    # Every path is in the rollout once, so that the mean over its rows is the one over states alike.
    pin = average_reward.VALUE_PIN * v.mean()
    return Sides(found, mu * (v - (r - gain + p @ v) + pin))
