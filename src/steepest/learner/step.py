"""The gradient step: parameters as one vector, its gradient by two routes, and Adam.

A step is a pure function from (state, batch, hyper) to (state, metrics): forward, backward, clipping and Adam over the
vector, with nothing drawn, nothing printed and nothing copied to the host inside. ``learner.lifting`` runs it.

Two ways to differentiate compute the same numbers: ``functional_gradient`` (``torch.func``; works under compile and
vmap) and ``autograd_gradient`` (works with any module, and is the faster one in eager mode).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import grad_and_value  # pyright: ignore[reportUnknownVariableType]

State = dict[str, Tensor]
Hyper = dict[str, Tensor]
Metrics = dict[str, Tensor]


class Layout:
    """The place of each named parameter in the parameter vector."""

    def __init__(self, module: nn.Module) -> None:
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        dtypes = {p.dtype for p in parameters.values()}
        if len(dtypes) > 1:
            raise ValueError(f"the network mixes parameter types {sorted(map(str, dtypes))}; use one")
        self.names = list(parameters)
        self.shapes = [tuple(p.shape) for p in parameters.values()]
        self.sizes = [math.prod(s) for s in self.shapes]
        self.size = sum(self.sizes)

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Named tensors (lead..., *shape) -> one vector (lead..., P)."""
        parts = [
            tensors[name].reshape(*tensors[name].shape[: tensors[name].ndim - len(shape)], size)
            for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """One vector (lead..., P) -> named views (lead..., *shape)."""
        parts = vector.split(self.sizes, dim=-1)
        lead = vector.shape[:-1]
        return {
            name: part.view(*lead, *shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }


class Gradient(Protocol):
    """(loss, vector) -> (gradient, (loss value, metrics)); loss maps the vector to (scalar, metrics)."""

    def __call__(
        self, loss: Callable[[Tensor], tuple[Tensor, Metrics]], vector: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Metrics]]: ...


def functional_gradient(
    loss: Callable[[Tensor], tuple[Tensor, Metrics]], vector: Tensor
) -> tuple[Tensor, tuple[Tensor, Metrics]]:
    """By ``torch.func``: composes with vmap and compile."""
    return cast(Any, grad_and_value(loss, has_aux=True)(vector))


def autograd_gradient(
    loss: Callable[[Tensor], tuple[Tensor, Metrics]], vector: Tensor
) -> tuple[Tensor, tuple[Tensor, Metrics]]:
    """By the ordinary tape: takes any module, also one that writes its buffers in place."""
    with torch.enable_grad():
        leaf = vector.detach().requires_grad_()
        value, metrics = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient, (value.detach(), {k: v.detach() for k, v in metrics.items()})


def adam_state(vector: Tensor) -> State:
    """Adam's moments and step count for a (stack of) parameter vector(s)."""
    return {
        "params": vector,
        "adam_mean": torch.zeros_like(vector),
        "adam_square": torch.zeros_like(vector),
        "adam_count": torch.zeros(vector.shape[:-1], dtype=vector.dtype, device=vector.device),
    }


def adam_step(
    state: State,
    gradient: Tensor,
    learning_rate: Tensor,
    max_gradient_norm: Tensor,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-5,
) -> tuple[State, Tensor]:
    """Clip the gradient by its norm, then one step of Adam.

    Equation:  g <- g min(1, c / ||g||);  m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;
               theta <- theta - lr m_hat / (sqrt(v_hat) + eps)
    Source:    Kingma & Ba 2015; epsilon 1e-5 as policy-gradient code has used since Baselines.
    Returns:   the state with new params and moments; the norm before clipping
    Verified:  tests/unit/test_learner.py::test_adam_step_equals_torch_optim
    """
    norm = torch.linalg.vector_norm(gradient)
    count = state["adam_count"] + 1.0
    shrink = torch.clamp(max_gradient_norm / (norm + 1e-12), max=1.0)
    # Stacked, since the compiler would inline what they are made of, two powers too, into the loop over parameters.
    shrink, correction1, correction2 = torch.stack((shrink, 1.0 - beta1**count, 1.0 - beta2**count)).unbind(0)
    gradient = gradient * shrink
    mean = torch.lerp(state["adam_mean"], gradient, 1.0 - beta1)
    square = beta2 * state["adam_square"] + (1.0 - beta2) * gradient.square()
    step = (mean / correction1) / ((square / correction2).sqrt() + epsilon)
    new = {
        "params": state["params"] - learning_rate * step,
        "adam_mean": mean,
        "adam_square": square,
        "adam_count": count,
    }
    return {**state, **new}, norm
