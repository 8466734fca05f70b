"""Matrix products in float32 by oneDNN, where that is the faster library: of layers, and in compiled functions.

On x86 PyTorch gives float32 products to MKL, which leaves the AVX-512 units of AMD's processors idle; oneDNN, which is
in the same build, uses them and takes half the time. Both compute in full float32.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

FEWEST_ROWS = 16
"""With fewer rows the product is bounded by reading the weights, and the default is as good."""

LEAST_SIDE = 128
"""The least rows, columns and terms with which a product in a compiled function gains more than the copies cost that
oneDNN may need of its factors: the update of a 64-64 network on 2048 rows took longer with it."""

MOST_BATCHES = 16
"""oneDNN's product is of two matrices, so that a batch of them is one call each: with more, code grows more than it
gains."""

_state = threading.local()
_compiling = threading.RLock()


def onednn_is_faster() -> bool:
    """Return whether MKL holds this processor back and oneDNN is on (torch.backends.mkldnn.enabled).

    Asked by its maker, not by timing: a run repeats its bits.
    """
    return torch.backends.mkldnn.enabled and _held_back()


@functools.cache
def _held_back() -> bool:
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    built = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    has_product = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return maker and built and has_product and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster there than in float32."""
    if device.type == "cpu":
        has = cast(Any, torch.cpu)
        return has._is_avx512_bf16_supported() or has._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def fast_products() -> Generator[None]:
    """Inside, float32 linear layers on the CPU compute by oneDNN if it is faster here; all else is as ever.

    The backward pass may be outside. What checkpointing is to compute again in it needs ``as_computed``.

    Verified:  tests/unit/test_products.py::test_products_and_gradients_are_those_of_the_default
    """
    if not onednn_is_faster() or getattr(_state, "active", False):
        yield
        return
    _state.active = True
    try:
        with OneDNNLinear():
            yield
    finally:
        _state.active = False


def as_computed() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For ``torch.utils.checkpoint`` (context_fn): what is computed again is computed by the same library.

    Verified:  tests/unit/test_products.py::test_training_takes_the_same_step
    """
    return nullcontext(), OneDNNLinear() if getattr(_state, "active", False) else nullcontext()


class OneDNNLinear(TorchFunctionMode):
    """Takes over ``torch.nn.functional.linear`` where oneDNN can compute it; see ``fast_products``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear and not kwargs and _takes(*args):
            return _Linear.apply(*args)
        return func(*args, **(kwargs or {}))


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = type(x) is Tensor and type(weight) in (Tensor, torch.nn.Parameter)  # neither quantised nor distributed
    return (
        plain
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.ndim == 2
        and x.numel() >= FEWEST_ROWS * weight.shape[1]
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, any strides; gives no gradient of itself."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """y = x W^T + b, and its gradients, each one product of oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's parameters have no names
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        rows = grads[0].reshape(-1, weight.shape[0])
        needed = ctx.needs_input_grad
        return (
            _product(rows, weight.t()).view_as(x) if needed[0] else None,
            _product(rows.t(), x.reshape(-1, weight.shape[1]).t()) if needed[1] else None,
            rows.sum(0) if len(needed) > 2 and needed[2] else None,
        )[: len(needed)]


def by_onednn(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A traced graph with its larger float32 products on the CPU computed by oneDNN, if it is faster here.

    It has to be compiled inside ``onednn_compiles``.

    Verified:  tests/unit/test_products.py::test_products_of_a_graph_are_those_of_the_default
    """
    if not onednn_is_faster() or not hasattr(_inductor("mkldnn_ir"), "LinearUnary"):
        return graph
    aten = torch.ops.aten
    added = {aten.addmm.default, aten.baddbmm.default}
    for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default):
        _replace(graph.graph, node, *node.args)
    for target in (aten.addmm.default, aten.bmm.default, aten.baddbmm.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            if not node.kwargs:  # which scale the terms
                term, *factors = node.args if target in added else (None, *node.args)
                _replace(graph.graph, node, *factors, term=term)
    graph.recompile()
    return graph


def _replace(graph: torch.fx.Graph, node: torch.fx.Node, a: Any, b: Any, term: Any = None) -> None:
    """One product a b, plus a term, (B, C) or batches of them."""
    aten = torch.ops.aten
    left, right = a.meta["val"], b.meta["val"]
    if left.dtype != torch.float32 or left.device.type != "cpu":
        return
    if min(*left.shape[-2:], right.shape[-1]) < LEAST_SIDE or left.shape[:-2].numel() > MOST_BATCHES:
        return

    def product(x: Any, y: Any) -> Any:
        weight = graph.call_function(aten.t.default, (y,))
        return graph.call_function(torch.ops.mkldnn._linear_pointwise.default, (x, weight, None, "none", [], ""))

    with graph.inserting_before(node):
        if left.ndim == 2:
            found = product(a, b)
        else:
            pairs = [[graph.call_function(aten.select.int, (x, 0, i)) for x in (a, b)] for i in range(left.shape[0])]
            found = graph.call_function(aten.stack.default, ([product(*pair) for pair in pairs],))
        if term is not None:
            found = graph.call_function(aten.add.Tensor, (found, term))
    found.meta["val"] = node.meta["val"]  # a product of this product asks for it
    node.replace_all_uses_with(found)
    graph.erase_node(node)


@contextmanager
def onednn_compiles() -> Generator[None]:
    """Inside, the compiler takes oneDNN's products as they are; its own rule asks for weights that never change.

    One thread at a time: the compiler's rules are its module's.
    """
    if not onednn_is_faster():
        yield
        return
    operation = torch.ops.mkldnn._linear_pointwise

    def rule(*arguments: Any) -> Any:
        return _inductor("ir").TensorBox.create(_inductor("mkldnn_ir").LinearUnary.create(*arguments))

    with _compiling:
        rules = _inductor("lowering").lowerings
        kept = {k: rules[k] for k in (operation, operation.default) if k in rules}
        rules.update(dict.fromkeys((operation, operation.default), rule))
        try:
            yield
        finally:
            for k in (operation, operation.default):
                rules.pop(k, None)
            rules.update(kept)


def _inductor(part: str) -> Any:
    return importlib.import_module(f"torch._inductor.{part}")
