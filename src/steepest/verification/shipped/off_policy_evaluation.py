"""Off-policy evaluation: estimators from another policy's episodes (beside the notes; their aim is that of 2.1.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steepest import evaluation
from steepest.evaluation import Contributions, estimate
from steepest.exact import finite_mdp as mdps
from steepest.verification.random_problems import HORIZON, Process, episodic
from steepest.verification.statement import F64, Rows, Sides

rows = Rows()

CUT = 2
"""Steps after which a recording stops where it does."""


def _data(c: Process) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """All trajectories of pi' as episodes (K, T): reward, log-probabilities under pi and pi', valid, gamma."""
    paths = c.other_paths
    here = (paths.state[:-1].T, paths.action.T)
    return paths.reward.T, c.policy.log()[here], c.other.log()[here], paths.valid.T, c.mdp.gamma


def _modelled(c: Process, q: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """The same with a table Q of the logged actions and V of the states."""
    state, action = c.other_paths.state[:-1].T, c.other_paths.action.T
    reward, target, behaviour, valid, gamma = _data(c)
    return reward, q[state, action], value[state], target, behaviour, valid, gamma


def _value(c: Process, policy: Tensor) -> Tensor:
    return mdps.objective(c.mdp, policy).unsqueeze(0)


def _expectation(c: Process, contributions: Contributions) -> Tensor:
    """E_pi' of an estimator that is a mean over episodes: each counts as often as it is probable."""
    return estimate(contributions, c.other_paths.probability.unsqueeze(0))


def _variance(c: Process, contributions: Contributions) -> Tensor:
    """The variance of such an estimator from one episode."""
    x = contributions.numerator.squeeze(-1)
    p = c.other_paths.probability
    return (p @ (x - p @ x).square()).unsqueeze(0)


def _mean_model(c: Process, q: Tensor) -> Tensor:
    """(S,) E_{a~pi} Q(s, a)."""
    return (c.policy * q).sum(-1)


def _weighted(c: Process, name: str) -> Contributions:
    if name == "doubly robust":
        return evaluation.weighted_doubly_robust(*_modelled(c, c.function, _mean_model(c, c.function)))
    if name == "per decision":
        return evaluation.weighted_per_decision_importance(*_data(c))
    return evaluation.weighted_trajectory_importance(*_data(c))


@rows.equality("2.1.1", "E_beta[w R] = V^pi", episodic, tested="evaluation.trajectory_importance")
def trajectory(c: Process) -> Sides:
    """Returns weighted by the ratio of the trajectory's probabilities."""
    return Sides(_expectation(c, evaluation.trajectory_importance(*_data(c))), _value(c, c.policy))


@rows.equality("2.1.1", "E_beta[sum gamma^t w_t r_t] = V^pi", episodic, tested="evaluation.per_decision_importance")
def per_decision(c: Process) -> Sides:
    """Rewards weighted by the ratios up to them."""
    return Sides(_expectation(c, evaluation.per_decision_importance(*_data(c))), _value(c, c.policy))


@rows.control("2.1.1", "log-likelihoods for probabilities", episodic, tested="evaluation.per_decision_importance")
def log_likelihoods(c: Process) -> Sides:
    """Negative control: ratios of log-probabilities."""
    reward, target, behaviour, valid, gamma = _data(c)
    wrong = (reward, (-target).log(), (-behaviour).log(), valid, gamma)
    return Sides(_expectation(c, evaluation.per_decision_importance(*wrong)), _value(c, c.policy))


@rows.equality("2.1.1", "doubly robust with any Q: E_beta[D] = V^pi", episodic, tested="evaluation.doubly_robust")
def doubly_robust(c: Process) -> Sides:
    """Whatever Q is, as long as V(s) is its mean over the policy's actions."""
    data = _modelled(c, c.function, _mean_model(c, c.function))
    return Sides(_expectation(c, evaluation.doubly_robust(*data)), _value(c, c.policy))


