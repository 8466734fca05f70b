"""Every formula of the notes against exact solutions: the statements of ``theorems``, and the shipped functions.

A row that names a shipped function goes through that function and would fail if it were wrong; the other side is
exact. ``steepest verify`` prints the table. How a row passes, over N random problems:

    equality            the norm-wise relative error is at most 1e-9 on all
    inequality          it holds on all, up to 1e-9 of rounding; the tightest ratio is reported
    negative control    a known mistake: its error has to exceed 1e-3 on at least 90% of the problems

A figure that is not a number fails the row, of whatever kind.
"""

from steepest.verification.table import SHIPPED, Result, check, results, show, statements, verify

__all__ = ["SHIPPED", "Result", "check", "results", "show", "statements", "verify"]
