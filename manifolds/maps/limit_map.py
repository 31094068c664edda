"""The limit map Φ_S: where the preconditioned gradient flow ẋ = −S ∇L(x) started at x ends.

The flow is integrated until Γ is so near that the Gauss–Newton return, which differs from Φ_S by the square of the
distance left, agrees with it to rounding; the return then polishes the point.
"""

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..losses.abstract import AbstractLoss
from ..metrics.abstract import AbstractMetric
from ..normal.normal_space import rank_tolerance
from ..support.arrays import extent
from ..support.compilation import compiled
from ..support.precision import is_traced, to_numpy
from ..support.step_size import step_factor
from .gradient_flow import ORDER, Curvature, GradientFlow
from .kinks import find_kink
from .return_map import ranked_return

Vector = Float[Array, " p"]
FAR = 1e6  # times the size of the start: a flow that goes farther is not stuck by rounding, it has no end
RTOL = 1e-8  # the relative error of a step, unless asked for otherwise
MAX_STEPS = 10_000  # of the flow, unless asked for otherwise: networks take some hundreds


class LimitPoint(eqx.Module):
    """Φ_S(x) and what was found on the way.

    Attributes:
        point: the limit, (p,); where the flow did not come to rest, what it got to.
        distance: |Φ_S(x) − x|, Euclidean.
        value: L there.
        residual: what is left of the loss there: |∇L|, or the largest residual of a least-squares loss.
        rank: the number m of nonzero eigenvalues of H' = S^½ H S^½ at the limit.
        spectrum: the eigenvalues of H' found, descending.
        negative_curvature: the smallest eigenvalue of H if it is negative, else 0.
        num_steps: steps of the flow solver.
        too_long: whether they were as many as allowed, and the flow not yet at rest.
        falling: the share by which the residual fell over the last quarter of them; 0 where that is not known, and
            where it has long been rounding error, as before a regular minimizer it cannot be.
        converged: whether the flow came to rest and the polish converged.
        stretch: |S^-½ Φ_S(x)|, the size of the point in the coordinates of H'.
        counted: whether the rank was counted from the spectrum, not given.
    """

    point: Vector
    distance: Float[Array, ""]
    value: Float[Array, ""]
    residual: Float[Array, ""]
    rank: Int[Array, ""]
    spectrum: Float[Array, " m"]
    negative_curvature: Float[Array, ""]
    num_steps: Int[Array, ""]
    too_long: Bool[Array, ""]
    falling: Float[Array, ""]
    converged: Bool[Array, ""]
    stretch: Float[Array, ""]
    counted: bool = eqx.field(static=True)


class ManifoldError(ValueError):
    """A point from which no regular point of a manifold of minimizers is reached."""


def as_rank(rank: Any, size: int) -> Int[Array, ""] | None:
    """The rank of H on Γ as an array, None for one that is to be counted. ValueError unless it is in 1, ..., p."""
    # Not `rank in range(...)`: True is in it, and 1.0.
    if rank is not None and not is_traced(rank) and not (_is_integer(rank) and 1 <= rank <= size):
        raise ValueError(f"rank={rank!r} must be a positive integer, at most the number {size} of parameters, or None.")
    return None if rank is None else jnp.asarray(rank, int)


