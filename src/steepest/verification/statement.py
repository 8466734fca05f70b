"""What a statement is, and how its two sides are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

F64 = torch.float64
Kind = Literal["equality", "inequality", "negative control"]

TOLERANCE = 1e-9
"""The largest norm-wise relative error of an equality, and by how much rounding may carry an inequality past 1."""
CONTROL_THRESHOLD = 1e-3
"""A negative control fails, as it should, where its norm-wise relative error is above this ..."""
CONTROL_SHARE = 0.9
"""... and it has to fail on at least this share of the random problems."""


class Sides(NamedTuple):
    """The two sides of a statement: left = right, or left <= right in every entry.

    ``scale`` is the norm that a difference is measured against where both sides may be zero.
    """

    left: Tensor
    right: Tensor
    scale: float = 0.0


def vanishing(term: Tensor, beside: Tensor) -> Sides:
    """A term that should be zero, measured against the norm of ``beside``."""
    return Sides(term, torch.zeros_like(term), scale=float(beside.norm()))


def loss(name: str) -> dict[str, str]:
    """Arguments of a row through a function of ``losses``: what it tests, and ``name``, an option of its function."""
    return {"tested": f"losses.{name}", "name": name}


@dataclass(frozen=True)
class Statement:
    """One row of the verification: a claim, how to draw a problem for it, and its two sides there.

    ``tested`` is the dotted name of the shipped function that one of the sides goes through, or "exact".
    """

    section: str
    claim: str
    kind: Kind
    problem: Callable[[int], Any]
    sides: Callable[[Any], Sides]
    tested: str = "exact"

    def at(self, seed: int) -> Sides:
        """Both sides for one random problem."""
        return self.sides(self.problem(seed))


Function = TypeVar("Function", bound=Callable[..., Sides])


class Rows(list[Statement]):
    """The statements of one file, in the order of their declaration; its methods are decorators of a row's function.

    Decorators of one function declare their rows from the top down, and ``options`` are arguments which the function
    takes beside its problem. A call, ``rows.equality(...)(f)``, declares a row that belongs after another function's.
    """

    def declaration(
        self,
        kind: Kind,
        section: str,
        claim: str,
        problem: Callable[[int], Any],
        *,
        tested: str = "exact",
        **options: Any,
    ) -> Callable[[Function], Function]:
        """Declare left = right, left <= right in every entry, or a known mistake: left = right has to fail."""

        def declare(function: Function) -> Function:
            sides = partial(function, **options) if options else function
            # Python applies the lowest decorator first: each one goes before those below it.
            at = len(self)
            while at > 0 and getattr(self[at - 1].sides, "func", self[at - 1].sides) is function:
                at -= 1
            self.insert(at, Statement(section, claim, kind, problem, sides, tested))
            return function

        return declare

    equality = partialmethod(declaration, "equality")
    inequality = partialmethod(declaration, "inequality")
    control = partialmethod(declaration, "negative control")


def relative_error(sides: Sides) -> float:
    """Norm-wise relative error of an equality.

    Equation:  |left - right| / max(|left|, |right|, scale), Euclidean norms; 0 where both sides agree to the bit
    Raises:    ValueError if the sides have different shapes: broadcasting would hide a mistake
    Verified:  tests/exact/test_theorems.py::test_relative_error_and_tightness
    """
    _check_shapes(sides)
    difference = float((sides.left - sides.right).norm())
    if difference == 0.0:
        return 0.0
    return difference / max(float(sides.left.norm()), float(sides.right.norm()), sides.scale)


def tightness(sides: Sides) -> float:
    """How close an inequality comes to its bound, over all entries: at most 1 where it holds, 1 where it is attained.

    Equation:  max of 1 - (right - left) / max(|left|, |right|), which is left / right for positive sides
    Raises:    ValueError if the sides have different shapes
    Verified:  tests/exact/test_theorems.py::test_relative_error_and_tightness
    """
    _check_shapes(sides)
    larger = torch.maximum(sides.left.abs(), sides.right.abs())
    # An entry that is nothing but rounding beside the others must not decide.
    size = larger.clamp(min=1e-6 * max(float(larger.max()), sides.scale)).clamp(min=1e-300)
    return float((1.0 - (sides.right - sides.left) / size).max())


def _check_shapes(sides: Sides) -> None:
    if sides.left.shape != sides.right.shape:
        raise ValueError(f"the sides have shapes {tuple(sides.left.shape)} and {tuple(sides.right.shape)}")


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a scalar function, by automatic differentiation."""
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradients of a vector's entries (n,), stacked: (n, *at.shape)."""
    leaf = at.detach().clone().requires_grad_()
    return torch.stack([torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in function(leaf)])
