"""A Kronecker product of small matrices, one for each axis of a tensor of parameters: the metric of Shampoo."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..support.precision import is_traced
from .abstract import AbstractMetric


class Kronecker(AbstractMetric):
    """S = ⊗_i (F_i + εI)^s on a tensor of shape (n_1, ..., n_k): each factor acts along its own axis.

    For a matrix G with factors L (a×a) and R (b×b) that is S G = (L + εI)^s G (R + εI)^s, which as a matrix on the
    stacked columns of G is (R + εI)^s ⊗ (L + εI)^s. Vectors that a metric acts on hold the tensor row by row, as
    `ravel_pytree` does.

    Args:
        factors: symmetric positive semi-definite matrices F_i (n_i, n_i), one an axis. Eigenvalues that rounding has
            made negative count as zero.
        power: s, the same for every factor.
        shift: ε ≥ 0.

    Raises ValueError for a factor that is not square, symmetric or positive semi-definite, and where F_i + εI has no
    finite, positive power s (values are looked at when they are known, that is outside jit and vmap).

    Example:
        >>> shampoo = Kronecker([jnp.diag(jnp.array([1.0, 16.0])), 16 * jnp.eye(3)], power=-0.25)
        >>> shampoo(jnp.ones(6))  # L^-1/4 G R^-1/4 for the 2×3 matrix G of ones
        Array([0.5 , 0.5 , 0.5 , 0.25, 0.25, 0.25], dtype=float32)
    """

    values: tuple[Any, ...]  # eigenvalues of (F_i + εI)^s, (n_i,)
    vectors: tuple[Any, ...]  # their eigenvectors as columns, (n_i, n_i)

    def __init__(self, factors: Sequence[Any], power: Any = 1.0, shift: Any = 0.0):
        for axis, factor in enumerate(factors):
            if jnp.ndim(factor) != 2 or factor.shape[0] != factor.shape[1] or factor.shape[0] == 0:
                raise ValueError(f"factors[{axis}] has shape {jnp.shape(factor)}; it must be square (n, n) with n ≥ 1.")
        # Known factors by NumPy, which keeps float64 when JAX's 64-bit flag is off.
        known = not is_traced(factors, power, shift)
        pairs = [_known_eigenpairs(f, axis) if known else jnp.linalg.eigh(f) for axis, f in enumerate(factors)]
        xp = np if known else jnp
        with np.errstate(divide="ignore"):
            # L = Σ G Gᵀ has rank at most as many as columns were seen: its zeros come out as ± rounding, whose power
            # would be NaN.
            self.values = tuple((xp.maximum(values, 0) + shift) ** power for values, _ in pairs)
        self.vectors = tuple(vectors for _, vectors in pairs)
        if known and not all(np.all(np.isfinite(v) & (v > 0)) for v in self.values):
            raise ValueError(
                f"(F + εI)^s is not positive and finite for power s={power} and shift ε={shift}: a factor is singular. "
                "Pass a positive shift (the eps of the optimizer)."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_1, ..., n_k)."""
        return tuple(values.shape[0] for values in self.values)

    def _power(self, s: float, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        tensor = jnp.reshape(w, self.shape + w.shape[1:])
        for axis, (values, vectors) in enumerate(zip(self.values, self.vectors, strict=True)):
            # As a small matrix, so that each axis takes one product whatever number of columns w has.
            matrix = (vectors * values**s) @ vectors.T
            tensor = jnp.moveaxis(jnp.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)
        return tensor.reshape(w.shape)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._power(1.0, w)

    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._power(0.5, w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._power(-0.5, w)

    def largest(self) -> Float[Array, ""]:
        # Eigenvalues of a Kronecker product are the products of one of each factor.
        return jnp.prod(jnp.stack([jnp.max(values) for values in self.values]))


def _known_eigenpairs(factor: Any, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a factor in its own precision; ValueError if it is not positive semi-definite."""
    factor = np.asarray(factor)
    largest = np.max(np.abs(factor))
    if not np.max(np.abs(factor - factor.T)) <= 1e-6 * largest < np.inf:  # false for NaN too
        raise ValueError(f"factors[{axis}] is not finite and symmetric. Pass (F + F.T)/2.")
    values, vectors = np.linalg.eigh(factor)
    if values[0] < -1e-6 * largest:
        raise ValueError(f"factors[{axis}] is not positive semi-definite: its smallest eigenvalue is {values[0]:.3g}.")
    return values, vectors
