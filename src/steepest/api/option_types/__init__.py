"""The options of every algorithm, for editors and type checkers; how a function comes to be seen with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F")


def seen_as(kind: type[F]) -> Callable[[Callable[..., Any]], F]:
    """Let a type checker see a function as ``kind``; at run time it stays the same function."""
    del kind
    return lambda function: cast(F, function)
