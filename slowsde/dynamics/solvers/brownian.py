"""Brownian increments that repeat exactly however a run is batched, chunked, resumed, refined or saved."""

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from manifolds.support.arrays import filled, power_of_two
from manifolds.support.precision import on_device

# Diffrax's own unsafe path has keys by times cast to float32: at t = 100, dt = 1e-6 only 53 of 200 increments differ.
RESOLUTION = 2.0**20  # steps are told apart by the slow time of their start, in units of dt/RESOLUTION
CLOSE = 1e-9  # knots nearer than that to the end of a cell, in units of it, are there: what rounding makes of k·dt
DEPTH = 12  # of the tree within a cell: knots dt/4096 apart have noise of their own
DEEPEST = 31  # the numbers of its nodes take 32 bits; knots nearer than dt/2³⁰ share their bridge, of 10⁻⁹ dt


class Parts(NamedTuple):
    """Which part of which cell of slow time each of n steps is, see `parts_of`."""

    cell: Int[Array, " n"]
    start: Float[Array, " n"]  # a and b: the step is [t_l + a (t_r − t_l), t_l + b (t_r − t_l)] of its cell [t_l, t_r]
    end: Float[Array, " n"]
    root: Float[Array, " n"]  # √(t_r − t_l)
    depth: Int[Array, " n"]  # of the tree; 0 where a step is its cell


class StepBrownianPath(dfx.AbstractBrownianPath):
    """Brownian increments keyed by integer step and path.

        ΔW_k = √(t_{k+1} − t_k) ξ,   ξ ~ N(0, I) from fold_in(keys[k], path)

    `grid` (n + 1,) holds the knots t_k and `keys` (n,) the key of each step, see `step_keys`. With a `stride` the
    solver steps from every stride-th knot to the next, by the exact sum of the increments between: the same Brownian
    path on a coarser grid.

    With `parts` the keys are those of cells of slow time and a step may be a part of one, from a to b of its length.
    Its increment is that of the cell, √(t_r − t_l) ξ, split by Lévy's construction:

        ΔW = √(t_r − t_l) (w(b) − w(a)),   w(s) = s ξ + Σ_l h_l(s) ξ_li,   h_l(s) = 2^(−l/2−1) (1 − |2g − 1|)

    with i and g the integer and the fraction of 2^l s, ξ_li from a fold by (l, i), and 2^(−l/2) √(g(1−g)) for h at the
    last l. So W(t) depends neither on what other times are knots nor on the order in which they are met. A virtual
    Brownian tree for all steps is forty times slower; here a step that is a whole cell draws one normal, as without.
    """

    grid: Float[Array, " knots"]
    keys: PRNGKeyArray
    path: Int[Array, ""] | int
    size: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    parts: Parts | None
    levy_area: Any = eqx.field(static=True)

    def __init__(
        self,
        grid: Float[Array, " knots"],
        keys: PRNGKeyArray,
        path: Int[Array, ""] | int,
        size: int,
        stride: int = 1,
        parts: Parts | None = None,
    ):
        self.grid, self.keys, self.path, self.size, self.stride, self.parts = grid, keys, path, size, stride, parts
        self.levy_area = dfx.BrownianIncrement

    @property
    def t0(self) -> Array:
        return self.grid[0]

    @property
    def t1(self) -> Array:
        return self.grid[-1]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Float[Array, " r"]:
        # The step is found by its middle, which rounding cannot move across a knot.
        coarse = self.grid[:: self.stride]
        first = (jnp.searchsorted(coarse, (t0 + t1) / 2, method="scan_unrolled") - 1) * self.stride
        return jnp.sum(jax.vmap(self._increment)(first + jnp.arange(self.stride)), axis=0)

    def _increment(self, k: Array) -> Float[Array, " r"]:
        if self.parts is None:
            return jnp.sqrt(self.grid[k + 1] - self.grid[k]) * self._normal(self._key(k))
        cell, a, b, root, depth = jax.tree.map(lambda leaf: leaf[k], self.parts)
        key = self._key(cell)

        def split(level: Array, sum: Array) -> Array:
            # One normal for both ends where they share it, and then with the difference of the weights.
            (i, low), (j, high) = _hat(a, level, depth), _hat(b, level, depth)
            shared = i == j
            return (
                sum
                + jnp.where(shared, high - low, high) * self._normal(jr.fold_in(key, j))
                - jnp.where(shared, 0.0, low) * self._normal(jr.fold_in(key, i))
            )

        return root * jax.lax.fori_loop(0, depth, split, (b - a) * self._normal(key))

    def _key(self, cell: Array) -> PRNGKeyArray:
        # `fold_in`, not `split(key, paths)`: the first paths do not depend on how many follow.
        return jr.fold_in(self.keys[cell], self.path)

    def _normal(self, key: PRNGKeyArray) -> Float[Array, " r"]:
        return jr.normal(key, (self.size,), self.grid.dtype)


