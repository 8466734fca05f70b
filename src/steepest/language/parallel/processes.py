"""Several processes that train one model together, as ``torchrun`` starts them: each has its share of every batch.

All processes make the same batches of the same seed, and each takes its share of the rows. What a loss is divided by is
counted over all of them, and gradients are summed: an update is the one that a single process makes, but for rounding.
What depends on a whole batch (advantages, groups, calibration) is gathered first, and then computed by every process.

Gradients are summed here, once an update, rather than by ``DistributedDataParallel``: that one takes means, wants the
same number of backward passes in every process, and watches one forward pass of one module, where scoring calls the
model and its head by themselves, the head several times. What it would add is that on GPUs the gradients of the last
layers travel while those of the first are computed, in the last micro-batch of an update.

In a process alone, all of this changes nothing.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steepest.errors import RunError, SteepestError, UsageError
from steepest.files.terminal import ENDING
from steepest.language.parallel.torchrun import launch

T = TypeVar("T")

BUCKET_ELEMENTS = 2**24
"""So many gradients travel at once (64 MB in float32)."""

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another: a model may be large to save, or a reward slow to compute."""

AT_ONCE = 1.0
"""Signals so many seconds apart are one: whoever started the processes may pass on what they have got themselves."""

_store: Any = None
"""Where the processes met, once they have."""


# Who is there


def join() -> None:
    """Meet the other processes, where torchrun started several; a process group that is there already is used.

    Raises:    UsageError where this PyTorch has nothing to meet them with
    """
    global _store
    if launch().world_size == 1 or _joined():
        return
    if not dist.is_available() or not dist.is_gloo_available():
        raise UsageError("several processes were started, but this PyTorch was built without gloo, by which they talk")
    with_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    # Documented by PyTorch, though its types do not export them.
    meet, prefixed = cast(Any, dist).rendezvous, cast(Any, dist).PrefixStore
    _store, rank, world_size = next(meet("env://", timeout=PATIENCE))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if with_gpus else "gloo",
        store=prefixed("steepest", _store),
        rank=rank,
        world_size=world_size,
        timeout=PATIENCE,
    )
    atexit.register(_leave)


def take_gpu() -> None:
    """Use the GPU that is this process's own.

    Raises:    UsageError where there are fewer GPUs than processes
    """
    if world_size() > 1:
        place, there = launch().local_rank, torch.cuda.device_count()
        if place >= there:
            raise UsageError(
                f"process {place + 1} of this machine has no GPU: there {'is' if there == 1 else 'are'} {there}. Start "
                "as many processes as there are GPUs, or set device='cpu'"
            )
        torch.cuda.set_device(place)


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks for all."""
    return rank() == 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave() -> None:
    if _joined():
        # Gloo's threads may still have to let go of the last tensors, for which they need the interpreter; one that
        # finds it gone aborts the process.
        time.sleep(0.5)
        dist.destroy_process_group()


@contextmanager
def _talking() -> Generator[None]:
    """What PyTorch raises when another process is gone, as an error that says so."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"another process of this run is gone ({str(error).strip().splitlines()[0]}). If it could, it said why; go "
            "on with --resume."
        ) from error


# Shares, and what is made of them


