"""Runs of the conventional SDE, a rival model of the same optimizers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..dynamics.conventional import Conventional, DriftHeun, conventional_paths
from ..dynamics.conventional_momentum import Momentum, MomentumSteps, no_momentum
from ..dynamics.diffusion import noise_cells, step_grid
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE
from ..dynamics.start import initial_state
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..support import arguments
from ..support.arguments import check_lr
from ..support.clocks import SLOW
from ..support.effort import MOST_STEPS, check_memory, check_steps, grid_needed
from ..support.pieces import EVERY
from .frame import diverged, run
from .request import Outcome, Request, request
from .trajectory import Trajectory

SOLVERS = ("auto", "splitting", "heun", "euler")
V_TARGETS = ("second moment", "covariance")


def conventional_sde(
    problem: AbstractProblem,
    optimizer: AGM,
    params0: PyTree,
    t1: float,
    *,
    lr: float,
    t0: float = 0.0,
    v0: PyTree = None,
    paths: int = 1,
    key: PRNGKeyArray | None = None,
    save_at: Any = 101,
    metrics: Any = (),
    solver: str = "auto",
    substeps: int = 1,
    route: str | Route = "auto",
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
    max_steps: int = MOST_STEPS,
    memory: float | None = None,
    momentum: bool | None = None,
    v_target: str = "second moment",
    checkpoint: Any = None,
    checkpoint_every: float = EVERY,
) -> Trajectory:
    """Paths of the conventional SDE of an optimizer at learning rate η = lr, from params0 itself, in slow time t = kη².

        dθ = −(1/η) S(v) m dt,     dm = ((1−β1)/η²) ((∇L − m) dt + η B dW),     dv = c (V(B Bᵀ + ∇L ∇Lᵀ) − v) dt

    from m = 0, or without momentum dθ = −(1/η) S(v) ∇L dt + S(v) B dW (Li, Tai and E 2017; Malladi, Lyu, Panigrahi and
    Arora 2022; see `dynamics.conventional` and `dynamics.conventional_momentum`). The fast scale stays in it: it costs
    as many steps as the optimizer, or more, where the slow SDE takes steps that do not shrink with η. Proved for O(1/η)
    steps. With bias correction m and v are the corrected ones.

    B is the noise factor at θ. For `LabelNoise` on batches it leaves out what sampling adds where residuals do not
    vanish; `MinibatchNoise` has it.

    Args:
        problem, optimizer, params0, t0, t1, v0, paths, key, save_at, metrics, route, dtype, throw, progress,
            max_steps, memory, checkpoint, checkpoint_every: as in `run_discrete`; nothing is returned to Γ.
        lr: the learning rate η.
        solver: "auto", which is "splitting" with momentum (second order, one gradient a step, the stationary second
            moment of θ in a quadratic exact) and "heun" without (second order in the drift, two gradients); or "euler",
            which with one substep is the optimizer itself with normal noise, no solution of the SDE. The table that
            they were chosen by is in docs/benchmarks.md. m and v relax exactly in all (but m in "euler").
        substeps: solver steps for one of the optimizer, at least: steps are at most η²/substeps long, and end on the
            saved times.
        momentum: whether m is a state. None: where β1 > 0 and the optimizer has a state v, as in the SDE published for
            Adam. Without it the SDE is off from the first steps on: its memory is taken to be short.
        v_target: what v relaxes to, "second moment", V(B Bᵀ + ∇L ∇Lᵀ), which the optimizer averages, or "covariance",
            V(B Bᵀ), as published.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds lr, solver, momentum, v_target, dt,
        num_steps and seconds.
    Raises: ValueError on bad input; `RunError` with the slow time at which a path turned non-finite.

    Example:
        >>> rival = conventional_sde(problem, adam(c=10.0), params0, 1.0, lr=0.01, paths=64, metrics=("loss",))
        >>> rival.metrics["loss"].shape
        (64, 101)
    """
    asked = request(
        "conventional_sde",
        (problem, optimizer, params0, v0, lr),
        t0=t0,
        t1=t1,
        save_at=save_at,
        paths=paths,
        key=key,
        metrics=metrics,
        route=route,
        dtype=dtype,
        throw=throw,
        progress=progress,
        memory=memory,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    lr = check_lr(lr)
    momentum = None if momentum is None else arguments.flag("momentum", momentum)
    arguments.choice("v_target", v_target, V_TARGETS)
    arguments.positive_integer("max_steps", max_steps)
    # One step of the optimizer takes dt = η² of slow time.
    dt = lr**2 / arguments.positive_integer("substeps", substeps)
    check_steps((asked.t1 - asked.t0) / dt, max_steps, f"lr={lr:g} to t1={t1:g}", "raise lr or lower t1 (t = k·lr²)")
    check_memory(grid_needed(asked.t1 - asked.t0, dt), memory)
    settings = {"solver": arguments.choice("solver", solver, SOLVERS), "momentum": momentum, "v_target": v_target}
    solve, belongs = partial(_solve, lr=lr, dt=dt, **settings), {"lr": lr, "dt": dt, **settings}
    return run(asked, problem, optimizer, params0, v0, solve, "conventional SDE", settings=lambda sde, x0: belongs)


def _solve(
    asked: Request,
    sde: SlowSDE,
    x0: Array,
    v0: PyTree,
    *,
    lr: float,
    dt: float,
    solver: str,
    momentum: bool | None,
    v_target: str,
) -> Outcome:
    """Steps of at most dt from x0 itself, which end on the saved times."""
    momentum, solver = _chosen(sde, momentum, solver)
    # At params0 itself: this model need not be near a manifold, and may start where there is none.
    v0 = initial_state(sde, x0, v0, asked.t0)
    grid, cells = step_grid(asked.times, asked.t0, asked.t1, dt), noise_cells(asked.t0, asked.t1, dt)
    model = Conventional(sde, jnp.asarray(lr, x0.dtype), v_target == "second moment")
    if momentum:
        steps, state0 = MomentumSteps(Momentum(model), solver), (x0, v0, no_momentum(sde, x0, asked.t0))
    else:
        steps, state0 = DriftHeun(model, solver == "heun"), (x0, v0)
    noise = asked.key, asked.times, grid, dt
    settings = {"paths": asked.paths, "pieces": asked.pieces, "cells": cells}
    (xs, vs), _, reached = conventional_paths(steps, model, state0, *noise, **settings)
    finite = np.all(np.isfinite(xs), axis=-1) | ~reached
    ran_off = diverged(np.where(reached[..., None], xs, 0.0), x0)
    good = finite & ~ran_off & reached
    lost = np.where(np.all(finite, axis=1), Result.DIVERGED, Result.NON_FINITE)
    result = np.where(np.all(finite & ~ran_off, axis=1), Result.SUCCESS, lost)
    how = {"lr": lr, "solver": solver, "momentum": momentum, "v_target": v_target}
    stats = {"clock": SLOW, **how, "dt": dt, "num_steps": grid.size - 1}
    return Outcome(sde, asked.times, xs, vs, good, result, asked.times[np.argmin(good, axis=1)], stats)


def _chosen(sde: SlowSDE, momentum: bool | None, solver: str) -> tuple[bool, str]:
    """Whether m is a state, and the solver."""
    remembers, has_state = float(sde.optimizer.b1) > 0, bool(jax.tree.leaves(sde.state_shapes()))
    # β1 = 0 is m = g, no state.
    momentum = remembers and (has_state if momentum is None else momentum)
    if solver == "splitting" and not momentum:
        why = "momentum is False" if remembers else "optimizer.b1 is 0"
        raise ValueError(f"solver='splitting' splits off the momentum, and {why}: use solver='heun'.")
    return momentum, ("splitting" if momentum else "heun") if solver == "auto" else solver
