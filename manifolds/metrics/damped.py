"""The metric of an implicit step whose damping couples the parameters."""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .abstract import AbstractMetric
from .dense import Dense


class Damped(AbstractMetric):
    """P = (S⁻¹ + A)⁻¹ = S^½ (I + S^½ A S^½)⁻¹ S^½ for a metric S and a positive semi-definite matrix A.

    By the Cholesky factor L of I + S^½ A S^½, whose eigenvalues are at least 1 however S spreads: P = FᵀF with
    F = L⁻¹ S^½.

    Example:
        >>> Damped(Diagonal(jnp.array([1.0, 0.5])), jnp.eye(2))(jnp.ones(2))
        Array([0.5      , 0.3333333], dtype=float32)
    """

    metric: AbstractMetric
    cholesky: Float[Array, "p p"]

    def __init__(self, metric: AbstractMetric, damping: Float[Array, "p p"]):
        scaled = metric.sqrt(metric.sqrt(damping).T)
        self.metric = metric
        self.cholesky = jnp.linalg.cholesky(jnp.eye(damping.shape[0], dtype=damping.dtype) + (scaled + scaled.T) / 2)

    def half(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return solve_triangular(self.cholesky, self.metric.sqrt(w), lower=True)

    def __call__(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self.metric.sqrt(solve_triangular(self.cholesky, self.half(w), lower=True, trans=1))

    # Nothing that steps along Γ asks for the symmetric root; it is here for whoever does.
    def sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._dense().sqrt(w)

    def inv_sqrt(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        return self._dense().inv_sqrt(w)

    def largest(self) -> Float[Array, ""]:
        return self._dense().largest()

    def _dense(self) -> Dense:
        return Dense(self(jnp.eye(self.cholesky.shape[0], dtype=self.cholesky.dtype)))
