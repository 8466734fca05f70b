"""The clipped surrogate and generalised advantages (notes 1.10)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import losses, returns
from steepest.exact import finite_mdp as mdps
from steepest.verification.random_problems import Process, Recording, continuing, recording
from steepest.verification.statement import F64, Rows, Sides, gradient
from steepest.verification.theorems import trust_region

rows = Rows()

# 1.10: trust regions and advantages


def _expected_clipped_loss(c: Process, theta: Tensor, epsilon: float) -> Tensor:
    """The clipped loss over states as visited and actions of the old policy, times 1 / (1 - gamma)."""
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    log_prob = torch.log_softmax(theta, -1)
    loss = losses.clipped_surrogate_loss(log_prob, c.policy.log(), mdps.advantage(c.mdp, c.policy), epsilon)
    return (weight * loss).sum()


CLIP = 0.2


@rows.equality("1.10", "clipped surrogate at ratio 1: grad V", continuing, tested="losses.clipped_surrogate_loss")
def clipped_at_the_old_policy(c: Process) -> Sides:
    """At ratio 1 the clipped surrogate has the gradient of the objective."""
    return Sides(-gradient(lambda theta: _expected_clipped_loss(c, theta, CLIP), c.theta), c.gradient)


@rows.equality("1.10", "clipped surrogate by cases", continuing, tested="losses.clipped_surrogate_loss")
def clipped_at_a_distance(c: Process) -> Sides:
    """E[min(r A, clip(r, 1 - eps, 1 + eps) A)], by cases: the ratio is capped above where A > 0 and below elsewhere."""
    a = mdps.advantage(c.mdp, c.policy)
    ratio = c.other / c.policy
    by_cases = torch.where(a > 0.0, ratio.clamp(max=1.0 + CLIP), ratio.clamp(min=1.0 - CLIP)) * a
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    return Sides(-_expected_clipped_loss(c, c.other_theta, CLIP), (weight * by_cases).sum())


@rows.inequality("1.10", "clipped surrogate <= surrogate", continuing, tested="losses.clipped_surrogate_loss")
@rows.control("1.10", "clipped surrogate = surrogate", continuing, tested="losses.clipped_surrogate_loss")
def clipped_and_not(c: Process) -> Sides:
    """The clipped surrogate promises no more than the surrogate, and away from ratio 1 less (the negative control)."""
    return Sides(-_expected_clipped_loss(c, c.other_theta, CLIP), trust_region.surrogate(c, c.other))


@rows.equality("1.10", "E_old[k3] = KL(old||new)", continuing, tested="losses.kl_estimate")
@rows.control("1.10", "E_old[k3] = KL(new||old)", continuing, tested="losses.kl_estimate", wrong_way=True)
def kl_estimate(c: Process, wrong_way: bool = False) -> Sides:
    """E_{a~old}[k3] = KL(old || new). Negative control: it estimates KL(new || old)."""
    found = (c.policy * losses.kl_estimate(c.other.log(), c.policy.log())).sum(-1)
    p, q = (c.other, c.policy) if wrong_way else (c.policy, c.other)
    return Sides(found, (p * (p.log() - q.log())).sum(-1))


def _gae(r: Recording, decay: float) -> Tensor:
    return returns.generalized_advantage(r.reward, r.value, *r.flags, r.gamma, decay)


@rows.equality("1.10", "TD errors telescope, every k", recording, tested="returns.td_error")
def td_errors_telescope(r: Recording) -> Sides:
    """sum_{l<k} gamma^l delta_{t+l} = A^(k), for every k."""
    delta = returns.td_error(r.reward, r.value[:-1], r.value[1:], r.flags[0], r.gamma)
    steps = len(r.reward)
    right = torch.stack([trust_region.k_step_advantage(r, 0, k) for k in range(1, steps + 1)])
    return Sides((r.gamma ** torch.arange(steps, dtype=F64) * delta).cumsum(0), right)


@rows.equality("1.10", "GAE = mixture of A^(k)", recording, tested="returns.generalized_advantage")
def gae_is_a_mixture(r: Recording, last_takes_the_rest: bool = True) -> Sides:
    """GAE = (1 - lambda) sum_{k<n} lambda^(k-1) A^(k) + lambda^(n-1) A^(n).

    Negative control: a finite mixture whose last weight is (1 - lambda) lambda^(n-1).
    """
    return Sides(_gae(r, r.trace_decay), trust_region.weighted_advantages(r, last_takes_the_rest=last_takes_the_rest))


@rows.equality("1.10", "GAE = sum of TD errors", recording, tested="returns.generalized_advantage")
def gae_is_a_sum(r: Recording) -> Sides:
    """GAE = sum_{l=0}^{T-t-1} (gamma lambda)^l delta_{t+l}."""
    return Sides(_gae(r, r.trace_decay), trust_region.summed_errors(r))


@rows.equality("1.10", "GAE, lambda = 0: TD error", recording, tested="returns.generalized_advantage")
def gae_at_lambda_0(r: Recording) -> Sides:
    """lambda = 0 is the TD error."""
    return Sides(_gae(r, 0.0), r.delta)


@rows.equality("1.10", "GAE, lambda = 1: Monte Carlo", recording, tested="returns.generalized_advantage")
def gae_at_lambda_1(r: Recording) -> Sides:
    """lambda = 1 is the reward-to-go, bootstrapped at the end, less the value."""
    steps = len(r.reward)
    return Sides(_gae(r, 1.0), torch.stack([trust_region.k_step_advantage(r, t, steps - t) for t in range(steps)]))


rows.control(
    "1.10", "GAE, equal last weight", recording, tested="returns.generalized_advantage", last_takes_the_rest=False
)(gae_is_a_mixture)


class Episodes(NamedTuple):
    """A recording over several episodes: one terminates, one is truncated, the last is cut by the recording's end."""

    recording: Recording
    terminated: Tensor
    truncated: Tensor


