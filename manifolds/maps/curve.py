"""A manifold of dimension one in the plane, as a curve."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..losses.abstract import AbstractLoss
from ..metrics.diagonal import Identity
from .return_map import gauss_newton_return

Vector = Float[Array, " p"]


def curve_through(loss: AbstractLoss, x: Vector, step: float, count: int) -> Float[Array, "points p"]:
    """Points of the curve Γ through x (2,), `count` steps along the tangent and back to Γ in either direction.

    Where the return fails, as beyond an end of Γ, the rest is NaN.
    """
    euclidean, rank = Identity(), jnp.asarray(x.shape[0] - 1)

    def tangent(y: Vector, near: Vector) -> Vector:
        # The last direction, projected: an eigenvector would come with either sign, and the walk would turn back.
        t = loss.normal_space(y, euclidean, rank).project(near)
        return t / jnp.linalg.norm(t)

    def move(carry: tuple[Vector, Vector], _: Any) -> tuple[tuple[Vector, Vector], Vector]:
        y, direction = carry
        direction = tangent(y, direction)
        back = gauss_newton_return(loss, y + step * direction, euclidean, rank)
        # A return may also land on another component of Γ, or on the other side of an end: no step is that long.
        stays = back.converged & (jnp.linalg.norm(back.point - y) < 3 * step)
        # NaN goes on by itself: no later step converges from it.
        y = jnp.where(stays, back.point, jnp.nan)
        return (y, direction), y

    # The longer of the two projected axes, as either may be normal to Γ.
    axes = loss.normal_space(x, euclidean, rank).project(jnp.eye(2, dtype=x.dtype))
    start = axes[:, jnp.argmax(jnp.linalg.norm(axes, axis=0))]
    run = jax.jit(lambda sign: jax.lax.scan(move, (x, sign * start), None, length=count)[1])
    return jnp.concatenate([run(-1.0)[::-1], x[None], run(1.0)])
