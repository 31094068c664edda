"""Adafactor: the second moment of a matrix kept as its means over rows and over columns."""

from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..support.arguments import positive_integer
from .adam import checked_eps
from .agm import AGM, Settings
from .elementary import mean_along, quotient, root


def adafactor(c: Any, b1: float = 0.0, eps: float = 1e-8, min_size: int = 1, **settings: Unpack[Settings]) -> AGM:
    """Adafactor: V = (r, s), the means of g² over rows and over columns, S = Diag(1/(√(r_i s_j / mean r) + ε)).

    Of a tensor the two largest axes are those of the matrix, for each index of the others, as in Optax; a vector or
    scalar, and a leaf one of whose two axes is shorter than `min_size`, keeps g² as Adam does. v is params-like with a
    tuple (r, s), both with axes of length one where the mean was taken, in the place of a factored leaf, and a flat
    array in that of one that is too small. Under label noise the drift has in general no potential.

    Optax's `scale_by_factored_rms(epsilon=0.0)` makes the same steps for b1 = 0, ε = 0, min_size =
    `min_dim_size_to_factor` (128 there by default) and one β2, corrected for bias,
    `decay_rate_fn=lambda k, _: 1 - (1 - b2) / (1 - b2 ** (k + 1))`. Its default β2 = 1 − k^{−0.8} forgets ever more
    slowly, at no rate c; and `optax.adafactor` besides clips steps and scales them by the size of a parameter, which is
    no metric of a state v. (Shazeer and Stern 2018, Adafactor.)

    Args:
        c, b1, eps, settings: as for `adam`.
        min_size: the least length of the shorter of the two axes for a leaf to be factored.

    Raises ValueError as `adam` does, and for a min_size that is no positive integer.

    Example:
        >>> adafactor(c=1.0).V(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
        (Array([[5.],
               [1.]], dtype=float32), Array([[1., 5.]], dtype=float32))
    """
    size = positive_integer("min_size", min_size)
    return AGM(FactoredMeans(size), FactoredMetric(checked_eps(eps)), c, b1, **settings)


class FactoredMeans(eqx.Module):
    """V: gradient ↦ means of g², see `adafactor`."""

    min_size: int = eqx.field(static=True)

    def __call__(self, gradient: PyTree) -> PyTree:
        return jax.tree.map(self._of_leaf, gradient)

    def _of_leaf(self, g: Any) -> Any:
        if g.ndim < 2:
            return g * g
        shorter, longer = (int(axis) for axis in np.argsort(g.shape)[-2:])
        if g.shape[shorter] < self.min_size:
            # Flat, so that a tuple of two arrays with two axes is a factored leaf and nothing else.
            return (g * g).reshape(-1)
        return mean_along(g * g, longer), mean_along(g * g, shorter)


class FactoredMetric(eqx.Module):
    """v ↦ Diag(1/(√v + ε)), with v = r s / mean r where it is factored: a params-like diagonal."""

    eps: Any

    def __call__(self, v: PyTree) -> PyTree:
        return jax.tree.map(lambda node: 1 / (root(_second_moment(node)) + self.eps), v, is_leaf=_is_factored)


def _second_moment(node: Any) -> Array:
    if not _is_factored(node):
        return node
    long, short = node
    # The axis of which the second has one index only is the one along which the first is to be averaged.
    mean = long
    for axis in (axis for axis, length in enumerate(short.shape) if length == 1):
        mean = mean_along(mean, axis)
    return quotient(long * short, mean)


def _is_factored(node: Any) -> bool:
    return type(node) is tuple and len(node) == 2 and all(jnp.ndim(item) >= 2 for item in node)
