"""The stiff part of the curvature off Γ that a Gauss–Newton model does not see, followed along a flow.

    ∇²L = JᵀJ + R,  R = Σ_i r_i ∇²r_i;  S^½ R S^½ ≈ Q T Qᵀ on a few directions Q, of which T's positive part is kept

R vanishes on Γ. Far from it R may have a few eigenvalues that are a hundred times those of JᵀJ (attention with
LayerNorm: 1000 against 12), and a linearly implicit step that leaves them out is held to the length of an explicit one.
Subspace iteration along the flow follows them, as they turn slowly: one product with R a direction and step where they
are stiff, a look once in a while where they are not.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..support.blocks import map_in_blocks

Vector = Float[Array, " p"]
DIRECTIONS = 8  # four suffice on attention networks; the others are on their way in, or hold negative curvature
LIGHT = 0.1  # γhλ below which an eigenvalue need not be solved with
PAUSE = 8  # steps between looks where none is stiff


class StiffPart(eqx.Module):
    """Orthonormal directions Q in the coordinates S^-½x, and U with S U Uᵀ the stiff part of S R."""

    basis: Float[Array, "p k"]
    factor: Float[Array, "p k"]
    largest: Float[Array, ""]  # eigenvalue of S^½ U Uᵀ S^½
    age: Int[Array, ""]  # steps since they were looked at

    def weighs(self, h: Any) -> Array:
        """Whether (I + hSR)⁻¹ has to be told from I."""
        return h * self.largest > LIGHT


def first_part(loss: AbstractLoss, x: Vector) -> StiffPart | None:
    """Directions of no symmetry, looked at at once; None for a loss whose flow is solved with the whole Hessian."""
    if loss.unseen_curvature(x) is None:
        return None
    # Waves of frequencies without a common measure; random numbers would be a third of the program of a limit map.
    frequencies = jnp.sqrt(jnp.arange(2.0, 2 + min(DIRECTIONS, x.shape[0]), dtype=x.dtype))
    basis = jnp.linalg.qr(jnp.cos(jnp.arange(1, 1 + x.shape[0], dtype=x.dtype)[:, None] * frequencies))[0]
    return StiffPart(basis, jnp.zeros_like(basis), jnp.zeros((), x.dtype), jnp.asarray(PAUSE))


def renewed_part(
    loss: AbstractLoss, x: Vector, metric: AbstractMetric, part: StiffPart | None, h: Any
) -> StiffPart | None:
    """The stiff part at x, for a solve with (I + hSA)⁻¹, from that of a step before.

    Constant to derivatives: the order of the flow's steps, and of their derivatives, does not depend on it.
    """
    if part is None:
        return None
    x, metric, h = jax.lax.stop_gradient((x, metric, h))
    due = part.weighs(h) | (part.age >= PAUSE)
    older = eqx.tree_at(lambda p: p.age, part, part.age + 1)
    return jax.lax.cond(due, lambda: _turned(loss, x, metric, part), lambda: older)


def _turned(loss: AbstractLoss, x: Vector, metric: AbstractMetric, part: StiffPart) -> StiffPart:
    """R at x on the directions of `part`, which are then turned towards those of the largest eigenvalues."""
    product = loss.unseen_curvature(x)
    assert product is not None

    def image(q: Vector) -> Vector:
        return metric.sqrt(product(metric.sqrt(q)))

    images = map_in_blocks(image, part.basis.T, loss.block(x)).T
    small = part.basis.T @ images
    values, vectors = jnp.linalg.eigh((small + small.T) / 2)
    factor = metric.inv_sqrt(part.basis @ (vectors * jnp.sqrt(jnp.maximum(values, 0))))
    keep = jnp.finfo(x.dtype).tiny ** 0.5 * part.basis  # where R vanishes
    basis = jnp.linalg.qr(images + keep)[0]
    return StiffPart(basis, factor, values[-1], jnp.zeros_like(part.age))


def with_stiff_part(
    solve: Callable[[Vector], Vector], metric: AbstractMetric, h: Any, part: StiffPart | None
) -> Callable[[Vector], Vector]:
    """w ↦ (I + hS(A + UUᵀ))⁻¹ w from `solve`, w ↦ (I + hSA)⁻¹ w, by Woodbury's formula on the columns of U."""
    if part is None:
        return solve
    factor = part.factor

    def woodbury() -> Array:  # G S U (I + h UᵀG S U)⁻¹ for G = (I + hSA)⁻¹; UᵀG S U is symmetric
        columns = jax.lax.map(solve, metric(factor).T).T
        inner = jnp.eye(factor.shape[1], dtype=factor.dtype) + h * factor.T @ columns
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(inner), True), columns.T).T

    columns = jax.lax.cond(part.weighs(h), woodbury, lambda: jnp.zeros_like(factor))

    def corrected(w: Vector) -> Vector:
        w = solve(w)
        return w - h * columns @ (factor.T @ w)

    return corrected
