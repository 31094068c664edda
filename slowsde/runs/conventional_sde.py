"""Runs of the conventional SDE, a rival model of the same optimizers."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..dynamics.conventional import Conventional, conventional_paths
from ..dynamics.diffusion import step_grid
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
from .frame import diverged, run
from .request import Outcome, Request, request
from .trajectory import Trajectory

SOLVERS = ("heun", "euler")


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
    solver: str = "heun",
    substeps: int = 1,
    route: str | Route = "auto",
    dtype: Any = "float64",
    throw: bool = True,
    progress: bool | None = None,
    max_steps: int = MOST_STEPS,
    memory: float | None = None,
) -> Trajectory:
    """Paths of the conventional SDE of an optimizer at learning rate η = lr, from params0 itself, in slow time t = kη².

        dθ = −(1/η) S(v) ∇L dt + S(v) B dW,     dv = c (V(B Bᵀ + ∇L ∇Lᵀ) − v) dt

    (Li, Tai and E 2017; Malladi, Lyu, Panigrahi and Arora 2022; see `dynamics.conventional`.) The fast scale stays in
    it: it costs as many steps as the optimizer, or more, where the slow SDE takes steps that do not shrink with η.
    Proved for O(1/η) steps. The momentum β1 is not in it.

    B is the noise factor at θ. For `LabelNoise` on batches it leaves out what sampling adds where residuals do not
    vanish; `MinibatchNoise` has it.

    Args:
        problem, optimizer, params0, t0, t1, v0, paths, key, save_at, metrics, route, dtype, throw, progress,
            max_steps, memory: as in `run_discrete`; nothing is returned to Γ.
        lr: the learning rate η.
        solver: "heun", second order in the drift, so that with step η² its error is O(η) of the difference between
            this SDE and the optimizer; or "euler", Euler–Maruyama, which with one substep is the optimizer itself
            without momentum and with normal noise. v relaxes exactly in both.
        substeps: solver steps for one of the optimizer, at least: steps are at most η²/substeps long, and end on the
            saved times.

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds lr, solver, dt, num_steps and seconds.
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
    )
    lr = check_lr(lr)
    arguments.choice("solver", solver, SOLVERS)
    arguments.positive_integer("max_steps", max_steps)
    # One step of the optimizer takes dt = η² of slow time.
    dt = lr**2 / arguments.positive_integer("substeps", substeps)
    check_steps((asked.t1 - asked.t0) / dt, max_steps, f"lr={lr:g} to t1={t1:g}", "raise lr or lower t1 (t = k·lr²)")
    check_memory(grid_needed(asked.t1 - asked.t0, dt), memory)
    solve = partial(_solve, lr=lr, solver=solver, dt=dt)
    return run(asked, problem, optimizer, params0, v0, solve, "conventional SDE")


def _solve(asked: Request, sde: SlowSDE, x0: Array, v0: PyTree, *, lr: float, solver: str, dt: float) -> Outcome:
    """Steps of at most dt from x0 itself, which end on the saved times."""
    # At params0 itself: this model need not be near a manifold, and may start where there is none.
    v0 = initial_state(sde, x0, v0, asked.t0)
    grid = step_grid(asked.times, asked.t0, asked.t1, dt)
    model, noise = Conventional(sde, jnp.asarray(lr, x0.dtype)), (asked.key, asked.times, grid, dt)
    how = {"paths": asked.paths, "corrected": solver == "heun", "shown": asked.meter()}
    xs, vs = conventional_paths(model, (x0, v0), *noise, **how)
    finite, ran_off = np.all(np.isfinite(xs), axis=-1), diverged(xs, x0)
    good = finite & ~ran_off
    lost = np.where(np.all(finite, axis=1), Result.DIVERGED, Result.NON_FINITE)
    result = np.where(np.all(good, axis=1), Result.SUCCESS, lost)
    stats = {"clock": SLOW, "lr": lr, "solver": solver, "dt": dt, "num_steps": grid.size - 1}
    return Outcome(sde, asked.times, xs, vs, good, result, asked.times[np.argmin(good, axis=1)], stats)
