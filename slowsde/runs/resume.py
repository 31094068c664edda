"""Continue a finished run from where it ended, as if it had never stopped: of the slow SDE, or of the optimizer."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from manifolds.normal.normal_space import rank_tolerance
from manifolds.support.precision import cast

from ..dynamics import checks
from ..dynamics.diffusion import noise_cells, solve_sde, step_grid
from ..dynamics.digest import arrays_digest
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..dynamics.solve import Solved
from ..dynamics.solvers.state import SlowState
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.accumulated import accumulated
from ..problems.route import Route
from ..support import arguments
from ..support.files import is_array
from ..support.pieces import EVERY
from .discrete import begun_by, belonging_of, described, go_on, gradients_per_step, saved_steps, second_momentum
from .frame import check_digest, run
from .request import Outcome, Request, key_stats, request
from .simulate import outcome_of, simulate
from .trajectory import Trajectory


def resume(
    problem: AbstractProblem,
    optimizer: Any,
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
    like: AGM | None = None,
    checkpoint: Any = None,
    checkpoint_every: float = EVERY,
) -> Trajectory:
    """Every path of `trajectory`, a run of `simulate` or of `run_discrete`, from its last saved time to t1, with the
    noise ahead of it.

    Noise belongs to the path and to the slow time of the step, so that with the same key and dt the parts together are
    the run that was not interrupted: to the last bit where its steps are the same (it was saved at the seam), and
    otherwise up to rounding. For one path, `simulate(problem, optimizer, end, t1, t0=..., v0=..., key=key, dt=dt)`
    meets the same noise, too. A discrete run goes on with its momentum, its state and the number of its step, from the
    iterates themselves, not from their returns to Γ (`Trajectory.end`).

    Args:
        problem, optimizer, save_at, metrics, route, dtype, throw, progress, checkpoint, checkpoint_every: as in
            `simulate`. The first two must be those of the trajectory (`stats["digest"]`).
        trajectory: a run of `simulate` or `run_discrete` (or `load`ed), none of whose paths failed; a flow to rest may
            have stopped short of it (NOT_STATIONARY, MAX_STEPS). Paths, v and t0 are those of its end.
        t1: slow time, after the last saved time; inf for a flow to go on until it rests.
        key, dt: None for those of the trajectory.
        like: of a discrete run by Optax, as in `run_discrete`.

    Returns: `Trajectory` from the last saved time of `trajectory` to t1, with the same paths in the same order.
    Raises: ValueError on bad input; `RunError` as `simulate` does.

    Example:
        >>> half = simulate(problem, adam(c=10.0), params0, 0.5, save_at=[0.5])
        >>> rest = resume(problem, adam(c=10.0), half, 1.0, save_at=[1.0])
        >>> np.allclose(rest.final_params, slow.final_params, atol=1e-3)
        True
    """
    _check_resumable(trajectory)
    check_digest(problem, optimizer, trajectory, "trajectory")
    stats, t0, paths = trajectory.stats, float(trajectory.ts[-1]), trajectory.paths
    ends, v = trajectory.final_params, jax.tree.map(lambda leaf: leaf[:, -1], trajectory.v)
    first, v0 = jax.tree.map(lambda leaf: leaf[0] if isinstance(leaf, np.ndarray) else leaf, (ends, v))
    shared: dict[str, Any] = {"t0": t0, "paths": paths, "save_at": save_at, "metrics": metrics, "route": route}
    shared |= {"dtype": dtype, "throw": throw, "progress": progress}
    shared |= {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every}
    # Kept in the trajectory as numbers: typed keys cannot be saved to a file.
    if key is None and "key" in stats:
        key = jr.wrap_key_data(jnp.asarray(stats["key"], jnp.uint32), impl=stats.get("key_kind"))
    if trajectory.label == "discrete":
        asked = request("resume", (problem, optimizer), t1=t1, key=key, **shared)
        return _discrete_onward(asked, problem, optimizer, like, trajectory, first)
    # One path of them is followed, and repeated.
    if stats["solver"] != "euler":  # a flow: all paths are equal
        settings = {name: stats[name] for name in ("solver", "rtol") if name in stats}
        return simulate(problem, optimizer, first, t1, v0=v0, rank=stats.get("given_rank"), **settings, **shared)
    asked = request("resume", (problem, optimizer), t1=t1, key=key, **shared)
    step = arguments.check_step(stats["dt"] if dt is None else dt, t0, t1)
    onward = partial(_onward, ends=ends, v=v, dt=step, about=stats)

    def belongs(sde: SlowSDE, x0: Array) -> dict[str, Any]:
        return {"dt": step, "ends": arrays_digest((ends, v))}

    return run(asked, problem, optimizer, first, v0, onward, "slow", settings=belongs)


def _discrete_onward(
    asked: Request, problem: AbstractProblem, optimizer: Any, like: AGM | None, trajectory: Trajectory, first: PyTree
) -> Trajectory:
    """A discrete run from where its iterates ended, with all that the optimizer remembers."""
    agm, stats, lr = described(optimizer, like), trajectory.stats, float(trajectory.stats["lr"])
    b2 = second_momentum(agm, lr) if agm is optimizer else None
    steps = saved_steps(asked.times, asked.t0, lr)
    every = gradients_per_step(optimizer, first, like, int(steps[-1]), asked.dtype)
    settings = {"optimizer": optimizer, "lr": lr, "b2": b2, "steps": every * steps, "every": every}

    def onward(asked: Request, sde: SlowSDE, x0: Array, v0: PyTree) -> Outcome:
        step, state, measured = begun_by(sde, optimizer, x0, None, asked.t0, lr, b2, every)
        states = jax.tree.unflatten(jax.tree.structure(state), [np.asarray(leaf) for leaf in trajectory.end or ()])
        numbers, ranks = np.arange(asked.paths), [None if r < 0 else r for r in np.asarray(stats["landed_at_ranks"])]
        how = {"b2": measured, "lr": lr, "steps": settings["steps"], "project": stats["projected"]}
        return go_on(asked, sde, step, states, numbers, ranks, **how)

    whole = accumulated(problem, every) if every > 1 else problem
    known = agm is optimizer or like is not None
    belongs = partial(belonging_of, project=stats["projected"], end=trajectory.end, **settings)
    return run(asked, problem, agm, first, None, onward, "discrete", described=known, settings=belongs, belongs=whole)


def _onward(
    asked: Request, sde: SlowSDE, x0: Array, v0: PyTree, *, ends: PyTree, v: PyTree, dt: float, about: dict[str, Any]
) -> Outcome:
    """All paths from where they ended, with the steps, the noise and the rank that the run had."""
    if not sde.diffuses:
        raise ValueError("trajectory diffuses, but problem has a noise that does not: pass the problem of the run.")
    checks.check_state(sde, v0, "trajectory.v")
    precision = x0.dtype
    ends, v = cast((ends, v), precision)
    leaves = [leaf.reshape(asked.paths, -1) for leaf in jax.tree.leaves(ends) if eqx.is_array(leaf)]
    rank, spectrum = int(about["rank"]), np.asarray(about["spectrum"], precision)
    # Rank and floor are those of the first start, not counted at the end: a run that goes on must lose its rank where
    # the uninterrupted one would.
    fixed = sde.at_rank(jnp.asarray(rank))
    slow = SlowState(fixed, jnp.asarray(rank_tolerance(precision) * spectrum[rank - 1], precision))
    state0 = slow.initial(jnp.concatenate(leaves, axis=1), v)
    grid, cells = step_grid(asked.times, asked.t0, asked.t1, dt), noise_cells(asked.t0, asked.t1, dt)
    how = {"paths": asked.paths, "pieces": asked.pieces, "cells": cells}
    found = solve_sde(slow, state0, asked.key, asked.times, grid, dt, **how)
    start = {name: about[name] for name in ("rank", "spectrum", "start_distance", "solver")}
    start |= {"dt": dt, **key_stats(asked.key)}
    return outcome_of(slow, Solved(asked.times, *found, start), {})


def _check_resumable(trajectory: Trajectory) -> None:
    """ValueError unless `trajectory` is a run of `simulate` or `run_discrete` all of whose paths reached its end."""
    kinds = {"slow": "solver", "discrete": "landed_at_ranks"}
    if not isinstance(trajectory, Trajectory) or kinds.get(trajectory.label) not in trajectory.stats:
        raise ValueError(
            f"trajectory={type(trajectory).__name__} must be a run of simulate or run_discrete, or one loaded by load, "
            "saved by this version or a later one."
        )
    if "messages" in trajectory.stats and trajectory.label == "slow":
        raise ValueError(
            "trajectory has many starts (stacked=True), which go on one by one: simulate(problem, optimizer, end, t1, "
            "t0=..., v0=..., key=...) from the last params and v of each."
        )
    stopped = (Result.SUCCESS, Result.NOT_STATIONARY, Result.MAX_STEPS)
    may = stopped if trajectory.stats.get("solver") in ("tsit5", "implicit") else (Result.SUCCESS,)
    ends = [leaf[:, -1] for leaf in jax.tree.leaves(trajectory.params) if is_array(leaf)]
    there = np.all([np.isfinite(leaf).reshape(trajectory.paths, -1).all(axis=1) for leaf in ends], axis=0)
    failed = np.flatnonzero(~np.isin(trajectory.result, may) | ~there)
    if failed.size:
        raise ValueError(
            f"trajectory has {failed.size} failed paths (the first is path {failed[0]}): only runs all of whose paths "
            "reached the end can go on. Run it again with a smaller dt or lr."
        )
