"""Any twice differentiable loss, by its dense p×p Hessian."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..metrics.abstract import AbstractMetric
from ..normal.constraints import LOOSE, Preconditioner
from ..normal.normal_space import AbstractNormalSpace, DenseNormalSpace
from ..support.arrays import signs
from ..support.blocks import map_in_blocks
from ..support.coordinates import Coordinates
from .abstract import CHUNK, AbstractLoss, Vector


class ScalarLoss(AbstractLoss):
    """Any twice differentiable loss, `function(params) -> scalar`, by dense eigendecomposition (p up to about 2000).

    `like` is a pytree with the shapes of params.

    Example:
        >>> loss = ScalarLoss(lambda x: 0.25 * (x[0] ** 2 + 4 * x[1] ** 2 - 1) ** 2, like=jnp.zeros(2))
        >>> loss.value(jnp.array([1.0, 0.0]))
        Array(0., dtype=float32)
    """

    function: Callable[[PyTree], Float[Array, ""]]
    coordinates: Coordinates = eqx.field(static=True)

    def __init__(self, function: Callable[[PyTree], Any], like: PyTree):
        self.function = function
        self.coordinates = like if isinstance(like, Coordinates) else Coordinates.of(like)

    @property
    def route(self) -> str:
        return "dense"

    @property
    def rank_for(self) -> str:
        return "the projector on Γ from eigenpairs of a dense Hessian"

    def value(self, x: Vector) -> Float[Array, ""]:
        return self.function(self.coordinates.unravel(x))

    def gradient(self, x: Vector) -> Vector:
        return jax.grad(self.value)(x)

    def residual(self, x: Vector) -> Float[Array, ""]:
        return jnp.linalg.norm(self.gradient(x))

    def hessian(self, x: Vector) -> Float[Array, "p p"]:
        """∇²L(x), from forward over reverse."""
        return jax.jacfwd(self.gradient)(x)

    def normal_space(self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> DenseNormalSpace:
        return DenseNormalSpace(self.hessian(x), metric, rank)

    def newton_step(self, x: Vector, normal: AbstractNormalSpace, accuracy: float = LOOSE) -> Vector:
        return normal.solve(self.gradient(x))

    def damped_solver(
        self, x: Vector, metric: AbstractMetric, h: Float[Array, ""], near: Preconditioner | None = None
    ) -> Callable[[Vector], Vector]:
        # LU, not Cholesky: S A is not symmetric, and off Γ the Hessian need not be positive.
        factors = jax.scipy.linalg.lu_factor(jnp.eye(x.shape[0], dtype=x.dtype) + h * metric(self.hessian(x)))
        return lambda w: jax.scipy.linalg.lu_solve(factors, w)

    def hessian_diagonal(self, x: Vector) -> Vector:
        # Column by column in blocks: the Hessian of a large p is not kept for the sake of its diagonal.
        def entry(unit: Vector) -> Float[Array, ""]:
            return unit @ jax.jvp(self.gradient, (x,), (unit,))[1]

        return map_in_blocks(entry, jnp.eye(x.shape[0], dtype=x.dtype), CHUNK)

    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        # Of H itself, not of H': a congruence keeps signs, and the message can name an eigenvalue without the metric.
        values = jnp.linalg.eigvalsh(self.hessian(x))
        rounding = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.max(jnp.abs(values))
        return jnp.where(values[0] < -rounding, values[0], 0)

    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        # Two nested jvps: `jax.experimental.jet` failed on 7 of 24 common functions, and was slower where it worked.
        def product(pair: tuple[Vector, Vector]) -> Vector:
            u, w = pair
            return jax.jvp(lambda y: jax.jvp(self.gradient, (y,), (w,))[1], (x,), (u,))[1]

        return jnp.sum(map_in_blocks(product, (left.T, right.T), CHUNK), axis=0)

    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        columns = jnp.eye(x.shape[0], dtype=x.dtype)
        # S = Σ_k e_k (S e_k)ᵀ.
        return self.contract_factors(x, columns, metric(columns))

    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        # The diagonal by a fixed random sign vector (Hutchinson), from one directional derivative of T[S].
        z = signs(x.size, x.dtype)
        return jnp.abs(z * jax.jvp(lambda y: self.contract_metric(y, metric), (x,), (z,))[1])

    def constraint_curvature(self, x: Vector, multipliers: Array) -> Vector:
        # The constraints are ∇L = 0, so this is the diagonal of ∇³L[μ, ·].
        z = signs(x.size, x.dtype)
        return z * self.contract_factors(x, multipliers[:, None], z[:, None])

    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        return normal.solve(self.contract_factors(x, tangent, tangent))
