"""Diffrax without its checks of times, which keep a program off the disk."""

import contextlib
from collections.abc import Iterator
from typing import Any

import diffrax._integrate as integrate
import equinox.internal as eqxi


class _Unchecked:
    """`equinox.internal` with an `error_if` that lets everything pass."""

    def __getattr__(self, name: str) -> Any:
        return getattr(eqxi, name)

    def error_if(self, x: Any, pred: Any, msg: str, **options: Any) -> Any:
        return x


@contextlib.contextmanager
def unchecked_times() -> Iterator[None]:
    """Within, `diffrax.diffeqsolve` is traced without its checks that saved times are in order and within the run.

    They call Python, and JAX keeps no program on disk that does: the README's flow was compiled again in every process.
    Times are checked before, on the host. Checks of a user's model stay.
    """
    # By the name that this one module of Diffrax reads; a later Diffrax without it keeps its checks.
    known = hasattr(integrate, "eqxi")
    if known:
        integrate.eqxi = _Unchecked()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if known:
            integrate.eqxi = eqxi