@rows.control("2.1.1", "doubly robust, V of the likeliest action", episodic, tested="evaluation.doubly_robust")
def mode(c: Process) -> Sides:
    """Negative control: the policy's mode evaluated instead of its distribution."""
    likeliest = c.policy.argmax(-1, keepdim=True)
    data = _modelled(c, c.function, c.function.gather(-1, likeliest).squeeze(-1))
    return Sides(_expectation(c, evaluation.doubly_robust(*data)), _value(c, c.policy))


@rows.control("2.1.1", "doubly robust, next actions of this state", episodic, tested="evaluation.doubly_robust")
def next_actions(c: Process) -> Sides:
    """Negative control: V(s_{t+1}) = sum_a pi(a|s_t) Q(s_{t+1}, a)."""
    reward, q, value, target, behaviour, valid, gamma = _modelled(c, c.function, _mean_model(c, c.function))
    state = c.other_paths.state.T
    wrong = (c.policy[state[:, :-2]] * c.function[state[:, 1:-1]]).sum(-1)
    value = torch.cat([value[:, :1], wrong], -1)
    data = (reward, q, value, target, behaviour, valid, gamma)
    return Sides(_expectation(c, evaluation.doubly_robust(*data)), _value(c, c.policy))


@rows.control("2.1.1", "doubly robust from the first step on", episodic, tested="evaluation.doubly_robust")
def forwards(c: Process) -> Sides:
    """Negative control: the recursion in the wrong direction, as of an episode read from its end."""
    reward, q, value, target, behaviour, valid, gamma = _modelled(c, c.function, _mean_model(c, c.function))
    order = (valid.sum(-1, keepdim=True) - 1 - torch.arange(HORIZON)).clamp(min=0)
    reward, q, value, target, behaviour = (x.gather(-1, order) for x in (reward, q, value, target, behaviour))
    data = (reward, q, value, target, behaviour, valid, gamma)
    return Sides(_expectation(c, evaluation.doubly_robust(*data)), _value(c, c.policy))


@rows.equality("2.1.1", "doubly robust with Q^pi: the bound of trees", episodic, tested="evaluation.doubly_robust")
def bound_of_trees(c: Process) -> Sides:
    """Var = Var V(s_0) + sum_t gamma^2t E_beta[w_t^2 Var(r_t + gamma V(s_{t+1}) | s_t, a_t)]: Jiang & Li, Theorem 2."""
    q, value = mdps.action_value(c.mdp, c.policy), mdps.state_value(c.mdp, c.policy)
    following = c.mdp.transition @ value
    spread = c.mdp.gamma**2 * (c.mdp.transition @ value.square() - following.square())  # rewards are certain
    weight = c.policy.square() / c.other
    reached = c.mdp.initial
    bound = reached @ value.square() - (reached @ value).square()
    for t in range(HORIZON):
        bound = bound + c.mdp.gamma ** (2 * t) * (reached.unsqueeze(-1) * weight * spread).sum()
        reached = torch.einsum("s,sa,sat->t", reached, weight, c.mdp.transition)
    return Sides(_variance(c, evaluation.doubly_robust(*_modelled(c, q, value))), bound.unsqueeze(0))


@rows.inequality(
    "2.1.1", "Var of D with Q^pi <= with any Q, and with none", episodic, tested="evaluation.doubly_robust"
)
def variances(c: Process) -> Sides:
    """The exact Q against an arbitrary one, and against per-decision importance sampling."""
    q = mdps.action_value(c.mdp, c.policy)
    best = _variance(c, evaluation.doubly_robust(*_modelled(c, q, _mean_model(c, q))))
    other = _variance(c, evaluation.doubly_robust(*_modelled(c, c.function, _mean_model(c, c.function))))
    none = _variance(c, evaluation.per_decision_importance(*_data(c)))
    return Sides(best.expand(2), torch.cat([other, none]))


