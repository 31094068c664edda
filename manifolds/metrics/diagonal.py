"""The metrics of SGD, S = I, and of Adam and its kin, S = Diag(d)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..support.coordinates import ravel
from ..support.precision import is_traced
from .abstract import AbstractMetric


class Identity(AbstractMetric):
    """S = I: gradient flow and SGD."""

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return w

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return w

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return w

    def largest(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)

    def entries(self) -> float:
        return 1.0

    def damped(self, damping: Float[Array, " p"]) -> "Diagonal":
        return Diagonal(1 / (1 + damping))


class Diagonal(AbstractMetric):
    """S = Diag(d), the metric of RMSProp and Adam. `diagonal` is a flat (p,) array or a params-like pytree.

    Raises ValueError for entries that are not positive and finite.

    Example:
        >>> Diagonal({"w": jnp.array([1.0, 4.0])}).sqrt(jnp.ones(2))
        Array([1., 2.], dtype=float32)
    """

    diagonal: Float[Array, " p"]

    def __init__(self, diagonal: PyTree):
        self.diagonal = ravel(diagonal)
        check_positive(self.diagonal)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return scale_rows(self.diagonal, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return scale_rows(jnp.sqrt(self.diagonal), w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return scale_rows(1 / jnp.sqrt(self.diagonal), w)

    def largest(self) -> Float[Array, ""]:
        return jnp.max(self.diagonal)

    def entries(self) -> Float[Array, " p"]:
        return self.diagonal

    def damped(self, damping: Float[Array, " p"]) -> "Diagonal":
        # d/(1 + dD) = (1/d + D)⁻¹ without 1/d: d may be 1/ε.
        return Diagonal(self.diagonal / (1 + self.diagonal * damping))


def scale_rows(d: Float[Array, " p"], w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
    # Serves a vector and a stack of columns alike, as the first axis is the one of length p.
    return (w.T * d).T


def check_positive(diagonal: Float[Array, " p"]) -> None:
    """ValueError unless the entries are positive and finite; what is traced, or has symbols, is not looked at."""
    if is_traced(diagonal):
        return
    entries = np.asarray(diagonal)
    if entries.dtype == object:
        return
    good = (entries > 0) & np.isfinite(entries)
    if not good.all():
        worst = int(np.argmin(good))
        raise ValueError(
            f"metric is not positive and finite: entry {worst} is {entries[worst]:.3g}. An adaptive metric 1/(√v+ε) "
            "needs ε > 0 wherever v can vanish."
        )
