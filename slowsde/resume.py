"""Continue a finished run of the slow SDE from where it ended, as if it had never stopped."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from manifolds.normal_space import rank_tolerance
from manifolds.precision import cast, working_precision

from . import checks
from .integrate import check_step, record, simulate
from .metrics import as_metrics, check_metrics
from .optimizers import AGM
from .problems import AbstractProblem
from .progress import meter
from .route import Route
from .solve import solve_sde, step_grid
from .solvers import SlowState
from .trajectory import Result, Trajectory, finish


def resume(
    problem: AbstractProblem,
    optimizer: AGM,
    trajectory: Trajectory,
    t1: float,
    *,
    key: PRNGKeyArray | None = None,
    save_at: Any = 101,
    metrics: Any = (),
    dt: float | None = None,
    route: str | Route = "auto",
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory:
    """Every path of `trajectory`, a run of `simulate`, from its last saved time to t1, with the noise ahead of it.

    Noise belongs to the path and to the slow time of the step, so that with the same key and dt the parts together are
    the run that was not interrupted: to the last bit where its steps are the same (it was saved at the seam), and
    otherwise up to rounding. For one path, `simulate(problem, optimizer, end, t1, t0=..., v0=..., key=key, dt=dt)`
    meets the same noise, too.

    Args:
        problem, optimizer, save_at, metrics, route, dtype, throw, progress: as in `simulate`. The first two should be
            those of the trajectory.
        trajectory: a run of `simulate` (or `load`ed), none of whose paths failed; paths, v and t0 are those of its end.
        t1: slow time, after the last saved time.
        key, dt: None for those of the trajectory.

    Returns: `Trajectory` from the last saved time of `trajectory` to t1, with the same paths in the same order.
    Raises: ValueError on bad input; `RunError` as `simulate` does.

    Example:
        >>> half = simulate(problem, adam(c=2.0), start, 0.5, paths=64, save_at=[0.5], dt=1e-3, key=key)
        >>> rest = resume(problem, adam(c=2.0), half, 1.0, save_at=[1.0])
    """
    started = time.perf_counter()
    _check_resumable(trajectory)
    stats, t0, paths = trajectory.stats, float(trajectory.ts[-1]), trajectory.paths
    ends, v = trajectory.final_params, jax.tree.map(lambda leaf: leaf[:, -1], trajectory.v)
    first = jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, np.ndarray) else leaf, ends)
    shared: dict[str, Any] = {"save_at": save_at, "metrics": metrics, "route": route, "dtype": dtype}
    shared |= {"throw": throw, "progress": progress}
    if stats["solver"] != "euler":  # a flow: all paths are equal
        v0, solver = jax.tree.map(lambda leaf: leaf[0], v), stats["solver"].split(", ")[-1]
        return simulate(problem, optimizer, first, t1, t0=t0, v0=v0, paths=paths, solver=solver, **shared)
    times = checks.save_times(save_at, t0, t1)
    step = check_step(stats["dt"] if dt is None else dt, t0, t1)
    key = jr.wrap_key_data(jnp.asarray(stats["key"], jnp.uint32)) if key is None else checks.check_key(key)
    named = as_metrics(metrics)
    with working_precision(dtype) as precision:
        problem, optimizer, first, ends, v = cast((problem, optimizer, first, ends, v), precision)
        sde, x0 = checks.on_flat_coordinates(problem, optimizer, first, route)
        if not sde.diffuses:
            raise ValueError("trajectory diffuses, but problem has a noise that does not: pass the problem of the run.")
        xs = jnp.concatenate([leaf.reshape(paths, -1) for leaf in jax.tree.leaves(ends) if eqx.is_array(leaf)], axis=1)
        v0 = jax.tree.map(lambda leaf: leaf[0], v)
        checks.check_state(sde, x0, v0, "trajectory.v")
        check_metrics(named, sde, x0, v0)
        rank, spectrum = int(stats["rank"]), np.asarray(stats["spectrum"], precision)
        fixed = eqx.tree_at(lambda s: s.rank, sde, jnp.asarray(rank), is_leaf=lambda leaf: leaf is None)
        slow = SlowState(fixed, jnp.asarray(rank_tolerance(xs.dtype) * spectrum[rank - 1], precision))
        grid, shown = step_grid(times, t0, t1, step), meter("resume", progress)
        saved, ending = solve_sde(slow, slow.initial(xs, v), key, times, grid, step, paths=paths, shown=shown)
        about = {name: stats[name] for name in ("rank", "spectrum", "start_distance", "solver")}
        about |= {"dt": step, "key": np.asarray(jr.key_data(key))}
        resumed = record(slow, times, saved, ending, named, about)
    resumed.stats["seconds"] = time.perf_counter() - started
    return finish(resumed, np.asarray(ending.time), throw)


def _check_resumable(trajectory: Trajectory) -> None:
    """ValueError unless `trajectory` is a run of `simulate` all of whose paths reached its end."""
    if not isinstance(trajectory, Trajectory) or trajectory.label != "slow" or "solver" not in trajectory.stats:
        raise ValueError(f"trajectory={type(trajectory).__name__} must be a run of simulate, or one loaded by load.")
    failed = np.flatnonzero(trajectory.result != Result.SUCCESS)
    if failed.size:
        raise ValueError(
            f"trajectory has {failed.size} failed paths (the first is path {failed[0]}): only runs all of whose paths "
            "reached the end can go on. Run it again with a smaller dt."
        )
