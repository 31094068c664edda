"""The Jacobian J = ∂r/∂x of m residuals through its products: its rows stored, or nothing of its size ever formed."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from ..metrics.abstract import AbstractMetric
from ..support.blocks import map_in_blocks
from ..support.precision import in_double

Vector = Float[Array, " p"]


class AbstractJacobian(eqx.Module):
    """An m×p matrix J at a point, p parameters and m residuals."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The precision of its products."""

    @abc.abstractmethod
    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "m *r"]:
        """J w."""

    @abc.abstractmethod
    def transposed(self, u: Float[Array, "m *r"]) -> Float[Array, "p *r"]:
        """Jᵀ u."""

    @abc.abstractmethod
    def gram(self, metric: AbstractMetric) -> Float[Array, "m m"]:
        """K = J S Jᵀ, exactly symmetric; in float64 where the rows are at hand, see `precision.in_double`."""


class StoredJacobian(AbstractJacobian):
    """J as an array.

    Example:
        >>> StoredJacobian(jnp.array([[1.0, 2.0]])).gram(Identity())
        Array([[5.]], dtype=float32)
    """

    rows: Float[Array, "m p"]

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "m *r"]:
        return self.rows @ w

    def transposed(self, u: Float[Array, "m *r"]) -> Float[Array, "p *r"]:
        return self.rows.T @ u

    def gram(self, metric: AbstractMetric) -> Float[Array, "m m"]:
        # As (S^½Jᵀ)ᵀ(S^½Jᵀ), which rounds to a symmetric matrix; (J S)Jᵀ does not, and eigenpairs would depend on the
        # triangle.
        return in_double(lambda half: half.T @ half)(metric.half(self.rows.T))


class JacobianProducts(AbstractJacobian):
    """J by automatic differentiation of `residuals` (p,) -> (m,) at x: a product costs about two gradients of ½|r|².

    `rows(datum)` are the rows (k, p) of one sample of `data`, whose leaves have the n samples along their leading axis,
    m = nk; `block` products are computed at once, and the rows of `samples` samples. J itself is formed for its Gram
    matrix alone, if `stored`.
    """

    residuals: Callable[[Vector], Float[Array, " m"]]
    rows: Callable[[PyTree], Float[Array, "k p"]]
    data: PyTree
    x: Vector
    block: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    stored: bool = eqx.field(static=True)

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "m *r"]:
        return _on_columns(lambda column: jax.jvp(self.residuals, (self.x,), (column,))[1], w, self.block)

    def transposed(self, u: Float[Array, "m *r"]) -> Float[Array, "p *r"]:
        return _on_columns(lambda column: jax.vjp(self.residuals, self.x)[1](column)[0], u, self.block)

    def gram(self, metric: AbstractMetric) -> Float[Array, "m m"]:
        if self.stored:
            # Rows by backward passes and one matrix product: m products K e_i would cost about four times as much.
            rows = map_in_blocks(self.rows, self.data, self.samples)
            return StoredJacobian(rows.reshape(-1, self.x.shape[0])).gram(metric)
        return self._gram_by_products(metric)

    def _gram_by_products(self, metric: AbstractMetric) -> Float[Array, "m m"]:
        def columns(datum: PyTree) -> Float[Array, "k m"]:
            # Rows of K block by block, J S J_iᵀ: only the rows of one block and K itself are held.
            tangents = metric(self.rows(datum).T)
            return jax.vmap(lambda w: jax.jvp(self.residuals, (self.x,), (w,))[1], 1)(tangents)

        found = map_in_blocks(columns, self.data, self.block)
        kernel = found.reshape(-1, found.shape[-1])
        # Entries (i, j) and (j, i) came from different passes.
        return (kernel + kernel.T) / 2


def _on_columns(product: Callable[[Any], Any], columns: Array, block: int) -> Array:
    return product(columns) if columns.ndim == 1 else map_in_blocks(product, columns.T, block).T
