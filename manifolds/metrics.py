"""Metrics S: symmetric positive definite matrices that are applied, never formed unless they are dense.

A metric acts on arrays whose first axis has length p, so `metric(w)` serves a vector (p,) and a stack of columns
(p, r) alike. A new kind (Kronecker, block) subclasses `AbstractMetric`; nothing else needs to know.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .coordinates import ravel
from .precision import is_traced


class AbstractMetric(eqx.Module):
    """A symmetric positive definite p×p matrix S through its action: S w, S^½ w and S^-½ w."""

    @abc.abstractmethod
    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S w."""

    @abc.abstractmethod
    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S^½ w."""

    @abc.abstractmethod
    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """S^-½ w."""

    @abc.abstractmethod
    def largest(self) -> Float[Array, ""]:
        """An upper bound of the largest eigenvalue of S that is attained."""

    def entries(self) -> Any:
        """The diagonal of S, (p,), or a number for a multiple of I; None where S is not diagonal."""
        return None

    def damped(self, damping: Float[Array, " p"]) -> "AbstractMetric | None":
        """(S⁻¹ + Diag(damping))⁻¹, the metric of an implicit step; None where it is not as cheap as S itself."""
        return None


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

    Example:
        >>> Diagonal({"w": jnp.array([1.0, 4.0])}).sqrt(jnp.ones(2))
        Array([1., 2.], dtype=float32)
    """

    diagonal: Float[Array, " p"]

    def __init__(self, diagonal: PyTree):
        self.diagonal = ravel(diagonal)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return _scale_rows(self.diagonal, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return _scale_rows(jnp.sqrt(self.diagonal), w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return _scale_rows(1 / jnp.sqrt(self.diagonal), w)

    def largest(self) -> Float[Array, ""]:
        return jnp.max(self.diagonal)

    def entries(self) -> Float[Array, " p"]:
        return self.diagonal

    def damped(self, damping: Float[Array, " p"]) -> "Diagonal":
        return Diagonal(self.diagonal / (1 + self.diagonal * damping))


class Scaled(AbstractMetric):
    """S = ρ M for a metric M and a number ρ > 0.

    Example:
        >>> Scaled(Identity(), 0.1)(jnp.ones(2))
        Array([0.1, 0.1], dtype=float32)
    """

    metric: AbstractMetric
    factor: Any

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.factor * self.metric(w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return jnp.sqrt(self.factor) * self.metric.sqrt(w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.metric.inv_sqrt(w) / jnp.sqrt(self.factor)

    def largest(self) -> Float[Array, ""]:
        return self.factor * self.metric.largest()

    def entries(self) -> Any:
        entries = self.metric.entries()
        return None if entries is None else self.factor * entries

    def damped(self, damping: Float[Array, " p"]) -> "Scaled | None":
        damped = self.metric.damped(self.factor * damping)  # (M⁻¹/ρ + D)⁻¹ = ρ (M⁻¹ + ρD)⁻¹
        return None if damped is None else Scaled(damped, self.factor)


class Reordered(AbstractMetric):
    """S = Pᵀ M P, where (P w)_i = w_{order(i)}: a metric M known in another order of the coordinates.

    Example:
        >>> Reordered(Diagonal(jnp.array([1.0, 2.0, 3.0])), np.array([2, 0, 1]))(jnp.ones(3))
        Array([2., 3., 1.], dtype=float32)
    """

    metric: AbstractMetric
    order: Any  # (p,) integers

    def _in_order(self, act: Callable[[Any], Any], w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return jnp.zeros_like(w).at[self.order].set(act(w[self.order]))

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric.sqrt, w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._in_order(self.metric.inv_sqrt, w)

    def largest(self) -> Float[Array, ""]:
        return self.metric.largest()

    def entries(self) -> Any:
        entries = self.metric.entries()
        if entries is None or jnp.ndim(entries) == 0:
            return entries
        return jnp.zeros_like(entries).at[self.order].set(entries)

    def damped(self, damping: Float[Array, " p"]) -> "Reordered | None":
        damped = self.metric.damped(damping[self.order])
        return None if damped is None else Reordered(damped, self.order)


class Dense(AbstractMetric):
    """S = a dense symmetric positive definite matrix, through its eigendecomposition (made once, on construction).

    Raises ValueError for a matrix that is not square, symmetric or positive definite (when its values are known).
    """

    values: Any  # (p,) ascending
    vectors: Any  # (p, p) orthonormal columns

    def __init__(self, matrix: Any):
        if jnp.ndim(matrix) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"metric has shape {jnp.shape(matrix)}; a dense metric must be square (p, p).")
        if is_traced(matrix):
            self.values, self.vectors = jnp.linalg.eigh(matrix)
            return
        matrix = np.asarray(matrix)  # NumPy keeps a float64 matrix when JAX's 64-bit flag is off
        if not np.max(np.abs(matrix - matrix.T)) <= 1e-6 * np.max(np.abs(matrix)):  # false for NaN too
            raise ValueError("metric is not symmetric positive definite: it is not symmetric. Pass (M + M.T)/2.")
        self.values, self.vectors = np.linalg.eigh(matrix)
        if not self.values[0] > 0:
            raise ValueError(
                f"metric is not symmetric positive definite: its smallest eigenvalue is {self.values[0]:.3g}."
            )

    def _spectral(self, f: Array, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.vectors @ _scale_rows(f, self.vectors.T @ w)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(self.values, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(jnp.sqrt(self.values), w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(1 / jnp.sqrt(self.values), w)

    def largest(self) -> Float[Array, ""]:
        return self.values[-1]


def as_metric(metric: Any, size: int) -> AbstractMetric:
    """A metric from what a user is likely to pass: a metric, None or "identity", a diagonal (flat or params-like), a
    (p, p) matrix. ValueError names anything else, and a metric whose size is not p = `size`."""
    if metric is None or (isinstance(metric, str) and metric == "identity"):
        return Identity()
    if isinstance(metric, (Dense, Diagonal)):
        found = metric.vectors.shape[0] if isinstance(metric, Dense) else metric.diagonal.shape[0]
    elif isinstance(metric, AbstractMetric):
        try:
            found = jax.eval_shape(metric, jax.ShapeDtypeStruct((size,), jnp.result_type(float))).shape[0]
        except (TypeError, ValueError) as error:
            name = type(metric).__name__
            raise ValueError(
                f"metric is a {name} that does not act on vectors of {size} parameters: {error}"
            ) from error
    elif isinstance(metric, (str, bytes)) or callable(metric):
        raise _unknown(metric)
    elif isinstance(metric, (np.ndarray, jnp.ndarray)) and np.ndim(metric) == 2:
        return as_metric(Dense(metric), size)
    else:
        leaves = jtu.tree_leaves(metric)
        if not leaves or not all(eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves):
            raise _unknown(metric)
        return as_metric(Diagonal(metric), size)
    if found != size:
        raise ValueError(f"metric acts on {found} parameters, but params has {size}.")
    if isinstance(metric, Diagonal) and not is_traced(metric):
        _check_positive(np.asarray(metric.diagonal))
    return metric


def _check_positive(diagonal: np.ndarray) -> None:
    good = (diagonal > 0) & np.isfinite(diagonal)
    if not good.all():
        worst = int(np.argmin(good))
        raise ValueError(
            f"metric is not positive and finite: entry {worst} is {diagonal[worst]:.3g}. An adaptive metric 1/(√v+ε) "
            "needs ε > 0 wherever v can vanish."
        )


def _unknown(metric: Any) -> ValueError:
    return ValueError(
        f"metric={metric!r} is not a metric. Use None, manifolds.Identity(), manifolds.Diagonal(d), "
        "manifolds.Dense(M), a subclass of manifolds.AbstractMetric, or an array (p,) or (p, p)."
    )


def _scale_rows(d: Float[Array, " p"], w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
    return (w.T * d).T
