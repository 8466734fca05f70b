"""Bias, variance and signal-to-noise ratio of estimators against the exact gradient, and how they are shown."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steepest.errors import UsageError
from steepest.estimators.estimators import (
    ANY,
    ESTIMATORS,
    F64,
    Context,
    Estimator,
    Function,
    Group,
    Objective,
    Trajectories,
    to_go_of,
)
from steepest.estimators.sampling import (
    PROBLEMS,
    component_baseline,
    default_policy,
    fit_differential_value,
    mean_by_state,
    recording_length,
    sample,
)
from steepest.exact import finite_mdp as mdps
from steepest.exact import gains, gradients
from steepest.exact.finite_mdp import FiniteMDP, softmax_policy
from steepest.learner.threads import one_thread
from steepest.problems import Problem

FIT_BATCHES = 10
"""Batches of earlier data, shared by all repeats, to which learned critics and baselines are fitted."""
EXPLORATION = 0.1
"""Share of uniform actions in the behaviour policy, where the problem names none."""
Z = 1.959964
"""Two-sided 95% of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator against the exact gradient g; biases are in units of |g|, variances of |g|^2, intervals 95%."""

    name: str
    group: Group
    data: Literal["policy", "behaviour"]
    steps: float
    """Environment steps per estimate, the mean over repeats."""
    bias: float
    """|E[estimate] - g| / |g|, less what sampling adds to it; 0 where that is more than all of it."""
    bias_interval: tuple[float, float]
    variance: float
    """tr Cov[estimate] / |g|^2."""
    variance_interval: tuple[float, float]
    snr: float
    """|E[estimate]| / sqrt(tr Cov[estimate]), less what sampling adds to the numerator."""
    cosine: float
    """The mean cosine between one estimate and g."""
    gae_lambda: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``compare`` found, and how."""

    problem: str
    objective: Objective
    gamma: float
    truth: str
    """What the estimates are compared with."""
    gradient_norm: float
    steps: int
    """Environment steps per estimate, as asked for."""
    episodes: int
    """Recordings per estimate of the on-policy estimators."""
    behaviour_episodes: int
    """Recordings per estimate of the off-policy ones."""
    repeats: int
    seed: int
    rows: tuple[Row, ...]

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return "\n".join([self.heading(), *_lines(self)])

    def heading(self) -> str:
        """What was compared, in two lines."""
        what = ("recording" if self.objective == "average" else "episode") + "s" * (self.episodes > 1)
        apart = any(r.data == "behaviour" for r in self.rows)
        each = f"{self.episodes} {what}" + (f" ({self.behaviour_episodes} off-policy)" if apart else "")
        return (
            f"{self.problem}: estimates of {self.truth}, of norm {self.gradient_norm:.4g}\n"
            f"{self.repeats} independent estimates, each from {each}, about {self.steps} steps; seed {self.seed}"
        )


