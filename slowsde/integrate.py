"""Integrate the slow SDE of an optimizer near its manifold of minimizers."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

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
from .slow_sde import SlowSDE, equilibrium, slow_sde
from .solve import result_codes, solve_flow, solve_sde, step_grid
from .solvers import SlowState
from .trajectory import Trajectory, finish
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
        solver: "auto"; for noise that does not diffuse "tsit5" (explicit), "implicit" (for stiff flows) or, by default,
            the first for as long as it does well and then the second; otherwise "euler" (weak order 1).
        dt: step of "euler" in slow time; None for (t1 − t0)/1000.
        rtol: tolerance of the adaptive solvers, relative to each parameter and to their root mean square.
        max_steps: bound on its steps.
        route: "dense", "kernel" (least squares) or "auto".
        rank: the rank of the Hessian on Γ; None to find it.
        dtype: "float64" or "float32".
        throw: raise `RunError` when a path fails; False returns what it had, with `Trajectory.result` codes.
        progress: show a progress line on stderr; None for only when it is a terminal.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds route, solver, rank and spectrum of H' at the
        start, start_distance |Φ(params0) − params0|, num_steps, seconds, and for every saved time (paths, T) the
        residual on Γ, the ranks, the smallest_eigenvalue and largest_eigenvalue of H', and what `validity` needs
        besides: mean_relaxation, sampling_eigenvalue, b1, c.
    Raises: ValueError on bad input, before any long computation; `RunError` with the slow time at which a path left Γ,
        lost rank or turned non-finite.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, t1=1.0, metrics=("trace_hessian",))
        >>> slow.metrics["trace_hessian"].shape
        (1, 101)
    """
    started = time.perf_counter()
    checks.check_concrete("simulate", problem, optimizer, params0, v0, t0, t1)
    times = checks.save_times(save_at, t0, t1)
    paths = checks.check_paths(paths)
    key = checks.check_key(key)
    step = check_step(dt, t0, t1)
    named = as_metrics(metrics)
    check_parameters(params0)
    with working_precision(dtype) as precision:
        problem, optimizer, params0, v0 = cast((problem, optimizer, params0, v0), precision)
        chart, x0 = checks.check_inputs(problem, optimizer, params0)
        sde = slow_sde(problem, optimizer, chart, route)
        check_solver(solver, sde)
        slow, start, v0 = start_on_manifold(sde, x0, v0, rank)
        check_metrics(named, slow.sde, start.point, v0)
        noise_report = sde.noise_report(start.point)
        state0 = slow.initial(start.point, v0)
        if sde.diffuses or solver == "euler":
            used, copies = "euler", 1
            grid = jnp.asarray(step_grid(times, t0, t1, step), precision)
            shown = meter("simulate", progress)
            saved, ending = solve_sde(slow, state0, key, jnp.asarray(times, precision), grid, paths=paths, shown=shown)
        else:
            copies = paths
            saved, ending, used = solve_flow(
                slow, state0, times, (t0, t1), solver, rtol=rtol, max_steps=max_steps, progress=progress
            )
        found = evaluate(named, slow.sde, saved.x, saved.v)
        history = spectral_history(slow.sde, saved.x, saved.v)
        codes = result_codes(slow, ending)
        reached = np.isfinite(np.asarray(saved.residual))
        saved, found, history = _blank_unreached(reached, to_numpy((saved, found, history)))
        ending = to_numpy(ending)

    def repeat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: np.repeat(leaf, copies, axis=0), tree)

    trajectory = Trajectory(
        ts=times,
        params=chart.unravel(repeat(saved.x)),
        v=repeat(saved.v),
        metrics={name: repeat(found[name]) for name in named},
        stats={
            "route": type(sde.loss).__name__,
            "solver": used,
            "rank": int(start.rank),
            "spectrum": np.asarray(start.spectrum)[: int(start.rank)],
            "start_distance": float(start.distance),
            **noise_report,
            "residual": repeat(saved.residual),
            "ranks": repeat(saved.rank),
            "smallest_eigenvalue": repeat(saved.smallest),
            "largest_eigenvalue": repeat(saved.largest),
            **repeat(history),
            "b1": float(optimizer.b1),
            "c": float(optimizer.c),
            "num_steps": int(np.max(ending.steps)),
            "seconds": time.perf_counter() - started,
        },
        result=repeat(codes),
        label="slow",
    )
    return finish(trajectory, ending.time, throw)


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
    v0 = equilibrium(sde, x0) if v0 is None else v0
    checks.check_state(sde, x0, v0)
    start = _limit(sde.loss, x0, sde.metric(v0), as_rank(rank, x0.size))
    check_limit(start)
    _check_interpolation(sde, start)
    if int(start.rank) == x0.size:
        raise ValueError(
            f"params0 leads to an isolated minimizer: the Hessian has full rank {x0.size}, so there is no manifold to "
            "drift along. The slow SDE needs more parameters than the data determine."
        )
    checks.check_noise_on_manifold(sde, start.point, start.spectrum[0])
    # An eigenvalue that was regular at the start and has shrunk so far has vanished for every practical purpose.
    floor = rank_tolerance(x0.dtype) * start.spectrum[start.rank - 1]
    if not sde.diffuses and isinstance(sde.loss, mf.LeastSquaresLoss):
        # Sparse ends are singular points of Γ. There a flow that interpolates goes on along what is left of Γ: the rank
        # is counted anew at every step, and the saved ranks tell.
        return SlowState(sde, jnp.full_like(floor, -jnp.inf)), start, v0
    sde = eqx.tree_at(lambda s: s.rank, sde, start.rank, is_leaf=lambda leaf: leaf is None)
    return SlowState(sde, floor), start, v0


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


def _check_interpolation(sde: SlowSDE, start: LimitPoint) -> None:
    if sde.diffuses and not isinstance(sde.loss, mf.LeastSquaresLoss):
        return
    value = float(sde.loss.value(start.point))
    if value > float(jnp.finfo(start.point.dtype).eps) ** 0.5 * (1 + float(start.spectrum[0])):
        raise ValueError(
            f"The minimizers reached from params0 do not interpolate (loss {value:.3g} on Γ), as label noise and the "
            "kernel route require. Use fewer data or a larger model; with other noise, route='dense'."
        )


def _blank_unreached(reached: np.ndarray, saved: Any) -> Any:
    """NaN in every row that a path did not reach."""

    def blank(leaf: np.ndarray) -> np.ndarray:
        return np.where(reached.reshape(reached.shape + (1,) * (leaf.ndim - 2)), leaf, np.nan)

    return jax.tree.map(blank, saved)


_limit = eqx.filter_jit(limit_point)