def _is_integer(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "iu"


def limit_point(
    loss: AbstractLoss,
    x: Vector,
    metric: AbstractMetric,
    rank: Int[Array, ""] | None = None,
    *,
    rtol: float = RTOL,
    max_steps: int = MAX_STEPS,
    shown: dfx.AbstractProgressMeter[Any] | None = None,
) -> LimitPoint:
    """Φ_S(x) on flat coordinates, with its report; never raises (see `check_limit`).

    `rtol` is the relative error of a flow step, `shown` a meter that is told of every step (of its number alone: how
    far a flow to t = ∞ has come is not known). Runs under jit, vmap and forward-mode derivatives.
    """
    flow, rtol = GradientFlow(loss, metric), max(rtol, 30 * float(jnp.finfo(x.dtype).eps))
    meter = dfx.NoProgressMeter() if shown is None else shown
    allowed = rtol, extent(x, jnp.inf)

    def unfinished(at: _Way) -> Bool[Array, ""]:
        return ~at.rests & (at.count < max_steps) & (at.h > 0)

    def on(at: _Way) -> _Way:
        # The test before the step, so that a start on Γ stays where it is.
        rests = _at_rest(loss, metric, rank, x, at.y)
        # Under vmap both sides are computed. From a y that has to wait for the test: XLA may compute side by side what
        # is independent, and two batched factorizations then wait for each other for ever (seen on CPUs).
        later = at._replace(y=jnp.where(rests, x, at.y))
        return jax.lax.cond(
            rests, lambda: at._replace(rests=rests), lambda: _step(flow, later, allowed, max_steps, meter)
        )

    end = jax.lax.while_loop(unfinished, on, _start(flow, x, meter))
    meter.close(end.seen)
    found = ranked_return(loss, end.y, metric, rank)
    point = jnp.where(end.rests, found.returned.point, end.y)
    value = loss.value(point)
    return LimitPoint(
        point=point,
        distance=jnp.linalg.norm(point - x),
        value=value,
        # A loss may turn NaN where its gradient does not.
        residual=jnp.where(jnp.isfinite(value), loss.residual(point), jnp.nan),
        rank=found.rank,
        spectrum=found.spectrum,
        negative_curvature=loss.negative_curvature(point),
        num_steps=end.count,
        too_long=~end.rests & (end.count >= max_steps),
        falling=_fall(end.history),
        converged=end.rests & found.returned.converged,
        stretch=extent(metric.inv_sqrt(point)),
        counted=rank is None,
    )


class _Way(NamedTuple):
    """The gradient flow on its way."""

    y: Vector
    h: Float[Array, ""]  # the length of the next step
    known: Curvature
    rests: Bool[Array, ""]
    count: Int[Array, ""]
    history: Float[Array, " 16"]  # the residual at sixteenths of the steps that are allowed; not finite: not yet
    seen: Any  # the state of the progress meter


def _start(flow: GradientFlow, x: Vector, meter: dfx.AbstractProgressMeter[Any]) -> _Way:
    # A first step over a hundredth of the time in which the velocity changes by itself, as far as one can tell there.
    velocity, change = jax.jvp(flow.velocity, (x,), (flow.velocity(x),))
    tiny = jnp.finfo(x.dtype).tiny
    h = 0.01 * ((jnp.linalg.norm(velocity) + tiny) / (jnp.linalg.norm(change) + tiny))
    h = jax.lax.stop_gradient(jnp.where(jnp.isfinite(h), h, 1.0))
    history, no = jnp.full(16, jnp.inf, x.dtype), jnp.asarray(False)
    return _Way(x, h, flow.curvature(x), no, jnp.asarray(0), history, meter.init())


def _step(
    flow: GradientFlow,
    at: _Way,
    allowed: tuple[float, Array],
    max_steps: int,
    meter: dfx.AbstractProgressMeter[Any],
) -> _Way:
    """A step with an error below rtol (|y_i| + max |y|), or max |x| at the start; `allowed` are rtol and that."""
    y, error, known = flow.step(at.y, at.h, at.known)
    (rtol, start), size = allowed, jnp.maximum(jnp.abs(at.y), jnp.abs(y))
    error = jax.lax.stop_gradient(error / (rtol * (size + jnp.maximum(start, jnp.max(size)))))
    ratio = jnp.sqrt(jnp.mean(error**2))
    taken = ratio < 1
    factor = step_factor(ratio, taken, ORDER)
    y = jnp.where(taken, y, at.y)
    note = (jnp.arange(at.history.size) + 1) * max(1, max_steps // at.history.size) == at.count + 1
    history = jax.lax.cond(
        jnp.any(note), lambda: jnp.where(note, flow.loss.residual(y), at.history), lambda: at.history
    )
    seen = meter.step(at.seen, (at.count + 1) / max_steps)
    return _Way(y, factor * at.h, known, at.rests, at.count + 1, history, seen)


def _at_rest(
    loss: AbstractLoss, metric: AbstractMetric, rank: Int[Array, ""] | None, x: Vector, y: Vector
) -> Bool[Array, ""]:
    """Whether the flow from x is so near Γ at y that the return agrees with Φ_S, or moves no more."""
    near = float(jnp.finfo(x.dtype).eps) ** 0.4  # 6e-7 in float64: its square is rounding error
    size = jnp.maximum(extent(x), jnp.linalg.norm(y))  # also of a flow that ends at the origin

    def settled() -> Bool[Array, ""]:
        normal = loss.normal_space(y, metric, rank)
        move, slope = loss.newton_step(y, normal), loss.gradient(y)
        arrived = jnp.linalg.norm(move) < near * size
        # Newton's step does not see a slope along directions of no or of negative curvature: there must be none left.
        # Against the size of the start: that of y grows without bound down a slope that has no end.
        stretch = rank_tolerance(y.dtype) / 4 * extent(metric.inv_sqrt(x))
        level = 2 * jnp.linalg.norm(metric.inv_sqrt(move)) + stretch
        arrived &= jnp.linalg.norm(metric.sqrt(slope)) <= normal.largest * level
        # Newton's step is short at a saddle too, where the flow only lingers; wait there until nothing moves at all.
        rounding = jnp.finfo(y.dtype).eps * jnp.minimum(size, FAR * extent(x))
        stuck = jnp.linalg.norm(metric(slope)) <= jnp.abs(normal.largest) * rounding
        bent = loss.negative_curvature(jnp.where(arrived, y, x))  # after the eigenpairs, not beside them
        return (arrived & (bent > -1e-3 * normal.largest)) | stuck

    off = loss.off_manifold(y, metric, near * size)
    return jax.lax.cond(off, lambda: jnp.asarray(False), settled)


# One cache for all who ask.
compiled_limit_point = compiled(limit_point, once=lambda loss, *_, **__: loss.is_small)


def check_limit(
    limit: LimitPoint,
    loss: AbstractLoss,
    metric: AbstractMetric,
    what: str = "params0",
    rank_for: str | None = None,
) -> None:
    """ManifoldError unless `limit` is a point of a manifold of minimizers of `loss`; needs concrete values.

    `rank_for` names a formula that asks for a clear rank; where none does, nor the loss, the rank is a finding alone.
    """
    rank_for = rank_for or loss.rank_for
    limit, on_device = to_numpy(limit), limit  # looked at here: each look at the device would be a program
    spectrum = limit.spectrum
    finite = _finite(limit)
    if not np.isfinite(limit.residual):
        raise ManifoldError(
            f"The loss or its gradient turns NaN or infinite on the way from {what}, at which it is finite, after "
            f"{int(limit.num_steps)} steps: the model leaves the domain where it is defined (log, sqrt, a division, "
            "jnp.where), or overflows. Start nearer to the minimizers, or mend it there."
        )
    if finite and limit.negative_curvature < 0 and not bool(limit.too_long):
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
            + _remedy(on_device, loss, metric)
        )
    tolerance = rank_tolerance(spectrum.dtype)
    relative = np.abs(spectrum) / spectrum[0]
    unclear = spectrum[(relative > tolerance / 20) & (relative < tolerance * 10)]
    if rank_for is not None and limit.counted and unclear.size:
        single = "" if spectrum.dtype == jnp.float64 else ", or work in float64"
        raise ManifoldError(
            f"The rank of the Hessian where the flow from {what} ends is unclear: its spectrum runs from "
            f"{float(spectrum[0]):.3g} without a gap through {float(unclear[0]):.3g}"
            f", and {rank_for} needs it. Pass rank= if you know it{single}."
        )


def _remedy(limit: LimitPoint, loss: AbstractLoss, metric: AbstractMetric) -> str:
    kink = find_kink(loss, limit.point, metric(loss.gradient(limit.point))) if _finite(limit) else None
    if kink is not None:
        return f"Near it {kink.explain()}."
    if bool(limit.too_long) and limit.falling > 0.05:
        share = f"{100 * float(limit.falling):.0f} %"
        return f"It still fell, over the last quarter of the steps allowed by {share}: raise max_steps."
    return (
        "The loss may have no minimizer there, or a degenerate one (zero curvature in a normal direction); start "
        "closer to the minimizers, or check the loss."
    )


def _finite(limit: LimitPoint) -> bool:
    return bool(np.all(np.isfinite(np.asarray(limit.point))))


def _fall(history: Float[Array, " T"]) -> Float[Array, ""]:
    """By how much of itself the residual fell over the last four of the times at which it was noted (inf: not yet)."""
    last = jnp.sum(jnp.isfinite(history)) - 1
    before, now = history[jnp.maximum(last - 4, 0)], history[jnp.maximum(last, 0)]
    known = (last >= 4) & (now > jnp.finfo(now.dtype).eps * history[0])
    return jnp.where(known, 1 - now / jnp.where(known, before, 1), 0)