def _hat(s: Array, level: Array, depth: Array) -> tuple[Array, Array]:
    """The number of the node over s at a level of the tree, 2^l + i, and its weight h_l(s)."""
    nodes = jnp.exp2(level.astype(s.dtype))
    i = jnp.floor(s * nodes)
    g = s * nodes - i
    # What is not resolved further is a Brownian bridge between the ends of its node.
    weight = jnp.where(level == depth - 1, jnp.sqrt(g * (1 - g)), 0.5 * (1 - jnp.abs(2 * g - 1)))
    return (nodes + i).astype(jnp.uint32), weight / jnp.sqrt(nodes)


class Drawn(NamedTuple):
    """What the increments of all paths are drawn from, on the device, with shapes of which there are few."""

    grid: Float[Array, " knots"]
    keys: PRNGKeyArray
    parts: Parts

    def of_path(self, path: Int[Array, ""], size: int, stride: int = 1) -> StepBrownianPath:
        """The `StepBrownianPath` of the path of this number, in so many dimensions."""
        return StepBrownianPath(self.grid, self.keys, path, size, stride, self.parts)


def drawn(
    key: PRNGKeyArray, grid: np.ndarray, times: np.ndarray, dt: float, dtype: Any, cells: np.ndarray | None = None
) -> Drawn:
    """The noise of the steps of `grid`, which `times` have cut, in `cells` of nominal length dt; None for a cell a
    step."""
    # Room for all times between the cells: whether they cut steps compiles nothing.
    knots = filled(grid, None if cells is None else power_of_two(cells.size) + power_of_two(times.size))
    cells = grid if cells is None else cells
    # Of the float64 times, before they are cast: a run in float32 has the same noise.
    parts = parts_of(cells, knots)
    cast = [leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf.astype(np.int32) for leaf in parts]
    return Drawn(on_device(knots.astype(dtype)), step_keys(key, filled(cells), dt), Parts(*on_device(cast)))


def parts_of(cells: np.ndarray, knots: np.ndarray) -> Parts:
    """The steps between `knots`, each within one of the cells between the ascending `cells`, as NumPy `Parts` of these.

    Knots within 1e-9 of a cell of one of its ends, or of a node of its tree, are there. All knots of a cell are told
    apart by its tree, which is `DEPTH` deep or as deep as that takes.
    """
    cell = np.clip(np.searchsorted(cells, (knots[:-1] + knots[1:]) / 2) - 1, 0, cells.size - 2)
    left, length = cells[cell], np.diff(cells)[cell]
    close = np.maximum(CLOSE, 4 * np.finfo(float).eps * np.maximum(np.abs(left), np.abs(left + length)) / length)

    def fraction(times: np.ndarray) -> np.ndarray:
        s = (times - left) / length
        # A node of the tree is where it is: the root of what rounding leaves beside it would be felt.
        node = np.rint(s * 2.0**DEPTH) / 2.0**DEPTH
        return np.clip(np.where(np.abs(s - node) < close, node, s), 0.0, 1.0)

    start, end = fraction(knots[:-1]), fraction(knots[1:])
    shortest = np.full(cells.size - 1, 1.0)
    np.minimum.at(shortest, cell, np.where(end > start, end - start, 1.0))
    needed = np.clip(np.ceil(-np.log2(shortest)).astype(int) + 1, DEPTH, DEEPEST)[cell]
    whole = (start == 0.0) & (end == 1.0)
    return Parts(cell, start, end, np.sqrt(length), np.where(whole, 0, needed))  # pyright: ignore[reportArgumentType]


def step_keys(key: PRNGKeyArray, grid: np.ndarray, dt: float) -> PRNGKeyArray:
    """(n,) keys of the steps between the n + 1 knots of `grid`, by the integer round(2²⁰ t_k/dt).

    A step so has the same key in every run with this key and dt in which it starts at the same slow time, wherever the
    run itself started and whatever was saved before; rounding errors of t_k do not matter. (Steps that start within
    dt/2²⁰ of each other, as in a graded start, are told apart by their order.)
    """
    # By slow time, not by the number of the step: runs that start later, or were saved elsewhere before, meet the same
    # noise.
    labels = np.rint(np.asarray(grid[:-1], float) / dt * RESOLUTION).astype(np.int64)
    order = np.arange(labels.size) - np.searchsorted(labels, labels)
    # `fold_in` takes 32 bits: 64-bit labels are folded in two halves.
    # 32 bits take an order below 4096; what is beyond goes into the key once more, where there is anything.
    high, low = ((labels >> 32) + ((order % 4096) << 20)).astype(np.uint32), labels.astype(np.uint32)
    return _folded(key, jnp.asarray(high), jnp.asarray(low), jnp.asarray((order // 4096).astype(np.uint32)))


@jax.jit
def _folded(key: PRNGKeyArray, high: Array, low: Array, beyond: Array) -> PRNGKeyArray:
    def one(a: Array, b: Array, c: Array) -> PRNGKeyArray:
        found = jr.fold_in(jr.fold_in(key, a), b)
        return jnp.where(c > 0, jr.fold_in(found, c), found)

    return jax.vmap(one)(high, low, beyond)
