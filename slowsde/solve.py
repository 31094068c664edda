"""Solve the slow SDE from a point of Γ with Diffrax: which solver, which steps, what is saved, how a path ended."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .ensemble import block_size, map_paths, points_in_block
from .progress import meter
from .solvers import (
    ExtrapolatedImplicit,
    LandingController,
    ManifoldEuler,
    ReturningSolver,
    SlowDiffusion,
    SlowFlow,
    SlowState,
    State,
    StepBrownianPath,
    step_keys,
)
from .trajectory import Result

SINGULAR = 30.0  # the contrast, see `start_contrast`, from which on the steps of an SDE are graded at the start


class Saved(eqx.Module):
    """What is kept of every path at every saved time, leaves (paths, T, ...); unreached rows are infinite."""

    x: Float[Array, "paths T p"]
    v: PyTree
    residual: Float[Array, "paths T"]  # what is left of the loss; NaN where the path was not on Γ
    rank: Float[Array, "paths T"]
    smallest: Float[Array, "paths T"]  # the extreme nonzero eigenvalues of H'
    largest: Float[Array, "paths T"]


class Ending(eqx.Module):
    """How the paths ended, leaves (paths, ...)."""

    time: Float[Array, " paths"]
    state: State
    failed: Bool[Array, " paths"]
    too_long: Bool[Array, " paths"]
    jumped: Bool[Array, " paths"]
    steps: Int[Array, " paths"]


def solve_flow(
    slow: SlowState,
    state0: State,
    times: np.ndarray,
    interval: tuple[float, float],
    solver: str,
    *,
    rtol: float,
    max_steps: int,
    progress: bool | None,
) -> tuple[Saved, Ending, str]:
    """The slow ODE of noise that does not diffuse, by "tsit5", "implicit" or "auto", and the solver that was used.

    "auto" is implicit wherever the metric can be damped: there it takes less time for the same error even on flows that
    are hardly stiff, and follows a singular start, where Runge–Kutta methods do not see their own error.
    """
    dtype = state0[0].dtype
    method = chosen_method(slow, state0, solver)
    # A singular start needs steps that are short against its own scale of time, in which v grows and S falls.
    shortest = (
        10 * jnp.finfo(dtype).eps * (interval[1] - interval[0]) * jnp.minimum(1, start_contrast(slow, state0) ** -2)
    )
    # Numbers as arrays: one compilation serves all.
    rounding = float(jnp.finfo(dtype).eps)
    saved, ending = _flow(
        slow,
        state0,
        jnp.asarray(times, dtype),
        jnp.asarray(interval, dtype),
        jnp.asarray(max(rtol, 100 * rounding), dtype),
        shortest.astype(dtype),
        method,
        max_steps=max_steps,
        shown=meter("simulate", progress),
    )
    return saved, ending, method


def chosen_method(slow: SlowState, state: State, solver: str) -> str:
    """ "implicit" or "tsit5"; ValueError if `solver` is implicit and the metric cannot be damped."""
    suits = slow.sde.has_sharpness and slow.sde.metric(slow.v(state)).damped(jnp.zeros_like(state[0])) is not None
    if solver == "implicit" and not suits:
        raise ValueError("solver='implicit' needs a metric that can be damped: diagonal, as Adam's; use 'auto'.")
    return "tsit5" if solver == "tsit5" or not suits else "implicit"


@eqx.filter_jit
def start_contrast(slow: SlowState, state: State) -> Array:
    """|S(v) B| over |S(V(Σ)) B|: huge where v starts from 0, as S falls at once from 1/ε, over times ∝ contrast⁻²/c."""
    sde, (x, _) = slow.sde, state
    return jnp.sqrt(sde.power(x, sde.metric(slow.v(state))) / sde.power(x, sde.metric(sde.equilibrium(x))))


def solve_to_rest(
    slow: SlowState, state0: State, t0: float, solver: str, *, rtol: float, tol: float, max_steps: int
) -> Ending:
    """The slow ODE until it is stationary to `tol` (see `SlowSDE.stillness`); `too_long` says that it was not."""
    dtype = state0[0].dtype
    eps = float(jnp.finfo(dtype).eps)
    ending = _to_rest(
        slow,
        state0,
        jnp.asarray(t0, dtype),
        jnp.asarray(max(rtol, 100 * eps), dtype),
        jnp.asarray(max(tol, 1e3 * eps), dtype),
        chosen_method(slow, state0, solver),
        max_steps=max_steps,
    )
    return jax.tree.map(lambda leaf: leaf[None], ending)


@eqx.filter_jit
def _to_rest(slow: SlowState, state0: State, t0: Array, rtol: Any, tol: Any, method: str, *, max_steps: int) -> Ending:
    def at_rest(t: Any, state: State, args: Any, **_: Any) -> Array:
        return slow.sde.stillness(state[0], slow.v(state), t, state0[0])[1] <= tol

    controller = dfx.PIDController(rtol=0.0, atol=1.0)
    solver: Any = ReturningSolver(dfx.Tsit5(), slow, rtol) if method == "tsit5" else ExtrapolatedImplicit(slow, rtol)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(SlowFlow(slow)),
        solver,
        t0,
        jnp.inf,
        None,
        state0,
        saveat=dfx.SaveAt(t1=True),
        stepsize_controller=controller,
        adjoint=dfx.ForwardMode(),
        event=dfx.Event(at_rest),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ts is not None
    return _ending(solution, solution.ts[-1], jax.tree.map(lambda leaf: leaf[-1], solution.ys))


@eqx.filter_jit
def stillness(slow: SlowState, saved: Saved, times: Float[Array, " T"]) -> tuple[Array, Array]:
    """(paths,) each: speed and stillness of a flow at its last saved time, see `SlowSDE.stillness`."""

    def at(x0: Array, x: Array, v: PyTree) -> tuple[Array, Array]:
        return slow.sde.stillness(x, v, times[-1], x0)

    return jax.vmap(at)(saved.x[:, 0], saved.x[:, -1], jax.tree.map(lambda leaf: leaf[:, -1], saved.v))


@eqx.filter_jit
def _flow(
    slow: SlowState,
    state0: State,
    times: Float[Array, " T"],
    interval: Float[Array, " 2"],
    rtol: Array,
    shortest: Array,
    method: str,
    *,
    max_steps: int,
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    controller: Any = dfx.PIDController(rtol=0.0, atol=1.0, dtmin=shortest, force_dtmin=False)
    if method == "tsit5":
        solver: Any = ReturningSolver(dfx.Tsit5(), slow, rtol)
    else:
        solver = ExtrapolatedImplicit(slow, rtol)
        controller = LandingController(controller, times)  # it has no dense output of its order
    saved, ending = _solve(
        slow,
        dfx.ODETerm(SlowFlow(slow)),
        solver,
        controller,
        state0,
        times,
        (interval[0], interval[1]),
        max_steps,
        shown,
    )
    return jax.tree.map(lambda leaf: leaf[None], (saved, ending))


def solve_sde(
    slow: SlowState,
    states: State,
    key: PRNGKeyArray,
    times: np.ndarray,
    grid: np.ndarray,
    dt: float,
    *,
    paths: int,
    stride: int = 1,
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    """`paths` paths of the slow SDE by tangential Euler steps on every stride-th knot of the grid.

    Those knots contain the saved times. `states` is one state to start from, or one for each path with leaves
    (paths, ...). The noise belongs to `grid`, of nominal step dt: a stride leaves the Brownian paths as they are.
    """
    dtype = states[0].dtype
    x0 = states[0] if states[0].ndim == 1 else states[0][0]
    if states[0].ndim == 1:
        states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (paths, *leaf.shape)), states)
    knots, saved_times = jnp.asarray(grid, dtype), jnp.asarray(times, dtype)
    shared = slow, step_keys(key, grid, dt), saved_times, knots, stride
    numbered = np.arange(paths), states
    return map_paths(_path, shared, numbered, block_size(slow.sde, x0, eigenpairs=True), shown=shown)


def _path(shared: Any, numbered: tuple[Array, State], shown: dfx.AbstractProgressMeter[Any]) -> tuple[Saved, Ending]:
    (slow, keys, times, grid, stride), (index, state) = shared, numbered
    columns = jax.eval_shape(slow.sde.factor, state[0]).shape[1]
    noise = StepBrownianPath(grid, keys, index, columns, stride)
    terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), noise))
    knots = grid[::stride]
    ends, controller = (knots[0], knots[-1]), dfx.StepTo(knots)
    return _solve(slow, terms, ManifoldEuler(slow), controller, state, times, ends, knots.shape[0], shown)


def _solve(
    slow: SlowState,
    terms: Any,
    solver: Any,
    controller: Any,
    state0: State,
    times: Float[Array, " T"],
    interval: tuple[Array, Array],
    max_steps: int,
    shown: dfx.AbstractProgressMeter[Any],
) -> tuple[Saved, Ending]:
    """One path."""

    def save(t: Any, state: State, args: Any) -> Saved:
        regular = jnp.asarray(True)
        if isinstance(solver, ReturningSolver):  # others end a step there; between steps the interpolant leaves Γ
            state, regular = slow.returned(state)
        x, v = state[0], slow.v(state)
        normal = slow.sde.normal_space(x, v)
        residual = jnp.where(regular, slow.sde.loss.residual(x), jnp.nan)
        return Saved(x, v, residual, normal.rank.astype(x.dtype), normal.smallest, normal.largest)

    solution = dfx.diffeqsolve(
        terms,
        solver,
        *interval,
        None,
        state0,
        saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(ts=times, fn=save), dfx.SubSaveAt(t1=True)]),
        stepsize_controller=controller,
        adjoint=dfx.ForwardMode(),
        max_steps=max_steps,
        progress_meter=shown,
        throw=False,
    )
    assert solution.ts is not None
    assert solution.ys is not None
    saved, last = solution.ys
    ending = _ending(solution, solution.ts[1][-1], jax.tree.map(lambda leaf: leaf[-1], last))
    failed = ending.failed | jnp.any(~jnp.isfinite(saved.residual))
    jumped = (solution.result == dfx.RESULTS.dt_min_reached) & isinstance(solver, ManifoldEuler)
    return saved, eqx.tree_at(lambda e: (e.failed, e.jumped), ending, (failed, jumped))


def _ending(solution: dfx.Solution, time: Array, state: State) -> Ending:
    result = solution.result
    return Ending(
        time=time,
        state=state,
        failed=(result != dfx.RESULTS.successful) & (result != dfx.RESULTS.event_occurred),
        too_long=result == dfx.RESULTS.max_steps_reached,
        jumped=jnp.asarray(False),
        steps=solution.stats["num_steps"],
    )


def result_codes(slow: SlowState, ending: Ending) -> np.ndarray:
    """(paths,) `Result` codes, from the state in which each failed path ended."""
    failed = np.asarray(ending.failed)
    if not failed.any():
        return np.zeros(failed.shape, int)
    ends = ending.state, ending.time
    smallest, finite = map_paths(_diagnose, slow, ends, points_in_block(slow.sde, ending.state[0][0]))
    lost = np.asarray(ending.jumped) | (smallest < float(slow.floor) * 1e4)
    return np.select(
        [~failed, np.asarray(ending.too_long), ~finite, lost],
        [Result.SUCCESS, Result.MAX_STEPS, Result.NON_FINITE, Result.RANK_LOST],
        Result.LEFT_MANIFOLD,
    )


def _diagnose(slow: SlowState, end: tuple[State, Array], shown: Any) -> tuple[Array, Array]:
    """The last nonzero eigenvalue of H' where a path ended, and whether state and drift are finite there."""
    state, t = end
    normal = slow.sde.normal_space(state[0], slow.v(state))
    drift = slow.sde.tangential_drift(state[0], normal, t)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((state, drift))]
    # By position, not by mask: a lost eigenvalue is masked.
    rank = normal.rank if slow.sde.rank is None else slow.sde.rank
    return normal.values[jnp.maximum(rank, 1) - 1], jnp.all(jnp.stack(finite))