@lru_cache(maxsize=256)
def episodes(seed: int) -> Episodes:
    """Ten steps; the first episode terminates after three, the second is truncated after four more."""
    r = recording(seed)
    terminated, truncated = (torch.arange(len(r.reward)) == t for t in (2, 6))
    return Episodes(r, terminated, truncated)


@rows.equality("1.10", "GAE within episodes", episodes, tested="returns.generalized_advantage")
@rows.control("1.10", "GAE across episodes", episodes, tested="returns.generalized_advantage", ends="none")
@rows.control("1.10", "truncation as termination", episodes, tested="returns.generalized_advantage", ends="all")
def gae_within_episodes(e: Episodes, ends: str = "as they are") -> Sides:
    """Never across an episode's end; V = 0 after termination, the true next value at truncation.

    Negative controls: the recursion taken across the ends of episodes; a truncated episode treated as if it had ended.
    """
    never, r = torch.zeros_like(e.terminated), e.recording
    flags = {"none": (never, never), "all": (e.terminated | e.truncated, never)}.get(ends, (e.terminated, e.truncated))
    found = returns.generalized_advantage(r.reward, r.value, *flags, ~never, r.gamma, r.trace_decay)
    # Each episode as a recording of its own; nothing is worth anything after termination.
    values = (torch.cat([r.value[:3], torch.zeros(1, dtype=F64)]), r.value[3:8], r.value[7:])
    parts = zip(r.reward.split((3, 4, 3)), values, strict=True)
    right = [trust_region.summed_errors(Recording(x, v, r.gamma, r.trace_decay)) for x, v in parts]
    return Sides(found, torch.cat(right))


@rows.equality("1.10", "lambda-return by its recursion", recording, tested="returns.lambda_return")
def lambda_return(r: Recording) -> Sides:
    """G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}], G_T = V(s_T), by the recursion itself."""
    found = returns.lambda_return(r.reward, r.value, *r.flags, r.gamma, r.trace_decay)
    following, rows = r.value[-1], list[Tensor]()
    for t in reversed(range(len(r.reward))):
        following = r.reward[t] + r.gamma * ((1.0 - r.trace_decay) * r.value[t + 1] + r.trace_decay * following)
        rows.append(following)
    return Sides(found, torch.stack(rows[::-1]))
