"""A module as a pure function of a parameter vector and a state."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from steepest.learner.step import Layout, State


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
