"""One fused gradient step, run eagerly, compiled, as a CUDA graph, and for several members at once.

Parameters are one vector. A step is a pure function from (state, batch, hyper) to (state, metrics): forward, backward,
clipping and Adam over that vector, with nothing drawn, nothing printed and nothing copied to the host inside. The
Learner turns such a function into one that carries a leading member axis on everything but ``hyper``, by vmap where
there are several members, and compiles it whole where asked.

Two ways to differentiate compute the same numbers: ``functional_gradient`` (``torch.func``; works under compile and
vmap) and ``autograd_gradient`` (works with any module, and is the faster one in eager mode).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import math
import os
import platform
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad_and_value, vmap  # pyright: ignore[reportUnknownVariableType]
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from steepest.products import by_onednn, onednn_compiles

State = dict[str, Tensor]
Hyper = dict[str, Tensor]
Metrics = dict[str, Tensor]
Kind = tuple[torch.Size, torch.dtype, torch.device]


class Layout:
    """Where each named parameter sits in the parameter vector."""

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
    """The mean of every figure over several calls."""
    return {k: torch.stack([m[k] for m in history]).mean(0) for k in history[0]}


def to_host(metrics: Metrics) -> dict[str, NDArray[np.float64]]:
    """All figures (M,) in one copy from the device."""
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
    """What builds the tree anew from other leaves, in the order of ``tree_leaves``; the tree is walked but once.

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


class FunctionalModule:
    """A module called with the parameters of a vector and the buffers of a state, instead of its own.

    ``torch.func.functional_call`` does this, but it walks the module tree on every call, which costs more than a small
    network's forward pass. Here the owners of every tensor are looked up once and their entries exchanged directly.

    A buffer that the module assigns anew as it runs is written into the state, as one that it changes in place is.
    Buffers stand in the state under ``buffers/``, the network's prefix where an agent has several, and their names.
    ``function``: what is called, one of the module's methods; by default its forward pass.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, prefix: str = "", function: Callable[..., Any] | None = None
    ) -> None:
        self.module = module
        self.function = function or module
        self.layout = layout
        first_name = {id(p): name for name, p in module.named_parameters()}
        # A tied parameter has several owners, and each must see the replacement.
        owned = [
            (first_name[id(p)], owner.__dict__["_parameters"], key, p.requires_grad)
            for owner in module.modules()
            for key, p in owner.named_parameters(recurse=False, remove_duplicate=False)
        ]
        self.parameter_owners = [(name, owner, key) for name, owner, key, trained in owned if trained]
        self.buffer_owners = [
            (f"buffers/{prefix}{path}{'.' if path else ''}{key}", owner.__dict__["_buffers"], key)
            for path, owner in module.named_modules()
            for key, _ in owner.named_buffers(recurse=False)
        ]
        # A frozen parameter is state that nothing trains, which is what a buffer is.
        self.buffer_owners += [(f"buffers/{prefix}{n}", owner, key) for n, owner, key, trained in owned if not trained]

    def bind(self, vector: Tensor, state: State) -> nn.Module:
        """The module itself with these tensors in it, until the next ``bind``."""
        parameters = self.layout.unflatten(vector)
        for name, owner, key in self.parameter_owners:
            owner[key] = parameters[name]
        for name, owner, key in self.buffer_owners:
            owner[key] = state[name]
        return self.module

    def __call__(self, vector: Tensor, state: State, *arguments: Any) -> Any:
        if get_proxy_mode() is not None:
            with self._attributes_kept():
                return self._call(vector, state, *arguments)
        return self._call(vector, state, *arguments)

    def _call(self, vector: Tensor, state: State, *arguments: Any) -> Any:
        parameters = self.layout.unflatten(vector)
        new = [(owner, key, parameters[name]) for name, owner, key in self.parameter_owners]
        new += [(owner, key, state[name]) for name, owner, key in self.buffer_owners]
        old = [owner[key] for owner, key, _ in new]
        try:
            for owner, key, tensor in new:
                owner[key] = tensor
            result = self.function(*arguments)
            for name, owner, key in self.buffer_owners:
                # Of another shape it is something that the module keeps for itself, such as a mask for this batch.
                if owner[key] is not state[name] and owner[key].shape == state[name].shape:
                    state[name].copy_(owner[key].detach())
            return result
        finally:
            for (owner, key, _), tensor in zip(new, old, strict=True):
                owner[key] = tensor

    @contextmanager
    def _attributes_kept(self) -> Generator[None]:
        """Refuse to trace a module that sets attributes as it runs: compiled code would never set them again.

        Whatever it has set is undone, since what it computes while it is traced are no values.
        """
        before = [(part, dict(part.__dict__)) for part in self.module.modules()]
        changed: list[str] = []
        try:
            yield
        finally:
            for part, attributes in before:
                now = part.__dict__
                changed += [f"{type(part).__name__}.{k}" for k, v in now.items() if attributes.get(k, part) is not v]
                now.clear()
                now.update(attributes)
        if changed:
            raise TypeError(f"{', '.join(changed)} is assigned in the network's forward pass")


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next tensor instead of giving it back to the system at once.

    A gradient step on thousands of rows allocates megabytes and frees them again; returned and mapped anew, their pages
    are faulted in on every step, which took up to a fifth of its time. Does nothing on another C library.
    """
    trim_threshold, mmap_threshold = -1, -3  # the numbers of malloc.h
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(trim_threshold, 1 << 30)


