"""Every statement of the notes on a few random problems, and that each misprint shows.

``steepest verify`` runs the same rows on a hundred problems; here are those that need nothing but exact solutions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from helpers import F64
from steepest.exact import finite_mdp as mdps
from steepest.exact import offline as exact_offline
from steepest.verification.random_problems import Process, continuing, dataset, episodic
from steepest.verification.statement import CONTROL_THRESHOLD, TOLERANCE, Sides, Statement, relative_error, tightness
from steepest.verification.theorems import STATEMENTS, offline, trust_region

SEEDS = range(1000, 1005)  # others than those of the command

REQUIRED = """
1 p^pi|1.1 Lemma 1|1.1 Lemma 2|1.1 eta|1.1 recursion of eta|1.1 Theorem 3|1.4 E[b(s)|1.8 Theorem 4|1.9 Lemma 5
1.9 Theorem 6|1.10 V' - V|1.10 |V' - V - L| <= C|1.10 A^(k)|1.10 GAE, its two forms|1.11 J = sum|1.11 deterministic
1.7 V = E|1.7 J_pi is smallest|1.7 E[min(Q1, Q2)] = Q - E|2.1.2 log int exp Q da = log E
2.1.1 Q-hat <= Q|2.1.1 E_pi[Q-hat] <= V|2.1.2 CQL(H): no other|2.1.2 CQL(rho): no other
2.2.2 Lemma 7|2.2.2 r = beta|2.2.2 invariance to f(x)
"""


def names(statement: Statement) -> str:
    return f"{statement.section} {statement.claim}"


@pytest.mark.parametrize("statement", STATEMENTS, ids=names)
def test_every_statement(statement: Statement) -> None:
    """Tighter than the command asks: errors are rounding, and no control is near its threshold on more than one."""
    sides = [statement.at(seed) for seed in SEEDS]
    for s in sides:
        assert s.left.dtype == s.right.dtype == F64
        assert s.left.shape == s.right.shape
        assert bool(torch.isfinite(s.left).all() and torch.isfinite(s.right).all())
    if statement.kind == "inequality":
        assert max(tightness(s) for s in sides) <= 1.0 + TOLERANCE
    elif statement.kind == "equality":
        assert max(relative_error(s) for s in sides) <= 1e-10
    else:
        assert sorted(relative_error(s) for s in sides)[1] > CONTROL_THRESHOLD


@pytest.mark.parametrize("statement", [s for s in STATEMENTS if s.kind == "equality"], ids=names)
def test_equalities_are_about_something(statement: Statement) -> None:
    """A wrong sign or factor on the left would show: the left side is not zero, or the scale says what zero means."""
    for seed in SEEDS:
        s = statement.at(seed)
        assert max(float(s.right.norm()), s.scale) > 1e-6
        assert relative_error(Sides(s.left + 1e-6 * max(float(s.right.norm()), s.scale), s.right, s.scale)) > TOLERANCE


def test_no_numbered_statement_is_missing() -> None:
    rows = [names(s) for s in STATEMENTS]
    wanted = [x for line in REQUIRED.split("\n") for x in _split(line)]
    assert len(wanted) > 20
    assert [x for x in wanted if not any(row.startswith(x) for row in rows)] == []


def _split(line: str) -> list[str]:
    """Cut at bars before a section number; a bar may also belong to a formula."""
    out: list[str] = []
    for part in line.split("|"):
        if part[:1].isdigit():
            out.append(part)
        elif part and out:
            out[-1] += f"|{part}"
    return out


def test_statements_are_all_different() -> None:
    assert len({names(s) for s in STATEMENTS}) == len(STATEMENTS)


def test_relative_error_and_tightness() -> None:
    one, two = torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([3.0, 4.5], dtype=F64)
    assert relative_error(Sides(one, one)) == 0.0
    assert relative_error(Sides(one, two)) == pytest.approx(0.5 / math.hypot(3.0, 4.5), rel=1e-12)
    zero = torch.zeros(2, dtype=F64)
    assert relative_error(Sides(zero, zero)) == 0.0
    assert relative_error(Sides(zero, one * 1e-3)) == 1.0
    assert relative_error(Sides(zero, one * 1e-3, scale=10.0)) == pytest.approx(5e-4, rel=1e-12)
    assert math.isnan(relative_error(Sides(one, one * math.nan)))
    assert tightness(Sides(one, two)) == pytest.approx(1.0, rel=1e-12)  # attained in the first entry
    assert tightness(Sides(one, 2.0 * one)) == pytest.approx(0.5, rel=1e-12)
    assert tightness(Sides(two, one)) == pytest.approx(1.0 + 0.5 / 4.5, rel=1e-12)
    assert tightness(Sides(-two, -one)) == pytest.approx(1.0, rel=1e-12)
    assert tightness(Sides(zero, zero)) == pytest.approx(1.0, rel=1e-12)
    for measure in (relative_error, tightness):
        with pytest.raises(ValueError, match="shapes"):
            measure(Sides(one, one[0]))


def test_the_bound_needs_its_constant() -> None:
    """C sqrt(E KL) is nearly reached on some process, so that a constant a fifth smaller would not do.

    With gamma = 0, where only the first state counts, there is nothing left of either side.
    """
    ratios = [tightness(trust_region.trpo_bound(trust_region.attaining(seed))) for seed in range(40)]
    assert 0.8 < max(ratios) < 1.0
    c = continuing(0)
    myopic = replace(c, mdp=c.mdp.with_gamma(0.0))
    sides = trust_region.trpo_bound(myopic)
    assert float(sides.right) == 0.0
    assert float(sides.left) < 1e-12


def test_conservative_bounds_need_their_thresholds() -> None:
    """With a hundredth of the threshold the pointwise bound breaks on some dataset."""
    broken = 0
    for seed in range(20):
        d = dataset(seed)
        alpha = 0.01 * offline.pointwise_threshold(d)
        found = exact_offline.conservative_evaluation(d.model, d.policy, d.behaviour, d.policy, alpha)
        broken += bool((found > mdps.action_value(d.process.mdp, d.policy) + 1e-9).any())
    assert broken >= 5


def test_trajectories_are_all_there() -> None:
    c: Process = episodic(0)
    assert float(c.paths.probability.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((c.paths.terminated.sum(0) == 1).all())
    lengths = c.paths.valid.sum(0)
    assert set(lengths.tolist()) == {1, 2, 3}
    assert bool(((~c.paths.valid) <= (c.paths.state[:-1] == c.mdp.num_states - 1)).all())
