"""Integrate the slow SDE of an optimizer near its manifold of minimizers."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from manifolds.maps.limit_map import MAX_STEPS, LimitPoint
from manifolds.support.precision import on_device, to_numpy

from ..dynamics.checks import paces
from ..dynamics.diffusion import SINGULAR, noise_cells, solve_sde, step_grid
from ..dynamics.fast_motion import FALLS, start_motion, start_shares
from ..dynamics.flow import Scales, follow, start_scales
from ..dynamics.rest import follow_to_rest, stillness
from ..dynamics.result import Result
from ..dynamics.slow_sde import SlowSDE, equilibrium
from ..dynamics.solve import Method, Solved, explained
from ..dynamics.solvers.state import SlowState, State
from ..dynamics.start import start_on_manifold
from ..optimizers.agm import AGM
from ..problems.abstract import AbstractProblem
from ..problems.route import Route
from ..support import arguments
from ..support.effort import check_memory, grid_needed
from ..support.pieces import EVERY
from ..support.progress import step_meter
from .frame import blanked, run
from .request import Outcome, Request, key_stats, request
from .stacked import Failure, attempted, merged, stack_leaves
from .trajectory import Trajectory

LARGE = 10.0  # how much faster S(0) may be than S(V(Σ)) without a word: gaps of up to 5 % at lr = 0.005
STARTING = 10  # steps that an optimizer without momentum takes to be about as fast as its state says
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
    memory: float | None = None,
    checkpoint: Any = None,
    checkpoint_every: float = EVERY,
    stacked: bool = False,
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
        v0: optimizer state at the start; None for the equilibrium V(Σ(params0)). From v0=0 without bias correction the
            limit η → 0 is not what an optimizer at η does (a UserWarning says what to pass instead).
        paths: the number of independent paths (all equal where nothing diffuses).
        key: random key; None for `jax.random.key(0)`.
        save_at: a number of equally spaced times, or the times. Noise belongs to slow time: they cut steps of an SDE,
            which moves its paths by an error of these steps, O(dt), and leave the Brownian paths as they are.
        metrics: names from `slowsde.metrics`, `Metric` objects, or {name: fn(params) -> scalar}.
        solver: "auto"; for noise that does not diffuse "implicit", which is "auto" for label noise of one std and a
            diagonal metric, or "tsit5" (explicit), which it is elsewhere; otherwise "euler" (weak order 1).
        dt: step of "euler" in slow time; None for (t1 − t0)/1000.
        rtol: tolerance of the adaptive solvers, relative to each parameter and to their root mean square.
        tol: with t1=inf, how still is stationary: `stats["stillness"]`, without units, see `SlowSDE.stillness`. At a
            singular end, where residuals ∝ |δx|² round before x does, an end counts that Newton's steps move by less
            than 10⁻⁷ of |x| and no nearer.
        max_steps: bound on its steps; a tenth of it, but 10 000 at least, bounds those of the way to Γ.
        route: a `Route` or its name: "dense", "kernel" or "matrix_free" (least squares, classification) or "auto".
        rank: the rank of the Hessian on Γ; None to find it.
        dtype: "float64" or "float32".
        throw: raise `RunError` when a path fails; False returns what it had, with `Trajectory.result` codes.
        progress: show a progress line on stderr; None for only when it is a terminal.
        memory: bytes that the run may take, or it is refused; None for those of this machine.
        checkpoint: a file that the run keeps its state in. Killed at any moment, the same call goes on from there and
            gives the same bits; finished, it returns at once. ValueError for a file of another run, with what differs.
        checkpoint_every: seconds between two writes at most; they are more frequent where that takes 2 % of the time.
        stacked: the leaves of params0 have a leading axis of starts. Path i is that from start i (v0 is one for all), a
            flow to the last bit as from that start alone, what diffuses with the noise of path i of a run from there.
            A start that leads to no manifold has NaN, the code NO_MANIFOLD and stats["messages"]; if not all do, that
            is a UserWarning. With t1=inf every path has its own times, (starts, T) in stats["times"].

    Returns: `Trajectory` with leaves (paths, T, ...). `stats` holds route, block, solver, rank and spectrum of H' at
        the start, start_distance |Φ(params0) − params0| (off Γ also its start_shares along eigenvectors of H', with
        start_eigenvalues), num_steps, seconds, speed |dζ/dt|_{S⁻¹} and stillness at the end (without diffusion), and
        for every saved time (paths, T) the residual on Γ, the ranks, the
        smallest_eigenvalue and largest_eigenvalue of H', and what `validity` needs besides: mean_relaxation,
        sampling_eigenvalue, b1, c.
    Raises: ValueError on bad input, before any long computation; `RunError` with the slow time at which a path left Γ,
        lost rank or turned non-finite; `Interrupted` after Ctrl-C, with what there was.

    Example:
        >>> slow = simulate(problem, adam(c=10.0), params0, t1=1.0, metrics=("trace_hessian",))
        >>> slow.metrics["trace_hessian"].shape
        (1, 101)
    """
    asked = request(
        "simulate",
        (problem, optimizer, params0, v0),
        t0=t0,
        t1=t1,
        may_rest=True,
        save_at=save_at,
        paths=paths,
        key=key,
        metrics=metrics,
        route=route,
        rank=rank,
        dtype=dtype,
        throw=throw,
        progress=progress,
        memory=memory,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        stacked=stacked,
    )
    # A run to rest has no length to divide.
    step = arguments.check_step(dt, t0, t0 + 1 if asked.endless else t1)
    arguments.choice("solver", solver, SOLVERS)
    arguments.positive_integer("max_steps", max_steps)
    if not asked.endless:
        check_memory(grid_needed(t1 - t0, step), memory)
    rtol, tol = arguments.check_tolerance("rtol", rtol), arguments.check_tolerance("tol", tol)
    method = Method(solver, step, rtol, tol, int(max_steps))
    solve, check = partial(_slow_paths, method=method), partial(_check_way, solver=solver, endless=asked.endless)
    settings = {f"method.{name}": value for name, value in method._asdict().items()}
    how = {"check": check, "settings": lambda sde, x0: settings}
    return run(asked, problem, optimizer, params0, v0, solve, "slow", **how)


