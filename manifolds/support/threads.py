"""LAPACK on one thread, which small matrices want and a busy machine needs."""

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

# Whoever sets one of these has chosen.
_CHOSEN_BY = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")


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
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    importlib.import_module("scipy.linalg")  # the one that JAX uses must be loaded to be found
    return ThreadpoolController()
