"""Losses on flat coordinates and what the geometry asks of them, by two routes behind one interface.

`ScalarLoss` takes any loss and works with dense Hessians; `LeastSquaresLoss` works with per-sample Jacobians and the
n×n kernel. Contractions with ∇³L never form a p×p×p array.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PyTree

from .blocks import batches_well, map_in_blocks
from .coordinates import Coordinates
from .metrics import AbstractMetric, Identity
from .normal_space import AbstractNormalSpace, Constraints, DenseNormalSpace, KernelNormalSpace

Vector = Float[Array, " p"]
CHUNK = 64  # third-derivative products evaluated together: bounds memory without costing speed


class AbstractLoss(eqx.Module):
    """A loss L: R^p → R near its manifold Γ of minimizers. `coordinates` ties R^p to the user's pytree."""

    coordinates: eqx.AbstractVar[Coordinates]

    @abc.abstractmethod
    def value(self, x: Vector) -> Float[Array, ""]:
        """L(x)."""

    @abc.abstractmethod
    def gradient(self, x: Vector) -> Vector:
        """∇L(x)."""

    @abc.abstractmethod
    def residual(self, x: Vector) -> Float[Array, ""]:
        """A number that vanishes on Γ and nowhere near it: |∇L|, or the largest residual of a least-squares loss."""

    @abc.abstractmethod
    def normal_space(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None
    ) -> AbstractNormalSpace:
        """Eigenpairs of H' = S^½ ∇²L(x) S^½ on its range (Gauss–Newton where that is exact on Γ)."""

    def batches_well(self, x: Vector) -> bool:
        """Whether normal spaces of points like x may be vectorized over, see `manifolds.blocks`."""
        values = jax.eval_shape(lambda y: self.normal_space(y, Identity()).values, x)
        return batches_well(values.shape[0])

    @abc.abstractmethod
    def newton_step(self, x: Vector, normal: AbstractNormalSpace) -> Vector:
        """S^½ (H')⁺ S^½ ∇L(x), or S Jᵀ (J S Jᵀ)⁺ r(x): subtract it to return to Γ along S·(normal space)."""

    @abc.abstractmethod
    def damped_solver(self, x: Vector, metric: AbstractMetric, h: Float[Array, ""]) -> Callable[[Vector], Vector]:
        """w ↦ (I + h S A)⁻¹ w with A ≈ ∇²L(x): the linear solve of an implicit step of ẋ = −S∇L."""

    @abc.abstractmethod
    def hessian_diagonal(self, x: Vector) -> Vector:
        """diag ∇²L(x) at a point of Γ."""

    @abc.abstractmethod
    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        """The smallest eigenvalue of ∇²L(x) if negative beyond rounding, else 0: nonzero at a saddle."""

    @abc.abstractmethod
    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        """Σ_k ∇³L(x)[u_k, w_k] = T[M], M = ½Σ(u_k w_kᵀ + w_k u_kᵀ), up to a vector that Π S kills."""

    @abc.abstractmethod
    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        """T[S] = ∇⟨∇²L(x), S⟩ with S held fixed, up to a vector that Π S kills."""

    @abc.abstractmethod
    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        """diag of a positive semi-definite model of ∇²⟨∇²L(x), S⟩, S held fixed: how stiff the flow of T[S] is."""

    def constraints(self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> Any:
        """The normal space at x for steps along Γ only: its `project_gradient`, and what `newton_step` asks of it."""
        return self.normal_space(x, metric, rank)

    @abc.abstractmethod
    def constraint_curvature(self, x: Vector, normal: Any, gradient: Vector) -> Vector:
        """An estimate of diag Σ_i μ_i ∇²r_i, the curvature of Γ that a force holds against: Jᵀμ is the normal part of
        `gradient`. A function F with that gradient has the Hessian ∇²F − Σ_i μ_i ∇²r_i along Γ."""

    @abc.abstractmethod
    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        """S^½ (H')⁺ S^½ T[Σ_k t_k t_kᵀ] for tangent columns t_k: how far Γ bends away along them."""


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

    def newton_step(self, x: Vector, normal: AbstractNormalSpace) -> Vector:
        return normal.solve(self.gradient(x))

    def damped_solver(self, x: Vector, metric: AbstractMetric, h: Float[Array, ""]) -> Callable[[Vector], Vector]:
        factors = jax.scipy.linalg.lu_factor(jnp.eye(x.shape[0], dtype=x.dtype) + h * metric(self.hessian(x)))
        return lambda w: jax.scipy.linalg.lu_solve(factors, w)

    def hessian_diagonal(self, x: Vector) -> Vector:
        def entry(unit: Vector) -> Float[Array, ""]:
            return unit @ jax.jvp(self.gradient, (x,), (unit,))[1]

        return map_in_blocks(entry, jnp.eye(x.shape[0], dtype=x.dtype), CHUNK)

    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        values = jnp.linalg.eigvalsh(self.hessian(x))
        rounding = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.max(jnp.abs(values))
        return jnp.where(values[0] < -rounding, values[0], 0)

    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        def product(pair: tuple[Vector, Vector]) -> Vector:
            u, w = pair
            return jax.jvp(lambda y: jax.jvp(self.gradient, (y,), (w,))[1], (x,), (u,))[1]

        return jnp.sum(map_in_blocks(product, (left.T, right.T), CHUNK), axis=0)

    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        columns = jnp.eye(x.shape[0], dtype=x.dtype)
        return self.contract_factors(x, columns, metric(columns))

    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        # The diagonal by a fixed random sign vector (Hutchinson), from one directional derivative of T[S].
        signs = jr.rademacher(jr.key(0), x.shape, x.dtype)
        return jnp.abs(signs * jax.jvp(lambda y: self.contract_metric(y, metric), (x,), (signs,))[1])

    def constraint_curvature(self, x: Vector, normal: Any, gradient: Vector) -> Vector:
        # The constraints are ∇L = 0, with multipliers (H')⁺ in the metric S: ∇³L[S^½(H')⁺S^½ g, ·].
        signs = jr.rademacher(jr.key(0), x.shape, x.dtype)
        return signs * self.contract_factors(x, normal.solve(gradient)[:, None], signs[:, None])

    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        return normal.solve(self.contract_factors(x, tangent, tangent))


class LeastSquaresLoss(AbstractLoss):
    """L(x) = 1/(2n) Σ_i |f(x, input_i) − y_i|², minimized where every residual vanishes, by per-sample Jacobians.

    `predict(params, input) -> scalar or array`; `inputs` is a pytree and `targets` an array, both with leading axis n.
    On Γ (r = 0) H = JᵀJ/n, and K = J S Jᵀ/n carries the spectrum of H'. Residuals and Jacobians below are divided by
    √n, so that L = ½|r|² and K = J S Jᵀ.

    Example:
        >>> loss = LeastSquaresLoss(lambda w, z: z @ w, inputs=jnp.ones((3, 5)), targets=jnp.ones(3), like=jnp.zeros(5))
        >>> loss.residuals(jnp.zeros(5)).shape, loss.jacobian(jnp.zeros(5)).shape
        ((3,), (3, 5))
    """

    predict: Callable[[PyTree, PyTree], Array]
    inputs: PyTree
    targets: Float[Array, "n *k"]
    coordinates: Coordinates = eqx.field(static=True)

    def __init__(self, predict: Callable[[PyTree, PyTree], Any], inputs: PyTree, targets: Array, like: PyTree):
        self.predict = predict
        self.inputs = inputs
        self.targets = targets
        self.coordinates = like if isinstance(like, Coordinates) else Coordinates.of(like)

    @property
    def num_samples(self) -> int:
        """n."""
        return self.targets.shape[0]

    def prediction(self, x: Vector, datum: PyTree) -> Float[Array, " k"]:
        """f(x, datum) as a vector of its k outputs."""
        return jnp.ravel(self.predict(self.coordinates.unravel(x), datum))

    def residuals(self, x: Vector) -> Float[Array, " nk"]:
        """(f(x, input_i) − y_i)/√n, outputs of a sample side by side."""
        predictions = jax.vmap(self.prediction, (None, 0))(x, self.inputs)
        targets = jnp.reshape(self.targets, predictions.shape)
        return jnp.ravel(predictions - targets) / jnp.sqrt(self.num_samples)

    def jacobian(self, x: Vector) -> Float[Array, "nk p"]:
        """∂residuals/∂x, one backward pass a sample and output."""
        rows = jax.vmap(jax.jacrev(self.prediction), (None, 0))(x, self.inputs)
        return rows.reshape(-1, x.shape[0]) / jnp.sqrt(self.num_samples)

    def curvature_jacobian(self, x: Vector) -> Float[Array, "nk p"]:
        """J with JᵀJ ≈ ∇²L(x) off Γ as well: the Gauss–Newton model of the curvature."""
        return self.jacobian(x)

    def value(self, x: Vector) -> Float[Array, ""]:
        return 0.5 * jnp.sum(self.residuals(x) ** 2)

    def gradient(self, x: Vector) -> Vector:
        return jax.grad(self.value)(x)

    def residual(self, x: Vector) -> Float[Array, ""]:
        return jnp.max(jnp.abs(self.residuals(x))) * jnp.sqrt(self.num_samples)

    def normal_space(self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> KernelNormalSpace:
        return KernelNormalSpace(self.jacobian(x), metric, rank)

    def newton_step(self, x: Vector, normal: AbstractNormalSpace) -> Vector:
        assert isinstance(normal, KernelNormalSpace | Constraints)
        return normal.solve_residual(self.residuals(x))

    def damped_solver(self, x: Vector, metric: AbstractMetric, h: Float[Array, ""]) -> Callable[[Vector], Vector]:
        # Woodbury: (I + h S JᵀJ)⁻¹ = I − h S Jᵀ (I + h J S Jᵀ)⁻¹ J.
        jacobian = self.curvature_jacobian(x)
        columns = metric(jacobian.T)
        factor = jax.scipy.linalg.cho_factor(jnp.eye(jacobian.shape[0], dtype=x.dtype) + h * (jacobian @ columns))
        return lambda w: w - h * (columns @ jax.scipy.linalg.cho_solve(factor, jacobian @ w))

    def hessian_diagonal(self, x: Vector) -> Vector:
        return jnp.sum(self.jacobian(x) ** 2, axis=0)

    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        return jnp.zeros((), x.dtype)  # where every residual vanishes the Hessian is JᵀJ

    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        def pairing(y: Vector) -> Float[Array, ""]:
            def product(u: Vector, w: Vector) -> Float[Array, ""]:
                return jax.jvp(self.residuals, (y,), (u,))[1] @ jax.jvp(self.residuals, (y,), (w,))[1]

            return jnp.sum(jax.vmap(product, (1, 1))(left, right))

        return jax.grad(pairing)(x)

    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        return jax.grad(lambda y: jnp.sum(metric.sqrt(self.jacobian(y).T) ** 2))(x)

    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        # ⟨∇²L, S⟩ = |J S^½|² to second order: the Gauss–Newton model 2 Σ_i R_i S R_i with R_i = ∇²r_i, whose diagonal a
        # random sign vector estimates (exactly where the R_i are diagonal).
        signs = jr.rademacher(jr.key(0), x.shape, x.dtype)
        return 2 * jnp.sum(jax.jvp(self.jacobian, (x,), (metric.sqrt(signs),))[1] ** 2, axis=0)

    def constraints(self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> Constraints:
        return Constraints(self.jacobian(x), metric)

    def constraint_curvature(self, x: Vector, normal: Any, gradient: Vector) -> Vector:
        multipliers = normal.multipliers(gradient)
        signs = jr.rademacher(jr.key(0), x.shape, x.dtype)
        return signs * jax.jvp(jax.grad(lambda y: multipliers @ self.residuals(y)), (x,), (signs,))[1]

    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        # With J t = 0 only the second derivative of the predictions is left: S Jᵀ(J S Jᵀ)⁺ Σ_k D²r[t_k, t_k].
        assert isinstance(normal, KernelNormalSpace)

        def second(t: Vector) -> Float[Array, " nk"]:
            return jax.jvp(lambda y: jax.jvp(self.residuals, (y,), (t,))[1], (x,), (t,))[1]

        return normal.solve_residual(jnp.sum(jax.vmap(second, 1)(tangent), axis=0))
