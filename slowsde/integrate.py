"""Integrate the slow SDE of an optimizer near its manifold of minimizers."""

import time
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import manifolds as mf
from manifolds import limit_map
from manifolds.coordinates import Coordinates, check_parameters
from manifolds.flow_limit import LimitPoint, as_rank, check_limit, limit_point
from manifolds.normal_space import rank_tolerance
from manifolds.precision import cast, to_numpy, working_precision

from . import checks
from .metrics import as_metrics, check_metrics, evaluate
from .optimizers import AGM
from .problems import AbstractProblem
from .progress import meter
from .slow_sde import SlowSDE, slow_sde
from .solvers import ManifoldEuler, ReturningSolver, SlowDiffusion, SlowFlow, SlowState, State, StepBrownianPath
from .trajectory import Result, Trajectory, finish

SOLVERS = ("auto", "tsit5", "euler")


def simulate(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    t0: float = 0.0,
    v0: PyTree = None,
    paths: int = 1,
    key: PRNGKeyArray | None = None,
    save_at: Any = 101,
    metrics: Any = (),
    solver: str = "auto",
    dt: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-10,
    max_steps: int = 100_000,
    route: str = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory:
    """Paths of the slow SDE for (ζ, v), from ζ(t0) = Φ_{S(v0)}(params0), on Γ at every step.

        dζ = Π S B dW + ½ ∂²Φ_S(ζ)[S Σ S] dt,   dv = c (V(Σ(ζ)) − v) dt          (Li, Wen and Lyu 2025)

    Under label noise nothing diffuses and this is an ODE, solved with adaptive steps; otherwise an SDE, solved with
    fixed steps.

    Args:
        problem, optimizer: see `Problem` and `AGM`.
        params0: any start in the basin of Γ; it need not lie on Γ.
        t0, t1: slow time, t = kη² after k steps of the optimizer at learning rate η.
        v0: optimizer state at the start; None for the equilibrium V(Σ(params0)).
        paths: the number of independent paths (all equal where nothing diffuses).
        key: random key; None for `jax.random.key(0)`.
        save_at: a number of equally spaced times, or the times.
        metrics: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}.
        solver: "auto"; "tsit5" (adaptive, needs noise that does not diffuse) or "euler" (weak order 1).
        dt: step of "euler" in slow time; None for (t1 − t0)/1000.
        rtol, atol: tolerances of the adaptive solver.
        max_steps: bound on its steps.
        route: "dense", "kernel" (least squares) or "auto".
        rank: the rank of the Hessian on Γ; None to find it.
        dtype: "float64" or "float32".
        throw: raise `RunError` when a path fails; False returns what it had, with `Trajectory.result` codes.
        progress: show a progress line on stderr; None for only when it is a terminal.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds route, rank, the spectrum of H' at the start,
        start_distance |Φ(params0) − params0|, residual (paths, T), num_steps and seconds.
    Raises: ValueError on bad input, before any long computation; `RunError` with the slow time at which a path left Γ,
        lost rank or turned non-finite.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, t1=1.0, metrics=("trace_hessian",))
        >>> slow.metrics["trace_hessian"].shape
        (1, 101)
    """
    started = time.perf_counter()
    times = checks.save_times(save_at, t0, t1)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        chart, x0 = checks.check_inputs(problem, optimizer, params0)
        sde = slow_sde(problem, optimizer, chart, route)
        adaptive = _choose_solver(solver, sde)
        copies = 1 if sde.diffuses else paths
        slow, start, v0 = start_on_manifold(sde, x0, v0, rank)
        check_metrics(named, slow.sde, start.point, v0)
        grid = None if adaptive else step_grid(times, t0, t1, dt)
        xs, vs, residual, steps, failed, ended = _integrate(
            slow,
            slow.initial(start.point, v0),
            key,
            jnp.asarray(times, precision),
            None if grid is None else jnp.asarray(grid, precision),
            (jnp.asarray(t0, precision), jnp.asarray(t1, precision)),
            (rtol, atol),
            paths=paths // copies,
            max_steps=max_steps,
            progress=meter("simulate", progress),
        )
        failed = failed | jnp.any(~jnp.isfinite(residual), axis=1)
        found = evaluate(named, slow.sde, xs, vs)
        codes, whens = _explain(slow, failed, ended)
        saved = to_numpy((xs, vs, residual, found))
        xs, vs, residual, found = _blank_failed(np.isfinite(saved[2]), saved)

    def repeat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0), tree)

    trajectory = Trajectory(
        ts=times,
        params=chart.unravel(repeat(xs)),
        v=repeat(vs),
        metrics={name: repeat(found[name]) for name in named},
        stats={
            "route": type(sde.loss).__name__,
            "solver": "tsit5" if adaptive else "euler",
            "rank": int(start.rank),
            "spectrum": np.asarray(start.spectrum)[: int(start.rank)],
            "start_distance": float(start.distance),
            "residual": repeat(residual),
            "num_steps": int(np.max(np.asarray(steps))),
            "seconds": time.perf_counter() - started,
        },
        result=repeat(codes),
        label="slow",
    )
    return finish(trajectory, whens, throw)


