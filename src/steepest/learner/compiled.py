"""Pure functions compiled ahead of time, or captured as CUDA graphs. Private names of torch stand here."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from steepest.files.atomic import atomic_place
from steepest.learner.onednn import by_onednn, onednn_compiles
from steepest.learner.trees import tree_builder, tree_leaves, tree_map

Kind = tuple[torch.Size, torch.dtype, torch.device]


def _same_kind(expected: list[Kind], leaves: list[Tensor]) -> None:
    """Compiled code that checks nothing must not see other shapes or types than it was compiled for."""
    kinds = [(x.shape, x.dtype, x.device) for x in leaves]
    if kinds == expected:
        return
    if len(kinds) != len(expected):
        raise ValueError(f"compiled for {len(expected)} tensors, called with {len(kinds)}")
    known, given = next((k, g) for k, g in zip(expected, kinds, strict=True) if k != g)
    raise ValueError(
        f"compiled for a tensor {tuple(known[0])} of {known[1]} on {known[2]}, called with {tuple(given[0])} of "
        f"{given[1]} on {given[2]}; other numbers of environments or steps need an agent of their own, or compile=False"
    )


_COMPILER: dict[str, Any] = {"cpp.use_decompose_tanh": True}
"""tanh(x) as 2 / (1 + exp(-2 x)) - 1 in compiled code: within 2e-7 of the function in float32. As PyTorch computes
it, it took a fifth of an update on 4096 rows, second only to the matrix products. For tiny x the relative error is
larger; an activation bears it.
"""


class Compiled:
    """A pure function compiled ahead of time (AOTInductor), in one graph, for the shapes of its first arguments.

    What ``torch.compile`` puts around compiled code, checks of all that was traced through and Python glue between
    kernels, takes as long as a small policy's forward pass and a third of a small gradient step. None of it is needed:
    the functions are pure, and their arguments' shapes and types never change, which is checked. Libraries are kept in
    the compiler's cache folder, so the same run compiles once on a machine.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.run: Callable[[list[Tensor]], list[Tensor]] | None = None
        self.expected: list[Kind] = []
        self.outputs: Any = None
        self.rebuilt: Callable[[Sequence[Tensor]], Any] = tuple

    def __call__(self, *args: Any) -> Any:
        if self.run is None:
            self.run = self._build(args)
            self.expected = [(x.shape, x.dtype, x.device) for x in tree_leaves(args)]
            self.rebuilt = tree_builder(self.outputs)
        return self.bind(args[0])(*args[1:])

    def bind(self, first: Any) -> Callable[..., Any]:
        """The function, once it is built, with its first argument given."""
        assert self.run is not None
        run = self.run
        fixed = [x.contiguous() for x in tree_leaves(first)]
        _same_kind(self.expected[: len(fixed)], fixed)
        expected = self.expected[len(fixed) :]
        rebuilt = self.rebuilt

        def call(*rest: Any) -> Any:
            leaves = [x.contiguous() for x in tree_leaves(rest)]
            _same_kind(expected, leaves)
            return rebuilt(run(fixed + leaves))

        return call

    def _build(self, args: tuple[Any, ...]) -> Callable[[list[Tensor]], list[Tensor]]:
        given = tree_builder(args)

        def flat(*leaves: Tensor) -> list[Tensor]:
            self.outputs = self.function(*given(leaves))
            return tree_leaves(self.outputs)

        folder = _library_folder()
        inductor = importlib.import_module("torch._inductor")
        leaves = tuple(x.contiguous() for x in tree_leaves(args))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own future
            # Traced here, since the exporter cannot trace through torch.func.grad; with fake tensors, so that a branch
            # on a value is an error instead of being decided for good.
            try:
                graph = by_onednn(make_fx(flat, tracing_mode="fake")(*leaves))
            except AssertionError as error:
                if "allow_non_fake_inputs" not in str(error):
                    raise
                raise TypeError("it uses a tensor that is no parameter or buffer (see register_buffer)") from error
            library = folder / f"{_library_key(graph, leaves)}.pt2"
            if not _is_whole(library):
                with atomic_place(library) as place, onednn_compiles():
                    program = torch.export.export(graph, leaves)
                    inductor.aoti_compile_and_package(
                        program, package_path=str(place), inductor_configs=dict(_COMPILER)
                    )
            return inductor.aoti_load_package(str(library)).loader.run


def _library_folder() -> Path:
    """The folder of libraries in the compiler's cache, made if need be. OSError, for a person, if it cannot be used."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "of PyTorch's compiler")
    try:
        cache = importlib.import_module("torch._inductor.runtime.cache_dir_utils").cache_dir()
        folder = Path(cache) / "steepest"
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable, folder = False, Path()
    if not usable:
        raise OSError(f"the cache folder {cache} cannot be written to; TORCHINDUCTOR_CACHE_DIR sets another")
    return folder


def _library_key(graph: torch.fx.GraphModule, leaves: tuple[Tensor, ...]) -> str:
    """Return the name of this graph's library, for these shapes, this PyTorch and this machine."""
    machine = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), platform.node())
    kinds = [(tuple(x.shape), str(x.dtype), str(x.device)) for x in leaves]
    code = [
        f"{path} {n.op} {n.name} {n.target} {n.args} {n.kwargs}"
        for path, part in graph.named_modules()  # its own graph, and the branches of torch.cond
        if isinstance(part, torch.fx.GraphModule)
        for n in part.graph.nodes
    ]
    key = hashlib.sha256(repr((machine, kinds, sorted(_COMPILER.items()), code)).encode())
    for name, constant in sorted(graph.state_dict().items()):
        key.update(f"{name} {constant.dtype} {tuple(constant.shape)}".encode())
        key.update(constant.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()[:32]


def _is_whole(library: Path) -> bool:
    """Return whether a library is there and undamaged; a damaged one must be built again."""
    try:
        with zipfile.ZipFile(library) as package:
            return package.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


class CudaGraphed:
    """A pure function captured once as a CUDA graph and replayed on copies of its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Sequence[Any] = ()
        self.outputs: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.graph is None:
            self.inputs = tree_map(torch.clone, args)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm-up: allocations and library handles may not happen in a capture
                for _ in range(3):
                    self.function(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(*self.inputs)
        tree_map(lambda static, new: static.copy_(new), self.inputs, args)
        self.graph.replay()
        return tree_map(torch.clone, self.outputs)