def step_grid(times: np.ndarray, t0: float, t1: float, dt: float, fast: float = np.inf) -> np.ndarray:
    """Equal steps of at most dt between saved times, so that every saved time is the end of a step.

    What changes over a time `fast` at the start is followed by graded steps, g (fast + t − t0) as long as that is below
    dt, with a g that falls with dt.
    """
    g = min(0.1, 10 * dt / (t1 - t0))
    count = int(np.log(dt / (g * fast)) / np.log1p(g)) if g * fast < dt else 0
    graded = t0 + min(fast, dt / g) * np.expm1(np.arange(1, count + 1) * np.log1p(g))
    knots = np.unique(np.concatenate([[t0], graded[graded < t1], times, [t1]]))
    counts = np.maximum(1, np.ceil(np.diff(knots) / dt * (1 - 1e-9)).astype(int))
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(knots[:-1], knots[1:], counts, strict=True)]
    return np.concatenate([*pieces, [t1]])


def falling_time(slow: SlowState, state: State) -> float:
    """The time in which S falls from what it is at the start: contrast⁻²/c, infinite where it is at rest."""
    optimizer = slow.sde.optimizer
    if optimizer.quasi_static or not jax.tree.leaves(state[1]):
        return np.inf
    contrast = float(start_contrast(slow, state))
    return 1 / (float(optimizer.c) * contrast**2) if contrast > SINGULAR else np.inf
