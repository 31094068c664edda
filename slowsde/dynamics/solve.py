"""What is saved of a path of the slow SDE, and how it ended."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from manifolds.maps.kinks import Kink, find_kink
from manifolds.support.arrays import all_finite
from manifolds.support.compilation import compiled, compiled_once

from .ensemble import map_paths, points_in_block
from .fast_motion import spectral_history
from .result import Result
from .solvers.state import SlowState, State, or_none

LOOKED_AT = 16  # failed paths in which a kink is looked for: it takes a few Jacobians each


class Saved(eqx.Module):
    """What is kept of every path at every saved time, leaves (paths, T, ...); unreached rows are infinite."""

    x: Float[Array, "paths T p"]
    v: PyTree
    residual: Float[Array, "paths T"]  # what is left of the loss; NaN where the path was not on Γ
    rank: Float[Array, "paths T"]
    smallest: Float[Array, "paths T"]  # the extreme nonzero eigenvalues of H'
    largest: Float[Array, "paths T"]
    history: dict[str, Float[Array, "paths T"]]  # for `studies.validity`, see `fast_motion.spectral_history`


@compiled
def saved_at(slow: SlowState, state: State) -> Saved:
    """What is kept of a state, leaves without leading axes."""
    x, v = state[0], slow.v(state)
    normal = slow.sde.normal_space(x, v)
    history = spectral_history(slow.sde, x, v, normal)
    residual, rank = slow.sde.loss.residual(x), normal.rank.astype(x.dtype)
    return Saved(x, or_none(v), residual, rank, normal.smallest, normal.largest, history)


class Method(NamedTuple):
    """How a run is to be solved, see `runs.simulate`: what is asked of all solvers travels as one."""

    solver: str
    dt: float
    rtol: float
    tol: float
    max_steps: int


class Ending(eqx.Module):
    """How the paths ended, leaves (paths, ...), of JAX or of NumPy."""

    time: Float[Any, " paths"]
    state: State
    failed: Bool[Any, " paths"]
    too_long: Bool[Any, " paths"]
    jumped: Bool[Any, " paths"]
    chattered: Bool[Any, " paths"]
    steps: Int[Any, " paths"]


class Solved(NamedTuple):
    """All that the solve of a run found."""

    times: np.ndarray  # (T,) the saved ones
    saved: Saved
    ending: Ending
    stats: dict[str, Any]
    verdict: Result = Result.SUCCESS  # of a run to rest: why its end is none


def result_codes(slow: SlowState, ending: Ending) -> np.ndarray:
    """(paths,) `Result` codes, from the state in which each failed path ended."""
    return explained(slow, ending)[0]


def explained(slow: SlowState, ending: Ending) -> tuple[np.ndarray, Kink | None]:
    """The `result_codes`, and the kink that the first of the paths met which ended at one."""
    codes = _plain_codes(slow, ending)
    kinks: list[Kink] = []
    for path in np.flatnonzero((codes != Result.SUCCESS) & (codes != Result.NON_FINITE))[:LOOKED_AT]:
        state, t = jax.tree.map(lambda leaf, path=path: jnp.asarray(leaf)[path], (ending.state, ending.time))
        kink = kink_of(slow, state, t)
        if kink is not None:
            codes[path] = Result.KINK
            kinks.append(kink)
    return codes, kinks[0] if kinks else None


def kink_of(slow: SlowState, state: State, t: Array) -> Kink | None:
    """The kink of the loss at which a path is that goes no further, along its drift."""
    return find_kink(slow.sde.loss, state[0], _drift(slow, state, t))


@compiled_once
def _drift(slow: SlowState, state: State, t: Array) -> Array:
    normal = slow.sde.normal_space(state[0], slow.v(state))
    return slow.sde.tangential_drift(state[0], normal, t)


def _plain_codes(slow: SlowState, ending: Ending) -> np.ndarray:
    failed = np.asarray(ending.failed)
    if not failed.any():
        return np.zeros(failed.shape, int)
    ends = ending.state, ending.time
    smallest, finite = map_paths(_diagnose, slow, ends, points_in_block(slow.sde, ending.state[0][0]))
    # A step fails before the eigenvalue is below the floor itself: within four decades of it the reason is the rank.
    lost = np.asarray(ending.jumped) | (smallest < float(slow.floor) * 1e4)
    return np.select(
        [~failed, np.asarray(ending.too_long), ~finite, lost],
        [Result.SUCCESS, Result.MAX_STEPS, Result.NON_FINITE, Result.RANK_LOST],
        Result.LEFT_MANIFOLD,
    )


def _diagnose(slow: SlowState, end: tuple[State, Array]) -> tuple[Array, Array]:
    """The last nonzero eigenvalue of H' where a path ended, and whether state and drift are finite there."""
    state, t = end
    # Only failed paths are asked, but all are computed: they share one compiled program.
    normal = slow.sde.normal_space(state[0], slow.v(state))
    drift = slow.sde.tangential_drift(state[0], normal, t)
    # By position, not by mask: a lost eigenvalue is masked.
    rank = normal.rank if slow.sde.rank is None else slow.sde.rank
    return normal.values[jnp.maximum(rank, 1) - 1], all_finite((state, drift))
