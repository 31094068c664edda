"""Φ_S of the saved iterates of a discrete run: many points, and all of them near Γ.

There the flow ẋ = −S∇L is linear but for little. In w = S^-½(x − o), about a point o that one Newton step has brought
nearer to Γ, with the eigenpairs Q, Λ of H' at o,

    ẇ = −H'w + N(w),    H' = QΛQᵀ,    N = −S^½∇L(o + S^½w) + H'w    of second order in what is small,

and exponential steps (Krogstad's ETDRK4) follow the linear part exactly: some fifteen steps and two
eigendecompositions, where the solver of `limit_point`, made for starts from anywhere, takes forty of each. They are as
accurate. Where they do not come to rest in time, `limit_point` does the work instead.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from manifolds.losses.abstract import AbstractLoss
from manifolds.maps.limit_map import limit_point
from manifolds.metrics.abstract import AbstractMetric
from manifolds.normal.normal_space import AbstractNormalSpace, rank_tolerance
from manifolds.support.arrays import extent

from ..dynamics.ensemble import block_size, map_points, points_side_by_side
from ..dynamics.slow_sde import SlowSDE

Vector = Float[Array, " p"]
RTOL = 1e-6  # of a step of the flow from anywhere
NEAR_RTOL = 3e-8  # of an exponential step: fewer and longer, they leave as little as those of `RTOL`, some 3e-7
MOST = 100  # exponential steps: what needs more is not near Γ, or at a singular end of it
GROWTH = 8.0  # of a step, at most: as the nonlinear part dies out nothing limits it
# Stage i of Krogstad's scheme (J. Comput. Phys. 203, 2005) is at e^{−hc_iH'}w + h Σ_j a_ij(hH') N_j; row i of the table
# has a_ij in φ1, φ2, φ3 of hH' and φ1, φ2 of hH'/2. The last row is the step itself. With N there in place of the last
# N_j it would be of order three, and the difference estimates the error.
TABLE = np.zeros((4, 4, 6))
TABLE[0, 0, 3] = 0.5
TABLE[1, 0, 3:5], TABLE[1, 1, 4] = (0.5, -1), 1
TABLE[2, 0, :2], TABLE[2, 2, 1] = (1, -2), 2
TABLE[3, 0, :3], TABLE[3, 1, 1:3], TABLE[3, 2, 1:3], TABLE[3, 3, 1:3] = (1, -3, 4), (2, -4), (2, -4), (-1, 4)
TIMES = np.array([0.5, 0.5, 1.0, 1.0])
# φ3(−z) = Σ_k (−z)^k/(k+3)! for z < SMALL, to rounding, as are the quotients beyond.
SMALL = 0.25
SERIES = np.array([1 / math.factorial(k + 3) for k in range(10)][::-1])


class Landed(NamedTuple):
    """A point of Γ, whether the flow came to it, and what is left of the loss there; of many points NumPy arrays."""

    point: Any
    arrived: Any
    residual: Any


def land(sde: SlowSDE, xs: Float[np.ndarray, "paths T p"], vs: PyTree) -> Landed:
    """Φ_{S(v)} of every point, leaves (paths, T, ...)."""
    points = xs, vs
    found = map_points(_near, sde, points, points_side_by_side(sde, xs[0, 0]))
    left = ~found.arrived
    if not left.any():
        return found
    # Whole blocks, in which every point has the place that it would have if all were computed: its rounding may depend
    # on the place.
    size = min(16, block_size(sde, xs[0, 0], eigenpairs=True))
    flat = left.ravel()
    blocks = np.unique(np.flatnonzero(flat) // size)
    rows = np.minimum((blocks[:, None] * size + np.arange(size)).ravel(), flat.size - 1)
    some = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[None, rows], points)
    again = map_points(_from_anywhere, sde, some, size)
    taken = flat[rows]

    def put(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        whole = leaf.reshape(-1, *leaf.shape[2:]).copy()
        whole[rows[taken]] = new[0, taken]
        return whole.reshape(leaf.shape)

    return jax.tree.map(put, found, again)


def arrives(sde: SlowSDE, x: Vector, v: PyTree) -> bool:
    """Whether x is so near Γ that the exponential steps return it."""
    point = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], (x, v))
    return bool(map_points(_near, sde, point, points_side_by_side(sde, x)).arrived[0, 0])


def _from_anywhere(sde: SlowSDE, point: tuple[Array, PyTree]) -> Landed:
    x, v = point
    metric = sde.metric(v)
    found = limit_point(sde.loss, x, metric, sde.rank, rtol=RTOL, max_steps=1000)
    arrived = found.converged
    if sde.crosses_singular_points:
        # Where an eigenvalue is about to die its direction is in or out by rounding, and the last digits converge
        # slowly if at all. What is left of the residual and of Newton's step tells that the point is on Γ.
        arrived |= _is_near(sde, found.point, metric)
    return Landed(found.point, arrived, sde.loss.residual(found.point))


def _is_near(sde: SlowSDE, x: Array, metric: AbstractMetric) -> Array:
    """Whether the loss is within ε of zero, against ½|S^-½x|²λ_max(H'), and Newton's step within ε^¼ against |x|.

    A coordinate that dies is known to the root of what is left of the residual, and counts by its square.
    """
    eps, normal = float(jnp.finfo(x.dtype).eps), sde.loss.normal_space(x, metric)
    fits = sde.loss.value(x) < 0.5 * eps * normal.largest * extent(metric.inv_sqrt(x)) ** 2
    return fits & (jnp.linalg.norm(sde.loss.newton_step(x, normal)) < eps**0.25 * extent(x))


def _near(sde: SlowSDE, point: tuple[Array, PyTree]) -> Landed:
    start, v = point
    loss, metric, rank = sde.loss, sde.metric(v), sde.rank
    normal_space = jax.jit(lambda y: loss.normal_space(y, metric, rank))  # one function of the program
    origin = start - loss.newton_step(start, normal_space(start))
    normal = normal_space(origin)
    end, rests = _Flow(loss, metric, normal, origin).rest(start)
    x, length = _polished(loss, end, normal)
    return Landed(x, rests & _is_minimum(loss, metric, normal, x, length), loss.residual(x))


def _polished(loss: AbstractLoss, x: Vector, normal: AbstractNormalSpace) -> tuple[Vector, Float[Array, ""]]:
    """x by Newton's steps with the curvature of a point near by, each some 20 times as short as the one before, down to
    rounding; and how long the last was."""
    eps, scale = float(jnp.finfo(x.dtype).eps), extent(x)

    def unfinished(at: tuple[Vector, Array, Array]) -> Bool[Array, ""]:
        _, length, before = at
        return (length > eps**0.8 * scale) & (length < before / 2)

    def step(at: tuple[Vector, Array, Array]) -> tuple[Vector, Array, Array]:
        y, length, _ = at
        move = loss.newton_step(y, normal)
        return y - move, jnp.linalg.norm(move), length

    point, length, _ = jax.lax.while_loop(unfinished, step, (x, scale, 4 * scale))
    return point, length


def _is_minimum(
    loss: AbstractLoss, metric: AbstractMetric, normal: AbstractNormalSpace, x: Vector, length: Array
) -> Bool[Array, ""]:
    """Whether x is regular, with no slope left and no negative curvature, and was reached by a short step."""
    eps = float(jnp.finfo(x.dtype).eps)
    slope = jnp.linalg.norm(metric.sqrt(loss.gradient(x)))
    level = slope <= rank_tolerance(x.dtype) * normal.largest * extent(metric.inv_sqrt(x))
    curved = (normal.smallest > 0) & (loss.negative_curvature(x) > -1e-3 * normal.largest)
    return (length <= eps**0.5 * extent(x)) & level & curved


class _Place(NamedTuple):
    """Where the flow is, in the coordinates w and along Q, and its field there."""

    w: Vector
    c: Float[Array, " m"]  # Qᵀw
    field: Vector  # −S^½∇L
    along: Float[Array, " m"]  # Qᵀ of it


class _Run(NamedTuple):
    place: _Place
    h: Float[Array, ""]
    count: Int[Array, ""]
    resting: Bool[Array, ""]


class _Flow(NamedTuple):
    """The flow ẇ = −S^½∇L(o + S^½w) and the linear part of it."""

    loss: AbstractLoss
    metric: AbstractMetric
    normal: AbstractNormalSpace
    origin: Vector

    @property
    def values(self) -> Float[Array, " m"]:
        return jnp.where(self.normal.mask, self.normal.values, 0)

    def x(self, w: Vector) -> Vector:
        return self.origin + self.metric.sqrt(w)

    def place(self, w: Vector, c: Float[Array, " m"]) -> _Place:
        field = -self.metric.sqrt(self.loss.gradient(self.x(w)))
        return _Place(w, c, field, self.normal.coordinates(field))

    def rest(self, x: Vector) -> tuple[Vector, Bool[Array, ""]]:
        """Where the flow from x rests, and whether it does within `MOST` steps."""
        place = jax.jit(self.place)  # one function of the program
        w = self.metric.inv_sqrt(x - self.origin)
        start = place(w, self.normal.coordinates(w))
        h = 1 / self.normal.largest  # what is not finite is no step, and never rests
        run = _Run(start, h, jnp.asarray(0), jnp.asarray(False))
        step = partial(self.step, place)
        run = jax.lax.while_loop(lambda run: ~run.resting & (run.count < MOST), step, run)
        return self.x(run.place.w), run.resting

    def rests(self, at: _Place) -> Bool[Array, ""]:
        """As `limit_point` has it: Newton's step is short, and there is no slope that it does not see."""
        x = self.x(at.w)
        eps = float(jnp.finfo(x.dtype).eps)
        move = self.normal.inverse_values * at.along
        level = 2 * jnp.linalg.norm(move) + rank_tolerance(x.dtype) / 4 * extent(self.metric.inv_sqrt(x))
        short = jnp.linalg.norm(self.metric.sqrt(self.normal.lift(move))) < eps**0.4 * extent(x)
        return short & (jnp.linalg.norm(at.field) <= self.normal.largest * level)

    def step(self, place: Callable[..., _Place], run: _Run) -> _Run:
        """One step, taken if its error is within the tolerance; the next is as long as the error allows."""
        now, h = run.place, run.h
        phi = _phi(h * self.values)
        stages = jax.tree.map(lambda leaf: jnp.tile(leaf, (5, 1)), now)
        scheme = jnp.arange(4), jnp.asarray(TABLE, h.dtype), jnp.asarray(TIMES, h.dtype)
        stages, _ = jax.lax.scan(partial(self.stage, place, h, phi), stages, scheme)
        end = jax.tree.map(lambda leaf: leaf[4], stages)
        other = jax.tree.map(lambda leaf: leaf[3] - leaf[4], stages)
        along = phi[:, 2] * 4 - phi[:, 1]
        lifted = along * (other.along + self.values * other.c) - other.along / 6
        error = h * self.metric.sqrt(other.field / 6 + self.normal.lift(lifted))
        x = jnp.maximum(jnp.abs(self.x(now.w)), jnp.abs(self.x(end.w)))
        rtol = max(NEAR_RTOL, 30 * float(jnp.finfo(x.dtype).eps))
        size = jnp.sqrt(jnp.mean((error / (rtol * (x + extent(x, jnp.inf)))) ** 2))
        size = jnp.where(jnp.isfinite(size), size, jnp.inf)
        taken = size <= 1
        factor = jnp.clip(0.9 * jnp.maximum(size, 1e-12) ** -0.25, 0.2, GROWTH)
        kept = jax.tree.map(lambda new, old: jnp.where(taken, new, old), end, now)
        return _Run(kept, h * factor, run.count + 1, taken & self.rests(end))

    def stage(
        self, place: Callable[..., _Place], h: Array, phi: Float[Array, "m 6"], stages: _Place, row: tuple[Array, ...]
    ) -> tuple[_Place, None]:
        """The `stages` with number i + 1, by row i of the scheme from those before it."""
        i, weights, time = row
        free = weights @ jnp.asarray(_AT_ZERO, h.dtype)  # off the range of Q, where H' is zero
        inside = weights @ phi.T  # (4, m)
        w, c = stages.w[0], stages.c[0]
        z = time * h * self.values
        nonlinear = stages.along[:4] + self.values * stages.c[:4]
        new = jnp.exp(-z) * c + h * jnp.sum(inside * nonlinear, axis=0)
        # All of w moves as if H' were zero, what is wrong with that along Q is put right.
        rest = new - c - h * free @ stages.along[:4]
        found = place(w + h * free @ stages.field[:4] + self.normal.lift(rest), new)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=i + 1, axis=0, allow_negative_indices=False)
        return jax.tree.map(put, stages, found), None


_AT_ZERO = np.array([1, 1 / 2, 1 / 6, 1, 1 / 2, 1 / 6])


def _phi(z: Float[Array, " m"]) -> Float[Array, "m 6"]:
    """φ1, φ2, φ3 at −z and at −z/2, where φ_k(−z) = 1/k! − z φ_{k+1}(−z) and φ0 = exp."""
    z = jnp.stack([z, z / 2], axis=1)[..., None]
    small, large = jnp.polyval(jnp.asarray(SERIES, z.dtype), -jnp.minimum(z, SMALL)), jnp.maximum(z, SMALL)
    one = -jnp.expm1(-large) / large
    two = (1 - one) / large
    upwards = jnp.concatenate([one, two, (0.5 - two) / large], axis=2)
    second = 0.5 - z * small
    downwards = jnp.concatenate([1 - z * second, second, small], axis=2)
    return jnp.where(z < SMALL, downwards, upwards).reshape(z.shape[0], 6)
