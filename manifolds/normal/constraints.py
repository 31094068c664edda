"""Solves with the kernel K = J S Jᵀ of the constraints r = 0: what steps along Γ ask of it, without eigenpairs.

A kernel is either factorized at each point or, where a product with it is far cheaper than the kernel itself, solved
with by conjugate gradients that a kernel of a point nearby preconditions.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..metrics.abstract import AbstractMetric
from ..support.precision import in_double
from .jacobians import AbstractJacobian, StoredJacobian
from .normal_space import rank_tolerance

Vector = Float[Array, " p"]
Residuals = Float[Array, " m"]
# LOOSE is for what a Newton step corrects afterwards: it would overwrite further digits.
LOOSE, TIGHT = 1e-5, 1e-9  # relative accuracies: where an error only has to be reduced, and elsewhere
GRACE = 8  # steps of conjugate gradients before they are judged by what they have reached


class NearbyKernel(eqx.Module):
    """Eigenpairs of the kernel K₀ at an earlier point or in another metric: (aK₀ + bI)⁺ preconditions aK + bI."""

    values: Float[Array, " m"]
    vectors: Float[Array, "m m"]

    def __init__(self, kernel: Float[Array, "m m"], dtype: Any):
        # Eigenpairs, not a Cholesky factor: they invert aK₀ + bI for every a and b, so that one kernel serves steps of
        # all lengths, and they know which directions have no rank.
        values, vectors = (found.astype(dtype) for found in in_double(jnp.linalg.eigh)(kernel))
        self.vectors = vectors
        # What lost its rank is rounding of either sign, and would be inverted into huge steps.
        self.values = jnp.where(values > rank_tolerance(dtype) * values[-1], values, 0)

    @property
    def trace(self) -> Float[Array, ""]:
        return jnp.sum(self.values)

    def solve(self, r: Residuals, scale: Any, shift: Any) -> Residuals:
        """(scale·K₀ + shift·I)⁺ r."""
        values = scale * self.values + shift
        return self.vectors @ (jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0) * (self.vectors.T @ r))


class KernelDiagonal(eqx.Module):
    """The diagonal of a kernel, which preconditions it where nothing better is known: like a `NearbyKernel`."""

    values: Float[Array, " m"]

    def solve(self, r: Residuals, scale: Any, shift: Any) -> Residuals:
        """r over scale·diag K + shift."""
        values = scale * self.values + shift
        return jnp.where(values > 0, r / jnp.where(values > 0, values, 1), 0)


Preconditioner = NearbyKernel | KernelDiagonal


class Constraints(eqx.Module):
    """The constraints r = 0 linearized at a point, in the metric S.

    `factorized`, `solve` inverts J S Jᵀ + δI with a ridge δ at rounding level, which keeps it regular where the rank
    drops: a direction u of eigenvalue λ ≪ δ counts as free, and one at λ ≈ δ is left with a normal part ∝ √λ.
    """

    metric: AbstractMetric
    jacobian: AbstractJacobian
    solve: "Factorized | Iterated"

    def solve_residual(self, r: Residuals, accuracy: float = LOOSE) -> Vector:
        """S Jᵀ (J S Jᵀ)⁻¹ r, the Gauss–Newton step."""
        return self._held(self.solve(r, accuracy))

    def multipliers(self, g: Vector, accuracy: float = TIGHT) -> Residuals:
        """μ = (J S Jᵀ)⁻¹ J S g: Jᵀμ is the part of the gradient g that holds against the constraints."""
        return self.solve(self.jacobian(self.metric(g)), accuracy)

    def project(self, w: Vector) -> Vector:
        """Π w, twice as in `AbstractNormalSpace.project_null`."""
        # The second pass only has to reduce what rounding and TIGHT have left of the first.
        u, solve = self.solve.first_of_two(self.jacobian(w), TIGHT)
        w = w - self._held(u)
        return w - self._held(solve(self.jacobian(w), LOOSE))

    def project_gradient(self, g: Vector, accuracy: float = TIGHT) -> Vector:
        """Π S g; projected twice, as in `AbstractNormalSpace.project_null`, unless little accuracy is asked for."""
        # S(g − Jᵀμ) rather than S g − S Jᵀ(…): what cancels is taken away before S, which may reach 1/ε, multiplies it.
        if accuracy >= LOOSE:
            return self.metric(g - self.jacobian.transposed(self.multipliers(g, accuracy)))
        u, solve = self.solve.first_of_two(self.jacobian(self.metric(g)), accuracy)
        move = self.metric(g - self.jacobian.transposed(u))
        return move - self._held(solve(self.jacobian(move), LOOSE))

    def _held(self, u: Residuals) -> Vector:
        """S Jᵀ u."""
        return self.metric(self.jacobian.transposed(u))


class ResolvedConstraints(eqx.Module):
    """The constraints by Q and R of S^½Jᵀ = QR: singular values count down to rounding, not to its root as in a kernel.

    At singular ends of a flow many directions lose their curvature λ ∝ |δx|² together, and the multipliers that they
    share decide whether they do: with the kernel's ridge such ends were left at |δx| ~ 10⁻⁴. A factorization costs some
    four times a kernel's. `project` is for metrics whose half is their root.
    """

    metric: AbstractMetric
    jacobian: StoredJacobian
    basis: Float[Array, "p m"]
    triangle: Float[Array, "m m"]
    cholesky: Float[Array, "m m"]  # of RᵀR with a ridge, for returns

    def __init__(self, jacobian: StoredJacobian, metric: AbstractMetric):
        self.metric, self.jacobian = metric, jacobian

        @in_double
        def factors(half: Array) -> tuple[Array, Array, Array]:
            one, rounding, size = jnp.eye(half.shape[1]), 4 * jnp.finfo(half.dtype).eps, jnp.linalg.norm(half)
            # Rounding of rows of all sizes; less would invert what is rounding itself.
            q, r = jnp.linalg.qr(jnp.concatenate([half, rounding * size * one]))
            # Residuals round to 10⁻¹⁶ whatever the curvature λ behind them: beyond λ ~ 10⁻¹⁵ that moves by 10⁻⁸.
            return q[: half.shape[0]], r, jnp.linalg.cholesky(r.T @ r + rounding * size**2 * one)

        self.basis, self.triangle, self.cholesky = factors(metric.half(jacobian.rows.T))

    def solve_residual(self, r: Residuals, accuracy: float = LOOSE) -> Vector:
        """S Jᵀ (J S Jᵀ)⁻¹ r."""
        u = in_double(lambda l, r: jax.scipy.linalg.cho_solve((l, True), r))(self.cholesky, r)
        return self.metric(self.jacobian.transposed(u.astype(r.dtype)))

    def multipliers(self, g: Vector, accuracy: float = TIGHT) -> Residuals:
        """argmin_μ |g − Jᵀμ|_S, without the product J S g in which what is small is lost."""
        solve = in_double(lambda q, r, w: jax.scipy.linalg.solve_triangular(r, q.T @ w))
        return solve(self.basis, self.triangle, self.metric.half(g)).astype(g.dtype)

    def project(self, w: Float[Array, "p *r"]) -> Float[Array, "p *r"]:
        """Π w = S^½ (I − Q Qᵀ) S^-½ w."""
        q = self.basis.astype(w.dtype)
        for _ in range(2):
            w = w - self.metric.sqrt(q @ (q.T @ self.metric.inv_sqrt(w)))
        return w

    def project_gradient(self, g: Vector, accuracy: float = TIGHT) -> Vector:
        """Π S g, with what is normal taken away twice, before S multiplies it."""
        for _ in range(2):
            g = g - self.jacobian.transposed(self.multipliers(g))
        return self.metric(g)


class Factorized(eqx.Module):
    """r ↦ A⁻¹ r by a Cholesky factor of A in float64."""

    factor: Float[Array, "m m"]

    def __call__(self, r: Residuals, accuracy: float = 0.0) -> Residuals:
        return in_double(lambda L, b: jax.scipy.linalg.cho_solve((L, True), b))(self.factor, r).astype(r.dtype)

    def first_of_two(self, r: Residuals, accuracy: float) -> tuple[Residuals, "Factorized"]:
        """A⁻¹ r, and what solves a second time."""
        return self(r), self


def factorized(jacobian: AbstractJacobian, metric: AbstractMetric, scale: Any = 1.0, shift: Any = None) -> Factorized:
    """r ↦ (scale·J S Jᵀ + shift·I)⁻¹ r by a Cholesky factor in float64; shift=None for a ridge at rounding level."""
    # In float64 also where the run is in float32: with float32 Gram matrices drifts were off by 1.6e-3, with these by
    # 4e-7.
    kernel = jacobian.gram(metric)
    rounding = max(rank_tolerance(jnp.float64), 10 * float(jnp.finfo(kernel.dtype).eps))  # also of a float32 kernel

    @in_double
    def cholesky(kernel: Array, scale: Array, shift: Array) -> Array:
        # Relative to tr K, an upper bound of λ_max that needs no eigenpairs.
        added = shift * jnp.trace(kernel) if ridge_only else shift
        return jnp.linalg.cholesky(scale * kernel + added * jnp.eye(kernel.shape[0]))

    ridge_only = shift is None
    return Factorized(cholesky(kernel, scale, rounding if ridge_only else shift))


class Iterated(eqx.Module):
    """r ↦ (scale·J S Jᵀ + shift·I)⁻¹ r by conjugate gradients, preconditioned by the kernel `near`.

    shift=None for a ridge at rounding level, except by a diagonal. With shift=0 directions in which a `NearbyKernel`
    has lost rank count as free here too. A solve that would take as many products as it costs to form the kernel gives
    up, and factorizes.
    """

    jacobian: AbstractJacobian
    metric: AbstractMetric
    near: Preconditioner
    scale: Any = 1.0
    shift: Any = None

    def __call__(self, r: Residuals, accuracy: float) -> Residuals:
        found, converged = self._iterate(r, accuracy)
        # Under `cond` the kernel is not even formed where the iteration converged.
        return jax.lax.cond(converged, lambda: found, lambda: self._factorized()(r))

    def first_of_two(self, r: Residuals, accuracy: float) -> tuple[Residuals, Callable[[Residuals, float], Residuals]]:
        """A⁻¹ r, and what solves a second time: by the same factor, if this had to be factorized."""
        found, converged = self._iterate(r, accuracy)
        none = Factorized(in_double(lambda r: jnp.zeros((r.size, r.size)))(r))

        def by_factor() -> tuple[Residuals, Factorized]:
            factor = self._factorized()
            return factor(r), factor

        found, factor = jax.lax.cond(converged, lambda: (found, none), by_factor)

        def second(r: Residuals, accuracy: float) -> Residuals:
            return jax.lax.cond(converged, lambda: self(r, accuracy), lambda: factor(r))

        return found, second

    def _iterate(self, r: Residuals, accuracy: float) -> tuple[Residuals, Array]:
        added: Any = ridge(self.near, self.jacobian.dtype) if self.shift is None else self.shift
        product = kernel_product(self.jacobian, self.metric, self.scale, added)
        # These many cost about a kernel: that is all that a bad preconditioner can waste.
        max_steps = 10 + r.shape[0] // 8
        return conjugate_gradients(product, r, lambda u: self.near.solve(u, self.scale, added), accuracy, max_steps)

    def _factorized(self) -> Factorized:
        # It needs a ridge where the rank has dropped: without one it is NaN (seen with rank 35 of 40).
        regular = None if isinstance(self.shift, (int, float)) and self.shift == 0 else self.shift
        return factorized(self.jacobian, self.metric, self.scale, regular)


def ridge(near: Preconditioner, dtype: Any) -> Any:
    """The multiple of the identity that keeps a kernel like `near` regular where its rank drops."""
    # A diagonal has no rank to lose; eigenpairs of a nearby kernel have, and K may be regular where K₀ is not.
    return 0.0 if isinstance(near, KernelDiagonal) else rank_tolerance(dtype) * near.trace


def kernel_product(
    jacobian: AbstractJacobian, metric: AbstractMetric, scale: Any, shift: Any
) -> Callable[[Residuals], Residuals]:
    """u ↦ (scale·J S Jᵀ + shift·I) u, by two products with J."""
    return lambda u: scale * jacobian(metric(jacobian.transposed(u))) + jnp.asarray(shift, u.dtype) * u


def conjugate_gradients(
    product: Callable[[Array], Array], b: Array, precondition: Callable[[Array], Array], accuracy: float, max_steps: int
) -> tuple[Array, Array]:
    """x with A x = b in the range of M⁺, for symmetric A = `product` and M⁺ = `precondition`, definite there, to
    |b − A x|_{M⁺} ≤ accuracy |b|_{M⁺}, and whether that was reached. It is given up where that is out of reach.

    The preconditioned method of Hestenes and Stiefel from x = 0: one product a step and none besides. Where M is near A
    the norm is that of A^½ times the error, for constraints the length in the metric S⁻¹ of the move that it makes.
    """
    # Below rounding the recursion would run to `max_steps` and cause a factorization.
    accuracy = max(accuracy, 4 * float(jnp.finfo(b.dtype).eps))
    first = precondition(b)
    start = b @ first

    def unfinished(carry: tuple[Array, ...]) -> Array:
        energy, count = carry[3:]
        # Of the digits asked for at least the share of the steps beyond the first few: the others would be wasted.
        hopeful = (count <= GRACE) | (energy <= accuracy ** (2 * (count - GRACE) / max_steps) * start)
        return (energy > accuracy**2 * start) & hopeful & (count < max_steps)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, direction, energy, count = carry
        image = product(direction)
        # The energy r·M⁺r is at hand, so that the test of convergence costs no product.
        length = energy / (direction @ image)
        x, r = x + length * direction, r - length * image
        z = precondition(r)
        return x, r, z + (r @ z) / energy * direction, r @ z, count + 1

    x, _, _, energy, _ = jax.lax.while_loop(unfinished, step, (jnp.zeros_like(b), b, first, start, jnp.asarray(0)))
    return x, energy <= accuracy**2 * start  # false for what is not finite
