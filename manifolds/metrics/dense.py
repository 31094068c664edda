"""A metric given as a p×p matrix."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..support.precision import is_traced
from .abstract import AbstractMetric
from .diagonal import scale_rows


class Dense(AbstractMetric):
    """S = a dense symmetric positive definite matrix, through its eigendecomposition (made once, on construction).

    Raises ValueError for a matrix that is not square, symmetric or positive definite (when its values are known).

    Example:
        >>> Dense(np.array([[2.0, 1.0], [1.0, 2.0]]))(jnp.ones(2)).round(5)
        Array([3., 3.], dtype=float32)
    """

    values: Any  # (p,) ascending
    vectors: Any  # (p, p) orthonormal columns

    def __init__(self, matrix: Any):
        if jnp.ndim(matrix) != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"metric has shape {jnp.shape(matrix)}; a dense metric must be square (p, p).")
        # While traced the values are unknown: no check is possible, and a matrix that is not positive gives NaN.
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
        return self.vectors @ scale_rows(f, self.vectors.T @ w)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(self.values, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(jnp.sqrt(self.values), w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._spectral(1 / jnp.sqrt(self.values), w)

    def largest(self) -> Float[Array, ""]:
        return self.values[-1]
