"""The largest eigenvalue of a symmetric matrix from products with it (Lanczos 1950)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS, RESTARTS = 24, 40  # products between restarts, whose directions are stored, and restarts before giving up


def largest_eigenvalue(
    product: Callable[[Float[Array, " m"]], Float[Array, " m"]], start: Float[Array, " m"], tolerance: float = 1e-10
) -> Float[Array, ""]:
    """λ_max of a positive semi-definite A = `product`, to |A y − λy| ≤ tolerance·λ for a unit vector y; NaN if that is
    not reached.

    Lanczos with full orthogonalization, restarted from its Ritz vector y. The error of λ is of the order of the
    square of that residual.

    Example:
        >>> largest_eigenvalue(lambda u: jnp.array([1.0, 3.0]) * u, jnp.ones(2))
        Array(3., dtype=float32)
    """
    tolerance = max(tolerance, 30 * float(jnp.finfo(start.dtype).eps))

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, value, residual, count = carry
        return (residual > tolerance * value) & (count < RESTARTS)

    # Restarted from y alone: 24 rows of length m are all that is stored, however many products it takes.
    def restart(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        y, _, _, count = carry
        basis, diagonal, beside = tridiagonal(product, y, min(STEPS, y.shape[0]))
        values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1))
        ritz = vectors[:, -1]
        # The residual |A y − θy| without another product.
        return basis.T @ ritz, values[-1], beside[-1] * jnp.abs(ritz[-1]), count + 1

    zero = jnp.zeros((), start.dtype)
    _, value, residual, _ = jax.lax.while_loop(unfinished, restart, (start, zero, zero + jnp.inf, jnp.asarray(0)))
    # A Ritz value is a lower bound, which would pass for an answer.
    return jnp.where(residual <= tolerance * value, value, jnp.nan)


def tridiagonal(
    product: Callable[[Float[Array, " m"]], Float[Array, " m"]], start: Float[Array, " m"], steps: int
) -> tuple[Float[Array, "k m"], Float[Array, " k"], Float[Array, " k"]]:
    """Orthonormal rows V of the Krylov space of `start` and T = V A Vᵀ: its diagonal, and what stands beside it.

    The last entry beside the diagonal leads out of the space: |A y − θy| is that entry times the last coordinate of
    the eigenvector of T. Where the space is exhausted, rows and entries are zero.
    """

    def step(
        j: Array, carry: tuple[Array, Array, Array, Array]
    ) -> tuple[Float[Array, "k m"], Float[Array, " k"], Float[Array, " k"], Float[Array, " m"]]:
        basis, diagonal, beside, direction = carry
        basis = basis.at[j].set(direction)
        image = product(direction)
        size, along = jnp.linalg.norm(image), direction @ image
        # Full orthogonalization: in the three-term recursion rounding lets converged directions come back, as further
        # copies of λ_max.
        for _ in range(2):  # once leaves rounding of the size of what is taken away
            image = image - basis.T @ (basis @ image)
        length = jnp.linalg.norm(image)
        # What is left of an exhausted space is rounding, and normalized it would be a random direction.
        more = length > 10 * jnp.finfo(image.dtype).eps * size
        direction = jnp.where(more, image / jnp.where(more, length, 1), 0)
        return basis, diagonal.at[j].set(along), beside.at[j].set(jnp.where(more, length, 0)), direction

    rows = jnp.zeros((steps, start.shape[0]), start.dtype)
    empty = jnp.zeros(steps, start.dtype)
    found = jax.lax.fori_loop(0, steps, step, (rows, empty, empty, start / jnp.linalg.norm(start)))
    return found[:3]
