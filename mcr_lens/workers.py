"""How is small linear algebra done beside the forward pass, on all cores, one core each?

Eigenvalue routines use several cores badly, and many problems on one core each use them well. On a processor
the model needs those cores itself, so what is handed in waits until somebody asks for an outcome or too much
memory is held, and then all of it is done at once; beside a GPU it begins at once.
"""

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

HELD = 2**26
"""Bytes that may wait; then the work is done. Each handing-over costs a moment in which cores are idle."""


class Pending(Generic[T]):
    """Something that is computed elsewhere, or will be."""

    def __init__(self, function: Callable[[Any], Any], items: Iterable[Any], join: Callable[[list[Any]], T]):
        self._function, self._items, self._join = function, list(items), join
        self._parts: list[Future[Any]] | None = None
        self._outcome: T | None = None
        self.held = 0

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._parts is None:
            pool = _pool(torch.get_num_threads())
            self._parts = []
            for item in self._items:
                _BLAS.enter()
                self._parts.append(pool.submit(self._function, item))
                self._parts[-1].add_done_callback(_BLAS.leave)

    def result(self) -> T:
        """The outcome, waited for; asking again gives it again.

        Raises:
            Whatever the computation raised.
        """
        if self._outcome is None:
            if self._parts is None:
                _QUEUE.run()
            self.start()
            self._outcome = self._join([part.result() for part in self._parts or ()])
            # What the function holds, such as a residual stream, is needed no more.
            self._function, self._items, self._parts = _done, [], []
        return self._outcome


def run_apart(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    join: Callable[[list[Any]], T],
    *,
    held: int | None = None,
) -> Pending[T]:
    """Run a function on each item in the pool; it must not use torch's own parallel operations.

    Args:
        function: what to do with one item.
        items: the items.
        join: what to make of all outcomes, in order.
        held: bytes that the work keeps alive until it is done; None to begin at once.
    """
    work = Pending(function, items, join)
    if held is None:
        work.start()
    else:
        work.held = held
        _QUEUE.add(work)
    return work


class _Queue:
    """Work that waits. What nobody waits for any more, after an error, is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[weakref.ref[Pending[Any]]] = []

    def add(self, work: Pending[Any]) -> None:
        with self._lock:
            alive = [found for ref in self._waiting if (found := ref()) is not None]
            self._waiting = [weakref.ref(each) for each in (*alive, work)]
            full = sum(each.held for each in (*alive, work)) > HELD
        if full:
            for each in self.run():
                each.result()

    def run(self) -> list[Pending[Any]]:
        """Start everything that waits."""
        with self._lock:
            alive = [found for ref in self._waiting if (found := ref()) is not None]
            self._waiting = []
        for each in alive:
            each.start()
        return alive


_QUEUE = _Queue()


class _Scratch(threading.local):
    """Memory of each thread that is used again: fresh memory costs more than what is done in it."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
        """An array with anything in it, in C order; the next one of this name lies in the same place."""
        size = math.prod(shape)
        found = self._kept.get(name)
        if found is None or found.size < size or found.dtype != dtype:
            found = np.empty(size, dtype)
            if found.nbytes <= KEPT:
                self._kept[name] = found
        return found[:size].reshape(shape)


SCRATCH = _Scratch()

KEPT = 2**24
"""Bytes of an array that a thread keeps at most."""


class OnHost(NamedTuple):
    """A tensor on its way to the processor's memory; `wait` before reading it."""

    tensor: Tensor
    ready: Any

    def wait(self) -> None:
        if self.ready is not None:
            self.ready.synchronize()


def to_host(tensor: Tensor) -> OnHost:
    """A copy in the processor's memory; from a CUDA device without waiting for it."""
    if tensor.device.type != "cuda":
        return OnHost(tensor, None)
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    held.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(tensor.device))
    return OnHost(held, ready)


def _done(item: Any) -> Any:
    raise AssertionError("the work was done already")


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=size, thread_name_prefix="mcr_lens")


if hasattr(
    os, "register_at_fork"
):  # a forked process has the pool without its threads, and would wait for ever
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _SingleThreadedBlas:
    """While anything runs in the pool, NumPy's and SciPy's BLAS keep to one thread each; then as before."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def enter(self) -> None:
        """One more is handed in."""
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = _controller().limit(limits=1)

    def leave(self, part: Any = None) -> None:
        """One is done."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_BLAS = _SingleThreadedBlas()


@cache
def _controller() -> Any:
    import scipy.linalg  # noqa: F401  (a library must be there to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
