"""How is small linear algebra done beside the forward pass, on all cores, one core each?

Eigenvalue routines use several cores badly, and many problems on one core each use them well. What is handed
in runs on a pool of threads; the caller goes on and asks for the outcome when it is needed.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Pending(Generic[T]):
    """Something that is being computed elsewhere."""

    parts: Sequence["Future[Any]"]
    join: Callable[[list[Any]], T]

    def result(self) -> T:
        """The outcome, waited for.

        Raises:
            Whatever the computation raised.
        """
        return self.join([part.result() for part in self.parts])


def run_apart(
    function: Callable[[Any], Any], items: Iterable[Any], join: Callable[[list[Any]], T]
) -> Pending[T]:
    """Run a function on each item in the pool; it must not use torch's own parallel operations."""
    pool = _pool(torch.get_num_threads())
    return Pending([pool.submit(_alone, function, item) for item in items], join)


def _alone(function: Callable[[Any], Any], item: Any) -> Any:
    with _single_threaded_blas():
        return function(item)


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=size, thread_name_prefix="mcr_lens")


class _SingleThreadedBlas:
    """While anything runs in the pool, NumPy's and SciPy's BLAS keep to one thread each; then as before."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = _controller().limit(limits=1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_BLAS = _SingleThreadedBlas()


def _single_threaded_blas() -> _SingleThreadedBlas:
    return _BLAS


@cache
def _controller() -> Any:
    import scipy.linalg  # noqa: F401  (a library must be there to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
