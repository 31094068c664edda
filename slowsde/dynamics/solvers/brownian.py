"""Brownian increments that repeat exactly however a run is batched, chunked, resumed or refined."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

# Diffrax's own unsafe path has keys by times cast to float32: at t = 100, dt = 1e-6 only 53 of 200 increments differ.
RESOLUTION = 2.0**20  # steps are told apart by the slow time of their start, in units of dt/RESOLUTION


class StepBrownianPath(dfx.AbstractBrownianPath):
    """Brownian increments keyed by integer step and path.

        ΔW_k = √(t_{k+1} − t_k) ξ,   ξ ~ N(0, I) from fold_in(keys[k], path)

    `grid` (n + 1,) holds the knots t_k and `keys` (n,) the key of each step, see `step_keys`. With a `stride` the
    solver steps from every stride-th knot to the next, by the exact sum of the increments between: the same Brownian
    path on a coarser grid. A virtual Brownian tree is forty times slower, and is needed only for adaptive steps.
    """

    grid: Float[Array, " knots"]
    keys: PRNGKeyArray
    path: Int[Array, ""] | int
    size: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    levy_area: Any = eqx.field(static=True)

    def __init__(
        self, grid: Float[Array, " knots"], keys: PRNGKeyArray, path: Int[Array, ""] | int, size: int, stride: int = 1
    ):
        self.grid, self.keys, self.path, self.size, self.stride = grid, keys, path, size, stride
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

        def increment(k: Array) -> Array:
            # `fold_in`, not `split(key, paths)`: the first paths do not depend on how many follow.
            normal = jr.normal(jr.fold_in(self.keys[k], self.path), (self.size,), self.grid.dtype)
            return jnp.sqrt(self.grid[k + 1] - self.grid[k]) * normal

        return jnp.sum(jax.vmap(increment)(first + jnp.arange(self.stride)), axis=0)


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
