"""The limit map Φ_S: where the preconditioned gradient flow ẋ = −S ∇L(x) started at x ends.

The flow is integrated until Γ is so near that the Gauss–Newton return, which differs from Φ_S by the square of the
distance left, agrees with it to rounding; the return then polishes the point.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..normal.normal_space import rank_tolerance
from ..support.precision import is_traced
from .gradient_flow import GradientFlow, RosenbrockFlow
from .return_map import gauss_newton_return, rank_on_manifold

Vector = Float[Array, " p"]


class LimitPoint(eqx.Module):
    """Φ_S(x) and what was found on the way.

    Attributes:
        point: the limit, (p,).
        distance: |Φ_S(x) − x|, Euclidean.
        residual: what is left of the loss there: |∇L|, or the largest residual of a least-squares loss.
        rank: the number m of nonzero eigenvalues of H' = S^½ H S^½ at the limit.
        spectrum: the eigenvalues of H' found, descending.
        negative_curvature: the smallest eigenvalue of H if it is negative, else 0.
        num_steps: steps of the flow solver.
        converged: whether the flow came to rest and the polish converged.
        counted: whether the rank was counted from the spectrum, not given.
    """

    point: Vector
    distance: Float[Array, ""]
    residual: Float[Array, ""]
    rank: Int[Array, ""]
    spectrum: Float[Array, " m"]
    negative_curvature: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]
    counted: bool = eqx.field(static=True)


class ManifoldError(ValueError):
    """A point from which no regular point of a manifold of minimizers is reached."""


def as_rank(rank: Any, size: int) -> Int[Array, ""] | None:
    """The rank of H on Γ as an array, None for one that is to be counted. ValueError unless it is in 1, ..., p."""
    if rank is not None and not is_traced(rank) and not (np.ndim(rank) == 0 and rank in range(1, size + 1)):
        raise ValueError(f"rank={rank!r} must be a positive integer, at most the number {size} of parameters, or None.")
    return None if rank is None else jnp.asarray(rank, int)


def limit_point(
    loss: AbstractLoss,
    x: Vector,
    metric: AbstractMetric,
    rank: Int[Array, ""] | None = None,
    *,
    rtol: float = 1e-8,
    max_steps: int = 10_000,
) -> LimitPoint:
    """Φ_S(x) on flat coordinates, with its report; never raises (see `check_limit`).

    `rtol` is the relative error of a flow step. Runs under jit, vmap and forward-mode derivatives.
    """
    rtol = max(rtol, 30 * float(jnp.finfo(x.dtype).eps))
    near = float(jnp.finfo(x.dtype).eps) ** 0.4  # 6e-7 in float64: its square is rounding error

    def at_rest(t: Any, y: Vector, args: Any, **kwargs: Any) -> Bool[Array, ""]:
        off = loss.off_manifold(y, metric, near * (1 + jnp.linalg.norm(y)))
        return jax.lax.cond(off, lambda: jnp.asarray(False), lambda: settled(y))

    def settled(y: Vector) -> Bool[Array, ""]:
        normal = loss.normal_space(y, metric, rank)
        move, slope = loss.newton_step(y, normal), loss.gradient(y)
        arrived = jnp.linalg.norm(move) < near * (1 + jnp.linalg.norm(y))
        # Newton's step does not see a slope along directions of no or of negative curvature: there must be none left.
        level = 2 * jnp.linalg.norm(metric.inv_sqrt(move)) + rank_tolerance(y.dtype) / 4
        arrived &= jnp.linalg.norm(metric.sqrt(slope)) <= normal.largest * level
        # Newton's step is short at a saddle too, where the flow only lingers; wait there until nothing moves at all.
        rounding = jnp.finfo(y.dtype).eps * (1 + jnp.linalg.norm(x))
        stuck = jnp.linalg.norm(metric(slope)) <= jnp.abs(normal.largest) * rounding
        return (arrived & (loss.negative_curvature(y) > -1e-3 * normal.largest)) | stuck

    solution = dfx.diffeqsolve(
        dfx.ODETerm(GradientFlow(loss, metric)),
        RosenbrockFlow(loss, metric),
        t0=0.0,
        t1=jnp.inf,
        dt0=None,
        y0=x,
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=rtol),
        event=dfx.Event(at_rest),
        max_steps=max_steps,
        adjoint=dfx.ForwardMode(),
        throw=False,
    )
    assert solution.ys is not None
    end = solution.ys[-1]
    counted = rank is None
    rank = rank_on_manifold(loss, end, metric) if rank is None else rank
    returned = gauss_newton_return(loss, end, metric, rank)
    at_limit = loss.normal_space(returned.point, metric)
    return LimitPoint(
        point=returned.point,
        distance=jnp.linalg.norm(returned.point - x),
        residual=loss.residual(returned.point),
        rank=rank,
        spectrum=at_limit.values,
        negative_curvature=loss.negative_curvature(returned.point),
        num_steps=solution.stats["num_steps"],
        converged=(solution.result == dfx.RESULTS.event_occurred) & returned.converged,
        counted=counted,
    )


compiled_limit_point = eqx.filter_jit(limit_point)  # one cache for all who ask


def check_limit(limit: LimitPoint, what: str = "params0") -> None:
    """ManifoldError unless `limit` is a regular point of a manifold of minimizers; needs concrete values."""
    spectrum = limit.spectrum
    finite = bool(jnp.all(jnp.isfinite(limit.point)))
    if finite and limit.negative_curvature < 0:
        raise ManifoldError(
            f"The gradient flow from {what} ends at a saddle: the Hessian there has the eigenvalue "
            f"{float(limit.negative_curvature):.3g}. Perturb {what}."
        )
    if finite and int(limit.rank) == 0:
        raise ManifoldError(f"The Hessian vanishes where the flow from {what} ends: no direction is normal to Γ.")
    if not (finite and bool(limit.converged)):
        raise ManifoldError(
            f"The gradient flow from {what} does not converge to a regular minimizer (residual "
            f"{float(limit.residual):.3g} after {int(limit.num_steps)} steps, distance {float(limit.distance):.3g}). "
            "The loss may have no minimizer there, or a degenerate one (zero curvature in a normal direction); start "
            "closer to the minimizers, or check the loss."
        )
    tolerance = rank_tolerance(spectrum.dtype)
    relative = jnp.abs(spectrum) / spectrum[0]
    unclear = spectrum[(relative > tolerance / 20) & (relative < tolerance * 10)]
    if limit.counted and unclear.size:
        raise ManifoldError(
            f"The rank of the Hessian where the flow from {what} ends is unclear: its spectrum runs from "
            f"{float(spectrum[0]):.3g} without a gap through {float(unclear[0]):.3g}. Pass rank= if you know it, or "
            "work in float64."
        )