@rows.equality(
    "2.1.1",
    "weighted IS: V^pi from infinitely many episodes",
    episodic,
    tested="evaluation.weighted_trajectory_importance",
    name="trajectory",
)
@rows.equality(
    "2.1.1",
    "weighted per-decision IS: V^pi from infinitely many episodes",
    episodic,
    tested="evaluation.weighted_per_decision_importance",
    name="per decision",
)
@rows.equality(
    "2.1.1",
    "weighted doubly robust: V^pi from infinitely many episodes",
    episodic,
    tested="evaluation.weighted_doubly_robust",
    name="doubly robust",
)
def consistent(c: Process, name: str) -> Sides:
    """Every episode counts as often as it is probable."""
    return Sides(_expectation(c, _weighted(c, name)), _value(c, c.policy))


@rows.control(
    "2.1.1",
    "weighted per-decision IS without ended episodes",
    episodic,
    tested="evaluation.weighted_per_decision_importance",
)
def without_the_ended(c: Process) -> Sides:
    """Negative control: step t normalised over the episodes that still run."""
    found = _weighted(c, "per decision")
    running = torch.where(c.other_paths.valid.T, found.denominator, 0.0)
    return Sides(_expectation(c, found._replace(denominator=running)), _value(c, c.policy))


def _of_one_episode(c: Process, name: str) -> Tensor:
    """(1,) the expectation of a weighted form from a single episode."""
    alone = estimate(Contributions(*(x.unsqueeze(-2) for x in _weighted(c, name))))
    return (c.other_paths.probability @ alone).unsqueeze(0)


@rows.equality(
    "2.1.1",
    "weighted IS of one episode: V^beta",
    episodic,
    tested="evaluation.weighted_trajectory_importance",
    name="trajectory",
)
@rows.equality(
    "2.1.1",
    "weighted per-decision IS of one episode: V^beta",
    episodic,
    tested="evaluation.weighted_per_decision_importance",
    name="per decision",
)
def one_episode(c: Process, name: str) -> Sides:
    """The weight cancels: the bias of the weighted forms at its largest."""
    return Sides(_of_one_episode(c, name), _value(c, c.other))


@rows.control(
    "2.1.1",
    "weighted IS of one episode: V^pi",
    episodic,
    tested="evaluation.weighted_trajectory_importance",
)
def one_episode_unbiased(c: Process) -> Sides:
    """Negative control: weighted importance sampling is not unbiased."""
    return Sides(_of_one_episode(c, "trajectory"), _value(c, c.policy))


def _cut(c: Process, completed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Sides:
    """Episodes of at most CUT steps; ``completed`` makes rewards of rewards, V where a recording stopped, and valid."""
    paths = c.other_paths
    reward, target, behaviour, valid, gamma = _data(c)
    reward, target, behaviour, valid = (x[:, :CUT] for x in (reward, target, behaviour, valid))
    final = mdps.state_value(c.mdp, c.policy)[paths.state[CUT]]  # 0 where the episode has ended
    data = (completed(reward, final, valid), target, behaviour, valid, gamma)
    return Sides(_expectation(c, evaluation.per_decision_importance(*data)), _value(c, c.policy))


@rows.equality("2.1.1", "IS of cut episodes, V of the rest added", episodic, tested="evaluation.with_final_value")
def truncated(c: Process) -> Sides:
    """Recordings that stop after two steps, with the exact value of the state where they do."""
    return _cut(c, lambda reward, final, valid: evaluation.with_final_value(reward, final, valid, c.mdp.gamma))


@rows.control("2.1.1", "IS of cut episodes as if they had ended", episodic, tested="evaluation.per_decision_importance")
def truncation_as_termination(c: Process) -> Sides:
    """Negative control: truncation taken for termination."""
    return _cut(c, lambda reward, final, valid: reward)


@rows.equality("2.1.1", "E_beta[w_t] = 1 at every step", episodic, tested="evaluation.log_weights")
def weights(c: Process) -> Sides:
    """Over all episodes, those that have ended keeping their weight."""
    _, target, behaviour, valid, _ = _data(c)
    mean = c.other_paths.probability @ evaluation.log_weights(target, behaviour, valid).exp()
    return Sides(mean, torch.ones(HORIZON, dtype=F64))
