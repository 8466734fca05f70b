"""How much of a gradient step its matrix products would take alone: no step can be faster than these.

The products of one eager step are recorded with their shapes and strides, and timed by themselves in the same process,
in turn with the step as the run takes it, so that whatever else the machine does falls on both. Each product is timed
by the quicker of the libraries in this PyTorch, MKL and oneDNN.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROUNDS = 7
REPEATS = 30

Product = tuple[Tensor, Tensor, Tensor]
"""Two operands and their product."""

FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Where the two factors stand among the arguments of a product."""


class Recorder(TorchDispatchMode):
    """Notes the operands of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in FACTORS:
            left, right = (like(x) for x in args[FACTORS[name] :][:2])
            self.products.append((left, right, left @ right))
        return func(*args, **(kwargs or {}))


def like(x: Tensor) -> Tensor:
    """Random numbers of the same shape and strides."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return torch.randn(size, dtype=x.dtype).as_strided(x.shape, x.stride())


def quickest(product: Product) -> Callable[[], Any]:
    """The product by the library that takes less time for it."""
    left, right, out = product
    pairs = [(left, right.t())] if left.ndim == 2 else [(a, b.t()) for a, b in zip(left, right, strict=True)]
    onednn = torch.ops.mkldnn._linear_pointwise

    def by_default() -> None:
        (torch.mm if left.ndim == 2 else torch.bmm)(left, right, out=out)

    def by_onednn() -> None:
        for x, weight in pairs:
            onednn(x, weight, None, "none", [], "")

    return min((by_default, by_onednn), key=lambda f: min(milliseconds(f, 5) for _ in range(ROUNDS)))


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return 1e3 * (time.perf_counter() - start) / repeats


def share_of_products(run: Any, threads: int) -> dict[str, float]:
    """Milliseconds of a gradient step and of its matrix products, medians over rounds, and their ratio."""
    agent, config = run.agent, run.agent.config
    calls = config.updates_per_call
    hyper = agent.hyperparameters(0.5)
    loop = run.training.loop
    rows = loop.buffer if hasattr(loop, "buffer") else loop.rows
    batch = rows.sample(agent.generators, calls, config.batch_size, gamma=config.gamma)
    batch.pop("index", None)
    noise = agent.update_noise(calls)
    eager = type(agent)(config, agent.obs_spec, agent.action_spec)
    eager.update(batch, noise, hyper)
    with Recorder() as recorder:
        eager.update(batch, noise, hyper)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products = [quickest(product) for product in recorder.products]
        steps, alone = [], []
        for _ in range(ROUNDS):
            steps.append(milliseconds(lambda: agent.update(batch, noise, hyper), REPEATS) / calls)
            alone.append(milliseconds(lambda: [product() for product in products], REPEATS) / calls)
    finally:
        torch.set_num_threads(before)
    multiplications = sum(left.shape[-1] * out.numel() for left, _, out in recorder.products) / calls
    return {
        "gradient_step_ms": statistics.median(steps),
        "products_ms": statistics.median(alone),
        "products_gflop": 2e-9 * multiplications,
        "products_share": statistics.median(p / s for p, s in zip(alone, steps, strict=True)),
    }
