"""Trees of tensors: dicts, (named) tuples and lists, mapped, flattened and built again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.learner.step import Metrics


def tree_map(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function to the tensors of equally built dicts, (named) tuples, lists; None stays None."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, dict):
        keys = cast(dict[str, Any], first)
        return {k: tree_map(function, *(t[k] for t in trees)) for k in keys}
    if isinstance(first, (tuple, list)):
        parts = [tree_map(function, *items) for items in zip(*trees, strict=True)]
        if hasattr(first, "_fields"):
            return type(cast(Any, first))(*parts)
        return type(cast(Any, first))(parts)
    return first


def mean_metrics(history: list[Metrics]) -> Metrics:
    """Return the mean of every metric over several calls."""
    return {k: torch.stack([m[k] for m in history]).mean(0) for k in history[0]}


def to_host(metrics: Metrics) -> dict[str, NDArray[np.float64]]:
    """Return all metrics (M,) as NumPy arrays, in one copy from the device."""
    values = torch.stack([x.to(torch.float64) for x in metrics.values()]).cpu().numpy()
    return dict(zip(metrics, values, strict=True))


def tree_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree; those of a dict by its sorted keys, in whatever order it was filled."""
    leaves: list[Tensor] = []
    _collect(tree, leaves)
    return leaves


def _collect(tree: Any, leaves: list[Tensor]) -> None:
    # Acting calls this for every environment step: branches that are tensors or None are not worth a call.
    branches: Any = (tree,)
    if isinstance(tree, dict):
        named = cast(dict[str, Any], tree)
        branches = named.values() if len(named) == 1 else [named[key] for key in sorted(named)]
    elif isinstance(tree, (tuple, list)):
        branches = cast(list[Any], tree)
    for branch in branches:
        if isinstance(branch, Tensor):
            leaves.append(branch)
        elif isinstance(branch, (dict, tuple, list)):
            _collect(branch, leaves)


def tree_builder(tree: Any) -> Callable[[Sequence[Tensor]], Any]:
    """Return a function that builds the tree from other leaves, in the order of ``tree_leaves``.

    Verified:  tests/unit/test_learner.py::test_trees_are_built_again
    """
    count = 0

    def builder(tree: Any) -> Callable[[Sequence[Tensor]], Any]:
        nonlocal count
        if isinstance(tree, Tensor):
            count += 1
            return itemgetter(count - 1)
        if isinstance(tree, dict):
            branches = cast(dict[str, Any], tree)
            made = {key: builder(branches[key]) for key in sorted(branches)}
            parts = [(key, made[key]) for key in branches]
            return lambda leaves: {key: part(leaves) for key, part in parts}
        if isinstance(tree, (tuple, list)):
            kind: Any = type(cast(Any, tree))
            items = [builder(branch) for branch in cast(list[Any], tree)]
            if hasattr(kind, "_fields"):
                return lambda leaves: kind(*[item(leaves) for item in items])
            return lambda leaves: kind([item(leaves) for item in items])
        return lambda leaves: tree

    return builder(tree)


def all_finite(x: Tensor) -> bool:
    """Return whether every entry is a finite number."""
    # A sum is finite only if every term is, and costs a fifth of the elementwise test. It may overflow on finite terms,
    # hence the second look.
    return math.isfinite(x.sum()) or bool(torch.isfinite(x).all())
