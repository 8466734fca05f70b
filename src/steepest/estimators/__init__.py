"""The gradient laboratory: estimators of the policy gradient against the exact one, on problems that can be solved.

Every estimator is a plain function ``(data, theta, context) -> loss`` (a scalar; minus its gradient is the estimate) or
``-> estimate`` (the shape of theta). ``compare`` draws many independent batches of episodes, hands each on-policy
estimator the very same ones, and reports bias, variance and signal-to-noise ratio. The policy is a tabular softmax,
theta (S, A) its logits; the estimators go through the shipped ``losses``, ``returns`` and ``distributions``.
"""

from steepest.estimators.comparison import Comparison, Row, compare, estimate, show
from steepest.estimators.estimators import (
    ESTIMATORS,
    Context,
    Estimator,
    Function,
    Group,
    Objective,
    Trajectories,
    actor_critic,
    actor_critic_exact,
    constant_baseline,
    exact_baseline,
    full_return,
    gae,
    importance_per_decision,
    importance_trajectory,
    learned_baseline,
    n_step,
    optimal_baseline,
    reward_to_go,
    surrogate_loss,
)
from steepest.estimators.picture import plot
from steepest.estimators.sampling import PROBLEMS, default_policy, sample, walk

__all__ = [
    "ESTIMATORS",
    "PROBLEMS",
    "Comparison",
    "Context",
    "Estimator",
    "Function",
    "Group",
    "Objective",
    "Row",
    "Trajectories",
    "actor_critic",
    "actor_critic_exact",
    "compare",
    "constant_baseline",
    "default_policy",
    "estimate",
    "exact_baseline",
    "full_return",
    "gae",
    "importance_per_decision",
    "importance_trajectory",
    "learned_baseline",
    "n_step",
    "optimal_baseline",
    "plot",
    "reward_to_go",
    "sample",
    "show",
    "surrogate_loss",
    "walk",
]
