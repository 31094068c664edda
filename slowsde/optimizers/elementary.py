"""The few functions that V and S are made of, for numbers and for SymPy expressions in object arrays alike.

So an optimizer is written once: what runs on numbers is what `slowsde.derive` makes formulas of.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..support.arguments import is_symbolic


def is_formula(x: Any) -> bool:
    """Whether `x` is a SymPy expression or an object array of them, and no array of numbers."""
    return getattr(x, "dtype", None) == np.dtype(object) or is_symbolic(x)


def root(x: Any) -> Any:
    """√x."""
    # A power of 0.5 would be another operation than a square root to XLA, and other bits.
    return x**0.5 if is_formula(x) else jnp.sqrt(x)


def with_axis_first(x: Any, axis: int) -> Any:
    """x with that axis in front."""
    return (np if is_formula(x) else jnp).moveaxis(x, axis, 0)


def total(x: Any, axes: tuple[int, ...]) -> Any:
    """The sum over `axes`."""
    return np.sum(x, axis=axes) if is_formula(x) else jnp.sum(x, axis=axes)


def totals(x: Any, labels: np.ndarray, count: int) -> Any:
    """(count,) the sums of the entries of x (p,) that have the same label (p,)."""
    if not is_formula(x):
        return jnp.zeros(count, x.dtype).at[labels].add(x)
    return np.array([np.sum(x[labels == label]) for label in range(count)], object)


def mean_along(x: Any, axis: int) -> Any:
    """The mean over an axis, which is kept with length one."""
    if is_formula(x):
        return np.sum(x, axis=axis, keepdims=True) / x.shape[axis]
    return jnp.sum(x, axis=axis, keepdims=True) / max(x.shape[axis], 1)  # an empty leaf has no mean, and needs none


def quotient(a: Any, b: Any) -> Any:
    """a/b, and 0 where both vanish."""
    return a / b if is_formula(b) else a / jnp.where(b == 0, 1, b)
