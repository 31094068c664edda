"""Whether a point is on a manifold of minimizers: what is defined there alone is wrong elsewhere, without a word."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..losses.abstract import AbstractLoss
from ..normal.normal_space import AbstractNormalSpace
from ..support.arrays import ORIGIN, extent


class OffManifold(NamedTuple):
    """How far a point is from Γ."""

    size: Float[Array, ""]  # |x|, see `extent`
    step: Float[Array, ""]  # the length of Newton's step
    slope: Float[Array, ""]  # |S^½∇L|
    flat: Float[Array, ""]  # what this is to be compared with


def off_manifold(loss: AbstractLoss, x: Float[Array, " p"], normal: Any) -> OffManifold:
    """See `OffManifold`; `normal` is the normal space at x, or constraints there."""
    metric = normal.metric
    # Short steps to r = 0 leave no slope; of eigenpairs the null space may have one.
    largest = normal.largest if isinstance(normal, AbstractNormalSpace) else jnp.inf
    return OffManifold(
        extent(x, origin=ORIGIN),
        jnp.linalg.norm(loss.newton_step(x, normal)),
        jnp.linalg.norm(metric.sqrt(loss.gradient(x))),
        jnp.abs(largest) * extent(metric.inv_sqrt(x), origin=ORIGIN),
    )


def check_on_manifold(found: OffManifold) -> None:
    """ValueError unless params is on Γ to the square root of rounding: Newton's step back to Γ is negligible."""
    # Newton's step is quadratic: after one of the square root of rounding the point is on Γ to rounding.
    rounding = float(jnp.finfo(found.size.dtype).eps ** 0.5)
    if not found.step < rounding * found.size:
        raise ValueError(
            f"params is not on the manifold of minimizers: Newton's step towards it has length {float(found.step):.3g},"
            f" more than {float(rounding * found.size):.2g}. Move it there first with "
            "manifolds.limit_map(loss, params, metric)."
        )
    # Newton's step is blind along directions without curvature: a point on a slope once passed the first test.
    if not found.slope <= rounding * found.flat:
        raise ValueError(
            f"params is not on the manifold of minimizers: the loss has a slope there ({float(found.slope):.3g}). Move "
            "it there first with manifolds.limit_map(loss, params, metric)."
        )