def share(count: int, together: int = 1) -> list[int]:
    """Which rows of a batch are this process's: every so many-th, ``together`` consecutive ones at a time.

    Of rows in the order of their length, all processes thus have about as many tokens.

    Verified:  tests/unit/test_distributed.py::test_shares_are_disjoint_and_complete
    """
    return [i for i in range(count) if i // together % world_size() == rank()]


def gather(value: T) -> list[T]:
    """What each process has, in the order of the processes.

    Raises:    UsageError or RunError where another process has come to an error, with its words
    """
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _talking():
        dist.all_gather_object(found, value)  # pickled, but by none other than the processes of this run
    for other in found:
        if isinstance(other, _Failure):
            raise other.kind(other.said) from _Elsewhere()
    return found


def decided(value: T) -> T:
    """What the main process has, in all of them."""
    return gather(value if is_main() else None)[0]  # pyright: ignore[reportReturnType]


def check_same(value: object, what: str) -> None:
    """UsageError unless all processes have the same.

    Verified:  tests/integration/test_distributed.py::test_processes_with_different_data_are_refused
    """
    if any(other != value for other in gather(value)):
        raise UsageError(f"{what} differs between the processes of this run: each has to be given the same")


def total(value: float) -> float:
    """A number summed over the processes."""
    return sum(gather(value))


def totals(values: Mapping[str, float]) -> dict[str, float]:
    """Numbers by name, each summed over the processes that have it, in one order: all get the same bits."""
    out: dict[str, float] = {}
    for part in gather(dict(values)):
        for name, value in part.items():
            out[name] = out.get(name, 0.0) + value
    return out


def whole_list(own: Sequence[T], places: Sequence[int]) -> list[T]:
    """A list of which each process has the elements at some places."""
    pairs = [pair for part in gather(list(zip(places, own, strict=True))) for pair in part]
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def whole_rows(own: Tensor | None, places: Sequence[int], count: int) -> Tensor:
    """A tensor (count, ...) of which each process has the rows at some places; None: it has none.

    Returns:   on the CPU
    Verified:  tests/unit/test_distributed.py::test_alone_nothing_changes
    """
    parts = gather((list(places), None if own is None else own.detach().cpu()))
    some = next(rows for _, rows in parts if rows is not None)
    out = some.new_empty((count, *some.shape[1:]))
    for where, rows in parts:
        if rows is not None:
            out[where] = rows
    return out


def copy_from_main(module: nn.Module) -> None:
    """Give all processes the weights and buffers of the main one: training keeps equal what was equal at first.

    Raises:    UsageError where they are of different shapes or number types
    """
    if world_size() == 1:
        return
    check_same([(tuple(x.shape), str(x.dtype)) for x in (*module.parameters(), *module.buffers())], "the model")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            dense = tensor.detach().contiguous()
            with _talking():
                dist.broadcast(dense.reshape(-1).view(torch.uint8), src=0)  # bytes: of any number type
            tensor.copy_(dense)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes; one that none of them has stays None.

    Verified:  tests/integration/test_distributed.py::test_two_processes_train_as_one
    """
    if world_size() == 1:
        return
    somewhere = [any(flags) for flags in zip(*gather([p.grad is not None for p in parameters]), strict=True)]
    gradients: list[Tensor] = []
    for parameter, used in zip(parameters, somewhere, strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with _talking():
            dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and device, as many as travel at once."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(x.numel() for x in bucket) + tensor.numel() > BUCKET_ELEMENTS
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# Ending together


@contextmanager
def interrupts_together() -> Generator[Callable[[], None]]:
    """Ctrl-C and ``ENDING`` signals inside only take effect where all processes ask for them, and then in all at once.

    One that stopped where it stands would leave the others waiting for it. Alone, signals do what they always do. Who
    is asked again does not wait, and ends where it stands; the others then find it gone.

    Returns:   what each process calls after every update; raises KeyboardInterrupt in all if any was told to stop
    Raises:    SystemExit, with the exit code of the signal, where it is the second one
    Verified:  tests/unit/test_distributed.py::test_a_second_signal_ends_a_process_where_it_stands,
               tests/integration/test_distributed.py::test_a_signal_stops_all_processes_and_they_resume_to_the_same_bits
    """
    if world_size() == 1 or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received, when = 0, 0.0

    def remember(number: int, _: object) -> None:
        nonlocal received, when
        if received and time.monotonic() - when > AT_ONCE:
            raise SystemExit(128 + number)  # not KeyboardInterrupt, upon which the model is saved, by all together
        if not received:
            received, when = number, time.monotonic()

    def stop() -> None:
        number = max(gather(received))
        if number:
            usual = previous.get(number)
            if callable(usual):
                usual(number, None)
            raise KeyboardInterrupt

    handled = [n for n in (signal.SIGINT, *ENDING) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {int(n): signal.signal(n, remember) for n in handled}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Failure(NamedTuple):
    """What a process tells the others when it cannot go on."""

    kind: type[SteepestError]
    said: str


class _Elsewhere(Exception):
    """The cause of an error that another process came to, and told all of."""


@contextmanager
def failing_together(*, tells: bool = True) -> Generator[None]:
    """What goes wrong inside in one process is raised in all: where they next wait for it, at the end at the latest.

    They would wait for it otherwise, until it exits, or for an hour where it does not. After the error they are in
    step, and may go on to another run.

    Args:      tells: False leaves out telling, and with it what is promised here: for where the others may be waiting
               inside of a model in parts, and cannot be told
    Raises:    in a process in which nothing went wrong: UsageError if it was one, else RunError, with the same words
    Verified:  tests/integration/test_distributed.py::test_an_error_in_one_process_is_raised_in_all,
               tests/unit/test_distributed.py::test_who_fails_tells_and_who_is_told_does_not_tell_again
    """
    try:
        yield
    except Exception as error:
        if tells and world_size() > 1 and not isinstance(error.__cause__, _Elsewhere):
            kind = UsageError if isinstance(error, UsageError) else RunError
            said = str(error) if isinstance(error, SteepestError) else f"{type(error).__name__}: {error}"
            with suppress(SteepestError):  # which is this failure itself, or says that the others are gone
                gather(_Failure(kind, said))
        raise
    gather(None)


def has_the_last_word() -> bool:
    """Whether this process is to say why the run ended: the first that asks, which is the one where it went wrong.

    Where all fail alike it is the main process, which knows the files: the others let it go first.

    Verified:  tests/integration/test_distributed.py::test_an_error_in_one_process_ends_all_with_one_message
    """
    if _store is None:
        return launch().rank == 0
    try:
        give_up = time.monotonic() + (0.0 if is_main() else 3.0)
        while time.monotonic() < give_up and not _store.check(["last word"]):
            time.sleep(0.05)
        return _store.add("last word", 1) == 1
    except RuntimeError:  # whoever kept the store is gone
        return True
