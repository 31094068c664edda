"""Diffrax without its checks of times, which keep a program off the disk."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import equinox.internal as eqxi

# Where Diffrax checks saved times, and the knots of `StepTo`. A later one without these modules keeps its checks.
MODULES = ("diffrax._integrate", "diffrax._step_size_controller.constant")


class _Unchecked:
    """`equinox.internal` with an `error_if` that lets everything pass."""

    def __getattr__(self, name: str) -> Any:
        return getattr(eqxi, name)

    def error_if(self, x: Any, pred: Any, msg: str, **options: Any) -> Any:
        return x


@contextlib.contextmanager
def unchecked_times() -> Iterator[None]:
    """Within, or in a function decorated so, `diffrax.diffeqsolve` is traced without its checks that times are in order
    and within the run.

    They call Python, and JAX keeps no program on disk that does: the README's flow was compiled again in every process.
    Times are checked before, on the host. Checks of a user's model stay.
    """
    found = [module for module in map(_imported, MODULES) if getattr(module, "eqxi", None) is not None]
    for module in found:
        module.eqxi = _Unchecked()
    try:
        yield
    finally:
        for module in found:
            module.eqxi = eqxi


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
