"""LAPACK on one thread, which small matrices want and a busy machine needs."""

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

# Whoever sets one of these has chosen.
_CHOSEN_BY = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
_lock = threading.Lock()
_within = 0  # contexts open now, in all threads of the program
_limit: contextlib.AbstractContextManager[object] | None = None


@contextlib.contextmanager
def single_threaded_lapack() -> Iterator[None]:
    """A context in which the eigenpairs and Cholesky factors that JAX computes on a CPU use one thread each.

    JAX hands them to the BLAS of SciPy, whose threads wait for each other by spinning. On two cores that anything else
    uses as well, eigenpairs of a 200×200 kernel then take 290 ms instead of 2.3 ms, of a 400×400 kernel 2.3 s instead
    of 11 ms. Products of matrices are XLA's own and keep all cores. Nothing is done if one of the environment variables
    OPENBLAS_NUM_THREADS, MKL_NUM_THREADS, BLIS_NUM_THREADS or OMP_NUM_THREADS is set.
    """
    # `to_manifold` at rank 180 took 183 s on a busy machine before this, and 11 s with it.
    if any(name in os.environ for name in _CHOSEN_BY):
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    """Set the limit, if no other thread has."""
    # The limit belongs to the process: where two overlapped, the second to end once restored the "one thread" that it
    # had found, for good.
    global _within, _limit
    with _lock:
        if _within == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _within += 1


def _leave() -> None:
    """Take the limit away, if no other thread is within."""
    global _within, _limit
    with _lock:
        _within -= 1
        if _within == 0 and _limit is not None:
            _limit.__exit__(None, None, None)
            _limit = None


@functools.cache
def _controller() -> ThreadpoolController:
    importlib.import_module("scipy.linalg")  # the one that JAX uses must be loaded to be found
    return ThreadpoolController()