def to_manifold(
    problem: AbstractProblem,
    params: PyTree,
    metric: Any = None,
    *,
    route: str = "auto",
    rank: int | None = None,
    dtype: Any = "float64",
) -> PyTree:
    """Φ_S(params): train `params` to the manifold of minimizers of a problem by its preconditioned gradient flow.

    `manifolds.limit_map` by the problem's own route. `metric` is S (None: plain gradient flow, see
    `manifolds.as_metric`). Raises `manifolds.ManifoldError` (a ValueError) where the flow reaches no regular minimizer.

    Example:
        >>> start = to_manifold(problem, params0)
    """
    with working_precision(dtype) as precision:
        problem, params, metric = cast((problem, params, metric), precision)
        chart = Coordinates.of(params)
        return limit_map(problem.flat_loss(chart, route), params, metric, rank=rank, dtype=precision)


def start_on_manifold(sde: SlowSDE, x0: Array, v0: PyTree, rank: int | None) -> tuple[SlowState, LimitPoint, PyTree]:
    """Φ_{S(v0)}(x0), checked, with the slow SDE on Γ at its rank and the state v0 there."""
    v0 = sde.equilibrium(x0) if v0 is None else v0
    checks.check_state(sde, x0, v0)
    start = _limit(sde.loss, x0, sde.metric(v0), as_rank(rank, x0.size))
    check_limit(start)
    _check_interpolation(sde, start)
    checks.check_noise_on_manifold(sde, start.point, start.spectrum[0])
    # An eigenvalue that was regular at the start and has shrunk so far has vanished for every practical purpose.
    floor = rank_tolerance(x0.dtype) * start.spectrum[start.rank - 1]
    return (
        SlowState(eqx.tree_at(lambda s: s.rank, sde, start.rank, is_leaf=lambda leaf: leaf is None), floor),
        start,
        v0,
    )


def step_grid(times: np.ndarray, t0: float, t1: float, dt: float | None) -> np.ndarray:
    """Equal steps of at most dt between saved times, so that every saved time is the end of a step."""
    dt = (t1 - t0) / 1000 if dt is None else dt
    if not (checks.is_finite(dt) and dt > 0):
        raise ValueError(f"dt={dt!r} must be a positive number.")
    knots = np.unique(np.concatenate([[t0], times, [t1]]))
    counts = np.maximum(1, np.ceil(np.diff(knots) / dt * (1 - 1e-9)).astype(int))
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(knots[:-1], knots[1:], counts, strict=True)]
    return np.concatenate([*pieces, [t1]])


def _choose_solver(solver: str, sde: SlowSDE) -> bool:
    """Whether to solve adaptively."""
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {SOLVERS}.")
    if solver == "tsit5" and sde.diffuses:
        raise ValueError("solver='tsit5' is for noise that does not diffuse (label noise); use 'auto' or 'euler'.")
    return not sde.diffuses and solver != "euler"


def _check_interpolation(sde: SlowSDE, start: LimitPoint) -> None:
    if sde.diffuses and not isinstance(sde.loss, mf.LeastSquaresLoss):
        return
    value = float(sde.loss.value(start.point))
    if value > float(jnp.finfo(start.point.dtype).eps) ** 0.5 * (1 + float(start.spectrum[0])):
        raise ValueError(
            f"The minimizers reached from params0 do not interpolate (loss {value:.3g} on Γ), as label noise and the "
            "kernel route require. Use fewer data or a larger model; with other noise, route='dense'."
        )


