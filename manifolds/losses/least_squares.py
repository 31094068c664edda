"""Least-squares losses, by the Jacobian of their residuals and the kernel J S Jᵀ: nothing p×p."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..metrics.abstract import AbstractMetric
from ..normal.constraints import (
    LOOSE,
    TIGHT,
    Constraints,
    Factorized,
    Iterated,
    KernelDiagonal,
    NearbyKernel,
    Preconditioner,
    ResolvedConstraints,
    conjugate_gradients,
    factorized,
    kernel_product,
    ridge,
)
from ..normal.jacobians import AbstractJacobian, JacobianProducts, StoredJacobian
from ..normal.lanczos import largest_eigenvalue
from ..normal.normal_space import AbstractNormalSpace, KernelNormalSpace
from ..support.arrays import extent, generic, signs
from ..support.blocks import map_in_blocks, sum_in_blocks
from ..support.coordinates import Coordinates, ravel
from .abstract import CHUNK, AbstractLoss, NewtonStep, Vector

CACHED = 2**16  # entries of Jacobians that a CPU's cache holds
# And those up to which programs are compiled in a hurry. A limit map and a flow with 144 of them then take 3.7 s for
# 4.4 at the first call and .14 for .11 from then on, with 1200 4.1 for 5.3 and .26 for .15; with 10⁴ they pay more.
BRIEF = 2**11
# Kernels are kept over steps, along Γ and on the way there, for as long as they precondition: when every substep had a
# Gram matrix of its own, these ten were most of a step, and one of a network (p = 115 713, m = 500) costs 41 GFlop.
COUPLED = 5e8  # multiplications, m p³, that the coupled curvature of a step may take: some 20 ms on two cores
RESOLVED = 1e9  # multiplications, p m², that Q and R may take
# Steps of conjugate gradients from which on a new kernel costs less than it saves: some 60 of them where m = 400, and a
# step of an implicit flow has 22 solves.
STALE = 8
MEMORY = 2**31  # bytes that Jacobians, or blocks of their rows, may take by default


class LeastSquaresLoss(AbstractLoss):
    """L(x) = 1/(2n) Σ_i |f(x, input_i) − y_i|², minimized where every residual vanishes, by per-sample Jacobians.

    `predict(params, input) -> scalar or array (k outputs)`; `inputs` is a pytree and `targets` an array, both with
    leading axis n. On Γ (r = 0) H = JᵀJ/n, and K = J S Jᵀ/n carries the spectrum of H'. Residuals and Jacobians below
    are divided by √n, so that L = ½|r|² and K = J S Jᵀ, with m = nk rows.

    The kernel route (`stored`) keeps J and factorizes K wherever it is asked; the matrix-free route applies J, of which
    it holds the rows of a few samples at a time (`block`, or as many as `memory` bytes allow), and solves with K by
    conjugate gradients. J is formed there only for its Gram matrix, and only if it fits the memory four times.

    Example:
        >>> loss = LeastSquaresLoss(lambda w, z: z @ w, inputs=jnp.ones((3, 5)), targets=jnp.ones(3), like=jnp.zeros(5))
        >>> loss.residuals(jnp.zeros(5)).shape, loss.rows(jnp.zeros(5)).shape
        ((3,), (3, 5))
    """

    predict: Callable[[PyTree, PyTree], Array]
    inputs: PyTree
    targets: Float[Array, "n *k"]
    coordinates: Coordinates = eqx.field(static=True)
    stored: bool = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    samples_at_once: int | None = eqx.field(static=True)
    resolved: bool | None  # whether constraints are resolved to rounding; None for no, so that it is no leaf

    def __init__(
        self,
        predict: Callable[[PyTree, PyTree], Any],
        inputs: PyTree,
        targets: Array,
        like: PyTree,
        *,
        stored: bool = True,
        memory: int = MEMORY,
        block: int | None = None,
    ):
        self.predict = predict
        self.inputs = inputs
        self.targets = targets
        self.coordinates = like if isinstance(like, Coordinates) else Coordinates.of(like)
        self.stored, self.memory, self.samples_at_once = stored, memory, block
        self.resolved = None

    @property
    def route(self) -> str:
        return "kernel" if self.stored else "matrix_free"

    @property
    def is_small(self) -> bool:
        return self.targets.size * self.coordinates.size <= BRIEF

    # one sample ------------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """n."""
        return self.targets.shape[0]

    def prediction(self, x: Vector, datum: PyTree) -> Float[Array, " k"]:
        """f(x, datum) as a vector of its k outputs."""
        return jnp.ravel(self.predict(self.coordinates.unravel(x), datum))

    def sample_jacobian(self, arrays: PyTree, datum: PyTree) -> PyTree:
        """The k rows of J for one sample, as a params-like pytree with leaves (k, ...).

        Pytrees, not flat vectors: what is summed over samples then fuses into one pass over each leaf.
        """

        def outputs(arrays: PyTree) -> Float[Array, " k"]:
            return jnp.ravel(self.predict(self.coordinates.completed(arrays), datum))

        # One output: a gradient is one backward pass, where `jacrev` would vectorize over a single row.
        if self.targets.size == self.num_samples:
            rows = jax.tree.map(lambda leaf: leaf[None], jax.grad(lambda a: outputs(a)[0])(arrays))
        else:
            rows = jax.jacrev(outputs)(arrays)
        return jax.tree.map(lambda leaf: leaf / jnp.sqrt(self.num_samples), rows)

    def sample_rows(self, x: Vector, datum: PyTree) -> Float[Array, "k p"]:
        """The same as a matrix."""
        return jax.vmap(ravel)(self.sample_jacobian(self.coordinates.unravel_arrays(x), datum))

    def block(self, x: Vector) -> int:
        # All samples that fit the memory, but on a CPU one, unless all fit its cache.
        if self.samples_at_once is not None:
            return min(self.samples_at_once, self.num_samples)
        # Measured for V(Σ) and ∇⟨H,S⟩ at p = 20 000, n = 500: 100 and 157 ms through a stored J, 3 and 4.5 ms one
        # sample at a time, whose gradient stays in the cache and is read once.
        outputs = self.targets.size // self.num_samples
        entries = outputs * x.shape[0]
        if jax.default_backend() == "cpu":
            return self.num_samples if entries * self.num_samples <= CACHED else 1
        # On an accelerator a single sample would leave most of it idle. The factor 4 leaves room for copies, as for a
        # stored J.
        return max(1, min(self.num_samples, self.memory // (4 * entries * x.dtype.itemsize)))

    def sum_over_samples(self, function: Callable[..., PyTree], x: Vector, *others: PyTree) -> PyTree:
        """Σ_i function(J_i, datum_i of the others...), J_i as in `sample_jacobian`; nothing n×p is formed."""
        arrays = self.coordinates.unravel_arrays(x)

        def one(datum: PyTree) -> PyTree:
            return function(self.sample_jacobian(arrays, datum[0]), *datum[1:])

        return sum_in_blocks(one, (self.inputs, *others), self.block(x))

    def row_norms(self, x: Vector, metric: AbstractMetric) -> Float[Array, " m"]:
        """|J_i S^½|² of every row: the diagonal of K, whose sum is tr H' on Γ."""
        arrays = self.coordinates.unravel_arrays(x)

        def norms(datum: PyTree) -> Array:
            return jax.vmap(lambda row: self._trace(row, metric))(
                jax.tree.map(lambda leaf: leaf[:, None], self.sample_jacobian(arrays, datum))
            )

        return map_in_blocks(norms, self.inputs, self.block(x)).ravel()

    def _trace(self, jacobian: PyTree, metric: AbstractMetric) -> Array:
        """tr J_i S J_iᵀ for rows J_i."""
        entries = metric.entries()
        if entries is None:
            # As |S^½J_iᵀ|², which is positive whatever rounding does.
            return jnp.sum(metric.sqrt(jax.vmap(ravel)(jacobian).T) ** 2)
        # A diagonal S is applied leaf by leaf: flattening the rows first would write and read all of them once more.
        weights = self.coordinates.unravel_arrays(jnp.broadcast_to(entries, (self.coordinates.size,)))
        sums = jax.tree.map(lambda s, rows: jnp.sum(s * jnp.sum(rows**2, axis=0)), weights, jacobian)
        return jnp.sum(jnp.stack(jax.tree.leaves(sums)))

    # all samples -----------------------------------------------------------------------------------------------------

    def residuals(self, x: Vector) -> Float[Array, " m"]:
        """(f(x, input_i) − y_i)/√n, outputs of a sample side by side."""
        predictions = jax.vmap(self.prediction, (None, 0))(x, self.inputs)
        targets = jnp.reshape(self.targets, predictions.shape)
        return jnp.ravel(predictions - targets) / jnp.sqrt(self.num_samples)

    def rows(self, x: Vector) -> Float[Array, "m p"]:
        """J = ∂residuals/∂x as an array, one backward pass a sample and output."""
        return jax.vmap(self.sample_rows, (None, 0))(x, self.inputs).reshape(-1, x.shape[0])

    def jacobian(self, x: Vector) -> AbstractJacobian:
        """J, stored or by products."""
        if self.stored:
            return StoredJacobian(self.rows(x))
        size = x.shape[0] * x.dtype.itemsize
        return JacobianProducts(
            residuals=self.residuals,
            rows=lambda datum: self.sample_rows(x, datum),
            data=self.inputs,
            x=x,
            block=max(1, min(CHUNK, self.memory // (2 * size))),
            # Rows of p = 20 000, m = 400 take 60 ms one at a time, and 140 in blocks of 64.
            samples=self.block(x),
            # Row sums of a stored J are slow on a CPU, so that J is made for its Gram matrix alone, one matrix product.
            stored=4 * self.targets.size * size <= self.memory,
        )

    def curvature_jacobian(self, x: Vector) -> AbstractJacobian:
        """J with JᵀJ ≈ ∇²L(x) off Γ as well: the Gauss–Newton model of the curvature."""
        # Of least squares it is J itself; what it leaves out, Σ r_i ∇²r_i, only vanishes on Γ.
        return self.jacobian(x)

    def value(self, x: Vector) -> Float[Array, ""]:
        return 0.5 * jnp.sum(self.residuals(x) ** 2)

    def gradient(self, x: Vector) -> Vector:
        return jax.grad(self.value)(x)

    def residual(self, x: Vector) -> Float[Array, ""]:
        # Without the 1/√n: in the units of the predictions.
        return jnp.max(jnp.abs(self.residuals(x))) * jnp.sqrt(self.num_samples)

    # the way back to Γ -----------------------------------------------------------------------------------------------

    def nearby(self, x: Vector, metric: AbstractMetric) -> NearbyKernel | None:
        if self.stored:
            return None
        # A preconditioner changes no result, and derivatives of eigenpairs without a gap are not finite.
        return NearbyKernel(jax.lax.stop_gradient(self.curvature_jacobian(x).gram(metric)), x.dtype)

    def renewed(
        self, near: NearbyKernel | None, x: Vector, metric: AbstractMetric, scale: Any = 1.0, shift: Any = None
    ) -> NearbyKernel | None:
        if near is None:
            return None
        shift = ridge(near, x.dtype) if shift is None else shift
        product = kernel_product(self.curvature_jacobian(x), metric, scale, shift)
        # One trial solve with a fixed right-hand side that meets every eigenvector: deterministic, and so are the steps
        # at which kernels are renewed.
        b = signs(self.targets.size, x.dtype)
        _, works = conjugate_gradients(product, b, lambda r: near.solve(r, scale, shift), LOOSE, STALE)
        return jax.lax.cond(works, lambda: near, lambda: self.nearby(x, metric))

    def roughly(self, x: Vector, metric: AbstractMetric) -> KernelDiagonal | None:
        return None if self.stored else KernelDiagonal(self.row_norms(x, metric))

    def normal_space(self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> KernelNormalSpace:
        return KernelNormalSpace(self.jacobian(x), metric, rank)

    # Lanczos and the sum of row norms need no Gram matrix and no eigenpairs, so that sharpnesses at saved times stay
    # cheap where m is large.
    def largest_eigenvalue(self, x: Vector, metric: AbstractMetric) -> Float[Array, ""]:
        if self.stored:
            return super().largest_eigenvalue(x, metric)
        product = kernel_product(self.jacobian(x), metric, 1.0, 0.0)
        return largest_eigenvalue(product, generic(self.targets.size, x.dtype))

    def trace(self, x: Vector, metric: AbstractMetric) -> Float[Array, ""]:
        return jnp.sum(self.row_norms(x, metric))

    def constraints(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None, near: Preconditioner | None = None
    ) -> Constraints | ResolvedConstraints:
        if self.resolved:
            return self._resolved(x, metric)
        jacobian = self.jacobian(x)
        return Constraints(metric, jacobian, self._solver(jacobian, metric, near))

    def _resolved(self, x: Vector, metric: AbstractMetric) -> ResolvedConstraints:
        return ResolvedConstraints(StoredJacobian(self.rows(x)), metric)

    def at_singular_ends(self) -> "LeastSquaresLoss":
        small = self.stored and self.coordinates.size * self.targets.size**2 <= RESOLVED
        return eqx.tree_at(lambda loss: loss.resolved, self, True, is_leaf=lambda leaf: leaf is None) if small else self

    def newton_step(
        self, x: Vector, normal: AbstractNormalSpace | Constraints | ResolvedConstraints, accuracy: float = LOOSE
    ) -> Vector:
        assert isinstance(normal, KernelNormalSpace | Constraints | ResolvedConstraints)
        residuals = self.residuals(x)
        if isinstance(normal, KernelNormalSpace):
            return normal.solve_residual(residuals)
        return normal.solve_residual(residuals, accuracy)

    def newton(
        self, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None, near: NearbyKernel | None = None
    ) -> NewtonStep:
        if self.resolved and rank is None:
            normal = self._resolved(x, metric)
            curvature = jnp.diag(normal.triangle).astype(x.dtype) ** 2
            return NewtonStep(self.newton_step(x, normal), jnp.min(curvature), jnp.sum(curvature))
        if rank is not None or near is None:
            return super().newton(x, metric, rank)
        # Newton's step without eigenpairs, by r alone. shift=0: directions in which `near` has lost rank are left
        # alone, as (J S Jᵀ)⁺ would; a ridge would move along them by r over rounding.
        jacobian = self.jacobian(x)
        exact = self._solver(jacobian, metric, near, 1.0, 0.0)
        move = Constraints(metric, jacobian, exact).solve_residual(self.residuals(x), TIGHT)
        # The curvatures reported are those of the kernel nearby, good enough for "is it positive" and "is it large".
        smallest = jnp.min(jnp.where(near.values > 0, near.values, jnp.inf))
        return NewtonStep(move, smallest, jnp.max(near.values))

    def off_manifold(self, x: Vector, metric: AbstractMetric, distance: Array) -> Bool[Array, ""]:
        # The Newton step w solves J w = r, so that |w| ≥ |r|²/|Jᵀr|.
        r = self.residuals(x)
        slope = jax.vjp(self.residuals, x)[1](r)[0]
        largest = jnp.sum(self.row_norms(x, metric))  # tr K, a bound of it
        # At a saddle Jᵀr = 0 with r ≠ 0. That is rest, although the bound below is infinite there.
        moving = jnp.linalg.norm(metric(slope)) > largest * jnp.finfo(x.dtype).eps * 10 * extent(x)
        return moving & (r @ r > distance * jnp.linalg.norm(slope))

    def damped_solver(
        self, x: Vector, metric: AbstractMetric, h: Float[Array, ""], near: Preconditioner | None = None
    ) -> Callable[[Vector], Vector]:
        # Woodbury: (I + h S JᵀJ)⁻¹ = I − h S Jᵀ (I + h J S Jᵀ)⁻¹ J.
        jacobian = self.curvature_jacobian(x)
        # One factor serves the four stages of a step of the flow. The identity keeps the matrix regular at any rank.
        solve = self._solver(jacobian, metric, near, h, 1.0)
        return lambda w: w - h * metric(jacobian.transposed(solve(jacobian(w), TIGHT)))

    def unseen_curvature(self, x: Vector) -> Callable[[Vector], Vector]:
        return second_order_product(self.residuals, x, self.residuals(x))  # Σ_i r_i ∇²r_i

    def _solver(
        self, jacobian: AbstractJacobian, metric: AbstractMetric, near: Preconditioner | None, *terms: Any
    ) -> Factorized | Iterated:
        """(scale·J S Jᵀ + shift·I)⁻¹ for the `terms` scale and shift: by a factor, or by iterations."""
        if near is None:
            return factorized(jacobian, metric, *terms)
        return Iterated(jacobian, metric, near, *terms)

    # derivatives of the Hessian --------------------------------------------------------------------------------------

    def hessian_diagonal(self, x: Vector) -> Vector:
        return ravel(self.sum_over_samples(_squares, x))

    def negative_curvature(self, x: Vector) -> Float[Array, ""]:
        return jnp.zeros((), x.dtype)  # where every residual vanishes the Hessian is JᵀJ

    def contract_factors(self, x: Vector, left: Float[Array, "p k"], right: Float[Array, "p k"]) -> Vector:
        def pairing(y: Vector, u: Vector, w: Vector) -> Float[Array, ""]:
            # ⟨JᵀJ u, w⟩, whose gradient has two of the three terms of ∇³L[u, w]. The third, Jᵀ(uᵀ∇²r w), and the
            # residuals' own curvature times r = 0 are normal covectors: Π S kills them.
            return jax.jvp(self.residuals, (y,), (u,))[1] @ jax.jvp(self.residuals, (y,), (w,))[1]

        if self.stored:
            # One backward pass for all pairs where J fits anyway; else blocks of pairs with one each.
            return jax.grad(lambda y: jnp.sum(jax.vmap(pairing, (None, 1, 1))(y, left, right)))(x)
        return sum_in_blocks(lambda pair: jax.grad(pairing)(x, *pair), (left.T, right.T), CHUNK)

    def contract_metric(self, x: Vector, metric: AbstractMetric) -> Vector:
        def one(datum: PyTree) -> PyTree:
            # ∇ |J_i S^½|² with S held fixed, the T[S] of this sample: no pair (e_k, S e_k) of p is ever made.
            return jax.grad(lambda arrays: self._trace(self.sample_jacobian(arrays, datum), metric))(arrays)

        arrays = self.coordinates.unravel_arrays(x)
        return ravel(sum_in_blocks(one, self.inputs, self.block(x)))

    def metric_curvature(self, x: Vector, metric: AbstractMetric) -> Vector:
        # ⟨∇²L, S⟩ = |J S^½|² to second order: the Gauss–Newton model 2 Σ_i R_i S R_i with R_i = ∇²r_i, whose diagonal a
        # random sign vector estimates (exactly where the R_i are diagonal).
        def one(datum: PyTree) -> PyTree:
            # R_i S^½ z for the signs z: the mean of its square is the diagonal of R_i S R_i.
            change = jax.jvp(lambda a: self.sample_jacobian(a, datum), (arrays,), (direction,))[1]
            return _squares(change)

        arrays = self.coordinates.unravel_arrays(x)
        # One fixed probe: exact for diagonal networks; on dense ones it under-damps a little (10 to 20 % of steps
        # rejected).
        direction = self.coordinates.unravel_arrays(metric.sqrt(signs(x.size, x.dtype)))
        return 2 * ravel(sum_in_blocks(one, self.inputs, self.block(x)))

    def metric_hessian(self, x: Vector, metric: AbstractMetric) -> Float[Array, "p p"] | None:
        # 2 Σ_i R_i S R_i, as above. What is left out, J S·∇³r, is not definite; so is the curvature −Σ μ_i R_i of Γ: on
        # factorizations of five matrices steps with it were twice as many (33 for 16), and need eigenpairs.
        if not self.has_whole_curvature(x):
            return None

        def one(datum: PyTree) -> Float[Array, "p p"]:
            changes = jax.jacfwd(lambda y: self.sample_rows(y, datum))(x)  # (k, p, p), R_i of the k residuals
            halves = jax.vmap(metric.half)(changes)
            return jnp.einsum("iab,iac->bc", halves, halves)

        return 2 * sum_in_blocks(one, self.inputs, 1)

    def couples(self, x: Vector) -> Bool[Array, ""]:
        # A random sum of the R_i that is diagonal divides two random vectors into the same numbers. At a point of no
        # symmetry: where weights are zero, those of a network do not meet.
        first, second, shift = (generic(x.size, x.dtype, seed) for seed in (1, 2, 3))
        near, force = x + 0.1 * jnp.sqrt(jnp.mean(x**2)) * shift, generic(self.targets.size, x.dtype)
        a, b = (self._bending(near, force, w) / w for w in (first, second))
        return jnp.max(jnp.abs(a - b)) > 1e-6 * jnp.max(jnp.abs(a))

    def metric_lagrangian(
        self, x: Vector, metric: AbstractMetric, scale: Any, multipliers: Array
    ) -> Float[Array, "p p"] | None:
        if not self.has_whole_curvature(x):
            return None

        def force(y: Vector) -> Vector:
            return scale * self.contract_metric(y, metric) - jax.vjp(self.residuals, y)[1](multipliers)[0]

        found = jax.jacfwd(force)(x)
        return (found + found.T) / 2

    def has_whole_curvature(self, x: Vector) -> bool:
        # Where p×p matrices made of the second derivatives of all residuals cost little.
        return self.stored and self.targets.size * x.shape[0] ** 3 <= COUPLED

    def constraint_curvature(self, x: Vector, multipliers: Array) -> Vector:
        # Hutchinson again: z ∘ (Σ_i μ_i ∇²r_i) z, one product.
        z = signs(x.size, x.dtype)
        return z * self._bending(x, multipliers, z)

    def _bending(self, x: Vector, multipliers: Array, w: Vector) -> Vector:
        """Σ_i μ_i ∇²r_i(x) w."""
        return jax.jvp(jax.grad(lambda y: multipliers @ self.residuals(y)), (x,), (w,))[1]

    def normal_bending(self, x: Vector, normal: AbstractNormalSpace, tangent: Float[Array, "p k"]) -> Vector:
        # With J t = 0 only the second derivative of the predictions is left: S Jᵀ(J S Jᵀ)⁺ Σ_k D²r[t_k, t_k].
        assert isinstance(normal, KernelNormalSpace)

        def second(t: Vector) -> Float[Array, " m"]:
            return jax.jvp(lambda y: jax.jvp(self.residuals, (y,), (t,))[1], (x,), (t,))[1]

        # T[Σ_∥] = Jᵀ Σ_k D²r[t_k, t_k] here, and S^½(H')⁺S^½Jᵀ = S Jᵀ(J S Jᵀ)⁺.
        return normal.solve_residual(sum_in_blocks(second, tangent.T, CHUNK))


def second_order_product(function: Callable[[Vector], Array], x: Vector, forces: Array) -> Callable[[Vector], Vector]:
    """w ↦ Σ_i forces_i ∇²f_i(x) w for the components f_i of `function`."""

    def pulled(y: Vector) -> Vector:
        return jax.vjp(function, y)[1](forces)[0]

    return lambda w: jax.jvp(pulled, (x,), (w,))[1]


def _squares(rows: PyTree) -> PyTree:
    """Σ_k J_k² of the rows of a sample, entry by entry."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf**2, axis=0), rows)
