"""V-trace: the correction for data of another policy (beside the notes; Espeholt et al. 2018)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import returns
from steepest.exact import finite_mdp as mdps
from steepest.verification.random_problems import HORIZON, Process, Recording, episodic, recording
from steepest.verification.shipped.distributions import normal_draws
from steepest.verification.statement import F64, Rows, Sides
from steepest.verification.theorems import trust_region

rows = Rows()

TRACE_DECAY = 0.7
RHO_BAR, C_BAR = 1.2, 0.8
_TESTED = "returns.vtrace"


class OffPolicy(NamedTuple):
    """A recording of another policy's steps, and how much likelier the policy at hand finds each of them."""

    recording: Recording
    log_ratio: Tensor  # (T,) nats


@lru_cache(maxsize=256)
def off_policy(seed: int) -> OffPolicy:
    """Ten steps; ratios on both sides of the bars."""
    r = recording(seed)
    return OffPolicy(r, normal_draws(seed, 27)(len(r.reward)))


@rows.equality("1.10", "V-trace on-policy: lambda-return and GAE", recording, tested=_TESTED)
def on_policy(r: Recording) -> Sides:
    """With ratios of 1 the target is the lambda-return, and both q - V and the advantage are GAE."""
    found = returns.vtrace(torch.zeros_like(r.reward), r.reward, r.value, *r.flags, r.gamma, r.trace_decay)
    errors, value = trust_region.summed_errors(r), r.value[:-1]
    left = torch.stack([found.target - value, found.q_value - value, found.advantage])
    return Sides(left, errors.expand_as(left))


@rows.equality("1.10", "V-trace = sum of clipped TD errors", off_policy, tested=_TESTED)
@rows.control("1.10", "V-trace, ratios a step late", off_policy, tested=_TESTED, late=1)
def defining_sum(o: OffPolicy, late: int = 0) -> Sides:
    """v_t = V(s_t) + sum_k gamma^k c_t ... c_{t+k-1} rho_{t+k} delta_{t+k}.

    Negative control: every step weighted by the ratio of the step after it.
    """
    r, ratio, log_ratio = o.recording, o.log_ratio.exp(), o.log_ratio.roll(-late)
    weighted = torch.minimum(ratio, torch.tensor(RHO_BAR, dtype=F64)) * r.delta
    shrink = r.gamma * r.trace_decay * torch.minimum(ratio, torch.tensor(C_BAR, dtype=F64))
    steps = len(r.reward)
    rows = [sum(shrink[t:k].prod() * weighted[k] for k in range(t, steps)) + r.value[t] for t in range(steps)]
    found = returns.vtrace(log_ratio, r.reward, r.value, *r.flags, r.gamma, r.trace_decay, RHO_BAR, C_BAR)
    return Sides(found.target, torch.stack([torch.as_tensor(x) for x in rows]))


def _expected(c: Process, value: Tensor, rho_bar: float) -> tuple[Tensor, Tensor]:
    """E_mu[v_t | s_t] (S,) and E_mu[q_t | s_t, a_t] (S, A) over the trajectories of mu = pi'; 0 in the absorbing state.

    What the absorbing state is thought to be worth must not matter, so it is thought to be worth something.
    """
    paths = c.other_paths
    value = torch.where(c.mdp.absorbing, c.baseline, value)
    log_ratio = (c.policy.log() - c.other.log())[paths.state[:-1], paths.action]
    found = returns.vtrace(
        log_ratio, paths.reward, value[paths.state], *paths.flags, c.mdp.gamma, TRACE_DECAY, rho_bar, C_BAR
    )
    pair = (paths.state[:-1] * c.mdp.num_actions + paths.action).flatten()
    weight = (paths.valid * paths.probability.expand(HORIZON, -1)).flatten()
    nothing = torch.zeros(c.mdp.num_states * c.mdp.num_actions, dtype=F64)
    shape = (c.mdp.num_states, c.mdp.num_actions)
    seen, target, q = (
        nothing.index_add(0, pair, torch.where(weight > 0.0, weight * x.flatten(), 0.0)).view(shape)
        for x in (torch.ones_like(paths.reward), found.target, found.q_value)
    )
    return target.sum(-1) / seen.sum(-1).clamp(min=1e-300), q / seen.clamp(min=1e-300)


def _clipped_policy(c: Process, rho_bar: float) -> Tensor:
    """(S, A) pi_rho ~ min(rho_bar mu, pi)."""
    lower = torch.minimum(rho_bar * c.other, c.policy)
    return lower / lower.sum(-1, keepdim=True)


@rows.equality("1.10", "V-trace's fixed point: V of pi_rho", episodic, tested=_TESTED)
def fixed_point(c: Process, of_pi: bool = False, rho_bar: float = RHO_BAR) -> Sides:
    """E_mu[v_t | s] = V(s) for the value of pi_rho(a|s) ~ min(rho_bar mu(a|s), pi(a|s)).

    Without a bound on rho the fixed point is V^pi, whatever bounds c. Negative controls: with rho clipped it is not
    V^pi, and with rho not clipped it is not the value of pi_rho.
    """
    value = mdps.state_value(c.mdp, c.policy if of_pi else _clipped_policy(c, RHO_BAR))
    return Sides(_expected(c, value, rho_bar)[0], value)


@rows.equality("1.10", "V-trace's q at its fixed point: Q of pi_rho", episodic, tested=_TESTED)
def fixed_point_of_q(c: Process) -> Sides:
    """There E_mu[q_t | s, a] is the action value of pi_rho."""
    policy = _clipped_policy(c, RHO_BAR)
    return Sides(_expected(c, mdps.state_value(c.mdp, policy), RHO_BAR)[1], mdps.action_value(c.mdp, policy))


rows.equality(
    "1.10", "V-trace's fixed point, rho unclipped: V^pi", episodic, tested=_TESTED, of_pi=True, rho_bar=math.inf
)(fixed_point)


@rows.inequality("1.10", "V-trace contracts to V of pi_rho", episodic, tested=_TESTED)
def contraction(c: Process) -> Sides:
    """max |R V - V^pi_rho| <= (1 - (1 - gamma) min_s E_mu[rho | s]) max |V - V^pi_rho|, with rho and c clipped at 1."""
    exact = mdps.state_value(c.mdp, _clipped_policy(c, 1.0))
    value = torch.where(c.mdp.absorbing, exact, c.baseline)
    rho = torch.minimum(c.other, c.policy).sum(-1).min()
    factor = 1.0 - (1.0 - c.mdp.gamma) * rho
    after = (_expected(c, value, 1.0)[0] - exact).abs().max()
    return Sides(after, factor * (value - exact).abs().max())


# The later of two goes before the earlier, as decorators do.
rows.control("1.10", "V of pi_rho with rho unclipped", episodic, tested=_TESTED, rho_bar=math.inf)(fixed_point)
rows.control("1.10", "V-trace's fixed point: V^pi", episodic, tested=_TESTED, of_pi=True)(fixed_point)