@one_thread()
def compare(
    problem: str | Problem,
    policy: Tensor | None = None,
    estimators: Sequence[str | Estimator | Function] | None = None,
    *,
    objective: Objective | None = None,
    behaviour: Tensor | None = None,
    repeats: int = 1000,
    steps: int = 250,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Bias, variance and signal-to-noise ratio of gradient estimators, at equal numbers of environment steps.

    All on-policy estimators see the same trajectories in every repeat. Episodes are whole, since cutting them would
    bias: their number is ``steps`` over their exact mean length, rounded; off-policy ones get the number of episodes of
    the behaviour policy that takes as many steps on average.

    Equation:  bias^2 = 1/(R(R-1)) sum_{i != j} (g_i - g).(g_j - g), which is unbiased;
               variance = 1/(R-1) sum_i |g_i - mean|^2.
               Intervals: every b with |bias^2 - b^2| <= 1.96 sqrt(4 b^2 s^2 + v), s^2 the variance of the mean along
               the bias, v = 2/(R(R-1)) tr Cov^2 what is left at b = 0; for the variance, normal in its logarithm
    Source:    notes 1.2 to 1.8, 1.10; Hoeffding 1948 for the variance of a U-statistic.
    Args:      problem: a name of ``PROBLEMS`` or a table; policy: logits theta (S, A), by default half-way to the
               optimum; estimators: names of ``ESTIMATORS``, your own functions (see ``Function``) or Estimators, by
               default all that estimate this objective;
               objective: "discounted" (the gradient of the discounted return), "undiscounted" (the theorem's sum with
               states weighted by plain visits, which is no gradient at gamma < 1), "average" (the gradient of the gain,
               on a continuing problem); by default "average" where no state ends the episode, else "discounted";
               behaviour (S, A): probabilities of the off-policy data's policy, by default the problem's own, or the
               policy with ``EXPLORATION`` uniform actions; repeats, at least 10; steps per estimate;
               watch is told how many estimates are done, and how many there will be
    Raises:    UsageError on unknown names, wrong shapes, numbers out of range, estimates that are not finite
    Verified:  tests/exact/test_estimators.py::test_unbiased_estimators_are_unbiased,
               tests/exact/test_estimators.py::test_wrong_estimators_are_found,
               tests/exact/test_estimators.py::test_variances_are_ordered
    """
    for name, value, least in (("repeats", repeats, 10), ("steps", steps, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}; expected at least {least}")
    if isinstance(problem, str):
        if problem not in PROBLEMS:
            raise _nearest("problem", problem, list(PROBLEMS))
        problem = PROBLEMS[problem]()
    mdp = FiniteMDP.from_problem(problem)
    continuing = not bool(mdp.absorbing.any())
    objective = objective or ("average" if continuing else "discounted")
    if objective not in ANY:
        raise UsageError(f"objective is {objective!r}; expected one of {', '.join(ANY)}")
    if objective == "average" and not continuing:
        raise UsageError(f"{mdp.name} has an end, so its average reward is 0; objective 'average' is for those without")
    chosen = _choose(estimators, objective)
    shape = (mdp.num_states, mdp.num_actions)
    theta = default_policy(problem) if policy is None else torch.as_tensor(policy, dtype=F64).detach()
    if tuple(theta.shape) != shape:
        raise UsageError(
            f"{mdp.name}: policy has shape {tuple(theta.shape)}; expected logits (states, actions) {shape}"
        )
    if not bool(torch.isfinite(theta).all()):
        raise UsageError(f"{mdp.name}: policy has logits that are not finite; every action needs some chance")
    pi = softmax_policy(theta)
    acting = _behaviour(problem, pi, behaviour)

    if objective == "average":
        length, mean_length, other_length, other_mean = steps, float(steps), steps, float(steps)
        start = gains.stationary_distribution(mdp, pi)
    else:
        length, mean_length = recording_length(mdp, pi)
        other_length, other_mean = recording_length(mdp, acting)
        start = None
    episodes = max(1, round(steps / mean_length))
    other_episodes = max(1, round(episodes * mean_length / other_mean))
    truth, said = _truth(mdp, theta, objective, length if continuing else None)
    norm = float(truth.norm())
    if norm < 1e-12:
        raise UsageError(f"{mdp.name}: the exact gradient is 0 here, so nothing can be compared with it")

    def draw(recordings: int, off_policy: bool, stream: int) -> Trajectories:
        generator = torch.Generator().manual_seed(1_000_003 * seed + stream)
        return sample(
            problem,
            acting if off_policy else pi,
            recordings=recordings,
            length=other_length if off_policy else length,
            generator=generator,
            objective=objective,
            start=start,
        )

    context = _context(mdp, theta, acting, objective, draw(FIT_BATCHES * episodes, False, 0))
    rows: dict[str, Row] = {}
    for off_policy, size in ((False, episodes), (True, other_episodes)):
        members = [e for e in chosen if (e.data == "behaviour") == off_policy]
        if not members:
            continue
        data = draw(repeats * size, off_policy, 1 + off_policy)
        batches = [data.batch(i, size) for i in range(repeats)]
        for e in members:
            made: list[Tensor] = []
            for batch in batches:
                made.append(estimate(e, batch, theta, context))
                if watch is not None:
                    watch(len(rows) * repeats + len(made), len(chosen) * repeats)
            found = torch.stack(made)
            rows[e.name] = _measure(e, found.flatten(1) / norm, truth.flatten() / norm, data.steps / repeats)
    return Comparison(
        problem=mdp.name,
        objective=objective,
        gamma=mdp.gamma,
        truth=said,
        gradient_norm=norm,
        steps=steps,
        episodes=episodes,
        behaviour_episodes=other_episodes,
        repeats=repeats,
        seed=seed,
        rows=tuple(rows[e.name] for e in chosen),
    )


def estimate(estimator: Estimator, data: Trajectories, theta: Tensor, context: Context) -> Tensor:
    """(S, A) what an estimator makes of one batch.

    Raises:    UsageError if it returns neither a scalar that depends on theta nor numbers in theta's shape
    Verified:  tests/exact/test_estimators.py::test_a_bad_estimator_is_one_clear_error
    """
    leaf = theta.detach().clone().requires_grad_()
    out = estimator.function(data, leaf, context)
    if not isinstance(out, Tensor) or (out.ndim > 0 and out.shape != theta.shape):  # pyright: ignore[reportUnnecessaryIsInstance]  users' functions
        what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"estimator {estimator.name} returned {what}; expected a loss (a scalar tensor) or an estimate of the "
            f"gradient in theta's shape {tuple(theta.shape)}"
        )
    if out.ndim == 0:
        if not out.requires_grad:
            raise UsageError(f"estimator {estimator.name} returned a loss that does not depend on theta")
        out = -torch.autograd.grad(out, leaf)[0]
    if not bool(torch.isfinite(out).all()):
        raise UsageError(f"estimator {estimator.name} gave an estimate that is not finite")
    return out.detach()


def _nearest(kind: str, name: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return UsageError(f"no {kind} is called {name!r}{hint} Known: {', '.join(known)}")


def _choose(estimators: Sequence[str | Estimator | Function] | None, objective: Objective) -> list[Estimator]:
    if estimators is None:
        return [e for e in ESTIMATORS.values() if objective in e.objectives]
    chosen: list[Estimator] = []
    for given in estimators:
        if isinstance(given, str):
            if given not in ESTIMATORS:
                raise _nearest("estimator", given, list(ESTIMATORS))
            given = ESTIMATORS[given]
        elif not isinstance(given, Estimator):
            if not callable(given):
                raise UsageError(f"{given!r} is no estimator; expected a name, a function or an Estimator")
            given = Estimator(getattr(given, "__name__", "own"), given)
        if objective not in given.objectives:
            raise UsageError(
                f"{given.name} does not estimate the {objective} objective, but {' and '.join(given.objectives)}"
            )
        if given.name in {e.name for e in chosen}:
            raise UsageError(f"two estimators are called {given.name}; give yours a name: Estimator('name', function)")
        chosen.append(given)
    if not chosen:
        raise UsageError("no estimators were given; leave them out for all that there are")
    return chosen


def _behaviour(problem: Problem, policy: Tensor, behaviour: Tensor | None) -> Tensor:
    if behaviour is None:
        if problem.behaviour is None:
            return (1.0 - EXPLORATION) * policy + EXPLORATION / policy.shape[1]
        behaviour = torch.from_numpy(problem.behaviour)
    acting = torch.as_tensor(behaviour, dtype=F64)
    if acting.shape != policy.shape:
        raise UsageError(
            f"{problem.name}: behaviour has shape {tuple(acting.shape)}; expected probabilities (states, actions) "
            f"{tuple(policy.shape)}"
        )
    if bool((acting <= 0.0).any()):
        raise UsageError(f"{problem.name}: behaviour must give every action some chance, or the ratio has no bound")
    return acting


def _truth(mdp: FiniteMDP, theta: Tensor, objective: Objective, length: int | None) -> tuple[Tensor, str]:
    if objective == "average":
        return gradients.gain_gradient(mdp, softmax_policy, theta), "the gradient of the average reward"
    if objective == "undiscounted":
        found = gradients.undiscounted_weighting_gradient(mdp, softmax_policy, theta, length)
        return found, f"the sum with undiscounted states (gamma {mdp.gamma:g}; no gradient unless gamma is 1)"
    found = gradients.objective_gradient(mdp, softmax_policy, theta)
    return found, f"the gradient of the {'discounted ' if mdp.gamma < 1.0 else ''}return (gamma {mdp.gamma:g})"


def _context(mdp: FiniteMDP, theta: Tensor, acting: Tensor, objective: Objective, data: Trajectories) -> Context:
    policy, states = softmax_policy(theta), mdp.num_states
    average = objective == "average"
    gain = float(data.reward.mean()) if average else 0.0
    to_go = to_go_of(data, data.reward - gain, 1.0 if average else mdp.gamma)
    weight = data.weight * data.valid
    return Context(
        objective=objective,
        gamma=1.0 if average else mdp.gamma,
        policy=policy,
        behaviour=acting,
        value=gains.differential_value(mdp, policy) if average else mdps.state_value(mdp, policy),
        gain=float(gains.gain(mdp, policy)) if average else 0.0,
        learned_value=fit_differential_value(data, states, gain) if average else mean_by_state(data, to_go, states),
        learned_gain=gain,
        constant=float((weight * to_go).sum() / weight.sum()),
        component_baseline=component_baseline(data, theta, to_go),
    )


def _measure(estimator: Estimator, found: Tensor, truth: Tensor, steps: float) -> Row:
    """Figures of R estimates (R, D) in units of the exact gradient's norm."""
    count = len(found)
    bias, bias_interval = _distance(found - truth)
    deviation = (found - found.mean(0)).square().sum(1)
    variance = float(deviation.sum() / (count - 1))
    spread = math.exp(Z * float(deviation.std()) / (math.sqrt(count) * variance)) if variance > 0.0 else 1.0
    length = _distance(found)[0]
    cosine = (found @ truth) / found.norm(dim=1).clamp_min(torch.finfo(F64).tiny)
    return Row(
        name=estimator.name,
        group=estimator.group,
        data=estimator.data,
        steps=steps,
        bias=bias,
        bias_interval=bias_interval,
        variance=variance,
        variance_interval=(variance / spread, variance * spread),
        snr=length / math.sqrt(variance) if variance > 0.0 else math.inf,
        cosine=float(cosine.mean()),
        gae_lambda=estimator.gae_lambda,
    )


def _distance(x: Tensor) -> tuple[float, tuple[float, float]]:
    """The norm of the mean of x (R, D), without the noise's share, and its interval."""
    n = len(x)
    pairs = n * (n - 1)
    mean = x.mean(0)
    centred = x - mean
    square = float(mean.square().sum()) - float(centred.square().sum()) / pairs
    products = centred @ centred.T
    null = 2.0 * float(products.square().sum() - products.diagonal().square().sum()) / pairs**2
    along = float((centred @ mean).var()) / (n * max(float(mean.square().sum()), torch.finfo(F64).tiny))
    # (square - b^2)^2 = z^2 (4 along b^2 + null), solved for b^2.
    centre = square + 2.0 * Z**2 * along
    reach = math.sqrt(4.0 * Z**2 * along * max(0.0, square) + 4.0 * Z**4 * along**2 + Z**2 * null)
    low, middle, high = (math.sqrt(max(0.0, y)) for y in (centre - reach, square, centre + reach))
    return middle, (low, high)


# Showing

_COLUMNS = ("estimator", "bias", "95%", "variance", "95%", "SNR", "cosine", "steps")
_LEGEND = (
    "bias: distance of the mean from the exact gradient, over its norm, sampling noise subtracted; variance: of one\n"
    "estimate, over the squared norm; SNR: norm of the mean over the root of the variance; cosine: of one estimate\n"
    f"with the exact one. Learned critics and baselines: from {FIT_BATCHES} times as much earlier data, then fixed."
)


def _number(x: float) -> str:
    return "0" if x == 0.0 else f"{x:.3g}" if 1e-3 <= x < 1e4 else f"{x:.1e}"


def _cells(row: Row) -> tuple[str, ...]:
    low, high = ("{} .. {}".format(*map(_number, x)) for x in (row.bias_interval, row.variance_interval))
    return (
        row.name,
        _number(row.bias),
        low,
        _number(row.variance),
        high,
        _number(row.snr),
        f"{row.cosine:.3f}",
        f"{row.steps:.0f}",
    )


def _lines(comparison: Comparison) -> list[str]:
    table = [_COLUMNS, *map(_cells, comparison.rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_COLUMNS))]
    return [
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in table
    ]


def show(comparisons: Sequence[Comparison]) -> None:
    """Print the tables: with rules on a terminal, plain anywhere else."""
    if not sys.stdout.isatty():
        for comparison in comparisons:
            print(comparison, end="\n\n")
        print(_LEGEND)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for comparison in comparisons:
        table = Table()
        for i, name in enumerate(_COLUMNS):
            table.add_column(name, justify="right" if i else "left")
        for i, row in enumerate(comparison.rows):
            last = i + 1 == len(comparison.rows) or comparison.rows[i + 1].group != row.group
            table.add_row(*map(Text, _cells(row)), end_section=last)
        console.print(Text(comparison.heading()), table, sep="\n")
    console.print(Text(_LEGEND))
