"""Pure functions of one member, run over the member axis: eagerly, compiled, as a CUDA graph, or vmapped.

The Learner turns a function of one member into one that carries a leading member axis, by vmap where there are several
members, and compiles it whole where asked. Of the last argument, ``hyper``, only what differs between members has one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.func import vmap  # pyright: ignore[reportUnknownVariableType]

from steepest.learner.compiled import Compiled, CudaGraphed
from steepest.learner.step import Gradient, autograd_gradient, functional_gradient
from steepest.learner.trees import tree_map


class Lift(NamedTuple):
    """A pure function of one member that the learner runs over all of them; see ``learner.lifting.Learner.lift``."""

    function: str | Callable[..., Any]
    """A method of the agent by name, or a function."""
    differentiates: bool = False
    compiles: bool = True
    unrolls: bool = False
    """It unrolls a recurrent policy over a whole rollout: too long a graph to compile."""


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

        Every argument and result gains a leading member axis, but for the last argument (``hyper``): its 0-d tensors
        are shared, and each of its vectors (M,) holds one value per member.
        ``differentiates``: the function's first parameter is a ``Gradient``, which the learner fills in.
        """
        return Lifted(self, function, differentiates, compile=compile and self.compile)


def _of_member(hyper: Any, member: int) -> Any:
    """The hyper-parameters of one member."""
    return tree_map(lambda x: x[member] if x.ndim else x, hyper)


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
        return tree_map(lambda x: x.unsqueeze(0), function(*stripped, _of_member(args[-1], 0)))

    def _vmapped(self, function: Callable[..., Any], *args: Any) -> Any:
        # What is None (no mask, no memory) has no axis to map over.
        axes = tree_map(lambda _: 0, args[:-1])
        shared_or_not = tree_map(lambda x: 0 if x.ndim else None, args[-1])
        return vmap(function, in_dims=(*axes, shared_or_not))(*args)

    def _looped(self, *args: Any) -> Any:
        function = self._with(autograd_gradient)
        members: list[Any] = []
        for m in range(self.learner.members):
            one = [tree_map(lambda x, m=m: x[m], a) for a in args[:-1]]
            members.append(function(*one, _of_member(args[-1], m)))
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