def _explain(slow: SlowState, failed: Array, ended: Any) -> tuple[np.ndarray, np.ndarray]:
    """Result codes (paths,) and the slow times at which the failed paths ended."""
    when, (x, v), too_long, jumped = ended
    codes = np.zeros(failed.shape, int)
    if bool(jnp.any(failed)):
        smallest, finite = _diagnose(slow, (x, v))
        lost = np.asarray(jumped) | (np.asarray(smallest) < slow.floor * 1e4)
        codes = np.select(
            [~np.asarray(failed), np.asarray(too_long), ~np.asarray(finite), lost],
            [Result.SUCCESS, Result.MAX_STEPS, Result.NON_FINITE, Result.RANK_LOST],
            Result.LEFT_MANIFOLD,
        )
    return codes, np.asarray(when)


@eqx.filter_jit
def _diagnose(slow: SlowState, states: State) -> tuple[Array, Array]:
    """The m-th eigenvalue of H' where each path ended, and whether state and drift are finite there."""

    def at(state: State) -> tuple[Array, Array]:
        normal = slow.sde.normal_space(state[0], slow.v(state))
        drift = slow.sde.tangential_drift(state[0], normal)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((state, drift))]
        # By position, not by mask: a lost eigenvalue is masked.
        return normal.values[jnp.maximum(slow.sde.rank, 1) - 1], jnp.all(jnp.stack(finite))

    return jax.vmap(at)(states)


def _blank_failed(reached: np.ndarray, saved: Any) -> Any:
    """NaN in every row that a path did not reach."""

    def blank(leaf: np.ndarray) -> np.ndarray:
        return np.where(reached.reshape(reached.shape + (1,) * (leaf.ndim - 2)), leaf, np.nan)

    return jax.tree.map(blank, saved)


_limit = eqx.filter_jit(limit_point)


@eqx.filter_jit
def _integrate(
    slow: SlowState,
    state0: State,
    key: PRNGKeyArray,
    times: Float[Array, " T"],
    grid: Float[Array, " steps"] | None,
    interval: tuple[Array, Array],
    tolerances: tuple[Any, Any],
    *,
    paths: int,
    max_steps: int,
    progress: dfx.AbstractProgressMeter[Any],
) -> Any:
    """Saved x (paths, T, p), v, residuals (paths, T), steps, failure flags and the last (time, state) of each path."""
    t0, t1 = interval

    def save(t: Any, state: State, args: Any) -> tuple[Array, PyTree, Array]:
        state, regular = slow.returned(state)  # between steps the interpolant leaves Γ
        return state[0], slow.v(state), jnp.where(regular, slow.sde.loss.residual(state[0]), jnp.nan)

    if grid is None:
        terms: Any = dfx.ODETerm(SlowFlow(slow))
        solver: Any = ReturningSolver(dfx.Tsit5(), slow)
        controller: Any = dfx.PIDController(
            *tolerances, dtmin=10 * jnp.finfo(times.dtype).eps * (t1 - t0), force_dtmin=False
        )
    else:
        solver, controller, max_steps = ManifoldEuler(slow), dfx.StepTo(grid), grid.shape[0]

    def path(key: PRNGKeyArray) -> Any:
        nonlocal terms
        if grid is not None:
            columns = jax.eval_shape(slow.sde.factor, state0[0]).shape[1]
            noise = StepBrownianPath(grid, key, columns)
            terms = dfx.MultiTerm(dfx.ODETerm(SlowFlow(slow)), dfx.ControlTerm(SlowDiffusion(slow), noise))
        solution = dfx.diffeqsolve(
            terms,
            solver,
            t0,
            t1,
            None,
            state0,
            saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(ts=times, fn=save), dfx.SubSaveAt(t1=True)]),
            stepsize_controller=controller,
            adjoint=dfx.ForwardMode(),
            max_steps=max_steps,
            progress_meter=progress,
            throw=False,
        )
        assert solution.ts is not None and solution.ys is not None
        (xs, vs, residual), last = solution.ys
        ended = (
            solution.ts[1][-1],
            jax.tree.map(lambda leaf: leaf[-1], last),
            solution.result == dfx.RESULTS.max_steps_reached,
            solution.result == dfx.RESULTS.dt_min_reached if grid is not None else jnp.asarray(False),
        )
        return xs, vs, residual, solution.stats["num_steps"], solution.result != dfx.RESULTS.successful, ended

    keys = jax.vmap(lambda index: jr.fold_in(key, index))(jnp.arange(paths))
    return jax.vmap(path)(keys)
