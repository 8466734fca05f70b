"""One step of an optimiser on the mean of per-sample losses, in parts that fit memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Figures = dict[str, Tensor]


def parts_of(index: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """The rows in parts of at most ``size``, or all at once."""
    return index.split(size or len(index))


def mean_gradient_step(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor], tuple[Tensor, Figures]],
    index: Tensor,
    *,
    microbatch_size: int | None,
    learning_rate: float,
    max_gradient_norm: float,
) -> Figures:
    """Descend the mean of the losses of some rows, its gradient limited by its norm.

    Equation:  g = grad 1/n sum_i L_i;  g <- g min(1, c / ||g||);  one step of the optimiser
    Args:      loss maps some of the rows in ``index`` (n,) to their losses and to figures, each (rows,)
    Returns:   the figures' means over the n rows, and gradient_norm, of the gradient before it is limited
    Verified:  tests/unit/test_dpo.py::test_parts_add_up
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    totals: Figures = {}
    for part in parts_of(index, microbatch_size):
        losses, figures = loss(part)
        # Over all rows, not this part's: a mean of means would weigh a smaller last part more.
        (losses.sum() / len(index)).backward()
        totals = {k: totals.get(k, 0.0) + x.detach().sum() / len(index) for k, x in figures.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    optimizer.step()
    return {**totals, "gradient_norm": norm.detach()}
