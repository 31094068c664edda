"""Paths of a slow SDE that diffuses, with steps that are fixed before."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..support.pieces import Pieces
from .ensemble import block_size
from .marching import march_paths
from .solve import Ending, Saved
from .solvers.brownian import CLOSE, drawn
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
    cells: np.ndarray | None = None,
) -> tuple[Saved, Ending]:
    """Paths of the slow SDE by tangential Euler steps on every stride-th knot of the grid: so many, or with the noise
    of the paths of these numbers.

    Those knots contain the saved times. `states` is one state to start from, or one for each path with leaves
    (paths, ...), which then may have their own `regular`, the rank of H and the floor of its eigenvalues. The noise
    belongs to `cells`, see `noise_cells`, or to the steps of `grid`, of nominal step dt: a stride leaves the Brownian
    paths as they are.
    """
    numbers = paths if isinstance(paths, np.ndarray) else np.arange(paths)
    states, paths = jax.tree.map(np.asarray, states), numbers.size
    x0 = states[0] if states[0].ndim == 1 else states[0][0]
    if states[0].ndim == 1:
        states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (paths, *leaf.shape)), states)
    knots = grid[::stride]
    shared = slow, drawn(key, grid, times, dt, x0.dtype, cells), stride
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
    ((slow, noise, stride), window), (index, at, regular) = shared, numbered
    if regular is not None:
        slow = eqx.tree_at(lambda s: (s.sde.rank, s.floor), slow, regular, is_leaf=lambda leaf: leaf is None)
    columns = jax.eval_shape(slow.sde.factor, at.state[0]).shape[1]
    brownian = noise.of_path(index, columns, stride)
    terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), brownian))
    at, rows = march(slow, ManifoldEuler(slow), terms, at, noise.grid[::stride], window)
    return (index, at, regular), rows


def steps_between(t0: float, t1: float, dt: float) -> int:
    """The least number of equal steps of at most dt: a gap of ten steps to rounding is ten steps, not eleven."""
    return max(1, int(np.ceil((t1 - t0) / dt * (1 - 1e-9))))


def step_grid(times: np.ndarray, t0: float, t1: float, dt: float, fast: float = np.inf) -> np.ndarray:
    """The steps of `noise_cells`, cut at t0, at t1 and at the saved times: every saved time is the end of a step, and
    the others end where they would without it."""
    cells = noise_cells(t0, t1, dt, fast)
    kept = np.unique(np.concatenate([[t0], times, [t1]]))
    # A multiple of dt to rounding is that knot, and no sliver beside it.
    at = np.clip(np.searchsorted(cells, kept), 1, cells.size - 1)
    near = np.where(kept - cells[at - 1] < cells[at] - kept, at - 1, at)
    lengths = cells[at] - cells[at - 1]
    close = np.abs(cells[near] - kept) <= np.maximum(CLOSE * lengths, 4 * np.finfo(float).eps * np.abs(kept))
    between = np.delete(cells, near[close])
    return np.union1d(between[(between > t0) & (between < t1)], kept)


def noise_cells(t0: float, t1: float, dt: float, fast: float = np.inf) -> np.ndarray:
    """The ends k·dt of the cells of slow time that Brownian increments belong to, as far as they meet [t0, t1].

    They are where they are whatever t0, t1 and the saved times: so is the noise. What changes over a time `fast` at the
    start is followed by graded cells from t0 on, g (fast + t − t0) long as long as that is below dt, with a g that
    falls with dt.
    """
    # k·dt to rounding is k·dt.
    slack = max(CLOSE, 4 * np.finfo(float).eps * max(abs(t0), abs(t1)) / dt)
    regular = dt * np.arange(np.floor(t0 / dt + slack), np.ceil(t1 / dt - slack) + 1)
    # From v = 0 S falls like a power of t, so that steps must grow with t: by a factor 1 + g each, and g shrinks with
    # dt, or the error would stop falling.
    g = min(0.1, 10 * dt / (t1 - t0))
    count = int(np.log(dt / (g * fast)) / np.log1p(g)) if g * fast < dt else 0
    if not count:
        return regular
    # fast ((1+g)^k − 1), by expm1 as the first knots are much smaller than t.
    graded = t0 + fast * np.expm1(np.arange(1, count + 1) * np.log1p(g))
    graded = np.unique(np.concatenate([[t0], graded[graded < t1]]))
    return np.concatenate([graded, regular[regular > graded[-1]]])
