"""Brownian increments that repeat exactly however a run is batched, chunked or resumed."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class StepBrownianPath(dfx.AbstractBrownianPath):
    """Brownian increments keyed by path and integer step of a fixed grid.

    The same key repeats the same path however a run is batched, chunked or resumed, at the cost of one fold of the key
    a step (a virtual Brownian tree is forty times slower, and is needed only for adaptive steps).
    """

    grid: Float[Array, " steps"]
    key: PRNGKeyArray
    size: int = eqx.field(static=True)
    levy_area: Any = eqx.field(static=True)

    def __init__(self, grid: Float[Array, " steps"], key: PRNGKeyArray, size: int):
        self.grid = grid
        self.key = key
        self.size = size
        self.levy_area = dfx.BrownianIncrement

    @property
    def t0(self) -> Array:
        return self.grid[0]

    @property
    def t1(self) -> Array:
        return self.grid[-1]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Float[Array, " r"]:
        step = jnp.searchsorted(self.grid, (t0 + t1) / 2)
        increment = jr.normal(jr.fold_in(self.key, step), (self.size,), self.grid.dtype)
        return jnp.sqrt(t1 - t0) * increment
