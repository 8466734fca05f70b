"""Every displayed identity and numbered statement of the notes as one function that returns both of its sides.

A function takes a random problem (``Process``, ``Recording``, ``Dataset``, ``Control``, ``Preferences``) and computes
left and right by different routes: a sum over every trajectory against a linear solve, a formula against automatic
differentiation. Where the notes misprint a formula, the printed form stands beside it as a negative control, which has
to fail. One file per chapter declares its ``rows``, each beside its function; ``STATEMENTS`` lists them all, and
``steepest verify`` runs them. Units are those of ``finite_mdp``.

Verified:  every function with a row, in tests/exact/test_theorems.py::test_every_statement
"""

from __future__ import annotations

from steepest.verification.statement import Statement
from steepest.verification.theorems import (
    deterministic,
    gain,
    language,
    off_policy,
    offline,
    performance_difference,
    policy_gradient,
    soft,
    trust_region,
)

STATEMENTS: tuple[Statement, ...] = (
    *policy_gradient.rows,
    *off_policy.rows,
    *soft.rows,
    *gain.rows,
    *performance_difference.rows,
    *trust_region.rows,
    *deterministic.rows,
    *offline.rows,
    *language.rows,
)
"""Every statement that needs nothing but the exact solutions, by section of the notes."""
