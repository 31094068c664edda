"""Integrate the slow SDE of an optimizer near its manifold of minimizers."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from manifolds.coordinates import check_parameters
from manifolds.precision import cast, to_numpy, working_precision

from . import checks
from .metrics import Metric, as_metrics, check_metrics, evaluate
from .optimizers import AGM
from .problems import AbstractProblem
from .progress import meter
from .route import Route
from .slow_sde import SlowSDE
from .solve import Ending, Saved, falling_time, result_codes, solve_flow, solve_sde, solve_to_rest, step_grid, stillness
from .solvers import SlowState
from .start import start_on_manifold
from .trajectory import Result, Trajectory, finish, repeated
from .trust_measures import spectral_history

SOLVERS = ("auto", "tsit5", "implicit", "euler")


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
    tol: float = 1e-9,
    max_steps: int = 100_000,
    route: str | Route = "auto",
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
        t0, t1: slow time, t = kη² after k steps of the optimizer at learning rate η. t1=inf (without diffusion) for
            until the flow is stationary, saved at times that are graded geometrically.
        v0: optimizer state at the start; None for the equilibrium V(Σ(params0)).
        paths: the number of independent paths (all equal where nothing diffuses).
        key: random key; None for `jax.random.key(0)`.
        save_at: a number of equally spaced times, or the times.
        metrics: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}.
        solver: "auto"; for noise that does not diffuse "implicit", which is "auto" for label noise of one std and a
            diagonal metric, or "tsit5" (explicit), which it is elsewhere; otherwise "euler" (weak order 1).
        dt: step of "euler" in slow time; None for (t1 − t0)/1000.
        rtol: tolerance of the adaptive solvers, relative to each parameter and to their root mean square.
        tol: with t1=inf, how still is stationary: `stats["stillness"]`, without units, see `SlowSDE.stillness`.
        max_steps: bound on its steps.
        route: a `Route` or its name: "dense", "kernel" or "matrix_free" (least squares, classification) or "auto".
        rank: the rank of the Hessian on Γ; None to find it.
        dtype: "float64" or "float32".
        throw: raise `RunError` when a path fails; False returns what it had, with `Trajectory.result` codes.
        progress: show a progress line on stderr; None for only when it is a terminal.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds route, block, solver, rank and spectrum of H' at
        the start, start_distance |Φ(params0) − params0|, num_steps, seconds, speed |dζ/dt|_{S⁻¹} and stillness at the
        end (without diffusion), and for every saved time (paths, T) the residual on Γ, the ranks, the
        smallest_eigenvalue and largest_eigenvalue of H', and what `validity` needs besides: mean_relaxation,
        sampling_eigenvalue, b1, c.
    Raises: ValueError on bad input, before any long computation; `RunError` with the slow time at which a path left Γ,
        lost rank or turned non-finite.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, t1=1.0, metrics=("trace_hessian",))
        >>> slow.metrics["trace_hessian"].shape
        (1, 101)
    """
    started = time.perf_counter()
    checks.check_concrete("simulate", problem, optimizer, params0, v0, t0, t1)
    endless = np.ndim(t1) == 0 and t1 == np.inf
    times = checks.save_times(save_at, t0, t0 + 1 if endless else t1)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    step = check_step(dt, t0, t0 + 1 if endless else t1)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        sde, x0 = checks.on_flat_coordinates(problem, optimizer, params0, route)
        check_solver(solver, sde)
        if endless:
            check_rest(sde, solver, save_at)
        slow, start, v0 = start_on_manifold(sde, x0, v0, rank, t0)
        check_metrics(named, slow.sde, start.point, v0)
        noise_report = sde.noise_report(start.point)
        state0, rests = slow.initial(start.point, v0), True
        if endless:
            rest = solve_to_rest(slow, state0, t0, solver, rtol=rtol, tol=tol, max_steps=max_steps)
            rests, t1 = not bool(rest.too_long[0]), float(rest.time[0])
            times = graded_times(t0, t1, times.size)
            max_steps = 2 * max_steps + times.size  # over the same stretch, but with ends of steps on the saved times
        else:
            rest = None
        about = {
            "rank": int(start.rank),
            "spectrum": np.asarray(start.spectrum)[: int(start.rank)],
            "start_distance": float(start.distance),
            **noise_report,
        }
        if sde.diffuses or solver == "euler":
            about |= {"solver": "euler", "dt": step, "key": np.asarray(jr.key_data(key))}
            grid = step_grid(times, t0, t1, step, falling_time(slow, state0))
            shown = meter("simulate", progress)
            saved, ending = solve_sde(slow, state0, key, times, grid, step, paths=paths, shown=shown)
        else:
            saved, ending, about["solver"] = solve_flow(
                slow, state0, times, (t0, t1), solver, rtol=rtol, max_steps=max_steps, progress=progress
            )
        if rest is not None:
            saved = _with_last(slow, saved, rest)
        about |= {} if sde.diffuses else _at_the_end(slow, saved, times, precision)
        trajectory = record(slow, times, saved, ending, named, about)
    if not rests:
        codes = np.where(trajectory.result == Result.SUCCESS, Result.NOT_STATIONARY, trajectory.result)
        trajectory = dataclasses.replace(trajectory, result=codes)
    trajectory = repeated(trajectory, paths // trajectory.paths)
    trajectory.stats["seconds"] = time.perf_counter() - started
    return finish(trajectory, np.broadcast_to(np.asarray(ending.time), (paths,)), throw)


def record(
    slow: SlowState, times: np.ndarray, saved: Saved, ending: Ending, named: dict[str, Metric], about: dict[str, Any]
) -> Trajectory:
    """The trajectory of a solve, with metrics, spectra and how each path ended; `about` are statistics of its start."""
    sde = slow.sde
    found = evaluate(named, sde, saved.x, saved.v)
    history = spectral_history(sde, saved.x, saved.v, saved.rank, saved.largest)
    codes = result_codes(slow, ending)
    reached = np.isfinite(np.asarray(saved.residual))
    saved, found, history = _blank_unreached(reached, to_numpy((saved, found, history)))
    stats = {
        "route": sde.loss.route,
        "block": sde.loss.block(saved.x[0, 0]),
        **about,
        "residual": saved.residual,
        "ranks": saved.rank,
        "smallest_eigenvalue": saved.smallest,
        "largest_eigenvalue": saved.largest,
        **history,
        "b1": float(sde.optimizer.b1),
        "c": float(sde.optimizer.c),
        "pace": np.array([float(sde.optimizer.pace(t)) for t in times]),
        "num_steps": int(np.max(np.asarray(ending.steps))),
    }
    metrics = {name: found[name] for name in named}
    return Trajectory(times, sde.chart.unravel(saved.x), saved.v, metrics, stats, codes)


def _with_last(slow: SlowState, saved: Saved, rest: Ending) -> Saved:
    """`saved` with the state found at rest as its last: other steps, those between saved times, end near it only."""
    v = jax.vmap(slow.v)(rest.state)

    def put(rows: Any, last: Any) -> Any:
        return rows.at[:, -1].set(last)

    return eqx.tree_at(lambda s: (s.x, s.v), saved, (put(saved.x, rest.state[0]), jax.tree.map(put, saved.v, v)))


def _at_the_end(slow: SlowState, saved: Saved, times: np.ndarray, dtype: Any) -> dict[str, float]:
    speed, still = to_numpy(stillness(slow, saved, jnp.asarray(times, dtype)))
    return {"speed": float(speed[0]), "stillness": float(still[0])}


def check_solver(solver: str, sde: SlowSDE) -> None:
    """ValueError unless `solver` exists and suits the noise and the metric."""
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not one of {SOLVERS}.")
    if solver in ("tsit5", "implicit") and sde.diffuses:
        raise ValueError(f"solver={solver!r} is for noise that does not diffuse (label noise); use 'auto' or 'euler'.")
    if solver == "implicit" and not sde.has_sharpness:
        raise ValueError("solver='implicit' needs noise with Σ = αH, such as label noise of one std; use 'auto'.")


def check_step(dt: float | None, t0: float, t1: float) -> float:
    """The step of "euler"; ValueError unless positive."""
    step = (t1 - t0) / 1000 if dt is None else dt
    if not (checks.is_finite(step) and step > 0):
        raise ValueError(f"dt={dt!r} must be a positive number.")
    return step


def check_rest(sde: SlowSDE, solver: str, save_at: Any) -> None:
    """ValueError unless a run to t1=inf can end."""
    if sde.diffuses or solver == "euler":
        raise ValueError("t1=inf ends where the slow flow is stationary, but this one diffuses: pass a finite t1.")
    if sde.optimizer.schedule is not None:
        raise ValueError("t1=inf ends where the slow flow is stationary; with a schedule pass a finite t1.")
    if np.ndim(save_at) > 0:
        raise ValueError(f"save_at={save_at}: a run to t1=inf has no end that is known before; pass a number of times.")


def graded_times(t0: float, t1: float, count: int) -> np.ndarray:
    """`count` times from t0 to t1, geometric over four decades: the flow is fast at first and slow at its end."""
    return t0 + (t1 - t0) * np.concatenate([[0.0], np.geomspace(1, 1e-4, count - 1)[::-1]])


def _blank_unreached(reached: np.ndarray, saved: Any) -> Any:
    """NaN in every row that a path did not reach."""

    def blank(leaf: np.ndarray) -> np.ndarray:
        return np.where(reached.reshape(reached.shape + (1,) * (leaf.ndim - 2)), leaf, np.nan)

    return jax.tree.map(blank, saved)
