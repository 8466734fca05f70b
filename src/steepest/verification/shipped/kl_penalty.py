"""The surrogate with a KL penalty, and how its coefficient adapts (notes 1.10)."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest import distributions, losses
from steepest.exact import finite_mdp as mdps
from steepest.verification.random_problems import Process, Recording, continuing, recording, undiscounted_episodic
from steepest.verification.shipped.agents import episodes, expected_gradient
from steepest.verification.statement import F64, Rows, Sides, gradient
from steepest.verification.theorems import trust_region
from steepest.verification.theorems.trust_region import KL_WEIGHT

rows = Rows()

_LOSS = "algorithms.ppo_kl.PPOKL.loss"


def _both(c: Process, theta: Tensor) -> Tensor:
    """The penalised loss over states as visited and actions of the old policy, times 1 / (1 - gamma).

    With KL(old || new), and with KL(new || old).
    """
    weight = mdps.discounted_visits(c.mdp, c.policy).unsqueeze(-1) * c.policy
    old, new = distributions.Categorical(c.policy.log()), distributions.Categorical(torch.log_softmax(theta, -1))
    given = (new.log_probs, old.log_probs, mdps.advantage(c.mdp, c.policy))
    each = [losses.penalised_surrogate_loss(*given, kl.unsqueeze(-1), KL_WEIGHT) for kl in (old.kl(new), new.kl(old))]
    return torch.stack([(weight * loss).sum() for loss in each])


@rows.equality("1.10", "penalised loss at ratio 1: grad V", continuing, tested="losses.penalised_surrogate_loss")
def penalised_at_the_old_policy(c: Process) -> Sides:
    """At the old policy the penalised surrogate has the gradient of the objective, whichever way round its KL is."""
    slopes = [gradient(lambda x, i=i: _both(c, x)[i], c.theta) for i in (0, 1)]
    return Sides(-torch.stack(slopes), torch.stack([c.gradient, c.gradient]))


@rows.equality("1.10", "penalised loss = -(L - beta KL)", continuing, tested="losses.penalised_surrogate_loss")
@rows.control(
    "1.10", "penalised loss, KLs exchanged", continuing, tested="losses.penalised_surrogate_loss", exchanged=True
)
def penalised_at_a_distance(c: Process, exchanged: bool = False) -> Sides:
    """E[ratio A - beta KL], KL(old || new) and KL(new || old), away from the old policy.

    Negative control: each direction for the other.
    """
    visits, old, new = mdps.discounted_visits(c.mdp, c.policy), c.policy, c.other
    costs = torch.stack([visits @ (p * (p / q).log()).sum(-1) for p, q in ((old, new), (new, old))])
    right = trust_region.surrogate(c, new) - KL_WEIGHT * costs
    return Sides(-_both(c, c.other_theta), right.flip(0) if exchanged else right)


TARGET = 0.7
"""Nats, in the middle of what ``recording`` draws."""


def _adapted(r: Recording) -> Tensor:
    """The coefficients after each of ten updates, from 1; the rewards' sizes serve as distances."""
    kl_coef, rows = torch.tensor(1.0, dtype=F64), list[Tensor]()
    for kl in r.reward.abs():
        kl_coef = losses.adapt_kl_coef(kl_coef, kl, TARGET)
        rows.append(kl_coef)
    return torch.stack(rows)


@rows.equality("1.10", "beta halves, doubles or stays", recording, tested="losses.adapt_kl_coef")
def adaptation(r: Recording) -> Sides:
    """beta doubles after a KL above 1.5 d_targ and halves after one below d_targ / 1.5."""
    kl = r.reward.abs()
    votes = (kl > 1.5 * TARGET).to(F64) - (1.5 * kl < TARGET).to(F64)
    return Sides(_adapted(r), 2.0 ** votes.cumsum(0))


@rows.control("1.10", "beta without a margin", recording, tested="losses.adapt_kl_coef")
def adaptation_without_a_margin(r: Recording) -> Sides:
    """Negative control: it doubles or halves after every update, whichever side of the target it ended on."""
    return Sides(2.0 ** (r.reward.abs() - TARGET).sign().cumsum(0), _adapted(r))


@rows.equality("1.10", "PPO-KL, gamma = 1, V exact, lambda 0.7", undiscounted_episodic, tested=_LOSS)
def agent_with_exact_values(c: Process) -> Sides:
    """The penalised algorithm's first gradient at gamma = 1, exact values, lambda = 0.7."""
    value = mdps.state_value(c.mdp, c.policy)
    return Sides(-expected_gradient("ppo_kl", c, episodes(c), value, gae_lambda=0.7)[0], c.gradient)
