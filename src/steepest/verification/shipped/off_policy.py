"""Losses and targets of off-policy actor-critics at fixed points that are known (notes 1.7 and 1.11)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from steepest import distributions, losses
from steepest.exact import lqr, lqr_gradients
from steepest.verification.random_problems import SOFT_TEMPERATURE, Control, Process, control, episodic
from steepest.verification.shipped.distributions import gauss_hermite, normal_draws
from steepest.verification.shipped.soft import SoftActor, sampled_gradient, soft_actor, soft_actor_formula
from steepest.verification.statement import F64, Rows, Sides, gradient

rows = Rows()

# 1.7: gradients as the notes print them


class Regression(NamedTuple):
    """A linear function of features, and everything that its target is made of, for a batch of transitions."""

    weights: Tensor  # (5,)
    feature: Tensor  # (32, 5)
    reward: Tensor
    next_value: Tensor
    q_value: Tensor
    log_prob: Tensor
    terminated: Tensor
    gamma: float
    temperature: float

    @property
    def value(self) -> Tensor:
        return self.feature @ self.weights


@lru_cache(maxsize=256)
def regression(seed: int) -> Regression:
    """Random numbers throughout, a quarter of the transitions terminal."""
    draw = normal_draws(seed, 41)
    return Regression(draw(5), draw(32, 5), draw(32), draw(32), draw(32), draw(32), torch.arange(32) % 4 == 0, 0.9, 0.3)


@rows.equality("1.7", "V-network's loss: its gradient", regression, tested="losses.soft_value_target")
def v_gradient(c: Regression) -> Sides:
    """grad V(s) (V(s) - Q(s, a) + temperature log pi(a|s)), summed over the batch."""
    target = losses.soft_value_target(c.q_value, c.log_prob, c.temperature)
    found = gradient(lambda weights: losses.value_loss(c.feature @ weights, target).sum(), c.weights)
    return Sides(found, (c.value - c.q_value + c.temperature * c.log_prob) @ c.feature)


@rows.equality("1.7", "Q-network's loss: its gradient", regression, tested="losses.soft_q_target")
@rows.control("1.7", "Q-network's loss past the end", regression, tested="losses.soft_q_target", past_the_end=True)
def q_gradient(c: Regression, past_the_end: bool = False) -> Sides:
    """grad Q(s, a) (Q(s, a) - r - gamma (1 - terminated) V(s')), summed over the batch.

    Negative control: the target as printed, which goes on after termination.
    """
    ends = torch.zeros_like(c.terminated) if past_the_end else c.terminated
    target = losses.soft_q_target(c.reward, c.next_value, ends, c.gamma)
    found = gradient(lambda weights: losses.value_loss(c.feature @ weights, target).sum(), c.weights)
    following = torch.where(c.terminated, 0.0, c.gamma * c.next_value)
    return Sides(found, (c.value - c.reward - following) @ c.feature)


@rows.equality("1.7", "policy's loss: its gradient", soft_actor, tested="losses.soft_policy_loss")
def policy_gradient(c: SoftActor) -> Sides:
    """temperature grad log pi + (temperature grad_a log pi - grad_a Q) grad f, in expectation over the noise."""
    found = sampled_gradient(c, lambda log_prob, q: losses.soft_policy_loss(log_prob, q, c.temperature))
    return Sides(found, soft_actor_formula(c, printed=False))


@rows.equality("1.7", "temperature's loss: its gradient", regression, tested="losses.temperature_loss")
def temperature_gradient(c: Regression) -> Sides:
    """d/d log(temperature) of the mean loss is entropy less its target."""
    found = gradient(lambda x: losses.temperature_loss(x, -c.log_prob, -0.5).mean(), torch.zeros((), dtype=F64))
    return Sides(found, 0.5 - c.log_prob.mean())


# 1.7: fixed points


@rows.equality("1.7", "target at the soft optimum, finite", episodic, tested="losses.expected_soft_value")
def finite_fixed_point(c: Process) -> Sides:
    """E_{s'} of the target, with the soft value of Q* and pi*, is Q*."""
    best, mdp = c.soft, c.mdp
    value = losses.expected_soft_value(best.action_value, best.policy.log(), SOFT_TEMPERATURE)
    reward = mdp.reward.unsqueeze(-1).expand_as(mdp.transition)
    target = losses.soft_q_target(reward, value.expand_as(reward), mdp.absorbing.expand(reward.shape), mdp.gamma)
    found = (mdp.transition * target).sum(-1)
    decided = ~mdp.absorbing
    return Sides(found[decided], best.action_value[decided])


class SoftControl(NamedTuple):
    """An LQR, its best policy with a diagonal covariance, states, and noise with weights for expectations."""

    problem: lqr.LQR
    feedback: Tensor
    log_std: Tensor
    temperature: float
    state: Tensor
    action: Tensor

    @property
    def q(self) -> lqr.Quadratic:
        """The soft action value of the policy."""
        return lqr.q_function(
            self.problem, self.feedback, torch.diag(torch.exp(2.0 * self.log_std)), temperature=self.temperature
        )


@lru_cache(maxsize=256)
def soft_control(seed: int) -> SoftControl:
    """Three state and two action components."""
    draw = normal_draws(seed, 42)
    temperature = 0.2 + float(draw().abs())
    problem = control(seed).problem
    feedback, covariance = lqr.soft_optimal_policy(problem, temperature, diagonal=True)
    return SoftControl(problem, feedback, 0.5 * covariance.diagonal().log(), temperature, draw(8, 3), draw(8, 2))


@rows.equality("1.7", "target at Q^pi, LQR", soft_control, tested="losses.soft_q_target")
def lqr_fixed_point(c: SoftControl) -> Sides:
    """E_{s', a'} of the target, with samples of the soft value of Q^pi, is Q^pi."""
    noise, weight = gauss_hermite(2, 5)
    next_state = _following(c.problem, c.state, c.action, noise[:, :3])
    policy = distributions.DiagonalGaussian(next_state @ c.feedback.mT, c.log_std.expand(2))
    next_action = policy.sample(noise[:, 3:].unsqueeze(1).expand(-1, len(c.state), -1))
    value = losses.soft_value_target(c.q(next_state, next_action), policy.log_prob(next_action), c.temperature)
    target = losses.soft_q_target(_reward(c.problem, c.state, c.action), value, _never(value), c.problem.discount)
    return Sides(weight @ target, c.q(c.state, c.action))


@rows.equality("1.7", "policy's loss at the soft optimum, LQR", soft_control, tested="losses.soft_policy_loss")
@rows.control(
    "1.7", "policy's loss beside the soft optimum, LQR", soft_control, tested="losses.soft_policy_loss", less=0.1
)
def lqr_policy_is_least(c: SoftControl, less: float = 0.0) -> Sides:
    """The mean policy loss at Q^pi has no slope in the feedback or in the log standard deviation of the best policy.

    Negative control: a tenth less spread.
    """
    noise, weight = gauss_hermite(2, 2)
    noise = noise.unsqueeze(1).expand(-1, len(c.state), -1)

    def loss(x: Tensor) -> Tensor:
        policy = distributions.DiagonalGaussian((c.state @ x[:, :3].mT).expand_as(noise), x[:, 3].expand(2))
        action = policy.sample(noise)
        return (
            weight
            @ losses.soft_policy_loss(policy.log_prob(action), c.q(c.state.expand(4, -1, -1), action), c.temperature)
        ).mean()

    slope = gradient(loss, torch.cat([c.feedback, (c.log_std - less).unsqueeze(-1)], -1))
    return Sides(slope, torch.zeros_like(slope), scale=1.0)


# 1.11


@rows.equality(
    "1.11", "policy's loss: the deterministic policy gradient, LQR", control, tested="losses.deterministic_policy_loss"
)
def deterministic_gradient(c: Control) -> Sides:
    """The loss's gradient at Q^mu over states with the second moment of p^mu is minus the gradient of the objective."""
    # Columns x of a Cholesky factor have sum x x' = M, which is all that a quadratic Q sees of the states.
    states = torch.linalg.cholesky(lqr.second_moment(c.problem, c.feedback)).mT
    q = lqr.q_function(c.problem, c.feedback)

    def loss(feedback: Tensor) -> Tensor:
        return losses.deterministic_policy_loss(q(states, states @ feedback.mT)).sum()

    return Sides(gradient(loss, c.feedback), -lqr_gradients.deterministic_policy_gradient(c.problem, c.feedback))


@rows.equality("1.11", "target at Q^mu, LQR", control, tested="losses.q_learning_target")
@rows.control(
    "1.11", "target with the behaviour's next action, LQR", control, tested="losses.q_learning_target", behaviours=True
)
def q_learning_fixed_point(c: Control, behaviours: bool = False) -> Sides:
    """E_{s'} of the target with the policy's own next action is Q^mu, whatever the action was.

    Negative control: the next action of another policy.
    """
    draw = normal_draws(0, 43)
    state, action = draw(8, 3), draw(8, 2)
    noise, weight = gauss_hermite(2, 3)
    q = lqr.q_function(c.problem, c.feedback)
    next_state = _following(c.problem, state, action, noise)
    value = q(next_state, next_state @ (c.other if behaviours else c.feedback).mT)
    target = losses.q_learning_target(_reward(c.problem, state, action), value, _never(value), c.problem.discount)
    return Sides(weight @ target, q(state, action))


def _following(problem: lqr.LQR, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """(n, B, S) next states for each noise vector (n, S)."""
    # W is positive semidefinite: a square root by eigenvalues, not by Cholesky.
    values, vectors = torch.linalg.eigh(problem.W)
    root = vectors * values.clamp(min=0.0).sqrt()
    return state @ problem.A.mT + action @ problem.B.mT + (noise @ root.mT).unsqueeze(1)


def _reward(problem: lqr.LQR, state: Tensor, action: Tensor) -> Tensor:
    return -((state @ problem.Q * state).sum(-1) + (action @ problem.R * action).sum(-1))


def _never(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.bool)
