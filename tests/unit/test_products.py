"""Products by oneDNN: the same numbers as by default, and only where they are meant to be."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import linear

from helpers_language import demonstrations, tiny
from steepest.language.data.datasets import load_sft
from steepest.language.training.sft import SFT, SFTConfig
from steepest.learner import onednn
from steepest.learner.compiled import Compiled
from steepest.learner.onednn import OneDNNLinear, fast_products

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="no oneDNN in this build")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the products that oneDNN is asked for."""
    seen: list[tuple[int, ...]] = []
    product = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *a: (seen.append(tuple(a[0].shape)), product(*a))[1])
    return seen


@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 3, 16)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_and_gradients_are_those_of_the_default(
    shape: tuple[int, ...], has_bias: bool, monkeypatch: Any
) -> None:
    seen = counted(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((*shape, 24), generator=generator).requires_grad_()
    weight = torch.randn((17, 24), generator=generator).requires_grad_()
    bias = torch.randn(17, generator=generator).requires_grad_() if has_bias else None
    slope = torch.randn((*shape, 17), generator=generator)
    leaves = [x, weight, *([] if bias is None else [bias])]
    expected = linear(x.double(), weight.double(), None if bias is None else bias.double())
    slopes = torch.autograd.grad(expected, leaves, slope.double())
    assert not seen
    with OneDNNLinear():
        found = linear(x, weight, bias)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found, leaves, slope), slopes, strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-5)
    assert len(seen) == 3


def test_only_float32_layers_of_many_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    x, weight = torch.ones(32, 8), torch.ones(4, 8)

    def tried(x: Tensor, weight: Tensor) -> int:
        before = len(seen)
        with OneDNNLinear():
            assert float(linear(x, weight).float().mean()) == 8.0
        return len(seen) - before

    assert tried(x, weight) == 1
    assert tried(x[:15], weight) == 0
    assert tried(x.double(), weight.double()) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tried(x, weight) == 0


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"lora_rank": 4}])
def test_training_takes_the_same_step(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within rounding: also where checkpointing computes layers again in the backward pass."""
    seen = counted(monkeypatch)

    def slopes(faster: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(onednn, "onednn_is_faster", lambda: faster)
        lm = tiny(scale=1.0)
        examples, _ = load_sft(lm, demonstrations(8))
        made = SFT(lm, SFTConfig(max_length=64, **options), examples)
        made.gradient(made.micro_batches(0))
        return {n: p.grad.clone() for n, p in made.named.items() if p.grad is not None}

    plain = slopes(False)
    assert not seen
    fast = slopes(True)
    assert len(seen) > 20
    assert plain.keys() == fast.keys()
    for name, slope in plain.items():
        torch.testing.assert_close(fast[name], slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))


def test_contexts_nest_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: True)
    seen = counted(monkeypatch)
    x, weight = torch.ones(32, 8), torch.ones(4, 8)

    def interrupted() -> None:
        with fast_products():
            with fast_products():
                linear(x, weight)
            linear(x, weight)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert len(seen) == 2
    linear(x, weight)
    assert len(seen) == 2
    with fast_products():
        linear(x, weight)
    assert len(seen) == 3


def test_switched_off_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_held_back", lambda: True)
    assert onednn.onednn_is_faster()
    torch.backends.mkldnn.set_flags(False)
    try:
        assert not onednn.onednn_is_faster()
    finally:
        torch.backends.mkldnn.set_flags(True)


def test_a_second_derivative_is_refused() -> None:
    """Its products would be no part of the graph: an error, and not a wrong number."""
    x, weight = torch.ones(32, 8, requires_grad=True), torch.ones(4, 8, requires_grad=True)
    with OneDNNLinear():
        (slope,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        slope.sum().backward()


def network(x: Tensor, weight: Tensor, bias: Tensor, twins: Tensor) -> tuple[Tensor, ...]:
    """Every kind of product: plain, with a term, of batches, and these with a term."""
    hidden = torch.addmm(bias, x, weight.t())
    both = torch.baddbmm(bias.expand(2, 1, -1), hidden.expand(2, *hidden.shape), twins)
    in_a_row = (hidden.t() @ x) @ x.t()
    return hidden, both, torch.bmm(both, twins.transpose(1, 2)), in_a_row


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (48, 32), (40, 32), (40,), (2, 40, 40)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def rewritten(function: Any, dtype: torch.dtype = torch.float32) -> tuple[torch.fx.GraphModule, int]:
    graph = onednn.by_onednn(make_fx(function, tracing_mode="fake")(*arguments(dtype)))
    operation = torch.ops.mkldnn._linear_pointwise.default
    return graph, len(graph.graph.find_nodes(op="call_function", target=operation))


def test_products_of_a_graph_are_those_of_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(onednn, "LEAST_SIDE", 32)
    graph, count = rewritten(network)
    assert count == 1 + 2 + 2 + 2
    expected = network(*(x.double() for x in arguments()))
    for found, wanted in zip(graph(*arguments()), expected, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-3)  # of entries in the hundreds
    assert rewritten(network, torch.float64)[1] == 0
    assert rewritten(lambda x, w, b, t: torch.addmm(b, x, w.t(), alpha=2.0))[1] == 0
    monkeypatch.setattr(onednn, "LEAST_SIDE", 33)
    assert rewritten(network)[1] == 2 + 2
    monkeypatch.setattr(onednn, "MOST_BATCHES", 1)
    assert rewritten(network)[1] == 0
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: False)
    assert rewritten(network)[1] == 0


def test_compiled_products_are_those_of_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(onednn, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(onednn, "LEAST_SIDE", 1)
    rules = importlib.import_module("torch._inductor.lowering").lowerings
    before = dict(rules)
    compiled = Compiled(network)(*arguments())
    assert rules == before
    for found, wanted in zip(compiled, network(*(x.double() for x in arguments())), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-3)