class _Begun(NamedTuple):
    """A path of the slow SDE at its start."""

    slow: SlowState
    state: State
    about: dict[str, Any]


def _slow_paths(asked: Request, sde: SlowSDE, x0: Array, v0: PyTree, *, method: Method) -> Outcome:
    """From Φ_{S(v0)}(x0) along the slow SDE: a flow to a time or to rest, or Euler steps with noise."""
    begin = partial(_begun, asked, sde, v0=v0, most=max(MAX_STEPS, method.max_steps // 10))
    if asked.stacked:
        return _from_starts(asked, sde, attempted(begin, x0), method)
    begun = begin(x0)
    if not sde.diffuses and method.solver != "euler":
        return _flow_from(asked, begun, method)
    slow, state0, about = begun
    solved = _euler_paths(asked, slow, state0, method.dt)
    return outcome_of(slow, solved, about if sde.diffuses else about | _at_the_end(slow, solved))


def _begun(asked: Request, sde: SlowSDE, x0: Array, *, v0: PyTree, most: int) -> _Begun:
    given, shown = v0 is not None, step_meter("to the manifold", asked.progress, most)
    slow, start, v0 = start_on_manifold(sde, x0, v0, asked.rank, asked.t0, max_steps=most, shown=shown)
    state0, about = slow.initial(start.point, v0), _about_start(slow.sde, x0, start, v0)
    return _Begun(slow, state0, about | (_about_state(slow, state0) if given else {}))


def _flow_from(asked: Request, begun: _Begun, method: Method, start: str = "") -> Outcome:
    """A flow, whose stages have names that begin with that of its `start`."""
    slow, state0, about = begun
    if asked.endless:
        solved = follow_to_rest(slow, state0, asked.t0, asked.times.size, method, asked.pieces, start)
    else:
        solved = follow(slow, state0, asked.times, (asked.t0, asked.t1), method, asked.pieces, start + "flow")
    settings = {"rtol": method.rtol, "given_rank": asked.rank}  # for `resume`
    return outcome_of(slow, solved, about | _at_the_end(slow, solved) | settings)


def _from_starts(asked: Request, sde: SlowSDE, begun: list[_Begun | Failure], method: Method) -> Outcome:
    """One path from each start: flows one after the other, as each has steps of its own; what diffuses side by side."""
    good = {number: one for number, one in enumerate(begun) if isinstance(one, _Begun)}
    if sde.diffuses or method.solver == "euler":
        found = _euler_from_starts(asked, good, method.dt)
    else:
        found = {number: _flow_from(asked, one, method, f"start {number}: ") for number, one in good.items()}
    failed = {number: one for number, one in enumerate(begun) if isinstance(one, Failure)}
    every = found | failed
    return merged(sde, [every[number] for number in range(len(begun))], asked.times, asked.t0)


def _euler_paths(asked: Request, slow: SlowState, state0: State, dt: float) -> Solved:
    grid, cells = _euler_grid(asked, dt, [start_scales(slow, state0)])
    how = {"paths": asked.paths, "pieces": asked.pieces, "cells": cells}
    found = solve_sde(slow, state0, asked.key, asked.times, grid, dt, **how)
    return Solved(asked.times, *found, _about_noise(asked, dt))


def _euler_from_starts(asked: Request, begun: dict[int, _Begun], dt: float) -> dict[int, Outcome]:
    """Paths of Euler steps, one from each start, with the noise of the paths of their numbers."""
    if not begun:
        return {}
    ones = list(begun.values())
    grid, cells = _euler_grid(asked, dt, [start_scales(one.slow, one.state) for one in ones])
    states, regular = stack_leaves([(one.state, (one.slow.sde.rank, one.slow.floor)) for one in ones])
    how = {"paths": np.array(list(begun)), "pieces": asked.pieces, "regular": regular, "cells": cells}
    found = solve_sde(ones[0].slow, states, asked.key, asked.times, grid, dt, **how)

    def outcome(path: int, one: _Begun) -> Outcome:
        saved, ending = jax.tree.map(lambda leaf: leaf[path : path + 1], found)
        return outcome_of(one.slow, Solved(asked.times, saved, ending, _about_noise(asked, dt)), one.about)

    return {number: outcome(path, one) for path, (number, one) in enumerate(begun.items())}


def _euler_grid(asked: Request, dt: float, scales: list[Scales]) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and the cells of time that their noise belongs to."""
    # Graded at a start from v = 0, in equal steps elsewhere.
    falling = min((scale.falling for scale in scales if scale.contrast > SINGULAR), default=np.inf)
    way = asked.t0, asked.t1, dt, falling
    return step_grid(asked.times, *way), noise_cells(*way)


def _about_noise(asked: Request, dt: float) -> dict[str, Any]:
    """What `resume` needs to meet the same noise."""
    return {"solver": "euler", "dt": dt, **key_stats(asked.key)}


def _about_start(sde: SlowSDE, x0: Array, start: LimitPoint, v0: PyTree) -> dict[str, Any]:
    rank = int(start.rank)
    about = {"rank": rank, "spectrum": np.asarray(start.spectrum)[:rank], "start_distance": float(start.distance)}
    near = float(jnp.finfo(x0.dtype).eps) ** 0.4 * float(np.linalg.norm(np.asarray(x0)))
    # Computed on Γ too, where it says nothing: a start that differs in numbers only is to compile nothing.
    shares, rates = to_numpy(start_shares(sde, x0, start.point, v0))
    if start.distance > near:
        about |= {"start_shares": shares, "start_eigenvalues": rates}
    return about | sde.noise_report(start.point)


def _about_state(slow: SlowState, state0: State) -> dict[str, Any]:
    """How S falls at the start, where v0 is far below V(Σ); a warning where it is nothing."""
    sde, (x, v) = slow.sde, state0
    if not jax.tree.leaves(v):
        return {}
    contrast = start_scales(slow, state0).contrast
    if not np.isfinite(contrast) or contrast < FALLS:
        return {}
    if contrast > LARGE and _is_nothing(v, equilibrium(sde, x)):
        c, steps = float(sde.optimizer.c), starting_steps(float(sde.optimizer.b1))
        warnings.warn(
            f"v0=0 without bias correction: S is {contrast:.2g} times that at V(Σ), and the slow SDE moves at once, "
            f"before the optimizer, whose v is about k·c·lr²·V(Σ) after k steps, has made its first ones. To compare "
            f"with it at a rate lr pass v0={c * steps:g}·lr²·V(Σ), its state after {steps:g} steps (V(Σ) is v at the "
            "start of a run with v0=None), or use bias_correction=True; validity tells how much it matters at an lr.",
            UserWarning,
            stacklevel=6,  # the call of simulate
        )
    return {"start_motion": start_motion(sde, x, v, contrast)}


def starting_steps(b1: float) -> float:
    """How many steps an optimizer takes to get going from m = 0 and v = 0: 2/(1−β1), and about 10 with no momentum."""
    return max(STARTING, round(2 / (1 - b1), 6))


def _is_nothing(v: PyTree, target: PyTree) -> bool:
    """Whether v is below what any first step would leave of it: 1e-12 V(Σ)."""
    largest = [max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)) for tree in (v, target)]
    return largest[0] <= 1e-12 * largest[1]


def _at_the_end(slow: SlowState, solved: Solved) -> dict[str, float]:
    x, v = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (solved.saved.x, solved.saved.v))
    last = jax.tree.map(lambda leaf: leaf[-1], v)
    start, end, t = on_device((x[0], slow.initial(x[-1], last), np.asarray(solved.times[-1], x.dtype)))
    speed, still = stillness(slow, start, end, t)
    return {"speed": float(speed), "stillness": float(still)}


def outcome_of(slow: SlowState, solved: Solved, about: dict[str, Any]) -> Outcome:
    """A solve as the outcome of a run, with spectra along it; `about` are statistics of its start."""
    sde, (times, saved, ending, stats, verdict) = slow.sde, solved
    codes, kink = explained(slow, ending)
    codes = np.where(codes == Result.SUCCESS, verdict, codes)
    good = np.isfinite(np.asarray(saved.residual))
    along = {
        "residual": saved.residual,
        "ranks": saved.rank,
        "smallest_eigenvalue": saved.smallest,
        "largest_eigenvalue": saved.largest,
        # Kept so that `compare` can say where to trust the run without the problem, also for one from a file.
        **saved.history,
    }
    settings = {
        "b1": float(sde.optimizer.b1),
        "c": float(sde.optimizer.c),
        "pace": paces(sde.optimizer, times),
        "num_steps": int(np.max(np.asarray(ending.steps))),
    }
    if kink is not None:
        settings["kink"] = kink.explain()
    route = {"route": sde.loss.route, "block": sde.loss.block(saved.x[0, 0])}
    stats = route | about | stats | blanked(good, to_numpy(along)) | settings
    return Outcome(sde, times, saved.x, saved.v, good, codes, np.asarray(ending.time), stats)


def _check_way(sde: SlowSDE, solver: str, endless: bool) -> None:
    check_solver(solver, sde)
    if endless:
        check_rest(sde, solver)


def check_solver(solver: str, sde: SlowSDE) -> None:
    """ValueError unless `solver` suits the noise and the metric."""
    # What diffuses takes Euler steps whatever was named, and the name would be ignored without a word.
    if solver in ("tsit5", "implicit") and sde.diffuses:
        raise ValueError(f"solver={solver!r} is for noise that does not diffuse (label noise); use 'auto' or 'euler'.")
    if solver == "implicit" and not sde.has_sharpness:
        raise ValueError("solver='implicit' needs noise with Σ = αH, such as label noise of one std; use 'auto'.")


def check_rest(sde: SlowSDE, solver: str) -> None:
    """ValueError unless a run to t1=inf can end."""
    if sde.diffuses or solver == "euler":
        raise ValueError("t1=inf ends where the slow flow is stationary, but this one diffuses: pass a finite t1.")
    if sde.optimizer.schedule is not None:
        raise ValueError("t1=inf ends where the slow flow is stationary; with a schedule pass a finite t1.")