class Learner:
    """Runs pure functions over the member axis in the chosen mode."""

    def __init__(self, members: int, *, compile: bool, device: torch.device, note: Callable[[str], None]) -> None:
        self.members = members
        self.compile = compile
        self.device = device
        self.say = note
        self._said: set[str] = set()

    def note(self, line: str) -> None:
        """Say something once, however many functions it is true of."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def lift(self, function: Callable[..., Any], *, differentiates: bool = False, compile: bool = True) -> Lifted:
        """A function of member-stacked trees from a function of one member's trees.

        Every argument and result gains a leading member axis, but for the last argument (``hyper``), which is shared.
        ``differentiates``: the function's first parameter is a ``Gradient``, which the learner fills in.
        """
        return Lifted(self, function, differentiates, compile=compile and self.compile)


class Lifted:
    """See Learner.lift. Falls back, once and saying so, where a user's module cannot be compiled or vmapped."""

    def __init__(self, learner: Learner, function: Callable[..., Any], differentiates: bool, *, compile: bool) -> None:
        self.learner = learner
        self.function = function
        self.differentiates = differentiates
        self.calls = 0
        self.modes: list[tuple[str, Callable[..., Any]]] = []
        functional = self._with(functional_gradient)
        if compile:
            one_graph = partial(self._single if learner.members == 1 else self._vmapped, functional)
            if learner.device.type == "cuda":
                self.modes.append(("captured as a CUDA graph", CudaGraphed(one_graph)))
            self.modes.append(("compiled", Compiled(one_graph)))
        if learner.members > 1:
            self.modes.append(("vmapped", partial(self._vmapped, functional)))
            self.modes.append(("one member at a time", self._looped))
        else:
            self.modes.append(("ordinary autograd", partial(self._single, self._with(autograd_gradient))))

    def _with(self, gradient: Gradient) -> Callable[..., Any]:
        if not self.differentiates:
            return self.function
        return partial(self.function, gradient)

    def _single(self, function: Callable[..., Any], *args: Any) -> Any:
        stripped = [tree_map(lambda x: x.squeeze(0), a) for a in args[:-1]]
        return tree_map(lambda x: x.unsqueeze(0), function(*stripped, args[-1]))

    def _vmapped(self, function: Callable[..., Any], *args: Any) -> Any:
        # What is None (no mask, no memory) has no axis to map over.
        axes = tree_map(lambda _: 0, args[:-1])
        return vmap(function, in_dims=(*axes, None))(*args)

    def _looped(self, *args: Any) -> Any:
        function = self._with(autograd_gradient)
        members: list[Any] = []
        for m in range(self.learner.members):
            one = [tree_map(lambda x, m=m: x[m], a) for a in args[:-1]]
            members.append(function(*one, args[-1]))
        return tree_map(lambda *xs: torch.stack(xs), *members)

    def __call__(self, *args: Any) -> Any:
        if self.calls == 0:
            self._choose(*args)
        self.calls += 1
        return self.modes[0][1](*args)

    def bind(self, first: Any) -> Callable[..., Any]:
        """This function with its first argument given, for many calls that share it."""
        mode = self.modes[0][1]
        if self.calls > 0 and isinstance(mode, Compiled):
            return mode.bind(first)
        return partial(self, first)

    def _choose(self, *args: Any) -> None:
        """Drop the modes that this function cannot run in. The last one raises its own error."""
        while len(self.modes) > 1:
            name, function = self.modes[0]
            try:
                # The state may not be touched by a trial that fails half-way (a module that writes its buffers).
                function(*tree_map(torch.clone, args[:-1]), args[-1])
                return
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
                self.modes.pop(0)
                self.learner.note(f"not {name}: {reason}; going on with {self.modes[0][0]}")


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
                with tempfile.TemporaryDirectory(dir=folder) as temporary, onednn_compiles():
                    program = torch.export.export(graph, leaves)
                    package = inductor.aoti_compile_and_package(
                        program, package_path=f"{temporary}/function.pt2", inductor_configs=dict(_COMPILER)
                    )
                    os.replace(package, library)
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
    """What the library of this graph is kept under, for these shapes, this PyTorch and this machine."""
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
    """Whether a library is there and as it was written: one with damaged code must not be loaded, but built again."""
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
