"""Paths of a slow SDE that diffuses, with steps that are fixed before."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from manifolds.support.arrays import filled
from manifolds.support.precision import on_device

from ..support.pieces import Pieces
from .ensemble import block_size
from .marching import march_paths
from .solve import Ending, Saved
from .solvers.brownian import StepBrownianPath, step_keys
from .solvers.euler import ManifoldEuler
from .solvers.state import SlowDiffusion, SlowFlow, SlowState, State
from .stepping import March, march

SINGULAR = 30.0  # the contrast, see `flow.Scales`, from which on the steps of an SDE are graded at the start


def solve_sde(
    slow: SlowState,
    states: State,
    key: PRNGKeyArray,
    times: np.ndarray,
    grid: np.ndarray,
    dt: float,
    *,
    paths: int | np.ndarray,
    stride: int = 1,
    pieces: Pieces,
    stage: str = "paths",
    regular: tuple[Any, Any] | None = None,
) -> tuple[Saved, Ending]:
    """Paths of the slow SDE by tangential Euler steps on every stride-th knot of the grid: so many, or with the noise
    of the paths of these numbers.

    Those knots contain the saved times. `states` is one state to start from, or one for each path with leaves
    (paths, ...), which then may have their own `regular`, the rank of H and the floor of its eigenvalues. The noise
    belongs to `grid`, of nominal step dt: a stride leaves the Brownian paths as they are.
    """
    numbers = paths if isinstance(paths, np.ndarray) else np.arange(paths)
    states, paths = jax.tree.map(np.asarray, states), numbers.size
    x0 = states[0] if states[0].ndim == 1 else states[0][0]
    if states[0].ndim == 1:
        states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (paths, *leaf.shape)), states)
    knots = grid[::stride]
    # Of lengths that are powers of two, so that another number of steps or of times seldom compiles anew.
    keys = step_keys(key, filled(grid), dt)  # of the float64 grid, before it is cast: a run in float32 has the same
    shared = slow, keys, on_device(filled(grid).astype(x0.dtype)), stride
    first, stops = (numbers, March.begun(states), regular), np.searchsorted(knots, times)
    size = block_size(slow.sde, x0, eigenpairs=True)
    saved, (_, end, _), reached = march_paths(_path, shared, first, 0, stops, size, pieces, stage)
    arrived = np.all(np.isfinite(saved.residual) | ~reached, axis=1)
    none = np.zeros(paths, bool)
    return saved, Ending(
        time=knots[end.k],
        state=end.state,
        failed=~(end.good & arrived),
        too_long=none,
        jumped=end.jumped,
        chattered=none,
        steps=end.k,
    )


def _path(shared: Any, numbered: tuple[Array, March, Any]) -> tuple[tuple[Array, March, Any], Saved]:
    ((slow, keys, grid, stride), window), (index, at, regular) = shared, numbered
    if regular is not None:
        slow = eqx.tree_at(lambda s: (s.sde.rank, s.floor), slow, regular, is_leaf=lambda leaf: leaf is None)
    columns = jax.eval_shape(slow.sde.factor, at.state[0]).shape[1]
    noise = StepBrownianPath(grid, keys, index, columns, stride)
    terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), noise))
    at, rows = march(slow, ManifoldEuler(slow), terms, at, grid[::stride], window)
    return (index, at, regular), rows


def step_grid(times: np.ndarray, t0: float, t1: float, dt: float, fast: float = np.inf) -> np.ndarray:
    """Equal steps of at most dt between saved times, so that every saved time is the end of a step.

    What changes over a time `fast` at the start is followed by graded steps, g (fast + t − t0) as long as that is below
    dt, with a g that falls with dt.
    """
    # From v = 0 S falls like a power of t, so that steps must grow with t: by a factor 1 + g each, and g shrinks with
    # dt, or the error would stop falling.
    g = min(0.1, 10 * dt / (t1 - t0))
    count = int(np.log(dt / (g * fast)) / np.log1p(g)) if g * fast < dt else 0
    # fast ((1+g)^k − 1), by expm1 as the first knots are much smaller than t.
    graded = t0 + min(fast, dt / g) * np.expm1(np.arange(1, count + 1) * np.log1p(g))
    knots = np.unique(np.concatenate([[t0], graded[graded < t1], times, [t1]]))
    # A gap of ten steps to rounding is ten steps, not eleven.
    counts = np.maximum(1, np.ceil(np.diff(knots) / dt * (1 - 1e-9)).astype(int))
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(knots[:-1], knots[1:], counts, strict=True)]
    return np.concatenate([*pieces, [t1]])
