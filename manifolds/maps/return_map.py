"""The cheap return to Γ: Gauss–Newton in the metric S.

    x ← x − S^½ (H')⁺ S^½ ∇L(x)          (least squares: x ← x − S Jᵀ (J S Jᵀ)⁺ r(x))

Near Γ it has the same derivative Π and the same second derivative on tangent vectors as Φ_S, so a step with projected
noise that ends here needs no Itô correction. In the Euclidean metric it would not: the limit of such a scheme is
biased as soon as S ≠ I.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..normal.constraints import NearbyKernel
from ..normal.normal_space import COUNTED, rank_tolerance
from ..support.arrays import extent

Vector = Float[Array, " p"]


class Returned(eqx.Module):
    """A point of Γ and whether the iteration that led there converged."""

    point: Vector
    converged: Bool[Array, ""]
    smallest: Float[Array, ""]  # the last of the `rank` eigenvalues of H' and the largest, as met last
    largest: Float[Array, ""]


def gauss_newton_return(
    loss: AbstractLoss,
    x: Vector,
    metric: AbstractMetric,
    rank: Int[Array, ""] | None = None,
    max_steps: int = 20,
    near: NearbyKernel | None = None,
) -> Returned:
    """Iterate until a step is so short that the next, by quadratic convergence, is rounding error.

    `rank` is that of H on Γ: off Γ it cannot be counted, and None takes every eigenvalue for a normal one (see
    `ranked_return`). With `near` (see `AbstractLoss.nearby`) and without a rank no eigenpairs are computed; those
    reported are then its. `converged` is False after `max_steps`, where a step is not finite or longer than 10|x|,
    and where the curvature along a normal direction is not positive or a slope is left.
    """
    scale = extent(x)
    short = jnp.finfo(x.dtype).eps ** 0.5 * scale  # then the next step is of order eps

    # The second comparison is false for NaN and for a step that leaves for infinity: both end the loop unconverged.
    def unfinished(carry: tuple[Vector, Array, Array, Array, Array]) -> Bool[Array, ""]:
        _, length, count, _, _ = carry
        return (length > short) & (length < 10 * scale) & (count < max_steps)

    def step(carry: tuple[Vector, Array, Array, Array, Array]) -> tuple[Vector, Array, Array, Array, Array]:
        y, _, count, _, _ = carry
        move, smallest, largest = loss.newton(y, metric, rank, near)
        # The metric stays fixed while y moves: one S a return, as Φ_S has one.
        return y - move, jnp.linalg.norm(move), count + 1, smallest, largest

    zero = jnp.zeros((), x.dtype)
    # A length that asks for a step: the curvatures must be those of a point that was met, also for a start on Γ.
    start = x, 2 * short, jnp.asarray(0), zero, zero
    point, length, _, smallest, largest = jax.lax.while_loop(unfinished, step, start)
    # Newton's step ignores directions without curvature, so that a short step alone is no proof: on a slope and at a
    # saddle the return once claimed to have converged.
    slope = jnp.linalg.norm(metric.sqrt(loss.gradient(point)))
    stretch = jnp.maximum(extent(metric.inv_sqrt(x)), jnp.linalg.norm(metric.inv_sqrt(point)))
    level = slope <= rank_tolerance(x.dtype) * largest * stretch
    return Returned(point, (length <= short) & (smallest > 0) & level, smallest, largest)


class Ranked(NamedTuple):
    """Where a return with the rank of H on Γ ended, and the spectrum of H' there."""

    returned: Returned
    rank: Int[Array, ""]
    spectrum: Float[Array, " m"]


def ranked_return(loss: AbstractLoss, x: Vector, metric: AbstractMetric, rank: Int[Array, ""] | None = None) -> Ranked:
    """The return from x at the rank that H has on Γ near x, found there unless it is given: at x itself the tangential
    eigenvalues are only as small as the distance to Γ."""

    def at(rank: Int[Array, ""], last: Any) -> tuple[Int[Array, ""], Ranked]:
        returned = gauss_newton_return(loss, x, metric, rank)
        normal = loss.normal_space(returned.point, metric)
        return jnp.where(rank == COUNTED, normal.rank, rank), Ranked(returned, rank, normal.values)

    # Twice by the same code, first at any rank: a scan compiles it once.
    first = jnp.asarray(COUNTED if rank is None else rank, int)
    _, found = jax.lax.scan(at, first, length=2 if rank is None else 1)
    return jax.tree.map(lambda leaf: leaf[-1], found)
